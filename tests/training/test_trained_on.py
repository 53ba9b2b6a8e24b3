"""A run keeps which images it was trained on: its report names them, and a test of them is refused unless allowed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning", reason="needs Lightning (extra train)")

from ssgrl_fast.cli import evaluate, fit, test
from ssgrl_fast.training.checkpoint import read_checkpoint
from ssgrl_fast.training.trained_on import check_apart, check_bundle, image_marks


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
    assert json.loads((root / "report" / "report.json").read_text())["details"]["test images trained on"] == "4 of 4"
    moved = root / "elsewhere"  # a copy under other names
    moved.mkdir()
    for number in range(6):
        shutil.copy(root / f"{number}.png", moved / f"photo{number}.png")
    (moved / "labels.csv").write_text((root / "labels.csv").read_text().replace("\n", "\nphoto", 6))
    given[2] = f"--data.root={moved}"
    with pytest.raises(ValueError, match=r"4 of the 4 test images were trained on \(photo0\.png"):
        evaluate.main([*given, "--overwrite"])


def test_an_image_is_known_by_its_content(tmp_path: Path) -> None:
    """In any folder, under any name; not one of the same name and size with other pixels at its beginning or end."""
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    for name, changed in (
        ("a", content),
        ("b", content),
        ("c", b"x" + content[1:]),
        ("d", content[:-1] + b"x"),
        ("e", content[:99]),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name if name == 'b' else 1}.bmp").write_bytes(changed)

    def images(name: str) -> SimpleNamespace:
        return SimpleNamespace(paths=sorted((tmp_path / name).iterdir()), ids=["1"])

    marks = image_marks(images("a"))
    assert marks is not None
    assert [check_apart(marks, images(name), option="--allow") for name in "cde"] == ["0 of 1"] * 3
    with pytest.raises(ValueError, match="1 of the 1 test images were trained on"):
        check_apart(marks, images("b"), option="--allow")
    assert check_apart(marks, images("b"), option=None) == "1 of 1"


def test_a_damaged_list_of_marks_is_named(tmp_path: Path) -> None:
    (tmp_path / "trained_on.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"trained_on\.npy: not readable"):
        check_bundle(tmp_path, SimpleNamespace(paths=[], ids=[]), option="--allow")
