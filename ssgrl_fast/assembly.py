"""From the options of a recipe to a network: the modes' defaults, word vectors, graph, backbone and head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import graph, origin, words
from .checks import check_choice
from .labels import DIFFICULT_RULES
from .losses import LOSSES
from .models._backbone import FREEZE_MODES
from .models.ablations import GlobalPoolingClassifier
from .models.backbones import build_backbone, freeze_backbone
from .models.ssgrl import SSGRL
from .models.transfer import CLASS_ROWS, COCO_TO_VOC, Transfer, transfer_weights
from .optim import OPTIMIZERS, SCHEDULES

KINDS = ("ssgrl", "pooling")
MODE_DEFAULTS: dict[str, dict[str, str]] = {
    "paper": {"loss": "sum", "schedule": "plateau", "freeze": "paper", "difficult": "ignore"},
    "official": {"loss": "mean", "schedule": "constant", "freeze": "official", "difficult": "negative"},
}
ARCHITECTURE = (
    "kind",
    "backbone",
    "mode",
    "joint_dim",
    "steps",
    "decoupling",
    "interaction",
)  # what a checkpoint settles
_CHOICES: dict[str, tuple[str, ...]] = {
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "difficult": DIFFICULT_RULES,
    "schedule": SCHEDULES,
    "freeze": FREEZE_MODES,
    "transfer_classes": CLASS_ROWS,
}
_HEAD = ("joint_dim", "steps", "mode", "decoupling", "interaction", "backend")


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of :class:`~ssgrl_fast.training.SSGRLTask`, their defaults filled in.

    Raises:
        ValueError: an option that is none of its choices, or options that contradict each other.
    """
    for name, choices in _CHOICES.items():
        check_choice("SSGRLTask", name, options[name], choices)
    if options["cache_features"] is not None and options["freeze"] != "all":
        raise ValueError(f"SSGRLTask: cache_features needs freeze='all', got freeze={options['freeze']!r}")
    if options["transfer_from"] is not None and options["backbone_weights"] is not None:
        raise ValueError("SSGRLTask: transfer_from brings the backbone's weights: give no backbone_weights beside it")


class Ingredients(NamedTuple):
    """What an SSGRL head is made of: word vectors [C, S], adjacency [C, C], and how they were made
    (``ssgrl_fast.origin``); all None for kind "pooling"."""

    vectors: Tensor | None
    adjacency: Tensor | None
    origin: dict[str, Any] | None


def words_and_graph(options: Mapping[str, Any], data: Any) -> Ingredients:
    """Word vectors and adjacency of a recipe.

    Args:
        options: of :class:`~ssgrl_fast.training.SSGRLTask`: kind, words, graph, graph_diagonal, difficult.
        data: class_names, and train_labels int8 [M, C], counted where options name no graph file (section 3.3:
            training images only).

    Raises:
        ValueError: no words, words that lack a name, a graph of other classes.
        FileNotFoundError: no such file.
    """
    if options["kind"] == "pooling":
        return Ingredients(None, None, None)
    if options["words"] is None:
        raise ValueError("kind 'ssgrl' needs words: 'glove-6b-50d', 'spacy-md-300d' or a file of word vectors")
    names = list(data.class_names)
    found = words.lookup(options["words"], names)
    if options["graph"] is not None:
        adjacency = graph.load(options["graph"], names)
        made = origin.read_graph(options["graph"], graph.read(options["graph"]), adjacency)
    else:
        labels = data.train_labels
        counted = {"diagonal": options["graph_diagonal"], "difficult": options["difficult"]}
        adjacency = graph.cooccurrence(labels, class_names=names, **counted)
        ids = getattr(getattr(data, "train_dataset", None), "ids", None)
        images = origin.images_record(getattr(data, "train_source", origin.UNSTATED), labels, ids)
        made = origin.counted_graph(adjacency, labels, names, images, **counted)
    whole = origin.record(names, origin.read_words(options["words"], found), made)
    return Ingredients(found.vectors, adjacency, whole)


def build_network(
    options: Mapping[str, Any],
    class_names: Sequence[str],
    ingredients: Ingredients,
    *,
    fresh: bool,
) -> SSGRL | GlobalPoolingClassifier:
    """The network of a recipe, its random weights drawn from options["seed"] alone, its backbone frozen as they say.

    Args:
        options: of :class:`~ssgrl_fast.training.SSGRLTask`.
        class_names: C names.
        ingredients: of :func:`words_and_graph`.
        fresh: start the backbone from the weights that options name, unless they name a model to start from; False:
            weights will be loaded over all of it.

    Raises:
        TypeError, ValueError, ConnectionError: see build_backbone, freeze_backbone and SSGRL.
    """
    start = {"pretrained": options["pretrained"], "weights": options["backbone_weights"]}
    fresh = fresh and options["transfer_from"] is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["seed"])
        body = build_backbone(options["backbone"], **(start if fresh else {"pretrained": False}))
        freeze_backbone(body, options["freeze"])
        vectors, adjacency, made = ingredients
        if vectors is None or adjacency is None:
            return GlobalPoolingClassifier(body, len(class_names), class_names=class_names)
        head = {name: options[name] for name in _HEAD}
        model = SSGRL(body, vectors, adjacency, class_names=class_names, **head)
    model.origin = made
    return model


def start_from(model: SSGRL | GlobalPoolingClassifier, options: Mapping[str, Any]) -> Transfer | None:
    """Give a fresh network the weights that a recipe starts from; None where it names none.

    Args:
        model: what receives them.
        options: of :class:`~ssgrl_fast.training.SSGRLTask`: transfer_from, transfer_classes, transfer_aliases.

    Raises:
        FileNotFoundError, ValueError: see :func:`ssgrl_fast.models.transfer.transfer_weights`.
    """
    if options["transfer_from"] is None:
        return None
    aliases = COCO_TO_VOC if options["transfer_aliases"] is None else options["transfer_aliases"]
    return transfer_weights(model, options["transfer_from"], class_rows=options["transfer_classes"], aliases=aliases)


def words_and_graph_sources(options: Mapping[str, Any]) -> dict[str, str]:
    """Where word vectors and graph come from, for a report; nothing for kind "pooling"."""
    if options["kind"] == "pooling":
        return {}
    counted = f"training labels, diagonal {options['graph_diagonal']:g}"
    return {"words": str(options["words"]), "graph": str(options["graph"] or counted)}
