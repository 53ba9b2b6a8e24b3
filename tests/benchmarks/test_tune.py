"""The search for tiles: what it tries, what it times, and that it says so where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

triton = pytest.importorskip("triton")
pytest.importorskip("rich")

from benchmarks import run, tune  # noqa: E402
from ssgrl_fast.kernels import tile_tables  # noqa: E402


def test_candidates_are_the_tile_and_its_neighbours_once_each() -> None:
    found = list(tune.candidates({"BLOCK_C": 1, "BLOCK_O": 256, "num_warps": 4}))
    extents = {(c["BLOCK_C"], c["BLOCK_O"]) for c in found}
    assert extents == {(1, 256), (2, 256), (1, 512), (1, 128)}
    assert {c["num_warps"] for c in found} == set(tune.WARPS)
    assert len(found) == len(extents) * len(tune.WARPS)


def test_the_fastest_is_chosen_and_the_table_is_put_back() -> None:
    own = {"BLOCK_O": 64, "num_warps": 4}
    table = {"classify": own}

    def clock(call: tune.Call) -> float:
        call()
        tile = table["classify"]
        if tile["num_warps"] == 8:
            raise triton.runtime.errors.OutOfResources(2, 1, "shared memory")
        return abs(tile["BLOCK_O"] - 128) + tile["num_warps"]

    assert tune.best("classify", lambda: None, table, clock) == {"BLOCK_O": 128, "num_warps": 1}
    assert table == {"classify": own}


def test_tiles_that_never_fit_are_an_error() -> None:
    def clock(call: tune.Call) -> float:
        raise triton.runtime.errors.OutOfResources(2, 1, "shared memory")

    with pytest.raises(RuntimeError, match="no tiles of pool run on this GPU"):
        tune.best("pool", lambda: None, {"pool": {"BLOCK_C": 8}}, clock)


def test_each_entry_is_timed_by_the_first_call_that_looks_it_up() -> None:
    tensor = torch.zeros(1, dtype=torch.float16)

    def forward() -> None:
        tile_tables.tiles("rows", tensor)

    def backward() -> None:
        tile_tables.tiles("rows", tensor)
        tile_tables.tiles("aggregate", tensor)

    with tile_tables.assumed("sm_90"):
        table = tile_tables.TABLES["sm_90"]
        assert tune.users({"graph_propagation": (forward, backward)}, "sm_90") == {
            "rows/float16": forward,
            "aggregate": backward,
        }
        assert tile_tables.TABLES["sm_90"] is table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("main", [tune.main, lambda options: run.main(["--tune", *options])], ids=["tune", "run"])
def test_without_a_gpu_it_says_so(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dtype", "float16"]) == 1
    assert "needs a GPU" in capsys.readouterr().err
