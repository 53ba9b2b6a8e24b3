"""The report folder of `evaluate`: a picture that cannot be drawn costs nothing but itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: pip install 'ssgrl_fast[train]'")

from small_sets import NAMES, make_coco

from ssgrl_fast import cli
from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in COCO's format and two bundles, which state no image size."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_coco(folder / "set", ("train", "val"))
    torch.manual_seed(5)
    words, graph = torch.randn(3, 5), torch.rand(3, 3)
    model = SSGRL(build_backbone("small-cnn", width=4), words, graph, class_names=NAMES, joint_dim=8)
    model.save_pretrained(folder / "ssgrl")
    GlobalPoolingClassifier(build_backbone("small-cnn", width=4), 3, class_names=NAMES).save_pretrained(
        folder / "pooling"
    )
    return folder


def command(place: Path, output: Path, *more: str) -> list[str]:
    data = ["--data.kind=coco", f"--data.root={place / 'set'}", "--no-progress", f"--baseline={place / 'pooling'}"]
    return ["evaluate", f"--model={place / 'ssgrl'}", f"--output={output}", *data, *more]


@pytest.mark.parametrize("broken", ["ap_chart", "attention_sheet", "attention_samples"])
def test_a_picture_that_fails_loses_no_number(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no glyph\nand more")

    out = tmp_path / "out"
    more = ["--attention=1", "--image-size=36"]
    assert cli.main(command(place, out, *more)) == 0
    numbers = {name: (out / name).read_bytes() for name in ("report.json", "evaluation.json", "baseline.json")}
    capsys.readouterr()
    module = "ssgrl_fast.inference.evaluation_report" if broken == "ap_chart" else "ssgrl_fast.cli.evaluate"
    monkeypatch.setattr(f"{module}.{broken}", fail)
    assert cli.main(command(place, out, *more, "--overwrite")) == 1
    printed = capsys.readouterr()
    lost, kept = ("ap.png", "attention.png") if broken == "ap_chart" else ("attention.png", "ap.png")
    assert f"{lost} could not be drawn: RuntimeError: no glyph" in printed.err and "Traceback" not in printed.err
    assert "| model |" in printed.out and f"report in {out}" in printed.out
    assert {name: (out / name).read_bytes() for name in numbers} == numbers
    assert not (out / lost).exists() and (out / kept).is_file()  # not that of the evaluation before
    text = (out / "report.md").read_text()
    assert f"]({kept})" in text and f"]({lost})" not in text and f"{lost} could not be drawn: RuntimeError" in text


def test_the_size_of_the_images_is_named_by_one_option(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bundles that state none, the model's and the baseline's, are evaluated at the size of the command line."""
    assert cli.main(command(place, tmp_path / "none")) == 1
    assert "ssgrl: its config.json does not state the image size" in capsys.readouterr().err
    assert cli.main(command(place, tmp_path / "both", "--image-size=36", "--scales=40")) == 1
    assert "--image-size and --scales both name the size" in capsys.readouterr().err
    assert cli.main(command(place, tmp_path / "scales", "--scales=40", "--attention=0")) == 0
    content = json.loads((tmp_path / "scales" / "evaluation.json").read_text())
    assert content["protocol"]["scales"] == [[40, 36]]
    assert cli.main(command(place, tmp_path / "size", "--image-size=36", "--attention=0")) == 0
    content = json.loads((tmp_path / "size" / "evaluation.json").read_text())
    assert content["protocol"]["scales"] == [[36, 36]]
