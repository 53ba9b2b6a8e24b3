"""Plans of an operator's calls: what one call started, started again without the Python that led to it.

The second call with a signature (sizes, strides, dtypes, alignment and options of the arguments) runs its function as
the first did, and is noted, which takes up to ten times as long: launches with their arguments in order, PyTorch's
operators, and allocations. A later call allocates the outputs, puts all other memory into one block, and starts the
same with addresses in them. A call that reads a value, or uses memory that is neither an argument's nor its own, runs
its function every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssgrl_fast.kernels import launch, tile_tables
from ssgrl_fast.kernels.activations import INTERPRETED
from ssgrl_fast.kernels.plans import Function, Operator, Plan, Planner, Unplanned, addresses_of

_MOST_PLANS = 1024
"""Signatures that are remembered; beyond that (images of ever other sizes) all are forgotten."""
_plans: dict[tuple[Any, ...], Plan | bool] = {}  # False: seen once; True: the function runs every time


def forget() -> None:
    """Drop all plans: after a change of what calls depend on beside their arguments, such as an entry of a table."""
    _plans.clear()


def replayed(name: str, function: Function) -> Function:
    """An operator's function by plans: the same results of the same launches."""

    def call(*arguments: Any) -> Any:
        if launch.recording():
            return function(*arguments)
        tensors, key = _signature(name, arguments)
        leader = tensors[0]
        if leader.is_cuda and leader.get_device() != torch.cuda.current_device():
            with torch.cuda.device(leader.device):  # Triton starts kernels on the current device
                return call(*arguments)
        # what looks on sees the plain call; autocast changes what PyTorch's operators do
        if launch.hooked() or torch._C._len_torch_dispatch_stack() or torch._C._is_any_autocast_enabled():
            return function(*arguments)
        plan = _plans.get(key)
        if isinstance(plan, Plan):
            result = plan.replay(tensors)
            return function(*arguments) if result is None else result
        if plan is None:
            if len(_plans) >= _MOST_PLANS:
                forget()
            _plans[key] = False
        if plan is not False or _overlap(tensors):  # nothing would tell from which of them an address was taken
            return function(*arguments)
        with _Noter(tensors) as noter:
            result = function(*arguments)
        _plans[key] = noter.plan(result) or True
        return result

    return function if INTERPRETED else call


def _signature(name: str, arguments: Sequence[Any]) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The tensors among the arguments and their lists, and all that a call depends on beside values and addresses."""
    tensors: list[Tensor] = []
    key: list[Any] = [name, tile_tables.assumption()]
    for value in arguments:
        kind = type(value)
        several = kind is list or kind is tuple
        if not several and kind in launch.PLAIN:
            key.append(value)
            continue
        if several:
            key.append(len(value))
        for t in value if several else (value,):
            tensors.append(t)
            key += (t.dtype, t.shape, t.stride(), t.data_ptr() & 15, t.device)
    return tensors, tuple(key)


def _overlap(tensors: Sequence[Tensor]) -> bool:
    ranges = sorted(own for own in map(addresses_of, tensors) if own[0] < own[1])
    return any(first[1] > second[0] for first, second in zip(ranges, ranges[1:], strict=False))


def own_memory(result: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether an operator's result is memory of its own, neither an input nor a view of one."""
    own = result.untyped_storage()._cdata
    return all(value.untyped_storage()._cdata != own for value in inputs)


class _Noter(TorchDispatchMode):
    """Notes what a call of tensors starts and allocates, in this thread."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors, self.steps = tensors, list[Any]()  # an Operator, or as launch.run gives it
        self.allocated: list[Tensor] = []  # kept, so that no address comes twice
        self.replays = True

    def __enter__(self) -> Self:
        launch.here.noted = self.steps
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        launch.here.noted = None
        super().__exit__(kind, value, trace)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = tree_leaves(out)
        if not self.replays:
            return out
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):  # a value was read
            self.replays, launch.here.noted = False, None
            self.steps.clear()
            self.allocated.clear()
            return out
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        results = [(i, leaf) for i, leaf in enumerate(leaves) if leaf.numel()]
        if "empty" in func._opname:
            self.allocated += [leaf for _, leaf in results]
        elif results:  # else nothing was written
            made = [(i, leaf) for i, leaf in results if own_memory(leaf, inputs)]
            if made or func._schema.is_mutable:
                self.steps.append(Operator(func, args, kwargs or {}, made))
        return out

    def plan(self, result: Any) -> Plan | None:
        """Of the call that gave the result; None where it is not to be replayed."""
        if not self.replays:
            return None
        try:
            return Planner(self.tensors, self.allocated, self.steps).plan(result)
        except Unplanned:
            return None
