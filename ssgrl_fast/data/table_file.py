"""The text of a table: encoding, delimiter, quotes and line ends; columns of cells, and the line of each row. A Parquet
file is read as the text that it would be in CSV, its lists as JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast.data.errors import BrokenAnnotation

__all__ = ["CONTROL", "TableText", "check_printable", "open_parquet", "read_text"]

DELIMITERS = (",", ";", "\t", "|")
_MARKS = (  # of byte order; the longer ones first, for UTF-16's opens UTF-32's
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_ARCHIVES = {b"PK\x03\x04": "a ZIP archive or an Excel workbook", b"\x1f\x8b": "a gzip archive", b"PAR1": "Parquet"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?(?:\r\n|\r|\n)')  # Excel's first line
CONTROL = re.compile(r"[\x00-\x1f\x7f\x85]")
"""What no name may hold."""


@dataclass(frozen=True)
class TableText:
    """A table's cells.

    Attributes:
        path: the file.
        header: names of the columns, as they are there; no two alike, none empty.
        columns: M cells of each column, without blanks around them.
        lines: the last line number of each row in the file, M; in Parquet the row's number.
        delimiter: between the fields of a row.
        unit: what ``lines`` counts.
    """

    path: Path
    header: list[str]
    columns: list[list[str]]
    lines: Sequence[int]
    delimiter: str
    unit: str = "line"

    def place(self, row: int) -> str:
        """Opens a message about a row."""
        return f"{self.path}, {self.unit} {self.lines[row]}"

    def column(self, name: str) -> list[str]:
        """The cells of the column with this name."""
        return self.columns[self.header.index(name)]


def read_text(path: Path, is_header: Callable[[Sequence[str]], bool], wanted: str | None = None) -> TableText:
    """Read a table.

    Args:
        path: the file; UTF-8, or UTF-16 or UTF-32 with a byte-order mark; any line ends; or .parquet.
        is_header: whether these names of columns can be the table's; it chooses the delimiter.
        wanted: the column that ``is_header`` looks for, where the user has named one.

    Raises:
        BrokenAnnotation: another encoding, a header that fits under no delimiter, quotation marks that are not closed,
            are followed by text or stand in a column's name without quotes, a row with another number of fields than
            the header, damaged Parquet; the message names the line.
    """
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, is_header, wanted)
    text, skipped = _decoded(path), 0
    delimiters: Sequence[str] = DELIMITERS
    if (declared := _SEPARATOR_LINE.match(text)) is not None:
        text, skipped, delimiters = text[declared.end() :], 1, declared.group(1)
    for delimiter in delimiters:
        header = _first_record(path, text, delimiter)
        if is_header(header):
            break
    else:
        raise _no_column(path, re.split(r"[\r\n]", text, maxsplit=1)[0], wanted)
    _check_quotes(path, text, delimiter)
    cells, lines = _records(path, text, delimiter, len(header), skipped)
    if not lines:
        raise BrokenAnnotation(f"{path}: the table has a header but no rows")
    width = len(header)
    columns = [list(map(str.strip, cells[place::width])) for place in range(width)]
    header, columns = _named_columns(path, header, columns)
    return TableText(path, header, columns, lines, delimiter)


def _no_column(path: Path, header: str, wanted: str | None) -> BrokenAnnotation:
    shown = header if len(header) <= 200 else header[:200] + "…"
    usual = (
        "file or file_name or filename, got {!r} (known as well: image, image_name, image_id, image index, path, "
        "name, id … in any letters; --data.image_column, graph: --image-column, names another)"
    )
    expected = usual if wanted is None else f"{wanted!r}, as the option of the column says, got {{!r}}"
    return BrokenAnnotation(f"{path}: the first line must name a column {expected.format(shown)}")


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A Parquet file as ``pyarrow.parquet.ParquetFile``.

    Raises:
        FileNotFoundError: no such file.
        BrokenAnnotation: damaged, or no Parquet; also where it is read.
        ImportError: pyarrow is not installed.
    """
    parquet = need("pyarrow.parquet", "train", "a table in Parquet")
    try:
        with open(path, "rb") as file:
            yield parquet.ParquetFile(file)
    except (FileNotFoundError, BrokenAnnotation):
        raise
    except (OSError, ValueError) as error:
        raise BrokenAnnotation(f"{path}: no table in Parquet that can be read: {error}") from error


def _read_parquet(path: Path, is_header: Callable[[Sequence[str]], bool], wanted: str | None) -> TableText:
    with open_parquet(path) as file:
        table = file.read()
        columns = [list(map(_cell, column.to_pylist())) for column in table.columns]
    if not is_header(table.column_names):
        raise _no_column(path, ",".join(table.column_names), wanted)
    if not table.num_rows:
        raise BrokenAnnotation(f"{path}: the table has a header but no rows")
    header, columns = _named_columns(path, table.column_names, columns)
    return TableText(path, header, columns, range(1, table.num_rows + 1), ",", "row")


def _cell(value: object) -> str:
    """A value as CSV would have it; None is empty, a list JSON. Some writers store text as bytes."""
    if isinstance(value, list):
        return json.dumps(
            [each.decode() if isinstance(each, bytes) else each for each in value], ensure_ascii=False, default=str
        )
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return "" if value is None else str(value).strip()


def check_printable(place: str, what: str, name: str) -> None:
    """Refuse control characters in a name.

    Raises:
        BrokenAnnotation: there are some; ``place`` opens the message.
    """
    if (found := CONTROL.search(name)) is not None:
        shown = name if len(name) <= 100 else name[:100] + "…"
        raise BrokenAnnotation(
            f"{place}: {what} {shown!r} holds the control character {found.group()!r}; was a quotation mark not closed?"
        )


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    for start, what in _ARCHIVES.items():
        if content.startswith(start):
            raise BrokenAnnotation(f"{path}: {what}, no table as text; save it as CSV in UTF-8")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        what = "UTF-8" if encoding == "utf-8-sig" else f"the {encoding.upper()} that its byte-order mark promises"
        raise BrokenAnnotation(f"{path}, line {line}: not {what}; save the table as UTF-8") from error


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)


def _first_record(path: Path, text: str, delimiter: str) -> list[str]:
    """The names of the columns under a delimiter; none where the line cannot be parsed by it."""
    try:
        return [name.strip() for name in next(_reader(text[: 1 << 20], delimiter), [])]
    except csv.Error:
        return []


def _check_quotes(path: Path, text: str, delimiter: str) -> None:
    """Refuse a quotation mark within a column's name that is not quoted: where a separator is lost, a name runs into
    the quoted one behind it, and that one ends at its own comma."""
    for name in next(_reader(text[: 1 << 20], delimiter)):
        if '"' in name and '"{}"'.format(name.replace('"', '""')) not in text:
            raise BrokenAnnotation(
                f"{path}, line 1: the column {name!r} holds a quotation mark that is not within quotes; was a "
                "separator lost? (write such a name in quotes, the mark doubled)"
            )


def _records(path: Path, text: str, delimiter: str, width: int, skipped: int) -> tuple[list[str], list[int]]:
    """All cells after the header, row by row, and the last line number of each row."""
    cells: list[str] = []
    lines: list[int] = []
    limit = csv.field_size_limit(len(text) + 1)  # of the process; put back below
    reader, last = _reader(text, delimiter), 0
    try:
        next(reader)
        last = reader.line_num
        for row in reader:
            last = reader.line_num
            if not (row and row[0]) and not any(map(str.strip, row)):
                continue
            if len(row) != width:
                if len(row) < width or any(map(str.strip, row[width:])):
                    raise BrokenAnnotation(
                        f"{path}, line {last + skipped}: {len(row)} fields, the header has {width} (fields are "
                        f"separated by {delimiter!r}; quote those that hold it)"
                    )
                row = row[:width]
            cells.extend(row)
            lines.append(last + skipped)
    except csv.Error as error:
        first, now = last + 1 + skipped, reader.line_num + skipped
        if "end of data" in str(error):
            why = "a quotation mark that is opened here is never closed"
        elif "expected after" in str(error):
            why = (
                f"text follows a closing quotation mark{f' in line {now}' if now > first else ''}; double those within"
            )
        else:
            why = str(error)
        raise BrokenAnnotation(f"{path}, line {first}: {why}") from error
    finally:
        csv.field_size_limit(limit)
    return cells, lines


def _named_columns(path: Path, header: list[str], columns: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Header and columns without those that have neither name nor content, and without a numbering of the rows."""
    kept = []
    for place, (name, cells) in enumerate(zip(header, columns, strict=True)):
        numbered = place == 0 and cells == [str(row) for row in range(len(cells))]  # a data frame's index
        if not name and not numbered and any(cells):
            row = next(row for row, cell in enumerate(cells) if cell)
            raise BrokenAnnotation(f"{path}: column {place + 1} has no name, but holds {cells[row]!r}")
        if name:
            check_printable(f"{path}, line 1", "the column", name)
            kept.append(place)
    names = [header[place] for place in kept]
    if len(set(names)) < len(names):
        raise BrokenAnnotation(f"{path}: columns must have distinct names, got {', '.join(map(repr, names))}")
    return names, [columns[place] for place in kept]
