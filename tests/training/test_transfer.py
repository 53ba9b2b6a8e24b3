"""Weights of a model over other classes as a start: what is carried over, mapped, left, refused, and a whole fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from published_network import published_network
from small_runs import fit_command
from small_sets import NAMES, make_coco
from torch import Tensor, nn

from ssgrl_fast import cli
from ssgrl_fast.labels.class_names import read_class_names
from ssgrl_fast.models import GlobalPoolingClassifier, build_backbone
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.training.checkpoint import TRAINING_ENTRY
from ssgrl_fast.training.transfer import COCO_TO_VOC, OtherWords, transfer_weights

SEVEN = ["person", "tv", "boat", "couch", "bird", "kite", "chair"]
FIVE = ["bird", "sofa", "cow", "tvmonitor", "person"]
ROWS = {"head.classifier.weight_c", "head.classifier.bias_c"}
CONSTANTS = {"head.words", "head.adjacency"}
SHARED = {"bird": "bird", "sofa": "couch", "tvmonitor": "tv", "person": "person"}


def make(names: list[str], seed: int, *, width: int = 4, word_dim: int = 6, **options: Any) -> SSGRL:
    """A small model; the word vector of a name is the same whatever the other classes are."""
    torch.manual_seed(seed)
    vectors = [
        torch.randn(word_dim, generator=torch.Generator().manual_seed(sum(map(ord, COCO_TO_VOC.get(name, name)))))
        for name in names
    ]
    body = build_backbone("small-cnn", width=width)
    graph = torch.rand(len(names), len(names))
    return SSGRL(body, torch.stack(vectors), graph, class_names=names, **{"joint_dim": 8, **options})


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def bundle(model: SSGRL | GlobalPoolingClassifier, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_class_free_weights_are_carried_over_to_the_bit_and_the_rest_is_named(tmp_path: Path) -> None:
    source, model = make(SEVEN, 1), make(FIVE, 2)
    before, given = copied(model), source.state_dict()
    done = transfer_weights(model, bundle(source, tmp_path / "seven"))
    after = model.state_dict()
    free = set(after) - ROWS - CONSTANTS
    assert {name for name in free if torch.equal(after[name], given[name])} == free == set(done.carried)
    learned = {name for name in free if "running" not in name and "num_batches" not in name and "norm" not in name}
    assert any(not torch.equal(before[name], given[name]) for name in learned)  # they were others before
    assert all(torch.equal(after[name], before[name]) for name in ROWS | CONSTANTS)
    assert done.mapped == {} and done.new_classes == FIVE and done.unused_classes == SEVEN
    assert set(done.left) == ROWS | CONSTANTS and done.numbers == sum(given[name].numel() for name in free)
    said = done.describe()
    assert "class rows newly drawn: bird, sofa, cow, tvmonitor, person" in said
    assert all(name in said for name in ROWS | CONSTANTS)
    assert done.summary() == f"{tmp_path / 'seven'} (a bundle): {len(free)} tensors, 5 class rows new"
    assert json.loads(json.dumps(done.to_dict()))["facts"]["sha256"]


def test_rows_of_classes_known_to_both_follow_their_names(tmp_path: Path) -> None:
    source, model = make(SEVEN, 1), make(FIVE, 2)
    before, given = copied(model), source.state_dict()
    done = transfer_weights(model, bundle(source, tmp_path / "seven"), class_rows="by_name")
    assert done.mapped == SHARED and done.new_classes == ["cow"] and done.unused_classes == ["boat", "kite", "chair"]
    for name in ROWS:
        for row, label in enumerate(FIVE):
            expected = before[name][row] if label == "cow" else given[name][SEVEN.index(SHARED[label])]
            assert torch.equal(model.state_dict()[name][row], expected), (name, label)
            assert label == "cow" or not torch.equal(before[name][row], expected)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in CONSTANTS)
    assert "sofa from couch" in done.describe() and "newly drawn for 1 of 5 classes" in done.describe()

    without = transfer_weights(make(FIVE, 2), tmp_path / "seven", class_rows="by_name", aliases={"kite": "cow"})
    assert without.mapped == {"bird": "bird", "cow": "kite", "person": "person"}


def test_the_same_classes_in_another_order_give_the_same_logits(tmp_path: Path) -> None:
    source, model = make(SEVEN, 1).eval(), make(SEVEN[::-1], 2).eval()
    model.head.adjacency.copy_(source.head.adjacency.flip(0, 1))
    done = transfer_weights(model, bundle(source, tmp_path / "seven"), class_rows="by_name")
    assert done.new_classes == [] and set(done.left) == CONSTANTS
    assert done.notes == ["word vectors of the 7 classes of one name agree"]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images).flip(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bundle", "safetensors", "wrapped", "mapping", "fit"])
def test_every_kind_of_source_gives_the_same_model(kind: str, tmp_path: Path) -> None:
    source, model = make(SEVEN, 1), make(FIVE, 2)
    weights, names = source.state_dict(), None if kind in ("bundle", "fit") else SEVEN
    given: Any = tmp_path / "weights.pt"
    if kind == "bundle":
        given = bundle(source, tmp_path / "seven")
    elif kind == "safetensors":
        given = bundle(source, tmp_path / "seven") / "model.safetensors"
    elif kind == "wrapped":
        torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, given)
    elif kind == "mapping":
        given = weights
    else:
        built = {"mode": "paper", "decoupling": "semantic", "interaction": True}
        entry = {"class_names": SEVEN, "words": source.head.words, "adjacency": None, "architecture": built}
        content = {f"model.{name}": value for name, value in weights.items()}
        torch.save({"epoch": 4, "state_dict": content, TRAINING_ENTRY: entry}, given)
    transfer_weights(model, given, class_rows="by_name", source_classes=names)
    other = make(FIVE, 2)
    transfer_weights(other, bundle(source, tmp_path / "again"), class_rows="by_name")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert not torch.equal(make(FIVE, 2).head.classifier.weight_o, model.head.classifier.weight_o)


def test_a_published_checkpoint_is_a_source(tmp_path: Path) -> None:
    network = published_network()
    path = tmp_path / "model_best.pth.tar"
    torch.save({"epoch": 3, "state_dict": network.state_dict()}, path)
    channels, word_dim = 24, network.word_features.shape[1]
    sizes = {"joint_dim": network.word_semantic.fc_1.out_features, "mode": "official"}
    body = nn.Sequential(nn.Conv2d(3, channels, 4, stride=4), nn.ReLU())
    body.out_channels = channels
    model = SSGRL(body, torch.randn(2, word_dim), torch.rand(2, 2), class_names=["a", "b"], **sizes)
    count = network.classifiers.weight.shape[0]
    names = [f"class {number}" for number in range(count - 1)] + ["b"]
    with pytest.raises(ValueError, match=r"names no classes, .*give source_classes"):
        transfer_weights(model, path, class_rows="by_name")
    done = transfer_weights(model, path, class_rows="by_name", source_classes=names)
    assert done.mapped == {"b": "b"} and done.kind == "a file of weights, SSGRL as published"
    assert torch.equal(model.head.semantic_decoupling.weight_u, network.word_semantic.fc_1.weight.float())
    assert torch.equal(model.head.classifier.weight_c[1], network.classifiers.weight[count - 1].float())
    assert torch.equal(model.backbone.net[0].weight, network.resnet_101[0].weight.float())
    paper = SSGRL(body, torch.randn(2, word_dim), torch.rand(2, 2), joint_dim=sizes["joint_dim"])
    with pytest.raises(ValueError, match="was trained with mode='official', the model has 'paper'"):
        transfer_weights(paper, path)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "word size": ({"word_dim": 9}, {}, r"semantic_decoupling.weight_v \[8, 9\] \(expected \[8, 6\]\)"),
    "backbone": ({"width": 6}, {}, r"backbone.net.0.weight \[6, 3, 3, 3\] \(expected \[4, 3, 3, 3\]\)"),
    "mode": ({"mode": "official"}, {}, "trained with mode='official', the model has 'paper'"),
    "decoupling": ({"decoupling": "average"}, {}, "trained with decoupling='average', the model has 'semantic'"),
    "interaction": ({"interaction": False}, {}, "trained with interaction=False, the model has True"),
    "several": (
        {},
        {"aliases": {"kite": "cow", "boat": "cow"}},
        "give class 'cow' to several of its classes: boat, ki",
    ),
    "names": ({}, {"source_classes": SEVEN[:6]}, "has rows of 7 classes, source_classes are 6"),
    "order": ({}, {"source_classes": SEVEN[::-1]}, "source_classes are others, or in another order"),
    "choice": ({}, {"class_rows": "some"}, "class_rows must be one of 'new', 'by_name', got 'some'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_a_sentence_and_changes_nothing(case: str, tmp_path: Path) -> None:
    made, options, sentence = REFUSED[case]
    joint = {"joint_dim": 8} if "decoupling" not in made else {}
    folder = bundle(make(SEVEN, 1, **{**joint, **made}), tmp_path / "seven")
    model = make(FIVE, 2)
    before = copied(model)
    with pytest.raises(ValueError, match=sentence):
        transfer_weights(model, folder, **{"class_rows": "by_name", **options})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_baseline_and_other_kinds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = GlobalPoolingClassifier(build_backbone("small-cnn", width=4), 7, class_names=SEVEN)
    model = GlobalPoolingClassifier(build_backbone("small-cnn", width=4), 5, class_names=FIVE)
    folder = bundle(source, tmp_path / "seven")
    done = transfer_weights(model, folder, class_rows="by_name")
    assert done.mapped == SHARED and torch.equal(model.head.linear.weight[0], source.head.linear.weight[4])
    assert all(
        torch.equal(a, b) for a, b in zip(model.backbone.parameters(), source.backbone.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="holds a GlobalPoolingClassifier, not a SSGRL"):
        transfer_weights(make(FIVE, 2), folder)
    with pytest.raises(TypeError, match="model must be an SSGRL or its baseline, got Linear"):
        transfer_weights(nn.Linear(2, 2), folder)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        transfer_weights(model, tmp_path / "none")
    source.backbone.mean = (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match=r"normalised by mean \[0.1, 0.2, 0.3\]"):
        transfer_weights(model, bundle(source, tmp_path / "dark"))


def test_other_word_vectors_of_one_class_are_warned_of(tmp_path: Path) -> None:
    folder = bundle(make(SEVEN, 1), tmp_path / "seven")
    model = make(FIVE, 2)
    model.head.words[FIVE.index("bird")] += 1
    with pytest.warns(OtherWords, match=r"1 of the 2 classes of one name differ \(bird\)"):
        done = transfer_weights(model, folder)
    assert "were trained with other vectors" in done.describe()


def test_cocos_names_reach_all_twenty_of_vocs(shared_data: Path) -> None:
    coco = read_class_names(next((shared_data / "coco128").rglob("instances_*.json")))
    voc = read_class_names(shared_data / "voc_labels" / "classes.json")
    assert len(coco) == 80 and len(voc) == 20
    reached = {name for name in voc if name in coco} | {COCO_TO_VOC[name] for name in coco if name in COCO_TO_VOC}
    assert reached == set(voc) and not set(COCO_TO_VOC) & set(voc)


# ---- fit -------------------------------------------------------------------------------------------------------------

THERE = ["chair", "dog", "bird", "ship", "cow"]


def fit(place: Path, *more: str) -> int:
    own = {"model.words": place / "words.txt", "model.lr": 0.0}  # nothing that is carried over changes
    return cli.main([*fit_command(place / "set", place / "runs", **own), *more])


def test_a_fit_that_starts_from_other_classes_says_so_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning", reason="the training extra is not installed")
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])
    make_coco(tmp_path / "set", ("train", "val"))
    source = make(THERE, 3, width=32)
    words = make([*NAMES, "ship"], 0, width=1).head.words.tolist()
    lines = (f"{name} {' '.join(map(str, row))}\n" for name, row in zip([*NAMES, "ship"], words, strict=True))
    (tmp_path / "words.txt").write_text("".join(lines))
    folder = bundle(source, tmp_path / "five")
    assert fit(tmp_path, "--model.transfer_from", str(folder), "--model.backbone_weights", "weights.pt") == 1
    assert "give no backbone_weights beside it" in capsys.readouterr().err
    options = ["--model.transfer_from", str(folder), "--model.transfer_classes", "by_name"]
    assert fit(tmp_path, *options, "--model.transfer_aliases", '{"ship": "boat"}') == 0

    run = tmp_path / "runs" / "version_0"
    record = json.loads((run / "transfer.json").read_text())
    assert record["mapped"] == {"boat": "ship", "bird": "bird", "chair": "chair"} and not record["new_classes"]
    assert record["unused_classes"] == ["dog", "cow"] and set(record["left"]) == CONSTANTS
    model, given = SSGRL.from_pretrained(run / "bundle"), source.state_dict()
    assert model.class_names == NAMES
    for name, value in model.state_dict().items():
        if name in ROWS:
            assert torch.equal(value, given[name][[3, 2, 0]]), name
        elif name not in CONSTANTS:
            assert torch.equal(value, given[name]), name
    assert model.head.adjacency[0, 1] != given["head.adjacency"][0, 1]
    assert model.recipe is not None and model.recipe["weights from"] == record["summary"]

    # test reads the record from the checkpoint, evaluate from the bundle
    data = [f"--data.root={tmp_path / 'set'}", "--data.kind=coco"]
    plain = ["--model.backbone=small-cnn", "--model.joint_dim=8", "--model.freeze=all", "--data.image_size=32"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert cli.main(["test", *plain, *data, *quiet, f"--run_dir={tmp_path / 'runs'}"]) == 0
    assert json.loads((run / "report_test.json").read_text())["details"]["weights from"] == record["summary"]
    evaluated = ["evaluate", f"--model={run / 'bundle'}", f"--output={tmp_path / 'out'}", "--attention=0"]
    assert cli.main([*evaluated, *data, "--no-progress"]) == 0
    tested, again = (json.loads(path.read_text()) for path in (run / "report_test.json", tmp_path / "out/report.json"))
    for name in ("images_sha256", "labels_sha256"):  # one set of images, whichever verb looked at them
        assert tested[name] == again[name] and len(tested[name]) == 64
    table = (tmp_path / "out" / "report.md").read_text()
    assert "| model (pre) |" in table and "| model |" not in table.split("\n\n")[2]


def test_a_fit_on_its_own_is_no_pre_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="the training extra is not installed")
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])
    make_coco(tmp_path / "set", ("train", "val"))
    (tmp_path / "words.txt").write_text("".join(f"{name} 1 {number}\n" for number, name in enumerate(NAMES)))
    assert fit(tmp_path) == 0
    run = tmp_path / "runs" / "version_0"
    assert not (run / "transfer.json").exists()
    assert "weights from" not in (SSGRL.from_pretrained(run / "bundle").recipe or {})
