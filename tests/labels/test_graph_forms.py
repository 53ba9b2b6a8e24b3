"""Graphs counted over objects, thresholded and re-weighted; the rules for difficult objects on real labels."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from ssgrl_fast import cli
from ssgrl_fast.data.voc import PascalVOC, count_objects
from ssgrl_fast.labels import graph
from ssgrl_fast.labels.graph_forms import object_cooccurrence, reweight, threshold
from ssgrl_fast.labels.matrix import split_labels


def test_object_counts_by_hand() -> None:
    """Two bicycles with five people, one bicycle alone, one person alone; nobody has a cat."""
    found = object_cooccurrence(torch.tensor([[2, 5, 0], [1, 0, 0], [0, 1, 0]]))
    expected = torch.tensor([[0, 10 / 3, 0], [10 / 6, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(found, expected)
    assert object_cooccurrence(torch.tensor([[2, 5, 0]]), diagonal=1.0).diagonal().tolist() == [1, 1, 0]
    with pytest.raises(TypeError, match="objects must be integers"):
        object_cooccurrence(torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"objects\[0, 1\] = -1 is negative"):
        object_cooccurrence(torch.tensor([[1, -1]]))


def loop_over_objects(folder: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of objects of different classes in the same image, one by one, and the objects of each class."""
    pairs, totals = np.zeros((len(names), len(names))), np.zeros(len(names))
    for path in sorted(folder.glob("*.xml")):
        objects = ElementTree.parse(path).getroot().findall("object")
        kept = [names.index(each.findtext("name")) for each in objects if each.findtext("difficult") != "1"]
        for first in range(len(kept)):
            totals[kept[first]] += 1
            for second in range(len(kept)):
                pairs[kept[first], kept[second]] += kept[first] != kept[second]
    return pairs, totals


def test_object_level_of_photographs_is_a_loop_over_their_objects(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shared_data / "playing_cards"
    names = PascalVOC(root, "train").class_names
    pairs, totals = loop_over_objects(root / "train", names)
    expected = (pairs / totals[:, None]).astype(np.float32)
    np.testing.assert_array_equal(object_cooccurrence(count_objects(root, "train", names)).numpy(), expected)
    out = tmp_path / "graph.safetensors"
    command = ["graph", "--voc", str(root), "--split", "train", "--level", "object", "--out", str(out)]
    assert cli.main(command) == 0 and "level: object" in capsys.readouterr().out
    np.testing.assert_array_equal(graph.load(out, names).numpy(), expected)
    assert graph.read(out).details["level"] == "object"


def test_threshold_and_reweight_by_hand() -> None:
    adjacency = torch.tensor([[0.9, 0.4, 0.1], [0.5, 0.0, 0.5], [0.0, 0.0, 0.0]])
    assert threshold(adjacency, 0.4).tolist() == [[1, 1, 0], [1, 0, 1], [0, 0, 0]]
    found = reweight(adjacency, 0.2)
    expected = torch.tensor([[0.8, 0.16, 0.04], [0.1, 0.8, 0.1], [0.0, 0.0, 0.8]])
    torch.testing.assert_close(found, expected)
    assert torch.equal(adjacency[0], torch.tensor([0.9, 0.4, 0.1]))  # the caller's stays
    with pytest.raises(ValueError, match="p must be from 0 to 1, got 2"):
        reweight(adjacency, 2)
    with pytest.raises(ValueError, match="tau must be above 0, got 0"):
        threshold(adjacency, 0)


def test_both_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 1]])
    np.savez(tmp_path / "labels.npz", labels=labels, class_names=["a", "b", "c"])
    out = tmp_path / "graph.npz"
    options = ["--threshold", "0.5", "--reweight", "0.25", "--out", str(out)]
    assert cli.main(["graph", "--labels", str(tmp_path / "labels.npz"), *options]) == 0
    plain = graph.cooccurrence(torch.from_numpy(labels))
    expected = reweight((plain >= 0.5).float(), 0.25)
    assert torch.equal(graph.load(out, ["a", "b", "c"]), expected)
    details = graph.read(out).details
    assert (details["threshold"], details["reweight"], details["level"]) == ("0.5", "0.25", "image")
    assert cli.main(["graph", "--labels", str(tmp_path / "labels.npz"), "--level", "object"]) == 1
    assert "--level object counts the objects of --voc or --coco" in capsys.readouterr().err


@pytest.mark.parametrize(("split", "pairs"), [("trainval", 607), ("test", 619)])
def test_the_three_rules_differ_by_the_difficult_pairs_of_voc2007(split: str, pairs: int, shared_data: Path) -> None:
    labels = torch.from_numpy(np.load(shared_data / "voc_labels" / f"voc2007_{split}.npz")["labels"])
    totals = {rule: int(graph.counts(labels, difficult=rule)[1].sum()) for rule in ("ignore", "positive", "negative")}
    assert totals["positive"] - totals["negative"] == pairs and totals["ignore"] == totals["negative"]
    sets = {rule: split_labels("test", "labels", labels, rule) for rule in totals}
    assert int(sets["ignore"].difficult.sum()) == pairs == int((labels == 0).sum())


def test_the_three_rules_on_one_annotation(tmp_path: Path) -> None:
    flat = tmp_path / "train"
    flat.mkdir()
    from PIL import Image

    objects = (("cat", 0), ("dog", 1), ("dog", 1), ("cow", 1), ("cow", 0))
    text = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in objects)
    (flat / "a.xml").write_text(f"<annotation>{text}</annotation>")
    Image.new("RGB", (8, 8)).save(flat / "a.jpg")
    labels = PascalVOC(tmp_path, "train", classes=["cat", "cow", "dog"]).labels
    assert labels.tolist() == [[1, 1, 0]]
    present = {rule: graph.counts(labels, difficult=rule)[1].tolist() for rule in ("ignore", "positive", "negative")}
    assert present == {"ignore": [1, 1, 0], "positive": [1, 1, 1], "negative": [1, 1, 0]}
    assert count_objects(tmp_path, "train", ["cat", "cow", "dog"]).tolist() == [[1, 1, 0]]


def test_published_counts_in_another_order_give_the_published_graph_to_the_last_bit(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = shared_data / "ml_gcn" / "coco_adj.json"
    names = shared_data / "ssgrl_official" / "coco" / "category_name.json"
    out = tmp_path / "coco.safetensors"
    assert cli.main(["graph", "--counts", str(counts), "--order", str(names), "--out", str(out)]) == 0
    assert "80 classes" in capsys.readouterr().out
    saved = graph.read(out)
    assert saved.class_names == json.loads(names.read_text()) and saved.details["source"] == str(counts)
    published = np.load(shared_data / "ssgrl_official" / "coco" / "prob_train.npy").astype(np.float32)
    assert saved.adjacency.numpy().tobytes() == published.tobytes()


def test_counts_that_do_not_fit_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, order = tmp_path / "counts.npz", tmp_path / "order.txt"
    np.savez(path, pairs=np.array([[0, 1], [1, 0]]), totals=np.array([2, 4]), class_names=["ant", "bee"])
    order.write_text("bee\nant\n")
    out = tmp_path / "graph.npz"
    assert cli.main(["graph", "--counts", str(path), "--order", str(order), "--diagonal", "1", "--out", str(out)]) == 0
    assert graph.read(out).class_names == ["bee", "ant"]
    assert graph.read(out).adjacency.tolist() == [[1, 0.25], [0.5, 1]]
    order.write_text("bee\nowl\n")
    (tmp_path / "bad.json").write_text('{"adj": [[0]]}')
    capsys.readouterr()
    for extra, message in (
        (["--counts", str(path), "--order", str(order)], "order.txt must hold the same classes"),
        (["--counts", str(tmp_path / "bad.json")], "bad.json cannot be read as counts: adj and nums are expected"),
        (["--counts", str(tmp_path / "no.json")], "no.json is no file"),
        (["--counts", str(tmp_path / "order.txt")], "must end in .json or .npz"),
        (["--counts", str(path), "--level", "object"], "--counts holds finished counts and takes no --level"),
        (["--counts", str(path), "--difficult", "ignore"], "--counts holds finished counts and takes no --difficult"),
    ):
        assert cli.main(["graph", *extra]) == 1
        assert message in capsys.readouterr().err


def test_coco128_equals_loops_over_its_json(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "coco128" / "annotations" / "instances_train2017.json"
    content = json.loads(source.read_text())
    names = [entry["name"] for entry in sorted(content["categories"], key=lambda entry: entry["id"])]
    name_of = {entry["id"]: entry["name"] for entry in content["categories"]}
    images: dict[int, list[str]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        images[entry["image_id"]].append(name_of[entry["category_id"]])
    expected = {level: np.zeros((80, 80), np.float32) for level in ("image", "object")}
    for row, given in enumerate(names):
        holding = [held for held in images.values() if given in held]
        objects = sum(held.count(given) for held in holding)
        for column, other in enumerate(names):
            if given != other and holding:
                expected["image"][row, column] = sum(other in held for held in holding) / len(holding)
                pairs = sum(held.count(given) * held.count(other) for held in holding)
                expected["object"][row, column] = pairs / objects
    for level, matrix in expected.items():
        out = tmp_path / f"{level}.safetensors"
        assert cli.main(["graph", "--coco", str(source), "--level", level, "--out", str(out)]) == 0
        np.testing.assert_array_equal(graph.load(out, names).numpy(), matrix)
    assert expected["object"].max() > 1 >= expected["image"].max()
