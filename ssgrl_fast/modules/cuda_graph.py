"""The head as one CUDA graph: for small batches, whose kernels are shorter than the time to launch them one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WARM_UP = 3
"""Calls before the capture: the first one compiles kernels and allocates the libraries' workspaces."""


class CapturedHead:
    """Replays the head's inference on maps of one shape; made by :meth:`ssgrl_fast.SSGRLHead.capture`.

    A call copies the map into the graph's own input, replays the graph and returns a copy of its logits: two small
    copies, no allocation beside the result and no synchronisation. The weights are kept and read where they lie, so
    changing them in place changes what later calls compute; replacing those of the head
    (``load_state_dict(assign=True)``, ``.to(dtype)``) does not. Not for use on two streams at once.
    """

    def __init__(self, head: nn.Module, example: Tensor) -> None:
        # the graph knows addresses only: the tensors there are kept
        self._weights = tuple(t.detach() for t in (*head.parameters(), *head.buffers()))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(example.device), torch.inference_mode(False), torch.no_grad():
            self._input = example.detach().clone(memory_format=torch.preserve_format)
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    head(self._input)
            current.wait_stream(side)
            with torch.cuda.graph(self._graph, stream=side):
                self._logits = head(self._input)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, C] of a map [B, D, H, W] of the example's shape, dtype and device.

        Raises:
            TypeError, ValueError: another shape, dtype or device.
        """
        example = self._input
        if x.dtype != example.dtype:
            raise TypeError(f"CapturedHead: x is {x.dtype}, expected {example.dtype} as the example")
        if x.shape != example.shape or x.device != example.device:
            expected = f"{list(example.shape)} on {example.device} as the example"
            raise ValueError(f"CapturedHead: x is {list(x.shape)} on {x.device}, expected {expected}")
        with torch.no_grad():
            example.copy_(x)
            self._graph.replay()
            logits: Tensor = self._logits.clone()
        return logits
