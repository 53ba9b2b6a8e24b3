"""Any label matrix in any form of a table is read back bit for bit; a byte that is lost or flipped changes what it
touches, or is refused."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssgrl_fast.data.table import TableFormat, read_table

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
LETTERS = "aB7 é猫😀$_^()'&+.-/\u00a0\u2028\u0301"
SIGNS = {
    "zero-one": {1: ("1", "True", "yes", "1.0"), -1: ("0", "FALSE", "n", "0.")},
    "voc": {1: ("1", "1.0"), 0: ("0", "-0"), -1: ("-1", "-1.0")},
    "chexpert": {1: ("1", "1.0"), -1: ("0", "0.0"), -2: ("-1", "")},
    "openimages": {1: ("1", "yes"), -1: ("0", "no"), -2: ("", "nan")},
}


@dataclass(frozen=True)
class Written:
    """A table's bytes, and what they say."""

    content: bytes
    files: list[str]
    names: list[str]
    labels: np.ndarray
    splits: list[str] | None
    form: TableFormat


def names(extra: str = "") -> st.SearchStrategy[str]:
    """Names that need quotes, hold separators or other letters, and begin and end visibly."""
    inner = st.text(LETTERS + extra, max_size=6)
    return st.builds(lambda a, b, c: a + b + c, st.sampled_from("xYé猫"), inner, st.sampled_from("zQ😀"))


def write(draw: Callable, rows: list[list[str]]) -> bytes:
    """Rows as CSV by Python's writer, in one of the ways that such files come."""
    text = io.StringIO()
    csv.writer(
        text,
        delimiter=draw(st.sampled_from(",;\t")),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n", "\r"])),
    ).writerows(rows)
    return text.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))


@st.composite
def tables(draw: Callable) -> Written:
    """A matrix of one to four images and classes in one of the forms."""
    shape = st.sampled_from(["separated", "literal", "rows", *SIGNS])
    form = draw(shape)
    separator = draw(st.sampled_from(["; ", "|", ",", "/", "#"])).strip() if form == "separated" else None
    extra = "".join(set(';,|#"[]{}') - {separator or ""})
    classes = draw(
        st.lists(names(extra).filter(lambda n: (separator or "\n") not in n), min_size=1, max_size=4, unique=True)
    )
    files = draw(st.lists(names(';,|"#'), min_size=1, max_size=4, unique=True))
    splits = draw(
        st.none() | st.lists(st.sampled_from(["train", "VALID", "Test"]), min_size=len(files), max_size=len(files))
    )
    codes = SIGNS.get(form, {1: (), -1: ()})
    labels = np.array(
        draw(
            st.lists(
                st.lists(st.sampled_from(sorted(codes)), min_size=len(classes), max_size=len(classes)),
                min_size=len(files),
                max_size=len(files),
            )
        ),
        dtype=np.int8,
    )
    held = [[name for name, code in zip(classes, row, strict=True) if code == 1] for row in labels.tolist()]
    header = ["Image Index"]
    if form in SIGNS:
        header += classes
        rows = [
            [file, *(draw(st.sampled_from(codes[code])) for code in row)]
            for file, row in zip(files, labels.tolist(), strict=True)
        ]
    elif form == "rows":
        header += ["Label"]
        rows = [[file, name] for file, own in zip(files, held, strict=True) for name in own or [""]]
    else:
        header += ["Labels"]
        listed = draw(st.sampled_from([repr, json.dumps])) if form == "literal" else (separator or "").join
        rows = [[file, listed(own)] for file, own in zip(files, held, strict=True)]
    if splits is not None:
        header.append("ML_USE")
        own = dict(zip(files, splits, strict=True))
        rows = [[*row, own[row[0]]] for row in rows]
    asked = "\x1e" if form == "rows" else separator  # nothing separates one label; lists are told by their content
    content = write(draw, [header, *rows])
    return Written(
        content, files, classes, labels, splits, TableFormat(separator=asked, coding=form if form in SIGNS else None)
    )


def read(written: Written, content: bytes, folder: Path, *, named: bool = True) -> tuple[list[str], dict, list | None]:
    """Files, codes by file and class, and splits."""
    path = folder / "labels.csv"
    path.write_bytes(content)
    table = read_table(path, classes=written.names if named else None, form=written.form)
    codes = {
        (file, name): code
        for file, row in zip(table.files, table.labels.tolist(), strict=True)
        for name, code in zip(table.class_names, row, strict=True)
    }
    return table.files, codes, table.splits


def check_written(written: Written) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files, codes, splits = read(written, written.content, Path(folder))
        assert files == written.files and splits == written.splits
        for row, file in enumerate(written.files):
            for column, name in enumerate(written.names):
                assert codes[file, name] == written.labels[row, column]


def check_touched(written: Written, place: int, flip: int | None) -> None:
    """Lose a byte, or flip a bit of it: of at most one row or one column anything differs, or the table is refused."""
    place %= len(written.content)
    touched = bytearray(written.content)
    if flip is None:
        del touched[place]
    else:
        touched[place] ^= 1 << flip
    with tempfile.TemporaryDirectory() as folder:
        try:
            files, codes, splits = read(written, bytes(touched), Path(folder), named=False)
        except ValueError as error:
            assert "labels.csv" in str(error), error
            return
    _, before, old_splits = read_back(written)
    if old_splits is not None:
        assert splits is not None, "the splits were lost"
    kept = [file for file in written.files if file in files]
    assert len(written.files) - len(kept) <= 1 and len(files) - len(kept) <= 1
    # codes of images and classes that keep their names stay, but in the touched row or column
    differing = {(file, name) for (file, name), code in before.items() if codes.get((file, name), -1) != max(code, -2)}
    rows, columns = {file for file, _ in differing}, {name for _, name in differing}
    moved = set(written.files) - set(kept)  # the row whose image got another name, in long form into that image's
    assert len(rows - moved) <= 1 or len(columns) <= 1, (differing, bytes(touched))
    if old_splits is not None and splits is not None:
        was, now = dict(zip(written.files, old_splits, strict=True)), dict(zip(files, splits, strict=True))
        assert sum(was[file] != now[file] for file in kept) <= 1


def read_back(written: Written) -> tuple[list[str], dict, list | None]:
    with tempfile.TemporaryDirectory() as folder:
        return read(written, written.content, Path(folder))


PLACE, FLIP = st.integers(0, 10**6), st.none() | st.integers(0, 7)


@settings(max_examples=150, **QUIET)
@given(tables())
def test_any_matrix_is_read_back(written: Written) -> None:
    check_written(written)


@settings(max_examples=150, **QUIET)
@given(tables(), PLACE, FLIP)
def test_a_touched_byte_changes_what_it_touches_or_is_refused(written: Written, place: int, flip: int | None) -> None:
    check_touched(written, place, flip)


@pytest.mark.long
@settings(max_examples=2500, **QUIET)
@given(tables())
def test_any_of_many_matrices_is_read_back(written: Written) -> None:
    check_written(written)


@pytest.mark.long
@settings(max_examples=2500, **QUIET)
@given(tables(), PLACE, FLIP)
def test_any_of_many_touched_bytes(written: Written, place: int, flip: int | None) -> None:
    check_touched(written, place, flip)


@pytest.mark.long
def test_a_table_of_1_7_million_rows_is_read_in_ten_seconds(tmp_path: Path) -> None:
    path, rows = tmp_path / "labels.csv", 1_700_000
    with path.open("w") as file:
        file.write("file,labels,split\n")
        for row in range(rows):
            file.write(
                f"train/{row:016x}.jpg,class {row % 600};class {row // 600 % 600},{'train' if row % 10 else 'test'}\n"
            )
    start = time.process_time()
    table = read_table(path)
    assert time.process_time() - start <= 10  # of one core
    assert table.labels.shape == (rows, 600)
    assert (table.labels[601] == 1).nonzero().flatten().tolist() == [table.class_names.index("class 1")]
