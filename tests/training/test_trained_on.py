"""A run keeps which images it was trained on: its report names them, and a test of them is refused unless allowed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning", reason="needs Lightning (extra train)")

from ssgrl_fast.cli import evaluate, fit, test
from ssgrl_fast.training.checkpoint import read_checkpoint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(6):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'cat' if number % 2 else 'cat;dog'},{'TrainVal' if number < 4 else 'Test'}\n")
    (tmp_path / "labels.csv").write_text("file,labels,ML_USE\n" + "".join(rows))
    return tmp_path


def options(root: Path, *more: str) -> list[str]:
    return [
        "--data.kind=csv", f"--data.root={root}", "--data.image_size=64", "--data.resize=64", "--data.crops=[64]",
        "--model.kind=pooling", "--model.backbone=resnet18", "--model.pretrained=false", "--model.freeze=none",
        "--model.schedule=constant", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
        f"--run_dir={root / 'runs'}", *more,
    ]  # fmt: skip


def test_trained_images_are_named_and_refused_as_test_images(root: Path) -> None:
    fit.main(options(root, "--trainer.max_epochs=1"))
    run = root / "runs" / "version_0"
    record = read_checkpoint(run / "checkpoints" / "last.ckpt")["trained_on"]
    assert record["images"] == 4 and "split TrainVal" in record["source"]
    test.main(options(root))
    report = json.loads((run / "report_test.json").read_text())
    assert report["images"] == 2
    assert report["details"]["trained on"].startswith(f"4 images: csv {root}, split TrainVal")
    swapped = ["--data.train_split=test", "--data.test_split=train"]
    with pytest.raises(
        ValueError, match=r"4 of the 4 test images were trained on \(0\.png, 1\.png, 2\.png, …\).*--allow_tr"
    ):
        test.main(options(root, *swapped))
    test.main(options(root, *swapped, "--allow_trained_images=true"))
    assert json.loads((run / "report_test.json").read_text())["images"] == 4
    bundle = [f"--model={run / 'bundle'}", "--data.kind=csv", f"--data.root={root / 'labels.csv'}", "--no-progress"]
    given = [*bundle, "--data.test_split=train", f"--output={root / 'report'}", "--attention=0"]
    with pytest.raises(ValueError, match="4 of the 4 test images were trained on.*--allow-trained-images"):
        evaluate.main(given)
    assert evaluate.main([*given, "--allow-trained-images"]) == 0
