"""Several processes that compute the same features at once: one store, whole, that all of them use, and no warning."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from test_features import backbone, cache, evaluation_images, root

from ssgrl_fast.models.backbones import Backbone

__all__ = ["backbone", "root"]  # fixtures

WRITER = """
import hashlib, sys, time, torch
from ssgrl_fast.data.transforms import eval_transform
from ssgrl_fast.data.voc import PascalVOC
from ssgrl_fast.data import features
from ssgrl_fast.models.backbones import build_backbone, freeze_backbone
torch.manual_seed(0)
backbone = freeze_backbone(build_backbone("small-cnn", pretrained=False), "all")
images = PascalVOC(sys.argv[1], "test", classes=["ace", "king", "queen"], transform=eval_transform(24))
def rename(source, target, original=features.os.rename):
    print("computed", flush=True)
    sys.stdin.readline()  # all of them have computed everything
    original(source, target)
features.os.rename = rename
print("ready", flush=True)
sys.stdin.readline()
found = features.cache_features(images, backbone, sys.argv[2], name="small-cnn", batch_size=1, progress=False)
rows = torch.stack([found[index]["features"] for index in range(len(found))])
print(found.store, hashlib.sha256(rows.numpy().tobytes()).hexdigest())
"""


@pytest.mark.thorough
def test_one_wins_whole_and_the_others_use_it(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    command = [sys.executable, "-W", "error::UserWarning", "-c", WRITER, str(root), str(stores)]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    for step in ("ready", "computed"):
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline().strip() == step, writer.communicate()
        if step == "computed":
            assert len(list(stores.glob(".partial-*"))) == len(writers)
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
    ends = [writer.communicate() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * len(writers), ends
    assert {error for _, error in ends} == {""}, "no warning of any of them"
    assert len({output for output, _ in ends}) == 1, "the same features from the same store"
    store, digest = ends[0][0].split()
    assert [str(path) for path in stores.iterdir()] == [store]
    found = cache(evaluation_images(root), backbone, stores)
    assert str(found.store) == store
    rows = b"".join(found[index]["features"].numpy().tobytes() for index in range(len(found)))
    assert hashlib.sha256(rows).hexdigest() == digest
