"""Prediction on files: the numbers are the model's, the order is the user's, and nothing is left out in silence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ssgrl_fast
from ssgrl_fast import cli
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.data.images import read_image
from ssgrl_fast.data.transforms import eval_transform
from ssgrl_fast.inference.image_files import find_images, find_sources, newest_bundle
from ssgrl_fast.inference.predict import predict_files, progress_bar
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone, from_pretrained

NAMES = ["cat", "dog", "traffic light", "zebra"]
SIZE, RESIZE = 48, 56


def photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((70, 60), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    for seed, name in enumerate(["b.png", "a.jpg", "below/c.PNG", "below/deeper/d.bmp"]):
        photograph(tmp_path / "photos" / name, seed)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(3)
    model = SSGRL(
        build_backbone("small-cnn", width=4), torch.randn(4, 5), torch.rand(4, 4), class_names=NAMES, joint_dim=8
    )
    with torch.no_grad():  # logits on both sides of the threshold
        model.head.classifier.bias_c += torch.tensor([0.7, -0.7, 0.2, -0.1])
    model.preprocessing = {"image_size": SIZE, "resize": RESIZE}
    model.save_pretrained(folder / "ssgrl")
    plain = GlobalPoolingClassifier(build_backbone("small-cnn", width=4), 4, class_names=NAMES)
    plain.save_pretrained(folder / "pooling")
    return folder


def test_files_are_found_below_folders_in_order_and_once(photos):
    relative = [str(path.relative_to(photos)) for path in find_images([photos])]
    assert relative == ["a.jpg", "b.png", "below/c.PNG", "below/deeper/d.bmp"]
    assert find_images([photos / "b.png", photos])[0] == photos / "b.png"
    assert len(find_images([photos / "b.png", photos])) == 4
    assert find_images([photos / "notes.txt"]) == [photos / "notes.txt"]  # named: it is tried


def test_missing_paths_and_empty_folders_are_named(photos, tmp_path):
    (tmp_path / "labels.csv").write_text("file\na.jpg\n")
    with pytest.raises(ValueError, match="labels.csv: a table, no image; --list .*labels.csv takes the images"):
        find_sources([str(tmp_path / "labels.csv")])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        find_images([photos, tmp_path / "nowhere.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no image"):
        find_images([tmp_path / "empty"])


def test_scores_are_the_models_own(bundle, photos):
    predictor = Predictor.load(bundle / "ssgrl")
    files = find_images([photos])
    result = predict_files(predictor, files, batch_size=3)
    model = from_pretrained(bundle / "ssgrl")
    transform = eval_transform(SIZE, resize=RESIZE, mean=model.backbone.mean, std=model.backbone.std)
    with torch.no_grad():
        expected = model(torch.stack([transform(read_image(path)) for path in files]))
    assert [row["file"] for row in result["files"]] == [str(path) for path in files]
    labels = 0
    for row, logits in zip(result["files"], expected, strict=True):
        values = {entry["class"]: entry["score"] for entry in row["scores"]}
        assert [values[name] for name in NAMES] == pytest.approx(logits.tolist(), abs=1e-5)
        probabilities = [entry["probability"] for entry in row["scores"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert probabilities == pytest.approx([1 / (1 + np.exp(-entry["score"])) for entry in row["scores"]], abs=1e-6)
        assert set(row["labels"]) == {name for name, value in values.items() if value > 0}
        labels += len(row["labels"])
    assert 0 < labels < 16


def test_head_of_the_json_says_what_was_run(bundle, photos):
    result = predict_files(Predictor.load(bundle / "ssgrl", backend="reference"), [photos / "a.jpg"])
    assert result["backend"] == "reference" and result["mode"] == "paper" and result["kind"] == "SSGRL"
    assert (result["device"], result["dtype"]) == ("cpu", "float32")
    assert (result["image_size"], result["resize"]) == (SIZE, RESIZE)
    assert result["normalisation"] == {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    assert result["versions"] == {"ssgrl_fast": ssgrl_fast.__version__, "torch": torch.__version__}
    assert result["model"] == str(bundle / "ssgrl") and result["class_names"] == NAMES


def test_size_on_demand_and_of_the_bundle(bundle):
    for arguments, expected in (
        ({}, (SIZE, RESIZE)),
        ({"image_size": 32}, (32, 32)),
        ({"image_size": 32, "resize": 40}, (32, 40)),
        ({"resize": 99}, (SIZE, 99)),
    ):
        predictor = Predictor.load(bundle / "ssgrl", **arguments)
        assert (predictor.image_size, predictor.resize) == expected
    for arguments in ({}, {"resize": 40}):  # this bundle states nothing about its images
        with pytest.raises(ValueError, match="pooling: its config.json does not state the image size"):
            Predictor.load(bundle / "pooling", **arguments)
    assert Predictor.load(bundle / "pooling", image_size=32).resize == 32


def test_top_limits_scores_and_labels_and_threshold_counts(bundle, photos):
    predictor, files = Predictor.load(bundle / "ssgrl"), [photos / "a.jpg"]
    everything = predict_files(predictor, files, threshold=0)["files"][0]
    assert len(everything["labels"]) == 4
    two = predict_files(predictor, files, threshold=0, top=2)["files"][0]
    assert two["scores"] == everything["scores"][:2] and two["labels"] == everything["labels"][:2]
    assert predict_files(predictor, files, threshold=1)["files"][0]["labels"] == []


def test_batches_do_not_change_the_scores(bundle, photos):
    predictor, files = Predictor.load(bundle / "ssgrl"), find_images([photos])
    one, four = (predict_files(predictor, files, batch_size=size)["files"] for size in (1, 4))
    for left, right in zip(one, four, strict=True):
        assert [e["class"] for e in left["scores"]] == [e["class"] for e in right["scores"]]
        assert [e["score"] for e in left["scores"]] == pytest.approx([e["score"] for e in right["scores"]], abs=1e-5)


def test_broken_image_is_an_error_or_listed(bundle, photos):
    broken = photos / "aa.jpg"
    broken.write_bytes((photos / "a.jpg").read_bytes()[:200])
    predictor, files = Predictor.load(bundle / "ssgrl"), find_images([photos])
    with pytest.raises(BrokenImage, match=r"aa\.jpg"):
        predict_files(predictor, files)
    result = predict_files(predictor, files, skip_broken=True, batch_size=2)
    assert [entry["file"] for entry in result["broken"]] == [str(broken)]
    assert "aa.jpg" in result["broken"][0]["error"]
    assert result["images"] == 4 == len(result["files"])
    only = predict_files(predictor, [broken], skip_broken=True)
    assert only["images"] == 0 and len(only["broken"]) == 1


def test_overlays_are_pictures_of_the_highest_classes(bundle, photos, tmp_path):
    predictor = Predictor.load(bundle / "ssgrl")
    folder = tmp_path / "maps"
    result = predict_files(predictor, find_images([photos]), overlays=folder, overlay_maps=2, batch_size=3)
    names = [Path(path).name for row in result["files"] for path in row["overlays"]]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names) and len(names) == 8
    first = result["files"][0]
    assert names[0] == f"00000_a_1_{first['scores'][0]['class'].replace(' ', '_')}.png"
    shown = np.asarray(Image.open(first["overlays"][0]))
    plain = np.asarray(read_image(photos / "a.jpg")).astype(int)
    assert shown.shape == plain.shape  # the photograph's own size
    outside = np.ones(shown.shape[:2], dtype=bool)  # of the centre crop: nothing was seen, nothing is coloured
    sides = [(side * (RESIZE - SIZE) // 2 / RESIZE, side * (RESIZE + SIZE) // 2 / RESIZE) for side in outside.shape]
    outside[tuple(slice(int(first), int(end) + 1) for first, end in sides)] = False
    grey = 0.35 * plain + 0.35 * (plain @ [0.299, 0.587, 0.114])[..., None]
    assert outside.any() and np.abs(shown - grey)[outside].max() <= 1
    assert np.abs(shown - grey)[~outside].max() > 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top must be at least 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"threshold": 1.5}, "threshold"),
        ({"overlay_maps": 0}, "overlay_maps"),
    ],
)
def test_options_out_of_range(bundle, photos, options, message):
    with pytest.raises(ValueError, match=message):
        predict_files(Predictor.load(bundle / "ssgrl"), [photos / "a.jpg"], **options)


def test_weights_that_give_no_numbers_are_an_error_that_names_the_file(bundle, photos):
    predictor = Predictor.load(bundle / "ssgrl")
    with torch.no_grad():
        predictor.model.head.classifier.bias_c[1] = float("nan")
    with pytest.raises(ValueError, match=r"a\.jpg: the model's scores are not finite"):
        predict_files(predictor, [photos / "a.jpg"])


def test_baseline_has_neither_overlays_nor_backends(bundle, photos, tmp_path):
    predictor = Predictor.load(bundle / "pooling", image_size=32)
    assert predict_files(predictor, [photos / "a.jpg"])["mode"] == "none (no SSGRL head)"
    with pytest.raises(ValueError, match="no attention maps"):
        predict_files(predictor, [photos / "a.jpg"], overlays=tmp_path)
    with pytest.raises(ValueError, match="holds a GlobalPoolingClassifier"):
        Predictor.load(bundle / "pooling", backend="reference")


def test_command_writes_json(bundle, photos, tmp_path, capsys):
    out = tmp_path / "new" / "out.json"
    command = ["predict", "--model", str(bundle / "ssgrl"), str(photos), "--top", "3", "--no-progress"]
    assert cli.main([*command, "--output", str(out)]) == 0
    assert "4 images, 0 broken" in capsys.readouterr().err
    assert [len(row["scores"]) for row in json.loads(out.read_text())["files"]] == [3] * 4
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "ssgrl_fast.predictions"


def test_command_says_in_a_sentence_what_is_wrong(bundle, photos, tmp_path, capsys):
    (photos / "z.png").write_bytes(b"not a picture")
    command = ["predict", str(photos), "--no-progress", "--model"]
    assert cli.main([*command, str(bundle / "ssgrl")]) == 1
    said = capsys.readouterr().err
    assert "z.png" in said and "Traceback" not in said
    assert cli.main([*command, str(bundle / "ssgrl"), "--skip-broken", "--output", str(tmp_path / "o.json")]) == 0
    assert "1 broken" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "no_bundle")]) == 1
    assert "no_bundle" in capsys.readouterr().err
    assert cli.main([*command, str(bundle / "ssgrl"), "--backend", "warp"]) == 1
    assert "warp" in capsys.readouterr().err


def test_newest_bundle_of_the_runs(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match="--model"):
        newest_bundle(tmp_path)
    model = from_pretrained(bundle / "pooling")
    for number in (0, 1):
        model.save_pretrained(tmp_path / "cards" / f"version_{number}" / "bundle")
    os.utime(tmp_path / "cards/version_0/bundle/config.json", (2e9, 2e9))
    assert newest_bundle(tmp_path).parent.name == "version_0"


def test_the_progress_bar_names_a_speed_once_there_is_one() -> None:
    speed = progress_bar().columns[-1]
    assert speed.render(SimpleNamespace(completed=1, speed=None)) == "1 images"
    assert speed.render(SimpleNamespace(completed=1500, speed=919.4)) == "1,500 images, 919 images/s"
