"""accelerate: an existing network of the published layout, its own forward against the fused one."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from published_network import (
    CONSTANTS,
    UNUSED,
    CorrectedPropagation,
    Decoupling,
    Propagation,
    PublishedNetwork,
    accelerated,
    images,
    parts,
    published_network,
    step,
)
from torch import Tensor, nn

import ssgrl_fast as sf
from ssgrl_fast.published.swapped import Swapped


def test_float64_logits_and_every_gradient_are_those_of_its_own_forward() -> None:
    model = published_network()
    logits, gradients = step(model, images(torch.float64))
    keys, objects = list(model.state_dict()), dict(model.named_parameters())
    assert accelerated(model) is model
    assert parts(model) == ["word_semantic", "graph_net", "classifiers"]
    assert list(model.state_dict()) == keys
    assert all(value is objects[name] for name, value in model.named_parameters())
    fused, found = step(model, images(torch.float64))
    torch.testing.assert_close(fused, logits, rtol=0, atol=1e-10)
    for name, expected in gradients.items():
        if name in UNUSED:
            assert expected is None and found[name] is None
        elif name in CONSTANTS:
            assert found[name] is not None and bool((found[name] == 0).all()), name
            assert float(expected.abs().max()) < 1e-12
        else:
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-10, msg=name)


def test_float32_errors_stay_near_those_of_its_own_forward() -> None:
    """Against the float64 truth: at most 1.2 times the plain form's error, or 1e-5 of the largest value."""
    model = published_network().float()
    model.word_features = model.word_features.float()
    graph = model.graph_net
    graph._in_matrix, graph._out_matrix = graph._in_matrix.float(), graph._out_matrix.float()
    twin = copy.deepcopy(model).double()
    twin.word_features = model.word_features.double()
    twin.graph_net._in_matrix, twin.graph_net._out_matrix = graph._in_matrix.double(), graph._out_matrix.double()
    truth_logits, truth = step(twin, images(torch.float32).double())
    plain_logits, plain = step(model, images(torch.float32))
    fused_logits, fused = step(accelerated(model), images(torch.float32))

    def error(found: Tensor, expected: Tensor) -> float:
        return float((found.double() - expected).norm() / expected.norm())

    assert error(fused_logits, truth_logits) <= max(1e-5, 1.2 * error(plain_logits, truth_logits))
    for name, expected in truth.items():
        if name not in (*UNUSED, *CONSTANTS):
            assert error(fused[name], expected) <= max(1e-5, 1.2 * error(plain[name], expected)), name


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_an_optimizer_made_before_takes_the_same_step(make: Callable[..., torch.optim.Optimizer]) -> None:
    plain, fused = published_network(), published_network()
    optimizers = [make(model.parameters()) for model in (plain, fused)]
    accelerated(fused)
    for model, optimizer in zip((plain, fused), optimizers, strict=True):
        for _ in range(2):
            step(model, images(torch.float64))
            optimizer.step()
    for (name, expected), found in zip(plain.named_parameters(), fused.parameters(), strict=True):
        if name not in CONSTANTS:  # there Adam turns rounding noise into steps of its learning rate (D4)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-8, msg=name)


def test_one_line_says_what_was_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    model = sf.accelerate(published_network())
    (line,) = capsys.readouterr().out.splitlines()
    for words in ("word_semantic (Decoupling): semantic attention", "graph_net (Propagation)", "official reset gate"):
        assert words in line
    sf.accelerate(model)
    assert capsys.readouterr().out.count("(already)") == 3


def test_a_part_alone_is_accelerated() -> None:
    torch.manual_seed(0)
    matrix = torch.rand(5, 5)
    for module, arguments in (
        (Decoupling(5, 8, 6, 7), (2, torch.randn(2, 8, 3, 3), torch.randn(5, 6))),
        (Propagation(8, 2, matrix, matrix.t()), (torch.randn(2, 5, 8),)),
    ):
        expected = module(*arguments)
        assert parts(accelerated(module)) == [""]
        torch.testing.assert_close(module(*arguments), expected, rtol=1e-5, atol=1e-6)


def test_the_papers_reset_gate_is_told_from_the_published_ones(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    matrix = torch.rand(5, 5, dtype=torch.float64)
    graph = CorrectedPropagation(6, 2, matrix, matrix.t()).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    expected = graph(x)
    sf.accelerate(graph)
    assert "paper reset gate" in capsys.readouterr().out
    torch.testing.assert_close(graph(x), expected, rtol=0, atol=1e-12)


def test_equal_weights_do_not_confuse_the_gates() -> None:
    """Both gates agree where U^z = U^r = 0; a checkpoint that is loaded later must still meet the right one."""
    torch.manual_seed(0)
    matrix = torch.rand(5, 5, dtype=torch.float64)
    graphs = [cls(6, 2, matrix, matrix.t()).double() for cls in (Propagation, CorrectedPropagation)]
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    for graph in graphs:
        weights = copy.deepcopy(graph.state_dict())
        expected = graph(x)
        for value in graph.parameters():
            nn.init.zeros_(value)
        accelerated(graph).load_state_dict(weights)
        torch.testing.assert_close(graph(x), expected, rtol=0, atol=1e-12)


class SuccessorAttention(nn.Module):
    """The names of HCP-MLR-PL, and an optional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.classNum = 5
        self.fc1, self.fc2 = nn.Linear(8, 7, bias=False), nn.Linear(6, 7, bias=False)
        self.fc3, self.fc4 = nn.Linear(7, 7), nn.Linear(7, 1)

    def forward(self, visualFeature: Tensor, wordFeature: Tensor, visualize: bool = False) -> Tensor:
        rows = visualFeature.flatten(2).transpose(1, 2)
        joint = torch.tanh(self.fc1(rows)[:, :, None] * self.fc2(wordFeature))
        attention = self.fc4(self.fc3(joint)).softmax(dim=1)
        return attention if visualize else (rows[:, :, None] * attention).sum(1)


class SuccessorGraph(nn.Module):
    """The names of HCP-MLR-PL, its matrices as frozen parameters."""

    def __init__(self) -> None:
        super().__init__()
        matrix = torch.rand(5, 5)
        self.timeStep = 2
        self.inMatrix = nn.Parameter(matrix, requires_grad=False)
        self.outMatrix = nn.Parameter(matrix.t().clone(), requires_grad=False)
        for index in (1, 2, 3):
            setattr(self, f"fc_{index}_w", nn.Linear(16, 8))
            setattr(self, f"fc_{index}_u", nn.Linear(8, 8))

    def forward(self, input: Tensor) -> Tensor:
        h = input
        for _ in range(self.timeStep):
            message = torch.cat([self.inMatrix @ h, self.outMatrix @ h], 2)
            z = torch.sigmoid(self.fc_1_w(message) + self.fc_1_u(h))
            r = torch.sigmoid(self.fc_2_w(message) + self.fc_2_u(h))
            h = (1 - z) * h + z * torch.tanh(self.fc_3_w(message) + self.fc_3_u(r * h))
        return h


def test_the_successors_names_are_known_and_optional_arguments_reach_its_own_forward() -> None:
    torch.manual_seed(0)
    attention, graph = SuccessorAttention(), SuccessorGraph()
    x, words, states = torch.randn(2, 8, 3, 3), torch.randn(5, 6), torch.randn(2, 5, 8)
    pooled, seen, h = attention(x, words), attention(x, words, visualize=True), graph(states)
    accelerated(nn.ModuleList([attention, graph]))
    assert isinstance(attention, Swapped) and isinstance(graph, Swapped)
    torch.testing.assert_close(attention(x, wordFeature=words), pooled, rtol=1e-5, atol=1e-6)
    assert torch.equal(attention(x, words, visualize=True), seen)
    torch.testing.assert_close(graph(states), h, rtol=1e-5, atol=1e-6)


def test_matrices_words_and_steps_are_read_at_each_call() -> None:
    plain, fused = published_network(), accelerated(published_network())
    generator = torch.Generator().manual_seed(9)
    matrix = torch.rand(7, 7, generator=generator, dtype=torch.float64)
    words = torch.randn(7, 10, generator=generator, dtype=torch.float64)
    for model in (plain, fused):
        model.graph_net._in_matrix, model.graph_net._out_matrix = matrix, matrix.t()
        model.graph_net.time_step = 2
        model.word_features = words
    torch.testing.assert_close(fused(images(torch.float64)), plain(images(torch.float64)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("hidden", [False, True])
def test_matrices_that_cease_to_be_transposes_bring_the_own_forward_back(hidden: bool) -> None:
    plain, fused = published_network(), accelerated(published_network())
    fused(images(torch.float64))
    for model in (plain, fused):
        matrix = model.graph_net._out_matrix
        (matrix.data if hidden else matrix).mul_(2)  # in place: the same object; through .data of the same version
    with pytest.warns(UserWarning, match="_out_matrix is not the transpose of _in_matrix"):
        found = fused(images(torch.float64))
    torch.testing.assert_close(found, plain(images(torch.float64)), rtol=0, atol=1e-10)


def test_hooks_that_come_later_are_called() -> None:
    model = accelerated(published_network())
    calls: list[str] = []
    handle = model.word_semantic.fc_3.register_forward_hook(lambda *_: calls.append("hook"))
    with pytest.warns(UserWarning, match="fc_3 has hooks"):
        model(images(torch.float64))
    assert calls == ["hook"]
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(images(torch.float64))
    assert calls == ["hook"]


def test_restore_gives_the_own_forward_back() -> None:
    model = published_network()
    expected = model(images(torch.float64))
    assert sf.restore(accelerated(model)) is model
    assert parts(model) == [] and type(model.graph_net) is Propagation
    assert torch.equal(model(images(torch.float64)), expected)


def test_restore_does_not_drop_what_others_put_on_top() -> None:
    model = accelerated(published_network())
    model.graph_net.__class__ = type("Wrapped", (type(model.graph_net),), {})
    with pytest.raises(ValueError, match="a part has since become a Wrapped"):
        sf.restore(model)


def test_a_model_made_in_inference_mode_runs_there() -> None:
    expected = published_network()(images(torch.float64)).detach()
    with torch.inference_mode():
        model = accelerated(published_network())
        for _ in range(2):
            torch.testing.assert_close(model(images(torch.float64)), expected, rtol=0, atol=1e-10)
        model.graph_net._out_matrix.mul_(2)
        with pytest.warns(UserWarning, match="_out_matrix is not the transpose"):
            model(images(torch.float64))


def test_copies_and_files_stay_accelerated() -> None:
    model = accelerated(published_network())
    expected = model(images(torch.float64))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(stream, weights_only=False),
        average.module,
    ]
    for other in copies:
        assert parts(other) == parts(model)
        assert isinstance(other, PublishedNetwork) and isinstance(other.graph_net, Propagation)
        assert torch.equal(other(images(torch.float64)), expected)
    copies[0].graph_net.fc_eq3_w.weight.data.zero_()
    assert torch.equal(model(images(torch.float64)), expected)


def test_a_checkpoint_moves_between_the_plain_and_the_accelerated_model() -> None:
    plain, fused = published_network(), accelerated(published_network())
    for value in fused.parameters():
        value.data.mul_(1.5)
    plain.load_state_dict(fused.state_dict())
    torch.testing.assert_close(plain(images(torch.float64)), fused(images(torch.float64)), rtol=0, atol=1e-10)


@pytest.mark.thorough
def test_the_accelerated_model_compiles_without_a_break() -> None:
    model = accelerated(published_network(torch.float32))
    logits, gradients = step(model, images(torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch in (3, 2):
        found, others = step(compiled, images(torch.float32)[:batch])
        torch.testing.assert_close(found, logits[:batch], rtol=1e-4, atol=1e-5)
    found, others = step(compiled, images(torch.float32))
    for name, expected in gradients.items():
        if expected is not None:
            torch.testing.assert_close(others[f"_orig_mod.{name}"] if name != "images" else others[name], expected)


def test_wrapped_models_are_accelerated_inside(tmp_path) -> None:
    """DataParallel on a CPU, and DistributedDataParallel with one process."""
    plain = published_network()
    logits, gradients = step(plain, images(torch.float64))
    model = accelerated(nn.DataParallel(published_network()))
    assert parts(model) == ["module.word_semantic", "module.graph_net", "module.classifiers"]
    torch.testing.assert_close(model(images(torch.float64)), logits, rtol=0, atol=1e-10)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = accelerated(nn.parallel.DistributedDataParallel(published_network(), find_unused_parameters=True))
        found, others = step(model, images(torch.float64))
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, logits, rtol=0, atol=1e-10)
    for name, expected in gradients.items():
        if name not in (*CONSTANTS, *UNUSED, "images"):
            torch.testing.assert_close(others[f"module.{name}"], expected, rtol=0, atol=1e-10, msg=name)


def test_reduced_precision_and_autocast_stay_near_the_truth() -> None:
    truth = published_network()(images(torch.float64)).detach()
    model = published_network(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(images(torch.float32))
        fused = accelerated(model)(images(torch.float32))
    assert fused.dtype == plain.dtype
    errors = [float((found.detach().double() - truth).norm() / truth.norm()) for found in (fused, plain)]
    assert errors[0] <= max(1e-2, 1.2 * errors[1])


def test_a_wrong_batch_size_is_refused() -> None:
    model = accelerated(Decoupling(5, 8, 6, 7))
    with pytest.raises(ValueError, match="batch_size is 3, and the map holds 2 images"):
        model(3, torch.randn(2, 8, 3, 3), torch.randn(5, 6))
