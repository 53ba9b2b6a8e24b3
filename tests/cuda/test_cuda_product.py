"""The gated products of csrc/cuda, as far as they can be proven without a GPU: their arithmetic, the calls they refuse,
the tile they take, the descriptors they hand to the copy engine, and the machine code they become."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import gated_product_build
import numpy as np
import pytest
from gated_product_build import (
    CSRC,
    PROVEN,
    SHARED_BYTES,
    SM90,
    Descriptor,
    arguments_of,
    by_source,
    call,
    cuobjdump,
    digest,
    functions_of,
    host_library,
    kernels_of,
    say_proven,
    without_spills,
)

SMALL, MEDIUM, LARGE = range(3)
WORKSPACE, WEIGHT, INPUTS, STATE, UPDATE = (1 << power for power in range(41, 46))
"""Where tests/support/native/gated_product_arguments.cu puts its buffers."""


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    """tests/support/native/gated_product_host.cpp as a library."""
    loaded = host_library("gated")
    loaded.refusal.restype = loaded.refusal8.restype = ctypes.c_char_p
    return loaded


def values(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Sums over the whole range of σ and tanh, small ones included, with biases, states and update gates."""
    draw = np.random.default_rng(seed)
    wide = draw.standard_normal(20_000) * np.exp(draw.uniform(-9, 4, 20_000))
    bias, h = draw.standard_normal((2, wide.size)) * np.array([[0.01], [1.0]])
    return tuple(a.astype(np.float32) for a in (wide, bias, h, draw.uniform(0, 1, wide.size)))


def test_gates_are_those_of_float64(host: ctypes.CDLL) -> None:
    sums, bias, h, _ = values()
    truth = 1 / (1 + np.exp(-(sums + bias).astype(np.float64)))
    normal = truth > np.finfo(np.float32).tiny
    assert normal.sum() > 19_000 and (~normal).sum() > 10
    for batch, factor in ((0, 1.0), (1, h.astype(np.float64))):
        found, expected = call(host.gate, sums, bias, h, batch=batch), truth * factor
        np.testing.assert_allclose(found[normal], expected[normal], rtol=4e-7)
        assert np.abs(found[~normal]).max() < 1e-36


@pytest.mark.parametrize("name", ["blend_fast", "blend_exact"])
def test_blends_are_those_of_float64(host: ctypes.CDLL, name: str) -> None:
    sums, bias, h, z = values(1)
    n = np.tanh((sums + bias).astype(np.float64))
    kept, new = (1 - z.astype(np.float64)) * h, z * n
    error = np.abs(call(getattr(host, name), sums, bias, h, z) - (kept + new))
    assert (error / (np.abs(kept) + np.abs(new))).max() < 1.5e-6


def test_candidate_is_accurate_for_the_smallest_sums(host: ctypes.CDLL) -> None:
    """z = 1 and h = 0 leave tanh alone: it must not lose its digits where 1 - 2 / (1 + e^2x) cancels."""
    x = np.geomspace(1e-30, 30, 30_000).astype(np.float32)
    x = np.concatenate([x, -x, np.zeros(1, np.float32)])
    found = call(host.blend_exact, x, np.zeros_like(x), np.zeros_like(x), np.ones_like(x))
    np.testing.assert_allclose(found, np.tanh(x.astype(np.float64)), rtol=2**-19, atol=0)


def test_what_is_not_finite_stays_where_it_belongs(host: ctypes.CDLL) -> None:
    one = np.ones(1, np.float32)
    for bad in (np.inf, -np.inf, np.nan):
        h = one * np.float32(bad)
        assert call(host.gate, 0 * one, 0 * one, h, batch=0) == 0.5  # z does not see h
        np.testing.assert_equal(call(host.gate, 0 * one, 0 * one, h, batch=1), h)
        for name in ("blend_fast", "blend_exact"):
            tanh = call(getattr(host, name), h, 0 * one, 0 * one, one)
            np.testing.assert_equal(tanh, np.tanh(h))
    extreme = np.array([-np.inf, np.inf, -1e4, 1e4], np.float32)
    saturated = call(host.gate, extreme, *np.ones((2, 4), np.float32), batch=0)
    np.testing.assert_equal(saturated, np.array([0, 1, 0, 1], np.float32))


def test_scaled_gates_are_those_of_float64(host: ctypes.CDLL) -> None:
    sums, bias, h, z = values(2)
    scale = np.exp(np.random.default_rng(3).uniform(-7, 0, sums.size)).astype(np.float32)
    image = np.exp2(np.random.default_rng(4).integers(-8, 1, sums.size)).astype(np.float32)
    argument = (sums * scale * image + bias).astype(np.float64)
    gate, n = 1 / (1 + np.exp(-argument)), np.tanh(argument)
    np.testing.assert_allclose(call(host.scaled_update, sums, scale, bias, image), gate, rtol=4e-7)
    reset = call(host.scaled_reset, sums, scale, bias, image, h)
    np.testing.assert_allclose(reset, gate * h / image, rtol=4e-7)
    kept, new = (1 - z.astype(np.float64)) * h, z * n
    error = np.abs(call(host.scaled_blend, sums, scale, bias, image, h, z) - (kept + new))
    assert (error / (np.abs(kept) + np.abs(new))).max() < 1.5e-6
    zero, one, large = (np.full(1, value, np.float32) for value in (0, 1, 2.0**100))
    assert call(host.scaled_update, zero, large, zero, large) == 0.5  # the product of both scales is infinite
    assert call(host.scaled_reset, zero, large, zero, large, large) == 0.5
    assert call(host.scaled_blend, zero, large, zero, large, one, one) == 0


def refusal(host: ctypes.CDLL, **changed: int) -> str:
    """Why a blend (R = 80, D = 72, in place at address 2^20) is refused when some of its arguments are changed."""
    call = {"rows": 80, "dim": 72, "columns": 1 << 20, "stride": 360, "weight": 1 << 30, "out": (1 << 20) + 144}
    call |= {"out_stride": 360, "blend": 1} | changed
    blend = call.pop("blend")
    return host.refusal(*(ctypes.c_int64(value) for value in call.values()), ctypes.c_int(blend)).decode()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rows": 0}, "R must lie between 1 and"),
        ({"rows": 2**31 - 1}, "R must lie between 1 and"),
        ({"dim": 68}, "D must be a multiple of 8 from 8 to 2^18, got 68"),
        ({"dim": 0}, "D must"),
        ({"stride": 352}, "the workspace's row stride must be a multiple of 8 from 360"),
        ({"stride": 364}, "the workspace's row stride"),
        ({"columns": (1 << 20) + 8, "blend": 0}, "the workspace must be 16-byte aligned, got an address 8 past"),
        ({"weight": (1 << 30) + 2}, "the weight must be 16-byte aligned"),
        ({"weight": 0}, "got a null pointer"),
        ({"out": 0}, "got a null pointer"),
        ({"out": (1 << 20) + 140}, "the output must be 16-byte aligned"),
        ({"out": 1 << 25, "out_stride": 64}, "the output's row stride must be a multiple of 8 from 72"),
        ({"out": 1 << 20}, "the blend's output must be h's own column or lie outside the workspace"),
        ({"out_stride": 368}, "the blend's output must be h's own column"),
        ({"out": (1 << 20) - 16, "out_stride": 72}, "the blend's output must be h's own column"),
        ({"out": (1 << 20) + 2 * 80 * 360 - 16, "out_stride": 72}, "the blend's output must be h's own column"),
    ],
)
def test_what_the_copy_engine_cannot_address_is_refused(host: ctypes.CDLL, changed: dict[str, int], named: str) -> None:
    assert named in refusal(host, **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"rows": 1, "dim": 8, "out": 1 << 25, "out_stride": 8},
        {"stride": 368, "out_stride": 368},
        {"out": (1 << 20) + 2 * 80 * 360, "out_stride": 72},
        {"out": (1 << 20) - 2 * 80 * 72, "out_stride": 72},
        {"out": 0, "blend": 0},
    ],
)
def test_what_can_be_addressed_is_served(host: ctypes.CDLL, changed: dict[str, int]) -> None:
    assert refusal(host, **changed) == ""


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, ""),
        ({"blend": 0, "out": 0}, ""),
        ({"dim": 72}, "D must be a multiple of 16 in e4m3, got 72"),
        ({"rows": 0}, "R must lie between 1 and"),
        ({"inputs_stride": 304}, "the inputs' row stride must be a multiple of 16 from 320 to 2^31, got 304"),
        ({"inputs_stride": 328}, "the inputs' row stride"),
        ({"inputs": (1 << 21) + 4}, "X must be 16-byte aligned, got an address 4 past"),
        ({"weight": 0}, "got a null pointer"),
        ({"state_stride": 72}, "the state's row stride must be a multiple of 8 from 80"),
        ({"z": (1 << 23) + 2}, "z must be 16-byte aligned"),
    ],
)
def test_e4m3_is_served_or_refused(host: ctypes.CDLL, changed: dict[str, int], named: str) -> None:
    call = {"rows": 64, "dim": 80, "inputs": 1 << 21, "inputs_stride": 320, "weight": 1 << 22, "z": 1 << 23}
    call |= {"out": 1 << 24, "state_stride": 160, "blend": 1} | changed
    found = host.refusal8(*map(ctypes.c_int64, call.values())).decode()
    assert named in found and bool(named) == bool(found)


def test_tiles_grow_with_the_rows(host: ctypes.CDLL) -> None:
    def tile(rows: int, dim: int, batches: int, multiprocessors: int = 132) -> int:
        return host.tile(*map(ctypes.c_int64, (rows, dim, batches, multiprocessors)))

    for dim in (72, 512, 2048):
        for batches in (1, 2):
            assert tile(1, dim, batches) == tile(20, dim, batches) == tile(64, dim, batches) == SMALL
            assert tile(200_000, dim, batches) == (LARGE if dim > 128 else MEDIUM)
    assert tile(64 * 80, 2048, 2) == LARGE and tile(16 * 500, 2048, 2) == LARGE
    # 100 large tiles for the gates: one wave of 132 multiprocessors, three of 44
    assert tile(128 * 10, 5 * 256, 2, 132) == LARGE
    # the same work as one wave and a bit of large tiles is better dealt out in smaller ones
    assert tile(128 * 10, 7 * 256, 2, 132) == MEDIUM


def expected_descriptors(product: str, rows: int, dim: int, row: int) -> list[tuple[int, list[int], list[int]]]:
    """Address, extents and strides of X, W, what the epilogue loads as C, the output, and z, from the definition of the
    products; ``row`` is the stride of the workspace in bytes."""
    column, e4m3_row = 2 * dim, 4 * dim
    state, long = [dim, rows], [3 * dim, rows]
    h, z = (STATE, state, [row]), (UPDATE, state, [row])
    return {
        "gates": [
            (WORKSPACE + column, long, [row]),
            (WEIGHT, [3 * dim, dim, 2], [6 * dim, 6 * dim * dim]),
            (WORKSPACE + column, state, [row]),
            (WORKSPACE, [*state, 2], [row, 4 * column]),
        ],
        "blend": [
            (WORKSPACE + 2 * column, long, [row]),
            (WEIGHT, [3 * dim, dim], [6 * dim]),
            (WORKSPACE + column, state, [row]),
            (WORKSPACE + column, state, [row]),
            (WORKSPACE, state, [row]),
        ],
        "update8": [(INPUTS, long, [e4m3_row]), (WEIGHT, [3 * dim, dim], [3 * dim]), z],
        "reset8": [
            (INPUTS, long, [e4m3_row]),
            (WEIGHT + 3 * dim * dim, [3 * dim, dim], [3 * dim]),
            h,
            (INPUTS + 3 * dim, state, [e4m3_row]),
        ],
        "blend8": [(INPUTS + dim, long, [e4m3_row]), (WEIGHT, [3 * dim, dim], [3 * dim]), h, h, z],
    }[product]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arguments_of("gated", tmp_path_factory.mktemp("gated_product"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "dim", "stride"),
    [
        (64 * 80, 2048, 5 * 2048),
        (16 * 500, 2048, 5 * 2048),
        (20, 2048, 5 * 2048),
        (20, 512, 5 * 512),
        (500, 72, 368),
        (1, 8, 40),
    ],
)
def test_descriptors_name_the_right_columns(
    arguments: Path, host: ctypes.CDLL, rows: int, dim: int, stride: int
) -> None:
    """X and h without a batch, so that z and r read the same; W and the outputs with one; nothing past 3D or D."""
    command = [str(arguments), str(rows), str(dim), str(stride)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    maps: list[Descriptor] = []
    seen = []
    for line in lines:
        if line.startswith("map "):
            maps.append(Descriptor.of(line))
            continue
        product, tile, taken, blocks, shared = line.split()
        size = (ctypes.c_int64 * 3)()
        host.tile_size(int(tile), size)
        high, across, cluster = size
        assert taken == "1" and int(shared) <= SHARED_BYTES
        assert 0 < int(blocks) <= 132 and int(blocks) % cluster == 0
        assert [(a.address, a.extents, a.strides) for a in maps] == expected_descriptors(product, rows, dim, 2 * stride)
        x, w, *rest = maps
        assert x.box[1] == high and w.box[1] * cluster == across and x.box[0] == w.box[0]
        for one in maps:
            assert all(s % 16 == 0 and 0 < s < 2**40 for s in one.strides) and all(0 < b <= 256 for b in one.box)
            assert one.box[2:] in ([], [1])
        assert all(high % a.box[1] == 0 and across % a.box[0] == 0 for a in rest)
        seen.append((product, int(tile)))
        maps = []
    assert not maps
    products = ["gates", "blend", *(["update8", "reset8", "blend8"] if dim % 16 == 0 else [])]
    assert seen == [(product, tile) for tile in (SMALL, MEDIUM, LARGE) for product in products]


@by_source("gated", ("bf16", 6), ("fp16", 6), ("fp8", 9))
def test_every_kernel_is_what_it_should_be(name: str, count: int, tmp_path: Path) -> None:
    """Kernels without spills that multiply by wgmma, load and store by the copy engine; the one-instruction tanh where
    the blend's output is bfloat16."""
    program = cuobjdump()
    binary, printed = kernels_of(name, tmp_path)
    assert without_spills(printed) == count
    kernels = functions_of(program, binary)
    assert len(kernels) == count
    blends = 0
    for symbol, kernel in kernels:
        blend = "Blend" in symbol
        blends += blend
        assert re.search(r"\bQGMMA\." if name == "fp8" else r"\bHGMMA\.", kernel), symbol
        assert re.search(r"\bUTMALDG\.", kernel) and re.search(r"\bUTMASTG\.", kernel), symbol
        assert ("MUFU.TANH" in kernel) == (blend and name != "fp16"), symbol
        assert ("MUFU.EX2" in kernel) == (not blend or name == "fp16"), symbol
    assert blends == 3
    say_proven("gated", name)


def test_a_change_of_what_kernels_are_made_of_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line is of a source of kernels; a changed header brings its proof into `make test-all`."""
    kernels = [path.stem for path in sorted(SM90.glob("*_product_*.cu"))]
    assert {line.split()[0] for line in PROVEN.read_text().splitlines()} <= set(kernels)
    tree = Path(shutil.copytree(CSRC, tmp_path / "csrc"))
    sm90 = tree / "cuda" / "sm90"
    for name, value in (("CSRC", tree), ("SM90", sm90), ("PROVEN", sm90 / "proven.txt")):
        monkeypatch.setattr(gated_product_build, name, value)

    def mark() -> str:
        (case,) = by_source("gated", ("bf16", 6)).mark.args[1]
        return str(case.marks[0].name)

    (sm90 / "proven.txt").write_text(f"gated_product_bf16 {digest(sm90 / 'gated_product_bf16.cu')}\n")
    assert mark() == "long"
    with (sm90 / "gated_product_plan.h").open("a") as file:
        file.write("// changed\n")
    assert mark() == "thorough"
    with pytest.warns(UserWarning, match="write into .*proven.txt: gated_product_bf16"):
        say_proven("gated", "bf16")
