"""Whether a part computes what its layer names suggest: its own forward is compared with the fused one, on a copy with
random weights.

Shapes: C classes, D channels, S word size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ssgrl_fast.backends import use_backend
from ssgrl_fast.published.layouts import Layout
from ssgrl_fast.published.states import first_line
from ssgrl_fast.published.swapped import OPTIONS, TAKES, obstacle, required_arguments, swapped_class

_TOLERANCE = 1e-9  # of the largest value, in float64: rounding, of up to some thousand terms
Result = tuple[Tensor, list[tuple[str, Tensor | None]]]  # an output, and gradients by name
_IMAGES, _SIDE, _CLASSES, _STEPS = 2, 2, 3, 2


def matching(module: nn.Module, layout: Layout) -> tuple[str | None, str | None]:
    """The option under which the fused forward equals the module's own, and else None and the reason.

    The module itself is not run and not changed; neither is PyTorch's random state.
    """
    if reason := obstacle(module, layout):
        return None, reason
    names = required_arguments(type(module))
    if len(names) not in TAKES[layout.kind]:
        expected = " or ".join(map(str, TAKES[layout.kind]))
        return None, f"its forward takes {len(names)} arguments ({', '.join(names)}), expected {expected}"
    device = next(module.parameters()).device
    if device.type == "meta":
        return None, "its weights are on the meta device, so that nothing can be compared"
    if any(hasattr(value, "to_local") for value in module.parameters()):  # a DTensor, seconds to import
        return None, "its weights are sharded already: accelerate a model first, and then call fully_shard"
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad(), use_backend("reference"):
        try:
            try:
                small = _random_twin(module, layout, _CLASSES)
                _run(small, _inputs(small, layout, device, len(names)), gradients=False)
            except Exception:  # its code knows its number of classes from elsewhere: the probe keeps to that
                small = _random_twin(module, layout, None)
            option, reason = _compare(small, layout, device, len(names))
            if option is not None:
                reason = _present_state(module, layout, option, device, len(names))
            return (None, reason) if reason else (option, None)
        except Exception as error:  # whatever the module's own code raises on the probe
            return None, f"the probe of its forward raised {type(error).__name__}: {first_line(error)}"


def _compare(twin: nn.Module, layout: Layout, device: torch.device, count: int) -> tuple[str | None, str | None]:
    inputs = _inputs(twin, layout, device, count)
    own: dict[bool, Result] = {}
    for training in (True, False):
        before = _held(twin.train(training))
        with _Writes(twin) as writes:
            own[training] = _run(twin, inputs, gradients=training)
        if writes.changed:
            return None, f"its forward writes into {', '.join(sorted(writes.changed))}, which a fused one would not"
        if changed := sorted(name for name, value in _held(twin).items() if before.get(name) is not value):
            return None, f"its forward stores {', '.join(changed)}, which a fused one would not"
    reasons = []
    for option in OPTIONS[layout.kind]:
        modes = ((training, _fused(twin.train(training), layout, option, inputs, training)) for training in own)
        differences = (
            _difference("training" if training else "evaluation", own[training], fused) for training, fused in modes
        )
        reason = next((each for each in differences if each is not None), None)  # stops at the first that differs
        if reason is None:
            return option, None
        reasons.append(reason)
    return None, reasons[0]


def _present_state(module: nn.Module, layout: Layout, option: str, device: torch.device, count: int) -> str | None:
    """Why a copy does not run fused in the dtypes that the part has now, or None. The matrices are on the weights'
    device: a model may be moved after this, and each state of a call is tried at that call."""
    twin: Any = copy.deepcopy(module)
    owner: Any = type(module)
    names = layout.matrix_names(twin) if layout.matrices else ()
    for name in names:
        held = getattr(twin, name)
        if isinstance(held, nn.Parameter):
            held.data = held.data.to(device)
        else:
            setattr(twin, name, held.to(device))
    dtype = layout.weight(twin).dtype
    inputs = _inputs(twin, layout, device, count, dtype)
    swapped = swapped_class(owner, layout, option)
    twin.__class__ = swapped
    return swapped.ssgrl_tried(twin, inputs).reason


def _random_twin(module: nn.Module, layout: Layout, classes: int | None) -> nn.Module:
    """A float64 copy with random weights; with few classes (None: its own number) and, for a graph, a random matrix,
    its transpose and few steps."""
    torch.manual_seed(0)
    twin = copy.deepcopy(module).double()
    for parameter in twin.parameters():
        scale = 1 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.5
        parameter.data = scale * torch.randn_like(parameter)
    if classes is not None:
        for name in layout.classes:
            if hasattr(twin, name):
                setattr(twin, name, classes)
    if layout.kind == "propagation":
        setattr(twin, layout.step_name(twin), _STEPS)
        names = layout.matrix_names(twin)
        size, device = classes or getattr(twin, names[0]).shape[0], next(twin.parameters()).device
        matrix = torch.rand(size, size, dtype=torch.float64, device=device) / size
        for name, values in zip(names, (matrix, matrix.t().contiguous()), strict=True):
            held = getattr(twin, name)
            if isinstance(held, nn.Parameter):
                held.data = values
            else:
                setattr(twin, name, values)
    return twin


def _inputs(
    twin: nn.Module, layout: Layout, device: torch.device, count: int, dtype: torch.dtype = torch.float64
) -> list[int | Tensor]:
    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=dtype, device=device)

    if layout.kind == "attention":
        image, word = layout.layer(twin, "u"), layout.layer(twin, "v")
        x = normal(_IMAGES, image.in_features, _SIDE, _SIDE)
        words = normal(layout.num_classes(twin, _CLASSES), word.in_features)
        arguments: list[int | Tensor] = [_IMAGES, x, words]
        return arguments[3 - count :]
    if layout.kind == "propagation":
        classes = getattr(twin, layout.matrix_names(twin)[0]).shape[0]
        return [normal(_IMAGES, classes, layout.layer(twin, "u_z").in_features)]
    return [normal(_IMAGES, *twin.get_parameter("weight").shape)]


class _Writes(TorchDispatchMode):
    """Notes which tensors of a module are written in place, also through ``.data`` and where no value changes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no annotations
        named = [*module.named_parameters(), *module.named_buffers(), *vars(module).items()]
        tensors = [(name, value) for name, value in named if isinstance(value, Tensor)]
        self.names = {value.untyped_storage().data_ptr(): name for name, value in tensors}
        self.changed: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(value, Tensor):
                self.changed |= {self.names.get(value.untyped_storage().data_ptr(), "")} - {""}
        return func(*args, **(kwargs or {}))


def _held(module: nn.Module) -> dict[str, object]:
    """What the module holds by itself: attributes and buffers."""
    inner = {"_parameters", "_modules", "_buffers"}
    return {**{name: value for name, value in vars(module).items() if name not in inner}, **module._buffers}


def _run(module: nn.Module, inputs: Sequence[int | Tensor], *, gradients: bool) -> Result:
    """The output and, with ``gradients``, the gradients of a weighted sum of it for inputs and parameters, by name."""
    arguments = [value.clone().requires_grad_() if isinstance(value, Tensor) else value for value in inputs]
    output = module(*arguments)
    if not isinstance(output, Tensor):
        raise TypeError(f"it returns a {type(output).__name__}, expected one tensor")
    if not gradients:
        return output.detach(), []
    leaves = {f"input {index}": value for index, value in enumerate(arguments) if isinstance(value, Tensor)}
    leaves |= {name: value for name, value in module.named_parameters() if value.requires_grad}
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view(output.shape)
    gradients_of = torch.autograd.grad((output * weights).sum(), list(leaves.values()), allow_unused=True)
    return output.detach(), list(zip(leaves, gradients_of, strict=True))


def _fused(twin: nn.Module, layout: Layout, option: str, inputs: Sequence[int | Tensor], gradients: bool) -> Result:
    owner: Any = type(twin)
    twin.__class__ = swapped_class(owner, layout, option)
    try:
        return _run(twin, inputs, gradients=gradients)
    finally:
        twin.__class__ = owner


def _difference(mode: str, own: Result, fused: Result) -> str | None:
    """The first thing in which two results differ, as a sentence."""
    thing = _differing(own, fused)
    return thing and f"in {mode} its own forward differs from the fused one: {thing}"


def _differing(own: Result, fused: Result) -> str | None:
    if own[0].shape != fused[0].shape:
        return f"an output {list(own[0].shape)} instead of {list(fused[0].shape)}"
    pairs = [("the output", own[0], fused[0])]
    for (name, first), (_, second) in zip(own[1], fused[1], strict=True):
        if first is None or second is None:
            if first is not second:
                return f"{name} gets {'no' if first is None else 'a'} gradient"
            continue
        pairs.append((f"the gradient of {name}", first, second))
    for name, first, second in pairs:
        scale = max(1.0, float(first.abs().max())) if first.numel() else 1.0
        gap = float((first - second).abs().max()) if first.numel() else 0.0
        if not gap <= _TOLERANCE * scale:
            return f"{name} by {gap:.1e}"
    return None
