"""The pointing game and the attention inside boxes, by hand and by brute force over pixels."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="needs lightning: pip install 'ssgrl_fast[train]'")

from PIL import Image
from small_sets import NAMES, make_coco

from ssgrl_fast import cli
from ssgrl_fast.data.boxes import Edges
from ssgrl_fast.data.coco import CocoDetection
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.inference.localisation import Targets, covered, localise, measure, read_targets
from ssgrl_fast.inference.placement import Placement
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.inference.removal import measure_removal
from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone

PLACE = Placement(np.array([9.5, 29.5]), np.array([9.5, 29.5]), (0, 0, 40, 40))  # cells at 10 and 30 from the edges
SIZE = (40, 40)


def verdict(attention: list[list[float]], boxes: list[Edges], unclear: list[Edges] | None = None) -> float:
    return measure(PLACE, np.array(attention), Targets(0, 0, boxes, unclear or []), SIZE, 15.0)[0]


def test_the_highest_point_hits_up_to_the_tolerance() -> None:
    """The highest point lies at (10, 30); the tolerance is a distance, not one per axis."""
    peak = [[0.1, 0.7], [0.1, 0.1]]
    assert verdict(peak, [(8, 28, 12, 32)]) == 1
    assert verdict(peak, [(25, 28, 40, 32)]) == 1 and verdict(peak, [(25.1, 28, 40, 32)]) == 0
    assert verdict(peak, [(22, 0, 40, 21)]) == 1  # 12 down and 9 across: 15
    assert verdict(peak, [(22, 0, 40, 20.9)]) == 0
    assert verdict(peak, [(30, 0, 40, 10), (9, 29, 11, 31)]) == 1  # any box of the class


def test_several_highest_points_count_by_their_share() -> None:
    assert verdict([[0.4, 0.4], [0.1, 0.1]], [(0, 0, 12, 12)]) == 0.5
    assert verdict([[0.25, 0.25], [0.25, 0.25]], [(8, 8, 12, 12)]) == 0.25
    assert verdict([[-3.0, -1.0], [-2.0, -9.0]], [(8, 28, 12, 32)]) == 1  # maps of any sign


def test_what_counts_neither_way_is_left_out() -> None:
    one, other = (0.0, 0.0, 12.0, 12.0), (28.0, 28.0, 40.0, 40.0)
    assert math.isnan(verdict([[0.1, 0.1], [0.1, 0.7]], [one], [other]))
    assert verdict([[0.4, 0.1], [0.1, 0.4]], [one], [other]) == 1
    assert verdict([[0.1, 0.4], [0.1, 0.4]], [one], [other]) == 0
    assert verdict([[0.7, 0.1], [0.1, 0.1]], [one], [one]) == 1  # where a box that counts lies too
    _, inside = measure(None, None, Targets(0, 0, [(0.0, 0.0, 40.0, 10.0)], [(0.0, 0.0, 40.0, 20.0)]), SIZE, 0)
    assert inside == 400 / 1200  # of 1600 pixels 400 lie in the other box alone


def level(placement: Placement, attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The map at each pixel: linear between the centres, constant beyond them, zero where nothing was seen."""
    columns = np.stack([np.interp(np.arange(size[0]), placement.y, column) for column in attention.T], axis=1)
    whole = np.stack([np.interp(np.arange(size[1]), placement.x, row) for row in columns])
    (top, left, bottom, right), (y, x) = placement.seen, (np.arange(side) + 0.5 for side in size)
    return whole * ((y > top) & (y < bottom))[:, None] * ((x > left) & (x < right))


def brute_force(
    placement: Placement | None, attention: np.ndarray, target: Targets, size: tuple[int, int], tolerance: float
) -> tuple[float, float]:
    """Shares over the pixels of the map: of an even one where ``placement`` is None."""
    shown = np.ones(size) if placement is None else level(placement, attention.clip(0), size)
    near = near_known = inside = known = 0.0
    for y in range(size[0]):
        for x in range(size[1]):
            away = [
                min(
                    (
                        math.dist((y + 0.5, x + 0.5), (min(max(y + 0.5, t), b), min(max(x + 0.5, l), r)))
                        for t, l, b, r in boxes
                    ),
                    default=math.inf,
                )
                for boxes in (target.boxes, target.unclear)
            ]
            near += away[0] <= tolerance
            near_known += away[0] <= tolerance or away[1] > tolerance
            inside += shown[y, x] * (away[0] == 0)
            known += shown[y, x] * (away[0] == 0 or away[1] > 0)
    return near / near_known, inside / known


@pytest.mark.parametrize("seed", range(4))
def test_shares_and_chance_are_those_of_the_pixels(seed: int) -> None:
    rng, size = np.random.default_rng(seed), (31, 44)
    centres = [np.sort(rng.uniform(-3, side + 2, cells)) for side, cells in zip(size, (3, 4), strict=True)]
    placement = Placement(*centres, (2.5, 0.0, 29.0, 40.25))
    attention = rng.uniform(-0.5, 1, (3, 4))

    def draw() -> Edges:
        (top, bottom), (left, right) = (sorted(rng.uniform(0, side, 2)) for side in size)
        return top, left, bottom, right

    target = Targets(0, 0, [draw(), draw()], [draw()] if seed % 2 else [])
    pointing, inside = measure(placement, attention, target, size, 4.0)
    chance = measure(None, None, target, size, 4.0)
    assert inside == pytest.approx(brute_force(placement, attention, target, size, 4.0)[1], abs=1e-5)
    assert chance == pytest.approx(brute_force(None, attention, target, size, 4.0), abs=1e-12)
    shown = level(placement, attention, size)
    low, high = [math.floor(each[0]) for each in centres], [math.ceil(each[-1]) for each in centres]
    for side, least, most in zip((shown, shown.T), (3, 0), (29, 40), strict=True):  # what was seen
        axis = 0 if side is shown else 1
        side[: max(least, low[axis])], side[min(most, high[axis] + 1) :] = -9, -9  # beyond the centres it is level
    (point,) = placement.points(attention)
    assert np.abs(point - np.unravel_index(shown.argmax(), size)).max() <= 1.01
    hit = any(covered([box], size, 4.0)[tuple(point.round().astype(int))] for box in target.boxes)
    assert math.isnan(pointing) or bool(pointing) == hit


def test_a_map_lies_within_what_was_seen() -> None:
    beyond = Placement(np.array([-6.0, 4.0]), np.array([3.0]), (1.0, 0.0, 8.0, 8.0))
    assert beyond.points(np.array([[1.0], [0.0]])).tolist() == [[0.5, 3.0]]
    assert beyond.points(np.array([[0.0], [1.0]])).tolist() == [[4.0, 3.0]]


# ---- whole data sets -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in COCO's format with boxes, some beyond the image and one without an area, and two bundles."""
    folder = tmp_path_factory.mktemp("localisation")
    make_coco(folder / "set", ("train", "val"))
    path = folder / "set" / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for number, entry in enumerate(content["annotations"]):
        entry |= {"bbox": [number, 2, 40, 10], "iscrowd": int(number == 3)}
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] != 3]  # no chair
    content["annotations"][-1]["bbox"] = [33, 0, 5, 5]  # the image is 32 pixels wide
    path.write_text(json.dumps(content))
    torch.manual_seed(5)
    backbone = build_backbone("small-cnn", width=4)
    SSGRL(backbone, torch.randn(3, 5), torch.rand(3, 3), class_names=NAMES, joint_dim=8).save_pretrained(
        folder / "ssgrl"
    )
    GlobalPoolingClassifier(backbone, 3, class_names=NAMES).save_pretrained(folder / "pooling")
    return folder


def test_a_data_set_is_measured_pair_by_pair(place: Path) -> None:
    """Against a loop that reads every image by itself and draws every map."""
    predictor, rival = (Predictor.load(place / name, image_size=32, resize=40) for name in ("ssgrl", "pooling"))
    path = place / "set" / "annotations" / "instances_val.json"
    dataset = CocoDetection(place / "set" / "val", path, classes=NAMES)
    found = localise(predictor, dataset, (40, 32), baseline=rival, tolerance=3, batch_size=2)
    table = found.table
    assert found.left_out == {"labels whose boxes have no area on the photograph": 1}
    assert len(table.rows) == (dataset.labels == 1).sum() - 1
    assert set(table.values) == {
        *(f"{name}{suffix}" for name in ("pointing", "inside") for suffix in ("", " chance", " CAM")),
        "pointing centre",
    }
    content = json.loads(path.read_text())
    for pair, (row, column) in enumerate(zip(table.rows, table.columns, strict=True)):
        boxes = [e["bbox"] for e in content["annotations"] if (e["image_id"], e["category_id"] - 1) == (row, column)]
        edges = [(float(y), float(x), float(y + h), float(min(x + w, 32))) for x, y, w, h in boxes]
        target = Targets(row, column, edges, [])
        image = predictor.read(dataset.paths[row])[None]
        for suffix, each in (("", predictor), (" CAM", rival)):
            attention = each.maps(image)[0, column].numpy()
            drawn = np.ones_like(attention) if attention.max() <= 0 else attention
            _, inside = brute_force(each.placement((24, 32)), drawn, target, (24, 32), 3)
            assert table.values[f"inside{suffix}"][pair] == pytest.approx(inside, abs=1e-5)
        _, chance = brute_force(None, attention, target, (24, 32), 3)
        assert table.values["inside chance"][pair] == pytest.approx(chance, abs=1e-12)
        assert table.values["pointing centre"][pair] == any(
            t - 3 <= 12 <= b + 3 and l - 3 <= 16 <= r + 3 for t, l, b, r in edges
        )
    best, worst = found.extremes(3)
    gain = table.values["inside"] - table.values["inside chance"]
    assert (len(best), len(worst)) == (2, 1) and gain[best[0]] == gain.max() and gain[worst[0]] == gain.min()


def test_an_activation_map_averages_to_the_logit_less_its_bias(place: Path) -> None:
    rival = Predictor.load(place / "pooling", image_size=32)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    logits, _ = rival.scores(images)
    expected = logits - rival.model.head.linear.bias.detach()
    assert torch.allclose(rival.maps(images).mean((2, 3)), expected, atol=1e-5)


@pytest.mark.parametrize(("rule", "sure", "unclear"), [("ignore", 1, 1), ("positive", 2, 0), ("negative", 1, 0)])
def test_difficult_objects_follow_the_rule(place: Path, rule: str, sure: int, unclear: int) -> None:
    path = place / "set" / "annotations" / "instances_val.json"
    dataset = CocoDetection(place / "set" / "val", path, classes=NAMES, crowd="ignore")
    boxes = dataset.boxes()
    (row,) = [row for row, image in enumerate(boxes) if any(each.code == 0 for each in image.objects)]
    crowd = next(each for each in boxes[row].objects if each.code == 0)
    boxes[row].objects.append(crowd._replace(code=1, edges=(0.0, 0.0, 1.0, 1.0)))
    dataset.boxes = lambda: boxes  # type: ignore[method-assign]
    targets, _, _ = read_targets(dataset, rule)
    (target,) = [each for each in targets if each.row == row and NAMES[each.column] == crowd.name]
    assert (len(target.boxes), len(target.unclear)) == (sure, unclear)
    boxes[row].objects.pop()
    alone = [each for each in read_targets(dataset, rule)[0] if each.row == row and NAMES[each.column] == crowd.name]
    assert len(alone) == (rule == "positive")
    boxes[row].objects.append(crowd._replace(code=1, edges=None))
    assert read_targets(dataset, rule)[2] == {"labels with an object that has no box": 1}


def test_boxes_of_a_picture_of_another_shape_are_refused(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "turned.json"
    content = json.loads((place / "set" / "annotations" / "instances_val.json").read_text())
    for image in content["images"]:
        image |= {"width": 24, "height": 32}  # as an image lies in its file, before its EXIF orientation
    path.write_text(json.dumps(content))
    predictor = Predictor.load(place / "ssgrl", image_size=32)
    with pytest.raises(
        BrokenAnnotation, match=r"000000\.jpg: its boxes are of a picture of 24×32 .* has 32×24 upright"
    ):
        localise(predictor, CocoDetection(place / "set" / "val", path, classes=NAMES), (32, 32))
    for image in content["images"]:
        image |= {"width": 64, "height": 48}  # before the files were reduced
    path.write_text(json.dumps(content))
    halved = localise(predictor, CocoDetection(place / "set" / "val", path, classes=NAMES), (32, 32))
    assert max(halved.table.values["inside chance"]) == pytest.approx(40 * 10 / (48 * 64), rel=0.2)


@pytest.mark.parametrize("images", [2, 50])
def test_cells_are_removed_on_images_spread_over_the_set(place: Path, images: int) -> None:
    predictor = Predictor.load(place / "ssgrl", image_size=32)
    path = place / "set" / "annotations" / "instances_val.json"
    dataset = CocoDetection(place / "set" / "val", path, classes=NAMES)
    found = measure_removal(predictor, dataset, (32, 32), images=images, batch_size=2)
    labelled = (dataset.labels == 1).any(1).nonzero().flatten().tolist()
    rows = [labelled[0], labelled[-1]] if images == 2 else labelled
    pairs = [(row, column) for row in rows for column in (dataset.labels[row] == 1).nonzero().flatten().tolist()]
    assert [*zip(found.table.rows, found.table.columns, strict=True)] == pairs
    for pair, (row, column) in enumerate(pairs):
        logits, _ = predictor.scores(predictor.read(dataset.paths[row])[None])
        assert found.table.values["whole"][pair] == pytest.approx(logits[0, column].sigmoid().item(), abs=1e-5)
        for name, area in found.curves[pair].areas().items():
            assert found.table.values[name][pair] == area
    assert found.mean_curves()["kept"][-1] == 1 and len(found.mean_curves()["random"]) == len(found.curves[0].kept)


def command(place: Path, output: Path, *more: str, model: str = "ssgrl") -> list[str]:
    options = [f"--model={place / model}", f"--output={output}", "--no-progress", "--image-size=32", "--localisation"]
    return ["evaluate", *options, *(more or ["--data.kind=coco", f"--data.root={place / 'set'}"])]


def test_the_report_has_the_tables_and_the_sheet(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.kind=coco", f"--data.root={place / 'set'}", f"--baseline={place / 'pooling'}"]
    data += ["--attention=3", "--removal=4"]
    assert cli.main(command(place, tmp_path / "out", *data)) == 0, capsys.readouterr().err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Localisation" in text and "| pointing - CAM |" in text and "](localisation.png)" in text
    assert "chair" not in text.partition("## Localisation")[2]  # a class without a box
    assert "1 labels whose boxes have no area on the photograph" in text
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())["localisation"]
    assert content["pairs"]["chair"] == 0 and content["classes"]["inside"]["chair"] is None
    mean, low, high = content["mean over classes, 95 % interval"]["inside - inside chance"]
    assert low <= mean <= high
    removal = json.loads((tmp_path / "out" / "evaluation.json").read_text())["removal"]
    assert "## Removing cells" in text and "| deletion - random |" in text and removal["pairs"]["boat"] > 0
    for name in ("localisation.png", "removal.png"):
        with Image.open(tmp_path / "out" / name) as sheet:
            assert f"]({name})" in text and min(sheet.size) > 300


def test_what_cannot_be_measured_is_said_before_anything_is_computed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_coco(tmp_path / "bare", ("train", "val"))
    bare = ["--data.kind=coco", f"--data.root={tmp_path / 'bare'}"]
    table = tmp_path / "labels.csv"
    table.write_text(
        "file,labels,split\n"
        + "".join(
            f"{place / 'set' / 'val'}/00000{i}.jpg,{NAMES[i % 3]},{'train' if i > 2 else 'test'}\n" for i in range(6)
        )
    )
    rows = ["--data.kind=csv", f"--data.root={table}", "--data.allow_outside=true"]
    for more, message in ((bare, "none of the 6 images has an object with a box"), (rows, "got a LabelTable")):
        assert cli.main(command(place, tmp_path / "out", *more)) == 1
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main(command(place, tmp_path / "out", model="pooling")) == 1
    assert "holds a GlobalPoolingClassifier, without attention" in capsys.readouterr().err
