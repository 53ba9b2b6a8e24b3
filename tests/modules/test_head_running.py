"""How the head is run, which changes no result: recomputing steps to save memory, replaying a captured graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import by_backend
from stub_cuda import StubCuda
from torch import Tensor

import ssgrl_fast as sf
from ssgrl_fast.modules import CapturedHead

C, D, S, T = 7, 12, 5, 4
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make_head(side: int = 3, **options: Any) -> tuple[sf.SSGRLHead, Tensor]:
    """A head in float64 and a map [2, D, side, side]; with a side of 1 the first step runs on the locations."""
    torch.manual_seed(0)
    words, adjacency = torch.randn(C, S), torch.rand(C, C) / C
    head = sf.SSGRLHead(D, words, adjacency, joint_dim=6, steps=T, **options).double()
    return head, torch.randn(2, D, side, side, dtype=torch.float64, requires_grad=True)


def gradients(head: sf.SSGRLHead, x: Tensor) -> dict[str, Tensor]:
    logits = head(x)
    torch.autograd.backward(logits, torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits))
    found = {name: p.grad for name, p in head.named_parameters()} | {"x": x.grad, "logits": logits.detach()}
    return {name: value.clone() for name, value in found.items() if value is not None}


@by_backend
@pytest.mark.parametrize("mode", ["paper", "official"])
@pytest.mark.parametrize("side", [1, 3], ids=["low_rank", "full_rank"])
def test_recomputing_changes_no_gradient(side: int, mode: str, backend: str) -> None:
    plain, lean = (
        gradients(*make_head(side, mode=mode, backend=backend, recompute=recompute)) for recompute in (False, True)
    )
    assert set(plain) == set(lean)
    for name, value in plain.items():
        assert torch.allclose(lean[name], value, rtol=1e-10, atol=1e-13), name


def saved_bytes(head: sf.SSGRLHead, x: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward, without the parameters and buffers, each storage once."""
    own = {t.untyped_storage().data_ptr() for t in (*head.parameters(), *head.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = head(x)
    assert logits.requires_grad
    return sum(kept.values())


@by_backend
def test_recomputing_keeps_less(backend: str) -> None:
    """What a step keeps, at least its state and its gates, 4·D values a node, falls to the D values of its state."""
    bytes_of = {r: saved_bytes(*make_head(backend=backend, recompute=r)) for r in (False, True)}
    node_bytes = 2 * C * D * 8
    assert bytes_of[False] - bytes_of[True] >= (4 * T - T - 1) * node_bytes


def test_recomputing_changes_nothing_without_gradients() -> None:
    head, x = make_head(recompute=True)
    with torch.no_grad():
        logits = head(x)
    plain, _ = make_head()
    with torch.no_grad():
        assert torch.equal(logits, plain(x))


def test_recompute_is_no_part_of_what_a_head_is() -> None:
    head, _ = make_head(recompute=True)
    assert "recompute" not in head.options


@pytest.mark.parametrize(
    ("example", "words"), [(torch.zeros(1, D, 3, 3), "on cpu"), ([1.0], "list")], ids=["cpu", "list"]
)
def test_capture_refuses_what_is_not_on_a_gpu(example: Any, words: str) -> None:
    head, _ = make_head()
    with pytest.raises(ValueError, match=f"SSGRLHead.capture: example must be a tensor on a CUDA device.*{words}"):
        head.capture(example)


@needs_gpu
def test_capture_refuses_batches_without_images() -> None:
    head, x = make_head()
    with pytest.raises(ValueError, match="each of batches must be a positive integer, got 0"):
        head.capture(x.cuda(), batches=(4, 0))
    with pytest.raises(ValueError, match="example must have at least one image"):
        head.capture(x[:0].cuda())


@pytest.fixture
def captured() -> tuple[sf.SSGRLHead, CapturedHead, StubCuda]:
    """A head, and its graphs for 2, 3 and 5 maps, which a stub replays on the CPU."""
    head, x = make_head()
    driver = StubCuda()
    return head, CapturedHead(head, x, batches=(5, 3), driver=driver), driver


@pytest.mark.parametrize(("images", "size"), [(1, 2), (2, 2), (3, 3), (4, 5), (5, 5)])
@torch.no_grad()
def test_the_smallest_graph_that_holds_the_maps(images: int, size: int, captured: Any) -> None:
    head, replay, driver = captured
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(images, D, 3, 3, dtype=torch.float64).contiguous(memory_format=layout)
        first = replay(x)
        assert torch.allclose(first, head(x), rtol=1e-12)
        assert len(driver.replayed) == size and first.data_ptr() != replay(x).data_ptr()


def test_the_largest_graph_comes_first_and_lends_its_memory(captured: Any) -> None:
    _, _, driver = captured
    assert [len(graph) for graph in driver.graphs] == [5, 3, 2]
    assert driver.pools == [None, driver.graphs[0].pool(), driver.graphs[1].pool()]


@torch.no_grad()
def test_weights_changed_in_place_are_read(captured: Any) -> None:
    head, replay, _ = captured
    x = torch.randn(2, D, 3, 3, dtype=torch.float64)
    before = replay(x)
    for parameter in head.parameters():
        parameter.data.mul_(0.5)
    assert torch.allclose(replay(x), head(x), rtol=1e-12) and not torch.allclose(replay(x), before)


@pytest.mark.parametrize(
    ("x", "kind", "match"),
    [
        (
            torch.zeros(2, D, 3, 4).double(),
            ValueError,
            r"x is \[2, 12, 3, 4\] on cpu, expected \[B, 12, 3, 3\] with B up to 5",
        ),
        (
            torch.zeros(6, D, 3, 3).double(),
            ValueError,
            r"x is \[6, 12, 3, 3\] on cpu, expected .* with B up to 5 on cpu",
        ),
        (torch.zeros(2, D, 3, 3), TypeError, "x is torch.float32, expected torch.float64"),
        (torch.zeros(2, D, 3, 3, device="meta").double(), ValueError, "on meta, expected .* on cpu"),
    ],
    ids=["shape", "more", "dtype", "device"],
)
def test_a_replay_refuses_other_maps(x: Tensor, kind: type[Exception], match: str, captured: Any) -> None:
    with pytest.raises(kind, match=match):
        captured[1](x)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_captured_head_gives_the_heads_logits(dtype: torch.dtype) -> None:
    head, x = make_head()
    head, x = head.to("cuda", dtype), x.detach().to("cuda", dtype)
    captured = head.capture(x)
    assert torch.equal(captured(x), head(x))
    other = torch.randn_like(x)
    assert torch.equal(captured(other), head(other))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(0.5)
    assert torch.equal(captured(other), head(other))
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        captured(other)
    assert torch.cuda.memory_allocated() == before


@needs_gpu
def test_a_captured_head_keeps_its_weights_and_takes_maps_that_require_gradients() -> None:
    head, x = make_head()
    head, x = head.to("cuda", torch.float32), x.detach().to("cuda", torch.float32)
    truth = head(x).detach()
    captured = head.capture(x)
    del head
    filler = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(8)]
    for _ in range(3):
        assert torch.equal(captured(x.requires_grad_()), truth)
    assert not captured(x).requires_grad and len(filler) == 8
