"""Written files and folders have the mode that the umask gives, whoever made them in between."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_bundles import NAMES, make_model

from ssgrl_fast._utils.files import replacing, write_json
from ssgrl_fast.data import features
from ssgrl_fast.inference.figures import ap_chart, save_figure
from ssgrl_fast.labels import graph, words


@pytest.fixture(params=[0o022, 0o002], ids=["umask 022", "umask 002"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _checkpoint(folder: Path) -> None:
    AtomicCheckpointIO = pytest.importorskip("ssgrl_fast.training.checkpoint").AtomicCheckpointIO
    AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, folder / "last.ckpt")


def _features(folder: Path) -> None:
    features._write(folder / "store", {}, ["plain"], 2, [[torch.zeros(2, 3, 2, 2)]])


def _private(folder: Path) -> None:
    with replacing(folder / "private.txt") as part:
        descriptor, name = tempfile.mkstemp(dir=folder)  # 0600, as some writers make theirs
        os.close(descriptor)
        os.replace(name, part)


WRITERS: dict[str, Callable[[Path], object]] = {
    "bundle": lambda folder: make_model().save_pretrained(folder),
    "graph.safetensors": lambda folder: graph.save(folder / "graph.safetensors", torch.rand(3, 3), NAMES),
    "graph.npz": lambda folder: graph.save(folder / "graph.npz", torch.rand(3, 3), NAMES),
    "words": lambda folder: words.save(folder / "words.npy", torch.rand(3, 2), NAMES),
    "json": lambda folder: write_json(folder / "report.json", {}),
    "picture": lambda folder: save_figure(ap_chart(["a"], [0.5]), folder / "ap.png"),
    "checkpoint": _checkpoint,
    "features": _features,
    "a writer of private files": _private,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_modes_are_the_umasks(tmp_path: Path, umask: int, writer: str, again: bool) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for _ in range(1 + again):
        WRITERS[writer](folder)
    written = list(folder.rglob("*"))
    assert written
    for path in written:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == expected, (path.name, oct(path.stat().st_mode))


def test_nothing_but_the_file_is_left(tmp_path: Path) -> None:
    """Neither the file that tells the mode nor that of a writer that wrote nothing, which is an error still."""
    with pytest.raises(OSError, match=r"report\.json: could not be written"), replacing(tmp_path / "report.json"):
        pass
    assert list(tmp_path.iterdir()) == []
