"""What the modules share: initialisation, and checks of their arguments, which read no values in a forward."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssgrl_fast._utils.pytorch import autocasts, without_autocast
from ssgrl_fast.reference.numerics import exact_dtype


def as_rows(features: Tensor, channels: int) -> Tensor:
    """A map [B, D, H, W] as contiguous rows [B, L, D], row-major over the map; rows [B, L, D] as they are.

    A channels_last map is viewed, a contiguous one copied once.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: another shape, or a map without locations.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError(f"features must be a floating-point tensor, got {describe(features)}")
    axis = {3: 2, 4: 1}.get(features.dim())
    if axis is None or features.shape[axis] != channels or 0 in features.shape[1:]:
        expected = f"[B, L, {channels}] or [B, {channels}, H, W] with at least one location"
        raise ValueError(f"features must be {expected}, got {list(features.shape)}")
    if features.dim() == 4:
        features = features.permute(0, 2, 3, 1).flatten(1, 2)
    return features.contiguous()


def collapse(weight_p: Tensor, weight_a: Tensor, *constants: Tensor) -> Tensor:
    """p = Pᵀ·w_a, [K], of weight_p [M, K] and weight_a [M], in float32 (float64 for float64 weights).

    The constants, vectors that the softmax cancels (D4), are connected by standing behind p and being cut off again:
    their gradients are zeros, never None, and nothing that they hold can reach p.
    """
    exact = exact_dtype(weight_p.dtype)
    with without_autocast(weight_p):
        p = weight_p.to(exact).t() @ weight_a.to(exact)
        if not constants or not torch.is_grad_enabled():
            return p
        return torch.cat([p, *(constant.to(exact) for constant in constants)])[: len(p)]


def words_and_graph(words: Tensor, adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of words [C, S] and adjacency [C, C] in the default dtype, without gradient.

    Tensors on the meta device, which hold no values yet, are not checked for finite ones.

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: shapes that do not fit, or a value that is not finite.
    """
    words, adjacency = _constant("words", words), _constant("adjacency", adjacency)
    if words.dim() != 2 or 0 in words.shape:
        raise ValueError(f"SSGRLHead: words must be [C, S] with C, S > 0, got {list(words.shape)}")
    classes = words.shape[0]
    if list(adjacency.shape) != [classes, classes]:
        expected = f"[{classes}, {classes}] as words has {classes} rows"
        raise ValueError(f"SSGRLHead: adjacency must be {expected}, got {list(adjacency.shape)}")
    return words, adjacency


def _constant(name: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.is_complex():
        raise TypeError(f"SSGRLHead: {name} must be a tensor of real numbers, got {describe(values)}")
    finite = torch.isfinite(values)
    if not values.is_meta and not bool(finite.all()):
        where = (~finite).nonzero()[0].tolist()
        raise ValueError(f"SSGRLHead: {name} must be finite, got {values[tuple(where)].item()} at {where}")
    return values.detach().to(dtype=torch.get_default_dtype(), copy=True)


def size(name: str, value: int) -> int:
    """The value of an option that must be a positive integer.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return value


def uniform(fan_in: int, *tensors: Tensor) -> None:
    """Fill with U(±1/√fan_in), PyTorch's default for linear layers (D11)."""
    bound = 1 / math.sqrt(fan_in)
    for tensor in tensors:
        nn.init.uniform_(tensor, -bound, bound)


def check_beside(operation: str, weight: Tensor, **inputs: Tensor) -> None:
    """Refuse inputs on another device or of another dtype than the weights'; under autocast only float64 matters."""
    for name, tensor in inputs.items():
        if tensor.device != weight.device:
            raise ValueError(f"{operation}: {name} is on {tensor.device}, expected {weight.device} as the weights")
        same = tensor.dtype == weight.dtype
        if not same and not (autocasts(tensor) and torch.float64 not in (tensor.dtype, weight.dtype)):
            raise TypeError(f"{operation}: {name} is {tensor.dtype}, expected {weight.dtype} as the weights")


def describe(value: object) -> str:
    """dtype and shape of a tensor, the type of anything else."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
