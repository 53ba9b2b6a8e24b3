"""What all tests share: where the real data lies, and how many threads PyTorch takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure() -> None:
    """Share the cores between the processes of pytest-xdist; leave a smaller number that was asked for."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // processes)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $SSGRL_TEST_DATA, or shared/data beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("SSGRL_TEST_DATA", _BESIDE))
    if not folder.is_dir():
        pytest.skip(f"needs real data: no folder {folder}; set SSGRL_TEST_DATA")
    return folder
