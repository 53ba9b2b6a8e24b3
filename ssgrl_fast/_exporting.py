"""Whether torch.export is at work, as every supported PyTorch tells it."""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Whether ``torch.export`` traces what runs.

    ``torch.compiler.is_exporting()`` does not serve: in torch 2.11 it is also true where ``torch.compile`` traces. The
    flag behind it is not.
    """
    exporting: bool = torch.compiler._is_exporting_flag
    return exporting
