"""No test meets a plan that another one made: some change what plans are made from, such as tile tables."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def no_plans() -> Iterator[None]:
    if find_spec("triton") is None:
        yield
        return
    from ssgrl_fast.kernels import replay

    replay.forget()
    yield
    replay.forget()
