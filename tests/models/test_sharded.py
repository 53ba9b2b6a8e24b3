"""fully_shard (FSDP2), one process on the CPU: of SSGRL, and of models that were accelerated before or are after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from published_network import UNUSED, accelerated, images, parts, published_network, step
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import ssgrl_fast as sf
from ssgrl_fast.models import build_backbone

PARTS = ["word_semantic", "graph_net", "classifiers"]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """One process and its group, which ends with the test."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def whole(value: Tensor) -> Tensor:
    """A tensor from its shards."""
    assert isinstance(value, DTensor)
    return value.full_tensor().detach()


def hold_step(found: tuple[Tensor, dict[str, Tensor | None]]) -> None:
    """Logits and gradients are those of the plain network."""
    logits, gradients = step(published_network(), images(torch.float64))
    torch.testing.assert_close(found[0], logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1].pop("images"), gradients.pop("images"), rtol=0, atol=1e-10)
    assert found[1].keys() == gradients.keys()
    for name, expected in gradients.items():
        got = found[1][name]
        if name in UNUSED:
            assert expected is None and got is None
        else:
            assert expected is not None and got is not None
            torch.testing.assert_close(whole(got), expected, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("sharded", [[], PARTS], ids=["the model", "each part and the model"])
def test_an_accelerated_model_is_sharded_and_takes_the_plain_ones_step(mesh: DeviceMesh, sharded: list[str]) -> None:
    model = accelerated(published_network())
    for name in sharded:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert parts(model) == PARTS
    assert all(isinstance(value, DTensor) for value in model.parameters())
    hold_step(step(model, images(torch.float64)))

    plain = published_network()
    step(plain, images(torch.float64))
    for one in (plain, model):
        torch.optim.SGD(one.parameters(), lr=0.1).step()
    expected = plain.state_dict()
    assert list(model.state_dict()) == list(expected)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(whole(value), expected[name], rtol=0, atol=1e-10, msg=name)
    torch.testing.assert_close(model(images(torch.float64)), plain(images(torch.float64)), rtol=0, atol=1e-10)


def test_a_part_that_is_sharded_by_itself_is_not_restored(mesh: DeviceMesh) -> None:
    model = accelerated(published_network())
    fully_shard(model.graph_net, mesh=mesh)
    with pytest.raises(ValueError, match="a part has since become a FSDPAcceleratedPropagation; undo that first"):
        sf.restore(model)


@pytest.mark.parametrize("sharded", [[], PARTS], ids=["the model", "each part and the model"])
def test_a_model_that_is_sharded_already_is_left_alone_and_told_the_order(mesh: DeviceMesh, sharded: list[str]) -> None:
    model: nn.Module = published_network()
    for name in sharded:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.warns(UserWarning, match=r"word_semantic .* sharded already: .* first, .*; graph_net .* sharded"):
        sf.accelerate(model)
    assert parts(model) == []
    hold_step(step(model, images(torch.float64)))


def test_layers_that_are_sharded_one_by_one_bring_the_own_forward_back(mesh: DeviceMesh) -> None:
    """The fused operation would read a weight without the hooks that gather it."""
    model = accelerated(published_network())
    fully_shard(model.get_submodule("graph_net.fc_eq3_w"), mesh=mesh)
    fully_shard(model, mesh=mesh)
    with pytest.warns(UserWarning, match="runs its own forward: fc_eq3_w is a FSDPLinear"):
        found = step(model, images(torch.float64))
    hold_step(found)


@pytest.mark.parametrize(
    "sharded", [[], ["backbone", "head"], ["head.semantic_decoupling", "head.graph_propagation", "head.classifier"]]
)
def test_ssgrl_is_sharded_whole_or_by_its_modules(mesh: DeviceMesh, sharded: list[str]) -> None:
    def step_of(parts: list[str] | None) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        words, graph, x = torch.randn(5, 6), torch.rand(5, 5) / 5, torch.randn(2, 3, 32, 32)
        model = sf.SSGRL(build_backbone("small-cnn", width=4), words, graph, joint_dim=8)
        if parts is not None:
            for name in parts:
                fully_shard(model.get_submodule(name), mesh=mesh)
            fully_shard(model, mesh=mesh)
        logits = model(x)
        logits.square().sum().backward()
        found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        return logits.detach(), found if parts is None else {name: whole(value) for name, value in found.items()}

    logits, gradients = step_of(None)
    found, others = step_of(sharded)
    torch.testing.assert_close(found, logits)
    assert others.keys() == gradients.keys() and "head.graph_propagation.weight_zr" in gradients
    for name, expected in gradients.items():
        torch.testing.assert_close(others[name], expected, msg=name)
