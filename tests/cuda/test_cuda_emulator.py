"""The emulator that the CUDA kernels are proved in: its collectives, fragments and copies, and the faults it names."""

from __future__ import annotations

import ctypes

import cuda_emulation
import pytest
import torch

by_order = pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])


@pytest.fixture(scope="module")
def proof() -> ctypes.CDLL:
    return cuda_emulation.build(cuda_emulation.EMULATOR / "proof.cu")


@by_order
@pytest.mark.parametrize("count", [1, 128, 1000])
def test_blocks_reduce_by_shuffles_and_shared_memory(proof: ctypes.CDLL, count: int, backwards: bool) -> None:
    values = torch.randint(-99, 99, (count,), generator=torch.manual_seed(count)).float()
    out = torch.empty(-(-count // 128))
    cuda_emulation.call(proof, "emulated_sum", values, out, count, backwards=backwards)
    assert out.tolist() == [part.sum().item() for part in values.split(128)]


@by_order
def test_shuffles_and_votes(proof: ctypes.CDLL, backwards: bool) -> None:
    values = torch.randn(32, dtype=torch.float64, generator=torch.manual_seed(0))
    out = torch.empty(6, 32, dtype=torch.float64)
    cuda_emulation.call(proof, "emulated_shuffles", values, out, backwards=backwards)
    lanes = torch.arange(32)
    assert torch.equal(out[0], values[7].expand(32))
    assert torch.equal(out[1], values[lanes ^ 5])
    assert torch.equal(out[2], values[torch.where(lanes + 3 < 32, lanes + 3, lanes)])
    assert torch.equal(out[3], values[torch.where(lanes % 8 >= 2, lanes - 2, lanes)])
    assert out[4].tolist() == [float(sum(2**i for i in range(32) if values[i] > 0))] * 32
    assert out[5].tolist() == [3.0] * 16 + [0.0] * 16


@by_order
@pytest.mark.parametrize("by_ldmatrix", [False, True], ids=["loads", "ldmatrix"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mma_is_the_product(proof: ctypes.CDLL, dtype: torch.dtype, by_ldmatrix: bool, backwards: bool) -> None:
    generator = torch.manual_seed(1)
    a, b = (torch.randn(16, n, generator=generator).to(dtype) for n in (16, 8))
    start = torch.randn(16, 8, generator=generator)
    d = start.clone()
    half = int(dtype == torch.float16)
    cuda_emulation.call(proof, "emulated_product", a, b, d, half, int(by_ldmatrix), backwards=backwards)
    assert torch.allclose(d.double(), start.double() + a.double() @ b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [8, 16])
def test_copies_arrive_at_the_wait_and_end_in_zeros(proof: ctypes.CDLL, width: int) -> None:
    values = torch.randint(1, 255, (width + 1, width), dtype=torch.uint8, generator=torch.manual_seed(2))
    count = torch.arange(width + 1, dtype=torch.int32)
    early, late = torch.empty_like(values), torch.empty_like(values)
    cuda_emulation.call(proof, "emulated_copies", width, values, count, early, late)
    assert (early == 255).all()
    assert torch.equal(late, torch.where(torch.arange(width) < count[:, None], values, 0))


FAULTS = [
    "lane 1[67] of the mask is not there|leaves the kernel while its warp waits",
    "another thread has left the kernel|leaves the kernel while others wait at __syncthreads",
    "the warp has diverged: lanes wait at __s(yncwarp and at __shfl_xor|hfl_xor_sync and at __syncwarp)",
    "the mask leaves out the lane that calls",
    "writes behind its 256 bytes of dynamic shared memory",
    "the address of a row is not a multiple of 16",
    "the block cannot go on: thread 0 waits at __syncthreads, thread 16 waits at __shfl_xor_sync, .* and no other",
]


@by_order
@pytest.mark.parametrize("fault", range(len(FAULTS)))
def test_faults_are_sentences(proof: ctypes.CDLL, fault: int, backwards: bool) -> None:
    with pytest.raises(RuntimeError, match=FAULTS[fault]):
        cuda_emulation.call(proof, "emulated_fault", fault, backwards=backwards)
    out = torch.empty(1)
    cuda_emulation.call(proof, "emulated_sum", torch.ones(3), out, 3, backwards=backwards)
    assert out.item() == 3


@pytest.mark.parametrize("count", [3, 1024])
def test_reading_behind_an_array_is_a_fault(proof: ctypes.CDLL, count: int) -> None:
    values, out = torch.arange(count).float(), torch.empty(1)
    cuda_emulation.call(proof, "emulated_read", values, out, count - 1)
    assert out.item() == count - 1
    with pytest.raises(RuntimeError, match="thread 0: reads or writes outside its arrays"):
        cuda_emulation.call(proof, "emulated_read", values, out, count)


def test_a_missing_barrier_shows_in_the_order_of_threads(proof: ctypes.CDLL) -> None:
    runs = torch.empty(2, 32)
    for backwards in (False, True):
        cuda_emulation.call(proof, "emulated_race", runs[int(backwards)], backwards=backwards)
    assert not torch.equal(runs[0], runs[1])


@pytest.mark.parametrize(
    ("grid", "message"), [((1, 65536, 32), "65535"), ((1, 1, 1056), "1056 threads")], ids=["grid", "block"]
)
def test_launches_that_no_gpu_takes(proof: ctypes.CDLL, grid: tuple[int, int, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        cuda_emulation.call(proof, "emulated_grid", *grid)


def test_a_grid_without_blocks_launches_nothing(proof: ctypes.CDLL) -> None:
    cuda_emulation.call(proof, "emulated_grid", 0, 1, 32)
