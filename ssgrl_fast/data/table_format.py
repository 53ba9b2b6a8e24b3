"""What a user says about a table that its content does not tell."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PLAIN_TABLE", "TableFormat"]


@dataclass(frozen=True, kw_only=True)
class TableFormat:
    """How a table is to be read where its content does not tell.

    Args:
        separator: between the labels of a field; " " for blanks. None: ``;``, ``|``, ``,`` or their full-width
            forms, whichever occurs, or list literals.
        coding: what the values of class columns mean: "zero-one", "voc", "chexpert", "openimages", "partial", or
            written out like "1=present,0=absent,-1=unknown,empty=absent". None: present, absent, and no -1.
        negative_word: the label, or the class column, that says that an image has no label ("No Finding"); it is no
            class.
        image_column, label_column, split_column: the columns of the files, of the labels and of the splits; None: by
            their known names. split_column "": no column names splits.
    """

    separator: str | None = None
    coding: str | None = None
    negative_word: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None


PLAIN_TABLE = TableFormat()
"""Nothing is said: the table must tell."""
