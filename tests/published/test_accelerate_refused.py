"""accelerate: parts of the published layout whose results or state the fused forward would change are left alone."""

from __future__ import annotations

import pytest
import torch
from published_network import Propagation, accelerated
from torch import Tensor, nn

import ssgrl_fast as sf
from ssgrl_fast.published.swapped import Swapped


class WithDropout(Propagation):
    def reset_state(self, h: Tensor) -> Tensor:
        return nn.functional.dropout(self.fc_eq3_u(h), 0.3, self.training)


class ReturnsTwo(Propagation):
    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(input), self._in_matrix


class Remembers(Propagation):
    def forward(self, input: Tensor) -> Tensor:
        self.last = input
        return super().forward(input)


class KnowsItsClasses(Propagation):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.view(-1, 5, self.input_dim))


def test_a_part_that_knows_its_number_of_classes_is_probed_with_it() -> None:
    torch.manual_seed(0)
    matrix = torch.rand(5, 5)
    graph, x = KnowsItsClasses(6, 3, matrix, matrix.t()), torch.randn(2, 5, 6)
    expected = graph(x)
    torch.testing.assert_close(accelerated(graph)(x), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(graph, Swapped)


class Writes(Propagation):
    """Through ``.data``, and by a factor that does not change anything yet."""

    def forward(self, input: Tensor) -> Tensor:
        self._out_matrix.data.mul_(1.0)
        return super().forward(input)


class WritesWeights(Propagation):
    def forward(self, input: Tensor) -> Tensor:
        with torch.no_grad():
            self.fc_eq3_w.weight.clamp_(-9, 9)
        return super().forward(input)


class WithoutGradient(Propagation):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.detach())


def _exchanged_layer(graph: Propagation) -> None:
    graph.fc_eq5_u = nn.Sequential(graph.fc_eq5_u)


def _parametrized(graph: Propagation) -> None:
    nn.utils.parametrizations.weight_norm(graph.fc_eq3_w)


def _hooked(graph: Propagation) -> None:
    graph.fc_eq3_w.register_forward_hook(lambda *_: None)


def _own_forward(graph: Propagation) -> None:
    graph.forward = lambda input: input


def _unequal(graph: Propagation) -> None:
    graph._out_matrix = graph._in_matrix + 1


def _learned(graph: Propagation) -> None:
    graph._in_matrix.requires_grad_()


REFUSED = {
    "dropout": (WithDropout, None, "in training its own forward differs"),
    "two results": (ReturnsTwo, None, "returns a tuple, expected one tensor"),
    "state": (Remembers, None, "its forward stores last"),
    "matrix": (Writes, None, "its forward writes into _out_matrix, which a fused one would not"),
    "weights": (WritesWeights, None, "its forward writes into fc_eq3_w.weight, which"),
    "no gradient": (WithoutGradient, None, "input 0 gets no gradient"),
    "exchanged": (Propagation, _exchanged_layer, "fc_eq5_u is a Sequential, expected a plain torch.nn.Linear"),
    "parametrized": (Propagation, _parametrized, "fc_eq3_w is a ParametrizedLinear"),
    "hooked": (Propagation, _hooked, "fc_eq3_w has hooks"),
    "own forward": (Propagation, _own_forward, "its forward was exchanged on the instance"),
    "unequal": (Propagation, _unequal, "_out_matrix is not the transpose of _in_matrix"),
    "learned": (Propagation, _learned, "_in_matrix requires a gradient"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_is_left_alone_and_the_reason_said(case: str) -> None:
    cls, change, reason = REFUSED[case]
    torch.manual_seed(0)
    matrix = torch.rand(5, 5)
    graph = cls(6, 2, matrix, matrix.t().contiguous())
    if change is not None:
        change(graph)
    state = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match=reason):
        assert sf.accelerate(graph) is graph
    assert type(graph) is cls
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(value.grad is None for value in graph.parameters())


def test_a_model_without_published_parts_says_so() -> None:
    with pytest.warns(UserWarning, match="no part of Linear has the layers of a published one"):
        sf.accelerate(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got dict"):
        sf.accelerate({})  # type: ignore[type-var]
