"""SSGRL and its baseline on small backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Plain
from torch import nn

from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone

C, S = 4, 6


def make_model(backbone: str | nn.Module | None = None, **options: Any) -> SSGRL:
    torch.manual_seed(0)
    words, adjacency = torch.randn(C, S), torch.rand(C, C)
    if backbone is None:
        backbone = build_backbone("small-cnn", width=4)
    return SSGRL(backbone, words, adjacency, **{"joint_dim": 8, **options})


@pytest.mark.parametrize("options", [{}, {"mode": "official"}, {"interaction": False}])
def test_ssgrl_is_backbone_then_head(options: dict[str, Any]) -> None:
    model, images = make_model(**options).eval(), torch.randn(2, 3, 64, 48)
    logits, attention = model(images, return_attention=True)
    assert logits.shape == (2, C) and attention.shape == (2, C, 8, 6)
    assert torch.equal(logits, model.head(model.backbone(images))) and torch.equal(logits, model(images))
    assert torch.allclose(attention.sum((2, 3)), torch.ones(2, C), atol=1e-5)
    assert model.class_names == ["class 0", "class 1", "class 2", "class 3"]


def test_ssgrl_on_a_module_of_the_user_s_own() -> None:
    model = make_model(Plain())
    assert model(torch.randn(0, 3, 32, 32)).shape == (0, C)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_global_pooling_classifier() -> None:
    model = GlobalPoolingClassifier(build_backbone("small-cnn", width=4), 3, class_names=["a", "b", "c"]).eval()
    images = torch.randn(2, 3, 64, 64)
    features = model.backbone(images)
    truth = features.flatten(2).mean(2) @ model.head.linear.weight.T + model.head.linear.bias
    assert torch.allclose(model(images), truth, atol=1e-6) and torch.equal(model(images), model.head(features))
    with pytest.raises(ValueError, match=r"x must be a map \[B, 16, H, W\], got \[2, 16\]"):
        model.head(torch.zeros(2, 16))
    with pytest.raises(ValueError, match="num_classes must be a positive integer, got 0"):
        GlobalPoolingClassifier(model.backbone, 0)


def test_both_models_learn() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 64)
    targets = torch.zeros(8, C).scatter_(1, torch.arange(8).remainder(C).unsqueeze(1), 1.0)
    for model in (make_model(), GlobalPoolingClassifier(build_backbone("small-cnn", width=4), C)):
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(80):
            loss = nn.functional.binary_cross_entropy_with_logits(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0], type(model).__name__


@pytest.mark.parametrize(
    ("names", "kind", "match"),
    [
        (["a", "b"], ValueError, "2 class_names for 4 classes"),
        (["a", "b", "a", "c"], ValueError, "holds 'a' more than once"),
        ("abcd", TypeError, "list of strings, got str"),
        ([1, 2, 3, 4], TypeError, "class_names must hold strings, got 1"),
    ],
)
def test_class_names_are_checked(names: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        make_model(class_names=names)


def test_model_refuses_unknown_options() -> None:
    with pytest.raises(TypeError, match="joint_size"):
        make_model(joint_size=3)
