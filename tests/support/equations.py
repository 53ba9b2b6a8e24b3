"""What the tests of the equations share: cases, the distance to the truth, and the inputs of the loops."""

from __future__ import annotations

import numpy as np
import paper_loops
import pytest
import torch
from shapes import Inputs
from torch import Tensor

EXACT = 1e-12
by_gate = pytest.mark.parametrize("reset_gate", ["paper", "official"])
by_bias = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
by_factors = pytest.mark.parametrize("factors", [False, True], ids=["h0", "factors"])


def relative(result: Tensor, truth: Tensor) -> float:
    """Relative L2 error; absolute where the truth is zero."""
    assert result.shape == truth.shape and result.dtype == truth.dtype == torch.float64
    scale = float(truth.norm())
    return float((result - truth).norm()) / (scale if scale > 0.0 else 1.0)


def numpy_of(t: Tensor | None) -> np.ndarray | None:
    return None if t is None else t.detach().numpy()


def gates_of(inputs: Inputs) -> paper_loops.Gates:
    """The packed weights cut into the matrices of eq. (9), by the layout the public contract gives."""
    zr, h = inputs["weight_zr"].numpy(), inputs["weight_h"].numpy()
    D = h.shape[0]
    b_zr, b_h = numpy_of(inputs["bias_zr"]), numpy_of(inputs["bias_h"])
    return paper_loops.Gates(
        Uz=zr[:D, :D], Wz_in=zr[:D, D : 2 * D], Wz_out=zr[:D, 2 * D :],
        Ur=zr[D:, :D], Wr_in=zr[D:, D : 2 * D], Wr_out=zr[D:, 2 * D :],
        W_in=h[:, :D], W_out=h[:, D : 2 * D], U=h[:, 2 * D :],
        bz=None if b_zr is None else b_zr[:D], br=None if b_zr is None else b_zr[D:], b=b_h,
    )  # fmt: skip
