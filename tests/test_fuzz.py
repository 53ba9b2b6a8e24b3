"""Drawn extents, variants and layouts: every operation on every backend against float64, beyond the named shapes.

Six seeds a draw are one pool: a single element that all but cancels has no relative error to speak of.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operations import STEMS, VARIANTS, backend_params, compare, hold
from shapes import LAYOUTS, Shape

extents = st.integers(min_value=1, max_value=40)
drawn_shapes = st.builds(
    Shape,
    name=st.just("drawn"),
    B=st.integers(min_value=0, max_value=3),
    L=extents,
    C=extents,
    D=extents,
    K=extents,
    O=extents,
    T=st.integers(min_value=1, max_value=4),
    saturated=st.booleans(),
)


@pytest.mark.parametrize("backend", backend_params())
@pytest.mark.parametrize("stem", STEMS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_parity_on_drawn_shapes(stem: str, backend: str, data: st.DataObject) -> None:
    shape = data.draw(drawn_shapes, label="shape")
    variant = data.draw(st.sampled_from(VARIANTS[stem]), label="variant")
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32]), label="dtype")
    layout = data.draw(st.sampled_from([None, *LAYOUTS]), label="layout")
    hold(stem, dtype, [compare(stem, shape, dtype, backend, variant, seed, layout) for seed in range(6)], pooled=True)
