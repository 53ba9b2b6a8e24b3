"""The head and the model in PyTorch's own machinery: compile, transforms, meta device, copies, wrappers, processes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import ssgrl_fast as sf
from ssgrl_fast.models import build_backbone

C, S, D, SIZE = 5, 6, 16, 32  # the small CNN of width 4 gives 16 channels, at an eighth of the size


def make_model(**options: Any) -> sf.SSGRL:
    torch.manual_seed(0)
    words, graph = torch.randn(C, S), torch.rand(C, C) / C
    return sf.SSGRL(build_backbone("small-cnn", width=4), words, graph, **{"joint_dim": 8, **options})


def images_of(batch: int) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))


def map_of(batch: int) -> Tensor:
    return torch.randn(batch, D, 4, 4, generator=torch.Generator().manual_seed(batch))


def gradients(function: Any, owner: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradient of every parameter."""
    owner.zero_grad()
    output = function(x)
    torch.autograd.backward(output, torch.linspace(-1, 1, output.numel()).view_as(output))
    found = {name: p.grad.clone() for name, p in owner.named_parameters() if p.grad is not None}
    assert len(found) == len(list(owner.parameters()))
    return found | {"output": output.detach()}


def check_equal(mine: dict[str, Tensor], truth: dict[str, Tensor], **tolerance: float) -> None:
    assert set(mine) == set(truth)
    for name, value in truth.items():
        assert torch.allclose(mine[name], value, **(tolerance or {"rtol": 1e-4, "atol": 1e-6})), name


def no_recompiling(batch: int) -> AbstractContextManager[object]:
    """The first batch compiles; another compilation for a later one is an error."""
    return nullcontext() if batch == 2 else torch.compiler.set_stance("fail_on_recompile")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("backend", "marked"),
    [(None, False), (None, True), ("reference", True)],
    ids=["dynamic", "mark_dynamic", "reference-mark_dynamic"],
)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_one_compilation_serves_every_batch_size(
    training: bool, backend: str | None, marked: bool, fresh_compiler: None
) -> None:
    model = make_model(mode="official", backend=backend).train(training)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=None if marked else True)
    for batch in (2, 3, 5, 8):
        images = images_of(batch)
        if marked:
            torch._dynamo.mark_dynamic(images, 0)
        with no_recompiling(batch):
            if training:
                check_equal(gradients(compiled, model, images), gradients(eager, eager, images_of(batch)))
            else:
                with torch.no_grad():
                    assert torch.allclose(compiled(images), eager(images_of(batch)), rtol=1e-5, atol=1e-6)


def test_a_second_compilation_would_be_noticed(fresh_compiler: None) -> None:
    head = make_model().head
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager", dynamic=False)
    compiled(map_of(2))
    with no_recompiling(3), pytest.raises(RuntimeError, match="recompile"):
        compiled(map_of(3))


def test_inductor_trains_the_head_at_any_batch_size(fresh_compiler: None) -> None:
    head = make_model().head
    eager, compiled = copy.deepcopy(head), torch.compile(head, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        with no_recompiling(batch):
            check_equal(gradients(compiled, head, map_of(batch)), gradients(eager, eager, map_of(batch)))


def test_vmap_over_the_head_and_over_its_weights() -> None:
    head = make_model().head.double()
    maps = torch.stack([map_of(2), 2 * map_of(3)[:2], -map_of(2)]).double()
    logits, attention = torch.func.vmap(lambda x: head(x, return_attention=True))(maps)
    for i, x in enumerate(maps):
        for mine, truth in zip((logits[i], attention[i]), head(x, return_attention=True), strict=True):
            assert torch.allclose(mine, truth, rtol=1e-11, atol=1e-13)
    heads = [make_model(mode="official").head.double() for _ in range(3)]
    for i, other in enumerate(heads):
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1 + i)
    parameters, buffers = torch.func.stack_module_state(heads)
    ensemble = torch.func.vmap(lambda p, b: torch.func.functional_call(heads[0], (p, b), (maps[0],)))
    for mine, other in zip(ensemble(parameters, buffers), heads, strict=True):
        assert torch.allclose(mine, other(maps[0]), rtol=1e-11, atol=1e-13)


def test_gradients_of_single_images_by_functional_call() -> None:
    head, x = make_model().head.double(), map_of(3).double()
    parameters, buffers = dict(head.named_parameters()), dict(head.named_buffers())

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(head, (weights, buffers), (image[None],)).square().sum()

    apart = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    head(x).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert apart[name].shape == (3, *parameter.shape)
        assert parameter.grad is not None
        assert torch.allclose(apart[name].sum(0), parameter.grad, rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("words_on", ["cpu", "meta"])
def test_built_on_the_meta_device_and_filled_later(words_on: str) -> None:
    source = make_model(mode="official")
    words, graph = (torch.zeros(*shape, device=words_on) for shape in ((C, S), (C, C)))
    with torch.device("meta"):
        backbone = build_backbone("small-cnn", width=4)
        model = sf.SSGRL(backbone, words, graph, joint_dim=8, mode="official")
    assert {p.device.type for p in model.parameters()} == {"meta"} and model.head.words.device.type == words_on
    if words_on == "meta":
        assert model(torch.empty(2, 3, SIZE, SIZE, device="meta")).shape == (2, C)
    model.to_empty(device="cpu")
    model.load_state_dict(source.state_dict())
    assert torch.equal(model.eval()(images_of(2)), source.eval()(images_of(2)))
    assigned = copy.deepcopy(source).to("meta")
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(assigned.eval()(images_of(2)), source(images_of(2)))


def _copied(model: sf.SSGRL) -> sf.SSGRL:
    return copy.deepcopy(model)


def _pickled(model: sf.SSGRL) -> sf.SSGRL:
    return pickle.loads(pickle.dumps(model))


def _saved(model: sf.SSGRL) -> sf.SSGRL:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _averaged(model: sf.SSGRL) -> sf.SSGRL:
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    return average.module


@pytest.mark.parametrize("how", [_copied, _pickled, _saved, _averaged])
def test_copies_give_the_same_model_and_share_nothing(how: Any) -> None:
    model = make_model(mode="official").eval()
    model(images_of(2)).sum().backward()
    truth, other = model(images_of(2)), how(model)
    assert torch.equal(other(images_of(2)), truth) and other.class_names == model.class_names
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(images_of(2)), truth)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_around_the_head(reentrant: bool) -> None:
    head, x = make_model(mode="official").head, map_of(3).requires_grad_()
    truth = gradients(head, head, x)
    mine = gradients(lambda t: checkpoint(head, t, use_reentrant=reentrant), head, x)
    for name, value in truth.items():
        assert torch.equal(mine[name], value), name


def test_channels_last_model() -> None:
    model = make_model()
    truth = gradients(model, model, images_of(3))
    laid = copy.deepcopy(model).to(memory_format=torch.channels_last)
    check_equal(gradients(laid, laid, images_of(3).contiguous(memory_format=torch.channels_last)), truth)


def test_data_parallel_without_a_gpu_is_the_model() -> None:
    model = make_model().eval()
    assert torch.equal(nn.DataParallel(model)(images_of(3)), model(images_of(3)))


def _step(rank: int, processes: int, folder: str) -> None:
    """One step of one process on its share of four images; rank 0 leaves the averaged gradients in the folder."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes
    )
    wrapped = nn.parallel.DistributedDataParallel(make_model(mode="official").eval())
    wrapped(images_of(4).chunk(processes)[rank]).square().mean().backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in wrapped.module.named_parameters()}, f"{folder}/gradients.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.thorough  # tests/training/test_distributed.py trains by two processes
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_distributed_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_step, (2, str(tmp_path)), nprocs=2, start_method="spawn")
    model = make_model(mode="official").eval()
    model(images_of(4)).square().mean().backward()
    shared = torch.load(tmp_path / "gradients.pt")
    check_equal(shared, {name: p.grad for name, p in model.named_parameters()}, rtol=1e-4, atol=1e-7)
