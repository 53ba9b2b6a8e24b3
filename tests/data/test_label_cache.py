"""Cached labels: as those read, never stale, made again when broken, done without where none can be written."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_sets import NAMES, make_coco, make_voc
from torch import Tensor

from ssgrl_fast.data import coco, label_cache, voc
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.label_cache import BrokenCache

KINDS = ("voc", "coco")


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets here are younger than what would be kept."""
    monkeypatch.setattr(label_cache, "_SETTLED", 0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    make_coco(folder / "coco", ("train", "val"))
    make_voc(folder / "voc", "2007", ("trainval", "test"))
    return folder


@pytest.fixture
def sets(made: Path, tmp_path: Path) -> Path:
    """The sets by links to their images, with annotations of their own that a test may alter."""
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "train").symlink_to(made / "coco" / "train")
    base = tmp_path / "voc" / "VOC2007"
    base.mkdir(parents=True)
    (base / "JPEGImages").symlink_to(made / "voc" / "VOC2007" / "JPEGImages")
    for folder in ("coco/annotations", "voc/VOC2007/Annotations", "voc/VOC2007/ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
        for file in (made / folder).iterdir():
            (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    return tmp_path


def labels(sets: Path, kind: str, cache: bool = True, **options: Any) -> Tensor:
    folder = sets / "cache" if cache else None
    if kind == "voc":
        return voc.PascalVOC(sets / "voc", "trainval", label_cache=folder, **options).labels
    images, annotations = coco.find_split(sets / "coco", "train")
    return coco.CocoDetection(images, annotations, label_cache=folder, **options).labels


def kept(sets: Path) -> list[Path]:
    return sorted((sets / "cache").glob("*")) if (sets / "cache").is_dir() else []


def one_annotation(sets: Path, kind: str) -> Path:
    if kind == "voc":
        return sets / "voc" / "VOC2007" / "Annotations" / "000004.xml"
    return sets / "coco" / "annotations" / "instances_train.json"


def no_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an annotation was parsed")

    monkeypatch.setattr(voc, "read_annotation", refuse)
    monkeypatch.setattr(coco, "_load", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_reading_parses_nothing_and_gives_the_same(
    kind: str, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = labels(sets, kind, cache=False)
    assert kept(sets) == []
    assert torch.equal(labels(sets, kind), plain) and len(kept(sets)) == 1
    no_parsing(monkeypatch)
    again = labels(sets, kind)
    assert torch.equal(again, plain) and again.dtype == torch.int8 and len(set(plain.flatten().tolist())) == 2
    with pytest.raises(AssertionError, match="an annotation was parsed"):
        labels(sets, kind, cache=False)


@pytest.mark.parametrize("kind", KINDS)
def test_an_alteration_that_keeps_size_and_time_is_seen(kind: str, sets: Path) -> None:
    before, file = labels(sets, kind), one_annotation(sets, kind)
    facts, text = file.stat(), file.read_text()
    old, new = ("bird", "boat") if kind == "voc" else ('"category_id": 1', '"category_id": 3')
    assert old in text
    file.write_text(text.replace(old, new))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    found = labels(sets, kind)
    assert torch.equal(found, labels(sets, kind, cache=False)) and not torch.equal(found, before)
    assert torch.equal(labels(sets, kind), found) and len(kept(sets)) == 1  # in the place of the old one


@pytest.mark.parametrize("kind", KINDS)
def test_other_classes_rules_and_lists_are_other_labels(kind: str, sets: Path) -> None:
    first = labels(sets, kind)
    assert torch.equal(labels(sets, kind, classes=NAMES), labels(sets, kind, cache=False, classes=NAMES))
    turned = labels(sets, kind, classes=NAMES[::-1])
    assert torch.equal(turned, labels(sets, kind, cache=False, classes=NAMES[::-1]))
    assert torch.equal(labels(sets, kind, classes=NAMES[::-1]), turned)
    assert not torch.equal(turned, labels(sets, kind, classes=NAMES))
    assert torch.equal(labels(sets, kind), first)
    if kind == "voc":
        with pytest.raises(BrokenAnnotation, match="unknown class"):  # as without a cache
            labels(sets, kind, classes=NAMES[:2])
        listed = sets / "voc" / "VOC2007" / "ImageSets" / "Main" / "trainval.txt"
        listed.write_text("".join(listed.read_text().splitlines(keepends=True)[3:]))
        assert torch.equal(labels(sets, kind), first[3:])
        return
    file = one_annotation(sets, kind)
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["iscrowd"] = int(entry["category_id"] == 2)
    file.write_text(json.dumps(content))
    ignored, negative = (labels(sets, kind, crowd=rule) for rule in ("ignore", "negative"))
    assert set(ignored[:, 1].tolist()) == {0, -1} and set(negative[:, 1].tolist()) == {-1}
    assert torch.equal(labels(sets, kind, crowd="ignore"), ignored)
    assert torch.equal(labels(sets, kind, crowd="positive"), first)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = content.index(b"labels.npy") + 150  # within the matrix
    content[place] ^= 0x7F
    file.write_bytes(bytes(content))


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _foreign(file: Path) -> None:
    file.write_bytes(b"not a cache at all")


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _foreign])
@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_cache_is_named_and_made_again(kind: str, damage: Callable[[Path], None], sets: Path) -> None:
    plain = labels(sets, kind)
    (file,) = kept(sets)
    damage(file)
    with pytest.warns(BrokenCache, match=rf"{file.name}: not a readable cache of labels"):
        assert torch.equal(labels(sets, kind), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(labels(sets, kind), plain) and kept(sets) == [file]


def test_a_cache_under_another_ones_name_is_broken(sets: Path) -> None:
    labels(sets, "coco", classes=NAMES)
    (first,) = kept(sets)
    plain = labels(sets, "coco", classes=NAMES[::-1])
    (second,) = (file for file in kept(sets) if file != first)
    second.write_bytes(first.read_bytes())
    with pytest.warns(BrokenCache, match="its content is not what its name says"):
        assert torch.equal(labels(sets, "coco", classes=NAMES[::-1]), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_can_be_written_there_is_no_cache(kind: str, sets: Path) -> None:
    (sets / "cache").write_text("a file where the folder would be")
    assert torch.equal(labels(sets, kind), labels(sets, kind, cache=False))
    assert (sets / "cache").read_text() == "a file where the folder would be"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_only_be_read_is_read(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = labels(sets, "voc")
    (sets / "cache").chmod(0o500)
    try:
        assert torch.equal(labels(sets, "coco"), labels(sets, "coco", cache=False)) and len(kept(sets)) == 1
        no_parsing(monkeypatch)
        assert torch.equal(labels(sets, "voc"), plain)
    finally:
        (sets / "cache").chmod(0o700)


@pytest.mark.parametrize("kind", KINDS)
def test_annotations_altered_just_now_or_while_they_are_read_are_not_kept(
    kind: str, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_cache, "_SETTLED", 3600.0)
    labels(sets, kind)
    assert kept(sets) == []
    monkeypatch.setattr(label_cache, "_SETTLED", 0.0)
    module, name = (voc, "read_annotation") if kind == "voc" else (coco, "_load")
    reader = getattr(module, name)

    def slow(path: Path) -> Any:
        content = reader(path)
        file = one_annotation(sets, kind)
        if path == file:
            os.utime(file, ns=(time.time_ns(), time.time_ns()))
        return content

    with monkeypatch.context() as patch:
        patch.setattr(module, name, slow)
        labels(sets, kind)
    assert kept(sets) == []
    labels(sets, kind)
    assert len(kept(sets)) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_image_is_missed_all_the_same(kind: str, sets: Path, made: Path) -> None:
    labels(sets, kind)
    folder = sets / ("coco/train" if kind == "coco" else "voc/VOC2007/JPEGImages")
    source = folder.resolve()
    folder.unlink()
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "000004.jpg":
            (folder / file.name).symlink_to(file)
    with pytest.raises(FileNotFoundError, match=r"000004.jpg: no such image"):
        labels(sets, kind)
    with pytest.warns(UserWarning, match="1 of 20 images left out"):
        assert len(labels(sets, kind, on_error="skip")) == 19


def test_a_set_with_broken_annotations_is_read_each_time(sets: Path) -> None:
    one_annotation(sets, "voc").write_text("<annotation>")
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 20 images left out"):
            assert len(labels(sets, "voc", on_error="skip")) == 19
    assert kept(sets) == []


def test_difficult_objects_stay_difficult(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = one_annotation(sets, "voc")
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    plain = labels(sets, "voc")
    assert sorted(plain[4].tolist()) == [-1, -1, 0]
    no_parsing(monkeypatch)
    assert torch.equal(labels(sets, "voc"), plain)


def test_the_data_module_takes_the_folder(sets: Path, made: Path) -> None:
    pytest.importorskip("lightning", reason="the training extra is not installed")
    from ssgrl_fast.data.datamodule import MultiLabelDataModule

    for kind in KINDS:
        data = MultiLabelDataModule(kind, str(made / kind), label_cache=str(sets / "cache"))
        expected = MultiLabelDataModule(kind, str(made / kind))
        assert torch.equal(data.train_labels, expected.train_labels) and data.test_dataset is not None
    assert len(kept(sets)) == 4
    with pytest.raises(ValueError, match="'digits' is embedded and takes no label_cache"):
        MultiLabelDataModule("digits", label_cache=str(sets))
