"""What a signature has found right once is not looked at again, and nothing else passes for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssgrl_fast.functional import arguments
from ssgrl_fast.functional.arguments import Signature

X, P = torch.ones(2, 3, 4), torch.ones(4)


@pytest.fixture
def signature() -> Signature:
    """Of an operation that has been called with X and P, and with X alone."""
    made = Signature("op", {"x": "B L K", "p": "K?"}, leader="x", exact=("p",))
    for p in (P, None):
        assert made.check(X, p) == (False, (X, p))
    return made


WRONG: dict[str, tuple[type[Exception], str, Callable[[], tuple[Any, Any]]]] = {
    "size": (ValueError, r"p must be \[K\], got \[5\]: expected K = 4", lambda: (X, torch.ones(5))),
    "dimensions": (ValueError, "x must have 3 dimensions", lambda: (X[0], P)),
    "dtype": (TypeError, "p is torch.float64, expected torch.float32", lambda: (X, P.double())),
    "integers": (TypeError, "x must be a floating-point tensor", lambda: (X.int(), P)),
    "device": (ValueError, "p is on meta, expected cpu", lambda: (X, P.to("meta"))),
    "sparse": (TypeError, "x must be a dense tensor .*, got torch.sparse_coo", lambda: (X.to_sparse(), P)),
    "mkldnn": (TypeError, "x must be a dense tensor .*, got torch._mkldnn", lambda: (X.to_mkldnn(), P)),
    "nested": (TypeError, "x must be a dense tensor .*, got a nested", lambda: (torch.nested.nested_tensor([*X]), P)),
    "kind": (TypeError, "x must be a torch.Tensor", lambda: (X.numpy(), P)),
    "nothing": (TypeError, "x must be a torch.Tensor .*, got None", lambda: (None, P)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_argument_is_refused_after_right_ones(wrong: str, signature: Signature) -> None:
    error, message, make = WRONG[wrong]
    for _ in range(2):  # what was refused is not remembered
        with pytest.raises(error, match=message):
            signature.check(*make())
    assert len(signature._passed) == 2


def test_right_ones_are_looked_at_once(signature: Signature, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    own = signature.sizes
    monkeypatch.setattr(signature, "sizes", lambda *tensors: seen.append(tensors) or own(*tensors))
    other = torch.zeros(2, 3, 4), torch.nn.Parameter(torch.zeros(4))
    assert signature.check(*other) == (False, other) and not seen
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which casts
        autocast, (x, p) = signature.check(*other)
    assert autocast and (x.dtype, p.dtype) == (torch.bfloat16, torch.float32) and len(seen) == 1
    assert signature.check(*other) == (False, other) and len(seen) == 1


def test_the_number_of_remembered_kinds_is_bounded(signature: Signature, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "_MOST_PASSED", 3)
    for size in range(1, 8):
        assert signature.check(torch.ones(2, 3, size), torch.ones(size))[0] is False
        assert len(signature._passed) <= 3
