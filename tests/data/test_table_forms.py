"""Tables as strangers write them, splits, separators, codings and broken text: read right, or refused with the place
and the option."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.label_source import read_file
from ssgrl_fast.data.table import LabelTable, TableFormat, default_splits, read_table
from ssgrl_fast.labels.codings import read_coding, sign_of


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def sets(path: Path, **form: str) -> dict[str, set[str]]:
    """The present classes of every image."""
    table = read_table(path, form=TableFormat(**form))
    present = (table.labels == 1).tolist()
    return {
        file: {name for name, there in zip(table.class_names, row, strict=True) if there}
        for file, row in zip(table.files, present, strict=True)
    }


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["split", "Split", "SET", "subset", "Fold", "partition", "ML_USE", "ml use"])
@pytest.mark.parametrize(
    ("train", "test"),
    [("trainval", "test"), ("Train", "Test"), ("TRAINING", "Holdout"), ("train+val", "eval"), ("training", "hold-out")],
)
def test_the_rows_for_training_are_found_by_their_word(column: str, train: str, test: str, tmp_path: Path) -> None:
    rows = [("a", train), ("b", train.swapcase()), ("c", "UNASSIGNED"), ("d", test), ("e", "Valid")]
    path = write(tmp_path, f"file,labels,{column}\n" + "".join(f"{name},cat,{word}\n" for name, word in rows))
    names = default_splits(path)
    table = read_table(path)
    assert [table.rows_of(name) for name in names] == [[0, 1], [3]]
    assert table.rows_of("val") == table.rows_of("dev") == [4]
    assert read_file(path).image_names == ["a", "b"]  # what the verb graph counts


def test_unknown_split_words_are_refused_and_can_be_mapped(tmp_path: Path) -> None:
    path = write(tmp_path, "file,labels,fold\na,cat,0\nb,cat,1\nc,cat,2\nd,cat,3\n")
    with pytest.raises(
        ValueError, match=r"labels\.csv: no known word for a split: '0', '1', '2', '3'.*--data\.train_split"
    ):
        default_splits(path)
    with pytest.raises(ValueError, match="no known word"):
        read_file(path)
    names = default_splits(path, train="0, 2", test="3")
    assert [read_table(path).rows_of(name) for name in names] == [[0, 2], [3]]
    assert read_file(path, split="1,0").image_names == ["a", "b"]
    with pytest.raises(ValueError, match="no split '7'; available splits: 0, 1, 2, 3"):
        read_table(path).rows_of("7")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["val", "test"], "no rows for training; the splits there are test, val"),
        (["train", "trainval", "test"], "several words for train: train, trainval"),
        (["train", "test", "holdout"], "several words for test: holdout, test"),
        (["train", "tset"], "no known word for a split: 'tset'"),
    ],
)
def test_splits_with_several_readings_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, "file,labels,split\n" + "".join(f"{word}.jpg,cat,{word}\n" for word in words))
    with pytest.raises(ValueError, match=message):
        default_splits(path)


def test_a_column_of_splits_is_not_overlooked(tmp_path: Path) -> None:
    with pytest.raises(
        BrokenAnnotation, match=r"column 'usage' may divide the images, its words are test, train; if so, give"
    ):
        read_table(write(tmp_path, "file,labels,usage\na,cat,train\nb,cat,test\n"))
    with pytest.raises(BrokenAnnotation, match=r"line 3: no split in column 'set'"):
        read_table(write(tmp_path, "file,labels,set\na,cat,train\nb,cat,\n"))
    with pytest.raises(BrokenAnnotation, match="'set' and 'fold'|'fold' and 'set'|'Fold'.*'Set'|'Set'.*'Fold'"):
        read_table(write(tmp_path, "file,labels,Set,Fold\na,cat,train,1\n"))
    table = read_table(write(tmp_path, "file,cat,set\na,1,0\nb,0,1\n"), classes=["cat", "set"])
    assert table.splits is None and table.labels.tolist() == [[1, -1], [-1, 1]]


def test_the_datamodule_trains_on_the_rows_for_training(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / f"{name}.jpg").touch()
    text = "file,labels,Split\n" + "".join(
        f"{name}.jpg,cat,{'trainval' if name < 'e' else 'Test'}\n" for name in "abcdef"
    )
    data = MultiLabelDataModule("csv", str(write(tmp_path, text)), image_size=8)
    assert data.train_dataset.ids == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert data.test_dataset is not None and data.test_dataset.ids == ["e.jpg", "f.jpg"]
    swapped = MultiLabelDataModule("csv", str(tmp_path), train_split="test", test_split="TRAIN", image_size=8)
    assert swapped.train_dataset.ids == ["e.jpg", "f.jpg"]
    assert swapped.test_dataset is not None and len(swapped.test_dataset) == 4


# ---- labels ----------------------------------------------------------------------------------------------------------

EXPECTED = {"a.jpg": {"hot dog", "rust"}, "b.jpg": set(), "c.jpg": {"scab"}}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("file,labels\na.jpg,hot dog;rust\nb.jpg,\nc.jpg,scab\n", {}),
        ("file,labels\na.jpg,hot dog | rust\nb.jpg,\nc.jpg,scab\n", {}),
        ('file,labels\na.jpg,"hot dog, rust"\nb.jpg,\nc.jpg,scab\n', {}),
        ('file, labels\na.jpg, "hot dog, rust"\nb.jpg, ""\nc.jpg, scab\n', {}),
        ("Image Index,Finding Labels,Age,\na.jpg,hot dog|rust,7,\nb.jpg,,8,\nc.jpg,scab,9,\n", {}),
        ("image_id\ttags\na.jpg\thot dog|rust\nb.jpg\t\nc.jpg\tscab\n", {}),
        ("sep=;\r\nfile;labels\r\na.jpg;hot dog|rust\r\nb.jpg;\r\nc.jpg;scab\r\n", {}),
        ("file,labels\na.jpg,\"['hot dog', 'rust']\"\nb.jpg,[]\nc.jpg,['scab']\n", {}),
        ('file,labels\na.jpg,"[""hot dog"", ""rust""]"\nb.jpg,\nc.jpg,"[""scab""]"\n', {}),
        ("file,labels\na.jpg,hot dog/rust\nb.jpg,\nc.jpg,scab\n", {"separator": "/"}),
        ("file,labels\na.jpg,hot dog;rust\nb.jpg,No Finding\nc.jpg,scab\n", {"negative_word": "No Finding"}),
        ("file,label\na.jpg,hot dog\nc.jpg,scab\na.jpg,rust\nb.jpg,\na.jpg,rust\n", {}),
        ("filename,width,class,xmin\na.jpg,9,rust,1\na.jpg,9,hot dog,2\nb.jpg,9,,0\nc.jpg,9,scab,4\n", {}),
        ("Image,Labels\na.jpg,hot dog;rust\nb.jpg,\nc.jpg,scab\n", {}),
        ("file,hot dog,rust,scab\na.jpg,1,1,0\nb.jpg,0,0,0\nc.jpg,0,0,1\n", {}),
        ("file,hot dog,rust,scab\na.jpg,1.0,1,0.0\nb.jpg,0,0.,-0\nc.jpg,0,0,1.00\n", {}),
        ("FILE,hot dog,rust,scab\na.jpg,True,TRUE,False\nb.jpg,f,F,false\nc.jpg,false,false,t\n", {}),
        ("Path,hot dog,rust,scab\na.jpg,yes,Y,no\nb.jpg,n,N,No\nc.jpg,no,no,YES\n", {}),
        ("file,hot dog,rust,scab\na.jpg,1,1,\nb.jpg,,NaN,\nc.jpg,,,1\n", {}),
        ("file,hot dog,rust,scab\na.jpg,1,1,\nb.jpg,,0,\nc.jpg,,,1\n", {"coding": "zero-one"}),
        ("file,labels\na.jpg,hot dog；rust\nb.jpg,\nc.jpg,scab\n", {}),
        ("file,labels\na.jpg,hot dog、rust\nb.jpg,\nc.jpg,scab\n", {}),
        ("fname,labels\na.jpg,hot dog;rust\nb.jpg,\nc.jpg,scab\n", {}),
        (
            "photo no,id,sign\na.jpg,1,hot dog;rust\nb.jpg,2,\nc.jpg,3,scab\n",
            {"image_column": "Photo No", "label_column": "sign"},
        ),
        (",file,hot dog,rust,scab\n0,a.jpg,1,1,0\n1,b.jpg,0,0,0\n2,c.jpg,0,0,1\n", {}),
        ("file,hot dog,rust,scab,ok\na.jpg,1,1,0,0\nb.jpg,0,0,0,1\nc.jpg,0,0,1,0\n", {"negative_word": "ok"}),
        ("file,labels\ra.jpg,hot dog;rust\rb.jpg,\rc.jpg,scab\r", {}),
        ("file,labels\na.jpg,hot dog;rust\nb.jpg,\nc.jpg,scab\n".encode("utf-16"), {}),
    ],
)
def test_the_forms_of_labels(text: str | bytes, form: dict[str, str], tmp_path: Path) -> None:
    assert sets(write(tmp_path, text), **form) == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,labels\na,scab frog_eye complex\nb,rust|complex\n",
            "line 2: the label 'scab frog_eye complex'.*separator ' '",
        ),
        (
            "image,labels\na,haze primary\nb,clear primary water\nc,clear primary\n",
            "line 3: the label.*--data.separator ' '",
        ),
        ("image,labels\na,cat dog\nb,dog cat\n", "line 3: the label 'dog cat'.*--data.separator ' '"),
        (
            "image,labels\na,cat/dog\nb,dog\nc,cat\n",
            "line 2: the label 'cat/dog' is made of other.*--data.separator '/'",
        ),
        ('image,labels\na,"cat, small;dog"\n', "line 2: 'cat, small;dog'.*--data.separator ';'"),
        ("image,labels\na,cat;dog\nb,cat|dog\n", "line 2: 'cat;dog'; .*line 3: 'cat|dog'.*--data.separator"),
        ("image,labels\na,\"['cat' 'dog']\"\n", r"line 2: the label .*brackets"),
        ("image,labels\na,['cat']\nb,dog\n", r"line 2: the label .*brackets"),
        ("image,labels\na,No Finding\nb,cat\n", "line 2: 'No Finding' seems .*--data.negative_word 'No Finding'"),
        ("image,label\na,1\nb,0\n", r"column 'label' holds values of class columns alone.*--data\.classes"),
        ("image,tag,category\na,x,y\n", "'tag' and 'category' may both hold the labels"),
        ("ImageID,Source,LabelName,Confidence\na,v,/m/1,1\nb,v,/m/1,0\n", "line 3: Confidence '0'.*openimages"),
        (
            "image,labels\na,cat\na,dog\n",
            "line 3: a is listed twice, first in line 2.*calls its column of labels 'label'",
        ),
        (
            "image,label,split\na,cat,train\na,dog,test\n",
            "line 3: the image is of split 'test' here and of 'train' in line 2",
        ),
    ],
)
def test_labels_with_several_readings_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenAnnotation, match=f"labels.csv.*{message}"):
        read_table(write(tmp_path, text))


def test_refused_labels_are_read_with_the_proposed_option(tmp_path: Path) -> None:
    path = write(
        tmp_path, "image_name,tags\ntrain_0,haze primary\ntrain_1,clear primary water\ntrain_2,clear primary\n"
    )
    assert sets(path, separator=" ")["train_1"] == {"clear", "primary", "water"}
    assert sets(path, separator=";")["train_2"] == {"clear primary"}
    both = write(tmp_path, "image,labels\na,No Finding;cat\n")
    with pytest.raises(BrokenAnnotation, match="line 2: 'No Finding', the negative word, stands beside other labels"):
        sets(both, negative_word="No Finding")
    with pytest.raises(BrokenAnnotation, match="no row is labelled 'No Findings'.*did you mean 'No Finding'"):
        sets(both, negative_word="No Findings")
    (tmp_path / "classes.txt").write_text("cat, small\ndog\n")
    assert sets(write(tmp_path, 'file,labels\na,"cat, small"\nb,"cat, small;dog"\n'))["b"] == {"cat, small", "dog"}


def test_class_columns_that_are_not_named_are_left_out_aloud(tmp_path: Path) -> None:
    path = write(tmp_path, "Path,Sex,Edema,Mass\na,Female,1,0\nb,Male,0,1\n")
    with pytest.raises(BrokenAnnotation, match=r"line 2: Sex must be 1, 0 or -1, got 'Female'.*--data\.classes"):
        read_table(path)
    with pytest.warns(UserWarning, match="columns left out: Sex"):
        table = read_table(path, classes=["Mass", "Edema"])
    assert table.labels.tolist() == [[-1, 1], [1, -1]]


def test_images_are_found_without_their_extension_and_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.JPG", "b.png", "c.png", "c.jpg"):
        (tmp_path / "photos" / name).touch()
    path = write(tmp_path, "image_name,tags\na,cat\nb,dog\n")
    table = LabelTable(path, image_folder=tmp_path / "photos")
    assert [place.name for place in table.paths] == ["a.JPG", "b.png"] and table.ids == ["a", "b"]
    with pytest.raises(FileNotFoundError, match="a: no such image, listed in .*line 2"):
        LabelTable(path)
    with pytest.raises(BrokenAnnotation, match=r"c: may be c\.jpg or c\.png, listed in .*line 2"):
        LabelTable(write(tmp_path, "file,labels\nc,cat\n"), image_folder=tmp_path / "photos")


# ---- codings ---------------------------------------------------------------------------------------------------------

CHEXPERT = "Path,Edema,Mass\na,1,0\nb,-1,\nc,0,1\n"


@pytest.mark.parametrize("minus_one", ["-1", "-1.0", "-1."])
def test_minus_one_needs_a_coding(minus_one: str, tmp_path: Path) -> None:
    path = write(tmp_path, CHEXPERT.replace("-1", minus_one))
    with pytest.raises(
        BrokenAnnotation, match=r"line 3, column 'Edema': -1 means opposite.*voc \(.*chexpert \(.*partial \("
    ):
        read_table(path)
    with pytest.raises(BrokenAnnotation, match=r"line 3, column 'cat'.*zero-one \(.*openimages \("):
        read_table(write(tmp_path, "file,cat,dog\na,1,0\nb,,1\n"))


@pytest.mark.parametrize(
    ("coding", "expected"),
    [
        ("chexpert", [[1, -1], [-2, -2], [-1, 1]]),
        ("partial", [[1, -2], [-1, -2], [-2, 1]]),
        ("1=present,0=absent,-1=present,empty=absent", [[1, -1], [1, -1], [-1, 1]]),
        ("1=present, 0=difficult, -1=absent, empty=unknown", [[1, 0], [-1, -2], [0, 1]]),
    ],
)
def test_codings(coding: str, expected: list[list[int]], tmp_path: Path) -> None:
    assert read_table(write(tmp_path, CHEXPERT), form=TableFormat(coding=coding)).labels.tolist() == expected


def test_a_coding_refuses_what_it_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path, CHEXPERT)
    with pytest.raises(BrokenAnnotation, match=r"line 3: Mass is '', which coding voc \(1 present"):
        read_table(path, form=TableFormat(coding="voc"))
    with pytest.raises(BrokenAnnotation, match="line 3: Edema is '-1', which coding openimages"):
        read_table(path, form=TableFormat(coding="openimages"))
    with pytest.raises(ValueError, match="coding must be one of 'zero-one'"):
        read_table(path, form=TableFormat(coding="chexprt"))
    for text in ("1=there", "2=present", "1=present,1=absent"):
        with pytest.raises(ValueError, match="coding must be one of zero-one"):
            read_coding(text)
    for text in ("0.5", "2", "cat", "1e", "--1", "-1.5"):
        assert sign_of(text) is None


# ---- broken text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'file,labels\na,cat\n"b,cat\nc,dog\n', "line 3: a quotation mark that is opened here is never closed"),
        (b'file,labels\na,cat\n"b,cat\nc,"dog"\n', "line 3: text follows a closing quotation mark in line 4"),
        (b'file,labels\n"a "b".jpg",cat\n', "line 2: text follows a closing quotation mark"),
        (
            b'file,cat"dog,red"\na,1,0\n',
            "line 1: the column 'cat\"dog' holds a quotation mark that is not within quotes",
        ),
        (
            b'file,5" disc,cat\na,1,0\n',
            "line 1: the column '5\" disc' holds a quotation mark that is not within quotes",
        ),
        (b"file,labels\na\x00b,cat\n", r"line 2: the file name 'a\\x00b' holds the control character '\\x00'"),
        (b"file,labels\na,cat\nb,c\x07at\n", r"line 3: label 'c\\x07at' holds the control character"),
        (b'file,labels\n"a\nb",cat\n', r"line 3: the file name 'a\\nb' holds the control character"),
        (b"file,c\x01t\na,1\n", r"line 1: the column 'c\\x01t' holds the control character"),
        (b"file,labels\na,cat\nb,\xe9\n", "line 3: not UTF-8"),
        (b"\xff\xfef\x00i\x00", "the first line must name a column"),
        (b"\xff\xfef\x00\x00\xd8", "not the UTF-16 that its byte-order mark promises"),
        (b"PK\x03\x04abc", "a ZIP archive or an Excel workbook, no table as text"),
        (b"\x1f\x8babc", "a gzip archive"),
        (b"file,labels,\na,cat,x\n", "column 3 has no name, but holds 'x'"),
        (b"file,labels\na,cat,dog\n", "line 2: 3 fields, the header has 2"),
        (b"", "the first line must name a column"),
    ],
)
def test_broken_text_names_file_and_line(text: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenAnnotation, match=f"labels.csv.*{message}"):
        read_table(write(tmp_path, text))


def test_fields_of_any_length_are_read(tmp_path: Path) -> None:
    long = ";".join(f"class{number}" for number in range(30_000))  # 330 kB, more than csv takes unasked
    table = read_table(write(tmp_path, f"file,labels\na,{long}\n{'b' * 200_000},\n"))
    assert len(table.class_names) == 30_000 and len(table.files[1]) == 200_000


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,labels,is_valid\na.jpg,cat,True\nb.jpg,dog,False\n", "'is_valid' may divide the images"),
        ("image,labels,Usage\na.jpg,cat,Training\nb.jpg,dog,PublicTest\n", "'Usage' may divide the images"),
        ("image,labels,phase\na.jpg,cat,train\nb.jpg,dog,extra\n", "'phase' may divide the images"),
        ("image,labels,kfold\na.jpg,cat,0\nb.jpg,dog,1\n", "'kfold' may divide the images"),
        ("image,labels,part\na.jpg,cat,train\nb.jpg,dog,test\nc.jpg,dog,other\n", "'part' may divide the images"),
        ("image,labels\na,cat\na.jpg,dog\n", "a.jpg is the image a of an earlier line"),
        ("image,labels\n./a.jpg,cat\na.jpg,dog\n", "a.jpg is the image ./a.jpg of an earlier line"),
        ("image,labels\na.jpg,cat#dog\nb.jpg,cat\nc.jpg,dog\n", "cat#dog"),
        ("image,labels\na.jpg,猫、犬\nb.jpg,猫;鳥\nc.jpg,犬\n", "猫、犬"),
        ("image,tag,exists\na.jpg,cat,1\na.jpg,dog,0\n", "exists"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    with pytest.raises(BrokenAnnotation) as caught:
        read_table(tmp_path)
    assert message in str(caught.value)


def test_a_quotation_mark_in_a_quoted_column_stays(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b'file, "5"" disc ","red, ""old"""\na,1,0\nb,0,1\n')
    assert read_table(tmp_path / "labels.csv").class_names == ['5" disc', 'red, "old"']
