"""A copy of the project's own files, and the commands that the packaging tests run on it."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD: dict[str, Any] = runpy.run_path(str(ROOT / "ssgrl_fast" / "backends" / "build.py"))
PURE = {"SSGRL_SKIP_EXT": "1"}
"""The switch that builds a wheel without compiled modules."""
_NOT_SOURCES = ("build", "dist", "runs", "*.egg-info", "*.so", ".*", "__pycache__")


def project_files() -> list[Path]:
    """The project's files relative to its root: those of git, tracked or new, or without git all but build outputs."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return sorted(Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file())
    hidden = shutil.ignore_patterns(*_NOT_SOURCES)
    found: list[Path] = []
    for folder, folders, files in os.walk(ROOT):
        left_out = hidden(folder, [*folders, *files])
        folders[:] = [name for name in folders if name not in left_out]
        found += [Path(folder, name).relative_to(ROOT) for name in files if name not in left_out]
    return sorted(found)


def copy_project(target: Path) -> Path:
    """Copy the project's files to a folder, with nothing that a build left behind."""
    for path in project_files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    return target


def run(command: list[str], cwd: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with the build switches taken out of the environment unless ``environ`` sets them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSGRL_", "PYTHONPATH", "CXX"))}
    kept.update(environ or {})
    return subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=1500)


def python(code: str, cwd: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a new process; -P keeps the working folder out of the import path."""
    return run([sys.executable, "-P", "-c", code], cwd, environ)


def pip(arguments: list[str], cwd: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run pip of this environment."""
    return run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], cwd, environ)


def environment(folder: Path) -> Path:
    """Make a virtual environment that also sees the packages of this one; its interpreter."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "base.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def build_sdist(tree: Path) -> Path:
    """Make the source archive of a tree by the project's own backend, in its dist/."""
    code = "import sys; sys.path.insert(0, 'scripts'); import build_backend; build_backend.build_sdist('dist')"
    done = python(code, tree)
    assert done.returncode == 0, done.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    return archive
