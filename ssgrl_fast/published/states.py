"""Whether a part's own forward runs, and the fused one in its place gives the same kind of tensor, where the tensors of
a call differ in dtype or device, or autocast is on.

Values are compared once, in float64, by :mod:`ssgrl_fast.published.probe`. What a forward does with matrices in float32
beside weights in float64 (it may cast them, or raise) depends on the code of that forward. So the first call in each
such state runs both forms on one image.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssgrl_fast._utils.pytorch import autocasts
from ssgrl_fast.published.layouts import Layout

Form = Callable[..., Any]


class Trial(NamedTuple):
    """What the two forms did in a state.

    Attributes:
        reason: why the part's own forward has to run, or None.
        dtype: of the own forward's result.
    """

    reason: str | None
    dtype: torch.dtype | None


_KNOWN: weakref.WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Trial]] = weakref.WeakKeyDictionary()


def tensors_of(module: nn.Module, layout: Layout, args: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a call combines, by name: weights first, then matrices, then inputs."""
    layers = [(f"{name}.", getattr(module, name)) for name in layout.layers.values()] or [("", module)]
    for start, layer in layers:
        for name in ("weight", "bias"):
            value = getattr(layer, name, None)
            if isinstance(value, Tensor):
                yield start + name, value
    for name in layout.matrix_names(module) if layout.matrices else ():
        yield name, getattr(module, name)
    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            yield f"input {index}", value


def uniform(module: nn.Module, layout: Layout, args: Sequence[Any]) -> bool:
    """Whether all tensors of a call have one dtype and one device, and autocast is off; asked at every call, so that it
    leaves out biases, which a layer of its own refuses beside another weight."""
    first: Tensor = layout.weight(module)
    if autocasts(first):
        return False
    tensors = [value for value in args if isinstance(value, Tensor)]
    tensors += [getattr(module, name).weight for name in layout.layers.values()]
    if layout.matrices:
        tensors += [getattr(module, name) for name in layout.matrix_names(module)]
    dtype, device = first.dtype, first.device
    return all(tensor.dtype == dtype and tensor.device == device for tensor in tensors)


def tried(module: nn.Module, layout: Layout, args: Sequence[Any], own: Form, fused: Form) -> Trial:
    """What both forms do in the state of a call; they are run at the first call in that state.

    Args:
        module: the part.
        layout: its layout.
        args: of the call.
        own, fused: the two forwards.
    """
    named = list(tensors_of(module, layout, args))
    kind = named[0][1].device.type
    autocast = torch.get_autocast_dtype(kind) if autocasts(named[0][1]) else None
    state = (autocast, *((tensor.dtype, tensor.device) for _, tensor in named))
    known = _KNOWN.setdefault(module, {})
    trial = known.get(state)
    if trial is None:
        trial = _try(args, own, fused, _describe(named, autocast), autocast is not None)
        if all(value.shape[0] for value in args if isinstance(value, Tensor)):  # a batch without images shows nothing
            known[state] = trial
    return trial


def _try(args: Sequence[Any], own: Form, fused: Form, state: str, autocast: bool) -> Trial:
    """Both forms on the first image. They must give tensors of one shape and device, and without autocast of one dtype:
    under autocast the fused operations compute in its dtype, and their result can be converted."""
    image = next(index for index, value in enumerate(args) if isinstance(value, Tensor))
    small = [value if isinstance(value, Tensor) else 1 for value in args]
    small[image] = args[image][:1]
    outputs = []
    with torch.no_grad():
        for form in (own, fused):
            try:
                outputs.append(form(*small))
            except torch.OutOfMemoryError:  # of this moment, not of the state
                raise
            except Exception as error:  # whatever the module's own code raises
                which = "it" if form is own else "the fused one"
                return Trial(f"with {state} {which} raises {type(error).__name__}: {first_line(error)}", None)
    kinds = [_kind(output, autocast) for output in outputs]
    reason = None if kinds[0] == kinds[1] else f"with {state} it gives {kinds[0]}, the fused one {kinds[1]}"
    return Trial(reason, getattr(outputs[0], "dtype", None))


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).splitlines()[0] if str(error) else "no message"


def _kind(output: Any, autocast: bool) -> str:
    if not isinstance(output, Tensor):
        return f"a {type(output).__name__}"
    placed = f"a tensor on {output.device}" if autocast else _placed(output)
    return f"{placed} {list(output.shape)}"


def _placed(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _describe(named: Sequence[tuple[str, Tensor]], autocast: torch.dtype | None) -> str:
    """The state in words: the first tensor's dtype and device, and what differs from it."""
    first = _placed(named[0][1])
    others = [f"{name} in {_placed(tensor)}" for name, tensor in named if _placed(tensor) != first]
    text = ", ".join([f"weights in {first}", *others])
    return text if autocast is None else f"{text}, under autocast to {str(autocast).removeprefix('torch.')}"
