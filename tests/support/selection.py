"""Which cases of a parametrised test `make test` runs, and which only `make test-all` does.

A test over shapes, variants, dtypes and backends has hundreds of cases. `make test` takes so many of them that every
value of every parameter occurs: 16 shapes x 8 variants x 2 dtypes are 256 cases, of which it runs 16. It does so for
each backend and each operation. The others are marked ``thorough``; a slow test is marked by hand,
``@pytest.mark.thorough``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import pytest

FOR_EACH = ("backend", "stem")
"""Parameters for each of whose values the other parameters are covered anew."""

Case = Mapping[str, object]
"""What a case takes from each list of values that its test is parametrised by; the list's names are the key."""


def mark_thorough(items: Iterable[pytest.Item]) -> None:
    """Mark the cases of parametrised tests that only `make test-all` runs."""
    groups: dict[tuple[str, ...], list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            fixed = (str(item.callspec.params.get(name)) for name in FOR_EACH)
            groups[(item.nodeid.partition("[")[0], *fixed)].append(item)
    for group in groups.values():
        kept = covering([case_of(item) for item in group])
        for place, item in enumerate(group):
            if place not in kept:
                item.add_marker("thorough")


def case_of(item: pytest.Function) -> Case:
    """Names that one ``parametrize`` gives together, ``("stem", "name")``, are one parameter."""
    params, case = dict(item.callspec.params), {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0]
        case[str(mark.args[0])] = tuple(id(params.pop(name.strip())) for name in names)
    return case | {name: id(value) for name, value in params.items()}  # of parametrised fixtures


def covering(cases: Sequence[Case]) -> set[int]:
    """The places of some cases that have every value of every parameter between them.

    One after another, the case with a new value whose values, and after these whose pairs of values, were taken least.
    """
    values = [list(case.items()) for case in cases]
    pairs = [list(combinations(each, 2)) for each in values]
    wanted = {value for each in values for value in each}
    taken: Counter[object] = Counter()
    kept: set[int] = set()
    while missing := {value for value in wanted if not taken[value]}:
        candidates = [place for place, each in enumerate(values) if not missing.isdisjoint(each)]
        best = min(candidates, key=lambda i: (sum(taken[v] for v in values[i]), sum(taken[p] for p in pairs[i])))
        taken.update([*values[best], *pairs[best]])
        kept.add(best)
    return kept or set(range(len(cases)))
