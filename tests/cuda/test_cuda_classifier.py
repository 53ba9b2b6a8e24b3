"""The classifier's product of csrc/cuda (eq. 10 without f_o's output), as far as it can be proven without a GPU: its
arithmetic, the calls it refuses, how it splits sums, its descriptors, and the machine code it becomes."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from gated_product_build import (
    SHARED_BYTES,
    Descriptor,
    arguments_of,
    by_source,
    call,
    cuobjdump,
    functions_of,
    host_library,
    kernels_of,
    say_proven,
    without_spills,
)

LARGE = 2
H0, H_T, WEIGHT = (1 << power for power in range(41, 44))
"""Where tests/support/native/classifier_product_arguments.cu puts its buffers."""


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    """tests/support/native/classifier_product_host.cpp as a library."""
    loaded = host_library("classifier")
    loaded.refusal.restype = ctypes.c_char_p
    return loaded


@pytest.mark.parametrize("name", ["term_fast", "term_exact"])
def test_terms_are_those_of_float64(host: ctypes.CDLL, name: str) -> None:
    """Sums from 1e-4 of a unit to beyond saturation, where the product of tanh and weight must keep its digits."""
    draw = np.random.default_rng(0)
    sums = (draw.standard_normal(20_000) * np.exp(draw.uniform(-9, 4, 20_000))).astype(np.float32)
    bias, weight = (draw.standard_normal((2, sums.size)) * np.array([[0.01], [1.0]])).astype(np.float32)
    truth = np.tanh((sums + bias).astype(np.float64)) * weight
    np.testing.assert_allclose(call(getattr(host, name), sums, bias, weight), truth, rtol=2**-18)


@pytest.mark.parametrize("name", ["term_fast", "term_exact"])
def test_what_is_not_finite_stays_so(host: ctypes.CDLL, name: str) -> None:
    sums = np.array([np.inf, -np.inf, np.nan, 0.5], np.float32)
    weight = np.array([2, 2, 2, np.nan], np.float32)
    found = call(getattr(host, name), sums, np.zeros(4, np.float32), weight)
    np.testing.assert_equal(found, np.array([2, -2, np.nan, np.nan], np.float32))


def refusal(host: ctypes.CDLL, **changed: int) -> str:
    """Why a product (4 images of 20 classes, D = 72, O = 40) is refused when some arguments are changed."""
    call = {"rows": 80, "dim": 72, "outputs": 40, "classes": 20, "h_T": 1 << 20, "h0": 1 << 19}
    call |= {"weight_o": 1 << 21, "weight_c": 1 << 22} | changed
    return host.refusal(*map(ctypes.c_int64, call.values())).decode()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({}, ""),
        ({"rows": 1, "dim": 8, "outputs": 8, "classes": 1}, ""),
        ({"rows": 0}, "R must lie between 1 and"),
        ({"rows": 2**31 - 20}, "R must lie between 1 and"),
        ({"dim": 68}, "D must be a multiple of 8 from 8 to 2^18, got 68"),
        ({"outputs": 36}, "O must be a multiple of 8 from 8 to 2^18, got 36"),
        ({"outputs": 0}, "O must"),
        ({"classes": 0}, "R must be a multiple of C, got R = 80 and C = 0"),
        ({"classes": 21}, "R must be a multiple of C, got R = 80 and C = 21"),
        ({"h_T": (1 << 20) + 2}, "h_T must be 16-byte aligned, got an address 2 past"),
        ({"h0": (1 << 19) + 8}, "h0 must be 16-byte aligned"),
        ({"weight_o": (1 << 21) + 8}, "weight_o must be 16-byte aligned"),
        ({"weight_c": (1 << 22) + 4}, "weight_c must be 16-byte aligned"),
        *(
            ({name: 0}, "h_T, h0, weight_o and weight_c must be given")
            for name in ("h_T", "h0", "weight_o", "weight_c")
        ),
    ],
)
def test_what_it_cannot_do_is_refused(host: ctypes.CDLL, changed: dict[str, int], named: str) -> None:
    found = refusal(host, **changed)
    assert named in found and bool(named) == bool(found)


@pytest.mark.parametrize(
    ("rows", "outputs", "parts", "wide"),
    [(1, 8, 1, 64), (20, 2048, 32, 64), (80, 72, 2, 64), (64 * 80, 2048, 16, 128), (16 * 500, 2048, 8, 256)],
)
def test_sums_are_split_by_the_columns_of_tiles(
    host: ctypes.CDLL, rows: int, outputs: int, parts: int, wide: int
) -> None:
    """On 132 multiprocessors. 5,120 rows would fill less than half of the largest tile's third wave."""
    found = (ctypes.c_int64 * 2)()
    host.parts(*map(ctypes.c_int64, (rows, outputs, 132)), found)
    assert list(found) == [parts, wide]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arguments_of("classifier", tmp_path_factory.mktemp("classifier_product"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "dim", "outputs", "classes"),
    [(64 * 80, 2048, 2048, 80), (20, 2048, 2048, 20), (500, 72, 40, 500), (1, 8, 8, 1)],
)
def test_descriptors_name_both_pairs_of_operands(
    arguments: Path, host: ctypes.CDLL, rows: int, dim: int, outputs: int, classes: int
) -> None:
    """h_T with the first half of weight_o's columns, h0 with the second, nothing past D. And each row of a tile is held
    by four neighbouring lanes alone."""
    command = [str(arguments), *map(str, (rows, dim, outputs, classes))]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    state, half = ([dim, rows], [2 * dim]), ([dim, outputs], [4 * dim])
    expected = [(H_T, *state), (WEIGHT, *half), (H0, *state), (WEIGHT + 2 * dim, *half)]
    maps: list[Descriptor] = []
    seen: list[tuple[str, int]] = []
    for line in lines:
        name, *numbers = line.split()
        if name == "map":
            maps.append(Descriptor.of(line))
            continue
        tile = int(numbers[0])
        seen.append((name, tile))
        if name == "rows":
            assert numbers[1] == "1"
            continue
        size = (ctypes.c_int64 * 3)()
        host.tile_size(tile, size)
        high, across, cluster = size
        _, taken, blocks, shared = map(int, numbers)
        assert taken == 1 and shared <= SHARED_BYTES and 0 < blocks <= 132 and blocks % cluster == 0
        # C's descriptor is made too, of a valid address, and not used
        assert [(a.address, a.extents, a.strides) for a in maps[:-1]] == expected
        for x, w in (maps[:2], maps[2:4]):
            assert x.box[1] == high and w.box[1] * cluster == across and x.box[0] == w.box[0]
        assert maps[4].address % 16 == 0 and maps[4].address > 0
        assert all(s % 16 == 0 and 0 < s < 2**40 for a in maps for s in a.strides)
        maps = []
    assert seen == [(name, tile) for tile in range(LARGE + 1) for name in ("pairs", "rows")]


@by_source("classifier", ("bf16", 3), ("fp16", 3))
def test_every_kernel_is_what_it_should_be(name: str, count: int, tmp_path: Path) -> None:
    """Kernels without spills that multiply by wgmma and load by the copy engine; nothing of f_o is stored by it, and
    what a thread stores is a sum a row. The one-instruction tanh for bfloat16."""
    program = cuobjdump()
    binary, printed = kernels_of(name, tmp_path, "classifier")
    assert without_spills(printed) == count
    kernels = functions_of(program, binary)
    assert len(kernels) == count
    for symbol, kernel in kernels:
        assert "TwoPairs" in symbol
        assert re.search(r"\bHGMMA\.", kernel) and re.search(r"\bUTMALDG\.", kernel), symbol
        assert not re.search(r"\b(UTMASTG|UTMAREDG|REDG?\.E|ATOMG?\.E)\b", kernel), symbol
        assert len(re.findall(r"\bSTG\.E\b", kernel)) in (2, 4), symbol  # the rows of a thread
        assert ("MUFU.TANH" in kernel) == (name == "bf16"), symbol
        assert ("MUFU.EX2" in kernel) == (name == "fp16"), symbol
    say_proven("classifier", name)
