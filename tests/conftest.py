"""What all tests share: where the real data lies, and how many threads PyTorch takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from selection import mark_thorough

_LONGEST = ("test_interpreter.py", "test_cuda_emulated.py", "test_docs.py")
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--device cuda`` runs the operations' tests (one file a stem, head_chain, nonfinite) on a GPU's tensors;
    ``--emulated-cuda`` runs the CUDA kernels among them in the emulator, on CPU tensors."""
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where the operations' tests run")
    parser.addoption("--emulated-cuda", action="store_true", help="the backend cuda is its kernels in the emulator")


def pytest_configure(config: pytest.Config) -> None:
    """Set the device; share the cores between the processes of pytest-xdist, and leave a smaller number that was asked
    for."""
    if config.getoption("device") == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its bits, as the tests ask
        torch.set_default_device("cuda")
    if config.getoption("emulated_cuda"):
        import cuda_emulation

        cuda_emulation.become_backend()
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // processes)))


@pytest.hookimpl(tryfirst=True)  # before the option -m looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that only `make test-all` runs; the longest tests come first, so that none is left to one process
    while the other has no more."""
    mark_thorough(items)
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $SSGRL_TEST_DATA, or shared/data beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("SSGRL_TEST_DATA", _BESIDE))
    if not folder.is_dir():
        pytest.skip(f"needs real data: no folder {folder}; set SSGRL_TEST_DATA")
    return folder
