"""Checkpoints of the published code and of its successor, read into :class:`~ssgrl_fast.models.ssgrl.SSGRL`.

Such a file holds weights alone: words, graph and class names come beside it (HCP-MLR-PL stores words and matrices too).
Shapes: C classes, D channels, S word size, K joint and M attention channels, O output channels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssgrl_fast.models.backbones import build_backbone
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.models.weight_files import check_fit, read_torch_file, state_dict_of
from ssgrl_fast.published.layouts import CODE_BASES, CodeBase

__all__ = [
    "OfficialCheckpoint",
    "load_official_checkpoint",
    "packed_head",
    "parse_official",
    "read_official",
    "unwrapped",
]

_WRAPPERS = ("module.", "model.", "_orig_mod.")
_SHAPES = {
    **{"u.weight": "K D", "v.weight": "K S", "p.weight": "M K", "p.bias": "M", "a.weight": "1 M", "a.bias": "1"},
    **{"o.weight": "O 2D", "o.bias": "O", "rows.weight": "C O", "rows.bias": "C"},
    **{f"w_{gate}.{kind}": shape for gate in "zrh" for kind, shape in (("weight", "D 2D"), ("bias", "D"))},
    **{f"u_{gate}.{kind}": shape for gate in "zrh" for kind, shape in (("weight", "D D"), ("bias", "D"))},
}
"""The tensors of a checkpoint and their shapes, by role (:mod:`ssgrl_fast.published.layouts`)."""


@dataclass(frozen=True)
class OfficialCheckpoint:
    """A checkpoint's content, of :func:`read_official`.

    Attributes:
        path: the file, as messages name it.
        layout: which code base wrote it.
        weights: by their keys.
        sizes: by letter.
        constants: words and matrices stored among the weights.
        facts: what is stored beside the weights (``epoch``, ``best_mAP``).
    """

    path: str
    layout: CodeBase
    weights: dict[str, Tensor]
    sizes: dict[str, int]
    constants: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The backbone's weights, without their prefix; what belongs to no layer of the head stays under its name."""
        head = {self.layout.key(role) for role in _SHAPES}
        prefix = f"{self.layout.backbone}."
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
        words: [C, S], one word vector per class, in the order that the model was trained in; None: those in the file.
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
    checkpoint = path if isinstance(path, OfficialCheckpoint) else read_official(path)
    source = checkpoint.path
    words = _constant("words", words, checkpoint, "C S", source)
    adjacency = _constant("adjacency", adjacency, checkpoint, "C C", source)
    body = build_backbone(backbone, pretrained=False) if isinstance(backbone, str) else build_backbone(backbone)
    if body.out_channels != checkpoint.sizes["D"]:
        raise ValueError(
            f"{source}: holds weights for {checkpoint.sizes['D']} channels, backbone has {body.out_channels}"
        )
    check_fit(body.net.state_dict(), checkpoint.backbone, f"{source}, backbone", optional=_counter)
    official = checkpoint.layout.reset_gate == "official"
    model = SSGRL(
        body,
        words,
        adjacency,
        class_names=class_names,
        joint_dim=checkpoint.sizes["K"],
        attention_dim=checkpoint.sizes["M"],
        out_dim=checkpoint.sizes["O"],
        steps=steps,
        mode="official" if official else "paper",
        gate_bias=True,
        **head,
    )
    body.net.load_state_dict(checkpoint.backbone, strict=False)  # strictly checked above, but for counters
    model.head.load_state_dict(packed_head(checkpoint), strict=False)
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
    layout = max(CODE_BASES, key=lambda each: len(_present(each, weights)))
    if not (present := _present(layout, weights)):
        known = " or ".join(each.key("u.weight") for each in CODE_BASES)
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
        if name not in constants and (inner := f"{layout.propagation[0]}.{key}") in weights:
            constants[name] = weights.pop(inner)
    facts = {name: value for name, value in content.items() if not isinstance(value, Mapping | Tensor)}
    return OfficialCheckpoint(source, layout, weights, sizes, constants, facts)


def unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put before every key."""
    while prefix := next((each for each in _WRAPPERS if all(key.startswith(each) for key in weights)), None):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _present(layout: CodeBase, weights: Mapping[str, Tensor]) -> set[str]:
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


def _constant(name: str, argument: Tensor | None, checkpoint: OfficialCheckpoint, letters: str, source: str) -> Tensor:
    """The words or the graph, from the argument or the file; refused where the two differ or the shape does not fit."""
    stored = checkpoint.constants.get(name)
    value = stored if argument is None else argument
    if value is None:
        raise ValueError(f"{source}: {checkpoint.layout.name} stores no {name}: pass those that it was trained with")
    if not isinstance(value, Tensor):
        raise TypeError(f"load_official_checkpoint: {name} must be a tensor, got {type(value).__name__}")
    expected = [checkpoint.sizes[letter] for letter in letters.split()]
    if list(value.shape) != expected:
        raise ValueError(
            f"{source}: holds {checkpoint.sizes['C']} classes and words of {checkpoint.sizes['S']} numbers, so {name} "
            f"must be {expected}, got {list(value.shape)}"
        )
    if stored is not None and not torch.equal(value.to(stored.dtype), stored):
        raise ValueError(f"{source}: stores its own {name}, and those given differ: other classes, or another order")
    return value


def packed_head(checkpoint: OfficialCheckpoint) -> dict[str, Tensor]:
    """The head's weights as SSGRLHead holds them."""
    t = {role: checkpoint.weights[checkpoint.layout.key(role)] for role in _SHAPES}
    reset_bias = t["u_z.bias"] if checkpoint.layout.reset_gate == "official" else t["u_r.bias"]
    rows = [torch.cat([t[f"u_{gate}.weight"], t[f"w_{gate}.weight"]], 1) for gate in "zr"]
    return {
        "semantic_decoupling.weight_u": t["u.weight"],
        "semantic_decoupling.weight_v": t["v.weight"],
        "semantic_decoupling.weight_p": t["p.weight"],
        "semantic_decoupling.bias_p": t["p.bias"],
        "semantic_decoupling.weight_a": t["a.weight"][0],
        "semantic_decoupling.bias_a": t["a.bias"],
        "graph_propagation.weight_zr": torch.cat(rows),
        "graph_propagation.bias_zr": torch.cat([t["w_z.bias"] + t["u_z.bias"], t["w_r.bias"] + reset_bias]),
        "graph_propagation.weight_h": torch.cat([t["w_h.weight"], t["u_h.weight"]], 1),
        "graph_propagation.bias_h": t["w_h.bias"] + t["u_h.bias"],
        "classifier.weight_o": t["o.weight"],
        "classifier.bias_o": t["o.bias"],
        "classifier.weight_c": t["rows.weight"],
        "classifier.bias_c": t["rows.bias"],
    }


def _counter(name: str) -> bool:
    return name.endswith(".num_batches_tracked")
