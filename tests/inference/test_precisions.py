"""Reduced precision on a CPU: bfloat16 in OpenVINO, int8 with photographs to calibrate it, the choice by "auto"."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_bundles import make_model

pytest.importorskip("PIL", reason="the training extra is not installed")
from PIL import Image

from ssgrl_fast import cli
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.inference.runtimes import RuntimeBackbone, with_runtime
from ssgrl_fast.models import SSGRL, build_backbone
from ssgrl_fast.models.prepare import prepare
from ssgrl_fast.testing import relative_error


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = make_model()
    model.preprocessing = {"image_size": 32, "resize": 32}
    model.save_pretrained(tmp_path / "bundle")
    (tmp_path / "photos").mkdir()
    draw = torch.Generator().manual_seed(0)
    for number in range(6):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "bundle"


def instructions(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def predict(bundle: Path, name: str, *options: str) -> int:
    output = bundle.parent / f"{name}.json"
    command = ["predict", str(bundle.parent / "photos"), "--model", str(bundle), "--output", str(output)]
    return cli.main([*command, "--no-progress", *options])


def test_bfloat16_in_openvino_is_as_exact_as_in_torch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    backbone, words = build_backbone("small-cnn", width=8), torch.randn(64, 6)
    model = SSGRL(backbone, words, torch.rand(64, 64) / 64, joint_dim=8).eval().bfloat16()
    changed, _ = with_runtime(prepare(model), "openvino", image_size=32, folder=tmp_path)
    images = torch.randn(64, 3, 32, 32)
    with torch.inference_mode():
        logits, plain, truth = changed(images), model(images.bfloat16()), model.double()(images.double())
    assert logits.dtype == plain.dtype == torch.bfloat16
    assert relative_error(logits.double(), truth) <= 1.2 * relative_error(plain.double(), truth)


def test_int8_is_calibrated_once_and_kept(bundle: Path) -> None:
    pytest.importorskip("nncf", exc_type=ImportError)
    pytest.importorskip("openvino")
    photos = sorted((bundle.parent / "photos").iterdir())
    plain = Predictor.load(bundle, runtime="openvino")
    images = torch.stack([plain.read(path) for path in photos])
    expected = plain.scores(images)[0]
    with pytest.raises(ValueError, match="int8 needs photographs for images of 32x32 pixels"):
        Predictor.load(bundle, runtime="openvino", dtype="int8").scores(images)
    scores = Predictor.load(bundle, runtime="openvino", dtype="int8", calibration=photos).scores(images)[0]
    assert 1e-4 < relative_error(scores, expected) < 0.1, "int8 is coarse, and right"
    kept = Predictor.load(bundle, runtime="auto", dtype="int8")  # no photographs: the network is there
    assert isinstance(kept.network.backbone, RuntimeBackbone) and kept.network.backbone.precision == "int8"
    assert torch.equal(kept.scores(images)[0], scores)
    (quantized,) = (bundle / "runtimes").glob("openvino-int8-*.xml")
    assert 'type="FakeQuantize"' in quantized.read_text()


def test_auto_takes_bfloat16_where_the_cpu_has_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for able, name in ((True, "bfloat16"), (False, "float32")):
        instructions(monkeypatch, bfloat16=able)
        predictor = Predictor.load(bundle, dtype="auto")
        assert predictor.facts()["dtype"] == name
        assert predictor.scores(torch.zeros(1, 3, 32, 32))[0].isfinite().all()


def test_a_bundle_runs_in_the_dtype_that_it_is_stored_in(bundle: Path) -> None:
    stored = SSGRL.from_pretrained(bundle).double()
    stored.save_pretrained(bundle.parent / "double")
    for dtype, expected in ((None, "float64"), ("float32", "float32")):
        assert Predictor.load(bundle.parent / "double", dtype=dtype).facts()["dtype"] == expected


def test_dtypes_and_runtimes_that_do_not_go_together(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(bundle, "a", "--dtype", "int8") == 1
    assert "dtype int8 is computed by the runtime openvino on a CPU, got the runtime torch" in capsys.readouterr().err
    pytest.importorskip("onnxruntime")
    assert predict(bundle, "a", "--dtype", "bfloat16", "--runtime", "onnxruntime") == 1
    error = capsys.readouterr().err
    assert "runtime 'onnxruntime' does not compute in bfloat16 on cpu; openvino can" in error
    assert not (bundle.parent / "a.json").exists()


def test_predict_says_in_which_precision(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instructions(monkeypatch, bfloat16=True)
    for name, options in (("float32", []), ("bfloat16", ["--dtype", "auto"])):
        assert predict(bundle, name, *options) == 0
        assert json.loads((bundle.parent / f"{name}.json").read_text())["dtype"] == name
    pytest.importorskip("nncf", exc_type=ImportError)
    pytest.importorskip("openvino")
    options = ["--dtype", "int8", "--runtime", "openvino", "--calibration", str(bundle.parent / "photos")]
    assert predict(bundle, "int8", *options) == 0
    assert json.loads((bundle.parent / "int8.json").read_text())["dtype"] == "int8 backbone and bfloat16"
