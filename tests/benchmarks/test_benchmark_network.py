"""The benchmarks' whole network: the gate, the training step, and the rows of a run, at a small size on a CPU."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import nn

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")
pytest.importorskip("torchvision", reason="the network is a torchvision ResNet: pip install 'ssgrl_fast[train]'")

from benchmarks import run
from benchmarks.harness import cases, timing, verify
from benchmarks.harness.cases import Shape
from benchmarks.harness.measure import Bench, Settings
from benchmarks.rivals import network, network_models
from benchmarks.rivals.network import Network

TINY = Shape("tiny", 6, locations=4, channels=512, word_dim=10, joint_dim=16, score_dim=12, out_dim=24)
CASE = Network("resnet18", 128, TINY, 2, "infer")
COMMON = ["--operation", "network", "--net", "resnet18", "--image", "128", "--shape", "tiny", "--batch", "1"]


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rivals that convert the network, which takes seconds each."""
    for name in [name for name, rival in network.RIVALS.items() if rival.package is not None]:
        monkeypatch.delitem(network.RIVALS, name)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.SHAPES, "tiny", TINY)


def parsed(*arguments: str) -> list[Network]:
    return network.plan(run._parser().parse_args(["--operation", "network", *arguments]))


def test_the_default_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = parsed("--device", "cuda")
    assert [(case.mode, case.batch) for case in networks] == [("infer", 1), ("infer", 16), ("train", 4)]
    assert {(case.net, case.side, case.shape.name, case.dtype) for case in networks} == {
        ("resnet101", 576, "coco", torch.bfloat16)
    }
    assert network.names(networks[0], True) == ("published", "ours", "ours-compiled", "ours-captured")
    monkeypatch.setattr(network_models, "find_spec", lambda package: None if package == "openvino" else object())
    served = ("published-onnxruntime", "ours-prepared", "ours-onnxruntime")
    inference, training = parsed()[0], parsed()[-1]
    assert network.names(inference, True) == ("published", "ours", "ours-compiled", *served)
    assert network.names(training, False) == ("published", "ours") and inference.dtype == torch.float32
    with pytest.raises(ValueError, match="runs in float32 or bfloat16, not float16"):
        parsed("--dtype", "float16")


@pytest.mark.usefixtures("torch_only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_network_passes_its_gate(dtype: torch.dtype) -> None:
    found = network.check(replace(CASE, dtype=dtype))
    assert [one.rival for one in found] == (["ours", "ours-prepared"] if dtype == torch.float32 else ["ours"])
    assert all(0 < one.error <= one.allowed < (1e-4 if dtype == torch.float32 else 0.5) for one in found)


@pytest.mark.thorough
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_networks_runtimes_pass_the_gate_and_run(runtime: str) -> None:
    pytest.importorskip(runtime)
    case = Network("small-cnn", 64, replace(TINY, channels=128, locations=64), 2, "infer")
    found = {one.rival: one for one in network.check(case)}
    wrong = "published-openvino"  # its compiler misreads a product, a sum and a bias
    assert [name for name, one in found.items() if not one.green] == [wrong] * (wrong in found)
    for name in {f"published-{runtime}", f"ours-{runtime}"} - {wrong}:
        runner = network.RIVALS[name].build(case, network.make_backbone(case), cases.tensors(case.head))
        assert runner.logits().shape == (2, TINY.classes) and runner.step("infer")() == ()


@pytest.mark.usefixtures("torch_only")
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


@pytest.mark.usefixtures("tiny", "torch_only")
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
        (name, mode)
        for mode in cases.MODES
        for name in ("published", "ours", *["ours-prepared"] * (mode == "infer"), "greedy")
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


@pytest.mark.usefixtures("torch_only")
def test_a_rival_that_is_wrong_is_not_timed() -> None:
    wrong = verify.Check("published", CASE, "logits", 0.5, 1e-6)  # type: ignore[arg-type]
    bench = Bench(
        Settings(1, 1, 1.0, False, None), timing.sampler("cpu"), progress := Progress(), progress.add_task("")
    )
    rows = {row.rival: row for row in network.measure(CASE, ("published", "ours"), bench, [wrong])}
    assert rows["published"].status == "wrong" and "allowed 1e-06" in rows["published"].reason
    assert rows["published"].p50_ms is None and rows["ours"].p50_ms and rows["ours"].over_published is None
    assert rows["ours"].L == 4
