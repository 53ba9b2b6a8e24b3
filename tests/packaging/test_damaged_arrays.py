"""Damaged and forged .npy and .npz files end in a sentence that names the file, whoever reads them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")

from ssgrl_fast._utils.arrays import read_array, read_arrays
from ssgrl_fast.data import label_source
from ssgrl_fast.labels import graph, graph_forms, words
from ssgrl_fast.models.bundle import TRAINED_ON
from ssgrl_fast.training.trained_on import check_bundle

VALUES = np.eye(3, dtype=np.float32)


def npy(array: np.ndarray, header: bytes | None = None) -> bytes:
    """The bytes of a .npy file, its header replaced by another."""
    stream = io.BytesIO()
    np.save(stream, array)
    content = stream.getvalue()
    if header is None:
        return content
    padded = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + content[128:]


def forged(array: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Files that are no whole array, by what is wrong with them."""
    whole = npy(array)
    for length in (0, 3, 6, 9, 10, 60, 100, 127, 128, len(whole) - 1):
        yield f"cut to {length}", whole[:length]
    kind = array.dtype.str
    for name, text in {
        "an open bracket, a TokenError": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (3,",
        "no dictionary": "[1, 2]",
        "nested too deeply": "(" * 5000,
        "a call": "__import__('os').system('true')",
        "another key": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (3, 3), 'x': 1}}",
        "no dtype": "{'descr': 'spam', 'fortran_order': False, 'shape': (3, 3)}",
        "a pickle": "{'descr': '|O', 'fortran_order': False, 'shape': (3, 3)}",
        "3.6 TB": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (30000, 30000000)}}",
        "numbers beyond 64 bits": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({2**70}, {2**70})}}",
        "a negative side": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (-3, -3)}}",
        "elements without size": f"{{'descr': '|V0', 'fortran_order': False, 'shape': ({2**40},)}}",
        "a side too many": f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (3, 4)}}",
    }.items():
        yield name, npy(array, text.encode())


def archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return stream.getvalue()


def read_labels(path: Path) -> object:
    return label_source.read_file(path, class_names=["a", "b", "c"])


READERS: dict[str, tuple[str, np.ndarray, Callable[[bytes], bytes], Callable[[Path], object]]] = {
    "graph": ("graph.npy", VALUES, bytes, graph.read),
    "graph in an archive": (
        "graph.npz",
        VALUES,
        lambda damaged: archive(adjacency=damaged, class_names=npy(np.array(["a", "b", "c"]))),
        graph.read,
    ),
    "counts": (
        "counts.npz",
        VALUES,
        lambda damaged: archive(pairs=damaged, totals=npy(np.ones(3))),
        graph_forms.read_counts,
    ),
    "words": ("words.npy", VALUES, bytes, lambda path: words.lookup(str(path), ["a", "b", "c"])),
    "labels": ("labels.npy", VALUES.astype(np.int8), bytes, read_labels),
    "labels in an archive": ("l.npz", VALUES.astype(np.int8), lambda damaged: archive(labels=damaged), read_labels),
    "marks of a bundle": (TRAINED_ON, np.arange(3), bytes, lambda path: check_bundle(path.parent, None, option=None)),
}


@pytest.mark.parametrize("reader", READERS)
def test_damaged_arrays_end_in_sentences(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, whole, wrap, read = READERS[reader]
    path = tmp_path / name
    monkeypatch.setattr("ssgrl_fast.training.trained_on.image_marks", lambda dataset: np.arange(2))
    for wrong, content in forged(whole):
        path.write_bytes(wrap(content))
        with pytest.raises(ValueError) as raised:
            read(path)
        assert str(path) in str(raised.value), wrong
    path.write_bytes(wrap(npy(whole)))
    read(path)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_whole_array_is_read_as_numpy_reads_it(mapped: bool, tmp_path: Path) -> None:
    for number, array in enumerate(
        [VALUES, np.asfortranarray(VALUES[:2]), np.zeros((0, 5)), np.array(1.5), np.array(["é"])]
    ):
        path = tmp_path / f"{number}.npy"
        path.write_bytes(npy(array))
        found = read_array(path, mapped=mapped and array.size > 0)
        assert found.dtype == array.dtype and found.shape == array.shape and (found == array).all()
        assert isinstance(found, np.memmap) == (mapped and array.size > 0)


def test_archives_that_are_none(tmp_path: Path) -> None:
    whole = archive(labels=npy(VALUES))
    # an entry that says it has 2 GiB, and a header that says so too
    header = npy(
        np.zeros((0, 1), np.float32), f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**29},)}}".encode()
    )
    larger = bytearray(archive(labels=header))
    place = larger.index(b"PK\x01\x02") + 24
    larger[place : place + 4] = (2**31).to_bytes(4, "little")
    for content, message in (
        (b"", "no whole .npz archive"),
        (b"text", "no whole .npz archive"),
        (whole[:-30], "no whole .npz archive"),
        (archive(scores=npy(VALUES)), "it holds scores, expected labels"),
        (bytes(larger), r"its header promises float32 \[536870912\]"),
    ):
        with pytest.raises(ValueError, match=message):
            read_arrays(content, ["labels"])
    flipped = bytearray(whole)
    flipped[60] ^= 1
    with pytest.raises(ValueError):
        read_arrays(bytes(flipped), ["labels"])
    assert (read_arrays(whole, ["labels"], ["names"])["labels"] == VALUES).all()
