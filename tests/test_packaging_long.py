"""Compiled builds in environments of their own; these compile, and one fetches torch."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from packaging_tree import BUILD, copy_project, environment, pip, python, run

pytestmark = pytest.mark.long

USE = """
import torch, ssgrl_fast
from ssgrl_fast import _extension, functional
assert _extension.library() is None, _extension.library()
print(ssgrl_fast.__file__, _extension.native()[0].build_info()["version"])
u, v, p, f = torch.randn(2, 9, 16), torch.randn(5, 16), torch.randn(16), torch.randn(2, 9, 8)
ours, theirs = (functional.semantic_attention(u, v, p, f, backend=name)[0] for name in ("cpu", "reference"))
torch.testing.assert_close(ours, theirs)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project to build in."""
    return copy_project(tmp_path / "tree")


def check_wheel(folder: Path) -> None:
    """The only wheel of a folder is compiled for this Python, and works from a folder of its own."""
    (wheel,) = folder.glob("*.whl")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert wheel.name.startswith(f"ssgrl_fast-{BUILD['version']()}-{tag}-{tag}-")
    with zipfile.ZipFile(wheel) as archive:
        libraries = sorted(name.split(".")[0] for name in archive.namelist() if name.endswith(".so"))
    assert libraries == ["ssgrl_fast/_C", "ssgrl_fast/_native"]
    site = folder / "site"
    done = pip(["install", "--no-deps", "--target", str(site), str(wheel)], folder)
    assert done.returncode == 0, done.stderr
    done = python(USE, folder, {"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[0]).is_relative_to(site)


def test_a_wheel_without_build_isolation(tree: Path, tmp_path: Path) -> None:
    done = pip(["wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(tree)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_wheel(tmp_path)


def test_a_wheel_with_build_isolation(tree: Path, tmp_path: Path) -> None:
    """pip builds with the newest torch it finds; the stable ABI lets the torch of this environment load the result."""
    done = pip(["wheel", "--no-deps", "-w", str(tmp_path), str(tree)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    check_wheel(tmp_path)


def test_an_editable_installation(tree: Path, tmp_path: Path) -> None:
    interpreter = environment(tmp_path / "environment")
    install = [str(interpreter), "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", str(tree)]
    done = run(install, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run([str(interpreter), "-P", "-c", USE], tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[0]).is_relative_to(tree)
    done = run([str(interpreter.with_name("ssgrl-fast")), "--version"], tmp_path)
    assert done.stdout.strip() == f"ssgrl_fast {BUILD['version']()}"
