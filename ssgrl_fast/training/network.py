"""From the options of a task to its network: word vectors, graph, backbone and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssgrl_fast.labels import graph, origin, words
from ssgrl_fast.models.backbones import build_backbone, freeze_backbone
from ssgrl_fast.models.pooling import GlobalPoolingClassifier
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.training.options import TaskOptions

_HEAD = ("joint_dim", "steps", "mode", "decoupling", "interaction", "backend")


class Ingredients(NamedTuple):
    """What an SSGRL head is made of: word vectors [C, S], adjacency [C, C], and how they were made
    (``ssgrl_fast.labels.origin``); all None for kind "pooling"."""

    vectors: Tensor | None
    adjacency: Tensor | None
    origin: dict[str, Any] | None


def words_and_graph(options: TaskOptions, data: Any) -> Ingredients:
    """Word vectors and adjacency for the classes of the data.

    Args:
        options: kind, words, compounds, graph, graph_diagonal, difficult.
        data: class_names, and train_labels int8 [M, C], counted where options name no graph file (section 3.3:
            training images only).

    Raises:
        ValueError: no words, words that lack a name, a graph of other classes.
        FileNotFoundError: no such file.
    """
    if options.kind == "pooling":
        return Ingredients(None, None, None)
    if options.words is None:
        raise ValueError("kind 'ssgrl' needs words: 'glove-6b-50d', 'spacy-md-300d' or a file of word vectors")
    names = list(data.class_names)
    vectors = words.lookup(options.words, names, compounds={**words.COMPOUNDS, **(options.compounds or {})})
    if options.graph is not None:
        saved = graph.read(options.graph)
        adjacency = saved.ordered(names)
        made = origin.read_graph(saved, adjacency)
    else:
        labels = data.train_labels
        counted: dict[str, Any] = {"diagonal": options.graph_diagonal, "difficult": options.difficult}
        adjacency = graph.cooccurrence(labels, class_names=names, **counted)
        ids = getattr(getattr(data, "train_dataset", None), "ids", None)
        images = origin.images_record(getattr(data, "train_source", origin.UNSTATED), labels, ids)
        made = origin.counted_graph(adjacency, labels, names, images, **counted)
    whole = origin.record(names, origin.read_words(options.words, vectors), made)
    return Ingredients(vectors.vectors, adjacency, whole)


def build_network(
    options: TaskOptions, class_names: Sequence[str], ingredients: Ingredients, *, fresh: bool
) -> SSGRL | GlobalPoolingClassifier:
    """The network that the options describe: random weights drawn from the seed alone, the backbone frozen by freeze.

    Args:
        options: of the task.
        class_names: C names.
        ingredients: of :func:`words_and_graph`.
        fresh: start the backbone from the weights that the options name, unless transfer_from names a model; False: a
            checkpoint will replace all weights.

    Raises:
        TypeError, ValueError, ConnectionError: see build_backbone, freeze_backbone and SSGRL.
    """
    start = {"pretrained": options.pretrained, "weights": options.backbone_weights}
    fresh = fresh and options.transfer_from is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        body = build_backbone(options.backbone, **(start if fresh else {"pretrained": False}))
        assert options.freeze is not None  # the mode has set it
        freeze_backbone(body, options.freeze)
        vectors, adjacency, made = ingredients
        if vectors is None or adjacency is None:
            return GlobalPoolingClassifier(body, len(class_names), class_names=class_names)
        head = {name: getattr(options, name) for name in _HEAD}
        model = SSGRL(body, vectors, adjacency, class_names=class_names, **head)
    model.origin = made
    return model
