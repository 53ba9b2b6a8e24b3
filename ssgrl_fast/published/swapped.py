"""The classes that accelerated parts get: subclasses of their own, made on demand, that survive copying and pickling.

Shapes: B images, C classes, D channels, K joint channels.
"""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ssgrl_fast import functional
from ssgrl_fast._utils.pytorch import autocasts, without_autocast
from ssgrl_fast.modules import _shared as shared
from ssgrl_fast.published.layouts import LAYOUTS, Layout
from ssgrl_fast.published.states import Trial, tried, uniform

_TRANSPOSED: weakref.WeakKeyDictionary[nn.Module, _Pair] = weakref.WeakKeyDictionary()  # found to be transposes

_Pair = tuple[weakref.ref[Tensor], weakref.ref[Tensor], tuple[int, int]]  # two matrices and their versions

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

OPTIONS = {"attention": ("",), "propagation": ("official", "paper"), "rows": ("",)}  # the probe decides between them
TAKES = {"attention": (2, 3), "propagation": (1,), "rows": (1,)}  # required arguments of a forward of that kind


class Swapped(nn.Module):
    """A part whose forward is fused. The class that it had stays its base."""

    ssgrl_owner: ClassVar[Any]  # the class that it had
    ssgrl_layout: ClassVar[Layout]
    ssgrl_option: ClassVar[str]
    ssgrl_names: ClassVar[tuple[str, ...]]  # the required arguments of the part's own forward
    ssgrl_describes: ClassVar[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The fused forward, or the part's own where optional arguments are given or something keeps the other from
        being the same."""
        rest = self.ssgrl_names[len(args) :]
        if len(args) > len(self.ssgrl_names) or set(kwargs) != set(rest):
            return super().forward(*args, **kwargs)
        if reason := obstacle(self, self.ssgrl_layout):
            warnings.warn(f"accelerated {self.ssgrl_owner.__name__} runs its own forward: {reason}", stacklevel=2)
            return super().forward(*args, **kwargs)
        args = (*args, *(kwargs[name] for name in rest))
        if uniform(self, self.ssgrl_layout, args):
            return self.ssgrl_fused(*args)
        if torch.compiler.is_compiling():  # nothing can be tried here; of a result that is not used, its dtype is left
            own = super().forward(*args)
            inside = autocasts(next(value for value in args if isinstance(value, Tensor)))
            return self.ssgrl_fused(*args).to(own.dtype) if inside else own
        trial = self.ssgrl_tried(args)
        if trial.reason:
            warnings.warn(f"accelerated {self.ssgrl_owner.__name__} runs its own forward: {trial.reason}", stacklevel=2)
            return super().forward(*args)
        return self.ssgrl_fused(*args).to(trial.dtype)

    def ssgrl_tried(self, args: Sequence[Any]) -> Trial:
        """What the part's own forward and the fused one do with tensors of these dtypes and devices."""
        return tried(self, self.ssgrl_layout, args, super().forward, self.ssgrl_fused)

    def ssgrl_fused(self, *args: Any) -> Tensor:
        """The part's result by the fused operation."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by the class that the part had: the subclass has no name that could be imported."""
        state = self.__getstate__()  # type: ignore[no-untyped-call]  # torch gives it no annotations
        return _rebuild, (self.ssgrl_owner, self.ssgrl_layout.name, self.ssgrl_option), state


class _Attention(Swapped):
    def ssgrl_fused(self, *args: Any) -> Tensor:
        """pooled [B, C, D] of (batch size,) map [B, D, H, W] and words [C, S] (eq. 3–6)."""
        *batch, x, words = args
        if batch and batch[0] != x.shape[0]:
            raise ValueError(f"{self.ssgrl_names[0]} is {batch[0]}, and the map holds {x.shape[0]} images")
        u, v, p, a = (self.ssgrl_layout.layer(self, role) for role in "uvpa")
        x, words = _beside(u.weight, x), _beside(v.weight, words)
        features = shared.as_rows(x, u.in_features)
        constants = [bias for bias in (p.bias, a.bias) if bias is not None]
        collapsed = shared.collapse(p.weight, a.weight[0], *constants)
        image, word = linear(features, u.weight, u.bias), linear(words, v.weight, v.bias)
        return functional.semantic_attention(image, word, collapsed, features)[0]


class _Propagation(Swapped):
    def ssgrl_fused(self, *args: Any) -> Tensor:
        """h_T [B, C, D] of h0, [B, C, D] or with its last dimensions flat (eq. 7–9)."""
        layout, official = self.ssgrl_layout, self.ssgrl_option == "official"
        layers = {role: layout.layer(self, role) for role in layout.layers}
        adjacency = getattr(self, layout.matrix_names(self)[0])
        state = layers["u_z"] if official else layers["u_r"]
        blocks = functional.GateBlocks(
            w_z=layers["w_z"].weight,
            u_z=layers["u_z"].weight,
            b_z=_sum(layers["w_z"].bias, layers["u_z"].bias),
            w_r=layers["w_r"].weight,
            u_r=layers["u_r"].weight.detach() if official else layers["u_r"].weight,  # unused there, without a gradient
            b_r=_sum(layers["w_r"].bias, state.bias),
            w_h=layers["w_h"].weight,
            u_h=layers["u_h"].weight,
            b_h=_sum(layers["w_h"].bias, layers["u_h"].bias),
        )
        h0 = args[0].reshape(args[0].shape[0], adjacency.shape[0], -1)
        h0 = _beside(layers["w_z"].weight, h0)
        adjacency = adjacency.to(h0)
        steps = getattr(self, layout.step_name(self))
        return functional.graph_propagation_blocks(h0, adjacency, blocks, steps=steps, reset_gate=self.ssgrl_option)


class _Rows(Swapped):
    weight: Tensor

    def ssgrl_fused(self, *args: Any) -> Tensor:
        """logits [B, C] of o [B, C, D]: one product per class, no [B, C, D] in between (eq. 10).

        The dtype is that of an elementwise product and sum, which autocast leaves alone."""
        dtype = torch.promote_types(args[0].dtype, self.weight.dtype)
        with without_autocast(args[0]):
            rows = torch.einsum("bcd,cd->bc", args[0].to(dtype), self.weight.to(dtype))
        bias = getattr(self, "bias", None)
        return rows if bias is None else rows + bias


_FUSED: dict[str, type[Swapped]] = {"attention": _Attention, "propagation": _Propagation, "rows": _Rows}


@functools.cache
def swapped_class(owner: Any, layout: Layout, option: str) -> type[Swapped]:
    """The subclass of a module's class whose forward is fused."""
    what = {"attention": "semantic attention", "propagation": f"graph propagation, {option} reset gate", "rows": "rows"}
    attributes = {
        "ssgrl_owner": owner,
        "ssgrl_layout": layout,
        "ssgrl_option": option,
        "ssgrl_names": required_arguments(owner),
        "ssgrl_describes": what[layout.kind],
        "__module__": owner.__module__,
        "__doc__": owner.__doc__,
    }
    return type(f"Accelerated{owner.__name__}", (_FUSED[layout.kind], owner), attributes)


def required_arguments(owner: type[nn.Module]) -> tuple[str, ...]:
    """The names of the arguments of a class's forward that have no default; a ``*args`` counts as none."""
    parameters = list(inspect.signature(owner.forward).parameters.values())[1:]
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(each.name for each in parameters if each.kind in plain and each.default is inspect.Parameter.empty)


def _rebuild(owner: Any, layout: str, option: str) -> Swapped:
    new = swapped_class(owner, next(each for each in LAYOUTS if each.name == layout), option)
    return new.__new__(new)


def _beside(weight: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the weight's dtype, on its device; autocast converts by itself what is not float64."""
    if autocasts(weight) and torch.float64 not in (weight.dtype, tensor.dtype):
        return tensor.to(weight.device)
    return tensor.to(weight)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def obstacle(module: nn.Module, layout: Layout) -> str | None:
    """Why the fused operation would change what the module computes or calls, or None; no value is read twice."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module"
    if "forward" in vars(module):
        return "its forward was exchanged on the instance"
    if any(getattr(torch.nn.modules.module, f"_global{hooks}") for hooks in _HOOKS):
        return "hooks are set for all modules, which would not be called for its layers"
    for name in layout.layers.values():
        if reason := _layer_obstacle(name, getattr(module, name)):
            return reason
    return _graph_obstacle(module, layout) if layout.kind == "propagation" else None


def _layer_obstacle(name: str, layer: nn.Module) -> str | None:
    if type(layer) is not nn.Linear:
        return f"{name} is a {type(layer).__name__}, expected a plain torch.nn.Linear"
    if any(getattr(layer, hooks) for hooks in _HOOKS):
        return f"{name} has hooks, which would not be called"
    if "forward" in vars(layer):
        return f"the forward of {name} was exchanged on the instance"
    return None


def _graph_obstacle(module: nn.Module, layout: Layout) -> str | None:
    names = layout.matrix_names(module)
    steps = getattr(module, layout.step_name(module), None)
    if not isinstance(steps, int) or steps < 1:
        return f"{layout.step_name(module)} must be a positive integer, it is {steps!r}"
    inward, outward = (getattr(module, name, None) for name in names)
    for name, matrix in zip(names, (inward, outward), strict=True):
        if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            form = list(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            return f"{name} must be a tensor [C, C], it is {form}"
        if matrix.requires_grad:
            return f"{name} requires a gradient, and the fused operation takes the graph as a constant"
    assert isinstance(inward, Tensor) and isinstance(outward, Tensor)
    if torch.compiler.is_compiling():
        return None
    tracked = not (inward.is_inference() or outward.is_inference())  # the others have no version to tell a change by
    versions = (inward._version, outward._version) if tracked else (-1, -1)
    known = _TRANSPOSED.get(module)
    trusted = tracked and not inward.is_cpu  # a change through .data leaves no mark, and to look costs a wait elsewhere
    if trusted and known is not None and known[0]() is inward and known[1]() is outward and known[2] == versions:
        return None
    if inward.device != outward.device or inward.dtype != outward.dtype:
        pair = (f"{matrix.dtype} on {matrix.device}" for matrix in (inward, outward))
        return f"{names[0]} and {names[1]} differ in dtype or device: {' and '.join(pair)}".replace("torch.", "")
    if not inward.is_meta and not torch.equal(inward, outward.t()):
        return f"{names[1]} is not the transpose of {names[0]}"
    _TRANSPOSED[module] = (weakref.ref(inward), weakref.ref(outward), versions)
    return None
