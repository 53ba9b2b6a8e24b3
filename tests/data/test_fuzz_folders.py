"""Drawn label matrices in the VOC and COCO formats, written by small writers of their own with hostile names, are read
back bit for bit; with one byte of a file lost or changed the reader gives the same matrix, one that differs in the
touched name or value alone, or a sentence that names the file.

300 cases of each in the ordinary run, 5,000 in the long one; the draws are the same every time.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hostile_names import Damage, Entries, confined, damages, distinct_names, names
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssgrl_fast.data.coco import read_labels
from ssgrl_fast.data.voc import PascalVOC

Matrix = list[list[int]]
Read = Callable[[], tuple[list[str], list[str], Matrix]]  # images, class names, labels

FEW, MORE, MANY = 60, 300, 5000


def on_draws(count: int, body: Callable[[st.DataObject], None]) -> None:
    silent = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    options = settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=silent)
    logging.disable(logging.WARNING)  # lines about per-class lists and parents
    try:
        options(given(data=st.data())(body))()
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one case; tmp_path would be shared by all cases of a test."""
    place = Path(tempfile.mkdtemp(prefix="ssgrl-fuzz-"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def matrices(data: st.DataObject, images: list[str], classes: list[str], codes: tuple[int, ...]) -> Matrix:
    row = st.lists(st.sampled_from(codes), min_size=len(classes), max_size=len(classes))
    return data.draw(st.lists(row, min_size=len(images), max_size=len(images)), label="labels")


def entries(images: list[str], classes: list[str], labels: Matrix) -> Entries:
    return {
        (image, name): code
        for image, row in zip(images, labels, strict=True)
        for name, code in zip(classes, row, strict=True)
        if code != -1
    }


def hold(read: Read, files: list[Path], damage: Damage, which: float, before: tuple[list[str], Entries]) -> None:
    """Damage one of the files and read: a sentence that names a file of the set, or a matrix that is wrong in the
    touched name or value alone."""
    place = files[min(int(which * len(files)), len(files) - 1)]
    sound = place.read_bytes()
    place.write_bytes(damage.of(sound))
    try:
        images, classes, labels = read()
    except (ValueError, FileNotFoundError) as error:
        assert any(str(file) in str(error) or file.stem in str(error) for file in files), str(error)
    else:
        after = entries(images, classes, labels)
        assert confined(before[1], after, before[0], images), (sound, place.read_bytes(), before[1], after)
    finally:
        place.write_bytes(sound)


# ---- Pascal VOC --------------------------------------------------------------------------------------------------


_FILES = '/\0"'  # what a file's name cannot hold, and the quote that lists of images use
_XML = "\u0085"  # XML 1.0 keeps it, but stripping takes it off the ends

# at least two characters, so that no damage takes a whole name away
STEMS = names(without=_FILES + "\\").filter(lambda name: name not in ("..", "-1") and len(name) > 1)


def write_image(path: Path) -> None:
    path.write_bytes(b"not looked at")


def write_xml(path: Path, style: str, present: dict[str, int]) -> None:
    """An annotation in one of the forms that tools write."""
    tag, wrapped = ("Object", "name") if style == "capital" else ("object", "name"), style == "objects"
    body = "".join(
        f"<{tag[0]}>\n\t<{tag[1]}>{escape(name)}</{tag[1]}><difficult>{1 - code}</difficult></{tag[0]}>"
        for name, code in present.items()
    )
    head = {"utf8": "<?xml version='1.0' encoding='utf8'?>\n", "bom": "\ufeff", "utf16": "\ufeff"}.get(style, "")
    text = f"{head}<annotation><folder>x</folder>{'<objects>' + body + '</objects>' if wrapped else body}</annotation>"
    path.write_bytes(text.encode("utf-16-le" if style == "utf16" else "utf-8"))


STYLES = ("plain", "capital", "objects", "utf8", "bom", "utf16")


def a_devkit(data: st.DataObject, root: Path) -> tuple[list[str], list[str], Matrix]:
    """A devkit with XML; the listed classes are all that occur, and one that may not."""
    images = data.draw(st.lists(STEMS, min_size=3, max_size=5, unique=True), label="images")
    classes = data.draw(distinct_names(1, 4, without="\0" + _XML), label="classes")
    labels = matrices(data, images, classes, (1, 0, -1))
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for image, row in zip(images, labels, strict=True):
        style = data.draw(st.sampled_from(STYLES), label="style")
        present = {name: code for name, code in zip(classes, row, strict=True) if code != -1}
        write_xml(root / "Annotations" / f"{image}.xml", style, present)
        extension = data.draw(st.sampled_from((".jpg", ".JPG", ".png", ".jpeg", ".webp")), label="extension")
        write_image(root / "JPEGImages" / f"{image}{extension}")
    write_list(data, root / "ImageSets" / "Main" / "train.txt", images)
    return images, classes, labels


def write_list(data: st.DataObject, path: Path, images: list[str]) -> None:
    ending = data.draw(st.sampled_from(("\n", "\r\n", "\r")), label="ending")
    last = data.draw(st.sampled_from((ending, "")), label="last")
    path.write_bytes((data.draw(st.sampled_from(("", "\ufeff"))) + ending.join(images) + last).encode())


def reader(root: Path, split: str, classes: list[str] | None) -> Read:
    def read() -> tuple[list[str], list[str], Matrix]:
        found = PascalVOC(root, split, classes=classes)
        return found.ids, found.class_names, found.labels.tolist()

    return read


def on_devkit(data: st.DataObject) -> None:
    with folder() as root:
        images, classes, labels = a_devkit(data, root)
        assert reader(root, "train", classes)() == (images, classes, labels)
        known = classes if data.draw(st.booleans(), label="classes are given") else None
        used = sorted({name for _, name in entries(images, classes, labels)})
        if known is None and not used:
            return
        order = [classes.index(name) for name in (known or used)]
        got = reader(root, "train", known)()
        assert got == (images, known or used, [[row[column] for column in order] for row in labels])
        files = [root / "ImageSets" / "Main" / "train.txt", *sorted((root / "Annotations").iterdir())]
        damage, which = data.draw(damages(), label="damage"), data.draw(st.floats(0, 1), label="which file")
        hold(reader(root, "train", known), files, damage, which, (images, entries(images, classes, labels)))


def on_class_lists(data: st.DataObject) -> None:
    """Per-class lists alone."""
    with folder() as root:
        images = data.draw(st.lists(STEMS, min_size=3, max_size=5, unique=True), label="images")
        classes = sorted(data.draw(distinct_names(1, 4, without=_FILES + "\\"), label="classes"))
        labels = matrices(data, images, classes, (1, 0, -1))
        main = root / "ImageSets" / "Main"
        main.mkdir(parents=True)
        (root / "JPEGImages").mkdir()
        for image in images:
            write_image(root / "JPEGImages" / f"{image}.png")
        if data.draw(st.booleans(), label="a list of the split"):
            write_list(data, main / "val.txt", images)
        for column, name in enumerate(classes):
            lines = [f"{image} {row[column]:2d}" for image, row in zip(images, labels, strict=True)]
            write_list(data, main / f"{name}_val.txt", lines)
        got = reader(root, "val", None)()
        assert got == (images, classes, labels)
        damage, which = data.draw(damages(), label="damage"), data.draw(st.floats(0, 1), label="which file")
        files = sorted(main.iterdir())
        hold(reader(root, "val", None), files, damage, which, (images, entries(images, classes, labels)))


# ---- COCO --------------------------------------------------------------------------------------------------------


def on_coco(data: st.DataObject) -> None:
    with folder() as root:
        images = data.draw(distinct_names(1, 5, without="/.\\", stripped=False), label="images")
        classes = data.draw(distinct_names(1, 4, stripped=False), label="classes")
        crowd = data.draw(st.sampled_from(("positive", "ignore")), label="crowd")
        labels = matrices(data, images, classes, (1, 0, -1) if crowd == "ignore" else (1, -1))
        ids = data.draw(st.lists(st.integers(0, 9999), min_size=9, max_size=9, unique=True), label="ids")
        image_ids, class_ids = sorted(ids[: len(images)]), sorted(ids[-len(classes) :])
        flag = data.draw(st.sampled_from((int, str, bool)), label="iscrowd is")
        content = {
            "info": {"note": "no image, no category"},
            "images": [
                {"id": id, "file_name": name, "width": 3, "license": 1}
                for id, name in zip(image_ids, images, strict=True)
            ],
            "annotations": [
                {"id": 7, "image_id": image, "category_id": kind, "iscrowd": flag(1 - code), "bbox": [0, 0, 1.5, 2]}
                for image, row in zip(image_ids, labels, strict=True)
                for kind, code in zip(class_ids, row, strict=True)
                if code != -1
            ],
            "categories": [{"id": id, "name": name} for id, name in zip(class_ids, classes, strict=True)],
        }
        path = root / "labels.json"
        plain, mark = data.draw(st.booleans(), label="ascii"), data.draw(st.sampled_from(("", "\ufeff")), label="mark")
        path.write_bytes((mark + json.dumps(content, ensure_ascii=plain)).encode())

        def read() -> tuple[list[str], list[str], Matrix]:
            found, class_names, files = read_labels(path, crowd=crowd)  # type: ignore[arg-type]  # one of its choices
            return files, class_names, found.tolist()

        assert read() == (images, classes, labels)
        damage = data.draw(damages(), label="damage")
        hold(read, [path], damage, 0.0, (images, entries(images, classes, labels)))


CASES = {"devkit": on_devkit, "class lists": on_class_lists, "coco": on_coco}


@pytest.mark.parametrize("form", CASES)
def test_hostile_names_and_damaged_bytes(form: str) -> None:
    on_draws(FEW, CASES[form])


@pytest.mark.thorough
@pytest.mark.parametrize("form", CASES)
def test_more_hostile_names_and_damaged_bytes(form: str) -> None:
    on_draws(MORE, CASES[form])


@pytest.mark.long
@pytest.mark.parametrize("form", CASES)
def test_hostile_names_and_damaged_bytes_at_length(form: str) -> None:
    on_draws(MANY, CASES[form])
