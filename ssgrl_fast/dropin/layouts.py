"""By which names a part of a published network is recognised, and what keeps it from being replaced.

Shapes: C classes, D channels, S word size, K joint and M attention channels.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["attention", "propagation", "rows"]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a part of one kind keeps what the fused operation reads. Layers by role; attribute names in order of
    preference."""

    name: str
    kind: Kind
    layers: Mapping[str, str] = field(default_factory=dict)
    matrices: tuple[tuple[str, str], ...] = ()
    steps: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def fits(self, module: nn.Module) -> bool:
        """Whether the module has this layout's layers (for the rows: no layers, a weight [C, D] and at most a bias)."""
        if self.kind != "rows":
            return all(isinstance(getattr(module, name, None), nn.Module) for name in self.layers.values())
        own = dict(module.named_parameters(recurse=False))
        weight, alone = (
            own.get("weight"),
            type(module).__module__.split(".")[0] != "torch" and not list(module.children()),
        )
        return alone and weight is not None and weight.dim() == 2 and set(own) <= {"weight", "bias"}

    def layer(self, module: nn.Module, role: str) -> nn.Linear:
        """The layer of a role."""
        found: nn.Linear = getattr(module, self.layers[role])
        return found

    def matrix_names(self, module: nn.Module) -> tuple[str, str]:
        """The attributes of the two matrices, that of A and that of Aᵀ."""
        return next((pair for pair in self.matrices if hasattr(module, pair[0])), self.matrices[0])

    def step_name(self, module: nn.Module) -> str:
        """The attribute of the number of steps."""
        return next((name for name in self.steps if hasattr(module, name)), self.steps[0])

    def num_classes(self, module: nn.Module, default: int) -> int:
        """C, where the module says it."""
        return next((getattr(module, name) for name in self.classes if hasattr(module, name)), default)


LAYOUTS = (
    Layout(
        "published attention",
        "attention",
        {"u": "fc_1", "v": "fc_2", "p": "fc_3", "a": "fc_a"},
        classes=("num_classes", "num_class", "class_num"),
    ),
    Layout(
        "HCP-MLR-PL attention",
        "attention",
        {"u": "fc1", "v": "fc2", "p": "fc3", "a": "fc4"},
        classes=("classNum", "num_classes"),
    ),
    Layout(
        "published propagation",
        "propagation",
        {
            **{"w_z": "fc_eq3_w", "u_z": "fc_eq3_u", "w_r": "fc_eq4_w", "u_r": "fc_eq4_u"},
            **{"w_h": "fc_eq5_w", "u_h": "fc_eq5_u"},
        },
        matrices=(("in_matrix", "out_matrix"), ("_in_matrix", "_out_matrix")),
        steps=("time_step", "timestep", "steps"),
    ),
    Layout(
        "HCP-MLR-PL propagation",
        "propagation",
        {
            **{"w_z": "fc_1_w", "u_z": "fc_1_u", "w_r": "fc_2_w", "u_r": "fc_2_u"},
            **{"w_h": "fc_3_w", "u_h": "fc_3_u"},
        },
        matrices=(("inMatrix", "outMatrix"), ("in_matrix", "out_matrix"), ("_in_matrix", "_out_matrix")),
        steps=("timeStep", "time_step"),
    ),
    Layout("published rows", "rows"),
)


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


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _layer_obstacle(name: str, layer: nn.Module) -> str | None:
    if type(layer) is not nn.Linear:
        return f"{name} is a {type(layer).__name__}, expected a plain torch.nn.Linear"
    if any(getattr(layer, hooks) for hooks in _HOOKS):
        return f"{name} has hooks, which would not be called"
    if "forward" in vars(layer):
        return f"the forward of {name} was exchanged on the instance"
    return None


_Pair = tuple[weakref.ref[Tensor], weakref.ref[Tensor], tuple[int, int]]  # two matrices and their versions
_TRANSPOSED: weakref.WeakKeyDictionary[nn.Module, _Pair] = weakref.WeakKeyDictionary()  # found to be transposes


def _graph_obstacle(module: nn.Module, layout: Layout) -> str | None:
    names = layout.matrix_names(module)
    steps = getattr(module, layout.step_name(module), None)
    if not isinstance(steps, int) or steps < 1:
        return f"{layout.step_name(module)} must be a positive integer, it is {steps!r}"
    inward, outward = (getattr(module, name, None) for name in names)
    for name, matrix in zip(names, (inward, outward), strict=True):
        if not isinstance(matrix, Tensor) or matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            found = list(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
            return f"{name} must be a tensor [C, C], it is {found}"
        if matrix.requires_grad:
            return f"{name} requires a gradient, and the fused operation takes the graph as a constant"
    assert isinstance(inward, Tensor) and isinstance(outward, Tensor)
    if torch.compiler.is_compiling():
        return None
    tracked = not (inward.is_inference() or outward.is_inference())  # the others have no version to tell a change by
    versions = (inward._version, outward._version) if tracked else (-1, -1)
    known = _TRANSPOSED.get(module)
    if tracked and known is not None and known[0]() is inward and known[1]() is outward and known[2] == versions:
        return None
    if not inward.is_meta and not torch.equal(inward, outward.t()):
        return f"{names[1]} is not the transpose of {names[0]}"
    _TRANSPOSED[module] = (weakref.ref(inward), weakref.ref(outward), versions)
    return None
