"""Wrong arguments of every operation: an error that names the argument, what came and what was expected."""

from __future__ import annotations

from typing import Any

import pytest
import shapes
import torch
from shapes import SHAPES
from torch import Tensor

from ssgrl_fast import functional
from ssgrl_fast.functional import GateBlocks

TINY = SHAPES["tiny"]  # B 2, L 5, C 3, D 4, K 6, O 5


def arguments(stem: str, dtype: torch.dtype = torch.float32, factors: bool = True) -> dict[str, Any]:
    """Good arguments of an operation by name."""
    if stem == "semantic_attention":
        return shapes.semantic_attention_inputs(TINY, dtype)
    if stem == "label_scores":
        return shapes.label_scores_inputs(TINY, dtype, factors=factors)
    packed: dict[str, Any] = shapes.graph_propagation_inputs(TINY, dtype, factors=factors)
    return packed if stem == "graph_propagation" else in_blocks(packed)


def in_blocks(packed: dict[str, Any]) -> dict[str, Any]:
    zr, h, b_zr, b_h = (packed.pop(n) for n in ("weight_zr", "weight_h", "bias_zr", "bias_h"))
    D = h.shape[0]
    blocks = (zr[:D, D:], zr[:D, :D], b_zr[:D], zr[D:, D:], zr[D:, :D], b_zr[D:], h[:, : 2 * D], h[:, 2 * D :], b_h)
    return packed | {"blocks": GateBlocks(*blocks)}


def call(stem: str, args: dict[str, Any]) -> object:
    return getattr(functional, stem)(**args)


STEMS = ["semantic_attention", "graph_propagation", "graph_propagation_blocks", "label_scores"]
TENSORS = {
    "semantic_attention": {"u": "B L K", "v": "C K", "p": "K", "features": "B L D"},
    "graph_propagation": {
        "h0": "B C D", "adjacency": "C C", "weight_zr": "2D 3D", "bias_zr": "2D", "weight_h": "D 3D", "bias_h": "D",
        "attention": "B C L", "features": "B L D",
    },
    "label_scores": {
        "h_T": "B C D", "h0": "B C D", "weight_o": "O 2D", "bias_o": "O", "weight_c": "C O", "bias_c": "C",
        "attention": "B C L", "features": "B L D",
    },
}  # fmt: skip
OPTIONAL = {"bias_zr", "bias_h", "bias_o", "bias_c", "attention", "features"}
BLOCKS = {"w_z": 2, "u_z": 2, "b_z": 1, "w_r": 2, "u_r": 2, "b_r": 1, "w_h": 2, "u_h": 2, "b_h": 1}
EACH = [(stem, name) for stem, names in TENSORS.items() for name in names]
each_tensor = pytest.mark.parametrize(("stem", "name"), EACH)
each_block = pytest.mark.parametrize("block", BLOCKS)


def refused(error: type[Exception], stem: str, args: dict[str, Any], *mentions: str) -> str:
    """The message of the error that the call must raise; it must hold every mention."""
    with pytest.raises(error) as caught:
        call(stem, args)
    message = str(caught.value)
    assert type(caught.value) is error, f"{type(caught.value).__name__}: {message}"
    for mention in mentions:
        assert mention in message, f"{mention!r} is not in {message!r}"
    return message


@pytest.mark.parametrize("stem", STEMS)
def test_good_arguments_are_taken(stem: str) -> None:
    result = call(stem, arguments(stem))
    for output in result if isinstance(result, tuple) else (result,):
        assert torch.isfinite(output).all()


@each_tensor
@pytest.mark.parametrize("wrong", [[[1.0]], 3.0, "tensor"], ids=["list", "float", "str"])
def test_not_a_tensor(stem: str, name: str, wrong: object) -> None:
    refused(TypeError, stem, arguments(stem) | {name: wrong}, stem, name, type(wrong).__name__)


@each_tensor
def test_none_where_a_tensor_is_needed(stem: str, name: str) -> None:
    args = arguments(stem) | {name: None}
    if name in ("attention", "features") and stem != "semantic_attention":
        other = "features" if name == "attention" else "attention"
        refused(ValueError, stem, args, stem, name, other)
    elif name in OPTIONAL and stem != "semantic_attention":
        call(stem, args)
    else:
        refused(TypeError, stem, args, stem, name, "None")


@each_tensor
def test_one_dimension_too_many_and_too_few(stem: str, name: str) -> None:
    args = arguments(stem)
    more, fewer = args[name].unsqueeze(0), args[name][0]
    for wrong in (more, fewer):
        refused(ValueError, stem, args | {name: wrong}, stem, name, str(list(wrong.shape)))


@each_tensor
def test_one_row_or_column_too_many(stem: str, name: str) -> None:
    """Every axis whose letter another argument shares: the message has both, whichever of the two it blames."""
    args = arguments(stem)
    for axis, letter in enumerate(TENSORS[stem][name].split()):
        sharing = [n for n, layout in TENSORS[stem].items() if letter[-1] in layout and n != name]
        if not sharing and TENSORS[stem][name].count(letter[-1]) == 1:
            continue
        wrong = torch.cat([args[name], args[name].narrow(axis, 0, 1)], axis)
        refused(ValueError, stem, args | {name: wrong}, stem, name, str(list(wrong.shape)))


@each_tensor
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_dtype_that_is_no_float(stem: str, name: str, dtype: torch.dtype) -> None:
    args = arguments(stem)
    refused(TypeError, stem, args | {name: args[name].to(dtype)}, stem, name, str(dtype))


@each_tensor
def test_dtype_unlike_the_others(stem: str, name: str) -> None:
    args = arguments(stem)
    message = refused(TypeError, stem, args | {name: args[name].double()}, stem, "torch.float64", "torch.float32")
    leaders = {"semantic_attention": "features", "graph_propagation": "h0", "label_scores": "h_T"}
    assert name in message or name == leaders[stem], message


@pytest.mark.parametrize(
    ("stem", "name"), [("semantic_attention", "p"), ("graph_propagation", "attention"), ("label_scores", "attention")]
)
def test_exact_tensors_stay_float32_beside_reduced_ones(stem: str, name: str) -> None:
    args = arguments(stem, torch.bfloat16)
    refused(TypeError, stem, args | {name: args[name].bfloat16()}, stem, name, "torch.bfloat16", "torch.float32")


@pytest.mark.parametrize("stem", ["semantic_attention", "graph_propagation", "label_scores"])
def test_eight_bit_floats_are_refused(stem: str) -> None:
    args = {n: t if n in ("p", "attention") else t.to(torch.float8_e4m3fn) for n, t in arguments(stem).items()}
    refused(TypeError, stem, args, stem, "torch.float8_e4m3fn", "float32")


@each_tensor
def test_another_device(stem: str, name: str) -> None:
    args = arguments(stem)
    message = refused(ValueError, stem, args | {name: args[name].to("meta")}, stem, "meta", "cpu")
    leaders = {"semantic_attention": "features", "graph_propagation": "h0", "label_scores": "h_T"}
    assert name in message or name == leaders[stem], message


@each_block
def test_blocks_of_wrong_shape_dtype_device_or_kind(block: str) -> None:
    stem = "graph_propagation_blocks"
    args = arguments(stem)
    blocks: GateBlocks = args["blocks"]
    good: Tensor = getattr(blocks, block)
    assert good.dim() == BLOCKS[block]
    for axis in range(good.dim()):
        wrong = torch.cat([good, good.narrow(axis, 0, 1)], axis)
        refused(
            ValueError, stem, args | {"blocks": blocks._replace(**{block: wrong})}, stem, block, str(list(wrong.shape))
        )
    for wrong, error, mentions in (
        (good.unsqueeze(0), ValueError, (str([1, *good.shape]),)),
        (good.double(), TypeError, ("torch.float64", "torch.float32")),
        (good.long(), TypeError, ("torch.int64",)),
        (good.to("meta"), ValueError, ("meta", "cpu")),
        ("weights", TypeError, ("str",)),
    ):
        refused(error, stem, args | {"blocks": blocks._replace(**{block: wrong})}, stem, block, *mentions)
    missing = args | {"blocks": blocks._replace(**{block: None})}
    if block.startswith("b"):
        call(stem, missing)
    else:
        refused(TypeError, stem, missing, stem, block, "None")


@pytest.mark.parametrize("wrong", [None, 7, "blocks", [], {}], ids=repr)
def test_blocks_that_are_no_gate_blocks(wrong: object) -> None:
    stem = "graph_propagation_blocks"
    refused(TypeError, stem, arguments(stem) | {"blocks": wrong}, stem, "blocks", "GateBlocks", type(wrong).__name__)


GRAPH_STEMS = ["graph_propagation", "graph_propagation_blocks"]


@pytest.mark.parametrize("stem", GRAPH_STEMS)
@pytest.mark.parametrize(
    ("steps", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("3", TypeError), (None, TypeError), (True, TypeError)],
    ids=repr,
)
def test_wrong_steps(stem: str, steps: object, error: type[Exception]) -> None:
    shown = str(steps) if error is ValueError else type(steps).__name__
    refused(error, stem, arguments(stem) | {"steps": steps}, stem, "steps", shown)


@pytest.mark.parametrize("stem", GRAPH_STEMS)
@pytest.mark.parametrize("gate", ["Paper", "", None, 1, ["paper"]], ids=repr)
def test_wrong_reset_gate(stem: str, gate: object) -> None:
    refused(
        ValueError,
        stem,
        arguments(stem) | {"reset_gate": gate},
        stem,
        "reset_gate",
        "'paper'",
        "'official'",
        repr(gate),
    )


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("backend", ["cuda11", "", "Reference"])
def test_unknown_backend(stem: str, backend: str) -> None:
    refused(ValueError, stem, arguments(stem) | {"backend": backend}, "backend", repr(backend), "'reference'")


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("backend", [3, ["cpu"], torch.float32], ids=["int", "list", "dtype"])
def test_backend_that_is_no_name(stem: str, backend: object) -> None:
    with pytest.raises((TypeError, ValueError), match="backend"):
        call(stem, arguments(stem) | {"backend": backend})


@pytest.mark.parametrize("stem", ["graph_propagation", "graph_propagation_blocks", "label_scores"])
def test_factors_that_do_not_fit_each_other(stem: str) -> None:
    args = arguments(stem)
    longer = torch.cat([args["features"], args["features"]], 1)
    refused(ValueError, stem, args | {"features": longer}, stem, "features", str(list(longer.shape)), "attention")


@pytest.mark.parametrize("stem", ["semantic_attention", "graph_propagation", "label_scores"])
def test_no_locations(stem: str) -> None:
    """A softmax over nothing has no value, and h0 no factors."""
    args = arguments(stem)
    axes = {"u": 1, "features": 1, "attention": 2}
    empty = {n: t.narrow(axes[n], 0, 0) for n, t in args.items() if n in axes}
    refused(ValueError, stem, args | empty, stem, "location")


@pytest.mark.parametrize("letter", ["C", "K", "D", "O"])
@pytest.mark.parametrize("stem", ["semantic_attention", "graph_propagation", "label_scores"])
def test_extents_of_zero_give_empty_results_or_a_sentence(stem: str, letter: str) -> None:
    """Zero classes or channels: either the finite result of the right shape or an error that names an argument."""
    sizes = {"B": 2, "L": 5, "C": 3, "D": 4, "K": 6, "O": 5} | {letter: 0}
    args: dict[str, Any] = {}
    for name, layout in TENSORS[stem].items():
        extents = [int(x[:-1] or 1) * sizes[x[-1]] for x in layout.split()]
        args[name] = torch.zeros(extents)
    try:
        result = call(stem, args)
    except ValueError as error:
        assert stem in str(error) and any(name in str(error) for name in args)
        return
    outputs = result if isinstance(result, tuple) else (result,)
    layouts = {"semantic_attention": ("B C D", "B C L"), "graph_propagation": ("B C D",), "label_scores": ("B C",)}[
        stem
    ]
    for output, layout in zip(outputs, layouts, strict=True):
        assert tuple(output.shape) == tuple(sizes[x] for x in layout.split())
        assert torch.isfinite(output).all()


def test_positional_options_are_refused() -> None:
    args = arguments("graph_propagation", factors=False)
    names = ("h0", "adjacency", "weight_zr", "bias_zr", "weight_h", "bias_h")
    with pytest.raises(TypeError):
        functional.graph_propagation(*(args[n] for n in names), 3)  # type: ignore[misc]


def test_inputs_are_never_written() -> None:
    for stem in ("semantic_attention", "graph_propagation", "label_scores"):
        args = arguments(stem)
        before = {n: t.clone() for n, t in args.items()}
        leaves: dict[str, Any] = {n: t.requires_grad_(n != "adjacency") for n, t in args.items()}
        result = call(stem, leaves)
        outputs = result if isinstance(result, tuple) else (result,)
        torch.autograd.backward([o.square().sum() for o in outputs])
        for name, tensor in args.items():
            assert torch.equal(tensor.detach(), before[name]), name
