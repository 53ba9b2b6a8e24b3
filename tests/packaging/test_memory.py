"""keep_memory: freed memory is used again where glibc allocates, and users' own settings are left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssgrl_fast._utils import memory

LOOP = """
import resource, sys
import torch
import ssgrl_fast
from ssgrl_fast._utils.memory import return_memory
policy = ssgrl_fast.keep_memory() if sys.argv[1] == "keep" else "not asked"
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open("/proc/self/statm").read().split()[1])
torch.ones(2**25)
before = faults()
for _ in range(8):
    torch.ones(2**25)  # 128 MiB, 32,768 pages, 262,144 in all
print(faults() - before)
print(policy)
held = resident()
return_memory()
print(held - resident())
"""


def run(how: str, **environment: str) -> tuple[int, str, int]:
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
    }
    result = subprocess.run(
        [sys.executable, "-c", LOOP, how], env={**own, **environment}, capture_output=True, text=True, check=True
    )
    faults, policy, returned = result.stdout.splitlines()
    return int(faults), policy, int(returned)


@pytest.fixture(autouse=True)
def glibc() -> None:
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        name = ""
    if not name.startswith("glibc"):
        pytest.skip("another C library than glibc")


def test_pages_are_used_again_and_returned_when_asked() -> None:
    faults, policy, returned = run("keep")
    assert faults < 40_000 and policy.startswith("kept (glibc")
    assert returned > 30_000, "return_memory gives the pages back"


def test_importing_changes_nothing() -> None:
    faults, policy, returned = run("no")
    assert policy == "not asked" and faults > 100_000 and returned == 0


@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}], ids=str
)
def test_settings_of_the_user_stay(setting: dict[str, str]) -> None:
    faults, policy, _ = run("keep", **setting)
    assert policy.startswith("as the allocator does by default") and "set by the user" in policy
    assert faults > 100_000


def test_another_allocator_is_left_alone(tmp_path: Path) -> None:
    """A preloaded library with a malloc of its own, as jemalloc and tcmalloc are used."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "other.c", tmp_path / "libother.so"
    source.write_text(
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\nvoid *malloc(size_t n) { return __libc_malloc(n); }\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    faults, policy, _ = run("keep", LD_PRELOAD=str(library))
    assert policy == f"as the allocator does by default (malloc comes from {library})"
    assert faults > 100_000


@pytest.mark.parametrize("missing", [ValueError, OSError, AttributeError])
def test_without_glibc_nothing_is_asked_of_it(missing: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """musl has no version string of this name, Windows no confstr."""

    def confstr(name: str) -> str:
        raise missing(name)

    monkeypatch.setattr(os, "confstr", confstr)
    monkeypatch.setattr(memory, "_file_of_malloc", lambda: pytest.fail("dladdr was called"))
    assert memory._obstacle({}) == f"no glibc: {sys.platform}"


def test_memory_is_returned_after_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of an epoch that a resumed training closes once more, where the hook has nothing else to do."""
    from ssgrl_fast.training import task

    returned: list[bool] = []
    monkeypatch.setattr(task, "return_memory", lambda: returned.append(True))
    task.SSGRLTask(backbone="small-cnn", words="glove-6b-50d").on_train_epoch_end()
    assert returned == [True]
