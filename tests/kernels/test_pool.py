"""Softmax and pooling in one kernel (kernels/pool.py) against float64."""

from __future__ import annotations

import operations
import pytest
import torch

pytest.importorskip("triton")
from ssgrl_fast.kernels import launch, pool, tile_tables

pytestmark = pytest.mark.skipif(
    not operations.runs("triton", torch.float16), reason="needs Triton's interpreter: TRITON_INTERPRET=1"
)


@pytest.mark.parametrize("processors", [1, 8, 1000], ids=["wide", "wide_shared", "few"])
@pytest.mark.parametrize(("images", "classes", "locations", "dim", "parts"), [(2, 67, 81, 144, 3), (3, 9, 17, 16, 5)])
def test_softmax_and_pooling(
    images: int, classes: int, locations: int, dim: int, parts: int, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More and fewer locations than a tile, a short last tile of each extent, scores in parts."""
    monkeypatch.setattr(launch, "multiprocessors", lambda device: processors)
    torch.manual_seed(0)
    scores, features = torch.randn(parts, images, classes, locations) * 4, torch.randn(images, locations, dim).half()
    scores[:, 0, 3] += 1e4  # far from zero, where an exponential alone overflows
    pooled, attention = pool.pool(scores, features)
    truth = sum(scores).double().softmax(-1)  # the parts are added in float32
    assert (attention - truth).abs().max() <= 1e-6
    expected = truth @ features.double()
    assert (pooled - expected).abs().max() <= 2.0**-9 * expected.abs().max()
    assert torch.allclose(attention.sum(-1), torch.ones(images, classes), atol=1e-6)


def test_what_is_not_finite_stays_in_its_row() -> None:
    torch.manual_seed(0)
    scores, features = torch.randn(2, 2, 5, 40), torch.randn(2, 40, 32).half()
    scores[1, 0, 2, 7] = float("nan")
    features[1, 3, 4] = float("inf")
    pooled, attention = pool.pool(scores, features)
    assert attention[0, 2].isnan().all() and pooled[0, 2].isnan().all()
    rest = torch.tensor([0, 1, 3, 4])
    assert attention[0, rest].isfinite().all() and pooled[0, rest].isfinite().all()
    assert pooled[1, :, 4].isinf().all() and pooled[1, :, :4].isfinite().all() and pooled[1, :, 5:].isfinite().all()


@pytest.mark.parametrize("locations", [40, 100])
def test_rows_that_begin_at_minus_infinity(locations: int) -> None:
    """Scores of p beyond 1e38 overflow at some locations alone: at all of the first tile, of the last, or of a row."""
    scores, features = torch.randn(1, 1, 4, locations), torch.randn(1, locations, 16).half()
    scores[..., 1, :35] = scores[..., 2, 35:] = scores[..., 3, :] = -float("inf")
    pooled, attention = pool.pool(scores, features)
    truth = scores[0].double().softmax(-1)
    assert attention[0, 3].isnan().all() and pooled[0, 3].isnan().all() and truth[0, 3].isnan().all()
    assert (attention - truth)[:, :3].abs().max() <= 1e-6
    assert torch.allclose(pooled[:, :3].double(), (truth @ features.double())[:, :3], rtol=2.0**-9, atol=2.0**-9)


def test_other_features_are_left_to_the_vendor() -> None:
    served = {dim: pool.serves(torch.empty(1, 2, dim, dtype=torch.bfloat16)) for dim in (16, 24, 2048)}
    assert served == {16: True, 24: False, 2048: True}
    assert not pool.serves(torch.empty(1, 2, 16))
    table = tile_tables.TABLES["sm_90"]
    assert table["pool"]["BLOCK_L"] == table["pool_few"]["BLOCK_L"]  # both read rows as WHOLE says
