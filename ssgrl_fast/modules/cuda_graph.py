"""Inference as CUDA graphs: for small batches, whose kernels are shorter than the time to launch them one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssgrl_fast.modules import _shared as shared

_WARM_UP = 3
"""Calls before a capture: the first one compiles kernels and allocates the libraries' workspaces."""


class CapturedHead:
    """Replays the inference of a head, or of a whole SSGRL, on inputs that differ in their number of images alone; made
    by :meth:`ssgrl_fast.SSGRLHead.capture` and :meth:`ssgrl_fast.SSGRL.capture`.

    There is a graph for each captured batch size; they share their memory. A call copies its images into the graphs'
    input, replays the smallest graph that holds them and returns a copy of their logits: two small copies, no
    allocation beside the result and no synchronisation. Images score as in a batch of that graph's size, which may
    differ by rounding from a batch of their own. The weights are kept and read where they lie, so changing them in
    place changes what later calls compute (except what :func:`~ssgrl_fast.prepare` has computed from them); replacing
    them (``load_state_dict(assign=True)``, ``.to(dtype)``) does not. Not for use on two streams at once.
    """

    def __init__(
        self, head: nn.Module, example: Tensor, batches: Sequence[int] = (), *, driver: Any = torch.cuda
    ) -> None:
        # a graph knows addresses only: the tensors there are kept
        self._weights = tuple(t.detach() for t in (*head.parameters(), *head.buffers()))
        self._graphs: dict[int, tuple[Any, Tensor]] = {}  # by batch size, ascending: the graph and its logits
        sizes, pool = sorted({len(example), *batches}), None
        with driver.device(example.device), torch.inference_mode(False), torch.no_grad():
            copies = -(-sizes[-1] // len(example))
            self._input = torch.cat([example.detach()] * copies)[: sizes[-1]]
            side, current = driver.Stream(), driver.current_stream()
            for size in reversed(sizes):  # the largest first: the others fit into its memory
                graph, images = driver.CUDAGraph(), self._input[:size]
                side.wait_stream(current)
                with driver.stream(side):
                    for _ in range(_WARM_UP):
                        head(images)
                current.wait_stream(side)
                with driver.graph(graph, pool=pool, stream=side):
                    logits = head(images)
                self._graphs = {size: (graph, logits), **self._graphs}
                pool = graph.pool()

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, C] of at most as many images as the largest captured batch, of the example's shape, dtype and
        device otherwise.

        Raises:
            TypeError, ValueError: more images, another shape, dtype or device.
        """
        most = self._input
        if x.dtype != most.dtype:
            raise TypeError(f"CapturedHead: x is {x.dtype}, expected {most.dtype} as the example")
        if x.shape[1:] != most.shape[1:] or len(x) > len(most) or x.device != most.device:
            expected = f"{['B', *most.shape[1:]]} with B up to {len(most)} on {most.device}, as captured".replace(
                "'", ""
            )
            raise ValueError(f"CapturedHead: x is {list(x.shape)} on {x.device}, expected {expected}")
        graph, logits = next(kept for size, kept in self._graphs.items() if size >= len(x))
        with torch.no_grad():
            most[: len(x)].copy_(x)
            graph.replay()
            return logits[: len(x)].clone()


def capture(owner: str, model: nn.Module, example: Tensor, batches: Sequence[int]) -> CapturedHead:
    """:class:`CapturedHead` of checked arguments; errors begin with the owner's name.

    Raises:
        ValueError: the example is not on a CUDA device or has no image; a batch size below 1.
    """
    if not isinstance(example, Tensor) or not example.is_cuda:
        where = f"on {example.device}" if isinstance(example, Tensor) else shared.describe(example)
        raise ValueError(f"{owner}.capture: example must be a tensor on a CUDA device, got one {where}")
    for size in batches:
        shared.size(f"{owner}.capture: each of batches", size)
    if example.dim() == 0 or len(example) == 0:
        raise ValueError(f"{owner}.capture: example must have at least one image, got {shared.describe(example)}")
    return CapturedHead(model, example, batches)
