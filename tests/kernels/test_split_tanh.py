"""Scores by matrix products (kernels/split_tanh.py): inside the polynomials' range, outside it and across it."""

from __future__ import annotations

from dataclasses import replace

import operations
import pytest
import torch
from operations import assert_within_budget, compare
from shapes import Shape
from tanh_kinds import KINDS

pytest.importorskip("triton")
from ssgrl_fast.kernels import activations, launch, split_tanh, split_tanh_backward

STEM, DTYPE = "semantic_attention", torch.float16
SHAPE = Shape("split", 2, 19, 11, 6, 131, 4, why="one tile of rows and classes, five of channels, the last one short")
runs_here = pytest.mark.skipif(
    not operations.runs("triton", DTYPE), reason="needs Triton's interpreter: TRITON_INTERPRET=1"
)


SEEDS = 7  # x 6 kinds x 131 channels: over 4,096 elements of p


@runs_here
def test_parity_on_every_kind_of_input() -> None:
    """Pooled over the kinds, each at unit root mean square."""
    assert_within_budget(
        STEM,
        DTYPE,
        [compare(STEM, SHAPE, DTYPE, "triton", seed=s, change=kind) for kind in KINDS.values() for s in range(SEEDS)],
    )


@runs_here
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_equal_with_the_powers_of_either_kernel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed by the programs that need them, or once by a kernel of their own; 64 classes a tile, 80 channels."""
    shape = Shape("own", 2, 19, 70, 6, 80, 4)
    inputs, found = KINDS[kind](operations.inputs_of(STEM, shape, DTYPE)), []
    for most, launches in ((split_tanh.OWN_POWERS, 1), (0, 2)):
        monkeypatch.setattr(split_tanh, "OWN_POWERS", most)
        arguments = (inputs["u"].view(-1, 80), inputs["v"], inputs["p"], 2, 19)
        with launch.recorded() as kernels:
            split_tanh.scores(*arguments)
        assert len(kernels) == launches
        found.append(split_tanh.scores(*arguments))
    assert found[0].isfinite().all() and torch.equal(*found)


@runs_here
@pytest.mark.parametrize("kind", ["in_range", "one_wide_channel", "saturated"])
def test_only_channels_outside_the_range_are_evaluated_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With polynomials of zero, what is left of the scores is what the values of u that do not fit add."""
    form = split_tanh.FORMS[DTYPE]
    monkeypatch.setitem(split_tanh.FORMS, DTYPE, replace(form, tanh=(0.0,), slope=(0.0,)))
    inputs = KINDS[kind](operations.inputs_of(STEM, SHAPE, DTYPE))
    u, v, p = inputs["u"].reshape(-1, SHAPE.K), inputs["v"], inputs["p"]
    scores = split_tanh.scores(u, v, p, SHAPE.B, SHAPE.L).sum(0)
    wide = u.float().abs() * v.float().abs().amax(0) > form.reach  # [R, K]
    assert int(wide.any(0).sum()) == {"in_range": 0, "one_wide_channel": 1}.get(kind, int(wide.any(0).sum()))
    assert kind != "saturated" or wide.float().mean() > 0.9
    x = (u.double() * wide)[:, None] * v.double()
    left = (x.tanh() @ p.double()).view(SHAPE.B, SHAPE.L, SHAPE.C).transpose(1, 2)
    assert torch.allclose(scores.double(), left, rtol=1e-5, atol=1e-5)
    assert bool(scores.any()) == (kind != "in_range")


@runs_here
@pytest.mark.parametrize("size", [2.0**120, 2.0**125.5, 2.0**127])
def test_values_at_the_ends_of_float32(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16's range, in float32 tensors: u near its end and v the inverse, so that x is 1 and 1/2."""
    monkeypatch.setitem(split_tanh.FORMS, torch.float32, split_tanh.FORMS[torch.bfloat16])
    u, v, p = torch.full((3, 16), size), torch.full((2, 16), 1 / size), torch.linspace(-1, 2, 16)
    v[1] /= 2
    scores = split_tanh.scores(u, v, p, 1, 3).sum(0)
    truth = (p.sum() * torch.tensor([1.0, 0.5]).tanh())[:, None].expand(2, 3)
    assert torch.allclose(scores[0], truth, rtol=2.0**-9)
    d_u, d_v, d_p = split_tanh_backward.scores_backward(u, v, p, torch.ones(1, 2, 3))
    assert torch.isfinite(d_u).all() and torch.isfinite(d_p).all()
    at_zero, _, _ = split_tanh_backward.scores_backward(torch.zeros(3, 16), u[:1], p / 4, torch.ones(1, 1, 3))
    assert torch.allclose(at_zero, (p / 4 * u[0]).expand(3, 16), rtol=2.0**-9)
    assert torch.allclose(d_p.sum(0), 3 * torch.tensor([1.0, 0.5]).tanh().sum().expand(16), rtol=2.0**-9)


@runs_here
def test_the_form_of_bfloat16_within_its_half_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On float16 inputs, since the interpreter multiplies no bfloat16: its polynomials and its wider range."""
    monkeypatch.setitem(split_tanh.FORMS, DTYPE, split_tanh.FORMS[torch.bfloat16])
    for kind in ("in_range", "across", "one_wide_channel"):
        found = compare(STEM, SHAPE, DTYPE, "triton", change=KINDS[kind])
        for name in ("attention", "pooled", "d_u", "d_v", "d_p"):
            error = operations.testing.relative_error(found.result[name], found.truth[name])
            assert error <= 2.0**-9, f"{kind} {name}: {error:.2e}"


@pytest.mark.parametrize(
    ("dtype", "tanh_error", "slope_error"), [(torch.bfloat16, 3e-4, 5.2e-4), (torch.float16, 7.5e-6, 6.2e-5)], ids=str
)
def test_the_polynomials_err_as_little_as_they_say(dtype: torch.dtype, tanh_error: float, slope_error: float) -> None:
    form = split_tanh.FORMS[dtype]
    x = torch.linspace(1e-4, form.reach, 20001, dtype=torch.float64)
    tanh = sum(c * x ** (2 * j + 1) for j, c in enumerate(form.tanh))
    slope = sum(c * x ** (2 * j) for j, c in enumerate(form.slope))
    assert ((tanh / x.tanh()) - 1).abs().max() <= tanh_error
    assert (slope - x.cosh() ** -2).abs().max() <= slope_error


@pytest.mark.skipif(not activations.INTERPRETED, reason="needs Triton's interpreter: TRITON_INTERPRET=1")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-15), (torch.float32, 5e-7)], ids=str)
def test_activations_keep_their_digits_everywhere(dtype: torch.dtype, limit: float) -> None:
    """tanh, its slope, σ(x), σ(-x): relative error from 1e-12 to far saturation, both signs."""
    import triton
    import triton.language as tl

    @triton.jit
    def activations_kernel(p_x, p_out, N: tl.constexpr):
        o = tl.arange(0, N)
        x = tl.load(p_x + o)
        up, down = activations.sigmoid_both(x)
        tl.store(p_out + o, activations.tanh(x))
        tl.store(p_out + N + o, activations.sech_squared(x))
        tl.store(p_out + 2 * N + o, up)
        tl.store(p_out + 3 * N + o, down)

    magnitudes = torch.logspace(-12, 1.6, 2048, dtype=torch.float64).to(dtype)
    x = torch.cat([-magnitudes, magnitudes])
    found = x.new_empty(4, len(x))
    activations_kernel[(1,)](x, found, N=len(x))
    wide = x.double()
    # the exponential's own argument is rounded: relative error |x| times the unit in the last place
    slack = limit * (1 + wide.abs())
    q = torch.exp(-2 * wide.abs())
    truths = (wide.tanh(), 4 * q / (1 + q) ** 2, torch.sigmoid(wide), torch.sigmoid(-wide))
    for result, truth in zip(found.double(), truths, strict=True):
        assert ((result / truth - 1).abs() <= slack).all()


def test_the_share_of_products_falls_with_the_spread() -> None:
    from benchmarks import tanh_range

    for dtype in split_tanh.FORMS:
        shares = [tanh_range.share(dtype, spread) for spread in (0.02, 0.2, 1.0)]
        assert shares[0] == 1 and shares[0] > shares[1] > shares[2] and shares[2] < 0.01
