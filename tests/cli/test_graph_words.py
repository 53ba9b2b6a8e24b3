"""The verbs graph and words: what they read, print, save and refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ssgrl_fast.cli import graph as cli_graph
from ssgrl_fast.cli import words as cli_words
from ssgrl_fast.labels import graph, words
from ssgrl_fast.labels.class_names import read_class_names

LABELS = np.array([[1, 1, -1], [1, -1, 0], [1, 1, -1], [-1, 1, -1]], dtype=np.int8)
NAMES = ["ant", "bee", "cow"]


def run(*arguments: object) -> int:
    verb, *rest = map(str, arguments)
    return {"graph": cli_graph, "words": cli_words}[verb].main(rest)


@pytest.fixture
def label_files(tmp_path: Path) -> Path:
    np.savez(tmp_path / "labels.npz", labels=LABELS, class_names=np.array(NAMES))
    np.save(tmp_path / "labels.npy", LABELS)
    rows = [["name", *NAMES]] + [[f"{number:06}", *map(str, row)] for number, row in enumerate(LABELS)]
    (tmp_path / "labels.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    (tmp_path / "classes.json").write_text(json.dumps(NAMES))
    (tmp_path / "classes.txt").write_text("ant\nbee\n\n cow \n")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "extra"),
    [
        ("labels.npz", []),
        ("labels.csv", ["--coding", "voc"]),
        ("labels.npy", ["--class-names", "classes.json"]),
        ("labels.npy", ["--class-names", "classes.txt"]),
    ],
)
def test_graph_from_label_files(
    label_files: Path, capsys: pytest.CaptureFixture[str], file: str, extra: list[str]
) -> None:
    extra = [str(label_files / word) if word.startswith("classes") else word for word in extra]
    out = label_files / "graph.safetensors"
    assert run("graph", "--labels", label_files / file, *extra, "--diagonal", 1, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "4 images, 3 classes" in printed
    assert "difficult: ignore (1 entries)" in printed
    assert "1 classes are in no image, their rows are zero: cow" in printed
    assert "images per class: 0 (cow) to 3 (bee)" in printed
    assert "P(ant | bee) = 0.667" in printed
    assert f"saved to {out}" in printed
    saved = graph.read(out)
    assert saved.class_names == NAMES
    assert saved.details["images"] == "4"
    assert saved.details["diagonal"] == "1"
    expected = torch.tensor([[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(saved.adjacency, expected, rtol=0, atol=1e-7)


def test_graph_counts_difficult_objects_on_demand(label_files: Path) -> None:
    out = label_files / "graph.npz"
    run("graph", "--labels", label_files / "labels.npz", "--difficult", "positive", "--out", out)
    assert graph.load(out, NAMES)[0, 2] == torch.tensor(1 / 3)


def test_graph_of_a_table_counts_its_training_images_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "labels.csv", tmp_path / "graph.npz"
    table.write_text("file,labels,split\na,ant;bee,train\nb,ant,train\nc,ant;bee,test\nd,bee;cow,test\n")
    assert run("graph", "--labels", table, "--out", out) == 0
    assert "(train): 2 images, 3 classes" in capsys.readouterr().out
    assert graph.read(out).adjacency.tolist() == [[0, 0.5, 0], [1, 0, 0], [0, 0, 0]]
    assert graph.read(out).details["source"] == f"{table} (train)"
    run("graph", "--labels", table, "--split", "test", "--out", out)
    assert graph.read(out).adjacency.tolist() == [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]]
    with pytest.raises(ValueError, match="no split 'val'; available splits: test, train"):
        run("graph", "--labels", table, "--split", "val")
    np.save(tmp_path / "labels.npy", LABELS)
    with pytest.raises(ValueError, match="labels.npy holds no splits, got split 'train'"):
        run("graph", "--labels", tmp_path / "labels.npy", "--split", "train")


def test_graph_inspects_what_it_saved(label_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = label_files / "graph.npz"
    run("graph", "--labels", label_files / "labels.npz", "--out", out)
    capsys.readouterr()
    assert run("graph", "--inspect", out) == 0
    printed = capsys.readouterr().out
    assert "3 classes\n" in printed
    assert "images: 4" in printed
    assert "edges: 2 of 6 (33.3 %), values to 0.667" in printed
    np.save(label_files / "bare.npy", np.array([[0.0, 0.5], [0.25, 0.0]]))
    run("graph", "--inspect", label_files / "bare.npy")
    printed = capsys.readouterr().out
    assert "no names in the file" in printed
    assert "P(1 | 0) = 0.500" in printed


def test_graph_refuses_what_does_not_fit(label_files: Path) -> None:
    with pytest.raises(ValueError, match=r"labels\.npy holds no class names: give class_names \(--class-names FILE\)"):
        run("graph", "--labels", label_files / "labels.npy")
    with pytest.raises(FileNotFoundError, match=r"absent\.npz is no file"):
        run("graph", "--labels", label_files / "absent.npz")
    with pytest.raises(ValueError, match=r"classes\.txt must end in \.npz, \.npy, \.csv"):
        run("graph", "--labels", label_files / "classes.txt")
    (label_files / "short.csv").write_text("name,ant,bee\n1,1,-1\n2,1\n")
    with pytest.raises(ValueError, match=r"short\.csv, line 3: 2 fields, the header has 3"):
        run("graph", "--labels", label_files / "short.csv")
    (label_files / "text.csv").write_text("name,ant\n1,perhaps\n")
    with pytest.raises(ValueError, match=r"text\.csv, line 2: ant must be 1, 0 or -1, got 'perhaps'"):
        run("graph", "--labels", label_files / "text.csv")
    np.savez(label_files / "other.npz", scores=LABELS)
    with pytest.raises(ValueError, match=r"other\.npz cannot be read as labels: it holds scores, expected labels"):
        run("graph", "--labels", label_files / "other.npz")
    (label_files / "cut.npz").write_bytes((label_files / "labels.npz").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be read as labels"):
        run("graph", "--labels", label_files / "cut.npz")
    with pytest.raises(ValueError, match="--out goes with"):
        run("graph", "--inspect", label_files / "graph.npz", "--out", label_files / "again.npz")
    (label_files / "two.txt").write_text("ant\nbee\n")
    with pytest.raises(ValueError, match="2 class_names for 3 classes"):
        run("graph", "--labels", label_files / "labels.npz", "--class-names", label_files / "two.txt")


def test_graph_of_published_voc_labels(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "voc_labels"
    out = tmp_path / "voc.safetensors"
    run("graph", "--labels", folder / "VOC2007_classification_trainval.csv", "--coding", "voc", "--out", out)
    names = json.loads((folder / "classes.json").read_text())
    expected = graph.cooccurrence(np.load(folder / "voc2007_trainval.npz")["labels"])
    assert torch.equal(graph.load(out, names), expected)


def test_graph_of_a_voc_folder(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL", reason="ssgrl_fast.data.voc needs Pillow (extra train)")
    out = tmp_path / "cards.npz"
    run("graph", "--voc", shared_data / "playing_cards", "--out", out)
    assert "playing_cards (train): 296 images, 6 classes" in capsys.readouterr().out
    held = [
        set(re.findall("<name>(.*?)</name>", path.read_text()))
        for path in (shared_data / "playing_cards" / "train").glob("*.xml")
    ]
    names = sorted(set().union(*held))
    expected = [
        [
            sum({c, d} <= names_there for names_there in held)
            / sum(c in names_there for names_there in held)
            * (c != d)
            for d in names
        ]
        for c in names
    ]
    np.testing.assert_array_equal(graph.load(out, names).numpy(), np.array(expected, dtype=np.float32))
    run("graph", "--voc", shared_data / "playing_cards", "--split", "test")
    assert "playing_cards (test): 67 images" in capsys.readouterr().out


def test_graph_of_coco_annotations_alone(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared_data / "coco128" / "annotations" / "instances_train2017.json"
    out = tmp_path / "coco.safetensors"
    run("graph", "--coco", source, "--out", out)
    printed = capsys.readouterr().out
    assert "128 images, 80 classes" in printed
    content = json.loads(source.read_text())
    categories = {entry["id"]: entry["name"] for entry in content["categories"]}
    images = {
        name: {entry["image_id"] for entry in content["annotations"] if categories[entry["category_id"]] == name}
        for name in categories.values()
    }
    assert f"{sum(not held for held in images.values())} classes are in no image" in printed
    saved = graph.read(out)
    assert saved.class_names == list(categories.values())
    dog, person = saved.class_names.index("dog"), saved.class_names.index("person")
    expected = len(images["dog"] & images["person"]) / len(images["dog"])
    assert 0 < expected < 1
    assert saved.adjacency[dog, person] == torch.tensor(expected)


def test_words_from_a_text_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "glove.txt"
    table.write_text("hot 1 0\ndog 0 1\ncat 0.1 1\n")
    out = tmp_path / "vectors.npy"
    assert run("words", table, "--names", "hot dog", "dog", "hound", "--compound", "hound=dog+cat", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "3 classes, 2 dimensions" in printed
    assert "  hot dog  hot + dog  (nearest: hound, cosine 0.74)" in printed
    assert "  hound    dog + cat  (nearest: dog, cosine 1.00)" in printed
    assert f"saved to {out}, names in vectors.names.json" in printed
    expected = torch.tensor([[0.05, 1.0], [0.5, 0.5]])
    torch.testing.assert_close(words.load(out, ["hound", "hot dog"]), expected, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="--compound must read WORD=A"):
        run("words", table, "--names", "dog", "--compound", "hound")
    run("words", table, "--names", "dog")
    assert "nearest" not in capsys.readouterr().out


def test_class_names_come_from_many_files(label_files: Path, shared_data: Path) -> None:
    graph.save(label_files / "graph.npz", torch.zeros(3, 3), NAMES)
    for file in ("classes.json", "classes.txt", "graph.npz"):
        assert read_class_names(label_files / file) == NAMES
    official = json.loads((shared_data / "ssgrl_official" / "coco" / "category_name.json").read_text())
    assert read_class_names(shared_data / "coco128" / "annotations" / "instances_train2017.json") == official


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("names.json", b"{", "neither a JSON list, names by number nor COCO annotations"),
        ("names.json", b'{"a": 3}', "neither a JSON list, names by number nor COCO annotations"),
        ("names.json", b"3", "must be a list of strings, got int"),
        ("names.json", b'["a", 3]', "must hold strings, got 3"),
        ("names.txt", b"a\nb\na\n", "'a' more than once"),
        ("names.txt", b"", "class_names is empty"),
        ("names.txt", b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_broken_class_names_name_the_file(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        read_class_names(tmp_path / file)
    with pytest.raises(FileNotFoundError, match="absent is no file"):
        read_class_names(tmp_path / "absent")


def test_class_names_of_another_order_reorder_the_columns(tmp_path: Path) -> None:
    rows = ["a.jpg,cat;dog,train", "b.jpg,cat,train", "c.jpg,cat,train", "d.jpg,bird,test", "e.jpg,bird,train"]
    (tmp_path / "t.csv").write_text("\n".join(["file,labels,split", *rows]) + "\n")
    (tmp_path / "names.txt").write_text("dog\ncat\nbird\n")
    arguments = ["--labels", str(tmp_path / "t.csv"), "--class-names", str(tmp_path / "names.txt")]
    assert run("graph", *arguments, "--out", tmp_path / "g.npz") == 0
    saved = graph.read(tmp_path / "g.npz")
    assert saved.class_names == ["dog", "cat", "bird"]
    assert saved.adjacency.tolist() == [[0, 1, 0], [pytest.approx(1 / 3), 0, 0], [0, 0, 0]]
