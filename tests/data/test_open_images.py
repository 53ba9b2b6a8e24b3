"""Open Images' own tables: verified positives and negatives, everything else unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.open_images import OpenImages, find_tables, read_labels
from ssgrl_fast.labels import graph

DESCRIPTIONS = '/m/01,Cat\n/m/02,"Dog, large"\n/m/03,Tree\n/m/04,Bow\n/m/05,Bow\n'
LABELS = """ImageID,Source,LabelName,Confidence
a1,verification,/m/02,1
a1,verification,/m/01,0
b2,crowdsource-verification,/m/01,1
b2,verification,/m/03,1
c3,verification,/m/02,0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n" + DESCRIPTIONS)
    (tmp_path / "oidv6-train-annotations-human-imagelabels.csv").write_text(LABELS)
    (tmp_path / "test-annotations-human-imagelabels.csv").write_text(
        "ImageID,Source,LabelName,Confidence\nd4,verification,/m/03,0\nd4,verification,/m/04,1\n"
    )
    for split, names in {"train": "a1 b2 c3", "test": "d4"}.items():
        (tmp_path / split).mkdir()
        for name in names.split():
            (tmp_path / split / f"{name}.jpg").touch()
    return tmp_path


def test_rows_are_present_absent_or_unknown(root: Path) -> None:
    read = read_labels(*find_tables(root, "train"))
    assert read.class_names == ["Cat", "Dog, large", "Tree"] and read.image_ids == ["a1", "b2", "c3"]
    assert read.labels.tolist() == [[-1, 1, -2], [1, -2, 1], [-2, -1, -2]]
    assert read.lines == [2, 4, 6]
    some = read_labels(*find_tables(root, "train"), classes=["Tree", "Cat"])
    assert some.image_ids == ["a1", "b2"] and some.labels.tolist() == [[-2, -1], [1, 1]]
    assert read_labels(*find_tables(root, "TEST")).class_names == ["Tree", "Bow (/m/04)"]


def test_the_older_descriptions_have_no_header(root: Path) -> None:
    (root / "oidv7-class-descriptions.csv").write_text(DESCRIPTIONS)
    assert read_labels(*find_tables(root, "train")).class_names == ["Cat", "Dog, large", "Tree"]


def test_the_datamodule_reads_the_two_tables(root: Path) -> None:
    data = MultiLabelDataModule("openimages", str(root), image_size=8)
    assert data.class_names == ["Cat", "Dog, large", "Tree"]
    assert [path.name for path in data.train_dataset.paths] == ["a1.jpg", "b2.jpg", "c3.jpg"]
    assert data.test_dataset is not None and data.test_dataset.labels.tolist() == [[-2, -2, -1]]
    adjacency = graph.cooccurrence(data.train_labels)
    assert torch.equal(adjacency, torch.tensor([[0.0, 0, 1], [0, 0, 0], [1, 0, 0]]))
    assert data.describe()["parts"]["train"]["unknown"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LABELS.replace("/m/01,0", "/m/01,0.7"), r"line 3: Confidence must be 1 or 0 .*'0\.7' \(machine-generated"),
        (LABELS + "a1,crowd,/m/02,0\n", "line 7: /m/02 of a1 has another Confidence here than in line 2"),
        (LABELS + "a1,crowd,/m/02,1\n,crowd,/m/02,1\n", "line 8: no image id"),
        (LABELS.replace("/m/03", "/m/09"), "line 5: '/m/09' is not described in .*class-descriptions"),
        (
            LABELS.replace("Confidence", "Sure"),
            "expected the columns ImageID,Source,LabelName,Confidence, no Confidence",
        ),
    ],
)
def test_broken_tables_name_the_line(text: str, message: str, root: Path) -> None:
    (root / "oidv6-train-annotations-human-imagelabels.csv").write_text(text)
    with pytest.raises(BrokenAnnotation, match=f"train-annotations.*{message}"):
        read_labels(*find_tables(root, "train"))


def test_what_is_missing_or_twofold_is_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no class 'dog' \(names are those of the second column\)"):
        OpenImages(root, classes=["dog"])
    with pytest.raises(ValueError, match="splits train, validation, test, got 'all'"):
        find_tables(root, "all")
    with pytest.raises(FileNotFoundError, match="no table of split val"):
        find_tables(root, "val")
    (root / "class-descriptions-boxable.csv").write_text(DESCRIPTIONS)
    with pytest.raises(ValueError, match=r"several tables may be meant: class-descriptions-boxable\.csv, oidv7"):
        find_tables(root, "train")
