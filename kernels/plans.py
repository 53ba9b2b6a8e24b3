"""What a plan is, how it is replayed, and how it is made from what a call started (replay.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from triton.runtime import driver

from ssgrl_fast.kernels import launch

Function = Callable[..., Any]
Geometry = tuple[tuple[int, ...], tuple[int, ...], int]
"""Sizes and strides, and the offset from the first element of what is viewed."""
_ALIGNED = 512
"""Bytes at whose multiples memory in the common block begins, as in PyTorch's allocator for GPUs."""
_MOST_MEMORY = 2**28
"""Bytes beside the outputs. A plan frees none before its end, and kernels on more take longer than Python anyway."""


class Fill(NamedTuple):
    """Values that an operator's result gives; geometry None: the result itself."""

    result: int  # which of several
    kind: tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
    addresses: list[tuple[int, int]]  # place, offset in bytes
    views: list[tuple[int, Geometry | None]]


@dataclass(frozen=True)
class Plan:
    """A call to be started again. Bases are the tensor arguments, then what is allocated, then the common block."""

    allocated: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]  # sizes, strides
    block: int  # bytes
    views: tuple[tuple[int, Geometry], ...]  # of a base
    addresses: tuple[tuple[int, int], ...]  # base, offset in bytes
    constants: tuple[Any, ...]
    steps: tuple[tuple[Function, Callable[[Sequence[Any]], Any], tuple[Fill, ...]], ...]
    """Each with what takes its arguments out of the values (stream, *bases, *constants, *addresses, *views, *those of
    results), and which of the last its results give."""
    later: int  # values of results
    outputs: Callable[[Sequence[Any]], Any]  # takes the result out of the values
    kept: tuple[Any, ...]  # the compiled kernels, which are unloaded with these objects

    def replay(self, tensors: Sequence[Tensor]) -> Any:
        """Start the steps on other tensor arguments; None, with no argument written to, where memory is less aligned
        than the kernels were compiled for, or an operator gives another kind of result than in the noted call."""
        device = tensors[0].device
        own = [torch.empty_strided(size, stride, dtype=dtype, device=device) for size, stride, dtype in self.allocated]
        bases = [*tensors, *own]
        if self.block:
            bases.append(torch.empty(self.block, dtype=torch.uint8, device=device))
        at = [base.data_ptr() for base in bases]
        if any(map((15).__and__, at[len(tensors) :])):  # half of a generator's time
            return None
        addresses = [at[base] + offset for base, offset in self.addresses]
        views = [_view(bases[base], geometry) for base, geometry in self.views]
        stream = driver.active.get_current_stream(tensors[0].get_device())
        values = [stream, *bases, *self.constants, *addresses, *views, *[None] * self.later]
        for start, arguments, fills in self.steps:
            result = start(*arguments(values))
            if fills:
                values.append(result)  # addresses keep no memory: a later operator's result would get it
                if not _fill(values, fills, [result] if isinstance(result, Tensor) else result):
                    return None
        return self.outputs(values)


def _fill(values: list[Any], fills: Sequence[Fill], results: Sequence[Tensor]) -> bool:
    """Put an operator's results into the values; False where they are not as in the noted call."""
    for place, kind, addresses, views in fills:
        result = results[place]
        start = result.data_ptr()
        if start & 15 or (result.shape, result.stride(), result.dtype) != kind:
            return False
        for at, offset in addresses:
            values[at] = start + offset
        for at, geometry in views:
            values[at] = result if geometry is None else _view(result, geometry)
    return True


def _view(base: Tensor, geometry: Geometry) -> Tensor:
    size, stride, offset = geometry
    return base.as_strided(size, stride, base.storage_offset() + offset)


class Operator(NamedTuple):
    function: Any
    args: Sequence[Any]
    kwargs: dict[str, Any]
    made: list[tuple[int, Tensor]]  # memory that it allocated: which of its results, and the result


def addresses_of(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor: the first, and that behind the last."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.itemsize


class Unplanned(Exception):
    """A call uses something beside its arguments and its own memory, or too much of that."""


class _Reference(NamedTuple):
    """One of a plan's values: its kind, and its number among those of the kind."""

    kind: str
    number: int


_KINDS = ("stream", "base", "constant", "address", "view", "later")


class Planner:
    """Makes a plan: finds the memory of arguments, allocations and operators' results again in what a call started."""

    def __init__(self, tensors: Sequence[Tensor], allocated: Sequence[Tensor], steps: Sequence[Any]) -> None:
        self.steps, self.inputs, self.first_made = steps, len(tensors), len(tensors) + len(allocated)
        made = [leaf for step in steps if isinstance(step, Operator) for _, leaf in step.made]
        self.found = [*tensors, *allocated, *made]
        self.ranges = [*map(addresses_of, self.found)]
        self.own: list[Tensor] = []  # what is allocated by itself: outputs and what operators use
        self.places: dict[int, int] = {}  # in self.own, of what was found
        self.block, self.within = 0, dict[int, int]()  # offsets of the other allocations
        # the values, each with its number
        self.constants: list[Any] = []
        self.addresses: dict[tuple[int, int], int] = {}
        self.views: dict[tuple[int, Geometry], int] = {}
        self.later: dict[tuple[int, int | Geometry | None], int] = {}  # addresses and views of results

    def plan(self, result: Any) -> Plan:
        """The plan of the call, which gave this result."""
        if any(first & 15 for first, _ in self.ranges[self.inputs :]):
            raise Unplanned
        outputs, count = self._outputs(result), len(self.own)
        # operators first: what they read or write is not in the block
        operators = {i: self._operator(one) for i, one in enumerate(self.steps) if isinstance(one, Operator)}
        started = [operators[i] if i in operators else self._launch(*one) for i, one in enumerate(self.steps)]
        if self.block + sum(map(_bytes, [*self.own[count:], *self.found[self.first_made :]])) > _MOST_MEMORY:
            raise Unplanned
        bases = self.inputs + len(self.own) + bool(self.block)
        counts = (1, bases, *map(len, (self.constants, self.addresses, self.views)))
        first = {kind: sum(counts[:i]) for i, kind in enumerate(_KINDS)}
        fills = self._fills(first["later"])
        return Plan(
            tuple((tuple(t.shape), t.stride(), t.dtype) for t in self.own),
            self.block,
            tuple(self.views),
            tuple((bases - 1 if base < 0 else base, offset) for base, offset in self.addresses),
            tuple(self.constants),
            tuple(
                (start, _taking([first[kind] + i for kind, i in references]), fills.get(step, ()))
                for step, (start, references) in enumerate(started)
            ),
            len(self.later),
            _building(outputs, first),
            tuple(one[0].compiled for one in self.steps if not isinstance(one, Operator)),
        )

    def _fills(self, first: int) -> dict[int, tuple[Fill, ...]]:
        """For each step what its results give, to the places from ``first`` on."""
        fills: dict[int, tuple[Fill, ...]] = {}
        results = [(i, *one) for i, step in enumerate(self.steps) if isinstance(step, Operator) for one in step.made]
        for found, (step, which, tensor) in enumerate(results, self.first_made):
            used = [(first + number, what) for (of, what), number in self.later.items() if of == found]
            addresses = [(place, what) for place, what in used if isinstance(what, int)]
            views = [(place, what) for place, what in used if not isinstance(what, int)]
            kind = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
            fills[step] = (*fills.get(step, ()), Fill(which, kind, addresses, views))
        return fills

    def _place(self, tensor: Tensor) -> tuple[int, int]:
        """Which of the found memory a tensor with elements begins in, and how many bytes behind its start."""
        address = tensor.data_ptr()
        places = [i for i, (first, end) in enumerate(self.ranges) if first <= address < end]
        if len(places) != 1:
            raise Unplanned
        return places[0], address - self.ranges[places[0]][0]

    def _constant(self, value: Any) -> _Reference:
        self.constants.append(value)
        return _Reference("constant", len(self.constants) - 1)

    @staticmethod
    def _numbered(kind: str, values: dict[Any, int], value: Any) -> _Reference:
        return _Reference(kind, values.setdefault(value, len(values)))

    def _outputs(self, value: Any) -> Any:
        """The result with a reference for each tensor."""
        if isinstance(value, tuple | list):
            return type(value)([self._outputs(each) for each in value])
        if not isinstance(value, Tensor):
            raise Unplanned
        if value.numel():
            if self._place(value)[0] < self.inputs:  # an operator's result is no view of an argument
                raise Unplanned
            return self._view(value)
        self.own.append(value)
        return _Reference("base", self.inputs + len(self.own) - 1)

    def _view(self, tensor: Tensor) -> _Reference:
        found, offset = self._place(tensor)
        like = self.found[found]
        if like.dtype != tensor.dtype:
            raise Unplanned
        geometry = (tuple(tensor.shape), tensor.stride(), offset // tensor.itemsize)
        what = None if geometry == (tuple(like.shape), like.stride(), 0) else geometry
        if found >= self.first_made:
            return self._numbered("later", self.later, (found, what))
        if found >= self.inputs:
            if found not in self.places:
                self.places[found] = len(self.own)
                self.own.append(like)
            found = self.inputs + self.places[found]
        return _Reference("base", found) if what is None else self._numbered("view", self.views, (found, what))

    def _operator(self, one: Operator) -> tuple[Function, list[_Reference]]:
        function, (leaves, spec) = one.function, tree_flatten((one.args, one.kwargs))
        count, names = len(one.args), tuple(one.kwargs)

        def start(*values: Any) -> Any:
            return function(*values[:count], **dict(zip(names, values[count:], strict=True)))

        def start_nested(*values: Any) -> Any:  # with lists of tensors
            args, kwargs = tree_unflatten(values, spec)
            return function(*args, **kwargs)

        direct = [*one.args, *one.kwargs.values()]
        flat = all(isinstance(value, Tensor) or not _holds_tensors(value) for value in direct)
        references = [
            self._view(value) if isinstance(value, Tensor) else self._constant(value)
            for value in (direct if flat else leaves)
        ]
        return (start_nested if not flat else start if names else function), references

    def _launch(self, started: launch.Started | None, by_name: dict[str, Any]) -> tuple[Function, list[_Reference]]:
        if started is None:
            raise Unplanned
        compiled, grid = started.compiled, started.grid
        function = (compiled.function, compiled.packed_metadata, None, None, None)
        places = [*map(self._constant, grid), _Reference("stream", 0), *map(self._constant, function)]
        return compiled.run, [*places, *map(self._argument, started.in_order(by_name))]

    def _argument(self, value: Any) -> _Reference:
        """Of a launch: an address, or a constant."""
        if type(value) in launch.PLAIN:
            return self._constant(value)
        if not value.numel():  # nothing is there to be read
            return self._constant(0)
        found, offset = self._place(value)
        if found >= self.first_made:
            return self._numbered("later", self.later, (found, offset))
        if found in self.places:
            where = self.inputs + self.places[found], offset
        elif found >= self.inputs:
            if found not in self.within:
                self.within[found] = self.block
                self.block += -(-_bytes(self.found[found]) // _ALIGNED) * _ALIGNED
            where = -1, self.within[found] + offset
        else:
            where = found, offset
        return self._numbered("address", self.addresses, where)


def _taking(places: list[int]) -> Callable[[Sequence[Any]], Any]:
    return itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))


def _bytes(tensor: Tensor) -> int:
    first, end = addresses_of(tensor)
    return end - first


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _building(outputs: Any, first: dict[str, int]) -> Callable[[Sequence[Any]], Any]:
    """What takes the outputs, tensors in tuples and lists, out of a plan's values."""
    if isinstance(outputs, _Reference):
        return itemgetter(first[outputs.kind] + outputs.number)
    parts = [_building(each, first) for each in outputs]
    if type(outputs) is tuple and len(outputs) > 1 and all(isinstance(each, _Reference) for each in outputs):
        return itemgetter(*[first[kind] + number for kind, number in outputs])
    return lambda values: type(outputs)([part(values) for part in parts])
