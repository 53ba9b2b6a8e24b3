"""A short program for an installed wheel: the compiled library loads, and computes what the equations do."""

from __future__ import annotations

import torch

import ssgrl_fast as sf
from ssgrl_fast.backends import extension


def main() -> None:
    """Compare the head's outputs and gradients on the compiled kernels with those of the reference."""
    reason = extension.library()
    if reason is not None:
        raise SystemExit(f"the compiled operators are not loaded: {reason}")
    torch.manual_seed(0)
    head = sf.SSGRLHead(8, torch.randn(5, 6), torch.rand(5, 5), joint_dim=4)
    maps = torch.randn(2, 8, 3, 3)
    results = []
    for backend in ("cpu", "reference"):
        images = maps.clone().requires_grad_()
        with sf.use_backend(backend):
            logits = head(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), images)
        results.append((logits.detach(), gradient))
    torch.testing.assert_close(results[0], results[1])
    print(f"ssgrl_fast {sf.__version__} computes on its compiled kernels what the equations do")


if __name__ == "__main__":
    main()
