"""Checks of the operations' arguments: every error names the argument, what came and what was expected.

Nothing here reads a tensor's values, so nothing waits for a device; nothing is put into words before there is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssgrl_fast._utils.pytorch import autocasts
from ssgrl_fast.reference.numerics import exact_dtype

_Tensors = tuple[Any, ...]  # each a Tensor, or None for one that was left out
_MOST_PASSED = 1024
_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Kinds of arguments that a signature remembers as right; beyond that all are forgotten."""


class Signature:
    """The tensors of an operation in their order: the shapes that they share, and the dtypes that they come in.

    Args:
        operation: the name that opens every message.
        layouts: for each argument its shape in letters, ``"B L K"`` or ``"2D 3D"``; one that may be None ends in a
            question mark, ``"2D?"``. A letter takes its size from the first argument that shows it.
        leader: the argument whose device all others share, and whose dtype all but the following.
        exact: arguments in float32, or in float64 beside float64 (p, attention); autocast leaves them alone.
        constant: arguments in either of these dtypes (the adjacency); autocast leaves them alone.
        dtypes: the leader's dtypes that the operation computes in.
    """

    def __init__(
        self,
        operation: str,
        layouts: Mapping[str, str],
        *,
        leader: str,
        exact: tuple[str, ...] = (),
        constant: tuple[str, ...] = (),
        dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    ) -> None:
        self.operation, self._names, self._dtypes = operation, tuple(layouts), dtypes
        self._layouts = tuple(layout.rstrip("?") for layout in layouts.values())
        axes = (tuple(map(_axis, layout.split())) for layout in self._layouts)
        optional = (layout.endswith("?") for layout in layouts.values())
        self._shapes = tuple(zip(axes, optional, strict=True))
        self._leader = self._names.index(leader)
        self._exact, self._constant = (tuple(name in group for name in layouts) for group in (exact, constant))
        self._passed: set[tuple[Any, ...]] = set()

    def check(self, *tensors: Tensor | None) -> tuple[bool, _Tensors]:
        """Check the tensors and follow autocast's rule.

        Returns:
            Whether autocast is on for their device; the tensors, in autocast's dtype where it is on and no tensor that
            it would cast is float64.

        Raises:
            TypeError: an argument is no floating-point tensor, sparse, nested or in another layout that is not strided,
                or of a wrong dtype.
            ValueError: a wrong number of dimensions, a size that disagrees with an earlier argument's, another device
                than the leader's, or features without a location.
        """
        kinds = _kinds(tensors)
        if kinds is not None and kinds in self._passed and not torch._C._is_any_autocast_enabled():
            return False, tensors
        if self.sizes(*tensors).get("L") == 0:
            features = tensors[self._names.index("features")]
            raise ValueError(f"{self.operation}: features must have at least one location, got {_shape(features)}")
        checked: _Tensors = tensors
        autocast = autocasts(checked[0])
        if autocast:
            checked = self._cast(checked)
        self._check_dtypes(checked)
        if kinds is not None and not autocast:
            if len(self._passed) >= _MOST_PASSED:
                self._passed.clear()
            self._passed.add(kinds)
        return autocast, checked

    def sizes(self, *tensors: Tensor | None) -> dict[str, int]:
        """Check the shapes alone; the size that each letter stands for.

        Raises:
            TypeError, ValueError: as :meth:`check`.
        """
        sizes: dict[str, int] = {}
        for i, ((axes, optional), tensor) in enumerate(zip(self._shapes, tensors, strict=True)):
            if tensor is None and optional:
                continue
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not _is_dense(tensor):
                raise self._wrong_kind(i, tensor)
            shape = tensor.shape
            if len(shape) != len(axes):
                raise self._wrong_rank(i, tensor)
            for (factor, letter), size in zip(axes, shape, strict=True):
                if size != factor * sizes.setdefault(letter, size // factor):
                    raise self._wrong_size(i, letter, tensors)
        return sizes

    def _cast(self, tensors: _Tensors) -> _Tensors:
        """The tensors in autocast's dtype, but for the exact and constant ones; as they are beside float64."""
        fixed = [t is None or e or c for t, e, c in zip(tensors, self._exact, self._constant, strict=True)]
        if any(not f and t.dtype == torch.float64 for t, f in zip(tensors, fixed, strict=True)):
            return tensors
        dtype = torch.get_autocast_dtype(tensors[0].device.type)
        return tuple(t if f else t.to(dtype) for t, f in zip(tensors, fixed, strict=True))

    def _check_dtypes(self, tensors: _Tensors) -> None:
        leader = tensors[self._leader]
        dtype, device, exact = leader.dtype, leader.device, exact_dtype(leader.dtype)
        if dtype not in self._dtypes:
            raise self._unknown_dtype(dtype)
        for i, tensor in enumerate(tensors):
            if tensor is None:
                continue
            if tensor.device != device:
                raise self._wrong_device(i, tensor, device)
            if tensor.dtype != (exact if self._exact[i] else dtype) and not (
                self._constant[i] and tensor.dtype == exact
            ):
                raise self._wrong_dtype(i, tensor, dtype)

    # The errors, in words.

    def _layout(self, i: int) -> str:
        return f"[{self._layouts[i].replace(' ', ', ')}]"

    def _wrong_kind(self, i: int, tensor: object) -> TypeError:
        must = f"{self.operation}: {self._names[i]} must be a"
        if isinstance(tensor, Tensor):
            if tensor.is_floating_point():
                layout = "a nested tensor" if tensor.is_nested else tensor.layout
                return TypeError(f"{must} dense tensor (torch.strided), got {layout}")
            return TypeError(f"{must} floating-point tensor, got {tensor.dtype}")
        kind = "None" if tensor is None else type(tensor).__name__
        return TypeError(f"{must} torch.Tensor {self._layout(i)}, got {kind}")

    def _wrong_rank(self, i: int, tensor: Tensor) -> ValueError:
        must = f"{self.operation}: {self._names[i]} must have {len(self._shapes[i][0])} dimensions"
        return ValueError(f"{must} {self._layout(i)}, got {_shape(tensor)}")

    def _wrong_size(self, i: int, letter: str, tensors: _Tensors) -> ValueError:
        must = f"{self.operation}: {self._names[i]} must be {self._layout(i)}, got {_shape(tensors[i])}"
        # where the letter has its size from
        first = next(j for j, t in enumerate(tensors) if t is not None and letter in self._layouts[j])
        factors = [factor if shown == letter else 0 for factor, shown in self._shapes[first][0]]
        axis = next(a for a, factor in enumerate(factors) if factor)
        size, rest = divmod(tensors[first].shape[axis], factors[axis])
        if rest:
            return ValueError(f"{must}: {tensors[first].shape[axis]} is no multiple of {factors[axis]}")
        # the first axis here that has another size
        wrong = next(
            f
            for (f, shown), n in zip(self._shapes[i][0], tensors[i].shape, strict=True)
            if shown == letter and n != f * size
        )
        expected = f"{wrong}{letter}" if wrong > 1 else letter
        source = f"{self._names[first]} {_shape(tensors[first])}"
        return ValueError(f"{must}: expected {expected} = {wrong * size} from {source}")

    def _unknown_dtype(self, dtype: torch.dtype) -> TypeError:
        names = [str(each).removeprefix("torch.") for each in self._dtypes]
        expected = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        return TypeError(f"{self.operation}: {self._names[self._leader]} must be {expected}, got {dtype}")

    def _wrong_device(self, i: int, tensor: Tensor, device: torch.device) -> ValueError:
        where = f"{self._names[i]} is on {tensor.device}"
        return ValueError(f"{self.operation}: {where}, expected {device} as {self._names[self._leader]}")

    def _wrong_dtype(self, i: int, tensor: Tensor, dtype: torch.dtype) -> TypeError:
        leader, exact = self._names[self._leader], exact_dtype(dtype)
        expected = f"{dtype} as {leader}"
        if self._exact[i]:
            expected = f"{exact} beside {leader} in {dtype}"
        elif self._constant[i]:
            expected = f"{dtype} or {exact} beside {leader} in {dtype}"
        return TypeError(f"{self.operation}: {self._names[i]} is {tensor.dtype}, expected {expected}")


def _kinds(tensors: _Tensors) -> tuple[Any, ...] | None:
    """All that a check depends on; None where something is no plain tensor or sizes may be symbols, as in a trace."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return None
    kinds: list[Any] = []
    for t in tensors:
        if t is None:
            kinds.append(None)
        elif type(t) in _PLAIN and _is_dense(t):
            kinds.append((t.shape, t.dtype, t.device))
        else:
            return None
    return tuple(kinds)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def _axis(letter: str) -> tuple[int, str]:
    """The factor and the letter of "D" or "2D"."""
    return int(letter[:-1] or 1), letter[-1]


def check_steps(operation: str, steps: object) -> None:
    """Check the number of propagation steps, T of eq. 9.

    Raises:
        TypeError: not an integer.
        ValueError: less than 1.
    """
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise TypeError(f"{operation}: steps must be an int, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"{operation}: steps must be at least 1, got {steps}")


def check_factors(operation: str, attention: Tensor | None, features: Tensor | None) -> None:
    """Check that the factors of h0 came together.

    Raises:
        ValueError: only one of them did.
    """
    if (attention is None) != (features is None):
        present, missing = ("features", "attention") if attention is None else ("attention", "features")
        raise ValueError(
            f"{operation}: {present} came without {missing}: the factors of h0 are given together or not at all"
        )


def _shape(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(list(tensor.shape))
