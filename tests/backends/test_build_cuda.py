"""When the CUDA kernels are built: the toolkit that is found, the reasons against it, and what comes out of nvcc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssgrl_fast.backends import build, extension
from ssgrl_fast.cli import env

ROOT = Path(__file__).resolve().parents[2]
BUILT = {"nvcc": "13.0", "cuda_targets": "sm_80, sm_100", "cutlass": ""}  # facts of a build
KEEPS = """
__global__ void __launch_bounds__(1024, 2) products(const float* in, float* out) {  // 32 registers a thread
  float kept[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) kept[i] = in[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) out[i * 1024 + threadIdx.x] = kept[i] * kept[COUNT - 1 - i];
}
"""


def toolkit(folder: Path) -> Path:
    """A folder that looks like a CUDA toolkit of release 13.0."""
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so.13"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "bin" / "nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    (folder / "bin" / "nvcc").chmod(0o755)
    return folder


def test_a_toolkit_is_one_with_compiler_headers_and_runtime(tmp_path: Path) -> None:
    whole = toolkit(tmp_path / "whole")
    assert build.cuda_toolkit({"CUDA_HOME": str(whole)}) == str(whole)
    assert build.cuda_toolkit({"PATH": str(whole / "bin")}) == str(whole)
    assert build.nvcc_release(str(whole)) == "13.0"
    for part in ("include/cuda_runtime.h", "lib64/libcudart.so.13"):
        broken = toolkit(tmp_path / part.replace("/", "_"))
        (broken / part).unlink()
        assert build.cuda_toolkit({"CUDA_HOME": str(broken), "PATH": str(whole / "bin")}) is None


def test_the_reasons_against_cuda_are_sentences(tmp_path: Path) -> None:
    assert build.cuda_problem("13.0", "/t", "13.2") is None
    assert build.cuda_problem(None, "/t", "13.0") == "this torch is built without CUDA"
    assert "no CUDA toolkit" in str(build.cuda_problem("13.0", None, None))
    mixed = "the toolkit in /t is of CUDA 12.8, torch is built for 13.0"
    assert build.cuda_problem("13.0", "/t", "12.8") == mixed
    assert build.nvcc_release(str(tmp_path)) is None


def test_cutlass_is_the_folder_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be CUTLASS's include folder, got '.*' without cutlass/cutlass.h"):
        build.cutlass_headers({"SSGRL_CUTLASS": str(tmp_path)})
    (tmp_path / "cutlass").mkdir()
    (tmp_path / "cutlass" / "cutlass.h").touch()
    assert build.cutlass_headers({"SSGRL_CUTLASS": str(tmp_path)}) == str(tmp_path)


def test_cutlass_is_a_requirement_where_cuda_kernels_are_built(tmp_path: Path) -> None:
    whole = {"CUDA_HOME": str(toolkit(tmp_path / "whole")), "PATH": ""}
    assert build.requirements(whole) == [*build.REQUIREMENTS, build.CUTLASS_REQUIREMENT]
    without = ({"SSGRL_CUDA": "0"}, {"SSGRL_CUTLASS": "/headers"}, {"CUDA_HOME": str(tmp_path)})
    assert [build.requirements(whole | each) for each in without] == [list(build.REQUIREMENTS)] * 3
    assert build.requirements(whole | {"SSGRL_SKIP_EXT": "1"}) == []


def test_the_facts_of_the_cuda_build_are_those_of_toolkit_and_cutlass(tmp_path: Path) -> None:
    folder = str(toolkit(tmp_path / "toolkit"))
    headers = tmp_path / "include" / "cutlass" / "version.h"
    headers.parent.mkdir(parents=True)
    headers.write_text("#define CUTLASS_MAJOR 4\n#define CUTLASS_MINOR 2\n#define CUTLASS_PATCH 1\n")
    targets = "sm_80, sm_90a, sm_100, compute_100"
    whole = {"NVCC": "13.0", "CUDA_TARGETS": targets, "CUTLASS": "4.2.1"}
    assert build.cuda_facts(folder, str(headers.parent.parent)) == whole
    assert build.cuda_facts(folder, None) == whole | {"CUTLASS": ""}
    assert build.cuda_facts(None, None) == {"NVCC": "", "CUDA_TARGETS": "", "CUTLASS": ""}
    headers.write_text("#define CUTLASS_MAJOR 4\n")
    with pytest.raises(ValueError, match="version.h: does not name CUTLASS_MAJOR, CUTLASS_MINOR and CUTLASS_PATCH"):
        build.cuda_facts(folder, str(headers.parent.parent))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (BUILT | {"cutlass": "4.2.1"}, "nvcc 13.0, for sm_80, sm_100; gated products with CUTLASS 4.2.1"),
        (BUILT, "nvcc 13.0, for sm_80, sm_100; gated products left out, for want of CUTLASS"),
        ({"nvcc": "", "cuda_targets": "", "cutlass": ""}, "none: this build left the CUDA kernels out"),
        ({}, "not known: the library was built before its facts named it"),
    ],
)
def test_env_tells_how_the_cuda_kernels_were_built(
    facts: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = SimpleNamespace(
        build_info=lambda: defaultdict(lambda: "?", facts), kernel_isas=lambda: ("generic",), cpu_isa=lambda: "generic"
    )
    monkeypatch.setattr(extension, "native", lambda: (native, None))
    row = next(line for line in env.report().splitlines() if line.startswith("  CUDA build "))
    assert said in row


def test_every_kernel_file_is_built_by_the_library_or_with_cutlass() -> None:
    built = {*build.cuda_sources(), *build.cutlass_sources()}
    files = [path for path in (ROOT / "csrc" / "cuda").rglob("*.c*") if path.suffix != ".cuh"]
    there = {path.relative_to(ROOT).as_posix() for path in files}
    assert there == built - {"csrc/module.cpp"}
    assert built - there == {"csrc/module.cpp"}


def test_a_missing_library_is_a_sentence() -> None:
    reason = extension.cuda_library()
    if torch.version.cuda is None:
        assert reason == f"torch {torch.__version__} is built without CUDA"
    elif not list((ROOT / "ssgrl_fast").glob("_C_cuda*.so")):
        assert reason is not None and "SSGRL_CUDA=1 pip install ." in reason
    else:
        assert reason is None or "could not be loaded" in reason


@pytest.mark.parametrize(("release", "count", "passes"), [("1", 96, False), ("0", 96, True), ("1", 8, True)])
def test_a_release_fails_on_a_spill(release: str, count: int, passes: bool, tmp_path: Path) -> None:
    """A kernel that keeps more values than it has registers for, and one that does not."""
    folder = build.cuda_toolkit()
    if folder is None:
        pytest.skip("no CUDA toolkit is to be found")
    (tmp_path / "products.cu").write_text(f"#define COUNT {count}{KEEPS}")
    flags = build.cuda_flags({"SSGRL_RELEASE": release})
    command = [str(Path(folder) / "bin" / "nvcc"), *flags, "-c", "products.cu", "-o", "products.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode == 0) is passes, done.stderr
    assert (tmp_path / "products.o").exists() is passes
    assert ("error   : Registers are spilled" in done.stderr) is not passes
    spilled = [line for line in done.stderr.splitlines() if "spill stores" in line and " 0 bytes spill" not in line]
    assert bool(spilled) is (count == 96)


@pytest.mark.long
def test_the_library_compiles_without_spills_and_registers_its_operators(tmp_path: Path) -> None:
    """Without CUTLASS, whose kernels tests/cuda/test_cuda_product.py compiles."""
    folder = build.cuda_toolkit()
    problem = build.cuda_problem(torch.version.cuda, folder, build.nvcc_release(folder) if folder else None)
    if problem is not None:
        pytest.skip(problem)
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "build", "*.so", "docs", "__pycache__"))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    hidden = "import sys; sys.modules['cutlass_library'] = None; sys.argv = sys.argv[1:]; "
    command[1:1] = ["-c", hidden + "import runpy; runpy.run_path('setup.py', run_name='__main__')"]
    done = subprocess.run(
        command,
        cwd=tree,
        env=os.environ | {"SSGRL_CUDA": "1", "SSGRL_RELEASE": "1", "MAX_JOBS": "2"},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert build.RELEASE_CUDA_FLAGS[0] in said
    spills = [line for line in said.splitlines() if "spill stores" in line]
    assert spills and all(" 0 bytes spill stores" in line for line in spills), spills
    code = "import torch; from ssgrl_fast.backends import extension; assert extension.cuda_library() is None"
    registered = "; print(torch._C._dispatch_has_kernel_for_dispatch_key('ssgrl_fast::graph_propagation', 'CUDA'))"
    loaded = subprocess.run([sys.executable, "-c", code + registered], cwd=tree, capture_output=True, text=True)
    assert loaded.stdout.strip() == "True", loaded.stderr
