"""Reads text files that users write: with or without a byte-order mark, with any line ending, and with a message that
helps where the file is not UTF-8 or no text at all."""

from __future__ import annotations

import codecs
import json
import re
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["binary_kind", "decode_text", "encoding_advice", "is_utf8", "parse_json", "read_lines", "read_text"]

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KINDS = (
    (b"\x1f\x8b", "a gzip archive: unpack it with gunzip"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it with unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it"),
    (b"\x93NUMPY", "a NumPy array: give it the extension .npy"),
    (b"PAR1", "a Parquet table"),
    (b"\x89HDF", "an HDF5 file"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file: fetch it with git lfs pull"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
_PAGE = re.compile(rb"\s*(?:<!doctype html|<html[\s>]|<head[\s>]|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE)
_SNIFFED = 1024  # bytes that a kind is told by
_ENCODINGS = ("gb18030", "cp1252", "cp1251", "shift_jis", "euc_kr")
_PASSAGE_ENDS = (b"<", b">", b",", b";", b"|", b"\t", b"\r", b"\n")
_PASSAGE = 40  # bytes to either side


def read_text(path: str | PathLike[str], what: str | None = None) -> str:
    """The text of a file in UTF-8, without its byte-order mark.

    Args:
        path: the file.
        what: opens the messages; None: the path.

    Raises:
        OSError: it cannot be read.
        ValueError: another encoding, or no text; the message says which encoding it may be in, or what kind of file it
            is.
    """
    return decode_text(Path(path).read_bytes(), str(path) if what is None else what)


def read_lines(path: str | PathLike[str], what: str | None = None) -> list[str]:
    """The lines of a text file without their endings: LF, CR LF or CR alone. Nothing else ends a line: names may hold
    other separators of Unicode. Arguments and errors as for :func:`read_text`."""
    return re.split("\r\n|\n|\r", read_text(path, what))


def decode_text(content: bytes, what: str) -> str:
    """:func:`read_text` for bytes that were read already."""
    if content.startswith(_UTF16):
        raise ValueError(f"{what}: not UTF-8 text, but UTF-16: convert it with iconv -f utf-16 -t utf-8")
    if (kind := binary_kind(content)) is not None:
        raise ValueError(f"{what}: expected text, but this is {kind}")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\n|\r", content[: error.start])) + 1
        raise ValueError(f"{what}, line {line}: not UTF-8 text{encoding_advice(content, error.start)}") from error


def is_utf8(name: str) -> bool:
    """Whether a name can be written in UTF-8; names of files and folders in another encoding cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str | bytes) -> Any:
    """``json.loads`` that raises ValueError for text nested too deeply as well, in place of RecursionError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def encoding_advice(content: bytes, at: int) -> str:
    """A clause that shows how a passage would read in other encodings, and how to convert the file; it begins with a
    semicolon.

    Args:
        content: bytes that are not UTF-8.
        at: position of the first byte that is not.
    """
    start = max((content.rfind(end, 0, at) for end in _PASSAGE_ENDS), default=-1) + 1
    passage = re.split(rb"[<>,;|\t\r\n]", content[max(start, at - _PASSAGE) : at + _PASSAGE])[0]
    readings: dict[str, str] = {}
    for encoding in _ENCODINGS:
        with suppress(UnicodeDecodeError):
            text = passage.decode(encoding).strip()
            if text.isprintable():
                readings.setdefault(text, encoding)
    if not readings:
        return "; save it as UTF-8"
    listed = " or ".join(f"{text!r} ({encoding})" for text, encoding in readings.items())
    return f"; it may read {listed} in another encoding: convert it with iconv -f ENCODING -t utf-8"


def binary_kind(content: bytes) -> str | None:
    """What kind of file the first bytes show, in words, where it is none of plain text; None: nothing known."""
    head = content[:_SNIFFED]
    if not head:
        return None
    for magic, kind in _KINDS:
        if head.startswith(magic):
            return kind
    if _PICKLE.match(head):
        return "a pickle of Python objects, which would run code of its own; save it in another format"
    if _PAGE.match(head):
        return "a web page: the download went to a page instead of the file"
    return "a binary file of unknown kind" if b"\0" in head else None
