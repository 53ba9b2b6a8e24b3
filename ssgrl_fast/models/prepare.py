"""A network prepared for inference: the same function of an image, in the form that runs fastest."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from ssgrl_fast.models.followers import run_and_pair
from ssgrl_fast.models.fused_convolutions import fuse_activations
from ssgrl_fast.models.pooling import GlobalPoolingClassifier
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.modules import SemanticDecoupling
from ssgrl_fast.modules.class_constants import ClassConstants

__all__ = ["fold_batch_norms", "fuse_backbone", "prepare", "prepare_backbone"]

Module = TypeVar("Module", bound=nn.Module)
Model = TypeVar("Model", bound=SSGRL | GlobalPoolingClassifier)
_FOLDED_IS_EQUAL = 1e-10  # relative L2 in float64, where rounding leaves about 1e-15 a layer
_PROBE_SIDES = (128, 224)  # pixels of the images that a folded network is compared on
_log = logging.getLogger(__name__)


def prepare(model: Model, *, fuse: bool = True) -> Model:
    """A copy of a model that gives its outputs faster, for inference alone.

    - Each BatchNorm that follows a convolution is folded into the convolution's weight and bias, in float64.
    - The backbone's weights are channels_last, the layout in which CPU and GPU convolutions need no copies.
    - On a CPU in float32, each ReLU or ReLU6 that follows a convolution is computed with it, and so is its padding.
    - What the head computes of the classes alone, p = Pᵀ·w_a and v = V·x (eq. 3 and 4), is computed once.
    - No parameter takes a gradient.

    Outputs differ from the model's by rounding only: their error against float64 stays within 1e-5, or within 1.2 times
    the model's own error. The copy has the values of now: later changes of the model do not reach it. It cannot be
    saved as a bundle, nor trained. In bfloat16 and float16 nothing is folded, because rounding a folded weight loses
    more than rounding the weight.

    Args:
        model: an :class:`~ssgrl_fast.SSGRL` or pooling classifier in evaluation mode, on any device.
        fuse: False leaves ReLU and ReLU6 as they are, for a backbone that another runtime is to compute.

    Returns:
        A model of the same class; ``prepared`` is True. A prepared model is returned as it is.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.prepared:
        return model
    if model.training:
        raise ValueError("prepare: the model must be in evaluation mode, got one in training mode: call model.eval()")
    copy = deepcopy(model)
    copy.requires_grad_(False)
    copy.prepared = True
    _prepare_backbone(copy.backbone, fuse)
    _fix_classes(copy.head)
    return copy


def prepare_head(head: Module) -> Module:
    """A copy of a head in evaluation mode as :func:`prepare` leaves it."""
    copy = deepcopy(head).eval().requires_grad_(False)
    _fix_classes(copy)
    return copy


def _fix_classes(head: Any) -> None:
    """Compute p and v once, from the values of now.

    They belong to a frozen copy. A head that kept them from call to call could not tell when they are stale without
    reading its weights: a write through ``.data``, as some optimizers make it, moves no version counter.
    """
    if isinstance(decoupling := getattr(head, "semantic_decoupling", None), SemanticDecoupling):
        head.semantic_decoupling = ClassConstants(decoupling, head.words)


def prepare_backbone(backbone: Module) -> Module:
    """A copy of a backbone in evaluation mode as :func:`prepare` leaves it."""
    copy = deepcopy(backbone).eval().requires_grad_(False)
    _prepare_backbone(copy, fuse=True)
    return copy


def _prepare_backbone(backbone: nn.Module, fuse: bool) -> None:
    weight = next(backbone.parameters(), torch.empty(0))
    if weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(weight.device.type):
        fold_batch_norms(backbone)
    backbone.to(memory_format=torch.channels_last)
    if fuse:
        fuse_backbone(backbone)


def fuse_backbone(backbone: nn.Module) -> int:
    """Compute each ReLU or ReLU6 of a backbone together with its convolution, in place, on a CPU in float32.

    Returns:
        How many were joined; 0 on other devices and in other dtypes.
    """
    weight = next(backbone.parameters(), torch.empty(0))
    return fuse_activations(backbone) if weight.dtype == torch.float32 and weight.device.type == "cpu" else 0


@torch.no_grad()
def fold_batch_norms(backbone: nn.Module) -> int:
    """Fold each BatchNorm that follows a convolution into it, in place.

    Which BatchNorm follows which convolution is found by running the network, so that any network serves, whatever its
    Python code does. The folded network is compared with the original in float64; where it differs (a convolution's
    output that something else uses too), or cannot be run, nothing is folded.

    Args:
        backbone: in evaluation mode, float32 or float64; takes images [B, 3, H, W].

    Returns:
        How many were folded.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()):
        return 0
    weight = next(backbone.parameters())
    original = deepcopy(backbone).double()
    folded, names = deepcopy(original), {module: name for name, module in original.named_modules()}
    for side in _PROBE_SIDES:
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(1, 3, side, side, generator=draw, dtype=torch.float64).to(weight.device)
        try:
            truth, pairs = _foldable(original, images)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error)
            continue
        for convolution, norm in pairs:
            folded.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
            folded.set_submodule(names[norm], _after(norm))
        difference = (folded(images) - truth).norm() / truth.norm().clamp_min(1e-300)
        if not difference <= _FOLDED_IS_EQUAL:
            reason = f"the folded network differs by {difference:.1e}"
            break
        folded.to(weight.dtype)
        for convolution, norm in pairs:
            for name in (names[convolution], names[norm]):
                backbone.set_submodule(name, folded.get_submodule(name).requires_grad_(False))
        return len(pairs)
    _log.info("BatchNorm is not folded: %s", reason)
    return 0


def _foldable(network: nn.Module, images: Tensor) -> tuple[Tensor, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """The network's output, and each convolution with the BatchNorm that takes its output; both run once."""
    result, pairs, calls = run_and_pair(network, images, nn.BatchNorm2d)
    taken = [convolution for convolution, _ in pairs]
    foldable = [
        (convolution, norm)
        for convolution, norm in pairs
        if isinstance(norm, nn.BatchNorm2d)
        and calls[convolution] == calls[norm] == taken.count(convolution) == 1
        and norm.running_mean is not None
        and not norm.training
        and not is_parametrized(convolution)
    ]
    return result, foldable


def _after(norm: nn.BatchNorm2d) -> nn.Module:
    """What is left of a folded BatchNorm: nothing, or the activation that timm's BatchNormAct2d applies after it."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()
