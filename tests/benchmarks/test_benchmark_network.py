"""The benchmarks' whole network: the gate, the training step, and the rows of a run, at a small size on a CPU."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")
pytest.importorskip("torchvision", reason="the network is a torchvision ResNet: pip install 'ssgrl_fast[train]'")

from benchmarks import run
from benchmarks.harness import cases, verify
from benchmarks.harness.cases import Shape
from benchmarks.rivals import network
from benchmarks.rivals.network import Network

TINY = Shape("tiny", 6, locations=4, channels=512, word_dim=10, joint_dim=16, score_dim=12, out_dim=24)
CASE = Network("resnet18", 128, TINY, 2, "infer")
COMMON = ["--operation", "network", "--net", "resnet18", "--image", "128", "--shape", "tiny", "--batch", "1"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.SHAPES, "tiny", TINY)


def parsed(*arguments: str) -> list[Network]:
    return network.plan(run._parser().parse_args(["--operation", "network", *arguments]))


def test_the_issues_cases_are_the_default() -> None:
    networks = parsed("--device", "cuda")
    assert [(case.mode, case.batch) for case in networks] == [("infer", 1), ("infer", 16), ("train", 4)]
    assert {(case.net, case.side, case.shape.name, case.dtype) for case in networks} == {
        ("resnet101", 576, "coco", torch.bfloat16)
    }
    assert network.names(networks[0], True) == ("published", "ours", "ours-compiled", "ours-captured")
    assert network.names(parsed()[0], True) == ("published", "ours", "ours-compiled")
    assert network.names(parsed()[0], False) == ("published", "ours") and parsed()[0].dtype == torch.float32
    with pytest.raises(ValueError, match="runs in float32 or bfloat16, not float16"):
        parsed("--dtype", "float16")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_network_passes_its_gate(dtype: torch.dtype) -> None:
    (found,) = network.check(replace(CASE, dtype=dtype))
    assert 0 < found.error <= found.allowed < (1e-4 if dtype == torch.float32 else 0.5)


def test_a_wrong_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*arguments: object) -> network.Runner:
        runner = network.build_ours(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            runner.model.head.graph_propagation.weight_h.mul_(1.01)  # type: ignore[union-attr]
        return runner

    monkeypatch.setitem(network.RIVALS, "ours", replace(network.RIVALS["ours"], build=build))
    with pytest.raises(verify.ParityError, match="ours: logits of network infer, resnet18 128x128"):
        network.check(CASE)


@pytest.mark.parametrize("name", ["published", "ours"])
def test_a_training_step_changes_layer4_and_the_head_and_nothing_else(name: str) -> None:
    case = replace(CASE, mode="train")
    runner = network.RIVALS[name].build(case, network.make_backbone(case), cases.tensors(case.head))
    before = {key: value.clone() for key, value in runner.model.named_parameters()}
    runner.step("train")()
    changed = {key for key, value in runner.model.named_parameters() if not torch.equal(value, before[key])}
    still = {key for key in before if key not in changed}
    cancelled = ("joint_bias", "score_bias", "bias_p", "bias_a")  # their gradients are zero, but for rounding
    assert all("layer4" in key or not key.startswith("backbone") for key in changed)
    assert all(key.startswith("backbone.net") and "layer4" not in key or key.endswith(cancelled) for key in still)
    assert all(parameter.grad is None for parameter in runner.model.parameters())


def test_features_of_the_random_backbone_have_a_sane_scale() -> None:
    backbone = network.make_backbone(CASE).eval()
    with torch.inference_mode():
        features = backbone(torch.randn(2, 3, 128, 128))
    assert 0.01 < features.std().item() < 10
    assert not any(value.is_inference() for value in backbone.state_dict().values())


@pytest.mark.usefixtures("tiny")
def test_a_run_writes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> network.Runner:
        raise torch.OutOfMemoryError("CUDA out of memory")

    rival = replace(network.RIVALS["published"], name="greedy", label="greedy", build=broken)
    monkeypatch.setitem(network.RIVALS, "greedy", rival)
    path = tmp_path / "cpu.csv"
    assert run.main([*COMMON, "--rounds", "3", "--threads", "1", "--no-memory", "--output", str(path)]) == 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rival"], row["mode"]) for row in rows] == [
        (name, mode) for mode in cases.MODES for name in ("published", "ours", "greedy")
    ]
    for row in rows:
        if row["rival"] == "greedy":
            assert row["status"] == "out of memory" and row["p50_ms"] == ""
            continue
        assert row["operation"] == "network" and row["shape"] == "resnet18-128-tiny" and row["rounds"] == "3"
        assert float(row["images_per_s"]) == pytest.approx(1e3 / float(row["p50_ms"]), rel=1e-4)
    assert "images/s" in (printed := capsys.readouterr().out) and "greedy: out of memory" in printed


def test_published_keeps_its_parameters_apart() -> None:
    runner = network.build_published(CASE, network.make_backbone(CASE), cases.tensors(CASE.head))
    assert isinstance(runner.model, nn.Module)
    names = {name.removeprefix("layers.") for name, _ in runner.model.named_parameters() if name.startswith("layers.")}
    assert {"w_z", "u_z", "w_r", "u_r", "w_h", "u_h", "joint", "score", "classifier"} < names
