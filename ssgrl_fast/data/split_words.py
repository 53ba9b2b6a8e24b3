"""Words by which tables name their splits: compared without case, and with their known forms.

=====  ====================================================
role   words, in any letters, with or without signs between
=====  ====================================================
train  train, training, trainval, train+val
val    val, valid, validation, validate, dev, development
test   test, testing, eval, evaluation, holdout
none   unassigned (Google AutoML): of no split
=====  ====================================================

Digits behind a word, such as the year of train2017, do not count.

A word that is none of these must be mapped by an option: nothing is trained on because its word is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["ROLES", "choose_splits", "matching_words", "role_in", "role_of"]

ROLES = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation", "holdout"),
    "none": ("unassigned",),
}
_ROLE_OF = {word: role for role, words in ROLES.items() for word in words}
_OPTIONS = (
    "name the words with --data.train_split, --data.val_split and --data.test_split (graph: --split); several are "
    "separated by commas"
)


def role_of(word: str) -> str | None:
    """The role of a word, "train", "val", "test" or "none" (of no split); None: no known word."""
    return _ROLE_OF.get("".join(letter for letter in word.casefold() if letter.isalnum()).rstrip("0123456789"))


def role_in(word: str) -> str | None:
    """The role of a word or, where it is not known, of the first known word in it: of coco_train2017 "train"."""
    parts = [word, *re.findall(r"[^\W\d_]+", word)]
    return next((role for part in parts if (role := role_of(part)) is not None), None)


def matching_words(words: Iterable[str], name: str) -> set[str]:
    """The words of a table that a split's name stands for.

    Args:
        words: all words of the table's split column.
        name: a word of the table in any letters, several separated by commas, or a known word whose other form the
            table has ("train" for "TRAINING").

    Returns:
        The words as the table has them; empty where none fits.

    Raises:
        ValueError: a known word that two different words of the table stand for ("test" and "holdout").
    """
    there = set(words)
    exact = {word for word in there if word.casefold() == name.strip().casefold()}
    if exact:
        return exact
    if "," in name:
        parts = [matching_words(there, part) for part in name.split(",") if part.strip()]
        return set().union(*parts) if all(parts) else set()
    role = role_of(name)
    return set() if role is None else _of_role(there, role)


def choose_splits(
    words: Sequence[str], *, train: str | None = None, val: str | None = None, test: str | None = None
) -> tuple[str | None, str | None]:
    """The names of the training and test split of a table: those given, else its words by their known forms.

    Args:
        words: all words of the table's split column; none where it has no such column.
        train, val, test: names that the user chose, or None.

    Returns:
        (training, test); both None for a table without splits; None for a test split that does not exist.

    Raises:
        ValueError: a word that is not known while ``train`` is not given, no training rows, or two words for one role.
    """
    if not words:
        return train, test
    listed = ", ".join(sorted(words))
    if train is None:
        mapped = {word for name in (val, test) if name is not None for word in matching_words(words, name)}
        strange = sorted(word for word in words if role_of(word) is None and word not in mapped)
        if strange:
            several = ", ".join(map(repr, strange[:5])) + (", …" if len(strange) > 5 else "")
            raise ValueError(f"no known word for a split: {several}; the splits there are {listed}; {_OPTIONS}")
        training = _of_role(words, "train")
        if not training:
            raise ValueError(f"no rows for training; the splits there are {listed}; {_OPTIONS}")
        train = _name(training)
    if test is None:
        tested = _of_role(words, "test") - matching_words(words, train)
        test = _name(tested) if tested else None
    return train, test


def _of_role(words: Iterable[str], role: str) -> set[str]:
    """The words with a role, which must be one but for its letters' case."""
    fitting = {word for word in words if role_of(word) == role}
    if role != "none" and len({word.casefold() for word in fitting}) > 1:
        raise ValueError(f"several words for {role}: {', '.join(sorted(fitting))}; {_OPTIONS}")
    return fitting


def _name(words: set[str]) -> str:
    """One name for words that differ in case alone."""
    return min(words) if len(words) == 1 else min(words).casefold()
