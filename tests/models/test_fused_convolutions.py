"""Convolutions computed with their activation: the maps of the plain network, and only where that is sure."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ssgrl_fast.models import build_backbone
from ssgrl_fast.models.fused_convolutions import FusedConvolution, fuse_activations
from ssgrl_fast.models.prepare import prepare_backbone
from ssgrl_fast.testing import relative_error

SIZES = [(160, 160), (129, 192), (97, 33)]


def fused_count(network: nn.Module) -> int:
    return sum(isinstance(module, FusedConvolution) for module in network.modules())


def events(network: nn.Module, images: Tensor) -> set[str]:
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as record:
        network(images)
    return {event.key for event in record.key_averages()}


def plain_of(network: nn.Module) -> nn.Module:
    """The network with each fused convolution and its activation one after the other again."""
    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, FusedConvolution):
            plain.set_submodule(name, nn.Sequential(module.convolution, module.activation))
    return plain


@pytest.mark.parametrize("name, count", [("efficientnet-lite0", 33), ("small-cnn", 5), ("resnet18", 0)])
def test_backbones_give_the_same_maps(name: str, count: int) -> None:
    backbone = build_backbone(name, pretrained=False).eval()
    prepared = prepare_backbone(backbone)
    assert fused_count(prepared) == count and fused_count(backbone) == 0
    plain = plain_of(prepared)
    for sides in SIZES:
        images = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(sides[0]))
        truth = copy.deepcopy(plain).double()(images.double())
        assert relative_error(prepared(images), truth) <= 1.2 * relative_error(plain(images), truth) < 1e-5
    ran = events(prepared, images)
    assert ("mkldnn::_convolution_pointwise" in ran) == (count > 0)
    assert ("aten::hardtanh" in ran) is False


class Same(nn.Conv2d):
    """Pads as TensorFlow does, by each image's own size."""

    def forward(self, images: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):
            side, stride, kernel = images.shape[2 + axis], self.stride[axis], self.kernel_size[axis]
            whole = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [whole // 2, whole - whole // 2]
        return super().forward(F.pad(images, pads))


class Mirrored(nn.Conv2d):
    """A subclass that pads in a way of its own."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.pad(images, [1, 1, 1, 1], "reflect"))


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 2), (4, 2), (2, 1), (1, 2), (3, 3)])
def test_padding_that_follows_the_image(kernel: int, stride: int) -> None:
    network = nn.Sequential(Same(3, 4, kernel, stride), nn.ReLU6()).eval()
    network[0].weight.data.mul_(8)  # values beyond 6 too
    plain = copy.deepcopy(network)
    assert fuse_activations(network) == 1
    for sides in (*SIZES, (7, 8)):
        images = torch.randn(2, 3, *sides)
        with torch.no_grad():
            truth = plain.double()(images.double()).float()
            torch.testing.assert_close(network(images), truth, rtol=1e-5, atol=1e-5)
            assert network(images).amax() == 6 and "mkldnn::_convolution_pointwise" in events(network, images)


class TwoUses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.ReLU()


class Sum(TwoUses):  # a ReLU after a sum as well as after a convolution
    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.act(self.first(images)) + images)


class Before(TwoUses):  # the values before the ReLU are used too
    def forward(self, images: Tensor) -> Tensor:
        before = self.first(images)
        return self.second(self.act(before)) + before


class Twice(TwoUses):  # one convolution, run twice
    def forward(self, images: Tensor) -> Tensor:
        return self.first(self.act(self.first(images)))


@pytest.mark.parametrize("kind", [Sum, Before, Twice])
def test_what_cannot_be_fused_stays(kind: type[TwoUses]) -> None:
    network, images = kind().eval(), torch.randn(1, 3, 9, 9)
    truth = network(images)
    assert fuse_activations(network) == 0 and fused_count(network) == 0
    assert torch.equal(network(images), truth)


def test_a_subclass_that_pads_in_its_own_way_is_left_alone() -> None:
    network = nn.Sequential(Mirrored(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()).eval()
    truth = network(images := torch.randn(1, 3, 9, 9))
    assert fuse_activations(network) == 0 and torch.equal(network(images), truth)


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"padding": "valid"}, {"padding": 1, "padding_mode": "reflect"}], ids=str
)
def test_padding_that_is_not_a_number_of_zeros_is_left_alone(options: dict) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.ReLU()).eval()
    truth = network(images := torch.randn(2, 3, 31, 17))
    assert fuse_activations(network) == 0 and torch.equal(network(images), truth)


def test_hostile_inputs() -> None:
    backbone = prepare_backbone(build_backbone("small-cnn"))
    plain, images = plain_of(backbone), torch.randn(3, 3, 32, 32)
    images[1, 0, 5, 5], images[2, 1] = torch.nan, torch.inf
    maps = backbone(images)
    assert maps[1:].isnan().all() and plain(images)[1:].isnan().any()
    assert torch.equal(maps[:1], backbone(images[:1])) and maps[0].isfinite().all()
    for case in (images[:0], 1e30 * images[:1], images[:1].transpose(2, 3), images[:1].expand(2, -1, -1, -1)):
        result, expected = backbone(case), plain(case)
        assert result.shape == expected.shape and (not len(case) or relative_error(result, expected) < 1e-6)


def test_gradients_other_dtypes_and_exports_take_the_plain_way() -> None:
    backbone, images = prepare_backbone(build_backbone("small-cnn")), torch.randn(1, 3, 32, 32)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(backbone(leaf).square().sum(), leaf)
    exact = images.double().requires_grad_()
    double = copy.deepcopy(backbone).double()
    (truth,) = torch.autograd.grad(double(exact).square().sum(), exact)
    torch.testing.assert_close(gradient, truth.float(), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert backbone(images).dtype == torch.bfloat16
    program = torch.export.export(backbone, (images,))
    assert "mkldnn" not in str(program.graph)
    torch.testing.assert_close(program.module()(images), backbone(images), rtol=1e-5, atol=1e-5)
