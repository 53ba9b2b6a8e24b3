"""Pascal VOC folders as users have them: lists, extensions, encodings, nesting; read right or refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.lists import read_list
from ssgrl_fast.data.voc import PascalVOC, count_objects, default_splits
from ssgrl_fast.data.voc_xml import read_objects


def xml(*names: str) -> str:
    return f"<annotation>{''.join(f'<object><name>{name}</name></object>' for name in names)}</annotation>"


def devkit(root: Path, files: dict[str, str], listed: str) -> Path:
    """Images by file name, each with an object of the class that stands beside it; the list train.txt."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for file, name in files.items():
        picture(root / "JPEGImages" / file)
        (root / "Annotations" / f"{Path(file).stem}.xml").write_text(xml(name))
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(listed.encode())
    return root


def picture(path: Path) -> None:
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".jpeg": "JPEG", ".jpg": "JPEG"}.get(path.suffix.lower())
    Image.new("RGB", (6, 5), (90, 60, 30)).save(path, kind)


# ---- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "lines",
    [
        ["IMG 0001", "IMG 0002", "кот и пёс 3"],
        ['"IMG 0001"', '"IMG 0002"', '"кот и пёс 3"'],
        ["IMG 0001 1", "IMG 0002 -1", "кот и пёс 3  0"],
        ['"IMG 0001" 1', "IMG 0002  -1", '"кот и пёс 3"\t0'],
        ["IMG 0001.jpg", "IMG 0002.JPG", "кот и пёс 3.jpg"],
        ["IMG 0001", "IMG 0002 -1", "кот и пёс 3.jpg 1"],
    ],
)
def test_names_with_blanks_quotes_labels_and_extensions(tmp_path: Path, lines: list[str], ending: str) -> None:
    files = {"IMG 0001.jpg": "cat", "IMG 0002.jpg": "dog", "кот и пёс 3.jpg": "cat"}
    root = devkit(tmp_path, files, "\ufeff" + ending.join(lines) + ending)
    dataset = PascalVOC(root, "train")
    assert dataset.ids == ["IMG 0001", "IMG 0002", "кот и пёс 3"]
    assert dataset.labels.tolist() == [[1, -1], [-1, 1], [1, -1]]


def test_a_name_may_end_like_a_label(tmp_path: Path) -> None:
    root = devkit(tmp_path, {"frame 0.jpg": "cat", "frame 1.jpg": "dog"}, "frame 0\nframe 1\n")
    assert PascalVOC(root, "train").ids == ["frame 0", "frame 1"]
    other = devkit(tmp_path / "b", {"a.jpg": "cat", "1.jpg": "dog", "c.jpg": "dog"}, "a 1\nc\n")  # a line break lost
    with pytest.raises(FileNotFoundError, match=r"a 1.xml: no such annotation, for image a 1, listed in .*train.txt"):
        PascalVOC(other, "train")


def test_a_list_that_is_no_utf8_text_says_what_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes("a\n汽车\n".encode("gbk"))
    with pytest.raises(BrokenAnnotation, match=r"train.txt, line 2: not UTF-8 text; it may read '汽车' \(gb18030\)"):
        read_list(path)
    path.write_bytes("a\nb\n".encode("utf-16"))
    with pytest.raises(BrokenAnnotation, match="train.txt: not UTF-8 text, but UTF-16"):
        read_list(path)
    path.write_bytes(b"\x1f\x8b\x08rest")
    with pytest.raises(BrokenAnnotation, match="train.txt: expected text, but this is a gzip archive"):
        read_list(path)


# ---- images ------------------------------------------------------------------------------------------------------


def test_devkit_images_of_any_extension(tmp_path: Path) -> None:
    files = ["Cars0.png", "Cars1.JPG", "Cars2.jpeg", "Cars3.jfif", "Cars4.webp", "Cars5.JPE", "Cars6.tif"]
    listed = "".join(f"{Path(file).stem}\n" for file in files)
    dataset = PascalVOC(devkit(tmp_path, dict.fromkeys(files, "car"), listed), "train")
    assert [path.name for path in dataset.paths] == files and dataset.labels.tolist() == [[1]] * 7
    assert dataset[3]["image"].shape == (3, 576, 576)
    picture(tmp_path / "JPEGImages" / "Cars0.bmp")
    with pytest.raises(BrokenAnnotation, match=r"Cars0: may be Cars0.bmp or Cars0.png"):
        PascalVOC(tmp_path, "train")
    picture(tmp_path / "JPEGImages" / "Cars0.jpg")
    assert PascalVOC(tmp_path, "train").paths[0].name == "Cars0.jpg"


def test_flat_folders_name_what_they_pass_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file in ("a.jfif", "b.avif", "c.jp2"):
        picture(tmp_path / file)
        (tmp_path / file).with_suffix(".xml").write_text(xml("cat"))
    assert PascalVOC(tmp_path).ids == ["a.jfif", "b.avif", "c.jp2"] and not caplog.messages
    for file in ("d.txt", "e", "notes.h5"):
        (tmp_path / file).write_text("no image")
    assert PascalVOC(tmp_path).ids == ["a.jfif", "b.avif", "c.jp2"]
    assert "3 files without an image's extension passed over: d.txt, e, notes.h5" in caplog.text


# ---- annotations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "<?xml version='1.0' encoding='utf8'?>\n<annotation><object><name>vélo</name></object></annotation>".encode(),
        "\n <?xml version='1.0' encoding='UTF-8'?><annotation><object><name>vélo</name></object></annotation>".encode(),
        "<?xml version='1.0' encoding='latin-1'?><annotation><object><name>vélo</name></object></annotation>".encode(
            "latin-1"
        ),
        "\ufeff<annotation><object><name>vélo</name></object></annotation>".encode("utf-16-le"),
        "\ufeff<annotation><object><name>vélo</name></object></annotation>".encode(),
        "<annotation><objects><object><name>vélo</name></object></objects></annotation>".encode(),
        "<annotations><Objects><Object><Name>vélo</Name></Object></Objects></annotations>".encode(),
        "<Annotation xmlns='urn:x'><OBJECT><name>vélo</name></OBJECT></Annotation>".encode(),
    ],
)
def test_encodings_letters_and_nesting_that_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    assert read_objects(tmp_path / "a.xml") == [("vélo", False)]


def test_gbk_is_read_where_it_is_declared_and_proposed_where_not(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(("<?xml version='1.0' encoding='GBK'?>" + xml("汽车")).encode("gbk"))
    assert read_objects(path) == [("汽车", False)]
    path.write_bytes(xml("汽车").encode("gbk"))
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.jpg")
    (tmp_path / "b.xml").write_text(xml("cat"))
    with pytest.warns(UserWarning, match="1 of 2 images left out.*a.xml, line 1: not UTF-8 text; it may read '汽车'"):
        assert PascalVOC(tmp_path, on_error="skip").ids == ["b.jpg"]
    with pytest.raises(BrokenAnnotation, match=r"a.xml, line 1: not UTF-8 text; it may read '汽车' \(gb18030\)"):
        read_objects(path)


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("<items><object><name>cat</name></object></items>", "<object> inside <items> belongs to no object"),
        ("<item><name>cat</name><bndbox/></item>", "<bndbox> inside <item> belongs to no object"),
        ("<annotation><object><name>cat</name></object></annotation>", "<object> inside <annotation> belongs to no"),
        ("<Obj><name>cat</name><polygon/></Obj>", "<polygon> inside <Obj> belongs to no object"),
        ("<object><possibleresult><name>cat</name></possibleresult></object>", "object 1 has no <name>"),
        ("<object><name>cat</name><name>dog</name></object>", "object 1 has several <name>: 'cat', 'dog'"),
    ],
)
@pytest.mark.parametrize("classes", [None, ["cat"]])
def test_objects_that_would_be_lost_are_refused(
    tmp_path: Path, inside: str, message: str, classes: list[str] | None
) -> None:
    """Also when classes are given, and when one file of several is so."""
    for stem in "abc":
        picture(tmp_path / f"{stem}.jpg")
        (tmp_path / f"{stem}.xml").write_text(xml("cat"))
    (tmp_path / "b.xml").write_text(f"<annotation><owner><name>me</name></owner>{inside}</annotation>")
    with pytest.raises(BrokenAnnotation, match=f"b.xml: {message}"):
        PascalVOC(tmp_path, classes=classes)


# ---- per-class lists alone ---------------------------------------------------------------------------------------


def lists(root: Path, **columns: str) -> Path:
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for name in ("a 1", "b"):
        picture(root / "JPEGImages" / f"{name}.png")
    for name, text in columns.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return root


def test_labels_from_lists_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = lists(
        tmp_path, cat_trainval="a 1  1\nb -1\n", dog_trainval="b 0\na 1 -1\n", dog_test="b 1\n", cat_test="b 0\n"
    )
    dataset = PascalVOC(root, "trainval")
    assert (dataset.ids, dataset.class_names) == (["a 1", "b"], ["cat", "dog"])
    assert dataset.labels.tolist() == [[1, -1], [-1, 0]]
    assert "no annotations (Annotations/*.xml); labels are those of the 2 per-class lists" in caplog.text
    assert default_splits(root) == ("trainval", "test") and PascalVOC(root, "test").labels.tolist() == [[0, 1]]
    assert PascalVOC(root, "test", classes=["dog", "cat"]).labels.tolist() == [[1, 0]]
    with pytest.raises(FileNotFoundError, match="per-class lists count no objects"):
        count_objects(root, "trainval", ["cat", "dog"])


@pytest.mark.parametrize(
    ("dog", "error", "message"),
    [
        ("a 1 -1\n", BrokenAnnotation, "dog_train.txt: not the same images as the other lists of train: b only in one"),
        ("a 1 -1\nb 2\n", BrokenAnnotation, r"dog_train.txt, line 2: expected an image and 1, 0 or -1, got 'b 2'"),
        ("a 1 -1\nb 1\nb 1\n", ValueError, "dog_train.txt: image b is listed twice"),
    ],
)
def test_lists_that_contradict_each_other(tmp_path: Path, dog: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PascalVOC(lists(tmp_path, cat_train="a 1 1\nb 1\n", dog_train=dog), "train")


def test_lists_alone_of_other_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="classes must be those of the per-class lists in .*: dog, owl"):
        PascalVOC(lists(tmp_path, cat_val="b 1\n", dog_val="b 1\n"), "val", classes=["cat", "owl"])


def test_the_real_lists_of_voc2007_say_what_its_annotations_say(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "voc2007_mini" / "VOCdevkit" / "VOC2007"
    with pytest.warns(UserWarning, match="images left out"):
        by_xml = PascalVOC(source, "trainval", on_error="skip")
    for part in ("ImageSets", "JPEGImages"):
        (tmp_path / part).symlink_to(source / part)
    with pytest.warns(UserWarning, match="images left out"):
        by_lists = PascalVOC(tmp_path, "trainval", on_error="skip", allow_outside=True)
    assert by_lists.class_names == by_xml.class_names
    rows = [by_lists.ids.index(id) for id in by_xml.ids]
    assert by_lists.labels[rows].tolist() == by_xml.labels.tolist() and len(rows) >= 25


def test_lists_of_known_names_are_read_by_them(tmp_path: Path) -> None:
    """As `comp1 --images` and VG's published lists are."""
    (tmp_path / "x.txt").write_bytes('\ufeff"IMG 1"\r\nb.jpg 1\r\nc.JPG\r\nd -1\r'.encode())
    assert read_list(tmp_path / "x.txt", {"IMG 1", "b", "c", "d"}.__contains__) == ["IMG 1", "b", "c", "d"]
    assert read_list(tmp_path / "x.txt", {"IMG 1", "b.jpg", "c.JPG", "d"}.__contains__) == [
        "IMG 1",
        "b.jpg",
        "c.JPG",
        "d",
    ]


@pytest.mark.parametrize("inside", ["<obj><name>cat</name></obj>", "<labels><label>cat</label></labels>"])
def test_labels_outside_of_objects_are_not_lost(tmp_path: Path, inside: str) -> None:
    root = devkit(tmp_path, {"a.jpg": "cat"}, "a\n")
    owner = "<owner><name>somebody</name></owner><source><annotation>PASCAL</annotation></source>"
    annotation = tmp_path / "Annotations" / "a.xml"
    annotation.write_text(f"<annotation>{owner}<object><name>cat</name></object></annotation>")
    assert PascalVOC(root, "train").labels.tolist() == [[1]]
    annotation.write_text(f"<annotation>{owner}{inside}</annotation>")
    with pytest.raises(BrokenAnnotation, match=r"a\.xml.*belongs to no object"):
        PascalVOC(root, "train", classes=["cat"])


def test_hidden_files_are_no_annotations(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.xml").write_text(xml("cat"))
    (tmp_path / "._a.xml").write_bytes(b"\0\5\26\7")
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\26\7")
    assert PascalVOC(tmp_path).ids == ["a.jpg"]
