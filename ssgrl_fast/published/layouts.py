"""Under which names the published code and its successor keep the parts of the network: one table, :data:`CODE_BASES`.

The same table serves two users: :func:`~ssgrl_fast.published.accelerate.accelerate` recognises a part by the names of
its layers (:data:`LAYOUTS`), and :mod:`ssgrl_fast.published.checkpoint` finds a layer's weights by its key.

Roles of layers: ``u v p a``, the image, word, joint and score layers of semantic decoupling (eq. 3-5); ``w_z u_z w_r
u_r w_h u_h``, message and state layers of the update gate, the reset gate and the candidate (eq. 9); ``o``, the output
layer, and ``rows``, one classifier per class (eq. 10).

Shapes: C classes, D channels, S word size, K joint and M attention channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from torch import Tensor, nn

Kind = Literal["attention", "propagation", "rows"]


@dataclass(frozen=True, eq=False)
class Layout:
    """The names in a part of one kind.

    Attributes:
        name: unique among the layouts.
        kind: what the part computes.
        layers: the attribute of each layer, by role.
        matrices: the attributes of A and its transpose, pairs in order of preference.
        steps: the attribute of the number of steps, names in order of preference.
        classes: the attribute of the number of classes, names in order of preference.
    """

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
        weight = own.get("weight")
        alone = type(module).__module__.split(".")[0] != "torch" and not list(module.children())
        return alone and weight is not None and weight.dim() == 2 and set(own) <= {"weight", "bias"}

    def layer(self, module: nn.Module, role: str) -> nn.Linear:
        """The layer of a role."""
        linear: nn.Linear = getattr(module, self.layers[role])
        return linear

    def weight(self, module: nn.Module) -> Tensor:
        """The weight of the first layer, or of the rows."""
        # not get_parameter: under torch.func, in a replica or parametrized it is a tensor
        return cast(Tensor, module.weight) if not self.layers else self.layer(module, next(iter(self.layers))).weight

    def matrix_names(self, module: nn.Module) -> tuple[str, str]:
        """The attributes of the two matrices, that of A and that of Aᵀ."""
        return next((pair for pair in self.matrices if hasattr(module, pair[0])), self.matrices[0])

    def step_name(self, module: nn.Module) -> str:
        """The attribute of the number of steps."""
        return next((name for name in self.steps if hasattr(module, name)), self.steps[0])

    def num_classes(self, module: nn.Module, default: int) -> int:
        """C, where the module says it."""
        return next((getattr(module, name) for name in self.classes if hasattr(module, name)), default)


@dataclass(frozen=True)
class CodeBase:
    """The names in a whole network, as the keys of its checkpoints have them.

    Attributes:
        name: what messages call it.
        reset_gate: how it computes the reset gate (D1).
        backbone: the attribute of the backbone.
        attention, propagation: the attribute of each part, and the names in it.
        output, rows: the attributes of the output layer and of the classifiers.
        constants: the keys of what it stores and others keep outside: "words", "adjacency", "transposed".
        preprocessing: of the images at test time, as ``BundleMixin.preprocessing``; empty where its authors name
            several.
    """

    name: str
    reset_gate: Literal["official", "paper"]
    backbone: str
    attention: tuple[str, Layout]
    propagation: tuple[str, Layout]
    output: str
    rows: str
    constants: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Mapping[str, int] = field(default_factory=dict)

    def key(self, role: str) -> str:
        """The key of a tensor, ``"u.weight"`` for the image layer's weight."""
        layer, kind = role.split(".")
        if layer in ("o", "rows"):
            return f"{self.output if layer == 'o' else self.rows}.{kind}"
        attribute, part = self.attention if layer in self.attention[1].layers else self.propagation
        return f"{attribute}.{part.layers[layer]}.{kind}"


CODE_BASES = (
    CodeBase(
        "SSGRL as published",
        reset_gate="official",
        backbone="resnet_101",
        attention=(
            "word_semantic",
            Layout(
                "published attention",
                "attention",
                {"u": "fc_1", "v": "fc_2", "p": "fc_3", "a": "fc_a"},
                classes=("num_classes", "num_class", "class_num"),
            ),
        ),
        propagation=(
            "graph_net",
            Layout(
                "published propagation",
                "propagation",
                {f"{which}_{gate}": f"fc_eq{n}_{which}" for n, gate in enumerate("zrh", 3) for which in "wu"},
                matrices=(("in_matrix", "out_matrix"), ("_in_matrix", "_out_matrix")),
                steps=("time_step", "timestep", "steps"),
            ),
        ),
        output="fc_output",
        rows="classifiers",
        preprocessing={"image_size": 576, "resize": 640},  # section 3.5 of the paper
    ),
    CodeBase(
        "HCP-MLR-PL",
        reset_gate="paper",
        backbone="backbone",
        attention=(
            "SemanticDecoupling",
            Layout(
                "HCP-MLR-PL attention",
                "attention",
                {"u": "fc1", "v": "fc2", "p": "fc3", "a": "fc4"},
                classes=("classNum", "num_classes"),
            ),
        ),
        propagation=(
            "GraphNeuralNetwork",
            Layout(
                "HCP-MLR-PL propagation",
                "propagation",
                {f"{which}_{gate}": f"fc_{n}_{which}" for n, gate in enumerate("zrh", 1) for which in "wu"},
                matrices=(("inMatrix", "outMatrix"), ("in_matrix", "out_matrix"), ("_in_matrix", "_out_matrix")),
                steps=("timeStep", "time_step"),
            ),
        ),
        output="fc",
        rows="classifiers",
        constants={"words": "wordFeatures", "adjacency": "inMatrix", "transposed": "outMatrix"},
    ),
)

LAYOUTS = (
    *(layout for code in CODE_BASES for _, layout in (code.attention, code.propagation)),
    Layout("published rows", "rows"),
)
"""The parts that :func:`~ssgrl_fast.published.accelerate.accelerate` knows; classifiers look the same in both codes."""
