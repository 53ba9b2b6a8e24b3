"""Which cases `make test` runs (tests/support/selection.py): every value of every parameter, for each backend."""

from __future__ import annotations

from itertools import product

import pytest
from selection import covering

pytest_plugins = ["pytester"]

PARAMETRISED = """
import pytest

@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", ["tiny", "odd", "wide"])
def test_product(shape, dtype, backend):
    pass

@pytest.mark.parametrize(("name", "message"), [("u", "shape"), ("u", "dtype"), ("v", "shape")])
def test_table(name, message):
    pass

def test_alone():
    pass
"""
CONFTEST = """
import pytest
from selection import mark_thorough

def pytest_configure(config):
    config.addinivalue_line("markers", "thorough: x")

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    mark_thorough(items)
"""


@pytest.mark.parametrize("sizes", [(1,), (16,), (2, 8, 16), (2, 2, 2), (3, 3, 4), (1, 1)], ids=str)
def test_as_few_cases_as_the_longest_list_has_values_cover_a_product(sizes: tuple[int, ...]) -> None:
    cases = [dict(enumerate(values)) for values in product(*map(range, sizes))]
    kept = [cases[place] for place in covering([{str(k): v for k, v in case.items()} for case in cases])]
    assert len(kept) == max(sizes)
    for axis, size in enumerate(sizes):
        assert {case[axis] for case in kept} == set(range(size))


def test_values_are_paired_anew_where_there_is_room() -> None:
    """Each of four variants is met by both dtypes among eight shapes."""
    cases = [{"shape": s, "variant": v, "dtype": d} for s, v, d in product(range(8), range(4), range(2))]
    kept = [cases[place] for place in covering(cases)]
    assert {(case["variant"], case["dtype"]) for case in kept} == set(product(range(4), range(2)))


def test_each_backend_is_covered_anew_and_tables_keep_their_rows(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(PARAMETRISED)
    items, _ = pytester.inline_genitems("-p", "no:cacheprovider")
    quick = [item.name for item in items if item.get_closest_marker("thorough") is None]
    assert [name for name in quick if not name.startswith("test_product")] == [
        "test_table[u-shape]",
        "test_table[u-dtype]",
        "test_table[v-shape]",
        "test_alone",
    ]
    for backend in ("cpu", "cuda"):
        mine = [name for name in quick if name.startswith("test_product") and name.endswith(f"-{backend}]")]
        assert len(mine) == 3
        assert all(any(value in name for name in mine) for value in ("tiny", "odd", "wide", "float32", "float64"))
