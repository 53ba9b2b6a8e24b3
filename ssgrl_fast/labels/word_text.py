"""Reads text files of word vectors: one word a line, then its numbers, in the forms of GloVe, word2vec and fastText."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from ssgrl_fast._utils.text import binary_kind

__all__ = ["TextTable"]

_HEAD = 1 << 16  # bytes that hold the first line
_NEWLINE = b"\n"
_SHOWN = 40  # bytes of a file in a message


class TextTable:
    """A text file of word vectors, read as a stream: nothing of it stays in memory but what was asked for.

    Blanks or tabs part a word and its numbers. A word that stands twice counts by its first line. Lines whose word
    holds blanks (GloVe 840B has some) are passed over.

    Raises:
        ValueError: no text, or the first line is neither a header "count dimension" nor a word and its numbers.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"words: {path}: UTF-16 text: convert it with iconv -f utf-16 -t utf-8")
        fields = head.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0].split()
        announced = len(fields) == 2 and all(field.isdigit() for field in fields)
        if (kind := binary_kind(head)) is not None:
            if announced:
                kind = "word2vec's binary form: save it as text (gensim: save_word2vec_format(..., binary=False))"
            raise ValueError(f"words: {path}: expected a text file of vectors, but this is {kind}")
        self.count: int | None = None
        if announced:
            self.count, self.dim = int(fields[0]), int(fields[1])
        else:
            self.dim = len(fields) - 1
            if self.dim > 0:
                self._numbers(fields[1:], 1)
        if self.dim < 1:
            raise ValueError(
                f"words: {path}, line 1: expected a word and its numbers with blanks or tabs between, or 'count "
                f"dimension', got {_excerpt(head.partition(_NEWLINE)[0])}"
            )
        self.description = f"{path} ({self.dim}-d text)"

    def find(self, wanted: Collection[str], first_choices: Collection[str]) -> dict[str, np.ndarray]:
        """The vectors of the wanted words that are there; the reading ends once all first choices are found.

        Raises:
            ValueError: a line that is cut short, a number that is none or not finite, or fewer lines than the header
                announces; the message names file and line.
        """
        keys = {word.encode(): word for word in wanted}
        left = set(first_choices)
        vectors: dict[str, np.ndarray] = {}
        for number, line in self._lines():
            head = line.partition(b" ")[0]
            if head not in keys or keys[head] in vectors:
                continue
            fields = line.split()
            if len(fields) > self.dim + 1:
                continue
            vectors[keys[head]] = self._numbers(fields[1:], number)
            left.discard(keys[head])
            if not left:
                break
        return vectors

    def words(self) -> Iterator[str]:
        """Every word without blanks, in the file's order."""
        for _, line in self._lines():
            fields = line.rsplit(b" ", self.dim)
            if b" " not in fields[0]:
                yield fields[0].decode(errors="replace")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines that hold a word, with their numbers."""
        seen = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).replace(b"\t", b" ").rstrip()
                if not line or (number == 1 and self.count is not None):
                    continue
                if line.count(b" ") < self.dim:
                    raise ValueError(
                        f"words: {self.path}, line {number}: {line.count(b' ')} numbers, expected {self.dim}: "
                        f"the line is cut short"
                    )
                seen += 1
                yield number, line
        if self.count is not None and seen < self.count:
            raise ValueError(f"words: {self.path} announces {self.count} words and holds {seen}: the file is cut short")

    def _numbers(self, fields: list[bytes], line: int) -> np.ndarray:
        try:
            vector = np.array([float(field) for field in fields], dtype=np.float32)
        except ValueError as error:
            wrong = next(field for field in fields if not _is_number(field))
            raise ValueError(
                f"words: {self.path}, line {line}: could not convert string to float: {_excerpt(wrong)}"
            ) from error
        if len(vector) != self.dim:
            raise ValueError(f"words: {self.path}, line {line}: {len(vector)} numbers, expected {self.dim}")
        if not np.isfinite(vector).all():
            raise ValueError(f"words: {self.path}, line {line}: a number is not finite")
        return vector


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _excerpt(text: bytes) -> str:
    """The beginning of bytes as text, in quotes, with nothing in it that a terminal would obey."""
    shown = text[:_SHOWN].decode(errors="replace")
    return repr(shown + ("…" if len(text) > _SHOWN else ""))
