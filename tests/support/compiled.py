"""C++ that tests compile: each file once for each state of its text, kept in build/tests for every later process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "tests"


def host_compiler() -> str:
    """$CXX or g++. Skips where it is not installed."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    return compiler


def linked(sources: Sequence[Path], flags: Sequence[str], link_flags: Sequence[str], suffix: str = ".so") -> Path:
    """The library or program of these sources by the host's compiler.

    Processes that need the same one at the same time wait for the first of them.

    Raises:
        RuntimeError: the compiler refuses; its output is the message.
    """
    compiler = host_compiler()
    with _alone(_digest(repr([sources, flags, link_flags]))):
        objects = [_object(compiler, source, flags) for source in sources]
        target = FOLDER / f"{_digest(repr([objects, link_flags]))}{suffix}"
        if not target.exists():
            _make(target, [compiler, *map(str, objects), *link_flags])
    return target


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """No other process is in a block of this name."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _object(compiler: str, source: Path, flags: Sequence[str]) -> Path:
    command = [compiler, *flags, str(source)]
    target = FOLDER / f"{_digest(' '.join(command) + _run([*command, '-E', '-P']))}.o"
    if not target.exists():
        _make(target, [*command, "-c"])
    return target


def _make(target: Path, command: list[str]) -> None:
    partial = target.with_suffix(f".{os.getpid()}")
    _run([*command, "-o", str(partial)])
    partial.rename(target)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return result.stdout
