"""Bundles: what is saved comes back, how it is written, and bundles on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_bundles import IMAGES, NAMES, C, make_model
from torch import Tensor, nn

from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone, from_pretrained
from ssgrl_fast.models import bundle as checkpoints
from ssgrl_fast.models.bundle import CONFIG, WEIGHTS


class Own(nn.Module):
    """A backbone of the user's own, with a weight that two layers share."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 4, stride=4)
        self.second = nn.Conv2d(channels, channels, 1)
        self.third = nn.Conv2d(channels, channels, 1)
        self.third.weight = self.second.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.third(self.second(self.first(images)).relu())


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    "options", [{}, {"mode": "official", "steps": 2, "out_dim": None}, {"interaction": False, "out_dim": None}]
)
def test_round_trip(options: dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**options)
    model.save_pretrained(tmp_path / "new" / "bundle")
    other = SSGRL.from_pretrained(tmp_path / "new" / "bundle")
    assert torch.equal(other(IMAGES), model(IMAGES)) and not other.training
    assert other.class_names == NAMES and other.head.options == model.head.options
    assert torch.equal(other.head.words, model.head.words) and torch.equal(other.head.adjacency, model.head.adjacency)
    assert (other.backbone.mean, other.backbone.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert other.backbone.name == "small-cnn" and other.backbone.options == {"pool": False, "width": 4}
    assert sorted(path.name for path in (tmp_path / "new" / "bundle").iterdir()) == ["README.md", CONFIG, WEIGHTS]
    assert type(from_pretrained(str(tmp_path / "new" / "bundle"))) is SSGRL


def test_baseline_round_trip(tmp_path: Path) -> None:
    model = GlobalPoolingClassifier(build_backbone("resnet18", pretrained=False), C, class_names=NAMES).eval()
    model.save_pretrained(tmp_path)
    other = GlobalPoolingClassifier.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 96, 64)
    assert torch.equal(other(images), model(images)) and other.class_names == NAMES
    assert isinstance(other.backbone.pool, nn.AvgPool2d)
    assert type(from_pretrained(tmp_path)) is GlobalPoolingClassifier


def test_config_says_what_the_model_is(bundle: Path) -> None:
    config = json.loads((bundle / CONFIG).read_text(encoding="utf-8"))
    assert config["kind"] == "SSGRL" and config["format_version"] == 1 and config["class_names"] == NAMES
    assert config["head"] == {
        **{
            "joint_dim": 7,
            "attention_dim": 3,
            "out_dim": 9,
            "steps": 3,
            "mode": "paper",
            "gate_bias": None,
            "decoupling": "semantic",
        },
        "interaction": True,
    }
    assert config["backbone"]["name"] == "small-cnn" and config["normalisation"]["mean"] == [0.1, 0.2, 0.3]
    weights = (bundle / WEIGHTS).read_bytes()
    assert config["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert {"head.words", "head.adjacency", "head.graph_propagation.weight_zr"} <= set(load_file(bundle / WEIGHTS))


def test_saving_twice_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "again")
    for name in (WEIGHTS, CONFIG):
        assert (bundle / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_dtype_is_kept(tmp_path: Path) -> None:
    model = make_model()
    model.head.double()
    model.save_pretrained(tmp_path)
    other = SSGRL.from_pretrained(tmp_path)
    assert {name: t.dtype for name, t in other.state_dict().items()} == {
        n: t.dtype for n, t in model.state_dict().items()
    }
    features = model.backbone(IMAGES).double()
    assert torch.equal(other.head(features), model.head(features))


def test_channels_last_weights(tmp_path: Path) -> None:
    model = make_model().to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path)
    assert torch.allclose(SSGRL.from_pretrained(tmp_path)(IMAGES), model(IMAGES), atol=1e-5)


def test_backend_is_chosen_at_loading(bundle: Path) -> None:
    other = SSGRL.from_pretrained(bundle, backend="reference")
    assert other.head.backend == "reference" and torch.allclose(other(IMAGES), make_model()(IMAGES), atol=1e-5)


def test_own_backbone_is_passed_at_loading(tmp_path: Path) -> None:
    model = make_model(backbone=Own())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"config.json.*a backbone of the user's own \(.*Own\): pass .* backbone="):
        SSGRL.from_pretrained(tmp_path)
    own = Own()
    other = SSGRL.from_pretrained(tmp_path, backbone=own)
    assert torch.equal(other(IMAGES), model(IMAGES))
    assert other.backbone.net is own and own.third.weight is own.second.weight


def test_own_backbone_that_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    make_model(backbone=Own()).save_pretrained(tmp_path)
    pairs = [
        (Own(7), r"of another shape: backbone.net.first.weight \[6, 3, 4, 4\] \(expected \[7, 3, 4, 4\]"),
        (nn.Conv2d(3, 6, 4), "2 missing: backbone.net.weight, backbone.net.bias"),
    ]
    for own, match in pairs:
        before = {name: t.clone() for name, t in own.state_dict().items()}
        with pytest.raises(ValueError, match=match):
            SSGRL.from_pretrained(tmp_path, backbone=own)
        assert all(torch.equal(t, before[name]) for name, t in own.state_dict().items()) and own.training


def test_given_backbone_must_be_normalised_alike(bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone= has mean \(0.5, 0.5, 0.5\).*the bundle mean \[0.1, 0.2, 0.3\]"):
        SSGRL.from_pretrained(bundle, backbone=build_backbone("small-cnn", width=4))


def test_other_kind_is_refused(bundle: Path) -> None:
    with pytest.raises(
        ValueError, match="config.json: holds a SSGRL, not a GlobalPoolingClassifier: read it with SSGRL"
    ):
        GlobalPoolingClassifier.from_pretrained(bundle)


# writing


def test_bundle_is_replaced_and_other_files_stay(bundle: Path) -> None:
    (bundle / "README.md").write_text("mine")
    other = make_model(seed=1, mode="official")
    other.save_pretrained(bundle)
    assert torch.equal(SSGRL.from_pretrained(bundle)(IMAGES), other(IMAGES))
    assert (bundle / "README.md").read_text() == "mine"
    assert sorted(path.name for path in bundle.iterdir()) == ["README.md", CONFIG, WEIGHTS]


@pytest.mark.parametrize("broken", ["to_bytes", "json.dumps"])
def test_failed_save_leaves_the_earlier_bundle(broken: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def full_disc(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    module, _, function = broken.rpartition(".")
    monkeypatch.setattr(json if module else checkpoints, function, full_disc)
    with pytest.raises(OSError, match="No space left"):
        make_model(seed=1).save_pretrained(bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_save_interrupted_between_its_two_renames_is_noticed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed, original = [], os.replace

    def once(source: Path, target: Path) -> None:
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        original(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        make_model(seed=1).save_pretrained(bundle)
    with pytest.raises(ValueError, match="model.safetensors: not the file that config.json was written with"):
        SSGRL.from_pretrained(bundle)


def test_path_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_model().save_pretrained(tmp_path / "file")


# repositories


def test_hub_repository(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub itself, offline: two commits of a repository lie in a cache folder of its layout."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commits = {"main": "1" * 40, "v1": "2" * 40}
    for seed, (branch, commit) in enumerate(commits.items()):
        repository = tmp_path / "cache" / "models--someone--a-model"
        model = make_model()
        with torch.no_grad():
            model.head.words.add_(seed)
        model.save_pretrained(repository / "snapshots" / commit)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    first = make_model()
    cache = {"cache_dir": tmp_path / "cache"}
    for read in (SSGRL.from_pretrained, from_pretrained):
        assert torch.equal(read("someone/a-model", **cache).head.words, first.head.words)
        for wanted in (
            read("someone/a-model", revision="v1", **cache),
            read("someone/a-model@v1", **cache),
            read("someone/a-model", revision=commits["v1"], **cache),
        ):
            assert torch.equal(wanted.head.words, first.head.words + 1)
        with pytest.raises(FileNotFoundError, match="someone/a-model@v2: no such folder, and no such Hub repository"):
            read("someone/a-model@v2", **cache)
        with pytest.raises(ValueError, match="someone/a-model@v1 names a revision, and revision='v2' is another"):
            read("someone/a-model@v1", revision="v2", **cache)
        with pytest.raises(ValueError, match="is a folder on this machine: revision and cache_dir are for Hub"):
            read(bundle, revision="v1")
        with pytest.raises(FileNotFoundError, match="someone/other: no such folder, and no such Hub repository"):
            read("someone/other", **cache)


@pytest.mark.parametrize("name", ["a/b/c", "./bundle", "runs/../x", "bundle", "bundle@v1"])
def test_paths_are_not_taken_for_repositories(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder; a bundle is"):
        SSGRL.from_pretrained(name)


def test_other_classes_another_order_and_other_words_are_refused(bundle: Path) -> None:
    words = SSGRL.from_pretrained(bundle, class_names=NAMES).head.words
    SSGRL.from_pretrained(bundle, words=words.double())
    with pytest.raises(ValueError, match="in another order than class_names: at 0 it has"):
        SSGRL.from_pretrained(bundle, class_names=NAMES[::-1])
    with pytest.raises(ValueError, match=rf"it lacks zebra and has {NAMES[-1]} besides"):
        SSGRL.from_pretrained(bundle, class_names=[*NAMES[:-1], "zebra"])
    with pytest.raises(ValueError, match="made with other words than words=: row 1 differs most"):
        SSGRL.from_pretrained(bundle, words=words + torch.tensor([[0.0], [2.0], [1.0]]))
    with pytest.raises(ValueError, match="was made with words"):
        SSGRL.from_pretrained(bundle, words=words[:, :-1])


def test_the_card_names_classes_in_order_and_a_users_own_stays(bundle: Path) -> None:
    card = (bundle / "README.md").read_text(encoding="utf-8")
    assert f"Classes, in the order of the logits: {', '.join(NAMES)}." in card
    assert "| mode | paper |" in card and "library_name: ssgrl_fast" in card
    model = SSGRL.from_pretrained(bundle)
    (bundle / "README.md").write_text("my own", encoding="utf-8")
    model.save_pretrained(bundle)
    assert (bundle / "README.md").read_text(encoding="utf-8") == "my own"


def test_push_to_hub_uploads_a_bundle(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[str] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            calls.append(f"token {token}")

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            calls.append(f"create {repo_id} private={private} exist_ok={exist_ok}")

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            shutil.copytree(folder_path, tmp_path / "remote")
            return f"commit to {repo_id}"

    monkeypatch.setattr(hub, "HfApi", Api)
    model = SSGRL.from_pretrained(bundle)
    assert model.push_to_hub("someone/a-model", private=True, token="t") == "commit to someone/a-model"
    assert calls == ["token t", "create someone/a-model private=True exist_ok=True"]
    again = SSGRL.from_pretrained(tmp_path / "remote")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    with pytest.raises(ValueError, match="repo_id must be owner/model, got 'model'"):
        model.push_to_hub("model")
    with pytest.raises(ValueError, match="repo_id must be owner/model, got 'someone/a-model@v1'"):
        model.push_to_hub("someone/a-model@v1")
