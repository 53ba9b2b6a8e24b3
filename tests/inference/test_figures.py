"""The figures: what is drawn is what was given, and wrong input is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from ssgrl_fast import cli
from ssgrl_fast.inference.figures import BASELINE, MODEL, TRUE, Sample, ap_chart, attention_sheet, overlay, save_figure
from ssgrl_fast.inference.placement import Placement
from ssgrl_fast.metrics import evaluate
from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone

NAMES = ["cat", "dog", "horse", "zebra"]


def bars(axes, color):
    """(left edge, top) of the bars of one colour."""
    return [
        (patch.get_x(), patch.get_y() + patch.get_height())
        for patch in axes.patches
        if to_hex(patch.get_facecolor()) == color
    ]


def texts(figure) -> str:
    figure.canvas.draw()
    found = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    return "\n".join(found)


def sample(targets=None, seed=0) -> Sample:
    rng = np.random.default_rng(seed)
    attention = rng.random((4, 3, 3))
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Sample(image, np.array([0.1, 0.9, 0.6, 0.2]), attention, parts(40, 50), targets, "photo.jpg")


def parts(height: int, width: int, cells: int = 3) -> Placement:
    """A map of cells x cells, each on one of as many equal parts of a picture."""
    y, x = ((np.arange(cells) + 0.5) * side / cells - 0.5 for side in (height, width))
    return Placement(y, x, (0, 0, height, width))


# ---- bar chart -------------------------------------------------------------------------------------------------------


def test_bars_are_sorted_and_as_high_as_the_values():
    figure = ap_chart(NAMES, [0.7, 0.9, 0.55, 0.8], baseline=[0.6, 0.95, 0.5, 0.7])
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["dog", "zebra", "cat", "horse"]
    assert [top for _, top in bars(axes, MODEL)] == pytest.approx([90, 80, 70, 55])
    assert [top for _, top in bars(axes, BASELINE)] == pytest.approx([95, 70, 60, 50])
    numbers = {text.get_text(): to_hex(text.get_color()) for text in axes.texts}
    assert set(numbers) == {"-5.0", "+10.0", "+5.0"}
    assert numbers["-5.0"] == TRUE and numbers["+10.0"] != TRUE
    assert "SSGRL: mAP 73.8 %" in texts(figure) and "baseline: mAP 68.8 %" in texts(figure)


def test_axis_that_does_not_start_at_zero_says_so():
    high, low = (ap_chart(NAMES, values).axes[0] for values in ([0.93, 0.95, 0.99, 0.97], [0.3, 0.95, 0.99, 0.97]))
    assert high.get_ylim()[0] == 90 and "axis from 90" in high.get_ylabel()
    assert low.get_ylim()[0] == 0 and "axis" not in low.get_ylabel()


@pytest.mark.parametrize("value", [1.0, 0.9999, 0.95, 0.9])
@pytest.mark.parametrize("baseline", [False, True])
def test_bars_of_equal_high_values_are_seen(value, baseline):
    axes = ap_chart(["a", "b", "c"], [value] * 3, baseline=[value] * 3 if baseline else None).axes[0]
    bottom, top = axes.get_ylim()
    assert 0 < bottom < 100 < top
    assert len(axes.patches) == 3 * (1 + baseline)
    for bar in axes.patches:
        assert bar.get_y() == bottom and bar.get_y() + bar.get_height() == pytest.approx(100 * value)
        assert bar.get_height() >= 0.1 * (100 - bottom)


def test_a_class_without_positives_has_no_place_and_is_named():
    figure = ap_chart(NAMES, [0.7, float("nan"), 0.55, 0.8])
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert sorted([*labels, "dog"]) == sorted(NAMES) and "1 of 4 classes have no positives: dog" in texts(figure)
    assert len(figure.axes[0].texts) == len(figure.axes[0].patches) == 3


def test_a_long_note_stays_on_the_picture():
    names = [f"a rather long name {index}" for index in range(95)]
    figure = ap_chart(names, [0.5, *[float("nan")] * 94], note="how it was measured, " * 5)
    figure.canvas.draw()
    box = figure._supxlabel.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and "94 of 95 classes" in texts(figure).replace("\n", " ")


def test_many_classes_take_several_rows_and_keep_every_name():
    names = [f"class {index}" for index in range(95)]
    figure = ap_chart(names, np.linspace(0.1, 0.9, 95))
    shown = [text.get_text() for axes in figure.axes for text in axes.get_xticklabels()]
    assert len(figure.axes) == 3 and sorted(shown) == sorted(names)
    assert not any(axes.texts for axes in figure.axes)


@pytest.mark.parametrize(
    ("ap", "baseline", "message"),
    [
        ([0.5, 0.5], None, "ap must be 4 values"),
        ([0.5, 0.5, 0.5, 50.0], None, "fractions of 1"),
        ([0.5] * 4, [0.5] * 3, "baseline must be 4 values"),
    ],
)
def test_wrong_values_are_refused(ap, baseline, message):
    with pytest.raises(ValueError, match=message):
        ap_chart(NAMES, ap, baseline=baseline)


def test_labels_do_not_overlap():
    figure = ap_chart([f"a rather long name {index}" for index in range(10)], [0.9] * 10, baseline=[0.8] * 10)
    figure.canvas.draw()
    axes = figure.axes[0]
    heads = [axes.get_legend().get_window_extent(), axes._left_title.get_window_extent()]
    assert not heads[0].overlaps(heads[1])
    lowest = min(text.get_window_extent().y0 for text in axes.get_xticklabels())
    assert lowest >= 0


def test_save_figure_makes_the_folder_and_refuses_other_kinds(tmp_path):
    written = save_figure(ap_chart(NAMES, [0.5] * 4), tmp_path / "new" / "ap.png")
    assert Image.open(written).format == "PNG"
    with pytest.raises(ValueError, match=r"ap\.txt must end in \.png"):
        save_figure(ap_chart(NAMES, [0.5] * 4), tmp_path / "ap.txt")


def test_pyplot_and_its_global_state_stay_out():
    code = (
        "import sys; from ssgrl_fast.inference.figures import ap_chart; ap_chart(['a'], [0.5]).canvas.draw();"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- attention -------------------------------------------------------------------------------------------------------


def test_overlay_colours_where_the_class_looked_and_greys_the_rest():
    image = np.full((60, 60, 3), (40, 90, 200), dtype=np.uint8)
    attention = np.zeros((3, 3))
    attention[0, 2] = 0.5
    result = overlay(image, attention, parts(60, 60))
    assert result.shape == image.shape and result.dtype == np.uint8
    looked, rest = result[5, 55].astype(int), result[55, 5].astype(int)
    assert looked[0] > 180 and looked[0] > looked[2] + 80  # warm
    grey = 0.299 * 40 + 0.587 * 90 + 0.114 * 200
    assert rest == pytest.approx(0.35 * np.array([40, 90, 200]) + 0.35 * grey, abs=1)
    assert np.array_equal(result, overlay(image, attention * 0.01, parts(60, 60)))  # only the relative weight counts


@pytest.mark.parametrize(
    ("image", "attention"),
    [
        (np.zeros((4, 4), dtype=np.uint8), np.ones((2, 2))),
        (np.zeros((4, 4, 3)), np.ones((2, 2))),
        (np.zeros((4, 4, 3), dtype=np.uint8), np.ones(4)),
        (np.zeros((4, 4, 3), dtype=np.uint8), np.ones((2, 3))),
        (np.zeros((4, 4, 3), dtype=np.uint8), np.array([[1.0, np.nan]])),
        (np.zeros((4, 4, 3), dtype=np.uint8), np.array([[1.0, -0.1]])),
    ],
)
def test_overlay_refuses_what_is_no_image_or_no_map(image, attention):
    with pytest.raises(ValueError, match="overlay: "):
        overlay(image, attention, parts(4, 4, cells=2))


def test_sheet_shows_the_top_classes_and_true_labels_in_red():
    figure = attention_sheet([sample(np.array([1, 1, -1, 0])), sample(seed=1)], NAMES)
    assert len(figure.axes) == 2 * 5
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["photo.jpg", "dog  0.90", "horse  0.60", "zebra  0.20"]
    assert [to_hex(axes.title.get_color()) for axes in figure.axes[1:4]] == [TRUE, "#000000", "#000000"]
    bar = figure.axes[4]
    shown = {text.get_text(): to_hex(text.get_color()) for text in bar.get_yticklabels()}
    assert shown == {"dog": TRUE, "horse": "#000000", "zebra (difficult)": "#000000", "cat": TRUE}
    assert [patch.get_width() for patch in bar.patches] == pytest.approx([0.9, 0.6, 0.2, 0.1])
    assert "red: true labels" in texts(figure)
    assert "red" not in texts(attention_sheet([sample()], NAMES))


def test_sheet_adds_true_labels_beyond_the_most_probable():
    figure = attention_sheet([sample(np.array([1, -1, -1, -1]))], NAMES, labels=2, maps=9)
    assert [text.get_text() for text in figure.axes[-1].get_yticklabels()] == ["dog", "horse", "cat"]
    assert len(figure.axes) == 1 + 4 + 1


def test_sheet_refuses_samples_of_other_classes():
    with pytest.raises(ValueError, match="sample 0 must have 3 classes"):
        attention_sheet([sample()], NAMES[:3])
    with pytest.raises(ValueError, match="needs samples"):
        attention_sheet([], NAMES)


# ---- commands --------------------------------------------------------------------------------------------------------


def write_report(path: Path, seed: int, **options) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(40, 4, generator=generator)
    targets = torch.randint(0, 2, (40, 4), generator=torch.Generator().manual_seed(9)) * 2 - 1
    evaluate(scores, targets.to(torch.int8), NAMES, **options).to_json(path)


def test_plot_ap_from_reports(tmp_path, capsys):
    write_report(tmp_path / "a.json", 0)
    write_report(tmp_path / "b.json", 1)
    out = tmp_path / "ap.png"
    assert (
        cli.main(["plot-ap", str(tmp_path / "a.json"), "--baseline", str(tmp_path / "b.json"), "--out", str(out)]) == 0
    )
    assert Image.open(out).size[0] > 500
    assert str(out) in capsys.readouterr().out


def test_plot_ap_refuses_reports_that_do_not_compare(tmp_path, capsys):
    write_report(tmp_path / "a.json", 0)
    write_report(tmp_path / "b.json", 1, ap_definition="plain")
    command = ["plot-ap", str(tmp_path / "a.json"), "--out", str(tmp_path / "ap.png"), "--baseline"]
    assert cli.main([*command, str(tmp_path / "b.json")]) == 1
    assert "ap_definition" in capsys.readouterr().err
    assert cli.main([*command, str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
    assert not (tmp_path / "ap.png").exists()


@pytest.fixture
def bundles(tmp_path) -> Path:
    torch.manual_seed(0)
    body = build_backbone("small-cnn", width=4)
    SSGRL(body, torch.randn(4, 5), torch.rand(4, 4), class_names=NAMES, joint_dim=8).save_pretrained(tmp_path / "ssgrl")
    GlobalPoolingClassifier(body, 4, class_names=NAMES).save_pretrained(tmp_path / "pooling")
    (tmp_path / "photos").mkdir()
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path


def test_plot_attention_from_a_bundle(bundles, capsys):
    (bundles / "labels.json").write_text(json.dumps({"0.png": ["cat", "zebra"]}))
    out = bundles / "sheet.png"
    command = ["plot-attention", str(bundles / "photos"), "--image-size", "64", "--out", str(out), "--count", "3"]
    with_labels = [*command, "--model", str(bundles / "ssgrl"), "--labels", str(bundles / "labels.json")]
    assert cli.main(with_labels) == 0
    assert "3 of 5 images" in capsys.readouterr().out and Image.open(out).format == "PNG"
    assert cli.main([*command, "--model", str(bundles / "pooling")]) == 1
    assert "no attention maps" in capsys.readouterr().err
    (bundles / "labels.json").write_text(json.dumps({"0.png": ["unicorn"]}))
    assert cli.main(with_labels) == 1
    assert "unicorn" in capsys.readouterr().err
