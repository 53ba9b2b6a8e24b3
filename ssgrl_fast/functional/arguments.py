"""Checks of the operations' arguments: every error names the argument, what came and what was expected.

Nothing here reads a tensor's values, so nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ssgrl_fast.reference.numerics import exact_dtype


def check_tensors(operation: str, layouts: Mapping[str, tuple[Tensor | None, str]]) -> dict[str, int]:
    """Check that tensors have the shapes that share their letters, and return what each letter stands for.

    Args:
        operation: the name that opens every message.
        layouts: for each argument its tensor and its shape in letters, ``"B L K"`` or ``"2D 3D"``; one that may be None
            ends in a question mark, ``"2D?"``. A letter takes its size from the first argument that shows it.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: a wrong number of dimensions, or a size that disagrees with an earlier argument's.
    """
    sizes: dict[str, int] = {}
    origins: dict[str, str] = {}  # the argument that set a letter; its shape is put into words only for an error
    for name, (tensor, layout) in layouts.items():
        optional, layout = layout.endswith("?"), layout.rstrip("?")
        if tensor is None and optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{operation}: {name} must be a torch.Tensor [{_pretty(layout)}], got {_kind(tensor)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{operation}: {name} must be a floating-point tensor, got {tensor.dtype}")
        letters = layout.split()
        if tensor.dim() != len(letters):
            raise ValueError(
                f"{operation}: {name} must have {len(letters)} dimensions [{_pretty(layout)}], got {_shape(tensor)}"
            )
        for axis, letter in enumerate(letters):
            factor, symbol = (int(letter[:-1]), letter[-1]) if len(letter) > 1 else (1, letter)
            size = tensor.shape[axis]
            if symbol not in sizes:
                if factor != 1 and size % factor:
                    wrong = f"{name} must be [{_pretty(layout)}], got {_shape(tensor)}"
                    raise ValueError(f"{operation}: {wrong}: {size} is no multiple of {factor}")
                sizes[symbol], origins[symbol] = size // factor, name
            elif size != factor * sizes[symbol]:
                source = f"{origins[symbol]} {_shape(layouts[origins[symbol]][0])}"
                raise ValueError(
                    f"{operation}: {name} must be [{_pretty(layout)}], got {_shape(tensor)}: "
                    f"expected {letter} = {factor * sizes[symbol]} from {source}"
                )
    return sizes


def check_together(operation: str, leader: str, tensors: Mapping[str, Tensor | None]) -> None:
    """Check that all tensors lie on the leader's device and have its dtype.

    Raises:
        ValueError: another device.
        TypeError: another dtype.
    """
    first = tensors[leader]
    assert first is not None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != first.device:
            raise ValueError(f"{operation}: {name} is on {tensor.device}, expected {first.device} as {leader}")
        if tensor.dtype != first.dtype:
            raise TypeError(f"{operation}: {name} is {tensor.dtype}, expected {first.dtype} as {leader}")


def check_exact(operation: str, name: str, tensor: Tensor | None, leader: str, first: Tensor) -> None:
    """Check a tensor that stays in float32 beside reduced ones, and is float64 beside float64 (p, attention).

    Raises:
        ValueError: another device than the leader's.
        TypeError: neither float32 nor, with a float64 leader, float64.
    """
    if tensor is None:
        return
    expected = exact_dtype(first.dtype)
    if tensor.device != first.device:
        raise ValueError(f"{operation}: {name} is on {tensor.device}, expected {first.device} as {leader}")
    if tensor.dtype != expected:
        raise TypeError(f"{operation}: {name} is {tensor.dtype}, expected {expected} beside {leader} in {first.dtype}")


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
        given, missing = ("features", "attention") if attention is None else ("attention", "features")
        raise ValueError(
            f"{operation}: {given} came without {missing}: the factors of h0 are given together or not at all"
        )


def check_locations(operation: str, features: Tensor | None) -> None:
    """Check that features [B, L, D], where given, have a location to attend to.

    Raises:
        ValueError: L = 0.
    """
    if features is not None and features.shape[1] == 0:
        raise ValueError(f"{operation}: features must have at least one location, got {_shape(features)}")


def _shape(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(list(tensor.shape))


def _pretty(layout: str) -> str:
    return layout.replace(" ", ", ")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
