"""Co-occurrence graphs (section 3.3): counting loops, the published counts, the difficult rule, files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ssgrl_fast.labels import graph
from ssgrl_fast.labels.matrix import split_labels

NAMES = ["ant", "bee", "cat"]


def coded(seed: int, images: int = 60, classes: int = 5) -> torch.Tensor:
    """Random labels 1, 0, -1."""
    return torch.randint(-1, 2, (images, classes), generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def loop_probability(labels: list[list[int]], diagonal: float, positive: tuple[int, ...]) -> list[list[float]]:
    """Section 3.3 by counting one image after the other."""
    classes = len(labels[0])
    rows = []
    for c in range(classes):
        holding = [image for image in labels if image[c] in positive]
        row = []
        for other in range(classes):
            if not holding:
                row.append(0.0)
            elif other == c:
                row.append(diagonal)
            else:
                row.append(sum(1 for image in holding if image[other] in positive) / len(holding))
        rows.append(row)
    return rows


@pytest.mark.parametrize("diagonal", [0.0, 1.0])
@pytest.mark.parametrize(
    ("difficult", "positive"), [(None, (1,)), ("ignore", (1,)), ("negative", (1,)), ("positive", (1, 0))]
)
def test_counting_loops(diagonal: float, difficult: str | None, positive: tuple[int, ...]) -> None:
    labels = coded(3)
    expected = torch.tensor(loop_probability(labels.tolist(), diagonal, positive), dtype=torch.float64).float()
    adjacency = graph.cooccurrence(labels, diagonal=diagonal, difficult=difficult)
    assert adjacency.dtype == torch.float32
    assert torch.equal(adjacency, expected)


def test_rows_are_given_the_class() -> None:
    labels = [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]
    expected = torch.tensor([[0.0, 0.5, 0.25], [1.0, 0.0, 0.5], [1.0, 1.0, 0.0]])
    assert torch.equal(graph.cooccurrence(labels), expected)


def test_three_codings_of_the_same_labels_agree() -> None:
    present = coded(5) == 1
    expected = graph.cooccurrence(present)
    for labels in (
        present.long(),
        present.to(torch.uint8),
        present.float(),
        present.numpy(),
        present.int().tolist(),
        present.to(torch.int8) * 2 - 1,
        np.where(present.numpy(), 1, -1),
    ):
        assert torch.equal(graph.cooccurrence(labels), expected)


def test_zero_is_difficult_only_beside_minus_one_or_on_demand() -> None:
    labels = torch.tensor([[1, 0], [0, 1], [1, 1]])
    assert not split_labels("test", "labels", labels).difficult.any()
    marked = torch.cat([labels, torch.tensor([[-1, 1]])])
    assert split_labels("test", "labels", marked).difficult.sum() == 2
    assert split_labels("test", "labels", labels, "ignore").difficult.sum() == 2
    half, third = graph.cooccurrence(labels)[0, 1], graph.cooccurrence(labels, difficult="positive")[0, 1]
    assert (half.item(), third.item()) == (0.5, 1.0)
    assert graph.cooccurrence(marked, difficult="positive")[1].tolist() == [0.75, 0.0]
    assert not split_labels("test", "labels", labels.bool(), "positive").difficult.any()


def test_counts_hold_totals_on_their_diagonal() -> None:
    labels = coded(7)
    pairs, totals = graph.counts(labels)
    assert pairs.dtype == totals.dtype == torch.int64
    assert torch.equal(pairs.diagonal(), totals)
    assert torch.equal(totals, (labels == 1).sum(0))


@pytest.mark.parametrize("diagonal", [0.0, 1.0])
def test_class_without_positives_has_a_zero_row_and_is_named(diagonal: float) -> None:
    labels = torch.tensor([[1, -1, 0], [1, -1, 1]])
    with pytest.warns(graph.ClassesWithoutPositives, match="1 of 3 classes.*'bee'"):
        adjacency = graph.cooccurrence(labels, diagonal=diagonal, class_names=NAMES)
    assert adjacency[1].tolist() == [0.0, 0.0, 0.0]
    assert adjacency[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert adjacency[2, 0] == 1.0
    assert torch.isfinite(adjacency).all()
    assert graph.classes_without_positives(labels) == [1]
    with pytest.warns(graph.ClassesWithoutPositives, match="zero: 1$"):
        graph.cooccurrence(labels)


def test_no_image_at_all() -> None:
    with pytest.warns(graph.ClassesWithoutPositives, match="4 of 4"):
        assert torch.equal(graph.cooccurrence(torch.empty(0, 4, dtype=torch.int8)), torch.zeros(4, 4))


def test_difficult_rule_decides_who_has_positives() -> None:
    labels = torch.tensor([[1, 0], [1, -1]])
    assert graph.classes_without_positives(labels) == [1]
    assert graph.classes_without_positives(labels, difficult="positive") == []
    assert graph.cooccurrence(labels, difficult="positive")[0, 1] == 0.5


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(4), ValueError, r"labels must be \[M, C\].*\[4\]"),
        (torch.tensor([[1, 2]]), ValueError, "only 1, 0 and -1, got 2 at image 0, class 1"),
        (torch.tensor([[1.0, 0.5]]), ValueError, "got 0.5 at image 0, class 1"),
        (torch.tensor([[1.0, math.nan]]), ValueError, "got nan"),
        (torch.tensor([[255]], dtype=torch.uint8), ValueError, "got 255"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "complex64"),
        ([["a"]], TypeError, "array of numbers"),
    ],
)
def test_wrong_labels_are_refused(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        graph.cooccurrence(labels)


def test_wrong_options_are_refused() -> None:
    labels = torch.eye(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="difficult must be one of"):
        graph.cooccurrence(labels, difficult="skip")
    with pytest.raises(ValueError, match="diagonal must be finite and not negative, got nan"):
        graph.cooccurrence(labels, diagonal=math.nan)
    with pytest.raises(ValueError, match="got -1"):
        graph.cooccurrence(labels, diagonal=-1)
    with pytest.raises(TypeError, match="diagonal must be a number, got str"):
        graph.cooccurrence(labels, diagonal="one")
    with pytest.raises(ValueError, match="2 class_names for 3 classes"):
        graph.cooccurrence(labels, class_names=["ant", "bee"])


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pairs\[0, 1\] = 4 does not fit totals\[0\] = 3"):
        graph.conditional_probability(np.array([[3, 4], [1, 2]]), np.array([3, 2]))
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[2\]"):
        graph.conditional_probability(np.zeros((2, 3)), np.zeros(2))


# ---- the published counts --------------------------------------------------------------------------------------------


def test_voc2007_reproduces_ml_gcn(shared_data: Path) -> None:
    labels = np.load(shared_data / "voc_labels" / "voc2007_trainval.npz")["labels"]
    pairs, totals = graph.counts(labels)
    published = np.load(shared_data / "ml_gcn" / "voc_cooccurrence_counts.npy")
    np.testing.assert_array_equal(totals.numpy(), np.load(shared_data / "ml_gcn" / "voc_class_counts.npy"))
    np.testing.assert_array_equal(pairs.fill_diagonal_(0).numpy(), published)
    expected = (published / totals.numpy()[:, None]).astype(np.float32)
    np.testing.assert_array_equal(graph.cooccurrence(labels).numpy(), expected)


def test_coco_counts_give_the_published_graph_to_the_last_bit(shared_data: Path) -> None:
    alphabetical = json.loads((shared_data / "ml_gcn" / "coco_adj.json").read_text())["classes"]
    official = json.loads((shared_data / "ssgrl_official" / "coco" / "category_name.json").read_text())
    order = [alphabetical.index(name) for name in official]
    pairs = np.load(shared_data / "ml_gcn" / "coco_cooccurrence_counts.npy")[np.ix_(order, order)]
    totals = np.load(shared_data / "ml_gcn" / "coco_class_counts.npy")[order]
    assert totals[official.index("person")] == 45_174
    published = np.load(shared_data / "ssgrl_official" / "coco" / "prob_train.npy")
    np.testing.assert_array_equal(graph.conditional_probability(pairs, totals).numpy(), published)
    loaded = graph.load(shared_data / "ssgrl_official" / "coco" / "prob_train.npy", official)
    np.testing.assert_array_equal(loaded.numpy(), published.astype(np.float32))


@pytest.mark.parametrize(("split", "entries"), [("voc2007_trainval", 607), ("voc2007_test", 619)])
def test_voc2007_difficult_only_entries(shared_data: Path, split: str, entries: int) -> None:
    labels = np.load(shared_data / "voc_labels" / f"{split}.npz")["labels"]
    sets = split_labels("test", "labels", labels)
    assert int(sets.difficult.sum()) == entries
    assert int((~sets.known).sum()) == entries
    added = graph.counts(labels, difficult="positive")[1] - graph.counts(labels)[1]
    assert int(added.sum()) == entries


def test_published_voc_graphs_load_though_they_exceed_one(shared_data: Path) -> None:
    names = json.loads((shared_data / "voc_labels" / "classes.json").read_text())
    adjacency = graph.load(shared_data / "ssgrl_official" / "VOC2007" / "prob_trainval.npy", names)
    assert adjacency.shape == (20, 20)
    assert 2.6 < adjacency.max() < 2.65


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_saved_graph_comes_back_in_the_order_asked_for(tmp_path: Path, suffix: str) -> None:
    adjacency = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    path = graph.save(tmp_path / "new" / f"graph{suffix}", adjacency, NAMES, {"images": "12"})
    saved = graph.read(path)
    assert saved.class_names == NAMES
    assert saved.details == {"images": "12"}
    assert torch.equal(saved.adjacency, adjacency)
    assert torch.equal(graph.load(path, NAMES), adjacency)
    other = graph.load(path, ["cat", "ant", "bee"])
    for row, c in enumerate((2, 0, 1)):
        for column, d in enumerate((2, 0, 1)):
            assert other[row, column] == adjacency[c, d]


def test_graph_over_other_classes_is_refused(tmp_path: Path) -> None:
    path = graph.save(tmp_path / "graph.npz", torch.zeros(3, 3), NAMES)
    with pytest.raises(ValueError, match=r"graph\.npz is over other classes.*lacks 'dog' and has 'ant' besides"):
        graph.load(path, ["bee", "cat", "dog"])
    bare = tmp_path / "graph.npy"
    np.save(bare, np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"graph\.npy: adjacency is for 2 classes, expected 3"):
        graph.load(bare, NAMES)


def test_unfit_adjacency_is_refused(tmp_path: Path) -> None:
    for matrix, message in (
        (torch.zeros(2, 3), r"must be square \[C, C\], got \[2, 3\]"),
        (torch.zeros(0, 0), "must be square"),
        (torch.tensor([[0.0, math.nan], [0.0, 0.0]]), r"not finite in 1 entries, first \[0, 1\] = nan"),
        (torch.tensor([[0.0, 0.0], [-0.5, 0.0]]), r"negative in 1 entries, first \[1, 0\] = -0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            graph.validate(matrix)
    with pytest.raises(TypeError, match=r"got torch\.bool"):
        graph.validate(torch.eye(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="got list"):
        graph.validate([[0.0]])
    bare = tmp_path / "infinite.npy"
    np.save(bare, np.full((2, 2), np.inf))
    with pytest.raises(ValueError, match=r"infinite\.npy: adjacency is not finite in 4"):
        graph.read(bare)
    with pytest.raises(ValueError, match="3 class_names for 2 classes"):
        graph.save(tmp_path / "graph.npz", torch.zeros(2, 2), NAMES)
    with pytest.raises(ValueError, match=r"must end in .safetensors or .npz"):
        graph.save(tmp_path / "graph.pt", torch.zeros(3, 3), NAMES)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"graph{suffix}"
    if suffix == ".npy":
        np.save(path, np.zeros((3, 3)))
    else:
        graph.save(path, torch.zeros(3, 3), NAMES)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"graph\{suffix} cannot be read"):
        graph.read(path)


def test_foreign_files_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match=r"absent\.npz is no file"):
        graph.read(tmp_path / "absent.npz")
    (tmp_path / "graph.csv").write_text("0,1")
    with pytest.raises(ValueError, match=r"graph\.csv must end in"):
        graph.read(tmp_path / "graph.csv")
    np.savez(tmp_path / "labels.npz", labels=np.zeros(3))
    with pytest.raises(
        ValueError, match=r"labels\.npz cannot be read: it holds labels, expected adjacency and class_names"
    ):
        graph.read(tmp_path / "labels.npz")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: it is no graph"):
        graph.read(tmp_path / "model.safetensors")
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    with pytest.raises(ValueError, match=r"text\.npy holds <U1"):
        graph.read(tmp_path / "text.npy")


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ("abc", TypeError, "list of strings, got str"),
        (["a", 1, "c"], TypeError, "must hold strings, got 1"),
        (["a", " ", "c"], ValueError, "empty name at place 1"),
        (["a", "b", "a"], ValueError, "'a' more than once"),
        ([], ValueError, "class_names is empty"),
    ],
)
def test_wrong_names_are_refused(tmp_path: Path, names: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        graph.save(tmp_path / "graph.npz", torch.zeros(3, 3), names)
