"""Numbers and gate weights in e4m3: rounding against a search of all codes, scales against exact arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from e4m3_codes import finite_codes, nearest

from ssgrl_fast.modules.fp8 import quantize_gates
from ssgrl_fast.reference import e4m3

F32, BF16 = torch.float32, torch.bfloat16
DIM, CLASSES = 32, 5


def gates(**changed: object) -> e4m3.Fp8Gates:
    draw = torch.Generator().manual_seed(0)
    adjacency = torch.rand(CLASSES, CLASSES, generator=draw)
    weight_zr, weight_h = (torch.randn(n * DIM, 3 * DIM, generator=draw) / 8 for n in (2, 1))
    given = {"weight_zr": weight_zr, "bias_zr": None, "weight_h": weight_h, "bias_h": None, "adjacency": adjacency}
    return quantize_gates(**(given | changed))  # type: ignore[arg-type]


def test_every_code_is_kept() -> None:
    codes = finite_codes()
    assert len(codes) == 254
    assert torch.equal(e4m3.to_e4m3(codes.float()).double(), codes)


def test_rounding_is_to_the_nearest_and_ties_go_to_even() -> None:
    draw = torch.Generator().manual_seed(1)
    spread = torch.randn(20_000, generator=draw) * torch.exp2(torch.randint(-12, 10, (20_000,), generator=draw).float())
    table = finite_codes().unique().float()
    ties = (table[1:] + table[:-1]) / 2
    values = torch.cat([spread, ties, torch.tensor([448.0, 460.0, 1e30, -1e30, math.inf, -math.inf])])
    assert torch.equal(e4m3.to_e4m3(values).double(), nearest(values.double().clamp(-448, 448)))
    assert e4m3.to_e4m3(torch.tensor(math.nan)).float().isnan()


def test_powers_are_exact_and_the_least() -> None:
    exponents = torch.arange(-126, 128)
    powers = e4m3.power_of_two(exponents)
    assert powers.tolist() == [2.0**e for e in exponents.tolist()]
    assert torch.equal(e4m3.exponent_from(powers), exponents)
    above = torch.nextafter(powers[1:-1], torch.tensor(math.inf))
    below = torch.nextafter(powers[1:-1], torch.tensor(0.0))
    assert torch.equal(e4m3.exponent_from(above), exponents[1:-1] + 1)
    assert torch.equal(e4m3.exponent_from(below), exponents[1:-1])


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_the_scale_of_an_image_is_of_its_largest_state_and_no_other_image(dtype: torch.dtype) -> None:
    largest = [0.0, 0.5, 1.0, 1.5, 2.0, 2.015625, 1e30, torch.finfo(BF16).max]
    h0 = torch.zeros(len(largest) + 2, 3, 16, dtype=dtype)
    h0[range(len(largest)), 1, 7] = -torch.tensor(largest, dtype=dtype)
    h0[-2, 0, 0], h0[-1, 2, 15] = math.inf, math.nan
    scale = e4m3.state_scale(h0).flatten()
    expected = [2.0 ** (math.ceil(math.log2(max(1.0, h0[i].abs().max().item()))) - 8) for i in range(len(largest))]
    assert scale.dtype == F32 and scale[:-2].tolist() == expected and scale[-2:].isnan().all()
    assert (h0[:-2].double().abs().amax((1, 2)) / scale[:-2].double() <= 256).all()


def test_weights_lose_their_rounding_and_no_more() -> None:
    draw = torch.Generator().manual_seed(2)
    rows = torch.exp2(torch.randint(-20, 20, (2 * DIM, 1), generator=draw).float())
    weight_zr = torch.randn(2 * DIM, 3 * DIM, generator=draw) * rows
    found = gates(weight_zr=weight_zr, adjacency=torch.eye(CLASSES))
    assert (found.inward, found.outward) == (1.0, 1.0)
    stored = found.weight_zr.double() * found.scale_zr.double()[:, None]
    smallest = 2.0**-10 * found.scale_zr.double()[:, None]  # half a step of the subnormals
    wrong = (stored - weight_zr.double()).abs()
    assert (wrong <= torch.maximum(weight_zr.double().abs() * 2**-4, smallest)).all()
    assert (found.weight_zr.float().abs().amax(1) > 112).all(), "a row does not fill e4m3's range"
    assert (torch.frexp(found.scale_zr)[0] == 0.5).all() and found.scale_zr.dtype == F32


def test_a_row_of_zeros_stays_zero() -> None:
    weight_h = torch.ones(DIM, 3 * DIM)
    weight_h[3] = 0
    found = gates(weight_h=weight_h)
    assert not found.weight_h[3].float().any() and torch.isfinite(found.scale_h).all()


def test_sums_of_the_graph_bound_its_messages() -> None:
    adjacency = torch.tensor([[0.0, 3.0, 2.0], [0.25, 0.0, 0.0], [0.25, -0.5, 0.0]])  # rows to 5, columns to 3.5
    found = gates(adjacency=adjacency)
    assert (found.inward, found.outward) == (8.0, 4.0)
    none, little = gates(adjacency=torch.zeros(3, 3)), gates(adjacency=torch.full((3, 3), 1e-44))
    assert (little.inward, little.outward) == (2.0**-100, 2.0**-100)
    assert (none.inward, none.outward) == (1.0, 1.0)
    plain = gates(adjacency=torch.eye(3))
    columns = [slice(0, DIM), slice(DIM, 2 * DIM), slice(2 * DIM, 3 * DIM)]
    for name, factors in (("zr", (1, 8, 4)), ("h", (8, 4, 1))):
        mine, other = (
            getattr(g, f"weight_{name}").float() * getattr(g, f"scale_{name}")[:, None] for g in (found, plain)
        )
        for part, factor in zip(columns, factors, strict=True):
            assert (mine[:, part] - factor * other[:, part]).abs().max() <= 2**-3 * factor * other[:, part].abs().max()


def test_the_published_reset_gate_takes_the_update_gates_block() -> None:
    weight_zr = torch.randn(2 * DIM, 3 * DIM, generator=torch.Generator().manual_seed(3))
    tied = gates(weight_zr=weight_zr, reset_gate="official")
    replaced = weight_zr.clone()
    replaced[DIM:, :DIM] = weight_zr[:DIM, :DIM]
    other = gates(weight_zr=replaced)
    assert torch.equal(tied.weight_zr.float(), other.weight_zr.float()) and torch.equal(tied.scale_zr, other.scale_zr)


def test_a_missing_bias_beside_a_given_one_is_zero() -> None:
    found = gates(bias_h=torch.ones(DIM))
    assert found.bias_zr is not None and not found.bias_zr.any() and found.bias_zr.dtype == BF16
    assert found.bias_h is not None and found.bias_h.dtype == BF16
    assert gates().bias_zr is None and gates().bias_h is None


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"weight_zr": torch.ones(6, 9)}, ValueError, "weight_h must be"),
        ({"weight_zr": torch.ones(16, 24), "weight_h": torch.ones(8, 24)}, ValueError, "multiple of 16, got D = 8"),
        ({"weight_h": torch.full((DIM, 3 * DIM), math.nan)}, ValueError, "weight_h holds values that are not finite"),
        ({"weight_zr": torch.full((2 * DIM, 3 * DIM), 3e38)}, ValueError, "weight_zr holds values .* too large"),
        ({"adjacency": torch.full((3, 3), math.inf)}, ValueError, "adjacency holds values that are not finite"),
        ({"adjacency": torch.full((3, 3), math.nan)}, ValueError, "adjacency holds values that are not finite"),
        ({"adjacency": torch.full((4, 4), 1e38)}, ValueError, r"adjacency's sums must be at most 2\^100, got 4e\+38"),
        ({"adjacency": torch.full((4, 4), 1e200, dtype=torch.float64)}, ValueError, "adjacency's sums must be at most"),
        ({"adjacency": torch.ones(0, 0)}, ValueError, r"adjacency must have at least one class, got \[0, 0\]"),
        ({"bias_h": torch.full((DIM,), 3.4e38)}, ValueError, "bias_h holds values .* too large for bfloat16"),
        ({"adjacency": torch.ones(3, 4)}, ValueError, r"adjacency must be \[C, C\]"),
        ({"adjacency": torch.ones(3, 3, dtype=torch.int64)}, TypeError, "adjacency must be a floating-point"),
        ({"reset_gate": "none"}, ValueError, "reset_gate must be one of"),
        ({"bias_h": torch.ones(DIM, device="meta")}, ValueError, "bias_h is on meta, expected cpu"),
        (
            {
                "weight_zr": torch.ones(2 * DIM, 3 * DIM, device="meta"),
                "weight_h": torch.ones(DIM, 3 * DIM, device="meta"),
                "adjacency": torch.ones(3, 3, device="meta"),
            },
            ValueError,
            "weight_zr is on meta, and gates are quantized from values",
        ),
    ],
)
def test_what_cannot_be_quantized_is_refused(changed: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        gates(**changed)
