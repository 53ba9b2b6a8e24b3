"""Aggregation over the label graph on CUDA, run in the emulator: both directions against float64, its e4m3 form against
PyTorch's conversion, and the scales of states.

Arrays lie in workspaces with gaps of NaN between their rows, which must stay as they are, and nothing behind them.
"""

from __future__ import annotations

import ctypes

import cuda_emulation
import pytest
import torch
from torch import Tensor

CLASSES, CHANNELS, IMAGES = (1, 3, 16, 17, 20, 80, 130), (8, 16, 72, 128, 200), (1, 3)
GAP = 24  # elements between rows
NAN_CODE = 0x7F
by_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(scope="module")
def emulated() -> ctypes.CDLL:
    folder = cuda_emulation.ROOT / "csrc" / "cuda" / "graph_propagation"
    return cuda_emulation.build(folder / "aggregate.cu", cuda_emulation.EMULATOR / "aggregate.cu")


def inputs_of(images: int, classes: int, dim: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A [C, C], as uneven and sparse as graphs of labels are, and h [B, C, D]."""
    generator = torch.manual_seed(seed)
    adjacency = torch.rand(classes, classes, generator=generator) ** 3
    adjacency = torch.where(torch.rand(classes, classes, generator=generator) < 0.3, 0.0, adjacency)
    return adjacency.to(dtype), torch.randn(images, classes, dim, generator=generator).to(dtype)


def apart(rows: Tensor) -> Tensor:
    """Rows [R, D] in rows of D + GAP, NaN between."""
    return torch.nn.functional.pad(rows, (0, GAP), value=float("nan"))


def exact(adjacency: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """[A h | A^T h] [R, 2D] in float64, and how far sums in float32 of these may err."""
    a, h = adjacency.double(), h.double()

    def both(a: Tensor, h: Tensor) -> Tensor:
        return torch.cat((a @ h, a.T @ h), dim=-1).flatten(0, 1)

    return both(a, h), both(a.abs(), h.abs()) * (len(a) + 2) * 2.0**-24


def run(emulated: ctypes.CDLL, adjacency: Tensor, h: Tensor, backwards: bool = False) -> Tensor:
    """[A h | A^T h] [R, 2D]; the gaps are looked at."""
    images, classes, dim = h.shape
    state = apart(h.flatten(0, 1))
    out = torch.full((images * classes, 2 * dim + GAP), float("nan"), dtype=h.dtype)
    sizes = (images, classes, dim)
    cuda_emulation.call(
        emulated,
        "emulated_aggregate",
        int(h.dtype == torch.float16),
        adjacency,
        state,
        dim + GAP,
        out,
        2 * dim + GAP,
        *sizes,
        backwards=backwards,
    )
    assert out[:, 2 * dim :].isnan().all()
    return out[:, : 2 * dim]


def assert_rounded_once(result: Tensor, adjacency: Tensor, h: Tensor) -> None:
    """Each element is the truth, rounded once: half a unit of its dtype, and what sums in float32 may err."""
    truth, error = exact(adjacency, h)
    half_unit = torch.finfo(h.dtype).eps / 2 * truth.abs() + 2.0**-25  # of float16's subnormals
    assert ((result.double() - truth).abs() <= half_unit + error * (1 + torch.finfo(h.dtype).eps)).all()


@by_dtype
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("classes", CLASSES)
def test_both_directions(emulated: ctypes.CDLL, classes: int, images: int, dtype: torch.dtype) -> None:
    for dim in CHANNELS:
        adjacency, h = inputs_of(images, classes, dim, dtype)
        assert_rounded_once(run(emulated, adjacency, h), adjacency, h)


@by_dtype
def test_slabs_of_every_width(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    """As many blocks as slabs of 64 and of 128 channels are taken for, with ends in the middle of a slab."""
    for images, classes, dim in ((45, 5, 136), (22, 130, 200), (11, 130, 264)):
        adjacency, h = inputs_of(images, classes, dim, dtype)
        assert_rounded_once(run(emulated, adjacency, h), adjacency, h)


@by_dtype
def test_results_do_not_depend_on_the_order_of_threads(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    for classes in (80, 130, 500):
        adjacency, h = inputs_of(2, classes, 72, dtype, seed=1)
        first, second = (run(emulated, adjacency, h, backwards) for backwards in (False, True))
        assert torch.equal(first, second)
        assert_rounded_once(first, adjacency, h)


@by_dtype
@pytest.mark.parametrize("classes", [17, 80, 130, 132])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_what_is_not_finite_stays_in_its_image(
    emulated: ctypes.CDLL, value: float, classes: int, dtype: torch.dtype
) -> None:
    dim = 72
    adjacency, h = inputs_of(3, classes, dim, dtype)
    clean = run(emulated, adjacency, h)
    h[1, classes // 2, 5], h[1, classes - 1, dim - 1] = value, value
    result, truth = (t.unflatten(0, (3, classes)) for t in (run(emulated, adjacency, h), exact(adjacency, h)[0]))
    for image in (0, 2):
        assert torch.equal(result[image], clean.unflatten(0, (3, classes))[image])
    assert not result[1].isfinite().all()
    assert torch.equal(result[1].isnan(), truth[1].isnan())
    assert torch.equal(result[1].isinf(), truth[1].isinf())


def test_nothing_to_do(emulated: ctypes.CDLL) -> None:
    for images, classes in ((0, 5), (3, 0)):
        adjacency, h = inputs_of(images, classes, 16, torch.bfloat16)
        assert run(emulated, adjacency, h).numel() == 0
        assert scales(emulated, h).numel() == 0


def test_rows_that_it_does_not_serve_are_refused(emulated: ctypes.CDLL) -> None:
    adjacency, h = inputs_of(1, 3, 12, torch.bfloat16)
    with pytest.raises(RuntimeError, match="aggregate: D and the strides must be multiples of 8"):
        run(emulated, adjacency, h)
    with pytest.raises(RuntimeError, match="aggregate8: D and X8's stride must be multiples of 16"):
        run8(emulated, *inputs_of(1, 3, 24, torch.bfloat16), torch.ones(3), 1.0, 1.0)


def encoded(values: Tensor) -> Tensor:
    """Codes of PyTorch's saturated conversion, with one code for NaN."""
    codes = values.float().clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(values.isnan(), NAN_CODE, codes)


def decoded(codes: Tensor) -> Tensor:
    return codes.view(torch.float8_e4m3fn).double()


def codes_of(emulated: ctypes.CDLL, values: Tensor) -> Tensor:
    codes = torch.empty(values.shape, dtype=torch.uint8)
    cuda_emulation.call(emulated, "emulated_e4m3", values, codes, values.numel())
    return codes


def test_every_code_returns(emulated: ctypes.CDLL) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    returned = codes_of(emulated, decoded(codes).float())
    assert torch.equal(returned, torch.where(codes == 0xFF, NAN_CODE, codes))


def test_codes_are_those_of_pytorch(emulated: ctypes.CDLL) -> None:
    """Every bfloat16; floats of random bits; floats where e4m3 lies, and on and beside its boundaries."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
    generator = torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2_000_000,), generator=generator).to(torch.int32).view(torch.float32)
    near = torch.randn(2_000_000, generator=generator) * 2.0 ** torch.randint(-12, 9, (2_000_000,), generator=generator)
    finite = decoded(torch.arange(127, dtype=torch.uint8)).float()
    middle = (finite[1:] + finite[:-1]) / 2
    edges = torch.cat([torch.nextafter(middle, middle + side) for side in (-1.0, 0.0, 1.0)] + [finite[1:]])
    for values in (every, bits, near, edges, -edges):
        assert torch.equal(codes_of(emulated, values), encoded(values))


def scales(emulated: ctypes.CDLL, h0: Tensor, backwards: bool = False) -> Tensor:
    """The scale of each row [R] of h0 [B, C, D]."""
    scale = torch.full((h0.shape[0] * h0.shape[1],), float("nan"))
    cuda_emulation.call(emulated, "emulated_state_scale", h0, scale, *h0.shape, backwards=backwards)
    return scale


def expected_scales(h0: Tensor) -> Tensor:
    top = h0.double().abs().flatten(1).amax(1).clamp(min=1)
    scale = torch.where(top.isfinite(), 2.0 ** (top.log2().ceil() - 8), float("nan"))
    return scale.float().repeat_interleave(h0.shape[1])


@pytest.mark.parametrize(
    "shape", [(1, 80, 2048), (3, 17, 40), (2, 1, 5), (5, 3, 9), (1, 500, 64), (600, 4, 8)], ids=str
)
def test_scales(emulated: ctypes.CDLL, shape: tuple[int, int, int]) -> None:
    generator = torch.manual_seed(2)
    h0 = torch.randn(shape, generator=generator) * 4.0 ** torch.randint(-3, 6, (shape[0], 1, 1), generator=generator)
    h0 = h0.bfloat16()
    result = scales(emulated, h0)
    assert torch.equal(result, expected_scales(h0))
    assert torch.equal(result, scales(emulated, h0, backwards=True))
    assert (h0.float().abs().flatten(1) / result.view(shape[0], -1)[:, :1] <= 256).all()


def test_scales_of_the_last_and_largest_values(emulated: ctypes.CDLL) -> None:
    """One value an image, at a place of its own: powers of two, their neighbours, the largest, and not finite ones."""
    tops = [0.5, 1.0, 1.0078125, 2.0, 2.015625, 255.0, 256.0, 2.0**119, 2.0**127, torch.finfo(torch.bfloat16).max]
    h0 = torch.zeros(2 * len(tops) + 3, 3, 8, dtype=torch.bfloat16)
    values = [*tops, *(-top for top in tops), float("nan"), float("inf"), float("-inf")]
    for i, value in enumerate(values):
        h0[i].view(-1)[i] = value
    result, expected = scales(emulated, h0), expected_scales(h0)
    assert torch.equal(result[:-9], expected[:-9])
    assert result[:-9].isfinite().all() and result[:-9].max() == 2.0**120
    assert result[-9:].isnan().all()


def run8(
    emulated: ctypes.CDLL, adjacency: Tensor, h: Tensor, scale: Tensor, inward: float, outward: float,
    backwards: bool = False,
) -> Tensor:  # fmt: skip
    """Blocks 0 to 2 of X8 [R, 3D]; block 3 and the gaps are looked at."""
    images, classes, dim = h.shape
    state, stride = apart(h.flatten(0, 1)), 4 * dim + 32
    x8 = torch.full((images * classes, stride), 0xA5, dtype=torch.uint8)
    cuda_emulation.call(
        emulated,
        "emulated_aggregate8",
        adjacency,
        state,
        dim + GAP,
        scale,
        inward,
        outward,
        x8,
        stride,
        images,
        classes,
        dim,
        backwards=backwards,
    )
    assert (x8[:, 3 * dim :] == 0xA5).all()
    return x8[:, : 3 * dim]


def power_above(adjacency: Tensor) -> float:
    """The power of two from the largest sum of a row on, 1 where that is 0."""
    top = adjacency.double().abs().sum(1).max()
    return float(2 ** top.log2().ceil()) if top > 0 else 1.0


def assert_codes_of_sums(
    x8: Tensor, adjacency: Tensor, h: Tensor, scale: Tensor, inward: float, outward: float
) -> None:
    """Codes of h / s exactly; those of the sums between the codes of the least and the largest value that float32 may
    have summed to: a choice for few, and fewer that are not the truth's own."""
    dim, each = h.shape[2], scale.double()[:, None]
    assert torch.equal(x8[:, :dim], encoded(h.flatten(0, 1).double() / each))
    truth, error = exact(adjacency, h)
    factor = torch.tensor([inward, outward], dtype=torch.float64).repeat_interleave(dim) / each
    value, slack = truth * factor, error * factor + 2.0**-23 * (truth * factor).abs()
    low, high = encoded(value - slack), encoded(value + slack)
    result = x8[:, dim:]
    assert torch.equal(result[low == high], low[low == high])
    assert ((decoded(low) <= decoded(result)) & (decoded(result) <= decoded(high)))[low != high].all()
    assert (low != high).double().mean() < 1e-2
    assert (result != encoded(value)).double().mean() < 2e-4


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("classes", CLASSES)
def test_e4m3(emulated: ctypes.CDLL, classes: int, images: int) -> None:
    for dim in (16, 80, 128, 208):
        adjacency, h = inputs_of(images, classes, dim, torch.bfloat16)
        h *= 8.0 ** torch.arange(images)[:, None, None]
        scale = scales(emulated, h)
        factors = (1 / power_above(adjacency), 1 / power_above(adjacency.T))
        x8 = run8(emulated, adjacency, h, scale, *factors)
        assert_codes_of_sums(x8, adjacency, h, scale, *factors)
        assert torch.equal(x8, run8(emulated, adjacency, h, scale, *factors, backwards=True))


def test_e4m3_in_wide_slabs_and_saturated(emulated: ctypes.CDLL) -> None:
    for images, classes in ((45, 5), (22, 130)):
        adjacency, h = inputs_of(images, classes, 208, torch.bfloat16)
        scale = torch.full((images * classes,), 2.0**-8)  # the largest of h / s and A h / s are beyond 448
        x8 = run8(emulated, adjacency, h, scale, 1.0, 0.5)
        assert_codes_of_sums(x8, adjacency, h, scale, 1.0, 0.5)
        assert (decoded(x8).abs() == 448).any() and decoded(x8).isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_e4m3_of_an_image_that_is_not_finite(emulated: ctypes.CDLL, value: float) -> None:
    """All of it becomes NaN and the others are what they were."""
    for classes in (17, 130):
        adjacency, h = inputs_of(3, classes, 48, torch.bfloat16)
        clean = run8(emulated, adjacency, h, scales(emulated, h), 0.25, 0.25)
        h[1, classes - 1, 47] = value
        x8 = run8(emulated, adjacency, h, scales(emulated, h), 0.25, 0.25)
        own = torch.arange(3 * classes) // classes == 1
        assert (x8[own] == NAN_CODE).all()
        assert torch.equal(x8[~own], clean[~own])
