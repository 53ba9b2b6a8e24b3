"""The archives of this tree, built once for a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging_tree import PURE, build_sdist, copy_project, pip


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project to build in."""
    return copy_project(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def sdist(tree: Path) -> Path:
    """The source archive, made by the project's own backend."""
    return build_sdist(tree)


@pytest.fixture(scope="session")
def pure_wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel without compiled modules, built from the source archive."""
    folder = tmp_path_factory.mktemp("pure_wheel")
    done = pip(["wheel", "--no-build-isolation", "--no-deps", "-w", str(folder), str(sdist)], folder, PURE)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def installed(pure_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH into which the pure wheel is installed."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    done = pip(["install", "--no-deps", "--target", str(folder), str(pure_wheel)], folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
