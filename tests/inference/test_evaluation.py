"""Evaluation by the paper's protocols: views, fusion, thresholds, tables and the verb, each against loops."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_loops import RULES, loop_ap, loop_prf, sample
from PIL import Image

pytest.importorskip("lightning", reason="the training extra is not installed")
pytest.importorskip("torchvision", reason="the training extra is not installed")

from small_sets import NAMES, make_coco, make_voc
from torchvision.transforms.v2 import functional as F

from ssgrl_fast import cli, metrics
from ssgrl_fast.data.images import read_image
from ssgrl_fast.data.transforms import eval_transform, normalised, view_transform
from ssgrl_fast.inference import predictor
from ssgrl_fast.inference.evaluation import Protocol, fuse, prf_above, scale_of, tune_thresholds
from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone


@pytest.fixture(autouse=True)
def plain_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pytest's own arguments are none of ours."""
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])


# ---- views and fusion ------------------------------------------------------------------------------------------------


def noise_image(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_ten_crops_are_torchvisions_and_a_single_view_is_the_evaluation_transform() -> None:
    image, norm = noise_image(50, 38), {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    found = view_transform(36, resize=40, views="ten-crop", **norm)(image)
    resized = image.resize((40, 40), Image.Resampling.BILINEAR)
    expected = torch.stack([normalised(crop, norm["mean"], norm["std"]) for crop in F.ten_crop(resized, [36, 36])])
    expected = expected[[0, 1, 2, 3, 4, 6, 5, 8, 7, 9]]  # torchvision mirrors before it names the corners
    assert found.shape == (10, 3, 36, 36) and torch.equal(found, expected)
    single = view_transform(36, resize=41, **norm)(image)
    assert torch.equal(single[0], eval_transform(36, resize=41, **norm)(image)) and len(single) == 1
    with pytest.raises(ValueError, match="ten-crop needs resize above size, got 36 for both"):
        view_transform(36, resize=36, views="ten-crop")
    with pytest.raises(ValueError, match="views must be one of"):
        view_transform(36, views="twelve")


def test_scales_are_the_papers_or_in_their_ratio() -> None:
    assert [scale_of(side) for side in (640, 512, 249, 320)] == [(640, 576), (512, 448), (249, 224), (320, 288)]
    with pytest.raises(ValueError, match="at least 2 pixels, got 1"):
        scale_of(1)
    with pytest.raises(ValueError, match="one or more different ones"):
        Protocol("single", (scale_of(640), scale_of(640)), "logits")
    assert str(Protocol("single", (scale_of(640),), "logits")) == "single, scale 640 -> 576"
    both = Protocol("ten-crop", (scale_of(640), scale_of(512)), "probabilities")
    assert str(both) == "ten-crop, scale 640 -> 576 and 512 -> 448, mean of probabilities"


def test_fusion_by_hand_and_at_the_ends() -> None:
    logits = [[2.0, -1.0], [0.0, 3.0], [-4.0, 0.5]]
    mean = [sum(row[c] for row in logits) / 3 for c in range(2)]
    assert fuse(torch.tensor(logits), "logits", 0).tolist() == pytest.approx(mean, rel=1e-12)
    shares = [sum(1 / (1 + math.exp(-row[c])) for row in logits) / 3 for c in range(2)]
    expected = [math.log(share / (1 - share)) for share in shares]
    assert fuse(torch.tensor(logits), "probabilities", 0).tolist() == pytest.approx(expected, rel=1e-12)
    # sigmoid(90) is 1 in float64; the order of what lies beyond must survive
    far = fuse(torch.tensor([[90.0, 100.0, -90.0, -100.0], [95.0, 100.0, -95.0, -100.0]]), "probabilities", 0)
    assert far[1] > far[0] and far[2] > far[3] and bool(far.isfinite().all())
    assert far[0].item() == pytest.approx(90 + math.log(2) - math.log1p(math.exp(-5)), rel=1e-12)
    with pytest.raises(ValueError, match="how must be one of"):
        fuse(torch.zeros(2, 2), "votes", 0)


# ---- thresholds ------------------------------------------------------------------------------------------------------


def loop_f1(scores: Sequence[float], codes: Sequence[int], cut: float, rule: str | None) -> float:
    correct = predicted = true = 0
    for score, code in zip(scores, codes, strict=True):
        if code == 0 and (rule or "ignore") == "ignore":
            continue
        positive = code == 1 or (code == 0 and rule == "positive")
        correct += score > cut and positive
        predicted += score > cut
        true += positive
    return 2 * correct / (predicted + true) if predicted + true else 0.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", [None, 2])
def test_tuned_cuts_reach_the_best_f1_of_all_cuts(levels: int | None, rule: str | None) -> None:
    scores, labels = sample(21, images=60, levels=levels)
    cuts = tune_thresholds(scores, labels, difficult=rule)
    for c, cut in enumerate(cuts.tolist()):
        column, codes = scores[:, c].double().tolist(), labels[:, c].tolist()
        tried = [value - 1e-9 for value in column]  # predicts that score and all above it
        best = max(loop_f1(column, codes, other, rule) for other in tried)
        assert loop_f1(column, codes, cut, rule) == pytest.approx(best, rel=1e-12)
        assert cut not in [score for score, code in zip(column, codes, strict=True) if code != 0]


def test_degenerate_classes_keep_the_middle_and_perfect_ones_are_parted_half_way() -> None:
    scores = torch.tensor([[1.0, 5.0, 3.0, 2.0], [2.0, 6.0, 1.0, 2.0], [3.0, 7.0, -1.0, 2.0]])
    labels = torch.tensor([[-1, 1, 1, 1], [-1, 1, 1, -1], [-1, 1, -1, 1]], dtype=torch.int8)
    assert tune_thresholds(scores, labels).tolist() == [0.0, 0.0, 0.0, 1.5]  # no positive, no negative, parted, ties
    labels[0, 2] = labels[1, 3] = 0
    assert tune_thresholds(scores, labels).tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("top_k", [None, 3])
def test_numbers_above_cuts_equal_the_counting_loops(top_k: int | None, rule: str | None) -> None:
    scores, labels = sample(22)
    half = prf_above(scores, labels, torch.zeros(6), top_k=top_k, difficult=rule)
    assert half == pytest.approx(loop_prf(scores, labels, top_k, 0.5, rule), rel=1e-12)
    cuts = torch.tensor([-0.4, 0.3, 0.0, 1.0, -1.0, 0.1], dtype=torch.float64)
    found = prf_above(scores, labels, cuts, top_k=top_k, difficult=rule)
    # as scores whose rank decides the k highest and whose sign says whether they lie above their cut
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(6).expand_as(order))
    allowed = rank < (top_k or 6)
    signs = torch.where(allowed & (scores.double() > cuts), 5.0, -5.0)
    assert found == pytest.approx(loop_prf(signs, labels, None, 0.5, rule), rel=1e-12)
    with pytest.raises(ValueError, match=r"cuts must be \[6\], one per class, got \[5\]"):
        prf_above(scores, labels, cuts[:5])


# ---- tables ----------------------------------------------------------------------------------------------------------


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "]


def test_table_1_has_its_fourteen_columns_and_the_loops_numbers() -> None:
    scores, labels = sample(23)
    report = metrics.evaluate(scores, labels, list("abcdef"))
    other = metrics.evaluate(-scores, labels, list("abcdef"))
    head, mine, theirs = cells(metrics.table_1({"ours": report, "their|s": other}))
    names = ["CP", "CR", "CF1", "OP", "OR", "OF1"]
    assert head == ["method", "mAP", *(f"top-3 {name}" for name in names), *(f"all {name}" for name in names)]
    assert len(head) == 14 and mine[0] == "ours" and theirs[0] == "their\\"
    ap = [loop_ap(scores[:, c].tolist(), labels[:, c].tolist(), "voc2010", None) for c in range(6)]
    expected = [sum(ap) / 6]
    for top_k in (3, None):
        expected += [loop_prf(scores, labels, top_k, 0.5, None)[name] for name in names]
    assert mine[1:] == [f"{100 * value:.2f}" for value in expected]
    with pytest.raises(ValueError, match="one k and one threshold, got k 3 threshold 0.5, k 3 threshold 0.6"):
        metrics.table_1({"a": report, "b": metrics.evaluate(scores, labels, list("abcdef"), threshold=0.6)})


def test_the_class_table_is_by_name_and_the_largest_gain_comes_first() -> None:
    labels = torch.tensor([[1, 1, 1], [-1, 1, -1], [-1, 1, 1]], dtype=torch.int8)
    labels[:, 1] = -1  # no positives
    model = metrics.evaluate(torch.tensor([[3.0, 0, 1], [2, 0, 2], [1, 0, 3]]), labels, ["x", "y", "z"], "plain")
    swapped = labels[:, [2, 1, 0]]
    rival = metrics.evaluate(torch.tensor([[3.0, 0, 1], [2, 0, 2], [1, 0, 3]]), swapped, ["z", "y", "x"], "plain")
    # x: ranked first by the model (AP 1) and last by the rival (1/3); z: second and third of three, and 1 and 2/3
    assert metrics.baseline_ap(model, rival)[0] == pytest.approx(1 / 3)
    head, *rows = cells(metrics.class_table(model, rival, names=("SSGRL", "pooling")))
    assert head == ["class", "SSGRL AP", "pooling AP", "gap", "positives"]
    assert rows[0] == ["x", "100.00", "33.33", "+66.67", "1"]
    assert rows[1] == ["z", "83.33", "83.33", "+0.00", "2"]
    assert rows[2] == ["y", "-", "-", "-", "0"]
    with pytest.raises(ValueError, match="model has ap_definition 'plain', other 'voc2010'"):
        metrics.baseline_ap(
            model, metrics.evaluate(torch.zeros(3, 3), labels, ["x", "y", "z"]), names=("model", "other")
        )


# ---- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in COCO's format, and bundles of an SSGRL network and of the pooling baseline on it, random weights."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_coco(folder / "set", ("train", "val"))
    torch.manual_seed(5)
    words, graph = torch.randn(3, 5), torch.rand(3, 3)
    model = SSGRL(build_backbone("small-cnn", width=4), words, graph, class_names=NAMES, joint_dim=8)
    plain = GlobalPoolingClassifier(build_backbone("small-cnn", width=4), 3, class_names=NAMES)
    with torch.no_grad():
        model.head.classifier.weight_c *= 20  # scores that differ from image to image
        plain.head.linear.weight *= 20
    model.preprocessing = plain.preprocessing = {"image_size": 36, "resize": 40}
    model.recipe = {
        "seed": "17",
        "selected on": "the test images themselves (D19)",
        "difficult": "negative",
        "AP": "plain",
    }
    model.save_pretrained(folder / "ssgrl")
    plain.save_pretrained(folder / "pooling")
    return folder


def command(place: Path, output: Path, *more: str, model: str = "ssgrl") -> list[str]:
    data = ["--data.kind=coco", f"--data.root={place / 'set'}", "--no-progress"]
    return ["evaluate", f"--model={place / model}", f"--output={output}", *data, *more]


def test_evaluate_fuses_views_and_scales_and_writes_one_folder(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--views=ten-crop", "--scales", "40", "60", "--fuse=probabilities", "--thresholds=tune"]
    more = ["--data.val_fraction=0.4", f"--baseline={place / 'pooling'}", "--attention=2"]
    assert cli.main(command(place, tmp_path / "out", *options, *more)) == 0
    out = tmp_path / "out"
    files = {"report.json", "evaluation.json", "report.md", "ap.png", "attention.png", "baseline.json"}
    assert {path.name for path in out.iterdir()} == files
    report = metrics.Report.from_json(out / "report.json")

    # the same by hand: every view of every scale through the network, probabilities averaged
    model = SSGRL.from_pretrained(place / "ssgrl")
    paths = sorted((place / "set" / "val").glob("*.jpg"))
    probabilities = torch.zeros(len(paths), 3, dtype=torch.float64)
    for row, path in enumerate(paths):
        views = []
        for side, size in ((40, 36), (60, 54)):
            resized = read_image(path).resize((side, side), Image.Resampling.BILINEAR)
            for crop in F.ten_crop(resized, [size, size]):
                image = normalised(crop, model.backbone.mean, model.backbone.std)
                with torch.no_grad():
                    views.append(model(image[None])[0].double().sigmoid())
        probabilities[row] = torch.stack(views).mean(0)
    content = json.loads((place / "set" / "annotations" / "instances_val.json").read_text())
    labels = np.zeros((len(paths), 3), dtype=bool)
    for entry in content["annotations"]:
        labels[entry["image_id"], entry["category_id"] - 1] = True
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn (extra train)")
    for c, row in enumerate(report.classes):
        expected = sklearn_metrics.average_precision_score(labels[:, c], probabilities[:, c].numpy())
        assert row.ap == pytest.approx(expected, rel=1e-12)
        assert row.positives == labels[:, c].sum()
        chosen = probabilities[:, c].numpy() > 0.5
        assert row.recall == pytest.approx((chosen & labels[:, c]).sum() / labels[:, c].sum())

    assert (report.mode, report.ap_definition, report.difficult) == ("paper", "plain", "negative")  # by its recipe
    assert report.details["seed of training"] == "17"
    assert report.details["epoch selected on"] == "the test images themselves (D19)"
    assert report.details["protocol"] == "ten-crop, scale 40 -> 36 and 60 -> 54, mean of probabilities"
    assert (report.device, report.dtype) == ("cpu", "float32")
    found = json.loads((out / "evaluation.json").read_text())
    assert found["protocol"] == {"views": "ten-crop", "scales": [[40, 36], [60, 54]], "fuse": "probabilities"}
    for definition in metrics.AP_DEFINITIONS:
        ap = [
            loop_ap(probabilities[:, c].tolist(), [1 if x else -1 for x in labels[:, c]], definition, None)
            for c in range(3)
        ]
        assert list(found["ap"][definition].values()) == pytest.approx(ap, rel=1e-12)
        assert found["mean_ap"][definition] == pytest.approx(sum(ap) / 3, rel=1e-12)
    assert found["thresholds"]["tuned_on"].startswith("8 images: 0.4 of the training images, held out")
    assert set(found["thresholds"]["probability"]) == set(NAMES)
    text = (out / "report.md").read_text()
    assert "| model |" in text and "| baseline |" in text and "![Attention](attention.png)" in text
    assert text.startswith(capsys.readouterr().out.split("\nreport in")[0].rstrip("\n")[:200])


def test_what_cannot_be_quantized_is_not_evaluated(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, graph = torch.randn(3, 5), torch.rand(3, 3)
    for name, width, interaction in (("loose", 4, False), ("narrow", 3, True)):
        body = build_backbone("small-cnn", width=width)
        model = SSGRL(body, words, graph, class_names=NAMES, joint_dim=8, interaction=interaction)
        model.preprocessing = {"image_size": 36, "resize": 40}
        model.save_pretrained(tmp_path / name)

    def refused(model: Path, *more: str) -> str:
        out = tmp_path / "out"
        assert cli.main(command(place, out, "--dtype=fp8", "--attention=0", *more, model=str(model))) == 1
        assert not out.exists()
        return capsys.readouterr().err

    assert "--dtype fp8 needs a --model with a graph, SSGRL's, got a GlobalPooling" in refused(place / "pooling")
    assert "got interaction=False" in refused(tmp_path / "loose")
    assert "narrow cannot be quantized to fp8" in (text := refused(tmp_path / "narrow"))
    assert "multiple of 16" in text
    assert "narrow cannot be" in refused(place / "ssgrl", f"--baseline={tmp_path / 'narrow'}")
    assert "it has no graph_propagation_fp8" in refused(place / "ssgrl", "--backend=cpu")
    loose = f"--baseline={tmp_path / 'loose'}"  # which has no graph either
    assert cli.main(command(place, tmp_path / "fp8", loose, "--attention=0", "--dtype=fp8")) == 0
    assert metrics.Report.from_json(tmp_path / "fp8" / "baseline.json").dtype == "bfloat16"


def test_a_config_file_and_a_report_as_baseline(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"run_dir: x\nmodel: {{lr: 1}}\ndata: {{kind: coco, root: {place / 'set'}}}\n"
    )
    given = ["evaluate", f"--model={place / 'pooling'}", "--no-progress", "--config", str(tmp_path / "recipe.yaml")]
    assert cli.main([*given, f"--output={tmp_path / 'a'}", "--ap-definition=plain", "--difficult=negative"]) == 0
    assert not (tmp_path / "a" / "attention.png").exists()  # pooling has no attention
    report = metrics.Report.from_json(tmp_path / "a" / "report.json")
    assert report.details["protocol"] == "single, scale 40 -> 36" and report.mode == "none (no SSGRL head)"
    baseline = f"--baseline={tmp_path / 'a' / 'report.json'}"
    assert cli.main(command(place, tmp_path / "b", baseline, "--attention=0", "--dtype=bfloat16")) == 0
    assert metrics.Report.from_json(tmp_path / "b" / "report.json").dtype == "bfloat16"
    assert not (tmp_path / "b" / "baseline.json").exists()
    pooling = f"--baseline={place / 'pooling'}"  # which has no graph, and stays in bfloat16
    assert cli.main(command(place, tmp_path / "fp8", pooling, "--attention=0", "--dtype=fp8")) == 0
    eight, sixteen = (metrics.Report.from_json(tmp_path / name / "report.json") for name in ("fp8", "b"))
    assert (eight.dtype, "reference" in eight.backend) == ("bfloat16 and fp8", True)
    assert (
        eight.mean_ap == pytest.approx(sixteen.mean_ap, abs=0.1) and eight.details["model"] == sixteen.details["model"]
    )
    assert metrics.Report.from_json(tmp_path / "fp8" / "baseline.json").dtype == "bfloat16"
    assert "Every class beside the baseline" in (tmp_path / "b" / "report.md").read_text()
    assert cli.main([*given, f"--output={tmp_path / 'c'}", "--config", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: no such file, and no recipe of that name" in capsys.readouterr().err
    (tmp_path / "wrong.yaml").write_text("data: {colour: red}\n")
    assert cli.main([*given, f"--output={tmp_path / 'c'}", "--config", str(tmp_path / "wrong.yaml")]) == 1
    assert "unknown option" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_a_sentence(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(command(place, tmp_path / "a", "--attention=0")) == 0
    first = (tmp_path / "a" / "report.json").read_text()
    cases = {
        "holds a report.json: name another --output or give --overwrite": ["a"],
        "--thresholds tune needs held-out images": ["b", "--thresholds=tune"],
        "held-out images that are not the test images": ["b", "--thresholds=tune", "--data.val_split=test_split"],
        "the data [boat, bird, stool] (3)": ["b", '--data.classes=["boat", "bird", "stool"]'],
        "the order counts as well": ["b", '--data.classes=["bird", "boat", "chair"]'],
        "ten-crop needs resize above size": ["b", "--views=ten-crop", "--scales", "4"],
    }
    with monkeypatch.context() as patch:  # before a runtime converts the network, which may take minutes
        patch.setattr(predictor, "with_runtime", lambda *_, **__: pytest.fail("the network was prepared"))
        for sentence, (output, *more) in cases.items():
            capsys.readouterr()
            assert cli.main(command(place, tmp_path / output, *more)) == 1, sentence
            assert sentence in capsys.readouterr().err
    assert (tmp_path / "a" / "report.json").read_text() == first and not (tmp_path / "b").exists()
    assert cli.main(command(place, tmp_path / "a", "--attention=0", "--overwrite", "--scales", "48")) == 0
    assert (tmp_path / "a" / "report.json").read_text() != first


@pytest.mark.filterwarnings("error::RuntimeWarning")  # NumPy's, of a mean of nothing
@pytest.mark.parametrize("left", [[1, 2], []])
def test_classes_without_positives_are_left_out_and_named(place: Path, tmp_path: Path, left: list[int]) -> None:
    """Of the test images' categories only these are left: AP is undefined for the others, and for all when none is."""
    root = tmp_path / "set"
    make_coco(root, ("train", "val"))
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] in left]
    path.write_text(json.dumps(content))
    given = [f"--model={place / 'ssgrl'}", "--data.kind=coco", f"--data.root={root}", f"--baseline={place / 'pooling'}"]
    tuned = ["--thresholds=tune", "--data.val_split=train", "--attention=1", "--no-progress"]
    assert cli.main(["evaluate", *given, *tuned, f"--output={tmp_path / 'out'}"]) == 0
    report = metrics.Report.from_json(tmp_path / "out" / "report.json")
    assert report.without_positives == [name for number, name in enumerate(NAMES, 1) if number not in left]
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    defined = [value for value in found["ap"]["voc2010"].values() if value is not None]
    assert len(defined) == len(left)
    expected = sum(defined) / len(defined) if defined else None
    assert found["mean_ap"]["voc2010"] == (pytest.approx(expected) if defined else None)
    assert "have no positives" in (tmp_path / "out" / "report.md").read_text()


def test_thresholds_tuned_on_evaluated_images_are_called_optimistic(place: Path, tmp_path: Path) -> None:
    given = ["--thresholds=tune", "--data.val_fraction=0.4", "--data.test_split=train", "--attention=0"]
    assert cli.main(command(place, tmp_path / "out", *given)) == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["thresholds"]["tuned_on"].endswith("; 8 of them are evaluated as well, so this is optimistic")


def test_the_rule_for_difficult_objects_reaches_the_report(place: Path, tmp_path: Path) -> None:
    make_voc(tmp_path / "kit", "2007", ("trainval", "test"))
    changed = tmp_path / "kit" / "VOC2007" / "Annotations" / "000021.xml"
    text = changed.read_text()
    assert text.count("<difficult>0") == 2
    changed.write_text(text.replace("<difficult>0", "<difficult>1"))
    reports = {}
    for rule in ("ignore", "positive", "negative"):
        data = ["--data.kind=voc", f"--data.root={tmp_path / 'kit'}", f"--data.classes={json.dumps(NAMES)}"]
        options = [f"--model={place / 'ssgrl'}", f"--output={tmp_path / rule}", f"--difficult={rule}", "--attention=0"]
        assert cli.main(["evaluate", *options, *data, "--no-progress"]) == 0
        reports[rule] = metrics.Report.from_json(tmp_path / rule / "report.json")
    assert [report.difficult_entries for report in reports.values()] == [2, 2, 2]
    assert [sum(row.ignored for row in report.classes) for report in reports.values()] == [2, 0, 0]
    positives = [sum(row.positives for row in report.classes) for report in reports.values()]
    assert positives[1] == positives[0] + 2 == positives[2] + 2
