"""CUDA graphs on a CPU: a stub of ``torch.cuda`` whose graphs note PyTorch's operators and run them again on the same
memory, as a captured graph does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Graph(TorchDispatchMode):
    """The operators that ran while it was captured; its length is the number of images of the first one."""

    def __init__(self, driver: StubCuda) -> None:
        super().__init__()
        self.driver = driver
        self.calls: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def __len__(self) -> int:
        return len(next(leaf for leaf in tree_leaves(self.calls[0][1]) if isinstance(leaf, Tensor)))

    def pool(self) -> int:
        return id(self)

    @torch.no_grad()
    def replay(self) -> None:
        self.driver.replayed = self
        for func, args, kwargs, results in self.calls:
            for old, new in zip(tree_leaves(results), tree_leaves(func(*args, **kwargs)), strict=True):
                # a view shows memory that was written already
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Stream:
    def wait_stream(self, other: _Stream) -> None:
        pass


class StubCuda:
    """What :class:`ssgrl_fast.modules.CapturedHead` asks of ``torch.cuda``."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.pools: list[Any] = []
        self.replayed: Graph | None = None

    Stream = current_stream = staticmethod(_Stream)

    def device(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    def stream(self, stream: _Stream) -> AbstractContextManager[None]:
        return nullcontext()

    def CUDAGraph(self) -> Graph:
        return Graph(self)

    @contextmanager
    def graph(self, graph: Graph, pool: Any, stream: _Stream) -> Iterator[None]:
        self.graphs.append(graph)
        self.pools.append(pool)
        with graph:
            yield
