"""The ways to spell a class name with words that a table of vectors may have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["spellings"]

_SEPARATORS = re.compile(r"[^\w']+|_+")  # punctuation and symbols, but apostrophes
_CAPITALS = re.compile(r"(?<=[a-z\u00df-\u00ff])(?=[A-Z\u00c0-\u00de])")
_POSSESSIVE = re.compile(r"(.+)('s?)")


def spellings(name: str, compounds: Mapping[str, Sequence[str]]) -> list[list[tuple[str, ...]]]:
    """For each word of a class name the ways to spell it; a compound of the whole name takes the place of all."""
    whole = compounds.get(name)
    words = name.split()
    if whole is not None and len(words) > 1:
        return [[(word,)] for word in _compound_words(name, whole)]
    spelled = [_of_word(word, compounds) for word in words]
    return [options for options in spelled if options] or spelled


def _compound_words(word: str, split: Sequence[str]) -> tuple[str, ...]:
    if isinstance(split, str) or not split:
        raise TypeError(f"words: compounds[{word!r}] must be a sequence of words, got {split!r}")
    return tuple(split)


def _of_word(word: str, compounds: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """The ways to spell one word, the preferred one first."""
    options: list[tuple[str, ...]] = [(word,)]
    split = compounds.get(word, compounds.get(word.lower()))
    if split is not None:
        options.append(_compound_words(word, split))
    parts = [part for part in _SEPARATORS.split(word) if part.strip("'")]
    for divided in (parts, [piece for part in parts for piece in _CAPITALS.split(part)]):
        ending = [_POSSESSIVE.fullmatch(part) for part in divided]
        options.append(tuple(divided))
        options.append(
            tuple(piece for part, m in zip(divided, ending, strict=True) for piece in (m.groups() if m else [part]))
        )
        options.append(tuple((m[1] if m else part).strip("'") for part, m in zip(divided, ending, strict=True)))
    return list(dict.fromkeys(option for option in options if option))
