"""What a broken file of a data set raises, and what an option that lost its use warns of."""

from __future__ import annotations

import warnings


class BrokenImage(ValueError):
    """An image file that cannot be decoded to RGB pixels; the message opens with the file's path."""


class Unreachable(OSError):
    """A store, such as a bucket, that gives no answer about an image which may well be there; never skipped."""


class BrokenAnnotation(ValueError):
    """An annotation file, or an entry of one, that does not say which labels an image has; the message opens with the
    file's path."""


class OutsideRoot(ValueError):
    """A list, table or symbolic link names a file outside the data set's folders; never skipped."""


def warn_of_label_cache(label_cache: object) -> None:
    """Warn where the option ``label_cache`` is set: it has no effect any more."""
    if label_cache is not None:
        warnings.warn(
            "label_cache has no effect any more and will be removed: annotations are parsed in seconds; leave it out",
            FutureWarning,
            stacklevel=3,
        )
