"""Checkpoints of the published code and of its successor, read into :class:`~ssgrl_fast.models.ssgrl.SSGRL`.

Such a file holds weights alone: words, graph and class names come beside it (HCP-MLR-PL stores words and matrices too).
Shapes: C classes, D channels, S word size, K joint and M attention channels, O output channels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssgrl_fast.models.backbones import build_backbone
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.models.weight_files import check_fit, read_torch_file, state_dict_of

__all__ = [
    "LAYOUTS",
    "OfficialCheckpoint",
    "OfficialLayout",
    "load_official_checkpoint",
    "packed_head",
    "parse_official",
    "read_official",
    "unwrapped",
]

_WRAPPERS = ("module.", "model.", "_orig_mod.")
_SHAPES = {
    **{"image.weight": "K D", "word.weight": "K S", "joint.weight": "M K", "joint.bias": "M"},
    **{"score.weight": "1 M", "score.bias": "1", "output.weight": "O 2D", "output.bias": "O"},
    **{"rows.weight": "C O", "rows.bias": "C"},
    **{f"{gate}_w.{kind}": shape for gate in "zrh" for kind, shape in (("weight", "D 2D"), ("bias", "D"))},
    **{f"{gate}_u.{kind}": shape for gate in "zrh" for kind, shape in (("weight", "D D"), ("bias", "D"))},
}
"""What a checkpoint holds, by role: the three gates' layers (message and state), and those around them."""


@dataclass(frozen=True)
class OfficialLayout:
    """Under which keys a code base stores the roles. ``constants``: what it stores that others keep outside."""

    name: str
    backbone: str
    layers: Mapping[str, str]
    reset_gate: str
    constants: Mapping[str, str] = field(default_factory=dict)

    def key(self, role: str) -> str:
        """The key of a role, ``"image.weight"``."""
        layer, kind = role.split(".")
        return f"{self.layers[layer]}.{kind}"


LAYOUTS = (
    OfficialLayout(
        "SSGRL as published",
        "resnet_101.",
        {
            **{"image": "word_semantic.fc_1", "word": "word_semantic.fc_2", "joint": "word_semantic.fc_3"},
            **{"score": "word_semantic.fc_a", "output": "fc_output", "rows": "classifiers"},
            **{"z_w": "graph_net.fc_eq3_w", "r_w": "graph_net.fc_eq4_w", "h_w": "graph_net.fc_eq5_w"},
            **{"z_u": "graph_net.fc_eq3_u", "r_u": "graph_net.fc_eq4_u", "h_u": "graph_net.fc_eq5_u"},
        },
        reset_gate="official",
    ),
    OfficialLayout(
        "HCP-MLR-PL",
        "backbone.",
        {
            **{"image": "SemanticDecoupling.fc1", "word": "SemanticDecoupling.fc2", "joint": "SemanticDecoupling.fc3"},
            **{"score": "SemanticDecoupling.fc4", "output": "fc", "rows": "classifiers"},
            **{f"{gate}_w": f"GraphNeuralNetwork.fc_{number}_w" for number, gate in enumerate("zrh", 1)},
            **{f"{gate}_u": f"GraphNeuralNetwork.fc_{number}_u" for number, gate in enumerate("zrh", 1)},
        },
        reset_gate="paper",
        constants={"words": "wordFeatures", "adjacency": "inMatrix", "transposed": "outMatrix"},
    ),
)


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A checkpoint's content, of :func:`read_official`.

    Attributes:
        path: the file, as messages name it.
        layout: which code base wrote it.
        weights: by their keys.
        sizes: by letter.
        constants: words and matrices that lay among the weights.
        facts: what lay beside the weights (``epoch``, ``best_mAP``).
    """

    path: str
    layout: OfficialLayout
    weights: dict[str, Tensor]
    sizes: dict[str, int]
    constants: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The backbone's weights, without their prefix; what belongs to no layer of the head stays under its name."""
        head = {self.layout.key(role) for role in _SHAPES}
        prefix = self.layout.backbone
        return {key.removeprefix(prefix): value for key, value in self.weights.items() if key not in head}


def load_official_checkpoint(
    path: str | os.PathLike[str] | OfficialCheckpoint,
    words: Tensor | None,
    adjacency: Tensor | None,
    *,
    class_names: Sequence[str] | None = None,
    backbone: str | nn.Module = "resnet101",
    steps: int = 3,
    **head: Any,
) -> SSGRL:
    """A model with the weights of a published checkpoint, on the CPU and in evaluation mode.

    The published code's files give ``mode="official"``: its reset gate reads the update gate's U^z (D1), and a gate's
    two biases are stored as their sum (D3); the bias of its unused fc_eq4_u has no effect there and no place here.
    Those of HCP-MLR-PL give the paper's reset gate with gate biases.

    Args:
        path: a torch file, of any age: zip or legacy pickle, under Python 2 or 3. Only tensors, plain values and numpy
            scalars are read; nothing in it is run. Or what :func:`read_official` gave, which opens no file again.
        words: [C, S], one word vector a class, in the order that the model was trained in; None: those in the file.
        adjacency: [C, C], row c holds P(c' | c); None: that in the file.
        class_names: C names in that order; None: "class 0", …
        backbone: a torchvision ResNet's name, or a module whose state_dict has the file's keys without their prefix.
        steps: T; no file tells it.
        head: keyword arguments of :class:`~ssgrl_fast.modules.SSGRLHead` on how it runs: backend, recompute.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, of no known layout, keys or shapes that do not fit (listed), another number of classes or
            word size; words or adjacency that differ from those in the file, or are nowhere.
        TypeError: words or adjacency of a wrong type.
    """
    found = path if isinstance(path, OfficialCheckpoint) else read_official(path)
    source = found.path
    words = _constant("words", words, found, "C S", source)
    adjacency = _constant("adjacency", adjacency, found, "C C", source)
    body = build_backbone(backbone, pretrained=False) if isinstance(backbone, str) else build_backbone(backbone)
    if body.out_channels != found.sizes["D"]:
        raise ValueError(f"{source}: holds weights for {found.sizes['D']} channels, backbone has {body.out_channels}")
    check_fit(body.net.state_dict(), found.backbone, f"{source}, backbone", optional=_counter)
    official = found.layout.reset_gate == "official"
    model = SSGRL(
        body,
        words,
        adjacency,
        class_names=class_names,
        joint_dim=found.sizes["K"],
        attention_dim=found.sizes["M"],
        out_dim=found.sizes["O"],
        steps=steps,
        mode="official" if official else "paper",
        gate_bias=True,
        **head,
    )
    body.net.load_state_dict(found.backbone, strict=False)  # strictly checked above, but for counters
    model.head.load_state_dict(packed_head(found), strict=False)
    return model.eval()


def read_official(path: str | os.PathLike[str]) -> OfficialCheckpoint:
    """Read a file and find its layout; every layer of the head is there, in shapes that fit each other.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_official_checkpoint`.
    """
    return parse_official(read_torch_file(path), path)


def parse_official(content: Mapping[str, Any], path: str | os.PathLike[str]) -> OfficialCheckpoint:
    """As :func:`read_official`, of what a torch file holds, or of a state_dict itself; ``path`` opens messages.

    Raises:
        ValueError: as there.
    """
    weights, source = unwrapped(state_dict_of(content, path)), os.fspath(path)
    layout = max(LAYOUTS, key=lambda each: len(_present(each, weights)))
    if not (present := _present(layout, weights)):
        known = " or ".join(each.key("image.weight") for each in LAYOUTS)
        shown = ", ".join(list(weights)[:6])
        raise ValueError(f"{source}: of no known layout: no key such as {known}; it has {shown} …")
    missing = [layout.key(role) for role in _SHAPES if role not in present]
    if missing:
        raise ValueError(f"{source}: looks like {layout.name} and lacks {', '.join(missing)}")
    sizes: dict[str, int] = {}
    for role, letters in _SHAPES.items():
        _match(source, layout.key(role), weights[layout.key(role)], letters, sizes)
    constants = {name: weights.pop(key) for name, key in layout.constants.items() if key in weights}
    for name, key in layout.constants.items():  # one code stores them at the top, its ports in the graph network
        if name not in constants and f"GraphNeuralNetwork.{key}" in weights:
            constants[name] = weights.pop(f"GraphNeuralNetwork.{key}")
    facts = {name: value for name, value in content.items() if not isinstance(value, Mapping | Tensor)}
    return OfficialCheckpoint(source, layout, weights, sizes, constants, facts)


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put before every key."""
    while prefix := next((each for each in _WRAPPERS if all(key.startswith(each) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _present(layout: OfficialLayout, weights: Mapping[str, Tensor]) -> set[str]:
    return {role for role in _SHAPES if layout.key(role) in weights}


def _match(source: str, key: str, tensor: Tensor, letters: str, sizes: dict[str, int]) -> None:
    """Compare a shape with its letters; a letter takes its size from the first tensor that shows it alone."""
    wanted = letters.split()
    if tensor.dim() == len(wanted):
        for letter, size in zip(wanted, tensor.shape, strict=True):
            if len(letter) == 1 and letter.isalpha():
                sizes.setdefault(letter, size)
    expected = [1 if letter == "1" else sizes.get(letter[-1], -1) * (2 if letter[0] == "2" else 1) for letter in wanted]
    if list(tensor.shape) != expected:
        raise ValueError(f"{source}: {key} is {list(tensor.shape)}, expected [{', '.join(wanted)}] = {expected}")


def _constant(name: str, given: Tensor | None, found: OfficialCheckpoint, letters: str, source: str) -> Tensor:
    """The words or the graph, of the caller or of the file, refused where the two differ or the shape does not fit."""
    held = found.constants.get(name)
    value = held if given is None else given
    if value is None:
        raise ValueError(f"{source}: {found.layout.name} stores no {name}: give those that it was trained with")
    if not isinstance(value, Tensor):
        raise TypeError(f"load_official_checkpoint: {name} must be a tensor, got {type(value).__name__}")
    expected = [found.sizes[letter] for letter in letters.split()]
    if list(value.shape) != expected:
        raise ValueError(
            f"{source}: holds {found.sizes['C']} classes and words of {found.sizes['S']} numbers, so {name} must be"
            f" {expected}, got {list(value.shape)}"
        )
    if held is not None and not torch.equal(value.to(held.dtype), held):
        raise ValueError(f"{source}: stores its own {name}, and those given differ: other classes, or another order")
    return value


def packed_head(found: OfficialCheckpoint) -> dict[str, Tensor]:
    """The head's weights as SSGRLHead holds them."""
    w = {role: found.weights[found.layout.key(role)] for role in _SHAPES}
    reset_bias = w["z_u.bias"] if found.layout.reset_gate == "official" else w["r_u.bias"]
    rows = [torch.cat([w[f"{gate}_u.weight"], w[f"{gate}_w.weight"]], 1) for gate in "zr"]
    return {
        "semantic_decoupling.weight_u": w["image.weight"],
        "semantic_decoupling.weight_v": w["word.weight"],
        "semantic_decoupling.weight_p": w["joint.weight"],
        "semantic_decoupling.bias_p": w["joint.bias"],
        "semantic_decoupling.weight_a": w["score.weight"][0],
        "semantic_decoupling.bias_a": w["score.bias"],
        "graph_propagation.weight_zr": torch.cat(rows),
        "graph_propagation.bias_zr": torch.cat([w["z_w.bias"] + w["z_u.bias"], w["r_w.bias"] + reset_bias]),
        "graph_propagation.weight_h": torch.cat([w["h_w.weight"], w["h_u.weight"]], 1),
        "graph_propagation.bias_h": w["h_w.bias"] + w["h_u.bias"],
        "classifier.weight_o": w["output.weight"],
        "classifier.bias_o": w["output.bias"],
        "classifier.weight_c": w["rows.weight"],
        "classifier.bias_c": w["rows.bias"],
    }


def _counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")
