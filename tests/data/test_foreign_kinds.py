"""Kinds of foreign files of which each is read right or refused in a sentence: names that are alike, lists with two
signs, classes in other files, formats that are no photographs, columns of other names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssgrl_fast.cli import graph
from ssgrl_fast.data.coco import read_labels
from ssgrl_fast.data.errors import BrokenAnnotation, BrokenImage
from ssgrl_fast.data.images import EXTENSIONS, read_image
from ssgrl_fast.data.label_source import read_file
from ssgrl_fast.data.table import LabelTable, TableFormat, default_splits, read_table
from ssgrl_fast.data.voc import PascalVOC
from ssgrl_fast.data.voc_xml import read_objects
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.labels.class_names import read_class_names
from ssgrl_fast.training.task import SSGRLTask


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- tables ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,labels\na,cat dog\nb,dog bird\n", "line 3: the label 'dog bird' shares 'dog'.*separator ' '"),
        ("image,labels\na,red wine;glass\nb,red;wine\n", "line 2: the label 'red wine' is.*if it is one label"),
        ('image,label\na,"building, edifice"\na,tree\n', "line 2: 'building, edifice' in a table with a row.*';'"),
        ("image,label,dataset\na,cat,train2017\nb,dog,val2017\n", "'dataset' may divide the images"),
        ("image,label,dataset\na,cat,coco_train2017\nb,dog,coco_val2017\n", "'dataset' may divide the images"),
        ("image,labels\na,scab/rust\nb,rust/complex\n", "line 3: .*shares 'rust' with 'scab/rust'.*separator '/'"),
        ("image,labels\na,scab::rust\nb,rust::x\n", "line 3: the label 'rust::x' shares 'rust'.*separator ':'"),
        ("image,labels\na,rust\nb,scab<br>rust\n", "line 3: the label 'scab<br>rust' shares.*separator '<br>'"),
        ("photo,mark\na,cat\n", "first line must name a column file.*--data.image_column"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenAnnotation, match=f"labels.csv.*{message}"):
        read_table(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "form", "names"),
    [
        ("image,labels\na,red wine;glass\nb,red;wine\n", {"separator": ";"}, ["glass", "red", "red wine", "wine"]),
        ('image,label\na,"building, edifice"\na,tree\n', {"separator": ";"}, ["building, edifice", "tree"]),
        ('image,label\na,"building, edifice"\na,tree\n', {"separator": ","}, ["building", "edifice", "tree"]),
        ("image,labels\na,cat dog\nb,dog bird\n", {"separator": " "}, ["bird", "cat", "dog"]),
        ("image,labels\na,scab/rust\nb,rust/complex\n", {"separator": "/"}, ["complex", "rust", "scab"]),
        ("image,labels\na,animal/cat\nb,animal/dog\n", {}, ["animal/cat", "animal/dog"]),
        ("image,labels\na,scab-rust\nb,rust-free\n", {}, ["rust-free", "scab-rust"]),
        ("image,labels\na,traffic light\nb,dining table\n", {}, ["dining table", "traffic light"]),
        ("image,label\na,dog bed\nb,hot dog\n", {}, ["dog bed", "hot dog"]),  # one label each, by the column's name
        ("id,image,sort\n1,a,cat\n2,a,dog\n", {"label_column": "sort"}, ["cat", "dog"]),
    ],
)  # fmt: skip
def test_the_proposed_options_and_near_cases_are_read(
    text: str, form: dict[str, str], names: list[str], tmp_path: Path
) -> None:
    assert read_table(write(tmp_path, text), form=TableFormat(**form)).class_names == names


def test_columns_by_option(tmp_path: Path) -> None:
    path = write(tmp_path, "id,photo,kind\n1,a.jpg,x\n")
    with pytest.raises(BrokenAnnotation, match="a column 'foto', as the option of the column says"):
        read_table(path, form=TableFormat(image_column="foto", label_column="kind"))
    with pytest.raises(BrokenAnnotation, match="no column 'sort' for the labels; columns: photo, kind"):
        read_table(path, form=TableFormat(label_column="sort"))
    out = tmp_path / "graph.npz"
    assert (
        graph.main(["--labels", str(path), "--image-column", "photo", "--label-column", "kind", "--out", str(out)]) == 0
    )
    assert read_class_names(out) == ["x"]


@pytest.mark.parametrize("column", ["train", "in_train", "Test set", "fold_id", "split-no", "isTrainSet", "holdout"])
def test_columns_of_digits_that_may_divide_the_images(column: str, tmp_path: Path) -> None:
    """Read as one split, rows for testing would be trained on."""
    path = write(tmp_path, f"file,labels,{column}\na,cat,1\nb,dog,1\nc,dog,0\n")
    with pytest.raises(BrokenAnnotation, match=f"'{column}' may divide the images.*split_column '{column}'"):
        read_table(path)
    form = TableFormat(split_column=column.upper())
    assert default_splits(path, train="1", test="0", form=form) == ("1", "0")
    assert read_table(path, form=form).rows_of("1") == [0, 1]
    with pytest.raises(ValueError, match="no known word for a split: '0', '1'"):
        default_splits(path, form=form)
    assert read_table(path, form=TableFormat(split_column="")).splits is None


def test_the_column_of_splits_by_option(tmp_path: Path) -> None:
    path, out = write(tmp_path, "file,cat,dog,which\na,1,0,Train\nb,1,1,Test\n"), tmp_path / "graph.npz"
    assert graph.main(["--labels", str(path), "--split-column", "Which", "--out", str(out)]) == 0
    assert read_file(path, form=TableFormat(split_column="which")).image_names == ["a"]
    tabs = write(tmp_path, path.read_text().replace(",", "\t"), "labels.TSV")
    assert read_file(tabs, form=TableFormat(split_column="which")).image_names == ["a"]
    with pytest.raises(BrokenAnnotation, match="no column 'what' for the splits; columns: cat, dog, which"):
        read_table(path, form=TableFormat(split_column="what"))
    assert read_table(write(tmp_path, "file,bus,train\na,1,0\nb,0,1\n")).class_names == ["bus", "train"]  # a vehicle
    path = write(tmp_path, "file,labels,set\na,cat,blue\nb,dog,red\n")
    assert default_splits(path, form=TableFormat(split_column="")) == (None, None)


def test_a_class_may_be_called_like_another_column(tmp_path: Path) -> None:
    path = write(tmp_path, "file,labels,set\na,set;cat,train\nb,cat,test\n")
    table = read_table(path, classes=["cat", "set"])
    assert table.labels.tolist() == [[1, 1], [1, -1]] and table.splits == ["train", "test"]
    assert default_splits(path, classes=["cat", "set"]) == ("train", "test")


def test_years_behind_split_words_and_rows_of_no_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "file,labels,split\na,cat,train2017\nb,cat,val2017\nc,cat,UNASSIGNED\nd,cat,UNASSIGNED\n")
    assert default_splits(path) == ("train2017", None) and read_file(path).image_names == ["a"]
    assert "labels.csv: 2 rows of UNASSIGNED are of no split and left out" in caplog.text
    caplog.clear()
    default_splits(path, test="UNASSIGNED")
    assert not caplog.messages
    path = write(tmp_path, "file,labels,split\na,cat,train2014\nb,cat,train2017\n")
    with pytest.raises(ValueError, match="several words for train: train2014, train2017"):
        default_splits(path)


def test_addresses_and_upper_case_extensions(tmp_path: Path) -> None:
    path = write(tmp_path, "image_url,labels\nhttps://x.org/a.jpg,cat\n", "t.CSV")
    assert read_file(path).class_names == ["cat"]  # a graph needs no images
    with pytest.raises(FileNotFoundError, match=r"https://x\.org/a\.jpg: an address on the web.*line 2"):
        LabelTable(path)


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [("Cat", "cat", "in case"), ("vélo", "ve\u0301lo", r"in Unicode's normalisation \('v[^)]*lo'\)")],
)  # fmt: skip
def test_names_that_are_alike_stay_two_aloud(one: str, other: str, how: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"file,labels\na,{one}\nb,{other}\n")
    with pytest.warns(UserWarning, match=f"differ {how} alone; they are kept as two classes"):
        assert len(read_table(path).class_names) == 2
    with pytest.raises(BrokenAnnotation, match=f"is none of the 2 classes; .*differ {how} alone"):
        read_table(path, classes=[one, "x"])
    write(tmp_path, f"<annotation><object><name>{other}</name></object></annotation>", "a.xml")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(BrokenAnnotation, match=f"a.xml: unknown class .*differ {how} alone"):
        PascalVOC(tmp_path, classes=[one])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data.yaml", "train: images\nnc: 3\nnames: [yes, hot dog, off]\n"),
        ("data.YML", "names:\n  1: hot dog\n  0: yes\n  2: off\n"),
        ("names.yaml", "- yes\n- hot dog\n- off\n"),
        ("classes.JSON", '{"2": "off", "0": "yes", "1": "hot dog"}'),
        ("classes.json", '{"off": 3, "hot dog": 2, "yes": 1}'),
        ("classes.txt", '["yes", "hot dog",\n"off"]'),
        ("classes.txt", "yes\nhot dog\noff\n"),
        ("classes.txt", "\ufeffyes\r\nhot dog \r\n\r\noff"),
    ],
)
def test_class_names_in_the_files_that_tools_write(name: str, text: str, tmp_path: Path) -> None:
    assert read_class_names(write(tmp_path, text, name)) == ["yes", "hot dog", "off"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "cat, dog, bird\n", "one line 'cat, dog, bird': write each name in a line of its own"),
        ("classes.txt", "cat dog", "one line 'cat dog'"),
        ("classes.txt", "猫、犬\n", "one line '猫、犬'"),
        ("classes.txt", "0 cat\n1 hot dog\n", "numbers its lines, '0 cat': leave the numbers out"),
        ("obj.names", "1: cat\n2: dog\n", "numbers its lines, '1: cat'"),
        ("classes.csv", "0,cat\n1,dog\n2,owl\n", "numbers its lines, '0,cat'"),
        ("data.yaml", "train: images\nval: images\n", "no list of names, nor one under 'names'"),
        ("data.yaml", "names: [a, b", "no list of names"),
        ("data.yaml", "names: {0: cat, 5: dog}", "must count up from 0 or 1"),
        ("classes.json", '{"cat": 1, "dog": 1}', "must count up from 0 or 1"),
    ],
)
def test_class_names_that_are_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        read_class_names(write(tmp_path, text, name))


# ---- annotations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "signs", "expected", "said"),
    [
        (None, (1, 0), [[1], [0]], True),
        (None, (1, -1), [[1], [-1]], False),
        ("zero-one", (1, 0), [[1], [-1]], False),
        ("chexpert", (0, -1), [[-1], [-2]], False),
    ],
)
def test_per_class_lists_with_two_signs(
    coding: str | None, signs: tuple[int, int], expected: list[list[int]], said: bool, tmp_path: Path, caplog: Any
) -> None:
    main = tmp_path / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    for name in "ab":
        (tmp_path / "JPEGImages" / f"{name}.jpg").touch()
    write(main, f"a {signs[0]}\nb {signs[1]}\n", "cat_train.txt")
    with caplog.at_level(logging.WARNING):
        assert PascalVOC(tmp_path, "train", coding=coding).labels.tolist() == expected
    assert ("no -1 in the lists of train; 0 is read as only difficult objects" in caplog.text) is said
    with pytest.raises(BrokenAnnotation, match="cat_train.txt: -1 for b, which coding zero-one"):
        write(main, "a 1\nb -1\n", "cat_train.txt")
        PascalVOC(tmp_path, "train", coding="zero-one")


def test_parts_and_deleted_objects_are_no_labels_and_inner_objects_are_refused(tmp_path: Path) -> None:
    text = (
        "<annotation><object><name>person</name><part><name>head</name></part></object>"
        "<object><name>car</name><deleted>{}</deleted></object></annotation>"
    )
    assert read_objects(write(tmp_path, text.format(1), "a.xml")) == [("person", False)]
    assert read_objects(write(tmp_path, text.format(0), "a.xml")) == [("person", False), ("car", False)]
    with pytest.raises(BrokenAnnotation, match=r"a.xml: <deleted> of object 2 \(car\) must be 0 or 1, got '2'"):
        read_objects(write(tmp_path, text.format(2), "a.xml"))
    inner = "<annotation><object><name>person</name><object><name>hat</name></object></object></annotation>"
    with pytest.raises(BrokenAnnotation, match=r"a.xml: object 1 \(person\) holds another <object>"):
        read_objects(write(tmp_path, inner, "a.xml"))


@pytest.mark.parametrize("bare", [0, 2])
def test_a_category_without_annotations_and_with_the_name_of_another(bare: int, tmp_path: Path, caplog: Any) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1}],
        "categories": sorted(({"id": id, "name": "pests"} for id in (bare, 1)), key=lambda entry: entry["id"]),
    }
    path = write(tmp_path, json.dumps(content), "a.json")
    labels, names, _ = read_labels(path)
    assert names == ["pests"] and labels.tolist() == [[1]]
    assert f"category {bare} has no annotations and the name of another, 'pests': left out" in caplog.text
    content["annotations"].append({"id": 2, "image_id": 1, "category_id": bare})
    with pytest.raises(BrokenAnnotation, match=r"a.json: category \d \(pests\) occurs twice"):
        read_labels(write(tmp_path, json.dumps(content), "a.json"))


# ---- images ------------------------------------------------------------------------------------------------------


def test_formats_that_are_no_photographs_or_run_programs(tmp_path: Path) -> None:
    assert not EXTENSIONS & {
        ".pcd",
        ".fit",
        ".fits",
        ".pdf",
        ".eps",
        ".ps",
        ".wmf",
        ".emf",
        ".h5",
        ".mpg",
        ".fli",
        ".iim",
    }
    assert {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".gif", ".jp2", ".mpo", ".ppm"} <= EXTENSIONS
    path = tmp_path / "a.jpg"  # of another content than its name says
    Image.new("RGB", (4, 4)).save(path, "EPS")
    with pytest.raises(BrokenImage, match=r"a\.jpg: cannot identify"):
        read_image(path)


def test_heic_is_read_with_pillow_heif(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(path)
    assert ".heic" in EXTENSIONS
    image = read_image(path)
    assert image.mode == "RGB" and image.size == (64, 48)
    assert all(abs(a - b) <= 8 for a, b in zip(image.getpixel((20, 20)), (200, 30, 30), strict=True))


# ---- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("lr", float("nan")), ("lr", -1e-3), ("head_lr", float("inf"))],
        *[("steps", 0), ("seed", -1), ("weight_decay", -1.0)],
    ],
)
def test_numbers_that_a_task_refuses(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"SSGRLTask: {name} must be .*, got {value}"):
        SSGRLTask(kind="pooling", backbone="resnet18", pretrained=False, **{name: value})


@pytest.mark.parametrize("sizes", [{"image_size": 0}, {"image_size": -5}, {"resize": 0}])
def test_image_sizes_that_a_predictor_refuses(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Predictor.load: .* must be at least 1 pixel, got (0|-5)"):
        Predictor.load(tmp_path, **sizes)
