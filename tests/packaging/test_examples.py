"""The scripts in examples/ run as they are printed, in seconds, and do what they say."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import ssgrl_fast as sf
from ssgrl_fast.data.digits import CLASS_NAMES, draw_canvases

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_run_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    names = [path.stem for path in FOLDER.glob("*.py")]
    assert len(names) >= 7 and [name for name in names if f'script("{name}")' not in text] == []


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What train_digits.py leaves after 40 steps."""
    folder = tmp_path_factory.mktemp("examples")
    generator = np.random.default_rng(0)
    lines = [f"{name} {' '.join(f'{value:.3f}' for value in generator.normal(size=12))}\n" for name in CLASS_NAMES]
    (folder / "words.txt").write_text("".join(lines), encoding="utf-8")
    common = ["--steps", "40", "--train", "320", "--test", "200", "--words", str(folder / "words.txt")]
    ap = script("train_digits").main([*common, "--out", str(folder / "bundle")])
    chance = (draw_canvases("test", 200, 64, 0)[1]).mean()
    assert ap > chance + 0.03  # 40 steps have learnt something: a random ranking has the share of positives
    return folder / "bundle"


def test_train_digits_writes_a_bundle_that_predict_photos_reads(bundle: Path, tmp_path: Path, capsys) -> None:
    canvases, _ = draw_canvases("test", 2, 64, 0)
    for number, canvas in enumerate(canvases):
        Image.fromarray(canvas.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = script("predict_photos").main([str(bundle), str(tmp_path), "--overlays", str(tmp_path / "maps")])
    assert result["images"] == 2 and len(list((tmp_path / "maps").iterdir())) == 6
    assert "left out" in capsys.readouterr().out
    model = sf.SSGRL.from_pretrained(bundle)
    assert model.class_names == list(CLASS_NAMES) and model.preprocessing == {"image_size": 64, "resize": 64}


def test_own_backbone(capsys) -> None:
    logits, attention = script("own_backbone").main()
    assert logits.shape == (2, 5) and attention.shape == (2, 5, 10, 10)
    assert torch.allclose(attention.sum((2, 3)), torch.ones(2, 5))
    assert "tokens: (2, 5)" in capsys.readouterr().out


def test_custom_graph_and_words(tmp_path: Path, capsys) -> None:
    counted = script("custom_graph_and_words").main([str(tmp_path)])
    # three images hold a fork, two of these a knife and all a table; four hold a table, three of these a fork
    assert counted[0].tolist() == pytest.approx([0, 2 / 3, 1, 0]) and counted[2, 0].item() == pytest.approx(3 / 4)
    assert "by hand" in capsys.readouterr().out


def test_compile_and_export(tmp_path: Path) -> None:
    error = script("compile_and_export").main(["--compiler", "aot_eager", "--out", str(tmp_path / "model.pt2")])
    assert error < 1e-5
    images = torch.rand(3, 3, 64, 64)
    assert torch.export.load(tmp_path / "model.pt2").module()(images).shape == (3, 6)


def test_benchmark_shape(capsys) -> None:
    small = ["--classes", "5", "--channels", "32", "--joint", "16", "--side", "4", "--seconds", "0.05"]
    times = script("benchmark_shape").main([*small, "--device", "cpu"])
    assert "reference" in times and all(math.isfinite(value) and value > 0 for value in times.values())
    said = capsys.readouterr().out
    assert [name for name in sf.backends.names() if f"{name}:" not in said] == []


def test_own_data(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("red 1 0 0\ngreen 0 1 0\nblue 0 0 1\n", encoding="utf-8")
    ap = script("own_data").main(["--epochs", "4", "--words", str(words), "--out", str(tmp_path / "own")])
    assert ap > 0.75  # each class is in half of the images
    model = sf.SSGRL.from_pretrained(tmp_path / "own" / "bundle")
    assert model.class_names == ["red", "green", "blue"] and model.preprocessing == {"image_size": 64, "resize": 64}
    assert list((tmp_path / "own").rglob("metrics.csv"))


def test_migrate(capsys) -> None:
    assert script("migrate").main() < 1e-5
