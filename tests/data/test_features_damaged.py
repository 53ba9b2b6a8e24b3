"""Cached features where something goes wrong: kills, damage, a full disk, other images of the same names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_features import backbone, cache, evaluation_images, root, training_images

from ssgrl_fast._utils.files import locked
from ssgrl_fast.models.backbones import Backbone

__all__ = ["backbone", "root"]  # fixtures


def test_an_interrupted_computation_leaves_no_store(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    (root / "train" / "9.png").write_bytes((root / "train" / "9.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"9\.png"):
        cache(training_images(root), backbone, tmp_path / "store", batch_size=2)
    assert list((tmp_path / "store").iterdir()) == []


KILLED = """
import os, signal, sys, torch
from ssgrl_fast.data.transforms import eval_transform
from ssgrl_fast.data.voc import PascalVOC
from ssgrl_fast.data.features import cache_features
from ssgrl_fast.models.backbones import build_backbone, freeze_backbone
torch.manual_seed(0)
backbone = freeze_backbone(build_backbone("small-cnn", pretrained=False), "all")
class Dies(torch.nn.Module):
    seen = 0
    def forward(self, images):
        self.seen += 1
        if self.seen == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return backbone(images)
images = PascalVOC(sys.argv[1], "test", classes=["ace", "king", "queen"], transform=eval_transform(24))
cache_features(images, Dies(), sys.argv[2], name="small-cnn", batch_size=1, progress=False)
"""


def test_a_killed_computation_is_not_taken_for_a_store(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), str(store)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = list(store.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".partial-")
    (left,) = store.glob(".partial-*")
    os.utime(left, (0, 0))
    with locked(left):  # as by a computation that still runs
        cache(training_images(root), backbone, store)
        assert left.is_dir()
    cached = cache(evaluation_images(root), backbone, store)
    assert not left.exists()
    with torch.no_grad():
        expected = backbone(torch.stack([evaluation_images(root)[index]["image"] for index in range(5)]))
    found = torch.stack([cached[index]["features"] for index in range(5)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_damage_is_named(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    store = cache(evaluation_images(root), backbone, tmp_path).store
    whole = (store / "plain.npy").read_bytes()
    for content in (b"", whole[:50], whole[:-100]):
        (store / "plain.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"plain\.npy: damaged .*; delete .* and it will be made again"):
            cache(evaluation_images(root), backbone, tmp_path)
    (store / "plain.npy").write_bytes(whole)
    meta = (store / "meta.json").read_text()
    for text in ("", meta[: len(meta) // 2], "{}", "[]"):
        (store / "meta.json").write_text(text)
        with pytest.raises(ValueError, match=r"meta\.json: damaged"):
            cache(evaluation_images(root), backbone, tmp_path)
    (store / "meta.json").write_text(meta.replace("small-cnn", "large-cnn"))
    with pytest.raises(ValueError, match=r"meta\.json: damaged .*it does not have its checksum"):
        cache(evaluation_images(root), backbone, tmp_path)
    shutil.rmtree(store)
    cache(evaluation_images(root).select([4, 3, 2, 1, 0]), backbone, tmp_path).store.rename(store)
    with pytest.raises(ValueError, match=r"meta\.json: does not describe this store"):
        cache(evaluation_images(root), backbone, tmp_path)


def test_a_file_over_the_limit_of_the_process_is_named(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy; from ssgrl_fast._utils.files import new_array; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "new_array(Path(sys.argv[1]), numpy.dtype('f4'), (4096,))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.npy")], capture_output=True, text=True)
    said = f"OSError: {tmp_path / 'x.npy'}: could not be written, what was there is unchanged: File too large"
    assert done.stderr.splitlines()[-1] == said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.thorough
def test_a_full_disk_is_a_sentence_and_leaves_earlier_features(root: Path, tmp_path: Path) -> None:
    """On a file system of 400 KiB, of which a store of small features leaves too little for a second one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = """
import sys
from ssgrl_fast.data.features import cache_features
from ssgrl_fast.data.transforms import eval_transform
from ssgrl_fast.data.voc import PascalVOC
from ssgrl_fast.models.backbones import build_backbone, freeze_backbone
import torch
torch.manual_seed(0)
backbone = freeze_backbone(build_backbone("small-cnn", pretrained=False), "all")
images = PascalVOC(sys.argv[1], "test", classes=["ace", "king", "queen"], transform=eval_transform(int(sys.argv[3])))
try:
    cache_features(images, backbone, sys.argv[2], name="small-cnn", progress=False)
except OSError as error:
    print(error)
"""
    run = [sys.executable, "-c", program, str(root), str(disk)]
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run([*run, "24"], check=True, capture_output=True)
        before = {path: path.read_bytes() for path in disk.rglob("*.*")}
        done = subprocess.run([*run, "192"], capture_output=True, text=True)
        assert done.returncode == 0, done
        assert "plain.npy: could not be written, what was there is unchanged: No space left on device" in done.stdout
        assert len(before) == 2 and {path: path.read_bytes() for path in disk.rglob("*.*")} == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_images_of_the_same_names_elsewhere_have_a_store_of_their_own(
    root: Path, backbone: Backbone, tmp_path: Path
) -> None:
    """The same names, sizes and times of change, other pixels."""
    first = cache(evaluation_images(root), backbone, tmp_path / "stores")
    other = tmp_path / "other"
    shutil.copytree(root, other)
    assert cache(evaluation_images(other), backbone, tmp_path / "stores").store != first.store
