"""Pictures and result files of classes with awkward names, and folders with files that are no images."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from small_bundles import make_model

from ssgrl_fast.data.images import EXTENSIONS
from ssgrl_fast.inference.comp1 import write_comp1
from ssgrl_fast.inference.figures import Sample, ap_chart, attention_sheet, save_figure
from ssgrl_fast.inference.image_files import find_images, search_images
from ssgrl_fast.inference.placement import Placement
from ssgrl_fast.inference.predict import predict_files
from ssgrl_fast.inference.predictor import Predictor

AWKWARD = ["Ba$$in", "$1 off", "$5 and $10", "a_b^c", r"$\frac{$", r"\alpha", "{x}", "100%", "vélo", "😀"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_charts_draw_names_as_they_are_written(tmp_path: Path, suffix: str) -> None:
    figure = ap_chart(AWKWARD, np.linspace(0.9, 0.2, len(AWKWARD)).tolist(), title="$x_1$", note="a $b$")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = save_figure(figure, tmp_path / f"ap{suffix}")
    assert path.stat().st_size > 5000
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    assert {*AWKWARD, "$x_1$", "a $b$"} <= {text.get_text() for text in texts}
    assert not any(text.get_parse_math() for text in texts)


def test_a_name_without_dollars_is_as_wide_as_the_same_letters_with_them(tmp_path: Path) -> None:
    """``$aa$`` as mathematics would be two slanted letters; as written it is wider than ``aa``."""

    def widths(names: list[str]) -> list[float]:
        figure = ap_chart(names, [0.5] * len(names))
        save_figure(figure, tmp_path / "x.png")
        return [label.get_window_extent().width for label in figure.axes[0].get_xticklabels()]

    plain, dollars = widths(["aa", "$aa$"])
    assert dollars > 1.5 * plain


def test_attention_sheets_draw_them_too(tmp_path: Path) -> None:
    count = len(AWKWARD)
    picture = np.zeros((8, 8, 3), np.uint8)
    placement = Placement(np.array([2.0, 5.0]), np.array([2.0, 5.0]), (0, 0, 8, 8))
    scores, maps = np.linspace(0.9, 0.1, count), np.ones((count, 2, 2))
    sample = Sample(picture, scores, maps, placement, None, "im$age$_1^.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert save_figure(attention_sheet([sample], AWKWARD, title="$"), tmp_path / "a.png").is_file()


def test_characters_that_no_font_has_are_said_once(tmp_path: Path) -> None:
    figure = ap_chart(["a\U000e0fff\ufdd0b", "\u1c90\ua6a0\U00016fe0", "c"], [0.3, 0.2, 0.1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_figure(figure, tmp_path / "x.png")
    said = [str(warning.message) for warning in caught]
    assert len(said) == 1 and said[0].startswith("no installed font has") and "Glyph" not in said[0]


def test_comp1_files_of_classes_with_slashes(tmp_path: Path) -> None:
    names = ["cat/dog", "cat%2Fdog", r"a\b", "50%", "../up", "猫"]
    files = write_comp1(tmp_path, names, {"i1": torch.arange(6.0)})
    assert [file.name for file in files] == [
        "comp1_cls_test_cat%2Fdog.txt",
        "comp1_cls_test_cat%252Fdog.txt",
        "comp1_cls_test_a%5Cb.txt",
        "comp1_cls_test_50%.txt",
        "comp1_cls_test_..%2Fup.txt",
        "comp1_cls_test_猫.txt",
    ]
    assert sorted(tmp_path.iterdir()) == sorted(files) and [file.read_text() for file in files][1] == "i1 1\n"


def test_comp1_files_stay_in_their_folder_whatever_class_and_split_are_called(tmp_path: Path) -> None:
    names = ["../../up", "/etc/passwd", "..", ".", "a/../../b", "\\\\host\\share", "nul\0", "new\nline", "\x1b[2J"]
    folder = tmp_path / "below" / "comp1"
    for split in ("test", "../../../test", "/tmp/x"):
        files = write_comp1(folder, names, {"i1": torch.arange(9.0)}, split=split)
        assert {file.resolve().parent for file in files} == {folder.resolve()} and len(set(files)) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["below"] and len(list(folder.iterdir())) == 27


@pytest.mark.parametrize("photo", ["..png", "..", "a" * 240 + ".png", "猫" * 80, "q\x1b[2J.png", "new\nline.png"])
def test_overlays_stay_in_their_folder_whatever_class_and_file_are_called(tmp_path: Path, photo: str) -> None:
    names = ["../../up", "/etc/" + "passwd" * 60, "猫" * 200]
    model = make_model(class_names=names)
    model.preprocessing = {"image_size": 32, "resize": 32}
    model.save_pretrained(tmp_path / "bundle")
    path = tmp_path / (photo if photo.endswith(".png") else f"{photo}.png")
    Image.new("RGB", (8, 8)).save(path, "PNG")
    before = sorted(tmp_path.rglob("*"))
    overlays = tmp_path / "overlays"
    rows = predict_files(Predictor.load(tmp_path / "bundle"), [path], overlays=overlays)["files"]
    assert sorted(map(str, overlays.iterdir())) == sorted(rows[0]["overlays"]) and len(rows[0]["overlays"]) == 3
    after = [entry for entry in sorted(tmp_path.rglob("*")) if overlays not in (entry, *entry.parents)]
    assert after == before


def test_images_by_pillows_registry_and_the_others_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, kind in (
        ("a.jfif", "JPEG"),
        ("b.JPE", "JPEG"),
        ("c.avif", "AVIF"),
        ("d.jp2", "JPEG2000"),
        ("e.QOI", "QOI"),
    ):
        Image.new("RGB", (8, 8)).save(tmp_path / name, kind)
    others = ["doc.pdf", "film.mpg", "g.HEIC", "notes.txt", "without"]
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".hidden").write_bytes(b"x")
    files, passed_over = search_images([tmp_path])
    heif = ".heic" in EXTENSIONS  # pillow-heif is installed
    assert [file.name for file in files if file.suffix != ".HEIC"] == ["a.jfif", "b.JPE", "c.avif", "d.jp2", "e.QOI"]
    assert [file.name for file in passed_over] == [name for name in others if not (heif and name == "g.HEIC")]
    assert find_images([tmp_path]) == files
    if not heif and "pillow_heif" not in sys.modules:
        assert "5 files without an image's extension passed over: doc.pdf, film.mpg, g.HEIC, notes.txt" in caplog.text
        assert "pip install pillow-heif" in caplog.text
    assert search_images([tmp_path, tmp_path / "without"])[0][-1] == tmp_path / "without"  # named, it is tried
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"empty: no image in this folder \(1 file .* passed over: x.txt\)"):
        find_images([tmp_path / "empty"])
