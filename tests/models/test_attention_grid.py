"""Where the cells of a map look: known places are found, and bundles, prepared models and runtimes agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from planted_spot import equal_parts, random_backbone, spot_errors
from small_bundles import NAMES, make_model
from torch import Tensor, nn

import ssgrl_fast
from ssgrl_fast.inference.runtimes import RuntimeBackbone
from ssgrl_fast.models import SSGRL, build_backbone
from ssgrl_fast.models.backbone import Backbone

TINY = "timm:mobilenetv3_small_050"
RESNETS = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
RESNETS += ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]
thorough = pytest.mark.thorough


def centres(backbone: Backbone, height: int, width: int) -> tuple[Tensor, Tensor]:
    grid = backbone.grid(height, width)
    return grid.y.centres(), grid.x.centres()


def named(name: str, weights: str) -> Backbone:
    return random_backbone(name) if weights == "random" else build_backbone(name).eval()


@pytest.mark.parametrize(
    ("name", "weights", "height", "width"),
    [
        ("small-cnn", "random", 64, 64),
        ("small-cnn", "random", 75, 61),
        *[
            pytest.param(*case, marks=thorough)
            for case in [
                ("resnet18", "random", 448, 448),
                ("resnet18", "random", 415, 351),
                *[(name, "random", 321, 352) for name in RESNETS if name != "resnet152"],
                ("resnet152", "random", 577, 608),  # a smaller image cuts off what its cells see
                *[("efficientnet-lite0", "trained", side, side) for side in (224, 256, 384, 399)],
                ("efficientnet-lite0", "random", 256, 256),
                ("efficientnet-lite0-320", "trained", 384, 384),
                ("efficientnet-lite0", "random", 399, 399),
                ("timm:vit_tiny_patch16_224", "random", 224, 224),
                ("timm:mobilenetv3_small_100", "random", 224, 224),
                ("timm:convnext_atto", "random", 250, 250),
                ("timm:tf_efficientnet_lite0", "random", 225, 225),
                ("timm:regnety_002", "random", 224, 224),
                ("timm:resnet18", "random", 225, 240),
            ]
        ],
    ],
)
def test_a_planted_spot_is_found(name: str, weights: str, height: int, width: int) -> None:
    backbone = named(name, weights)
    y, x = centres(backbone, height, width)
    assert (len(y), len(x)) == tuple(backbone(torch.zeros(1, 3, height, width)).shape[2:])
    backgrounds = 1 if name in RESNETS else 16 if "efficientnet" in name else 4  # few cells leave 0.1 of noise with 4
    errors = spot_errors(backbone, y, x, height, width, backgrounds)
    assert errors.abs().max() <= 0.15, errors


def test_equal_parts_are_not_where_the_cells_look() -> None:
    """The check above sees a displaced grid: in a map of small-cnn, 0.44 of a cell."""
    backbone = random_backbone("small-cnn")
    parts = equal_parts(64, 8)
    assert (spot_errors(backbone, parts, parts, 64, 64) - 3.5 / 8).abs().max() < 0.15


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("side", [64, 65, 95, 96, 97, 130])
def test_exact_grids_have_the_cells_of_the_map(pool: bool, side: int) -> None:
    for name, step in (("small-cnn", 8), ("resnet18", 32)):
        backbone = build_backbone(name, pretrained=False, pool=pool).eval()
        y, x = centres(backbone, side, 64)
        with torch.no_grad():
            assert (len(y), len(x)) == tuple(backbone(torch.zeros(1, 3, side, 64)).shape[2:])
        assert y[0] == (step / 2 if pool else 0) and (len(y) < 2 or y[1] - y[0] == step * (1 + pool))


def test_a_measured_grid_agrees_with_an_exact_one() -> None:
    exact = build_backbone("small-cnn").eval()
    measured = Backbone(exact.net, exact.out_channels)
    for size in ((64, 64), (75, 61)):
        for known, found in zip(centres(exact, *size), centres(measured, *size), strict=True):
            torch.testing.assert_close(found, known, rtol=0, atol=0.1 * 8)


def test_bundles_state_the_grid_and_older_ones_are_measured(tmp_path: Path) -> None:
    model = make_model(backbone=random_backbone(TINY))
    model.preprocessing = {"image_size": 96, "resize": 108}
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["digest"]
    (y_first, step, cells), _ = config["attention_grid"]["96x96"]
    assert (step, cells) == (32, 3)
    y, _ = model.attention_grid(96, 96)
    torch.testing.assert_close(y, y_first + 32 * torch.arange(3).double())
    config["attention_grid"]["96x96"][0][0] = 1.25  # what is stored is what is used
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = SSGRL.from_pretrained(tmp_path)
    assert again.attention_grid(96, 96)[0].tolist() == [1.25, 33.25, 65.25]
    assert again.train().eval().attention_grid(96, 96)[0].tolist() == y.tolist()  # training forgets it
    del config["attention_grid"]
    (tmp_path / "config.json").write_text(older := json.dumps(config))
    assert SSGRL.from_pretrained(tmp_path).attention_grid(96, 96)[0].tolist() == y.tolist()
    assert (tmp_path / "config.json").read_text() == older


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"96": []},
        {"0x4": [[0, 1, 2]] * 2},
        {"4x4": [[0, 1, 2]]},
        {"4x4": [[0, 0, 2]] * 2},
        {"4x4": [[0, 1, 0.5]] * 2},
    ],
)
def test_a_bundle_with_a_damaged_grid_is_refused(tmp_path: Path, entry: object) -> None:
    make_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert "attention_grid" not in config  # small-cnn's follows from its strides
    (tmp_path / "config.json").write_text(json.dumps({**config, "attention_grid": entry}))
    with pytest.raises(ValueError, match=r"config\.json: entry 'attention_grid' must hold"):
        SSGRL.from_pretrained(tmp_path)


def test_a_model_that_cannot_be_measured_is_saved_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(backbone=random_backbone(TINY))
    model.preprocessing = {"image_size": 64, "resize": 64}
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(torch.nan)
    model.save_pretrained(tmp_path)
    assert "attention_grid" not in json.loads((tmp_path / "config.json").read_text())
    assert "stores no attention grid: attention_grid: the map of images of 64x64 is not finite" in caplog.text


def test_prepared_models_and_runtimes_have_the_same_grid() -> None:
    pytest.importorskip("onnxruntime")
    model = make_model(backbone=random_backbone(TINY))
    prepared = ssgrl_fast.prepare(model)
    with torch.inference_mode():
        own = model.attention_grid(96, 64)
        folded = prepared.attention_grid(96, 64)  # measured on the folded weights
    for ours, theirs in zip(own, folded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)
    known = ssgrl_fast.prepare(model)
    prepared.backbone = RuntimeBackbone(known.backbone, "onnxruntime", None)  # type: ignore[assignment]
    for ours, theirs in zip(own, prepared.attention_grid(96, 64), strict=True):
        assert torch.equal(ours, theirs)


def test_half_precision_and_training_mode_change_nothing() -> None:
    model = make_model(backbone=random_backbone(TINY))
    whole = model.attention_grid(64, 64)[0]
    half = make_model(backbone=random_backbone(TINY)).to(torch.bfloat16).train()
    assert abs(half.attention_grid(64, 64)[0] - whole).max() < 1
    assert half.training and next(half.parameters()).dtype is torch.bfloat16


def test_a_backbone_needs_no_gradient_but_must_see_the_image() -> None:
    class Parts(nn.Module):
        out_channels = 3

        @torch.no_grad()
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(images, 10)

    y, x = centres(build_backbone(Parts()).eval(), 40, 45)
    parts = equal_parts(40, 4)
    torch.testing.assert_close(y, parts, rtol=0, atol=1)
    torch.testing.assert_close(x, parts, rtol=0, atol=1)  # its last 5 pixels are seen by no cell
    blind = build_backbone(nn.Sequential(Parts(), nn.Threshold(1e9, 0)), out_channels=3).eval()
    with pytest.raises(ValueError, match="the map of images of 40x40 is not finite, or no spot changes it"):
        blind.grid(40, 40)


def test_sizes_that_cannot_be_are_refused() -> None:
    model = make_model()
    assert len(NAMES) == model.head.num_classes
    with pytest.raises(ValueError, match="height and width must be at least 1"):
        model.attention_grid(0, 64)
    pooled = make_model(backbone=build_backbone("small-cnn", width=4, pool=True))
    with pytest.raises(ValueError, match="images of 8x64 are too small for the 2x2 average pool"):
        pooled.attention_grid(8, 64)
