"""What e4m3 costs a trained network: mAP of the recipes' models, quantized, beside bfloat16. Minutes: long tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")
pytest.importorskip("torchvision", reason="the training extra is not installed")

from ssgrl_fast import cli, metrics

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ALLOWED = 1e-3
"""A tenth of a point of mAP."""


def mean_ap(bundle: Path, recipe: Path, data: list[str], dtype: str, folder: Path) -> float:
    options = [f"--model={bundle}", f"--output={folder / dtype}", f"--dtype={dtype}", "--attention=0", "--no-progress"]
    assert cli.main(["evaluate", *options, f"--config={recipe}", *data]) == 0
    report = metrics.Report.from_json(folder / dtype / "report.json")
    assert report.dtype == {"bfloat16": "bfloat16", "fp8": "bfloat16 and fp8"}[dtype]
    return report.mean_ap


@pytest.mark.long
@pytest.mark.parametrize(("name", "learned"), [("digits", 0.95), ("playing_cards", 0.6)])
def test_a_quantized_network_keeps_its_map(
    name: str, learned: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])
    monkeypatch.chdir(tmp_path)  # runs and cached features
    recipe = CONFIGS / f"{name}.yaml"
    photographs = name == "playing_cards"
    data = [f"--data.root={request.getfixturevalue('shared_data') / name}"] if photographs else []
    assert cli.main(["fit", f"--config={recipe}", *data, "--trainer.enable_progress_bar=false"]) in (0, None)
    bundle = tmp_path / "runs" / name / "version_0" / "bundle"
    plain, quantized = (mean_ap(bundle, recipe, data, dtype, tmp_path) for dtype in ("bfloat16", "fp8"))
    assert plain > learned
    assert abs(quantized - plain) <= ALLOWED
