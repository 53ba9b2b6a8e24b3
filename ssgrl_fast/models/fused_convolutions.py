"""Convolutions that apply their activation while the output is still in the processor's cache, for inference on a CPU.

PyTorch runs a convolution and its activation one after the other, and networks that were translated from TensorFlow pad
in a step of their own before both: three passes over maps that a memory holds and a cache does not. oneDNN computes all
in one. Maps are equal up to float32's rounding.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssgrl_fast.models.followers import run_and_pair

__all__ = ["FusedConvolution", "fuse_activations"]

_ACTIVATIONS = (nn.ReLU, nn.ReLU6)
_UNCHANGED = 1e-6  # relative L2, float32
_PROBES = ((128, 128), (113, 97))  # pixels of the images that a fused network is compared on: padding follows the size
_log = logging.getLogger(__name__)


class FusedConvolution(nn.Module):
    """A convolution and the activation after it, computed in one where PyTorch's oneDNN can: float32 on a CPU, without
    gradients, and not while a compiler or exporter traces, which has its own way to fuse the two.

    Args:
        convolution: nn.Conv2d, or a subclass that pads as TensorFlow's "same" does.
        activation: nn.ReLU or nn.ReLU6.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.convolution, self.activation = convolution, activation
        self._same = type(convolution) is not nn.Conv2d
        self._padding = list(convolution.padding)
        sides = list(zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True))
        if self._same and all(stride == 1 and kernel % 2 == 1 for kernel, stride, _ in sides):
            self._same, self._padding = False, [dilation * (kernel // 2) for kernel, _, dilation in sides]
        self._attribute = ("hardtanh", [0.0, 6.0]) if isinstance(activation, nn.ReLU6) else ("relu", [])

    def forward(self, images: Tensor) -> Tensor:
        """As ``activation(convolution(images))``."""
        layer = self.convolution
        if not _can_fuse(images, layer.weight):
            result: Tensor = self.activation(layer(images))
            return result
        if self._same:
            images = F.pad(images, _same_padding(images, layer))
        settings = self._padding, layer.stride, layer.dilation, layer.groups
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            images, layer.weight, layer.bias, *settings, *self._attribute, ""
        )
        return fused


def _can_fuse(images: Tensor, weight: Tensor) -> bool:
    plain: bool = images.dtype == weight.dtype == torch.float32 and images.device.type == weight.device.type == "cpu"
    return (
        plain
        and images.numel() > 0
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not (torch.is_grad_enabled() and (images.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not _traced()
    )


def _traced() -> bool:
    """Whether a compiler or an exporter follows this call."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def _same_padding(images: Tensor, layer: nn.Conv2d) -> list[int]:
    """Left, right, top and bottom, so that the map has ceil(side / stride) cells (TensorFlow's "same")."""
    padding: list[int] = []
    for axis in (1, 0):
        side, stride = images.shape[2 + axis], layer.stride[axis]
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        whole = max((math.ceil(side / stride) - 1) * stride + reach - side, 0)
        padding += [whole // 2, whole - whole // 2]
    return padding


@torch.no_grad()
def fuse_activations(network: nn.Module) -> int:
    """Fuse each ReLU and ReLU6 with the convolution whose output it takes, in place.

    Which activation follows which convolution is found by running the network. An activation that is also applied to
    anything else, or a convolution that runs more than once, stays as it is. The fused network is compared with the
    original; where it differs, or cannot be run, nothing is fused.

    Args:
        network: in evaluation mode, float32 on a CPU, BatchNorms folded; takes images [B, 3, H, W].

    Returns:
        How many convolutions were fused.
    """
    if not any(isinstance(module, _ACTIVATIONS) for module in network.modules()):
        return 0
    original, names = deepcopy(network), {module: name for name, module in network.named_modules()}
    draw = torch.Generator().manual_seed(0)
    probes = [torch.randn(1, 3, *sides, generator=draw) for sides in _PROBES]
    try:
        pairs = _fusable(network, probes[0])
        for convolution, activation in pairs:
            network.set_submodule(names[convolution], FusedConvolution(convolution, activation))
            network.set_submodule(names[activation], nn.Identity())
        for images in probes:
            truth, fused = original(images), network(images)
            difference = (fused - truth).norm() / truth.norm().clamp_min(1e-30)
            if not difference <= _UNCHANGED:
                raise ValueError(f"the fused network differs by {difference:.1e}")
        if pairs:
            network.register_forward_hook(_keep_not_finite)
        return len(pairs)
    except (RuntimeError, ValueError, AssertionError, AttributeError) as error:
        _log.info("activations are not fused: %s", error)
        for name, module in original.named_children():
            network.set_submodule(name, module)
        return 0


def _keep_not_finite(_: nn.Module, inputs: tuple[Tensor, ...], maps: Tensor) -> Tensor:
    """NaN in place of the maps of images that are not finite: oneDNN's ReLU of NaN is a number, PyTorch's is NaN."""
    images = inputs[0]
    if _traced():
        return maps
    finite = images.detach().isfinite().flatten(1).all(1)
    return maps if finite.all() else maps.where(finite[:, None, None, None], torch.nan)


def _fusable(network: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Each convolution that runs once with the activation that takes its output, and takes nothing else."""
    _, found, calls = run_and_pair(network, images, *_ACTIVATIONS)
    pairs = [(layer, activation) for layer, activation in found if type(activation) in _ACTIVATIONS]
    taken, followed = Counter(activation for _, activation in pairs), Counter(layer for layer, _ in pairs)
    whole = {activation for activation in taken if taken[activation] == calls[activation]}
    shared = {activation for layer, activation in pairs if calls[layer] != 1 or followed[layer] != 1}
    return [(layer, activation) for layer, activation in pairs if activation in whole - shared]
