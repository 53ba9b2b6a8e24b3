"""accelerate: dtypes, devices and autocast. A part computes what its own forward computes, or raises what it raises."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from published_network import ClassRows, Decoupling, Propagation, accelerated
from torch import Tensor, nn

import ssgrl_fast as sf
from ssgrl_fast.published.swapped import Swapped

C, D, S = 5, 8, 6
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Casting(Propagation):
    """Its matrices are plain attributes, which it casts at each call."""

    def forward(self, input: Tensor) -> Tensor:
        kept = self._in_matrix, self._out_matrix
        try:
            self._in_matrix, self._out_matrix = (matrix.to(input) for matrix in kept)
            return super().forward(input)
        finally:
            self._in_matrix, self._out_matrix = kept


class CastingDown(Propagation):
    """It casts its states to the dtype of its matrices, and back."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self._in_matrix.dtype)).to(input.dtype)


class CastingDecoupling(Decoupling):
    """It casts what comes to its weights."""

    def forward(self, batch_size: int, img_feature_map: Tensor, word_features: Tensor) -> Tensor:
        weight = self.fc_1.weight
        return super().forward(batch_size, img_feature_map.to(weight), word_features.to(weight))


class RowsWithoutBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(C, D))

    def forward(self, input: Tensor) -> Tensor:
        return (input * self.weight).sum(2)


class Both(nn.Module):
    """Decoupling and rows, so that rows are recognised."""

    def __init__(self, rows: nn.Module) -> None:
        super().__init__()
        self.attention, self.rows = CastingDecoupling(C, D, S, 7), rows

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return self.rows(self.attention(len(x), x, words))


def propagation(kind: type[Propagation], dtype: torch.dtype = torch.float32) -> Propagation:
    torch.manual_seed(0)
    matrix = torch.rand(C, C, dtype=dtype) / C
    return kind(D, 2, matrix, matrix.t().contiguous())


def outcome(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The output and the gradients of inputs and parameters."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    module.zero_grad()
    output = module(*leaves)
    (output.double() * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)).sum().backward()
    grads = {f"input {index}": value.grad for index, value in enumerate(leaves)}
    return output.detach(), grads | {name: value.grad for name, value in module.named_parameters()}


def assert_alike(plain: nn.Module, fused: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    """Outputs and gradients of one dtype each, near each other by the rounding of `dtype`."""
    (expected, others), (found, grads) = outcome(plain, *inputs), outcome(fused, *inputs)
    pairs = [("output", expected, found), *((name, others[name], grads[name]) for name in others)]
    for name, first, second in pairs:
        if first is None or second is None:
            assert first is second, name
            continue
        assert second.dtype == first.dtype and second.device == first.device, name
        gap = float((second.double() - first.double()).abs().max())
        assert gap <= TOLERANCE[dtype] * max(1.0, float(first.abs().max())), (name, gap)


STATES: dict[str, tuple[Callable[[nn.Module], nn.Module], torch.dtype]] = {
    "double": (nn.Module.double, torch.float64),
    "float": (nn.Module.float, torch.float32),
    "half": (nn.Module.half, torch.float16),
    "bfloat16": (nn.Module.bfloat16, torch.bfloat16),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("matrices", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("order", ["before", "after"])
def test_matrices_that_the_part_casts_work_in_every_dtype(state: str, matrices: torch.dtype, order: str) -> None:
    """The conversion comes before accelerate or after it; nothing is left alone and nothing runs unfused."""
    convert, dtype = STATES[state]
    plain = propagation(Casting)
    plain._in_matrix, plain._out_matrix = (
        (8 * matrix).to(matrices) if matrices == torch.int64 else matrix.to(matrices)
        for matrix in (plain._in_matrix, plain._out_matrix)
    )
    fused = copy.deepcopy(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if order == "after":
            fused = convert(sf.accelerate(fused, verbose=False))
        else:
            fused = sf.accelerate(convert(fused), verbose=False)
        assert isinstance(fused, Swapped)
        torch.manual_seed(1)
        assert_alike(convert(plain), fused, (torch.randn(3, C, D).to(dtype),), dtype)


@pytest.mark.parametrize("kind", [Propagation, Casting])
@pytest.mark.parametrize("matrices", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_autocast_gives_the_dtypes_of_the_own_forward(
    kind: type[Propagation], matrices: torch.dtype, state: torch.dtype
) -> None:
    plain = propagation(kind, matrices)
    if kind is Propagation and matrices != torch.float32:
        with pytest.warns(UserWarning, match="raises RuntimeError"):  # outside autocast it does not run
            sf.accelerate(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        fused = accelerated(copy.deepcopy(plain))
    torch.manual_seed(1)
    x = torch.randn(3, C, D).to(state)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_alike(plain, fused, (x,), torch.bfloat16)


@pytest.mark.parametrize("kind", [Propagation, Casting, CastingDown])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_a_compiled_part_gives_the_dtype_of_its_own_forward_under_autocast(
    kind: type[Propagation], state: torch.dtype
) -> None:
    plain = propagation(kind)
    torch.manual_seed(1)
    x = torch.randn(3, C, D).to(state)
    torch._dynamo.reset()
    compiled = accelerated(copy.deepcopy(plain))
    compiled.compile(backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_alike(plain, compiled, (x,), torch.bfloat16)


def test_a_part_that_raises_by_itself_is_left_alone_and_the_reason_said() -> None:
    graph = propagation(Propagation).double()
    with pytest.warns(UserWarning, match="_in_matrix in float32 on cpu.* it raises RuntimeError"):
        sf.accelerate(graph)
    assert type(graph) is Propagation


def test_a_part_that_comes_to_raise_does_so_with_its_own_error_and_a_warning() -> None:
    plain = propagation(Propagation)
    fused = accelerated(copy.deepcopy(plain)).double()
    x = torch.randn(2, C, D, dtype=torch.float64)
    with pytest.raises(RuntimeError) as expected:
        plain.double()(x)
    reason = "runs its own forward: with weights in float64 on cpu, _in_matrix in float32"
    with pytest.warns(UserWarning, match=reason), pytest.raises(RuntimeError) as found:
        fused(x)
    assert str(found.value) == str(expected.value)
    fused._in_matrix, fused._out_matrix = fused._in_matrix.double(), fused._out_matrix.double()
    plain._in_matrix, plain._out_matrix = plain._in_matrix.double(), plain._out_matrix.double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=1e-12)


def test_a_part_that_casts_its_states_to_the_matrices_keeps_its_result() -> None:
    """It runs fused where all is of one dtype; a state of another dtype, which it casts and back, runs unfused."""
    graph = propagation(CastingDown)
    x = torch.randn(2, C, D)
    expected = graph(x)
    torch.testing.assert_close(accelerated(graph)(x), expected, rtol=1e-5, atol=1e-6)
    reduced = x.bfloat16()
    with pytest.warns(UserWarning, match="it gives bfloat16 on cpu"):
        found = graph(reduced)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)
    assert torch.equal(found, sf.restore(graph)(reduced))


@pytest.mark.parametrize("rows", [lambda: ClassRows(C, D), RowsWithoutBias])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("inputs", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_and_rows_take_every_dtype_that_the_own_forward_takes(
    rows: Callable[[], nn.Module], state: str, inputs: torch.dtype
) -> None:
    convert, dtype = STATES[state]
    torch.manual_seed(0)
    plain = convert(Both(rows()))
    fused = accelerated(copy.deepcopy(plain))
    assert sum(isinstance(part, Swapped) for part in fused.modules()) == 2
    x, words = torch.randn(2, D, 3, 3).to(inputs), torch.randn(C, S).to(inputs)
    coarse = max((dtype, inputs), key=TOLERANCE.__getitem__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_alike(plain, fused, (x, words), coarse)
        with torch.autocast("cpu", torch.bfloat16):
            if dtype != torch.float64 or rows is RowsWithoutBias:
                assert_alike(plain, fused, (x, words), torch.bfloat16)


@pytest.mark.parametrize("rows", [lambda: ClassRows(C, D), RowsWithoutBias])
def test_rows_of_another_dtype_than_their_input_promote(rows: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = Both(rows())
    plain = copy.deepcopy(model.rows).double()
    fused = accelerated(model).rows.double()
    assert isinstance(fused, Swapped)
    x = torch.randn(2, C, D)
    assert fused(x).dtype == plain(x).dtype == torch.float64
    torch.testing.assert_close(fused(x), plain(x), rtol=0, atol=1e-12)


def test_matrices_of_two_dtypes_or_devices_bring_the_own_forward_back() -> None:
    graph = accelerated(propagation(Casting))
    x = torch.randn(2, C, D)
    expected = graph(x)
    graph._out_matrix = graph._out_matrix.double()
    with pytest.warns(UserWarning, match="differ in dtype or device: float32 on cpu and float64 on cpu"):
        torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("order", ["before", "after"])
def test_matrices_that_the_part_moves_stay_where_they_are(order: str) -> None:
    plain = propagation(Casting)
    fused = copy.deepcopy(plain)
    fused = accelerated(fused.cuda()) if order == "before" else accelerated(fused).cuda()
    torch.manual_seed(1)
    x = torch.randn(3, C, D, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(fused(x), plain.cuda()(x), rtol=1e-4, atol=1e-5)
    assert isinstance(fused, Swapped) and fused._in_matrix.device.type == "cpu"


def test_rows_whose_weight_is_no_parameter_of_the_moment_run() -> None:
    """Under torch.func, and where a parametrization computes it, the weight is a tensor and no nn.Parameter."""
    torch.manual_seed(0)
    net = Both(RowsWithoutBias())
    x, words = torch.rand(2, D, 3, 3), torch.rand(C, S)
    expected = copy.deepcopy(net)(x, words)
    fused = sf.accelerate(net)
    assert isinstance(fused.rows, Swapped)
    result = torch.func.functional_call(fused, dict(fused.named_parameters()), (x, words))
    torch.testing.assert_close(result, expected)


def test_a_batch_without_images_and_a_moment_without_memory_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    part = propagation(Casting)
    fused = accelerated(part.double())
    out_of_memory = True

    def forward(self: Casting, input: Tensor) -> Tensor:
        if out_of_memory:
            raise torch.OutOfMemoryError("for this moment")
        return plain(self, input)

    plain = Casting.forward
    monkeypatch.setattr(Casting, "forward", forward)
    x = torch.rand(2, C, D, dtype=torch.float64)
    with pytest.raises(torch.OutOfMemoryError):
        fused(x)
    out_of_memory = False
    with pytest.warns(UserWarning, match="0 elements"), pytest.raises(RuntimeError, match="0 elements"):
        fused(x[:0])  # which the published forward refuses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(x)
