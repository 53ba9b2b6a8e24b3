"""Equations (3) to (11) of the paper written out one scalar at a time, in float64.

This is the tests' own reading of the paper (Chen et al., "Learning Semantic-Specific Graph Representation for
Multi-Label Image Recognition", sections 3.2 to 3.4): Python floats, one loop an index, nothing of ssgrl_fast.
It is slow and meant for shapes of a few elements.  Symbols follow the paper; arrays are numpy float64.

| letter | meaning |
|---|---|
| B | images |
| L | locations, L = W H |
| C | categories |
| D | feature channels (the paper's N) |
| S | word-vector size d_s |
| K | joint size d_1 |
| J | output size of the bilinear pooling d_2 |
| O | size of o_c |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def sigmoid(x: float) -> float:
    """Logistic sigmoid of eq. (9) and (11), without overflow on either side."""
    if x >= 0.0:
        return 1.0 / (1.0 + math.exp(-x))
    e = math.exp(x)
    return e / (1.0 + e)


def softmax(scores: list[float]) -> list[float]:
    """Eq. (5): the scores of one category over all its locations, normalised to sum to one."""
    largest = max(scores)
    exps = [math.exp(s - largest) for s in scores]
    total = math.fsum(exps)
    return [e / total for e in exps]


def low_rank_bilinear(f: Array, x: Array, U: Array, V: Array, P: Array, b: Array) -> list[float]:
    """Eq. (3) at one location and category: f [D], x [S], U [D, K], V [S, K], P [K, J], b [J] -> f~ [J]."""
    D, K = U.shape
    S = V.shape[0]
    J = P.shape[1]
    joint = []
    for k in range(K):
        uf = math.fsum(float(U[d, k]) * float(f[d]) for d in range(D))
        vx = math.fsum(float(V[s, k]) * float(x[s]) for s in range(S))
        joint.append(math.tanh(uf * vx))
    return [math.fsum(float(P[k, j]) * joint[k] for k in range(K)) + float(b[j]) for j in range(J)]


def semantic_decoupling(
    features: Array, words: Array, U: Array, V: Array, P: Array, b: Array, w_a: Array, b_a: float
) -> tuple[Array, Array]:
    """Eq. (3) to (6), from the feature map and the word vectors.

    features [B, L, D], words [C, S], U [D, K], V [S, K], P [K, J], b [J]; f_a is the fully connected layer of section
    3.4 with weight w_a [J] and bias b_a.  The pooled feature is the raw f^I_wh (D2).
    Returns f_c [B, C, D] and a [B, C, L].
    """
    B, L, D = features.shape
    C = words.shape[0]
    J = P.shape[1]
    pooled = np.zeros((B, C, D))
    attention = np.zeros((B, C, L))
    for i in range(B):
        for c in range(C):
            scores = []
            for l in range(L):
                fused = low_rank_bilinear(features[i, l], words[c], U, V, P, b)  # (3)
                scores.append(math.fsum(float(w_a[j]) * fused[j] for j in range(J)) + b_a)  # (4)
            a = softmax(scores)  # (5)
            for l in range(L):
                attention[i, c, l] = a[l]
            for d in range(D):
                pooled[i, c, d] = math.fsum(a[l] * float(features[i, l, d]) for l in range(L))  # (6)
    return pooled, attention


def semantic_attention(u: Array, v: Array, p: Array, features: Array) -> tuple[Array, Array]:
    """Eq. (3) to (6) from the projected features and words: u = U^T f [B, L, K], v = V^T x [C, K], p = P w_a [K]."""
    B, L, K = u.shape
    C = v.shape[0]
    D = features.shape[2]
    pooled = np.zeros((B, C, D))
    attention = np.zeros((B, C, L))
    for i in range(B):
        for c in range(C):
            scores = []
            for l in range(L):
                scores.append(math.fsum(float(p[k]) * math.tanh(float(u[i, l, k]) * float(v[c, k])) for k in range(K)))
            a = softmax(scores)
            for l in range(L):
                attention[i, c, l] = a[l]
            for d in range(D):
                pooled[i, c, d] = math.fsum(a[l] * float(features[i, l, d]) for l in range(L))
    return pooled, attention


@dataclass
class Gates:
    """The weights of eq. (9) by their names in the paper.

    W^z, W^r and W meet a_c^t = [a_in, a_out] of eq. (8); each is given by its two halves [D, D], the first for
    sum_c' a_cc' h_c', the second for sum_c' a_c'c h_c'.  The biases are those of the published layers (D3); the paper
    has none.
    """

    Wz_in: Array
    Wz_out: Array
    Uz: Array
    Wr_in: Array
    Wr_out: Array
    Ur: Array
    W_in: Array
    W_out: Array
    U: Array
    bz: Array | None = None
    br: Array | None = None
    b: Array | None = None


def _row(weight: Array, d: int, x: Array) -> float:
    """Row d of a matrix times a vector."""
    return math.fsum(float(weight[d, e]) * float(x[e]) for e in range(x.shape[0]))


def _bias(bias: Array | None, d: int) -> float:
    return 0.0 if bias is None else float(bias[d])


def graph_propagation(h0: Array, adjacency: Array, gates: Gates, steps: int, reset_gate: str = "paper") -> Array:
    """Eq. (7) to (9): h0 [B, C, D], adjacency [C, C] with a_cc' = P(c' | c) in row c -> h^T [B, C, D].

    reset_gate "paper" gives the reset gate its own U^r; "official" gives it U^z, as the published code does (D1).
    """
    if reset_gate not in ("paper", "official"):
        raise ValueError(reset_gate)
    B, C, D = h0.shape
    h = np.array(h0, dtype=np.float64)  # (7)
    reset_u = gates.Ur if reset_gate == "paper" else gates.Uz
    for _ in range(steps):
        updated = np.zeros_like(h)
        for i in range(B):
            for c in range(C):
                a_in = np.zeros(D)
                a_out = np.zeros(D)
                for d in range(D):
                    a_in[d] = math.fsum(float(adjacency[c, n]) * float(h[i, n, d]) for n in range(C))  # (8)
                    a_out[d] = math.fsum(float(adjacency[n, c]) * float(h[i, n, d]) for n in range(C))
                z, gated = [], np.zeros(D)
                for d in range(D):  # (9)
                    update = _row(gates.Wz_in, d, a_in) + _row(gates.Wz_out, d, a_out) + _row(gates.Uz, d, h[i, c])
                    reset = _row(gates.Wr_in, d, a_in) + _row(gates.Wr_out, d, a_out) + _row(reset_u, d, h[i, c])
                    z.append(sigmoid(update + _bias(gates.bz, d)))
                    gated[d] = sigmoid(reset + _bias(gates.br, d)) * float(h[i, c, d])
                for d in range(D):
                    new = _row(gates.W_in, d, a_in) + _row(gates.W_out, d, a_out) + _row(gates.U, d, gated)
                    candidate = math.tanh(new + _bias(gates.b, d))
                    updated[i, c, d] = (1.0 - z[d]) * float(h[i, c, d]) + z[d] * candidate
        h = updated
    return h


def label_scores(h_T: Array, h0: Array, weight_o: Array, bias_o: Array, weight_c: Array, bias_c: Array) -> Array:
    """Eq. (10): f_o is the fully connected layer over [h^T, h^0] and tanh of section 3.4, f_c one row of weight_c each.

    h_T, h0 [B, C, D], weight_o [O, 2D], bias_o [O], weight_c [C, O], bias_c [C] -> s [B, C].
    """
    B, C, D = h_T.shape
    O = weight_o.shape[0]
    scores = np.zeros((B, C))
    for i in range(B):
        for c in range(C):
            terms = []
            for j in range(O):
                x = float(bias_o[j])
                for d in range(D):
                    x += float(weight_o[j, d]) * float(h_T[i, c, d])
                    x += float(weight_o[j, D + d]) * float(h0[i, c, d])
                terms.append(float(weight_c[c, j]) * math.tanh(x))
            scores[i, c] = math.fsum(terms) + float(bias_c[c])
    return scores


def probabilities(scores: Array) -> Array:
    """Eq. (11): s [B, C] -> p [B, C]."""
    B, C = scores.shape
    p = np.zeros((B, C))
    for i in range(B):
        for c in range(C):
            p[i, c] = sigmoid(float(scores[i, c]))
    return p
