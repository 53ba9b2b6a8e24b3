"""Contributions of neighbours are what a head with that edge cut loses, by whole forwards of such heads; removed cells
are cells whose attention is zero."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from ssgrl_fast.inference.explain import RemovalCurves, neighbour_contributions, removal_curves
from ssgrl_fast.modules import SSGRLHead

C, D = 6, 12


def make_head(mode: str = "paper", **options: object) -> SSGRLHead:
    generator = torch.Generator().manual_seed(5)
    adjacency = torch.rand(C, C, generator=generator)
    adjacency[0, 1:] = 0  # class 0: edges to 2 and 3 in one direction alone
    adjacency[1:, 0] = torch.tensor([0, 0.7, 0.2, 0, 0])
    adjacency[4, :] = adjacency[:, 4] = 0  # class 4: no neighbour
    torch.manual_seed(11)
    words = torch.randn(C, 4)
    head = SSGRLHead(D, words, adjacency, joint_dim=8, mode=mode, **options)
    with torch.no_grad():  # weights large enough that an edge matters
        for parameter in head.parameters():
            parameter.mul_(2.5)
    return head.eval()


def cut(head: SSGRLHead, c: int, others: list[int]) -> SSGRLHead:
    """The same head with the edges between c and others gone."""
    edited = copy.deepcopy(head)
    for other in others:
        edited.adjacency[c, other] = 0.0
        edited.adjacency[other, c] = 0.0
    return edited


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(1, D, 3, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("mode", ["paper", "official"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("c", [1, 3])
def test_a_contribution_is_what_the_head_without_the_edge_loses(mode, steps, c, features):
    head, features = make_head(mode, steps=steps).double(), features.double()
    found = neighbour_contributions(head, features, c, batch_size=2)
    with torch.no_grad():
        whole = head(features)[0, c].item()
        expected = {
            other: whole - cut(head, c, [other])(features)[0, c].item() for other in range(C) if other not in (c, 4)
        }
        if c == 1:  # class 0 shares an edge with 2 and 3 alone
            expected.pop(0)
        alone = cut(head, c, list(expected))(features)[0, c].item()
    assert dict(zip(found.neighbours, found.contributions, strict=True)) == pytest.approx(expected, abs=1e-12)
    assert (found.class_index, found.logit) == (c, pytest.approx(whole, abs=1e-12))
    assert found.alone == pytest.approx(alone, abs=1e-12)
    assert list(found.contributions) == sorted(found.contributions, reverse=True)
    assert max(map(abs, found.contributions)) > 1e-3 and found.left_out == ()


def test_an_edge_in_one_direction_counts_and_the_self_loop_does_not(features):
    head = make_head().double()
    head.adjacency[0, 0] = 0.9
    found = neighbour_contributions(head, features.double(), 0)
    assert set(found.neighbours) == {2, 3}
    with torch.no_grad():
        whole = head(features.double())[0, 0]
        assert found.alone == pytest.approx(cut(head, 0, [2, 3])(features.double())[0, 0].item(), abs=1e-12)
    assert found.logit == pytest.approx(whole.item(), abs=1e-12)


def test_a_class_without_neighbours_stands_alone(features):
    found = neighbour_contributions(make_head(), features[0], 4)
    assert found.neighbours == found.contributions == found.left_out == ()
    assert found.alone == found.logit


def test_the_limit_keeps_the_heaviest_edges_and_names_the_rest(features):
    head = make_head()
    weight = head.adjacency[2] + head.adjacency[:, 2]
    order = [index for index in weight.argsort(descending=True).tolist() if index not in (2, 4)]
    found = neighbour_contributions(head, features, 2, limit=2)
    assert set(found.neighbours) == set(order[:2]) and found.left_out == tuple(order[2:])
    everything = neighbour_contributions(head, features, 2)
    values = dict(zip(everything.neighbours, everything.contributions, strict=True))
    assert [values[index] for index in found.neighbours] == pytest.approx(list(found.contributions), abs=1e-6)
    assert found.alone == pytest.approx(everything.alone, abs=1e-6)  # every edge, computed or not


def test_reduced_precision_and_autocast_do_not_blur_the_differences(features):
    head = make_head().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = neighbour_contributions(head, features.bfloat16(), 3)
    outside = neighbour_contributions(head, features.bfloat16(), 3)
    pooled, _ = head.semantic_decoupling(features.bfloat16(), head.words)
    exact = copy.deepcopy(head).double()

    def logit(adjacency: torch.Tensor) -> float:
        h_T = exact.graph_propagation(pooled.double(), adjacency)
        return exact.classifier(h_T, pooled.double())[0, 3].item()

    with torch.no_grad():
        expected = [logit(exact.adjacency) - logit(cut(exact, 3, [other]).adjacency) for other in outside.neighbours]
    assert list(outside.contributions) == pytest.approx(expected, abs=2e-5)
    assert list(inside.contributions) == pytest.approx(expected, abs=2e-5)


def test_what_cannot_be_asked_is_said(features):
    head = make_head()
    with pytest.raises(ValueError, match="interaction=False"):
        neighbour_contributions(make_head(interaction=False), features, 0)
    with pytest.raises(ValueError, match=r"class_index must be from 0 to 5, got 6"):
        neighbour_contributions(head, features, 6)
    with pytest.raises(ValueError, match=r"one image.*got \[2, 12, 3, 4\]"):
        neighbour_contributions(head, features.repeat(2, 1, 1, 1), 0)
    for option in ("limit", "batch_size"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
            neighbour_contributions(head, features, 0, **{option: 0})


def without(head: SSGRLHead, features: torch.Tensor, kept: list[int], c: int) -> float:
    """The probability of a class when the attention of every class is zero outside some cells."""
    pooled, attention = head.semantic_decoupling(features.flatten(2).transpose(1, 2), head.words)
    mask = torch.zeros(attention.shape[-1], dtype=attention.dtype)
    mask[kept] = 1
    masked = attention * mask
    pooled = (masked / masked.sum(-1, keepdim=True)) @ features.flatten(2).transpose(1, 2)
    return head.classifier(head.graph_propagation(pooled, head.adjacency), pooled)[0, c].sigmoid().item()


@pytest.mark.parametrize("classes", [[1], [5, 2]])
def test_a_removed_cell_has_no_attention(classes, features):
    head, features = make_head(steps=2).double(), features.double()
    with torch.no_grad():
        attention = head(features, return_attention=True)[1][0].flatten(1)
        found = removal_curves(head, features[0], classes, steps=5, orders=3, seed=4)
        draw = torch.Generator().manual_seed(4)
        orders = [torch.randperm(12, generator=draw).tolist() for _ in range(3)]
        for c, curves in zip(classes, found, strict=True):
            order = attention[c].argsort(descending=True).tolist()
            assert curves.class_index == c and curves.kept == pytest.approx([n / 12 for n in (1, 4, 6, 9, 12)])
            for place, n in enumerate((1, 4, 6, 9, 12)):
                random = np.mean([without(head, features, each[:n], c) for each in orders])
                assert curves.insertion[place] == pytest.approx(without(head, features, order[:n], c), abs=1e-9)
                assert curves.deletion[place] == pytest.approx(without(head, features, order[12 - n :], c), abs=1e-9)
                assert curves.random[place] == pytest.approx(random, abs=1e-9)
    assert len({*curves.deletion}) == 5


def test_the_score_of_a_planted_cell_falls_with_it():
    """One cell alone differs, is attended most and decides the class: it is removed first, or last."""
    head = make_head(interaction=False).double()
    base = torch.randn(D, generator=torch.Generator().manual_seed(1)).double()
    features = base[:, None, None].repeat(1, 3, 3)
    with torch.no_grad():
        features[:, 1, 2] = -base
        attention = head(features[None], return_attention=True)[1][0].flatten(1)
        c = int((attention[:, 5] - attention[:, 0]).argmax())
        assert attention[c].argmax() == 5
        head.classifier.weight_c[c] = -base  # the planted cell's features raise the class
        (curves,) = removal_curves(head, features, [c], steps=9)
    areas = curves.areas()
    assert curves.deletion[-2] == pytest.approx(curves.deletion[0]) and curves.deletion[-1] > curves.deletion[-2]
    assert areas["deletion"] < areas["random"] < areas["insertion"]


def test_an_area_is_the_mean_of_a_curve():
    curves = RemovalCurves(0, (0.25, 0.5, 1.0), (0.0, 0.2, 0.6), (0.5, 0.5, 0.5), (0.1, 0.3, 0.6))
    expected = {
        "deletion": (0.25 * 0.1 + 0.5 * 0.4) / 0.75,
        "insertion": 0.5,
        "random": (0.25 * 0.2 + 0.5 * 0.45) / 0.75,
    }
    assert curves.areas() == pytest.approx(expected)


def test_what_cannot_be_removed_is_said(features):
    head = make_head()
    with pytest.raises(ValueError, match=r"removal_curves: class_index must be from 0 to 5, got 6"):
        removal_curves(head, features, [0, 6])
    with pytest.raises(ValueError, match=r"two cells or more, got \[1, 12, 1, 1\]"):
        removal_curves(head, features[:, :, :1, :1], [0])
    for option, least in (("steps", 2), ("orders", 1)):
        with pytest.raises(ValueError, match=f"{option} must be at least {least}, got {least - 1}"):
            removal_curves(head, features, [0], **{option: least - 1})
