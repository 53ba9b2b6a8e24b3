"""prepare: logits and attention within the float32 budget, whatever the backbone; nothing shared with the model."""

from __future__ import annotations

import copy

import pytest
import torch
from stub_cuda import StubCuda
from torch import Tensor, nn

from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone
from ssgrl_fast.models.prepare import fold_batch_norms, prepare
from ssgrl_fast.modules import CapturedHead
from ssgrl_fast.testing import relative_error

CLASSES = 5
BACKBONES = {  # with the side of their images and the BatchNorms that do not follow a convolution
    "small-cnn": (64, 0),
    "resnet18": (64, 0),
    "efficientnet-lite0": (64, 0),
    "efficientnet-lite0-320": (64, 0),
    "timm:mobilenetv3_small_050": (64, 0),
    "timm:densenet121": (64, 62),
    "timm:vit_tiny_patch16_224": (224, 0),
}


def with_statistics(backbone: nn.Module) -> nn.Module:
    """A backbone whose BatchNorms have running statistics, weights and biases that matter."""
    draw = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
            module.weight.data.uniform_(0.5, 1, generator=draw)
            module.bias.data.normal_(0, 0.1, generator=draw)
    return backbone


def model_on(backbone: nn.Module | str, **head: object) -> SSGRL:
    draw = torch.Generator().manual_seed(2)
    words, graph = torch.randn(CLASSES, 7, generator=draw), torch.rand(CLASSES, CLASSES, generator=draw) / CLASSES
    return SSGRL(backbone, words, graph, joint_dim=16, **head).eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", BACKBONES)
def test_outputs_stay_within_the_budget(name: str) -> None:
    side, kept = BACKBONES[name]
    model = model_on(with_statistics(build_backbone(name, pretrained=False)))
    prepared, images = prepare(model), torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    assert prepared.prepared and norms(prepared) == kept
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(images.double(), return_attention=True)
        plain, fast = model(images, return_attention=True), prepared(images, return_attention=True)
    for expected, own, result in zip(truth, plain, fast, strict=True):
        assert relative_error(result, expected) <= max(1e-5, 1.2 * relative_error(own, expected))
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


@pytest.mark.parametrize("head", [{"decoupling": "average"}, {"decoupling": "concat"}, {"interaction": False}], ids=str)
def test_every_head(head: dict[str, object]) -> None:
    model = model_on(with_statistics(build_backbone("small-cnn")), **head)
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(prepare(model)(images), model(images), rtol=1e-4, atol=1e-6)


def test_the_pooling_baseline() -> None:
    model = GlobalPoolingClassifier(with_statistics(build_backbone("small-cnn")), CLASSES).eval()
    images = torch.randn(2, 3, 32, 32)
    prepared = prepare(model)
    assert norms(prepared) == 0 and torch.allclose(prepared(images), model(images), rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_is_and_later_changes_do_not_reach_the_copy() -> None:
    model = model_on(with_statistics(build_backbone("small-cnn")))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, prepared = torch.randn(1, 3, 32, 32), prepare(model)
    assert prepare(prepared) is prepared
    logits = prepared(images)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(prepared(images), logits)


def test_a_prepared_model_is_not_saved(tmp_path) -> None:
    with pytest.raises(ValueError, match="prepared for inference"):
        prepare(model_on("small-cnn")).save_pretrained(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        prepare(model_on("small-cnn").train())


def test_bfloat16_keeps_its_norms_and_p_in_float32() -> None:
    model = model_on(with_statistics(build_backbone("small-cnn"))).bfloat16()
    prepared = prepare(model)
    assert norms(prepared) == norms(model) > 0
    assert prepared.head.semantic_decoupling.p.dtype == torch.float32
    late = prepare(model_on("small-cnn")).bfloat16()
    assert (
        late.head.semantic_decoupling.p.dtype == torch.float32
        and late.head.semantic_decoupling.v.dtype == torch.bfloat16
    )


class Branches(nn.Module):
    """One convolution feeds a BatchNorm and a second path, one runs twice, and one BatchNorm stands first."""

    out_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.shared, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.again_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.plain, self.plain_norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.leak = True

    def forward(self, images: Tensor) -> Tensor:
        x = self.shared(self.first(images))
        y = self.norm(x) + (x if self.leak else 0)
        return self.plain_norm(self.plain(self.again_norm(self.again(self.again(y)))))


def test_what_cannot_be_folded_is_left() -> None:
    network = with_statistics(Branches()).eval()
    assert fold_batch_norms(network) == 0, "the first convolution's output has a second user"
    assert norms(network) == 4
    network.leak = False
    images = torch.randn(1, 3, 8, 8)
    before = network(images)
    assert fold_batch_norms(network) == 2, "norm and plain_norm: the convolution of again_norm runs twice"
    assert isinstance(network.again_norm, nn.BatchNorm2d) and isinstance(network.first, nn.BatchNorm2d)
    assert torch.allclose(network(images), before, rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_tried_is_left() -> None:
    class Small(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[2] != 37:
                raise ValueError("37 pixels only")
            return super().forward(images)

    network = Small(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    assert fold_batch_norms(network) == 0 and norms(network) == 1


@torch.no_grad()
def test_a_prepared_network_is_captured_for_several_batches() -> None:
    model = prepare(model_on("small-cnn"))
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    captured = CapturedHead(model, images[:2], batches=(4,), driver=StubCuda())
    for count in (1, 2, 3, 4):
        torch.testing.assert_close(captured(images[:count]), model(images[:count]))
    with pytest.raises(ValueError, match="with B up to 4"):
        captured(images)


def test_capture_refuses_a_network_in_training() -> None:
    with pytest.raises(ValueError, match="SSGRL.capture: the model must be in evaluation mode"):
        model_on("small-cnn").train().capture(torch.zeros(1, 3, 64, 64))


@torch.no_grad()
def test_only_a_prepared_head_keeps_what_it_computed_of_the_classes() -> None:
    """A write through ``.data`` moves no version counter: the head must follow it, its prepared copy must not."""
    model = model_on("small-cnn")
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    prepared, before = prepare(model), model(images)
    fast = prepared(images)
    for weight in (model.head.semantic_decoupling.weight_v, model.head.semantic_decoupling.weight_p):
        weight.data.mul_(-3)
    assert not torch.allclose(model(images), before)
    assert torch.equal(prepared(images), fast)
    torch.testing.assert_close(prepare(model)(images), model(images))
