"""Runtimes: the logits of PyTorch within the budget, converted networks kept and never mixed up, auto's reasons."""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssgrl_fast.inference import runtimes
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.inference.runtimes import RuntimeBackbone, with_runtime
from ssgrl_fast.models import SSGRL, build_backbone
from ssgrl_fast.models.fused_convolutions import FusedConvolution
from ssgrl_fast.models.prepare import prepare
from ssgrl_fast.testing import relative_error

preparation = importlib.import_module("ssgrl_fast.models.prepare")
CONVERTED = ("onnxruntime", "openvino")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def prepared(seed: int = 0) -> SSGRL:
    torch.manual_seed(seed)
    backbone = build_backbone("small-cnn", width=8)
    return prepare(SSGRL(backbone, torch.randn(4, 6), torch.rand(4, 4) / 4, joint_dim=8).eval())


def needs(runtime: str) -> None:
    if runtime in CONVERTED:
        pytest.importorskip(runtime)


@pytest.mark.parametrize("runtime", [*CONVERTED, pytest.param("compile", marks=pytest.mark.thorough)])
def test_logits_and_attention_are_those_of_torch(runtime: str, tmp_path: Path) -> None:
    needs(runtime)
    model = prepared()
    changed, reason = with_runtime(model, runtime, image_size=32, folder=tmp_path / "runtimes")
    assert runtime in reason and isinstance(changed.backbone, RuntimeBackbone)
    assert not isinstance(model.backbone, RuntimeBackbone), "the model itself is left as it is"
    for batch, side in [(1, 32), (3, 32), (2, 48)]:
        images = torch.randn(batch, 3, side, side)
        with torch.inference_mode():
            results, expected = changed(images, return_attention=True), model(images, return_attention=True)
        for result, truth in zip(results, expected, strict=True):
            assert result.shape == truth.shape and relative_error(result, truth) <= 1e-5


@pytest.mark.parametrize("runtime", CONVERTED)
def test_a_converted_network_is_kept_and_belongs_to_its_weights(runtime: str, tmp_path: Path, monkeypatch) -> None:
    needs(runtime)
    folder, images = tmp_path / "runtimes", torch.randn(1, 3, 32, 32)
    first, second = prepared(0), prepared(1)
    expected = [model(images) for model in (first, second)]
    for model, logits in zip((first, second), expected, strict=True):
        changed, _ = with_runtime(model, runtime, image_size=32, folder=folder)
        assert relative_error(changed(images), logits) <= 1e-5
    written = sorted(folder.iterdir())
    assert len({path.stem for path in written}) == 2, "one file per network"
    monkeypatch.setattr(runtimes, "convert", lambda *_: pytest.fail("converted again"))
    changed, _ = with_runtime(first, runtime, image_size=32, folder=folder)
    assert relative_error(changed(images), expected[0]) <= 1e-5
    assert sorted(folder.iterdir()) == written


def test_auto_takes_the_fastest_and_says_why(monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = prepared()
    seconds = iter([1.2, 0.8, 0.1, 0.1, 0.8, 1.2])
    monkeypatch.setattr(runtimes, "_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(runtimes, "_PACKAGES", {"onnxruntime": "onnx"})
    changed, reason = with_runtime(model, "auto", image_size=32, folder=tmp_path / "a")
    assert changed.backbone.runtime == "onnxruntime" and "torch 150, onnxruntime 100" in reason
    next(seconds)
    unchanged, reason = with_runtime(model, "auto", image_size=32, folder=tmp_path / "b")
    assert unchanged is model and reason.startswith("runtime torch")


def test_only_a_backbone_that_torch_computes_is_probed_for_its_fused_form(monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    body = build_backbone("small-cnn", width=8)
    model = SSGRL(body, torch.randn(4, 6), torch.rand(4, 4) / 4, class_names=[*"abcd"], joint_dim=8).eval()
    model.save_pretrained(tmp_path)
    probed, fuse = [], preparation.fuse_activations
    monkeypatch.setattr(preparation, "fuse_activations", lambda network: probed.append(network) or fuse(network))
    monkeypatch.setattr(runtimes, "_PACKAGES", {"onnxruntime": "onnx"})
    found = {}
    for runtime, times in [
        ("onnxruntime", []),
        ("torch", []),
        ("auto", [0.2, 0.1]),
        ("auto", []),
        ("auto", [0.1, 0.2]),
    ]:
        seconds = iter(times)
        monkeypatch.setattr(runtimes, "_seconds", lambda *_, seconds=seconds: next(seconds))
        for path in tmp_path.glob("runtimes/auto-*.json") if times else ():
            path.unlink()
        network = Predictor.load(tmp_path, image_size=32, runtime=runtime).network
        fused = sum(isinstance(module, FusedConvolution) for module in network.backbone.modules())
        found[runtime, *times] = type(network.backbone).__name__, fused, len(probed)
        probed.clear()
        assert relative_error(network(IMAGES), model(IMAGES)) <= 1e-5
    fast, other = (type(body).__name__, 5), (RuntimeBackbone.__name__, 0)
    assert found == {
        ("onnxruntime",): (*other, 0),
        ("torch",): (*fast, 1),
        ("auto", 0.2, 0.1): (*other, 1),
        ("auto",): (*other, 0),  # the choice of before
        ("auto", 0.1, 0.2): (*fast, 1),
    }
    assert len(list(tmp_path.glob("runtimes/*.onnx"))) == 1, "one conversion serves all"


def test_the_weights_are_hashed_once(monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    counted, digest = [], runtimes.backbone_digest
    monkeypatch.setattr(runtimes, "backbone_digest", lambda body: counted.append(body) or digest(body))
    monkeypatch.setattr(runtimes, "_PACKAGES", {"onnxruntime": "onnx"})
    model = prepared()
    for runtime in ("auto", "onnxruntime"):
        with_runtime(model, runtime, image_size=32, folder=tmp_path / "runtimes")
    assert counted == [model.backbone] * 2
    double = copy.deepcopy(model.backbone).double()
    assert digest(double) == digest(model.backbone) != digest(prepared(1).backbone)


def test_autos_choice_is_kept_and_what_was_damaged_is_measured_anew(monkeypatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(runtimes, "_PACKAGES", {"onnxruntime": "onnx"})
    model, folder = prepared(), tmp_path / "runtimes"
    seconds = iter([0.3, 0.2] * 2)
    monkeypatch.setattr(runtimes, "_seconds", lambda *_: next(seconds))
    _, first = with_runtime(model, "auto", image_size=32, folder=folder)
    changed, second = with_runtime(model, "auto", image_size=32, folder=folder)
    assert second == first.replace(")", ", measured before)") and changed.backbone.runtime == "onnxruntime"
    with_runtime(prepared(1), "auto", image_size=32, folder=folder)  # another network: measured for itself
    assert next(seconds, None) is None and len(list(folder.glob("auto-*.json"))) == 2
    for path in folder.glob("*.onnx"):
        path.write_bytes(b"damaged")
    changed, again = with_runtime(model, "auto", image_size=32, folder=folder)
    assert again == second and relative_error(changed(IMAGES), model(IMAGES)) <= 1e-5, "converted anew"
    monkeypatch.setattr(runtimes, "_seconds", lambda *_: 0.1)
    for path in folder.glob("auto-*.json"):
        path.write_text("{")
    assert with_runtime(model, "auto", image_size=32, folder=folder)[0] is model, "measured anew"


def test_a_runtime_that_changes_the_logits_is_refused(monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    opened = runtimes.open_converted

    def wrong(path: Path, runtime: str, **options: bool) -> runtimes.Run:
        run = opened(path, runtime, **options)
        return lambda images: run(images) * 1.001

    monkeypatch.setattr(runtimes, "open_converted", wrong)
    monkeypatch.setattr(runtimes, "_PACKAGES", {"onnxruntime": "onnx"})
    model = prepared()
    with pytest.raises(ValueError, match="changes the logits"):
        with_runtime(model, "onnxruntime", image_size=32)
    same, reason = with_runtime(model, "auto", image_size=32)
    assert same is model and "onnxruntime is left out" in reason and "changes the logits" in reason


def test_what_is_not_there_or_not_float32_on_a_cpu(monkeypatch) -> None:
    model = prepared()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    same, reason = with_runtime(model, "auto", image_size=32)
    assert same is model and "neither openvino nor onnxruntime is installed" in reason
    double = prepare(SSGRL(build_backbone("small-cnn", width=8), torch.randn(4, 6), torch.rand(4, 4)).eval().double())
    assert with_runtime(double, "auto", image_size=32)[0] is double
    with pytest.raises(ValueError, match="'onnxruntime' does not compute in float64 on cpu"):
        with_runtime(double, "onnxruntime", image_size=32)
    with pytest.raises(ValueError, match="runtime must be one of"):
        with_runtime(model, "tensorrt", image_size=32)


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "file").write_text("")
    model, images = prepared(), torch.randn(1, 3, 32, 32)
    changed, _ = with_runtime(model, "openvino", image_size=32, folder=tmp_path / "file" / "runtimes")
    assert relative_error(changed(images), model(images)) <= 1e-5


_SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
import torch
from test_runtimes import prepared
from ssgrl_fast.inference.runtimes import with_runtime
for seed in range(3):
    model, _ = with_runtime(prepared(seed), "openvino", image_size=32, folder=Path(sys.argv[1]) / str(seed))
    for side in (32, 48):
        model(torch.zeros(1, 3, side, side))
    del model
    gc.collect()
taken = []
signal.signal(signal.SIGUSR1, lambda *_: taken.append(1))
for _ in range(20):
    held = [bytes(100_000) for _ in range(100)]  # memory that was given back is taken by others
    os.kill(os.getpid(), signal.SIGUSR1)
assert len(taken) == 20
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_signals_are_handled_after_a_model_is_dropped(tmp_path: Path) -> None:
    """The CPU plugin's stack for signals must outlive the models; this crashed a process whose workers ended."""
    pytest.importorskip("openvino")
    folders = os.pathsep.join(folder for folder in sys.path if folder)
    command = [sys.executable, "-c", _SIGNALLED, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": folders}, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
