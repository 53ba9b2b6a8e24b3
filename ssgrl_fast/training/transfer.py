"""Weights of a model over other classes as a start: pre-training on MS-COCO, then training on Pascal VOC, the paper's
"pre" rows (4.2.2).

| tensor | what becomes of it |
|---|---|
| the backbone, eq. 3-4's layers, the gates of eq. 9, f_o of eq. 10 | depend on no class: all are carried over |
| the classifiers of eq. 10, one row per class | new, or carried over for the classes that both sides know by name |
| word vectors, co-occurrence graph | the model's own: they are made for its classes, not learned |

Shapes: C classes, O inputs of a classifier.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.labels.matrix import check_class_names
from ssgrl_fast.models.bundle import locate, read_bundle
from ssgrl_fast.models.pooling import GlobalPoolingClassifier
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.models.weight_files import check_fit, read_tensors, read_torch_file, state_dict_of
from ssgrl_fast.published.checkpoint import packed_head, parse_official, unwrapped
from ssgrl_fast.training.checkpoint import TRAINING_ENTRY
from ssgrl_fast.training.options import CLASS_ROWS, StartOptions

__all__ = ["CLASS_ROWS", "COCO_TO_VOC", "OtherWords", "Transfer", "transfer_weights"]

COCO_TO_VOC: Mapping[str, str] = {
    "airplane": "aeroplane",
    "couch": "sofa",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
}
"""MS-COCO's names for the six of Pascal VOC's classes that it spells otherwise; COCO's categories hold all twenty (Lin
et al., Microsoft COCO, ECCV 2014, section 3.1), and the other fourteen have one name in both."""


_ROWS = ("head.classifier.weight_c", "head.classifier.bias_c", "head.linear.weight", "head.linear.bias")
_CONSTANTS = {
    "head.words": "the model's own: made for its classes, not learned",
    "head.adjacency": "the model's own: made for its classes, not learned",
}
_MEANING = ("mode", "decoupling", "interaction")  # options that give weights of one shape another use


class OtherWords(UserWarning):
    """Classes of one name have other word vectors here than where the weights were trained."""


@dataclass(frozen=True)
class Transfer:
    """What :func:`transfer_weights` did.

    Attributes:
        source: where the weights were read.
        kind: what lay there.
        carried: names of the tensors that were carried over whole.
        numbers: how many numbers they hold.
        class_rows: "new" or "by_name".
        mapped: class here -> class of the source whose row it got.
        new_classes: classes here whose row is newly drawn.
        unused_classes: the source's classes that no class here took a row from; empty where it names none.
        left: tensor that was not, or not wholly, carried over -> why.
        facts: what the source says about itself, text by name: its SHA-256, how it was trained.
        notes: what to know besides.
    """

    source: str
    kind: str
    carried: list[str]
    numbers: int
    class_rows: str
    mapped: dict[str, str]
    new_classes: list[str]
    unused_classes: list[str]
    left: dict[str, str]
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the summary."""
        return {"format": "ssgrl_fast.transfer", "summary": self.summary(), **asdict(self)}

    def summary(self) -> str:
        """One line, for a recipe's entry ``ssgrl_fast.metrics.PRE``."""
        total = len(self.mapped) + len(self.new_classes)
        rows = f"{len(self.mapped)} of {total} class rows by name" if self.mapped else f"{total} class rows new"
        return f"{self.source} ({self.kind}): {len(self.carried)} tensors, {rows}"

    def describe(self) -> str:
        """Several lines, for a screen."""
        lines = [f"weights from {self.source} ({self.kind})"]
        lines.append(f"  carried over: {len(self.carried)} tensors that depend on no class, {self.numbers:,} numbers")
        renamed = [f"{here} from {there}" if here != there else here for here, there in self.mapped.items()]
        if renamed:
            lines.append(f"  class rows by name: {', '.join(renamed)}")
        if self.new_classes:
            lines.append(f"  class rows newly drawn: {', '.join(self.new_classes)}")
        lines += [f"  left: {name}: {why}" for name, why in self.left.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class _Source:
    """Weights under this project's names, and what is known about them."""

    where: str
    kind: str
    tensors: dict[str, Tensor]
    class_names: list[str] | None = None
    words: Tensor | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def transfer_weights(
    model: SSGRL | GlobalPoolingClassifier,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    class_rows: Literal["new", "by_name"] = "new",
    aliases: Mapping[str, str] = COCO_TO_VOC,
    source_classes: Sequence[str] | None = None,
) -> Transfer:
    """Load every weight that depends on no class into a model over other classes.

    Args:
        model: what receives them, in place; dtype and device stay its own.
        source: a bundle's folder (or Hub repository), a checkpoint of `fit`, one of the published code or of
            HCP-MLR-PL, a file of a bare state_dict, or a state_dict. No code in a file is run.
        class_rows: "new": all classifiers stay as the model has them, as in the paper, where C changes. "by_name": a
            class gets the classifier of the source's class of its name, or of the one that ``aliases`` calls so.
        aliases: the source's name -> the name here. It counts only where neither name is on both sides.
        source_classes: the source's class names in the order of its rows; None: those it holds.

    Returns:
        What was carried over, mapped and left.

    Raises:
        FileNotFoundError: no such file or folder.
        TypeError: a model or source of another type.
        ValueError: keys or shapes of class-free tensors that do not fit (listed: another backbone, another size of
            words), another mode, decoupling or normalisation, another kind of model; class names that are not one per
            row, or "by_name" and none known; two of the source's classes for one here. The model is unchanged.
    """
    check_choice("transfer_weights", "class_rows", class_rows, CLASS_ROWS)
    if not isinstance(model, SSGRL | GlobalPoolingClassifier):
        raise TypeError(f"transfer_weights: model must be an SSGRL or its baseline, got {type(model).__name__}")
    # read the source and compare what it is with the model
    loaded = _read(model, source)
    names = _source_names(loaded, source_classes, class_rows)
    _check_meaning(model, loaded)
    # what depends on no class has to fit by name and shape
    own = model.state_dict()
    free = {name: value for name, value in own.items() if name not in (*_ROWS, *_CONSTANTS)}
    carried = {name: value for name, value in loaded.tensors.items() if name not in (*_ROWS, *_CONSTANTS)}
    check_fit(free, carried, loaded.where, optional=lambda name: name.endswith(".num_batches_tracked"))
    # classifiers of the classes that both sides know
    mapped = _mapped(model.class_names, names, aliases, loaded.where) if class_rows == "by_name" and names else {}
    rows = _rows(own, loaded, mapped, model.class_names, names or [])
    model.load_state_dict({**carried, **rows}, strict=False)  # strictly checked above, but for counters
    # the record of what was done
    new = [name for name in model.class_names if name not in mapped]
    left = {name: why for name, why in _CONSTANTS.items() if name in own}
    if new:
        why = f"newly drawn for {len(new)} of {len(model.class_names)} classes"
        left |= {name: why for name in _ROWS if name in own}
    return Transfer(
        loaded.where,
        loaded.kind,
        carried=list(carried),
        numbers=sum(value.numel() for value in carried.values()),
        class_rows=class_rows,
        mapped=mapped,
        new_classes=new,
        unused_classes=[name for name in names or [] if name not in mapped.values()],
        left=left,
        facts=loaded.facts,
        notes=_notes(model, loaded, names),
    )


def start_from(model: SSGRL | GlobalPoolingClassifier, options: StartOptions) -> Transfer | None:
    """Give a new network the weights that the options name; None where they name none.

    Args:
        model: what receives them.
        options: transfer_from, transfer_classes, transfer_aliases.

    Raises:
        FileNotFoundError, ValueError: see :func:`ssgrl_fast.training.transfer.transfer_weights`.
    """
    if options.transfer_from is None:
        return None
    aliases = COCO_TO_VOC if options.transfer_aliases is None else options.transfer_aliases
    return transfer_weights(model, options.transfer_from, class_rows=options.transfer_classes, aliases=aliases)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(model: SSGRL | GlobalPoolingClassifier, source: str | os.PathLike[str] | Mapping[str, Tensor]) -> _Source:
    if isinstance(source, Mapping):
        return _from_weights(source, "state_dict", "a state_dict")
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"transfer_weights: source must be a path or a state_dict, got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        return _from_bundle(model, source)
    if path.suffix == ".safetensors":
        return _from_weights(read_tensors(path), str(path), "a file of weights")
    content = read_torch_file(path)
    if isinstance(content.get(TRAINING_ENTRY), Mapping):
        return _from_fit(content, str(path))
    return _from_weights(content, str(path), "a file of weights")


def _from_bundle(model: SSGRL | GlobalPoolingClassifier, source: str | os.PathLike[str]) -> _Source:
    folder = locate(source)
    config, tensors = read_bundle(folder, kind=type(model).__name__)
    norm, body = config["normalisation"], model.backbone
    if (list(body.mean), list(body.std)) != (norm["mean"], norm["std"]):
        raise ValueError(
            f"{folder}: was trained on images normalised by mean {norm['mean']} and std {norm['std']}, the model's are "
            f"by {list(body.mean)} and {list(body.std)}"
        )
    facts = {"sha256": str(config["weights"]["sha256"])}
    if recipe := config.get("recipe"):
        facts["recipe"] = ", ".join(f"{name} {value}" for name, value in recipe.items())
    options = dict(config.get("head") or {})
    return _Source(str(source), "a bundle", tensors, config["class_names"], tensors.get("head.words"), options, facts)


def _from_fit(content: Mapping[str, Any], where: str) -> _Source:
    entry, start = content[TRAINING_ENTRY], "model."
    weights = state_dict_of(content, where)
    tensors = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
    facts = {"epoch": str(content.get("epoch", "not stated"))}
    options = dict(entry["architecture"])
    return _Source(where, "a checkpoint of fit", tensors, entry["class_names"], entry["words"], options, facts)


def _from_weights(content: Mapping[str, Any], where: str, kind: str) -> _Source:
    """A state_dict under this project's names or in a published layout."""
    weights = unwrapped(state_dict_of(content, where))
    if any(name.startswith("head.") for name in weights):
        return _Source(where, kind, weights, words=weights.get("head.words"))
    checkpoint = parse_official(content, where)
    body = {f"backbone.net.{name}": value for name, value in checkpoint.backbone.items()}
    head = {f"head.{name}": value for name, value in packed_head(checkpoint).items()}
    options = {"mode": checkpoint.layout.reset_gate, "decoupling": "semantic", "interaction": True}
    facts = {name: str(value) for name, value in checkpoint.facts.items()}
    words = checkpoint.constants.get("words")
    return _Source(where, f"{kind}, {checkpoint.layout.name}", {**body, **head}, None, words, options, facts)


def _source_names(loaded: _Source, names_given: Sequence[str] | None, class_rows: str) -> list[str] | None:
    """The source's class names, one per row of its classifier, where they are known."""
    names = loaded.class_names if names_given is None else check_class_names("transfer_weights", names_given)
    count = next((len(loaded.tensors[name]) for name in _ROWS if name in loaded.tensors), None)
    if names is None and class_rows == "by_name":
        raise ValueError(
            f"{loaded.where}: names no classes, which class_rows='by_name' needs: give source_classes, or "
            "make a bundle of it with ssgrl-fast convert"
        )
    if names is not None and count is not None and len(names) != count:
        raise ValueError(f"{loaded.where}: has rows of {count} classes, source_classes are {len(names)}")
    if names is not None and names_given is not None and loaded.class_names not in (None, names):
        raise ValueError(f"{loaded.where}: names its own classes, and source_classes are others, or in another order")
    return None if names is None else list(names)


def _check_meaning(model: SSGRL | GlobalPoolingClassifier, loaded: _Source) -> None:
    """Refuse weights that fit by shape and were trained for another computation."""
    if not isinstance(model, SSGRL):
        return
    for name in _MEANING:
        mine = getattr(model.head, name)
        if loaded.options.get(name, mine) != mine:
            raise ValueError(
                f"{loaded.where}: was trained with {name}={loaded.options[name]!r}, the model has {mine!r}"
            )


# ---- classes ---------------------------------------------------------------------------------------------------------


def _mapped(names: Sequence[str], theirs: Sequence[str], aliases: Mapping[str, str], where: str) -> dict[str, str]:
    """Class here -> class there, by its own name, or else by an alias."""
    mapped = {}
    for name in names:
        called = (
            [name]
            if name in theirs
            else [other for other in theirs if aliases.get(other) == name and other not in names]
        )
        if len(called) > 1:
            raise ValueError(f"{where}: aliases give class {name!r} to several of its classes: {', '.join(called)}")
        if called:
            mapped[name] = called[0]
    return mapped


def _rows(
    own: Mapping[str, Tensor], loaded: _Source, mapped: Mapping[str, str], names: Sequence[str], theirs: Sequence[str]
) -> dict[str, Tensor]:
    """The classifier with the rows that are carried over in it, [C, O] and [C]."""
    if not mapped:
        return {}
    here = torch.tensor([names.index(name) for name in mapped])
    there = torch.tensor([theirs.index(name) for name in mapped.values()])
    rows = {}
    for name in (each for each in _ROWS if each in own):
        if name not in loaded.tensors or loaded.tensors[name].shape[1:] != own[name].shape[1:]:
            shape = list(loaded.tensors[name].shape) if name in loaded.tensors else "none"
            raise ValueError(f"{loaded.where}: {name} is {shape}, the model's is {list(own[name].shape)}")
        rows[name] = own[name].clone()
        rows[name][here] = loaded.tensors[name][there].to(own[name])
    return rows


def _notes(model: SSGRL | GlobalPoolingClassifier, loaded: _Source, theirs: Sequence[str] | None) -> list[str]:
    """Whether classes of one name have one word vector on both sides; eq. 3's V learned to read those of the source."""
    words = getattr(model.head, "words", None)
    if words is None or loaded.words is None or theirs is None or words.shape[1] != loaded.words.shape[1]:
        return []
    both = [name for name in model.class_names if name in theirs]
    mine = words[[model.class_names.index(name) for name in both]].cpu().double()
    other = loaded.words[[list(theirs).index(name) for name in both]].double()
    close = torch.isclose(mine, other, rtol=1e-5, atol=1e-6).all(1).tolist()
    differing = [name for name, same in zip(both, close, strict=True) if not same]
    if not differing:
        return [f"word vectors of the {len(both)} classes of one name agree"] if both else []
    note = (
        f"word vectors of {len(differing)} of the {len(both)} classes of one name differ ({', '.join(differing[:5])}): "
        "the weights were trained with other vectors than the model has"
    )
    warnings.warn(f"{loaded.where}: {note}", OtherWords, stacklevel=3)
    return [note]
