"""The head's modules: what they refuse, by a sentence that names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssgrl_fast.modules import ClassRows, GraphPropagation, LabelClassifier, SemanticDecoupling, SSGRLHead

B, C, D, S, K, H, W = 2, 5, 12, 7, 9, 3, 4
WORDS, GRAPH = torch.zeros(C, S), torch.zeros(C, C)
NAN = torch.zeros(C, C)
NAN[1, 2] = float("nan")


@pytest.mark.parametrize(
    ("build", "kind", "match"),
    [
        (lambda: SSGRLHead(D, torch.zeros(C), GRAPH), ValueError, r"words must be \[C, S\].*\[5\]"),
        (lambda: SSGRLHead(D, torch.zeros(0, S), torch.zeros(0, 0)), ValueError, "words must be"),
        (lambda: SSGRLHead(D, WORDS, torch.zeros(C, 3)), ValueError, r"adjacency must be \[5, 5\].*\[5, 3\]"),
        (lambda: SSGRLHead(D, WORDS, NAN), ValueError, r"adjacency must be finite, got nan at \[1, 2\]"),
        (lambda: SSGRLHead(D, WORDS + float("inf"), GRAPH), ValueError, "words must be finite, got inf"),
        (lambda: SSGRLHead(D, "words", GRAPH), TypeError, "words must be a tensor.*str"),
        (lambda: SSGRLHead(D, WORDS, GRAPH, mode="paer"), ValueError, "mode must be one of 'paper', 'official'"),
        (lambda: SSGRLHead(D, WORDS, GRAPH, steps=0), ValueError, "steps must be at least 1"),
        (lambda: SSGRLHead(D, WORDS, GRAPH, joint_dim=0), ValueError, "joint_dim must be a positive integer, got 0"),
        (lambda: SSGRLHead(0, WORDS, GRAPH), ValueError, "in_channels must be a positive integer"),
        (lambda: SSGRLHead(D, WORDS, GRAPH, interaction=False, out_dim=4), ValueError, "out_dim=4"),
        (lambda: GraphPropagation(D, reset_gate="other"), ValueError, "reset_gate must be one of"),  # type: ignore[arg-type]
        (lambda: GraphPropagation(D, steps=2.0), TypeError, "steps must be an int, got float"),  # type: ignore[arg-type]
        (lambda: LabelClassifier(-1, D), ValueError, "num_classes must be a positive integer, got -1"),
    ],
)
def test_construction_refuses(build: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        build()


@pytest.mark.parametrize(
    ("x", "kind", "match"),
    [
        (torch.zeros(B, H * W, D), ValueError, r"x must be a map \[B, 12, H, W\].*\[2, 12, 12\]"),
        (torch.zeros(B, D + 1, H, W), ValueError, r"\[2, 13, 3, 4\]"),
        (torch.zeros(B, D, 0, W), ValueError, "at least one location"),
        (torch.zeros(B, D, H, W, dtype=torch.int64), TypeError, "floating-point"),
        (
            torch.zeros(B, D, H, W, dtype=torch.bfloat16),
            TypeError,
            "features is torch.bfloat16, expected torch.float32",
        ),
        (torch.zeros(B, D, H, W, device="meta"), ValueError, "features is on meta, expected cpu"),
        ([[1.0]], ValueError, "got list"),
    ],
)
def test_forward_refuses(x: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        SSGRLHead(D, WORDS, GRAPH, joint_dim=K)(x)


def test_decoupling_refuses_other_words() -> None:
    decoupling = SemanticDecoupling(D, S, K)
    with pytest.raises(ValueError, match=r"words must be \[C, 7\], got torch.float32 \[5, 8\]"):
        decoupling(torch.zeros(B, D, H, W), torch.zeros(C, 8))
    with pytest.raises(TypeError, match="words is torch.float64"):
        decoupling(torch.zeros(B, D, H, W), torch.zeros(C, S, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"pooled must be \[B, 5, 12\]"):
        ClassRows(C, D)(torch.zeros(B, C + 1, D))
