"""Compiled builds in environments of their own; these compile, and one fetches torch."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from packaging_tree import BUILD, build_sdist, copy_project, environment, pip, run

pytestmark = pytest.mark.long

USE = """
import torch, ssgrl_fast
from ssgrl_fast import functional
from ssgrl_fast.backends import extension
assert extension.library() is None, extension.library()
print(ssgrl_fast.__file__)
u, v, p, f = torch.randn(2, 9, 16), torch.randn(5, 16), torch.randn(16), torch.randn(2, 9, 8)
ours, theirs = (functional.semantic_attention(u, v, p, f, backend=name)[0] for name in ("cpu", "reference"))
torch.testing.assert_close(ours, theirs)
torch.manual_seed(0)
head = ssgrl_fast.SSGRLHead(8, torch.randn(5, 6), torch.rand(5, 5), joint_dim=4)
maps = torch.randn(2, 8, 3, 3)
with ssgrl_fast.use_backend("cpu"):
    logits = head(maps)
with ssgrl_fast.use_backend("reference"):
    torch.testing.assert_close(logits, head(maps))
print(ssgrl_fast.backends.explain("cpu"))
"""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
TAGS = "-".join([f"cp{sys.version_info.major}{sys.version_info.minor}"] * 2)
CPU = {"SSGRL_CUDA": "0"}  # whether or not there is an nvcc
OTHER_PYTHONS = [version for version in ("3.11", "3.12", "3.13", "3.14") if version != PYTHON]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project to build in."""
    return copy_project(tmp_path / "tree")


def check_wheel(folder: Path, tags: str, modules: list[str]) -> str:
    """The only wheel of a folder has these tags and compiled modules, and works in an environment of its own, away from
    the tree; what its `ssgrl-fast env` says."""
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(f"ssgrl_fast-{BUILD['version']()}-{tags}-")
    with zipfile.ZipFile(wheel) as archive:
        libraries = sorted(name.split(".")[0] for name in archive.namelist() if name.endswith(".so"))
    assert libraries == modules
    interpreter = environment(folder / "environment")
    done = run([str(interpreter), "-m", "pip", "install", "--no-deps", str(wheel)], folder)
    assert done.returncode == 0, done.stderr
    done = run([str(interpreter), "-P", "-c", USE], folder)
    assert done.returncode == 0, done.stderr
    where, *table = done.stdout.splitlines()
    assert Path(where).is_relative_to(folder / "environment")
    assert [line.split()[3] for line in table if line.split()[1:3] == ["cpu", "cpu"]] == ["float64,"] * 3
    command = str(interpreter.with_name("ssgrl-fast"))
    done = run([command, "--help"], folder)
    assert done.returncode == 0 and "predict" in done.stdout, done.stderr
    done = run([command, "env"], folder)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def pip_takes(wheel: Path, version: str, folder: Path) -> bool:
    """Whether pip of this environment installs the wheel for a Python of that version."""
    asked = ["--no-deps", "--only-binary=:all:", "--python-version", version, "--target", str(folder / version)]
    done = pip(["install", *asked, str(wheel)], folder)
    assert done.returncode == 0 or "is not a supported wheel on this platform" in done.stderr, done.stderr
    return done.returncode == 0


def test_a_wheel_from_the_source_archive_without_build_isolation(tree: Path, tmp_path: Path) -> None:
    asked = ["wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(build_sdist(tree))]
    done = pip(asked, tmp_path, CPU)
    assert done.returncode == 0, done.stdout + done.stderr
    report = check_wheel(tmp_path, TAGS, ["ssgrl_fast/_C", "ssgrl_fast/_native"])
    assert f"version {BUILD['version']()}, for Python {PYTHON}" in report
    (wheel,) = tmp_path.glob("*.whl")
    assert not any(pip_takes(wheel, version, tmp_path) for version in OTHER_PYTHONS)


def test_a_wheel_for_every_python_leaves_the_build_facts_out(tree: Path, tmp_path: Path) -> None:
    asked = ["wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(tree)]
    done = pip(asked, tmp_path, {"SSGRL_ABI3": "1", **CPU})
    assert done.returncode == 0, done.stdout + done.stderr
    report = check_wheel(tmp_path, "cp311-abi3", ["ssgrl_fast/_C"])
    assert "operators loaded" in report
    assert "build facts not known: ssgrl_fast._native is not in this installation" in report
    (wheel,) = tmp_path.glob("*.whl")
    assert all(pip_takes(wheel, version, tmp_path) for version in OTHER_PYTHONS)


def test_a_wheel_with_build_isolation(tree: Path, tmp_path: Path) -> None:
    """pip builds with the newest torch it finds; the stable ABI lets the torch of this environment load the result."""
    done = pip(["wheel", "--no-deps", "-w", str(tmp_path), str(tree)], tmp_path, CPU)
    assert done.returncode == 0, done.stdout + done.stderr
    check_wheel(tmp_path, TAGS, ["ssgrl_fast/_C", "ssgrl_fast/_native"])


def test_an_editable_installation(tree: Path, tmp_path: Path) -> None:
    interpreter = environment(tmp_path / "environment")
    install = [str(interpreter), "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", str(tree)]
    done = run(install, tmp_path, CPU)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run([str(interpreter), "-P", "-c", USE], tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.split()[0]).is_relative_to(tree)
    done = run([str(interpreter.with_name("ssgrl-fast")), "--version"], tmp_path)
    assert done.stdout.strip() == f"ssgrl_fast {BUILD['version']()}"
