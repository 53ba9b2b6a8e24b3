"""Checkpoints with other things than tensors in them, and files that are none: the sentence says what is in the way."""

from __future__ import annotations

import argparse
import collections
import pathlib
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssgrl_fast.models.weight_files import read_tensors, read_torch_file

TENSORS = {"w": torch.ones(2)}


class Own:
    """A class of the user's."""


@pytest.mark.parametrize("by_zip", [True, False])
@pytest.mark.parametrize(
    ("more", "name"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (Own(), "test_weight_files.Own"),
        (pathlib.PurePosixPath("x"), "pathlib.PurePosixPath"),
        (np.arange(3), "numpy"),
        (collections.defaultdict(list), "collections.defaultdict"),
        (print, "print"),
    ],
)
def test_the_class_in_the_way_is_named(tmp_path: Path, more: Any, name: str, by_zip: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save({"epoch": 1, "args": more, "state_dict": TENSORS}, path, _use_new_zipfile_serialization=by_zip)
    with pytest.raises(ValueError, match=f"model.pth: .*it holds objects of .*{name}") as caught:
        read_torch_file(path)
    text = str(caught.value)
    assert "torch.save({'state_dict': checkpoint['state_dict']}, FILE)" in text
    assert text.isprintable() and "weights_only" not in text and "safe_globals" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>\x1b[31m<html>", "but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00rest", "but a gzip archive"),
        (b"not found\x1b[31m", "but text"),
        (b"\x80\x02}q\x00(X", "truncated, not a torch file"),
        (bytes(range(256)), "truncated, not a torch file"),
    ],
)
def test_files_that_hold_no_weights(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_torch_file(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_broken_pickles_end_in_sentences(tmp_path: Path) -> None:
    """Bytes of the pickle changed, lost and put in between, in the zip format with right checksums and in the older."""
    content = {"state_dict": {"w": torch.randn(3, 4), "b": torch.arange(5)}, "epoch": 3, "more": [1, (2.5, "text")]}
    draw, path = random.Random(0), tmp_path / "model.pth"
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    older, refused = path.read_bytes(), 0

    def damaged(whole: bytes) -> bytes:
        at = draw.randrange(len(whole))
        kept = whole[at + draw.choice((0, 1, 1, 8)) :] if draw.random() < 0.9 else b""
        return whole[:at] + draw.randbytes(draw.choice((0, 1, 1, 4))) + kept

    for number in range(200):
        if number % 2:
            path.write_bytes(damaged(older))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, each in members.items():
                    archive.writestr(name, damaged(each) if name.endswith("data.pkl") else each)
        for read in (read_tensors, read_torch_file):
            try:
                read(path)
            except ValueError as error:
                assert str(error).startswith(f"{path}: "), number
                refused += 1
    assert refused > 200
