"""By which names a part of a published network is recognised, and what keeps it from being replaced.

Shapes: C classes, D channels, S word size, K joint and M attention channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

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
