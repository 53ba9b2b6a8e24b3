"""Bundles: what does not fit or is damaged is refused by the name of its file."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_bundles import IMAGES, NAMES, make_model
from torch import Tensor

from ssgrl_fast.models import SSGRL, from_pretrained
from ssgrl_fast.models.bundle import CONFIG, TRAINED_ON, WEIGHTS
from ssgrl_fast.models.bundle_config import read_config


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_config(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json as by hand, without its digest."""
    config = json.loads((bundle / CONFIG).read_text(encoding="utf-8"))
    del config["digest"]
    change(config)
    (bundle / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def edit_weights(bundle: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors and keep the SHA-256 in step."""
    tensors = load_file(bundle / WEIGHTS)
    change(tensors)
    save_file(tensors, bundle / WEIGHTS)
    digest = hashlib.sha256((bundle / WEIGHTS).read_bytes()).hexdigest()
    edit_config(bundle, lambda config: config["weights"].update(sha256=digest))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("format"), "not the configuration of an ssgrl_fast bundle"),
        (lambda c: c.update(format_version=2), "bundle format 2, this version of ssgrl_fast reads format 1"),
        (lambda c: c.pop("class_names"), "it has no entry 'class_names', expected a list"),
        (lambda c: c.update(class_names=NAMES[:2]), "2 class_names for 3 classes"),
        (lambda c: c["backbone"].update(name="resnet19", options={"pool": True}), "unknown backbone 'resnet19'"),
        (lambda c: c["backbone"]["options"].update(depth=3), "depth"),
        (lambda c: c["backbone"].pop("options"), "it has no entry 'backbone.options'"),
        (lambda c: c["head"].update(mode="other"), "mode must be one of"),
        (lambda c: c["head"].update(heads=3), "heads"),
        (lambda c: c["weights"].pop("sha256"), "it has no entry 'weights.sha256', expected 64 hex digits"),
        (lambda c: c.pop("head"), "it has no entry 'head'"),
        (lambda c: c.update(attention_grid={"64x64": [[1, 2, 3], [1, 2, 10**12]]}), "'attention_grid' must hold"),
        (lambda c: c.update(attention_grid={"9" * 5000 + "x1": [[1, 2, 3]] * 2}), "'attention_grid' must hold"),
        (lambda c: c.update(attention_grid=["x" * 10**6]), "'attention_grid' must hold .{250,350}$"),
    ],
)
def test_config_that_does_not_describe_a_model(change: Any, match: str, bundle: Path) -> None:
    edit_config(bundle, change)
    with pytest.raises(ValueError, match=f"config.json: .*{match}"):
        SSGRL.from_pretrained(bundle)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("head.words"), "model.safetensors has no tensor 'head.words'"),
        (lambda t: t["head.words"].fill_(float("nan")), "words must be finite"),
        (lambda t: t.pop("head.classifier.bias_c"), "model.safetensors: .*tensors 1 missing: head.classifier.bias_c"),
        (lambda t: t.update(extra=torch.zeros(1)), "model.safetensors: .*tensors 1 unknown: extra"),
        (
            lambda t: t.update({"head.classifier.bias_c": torch.zeros(4)}),
            r"model.safetensors: .*1 of another shape: head.classifier.bias_c \[4\] \(expected \[3\]\)",
        ),
    ],
)
def test_weights_that_do_not_fit(change: Any, match: str, bundle: Path) -> None:
    edit_weights(bundle, change)
    with pytest.raises(ValueError, match=match):
        SSGRL.from_pretrained(bundle)


def test_long_lists_of_faults_are_cut(bundle: Path) -> None:
    edit_config(bundle, lambda config: config["backbone"]["options"].update(width=5))
    with pytest.raises(ValueError, match=r"of another shape: .* and \d+ more"):
        SSGRL.from_pretrained(bundle)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
@pytest.mark.parametrize("left", [0, 5, 0.5, 0.99])
def test_truncated_file(name: str, left: float, bundle: Path) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: left if isinstance(left, int) else int(len(content) * left)])
    with pytest.raises(ValueError, match=f"{name}: not .*readable"):
        SSGRL.from_pretrained(bundle)


def test_flipped_bit(bundle: Path) -> None:
    content = bytearray((bundle / WEIGHTS).read_bytes())
    content[-100] ^= 1
    (bundle / WEIGHTS).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model.safetensors: not the file that config.json was written with \(SHA-256"
    ):
        SSGRL.from_pretrained(bundle)


def test_foreign_files(bundle: Path) -> None:
    torch.save({"a": torch.zeros(3)}, bundle / WEIGHTS)
    with pytest.raises(ValueError, match="model.safetensors: not a readable safetensors file"):
        SSGRL.from_pretrained(bundle)
    (bundle / CONFIG).write_text('{"architectures": ["Bert"]}')
    with pytest.raises(ValueError, match="config.json: not the configuration of an ssgrl_fast bundle"):
        SSGRL.from_pretrained(bundle)


def test_unknown_kind(bundle: Path) -> None:
    edit_config(bundle, lambda config: config.update(kind="Other"))
    with pytest.raises(ValueError, match="unknown kind 'Other', known are SSGRL, GlobalPoolingClassifier"):
        from_pretrained(bundle)


def test_missing_files(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        SSGRL.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json: no such folder"):
        SSGRL.from_pretrained(bundle / CONFIG)
    (bundle / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors: no such file"):
        SSGRL.from_pretrained(bundle)
    (bundle / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match="config.json: no such file"):
        SSGRL.from_pretrained(bundle)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("preprocessing", {"image_size": "32"}, "entry 'preprocessing' must be sizes in pixels"),
        ("preprocessing", {"image_size": 0}, "entry 'preprocessing' must be sizes in pixels"),
        ("recipe", ["adam"], "entry 'recipe' must be text by name"),
        ("recipe", {"seed": 0}, "entry 'recipe' must be text by name"),
    ],
)
def test_preprocessing_and_recipe_are_checked(bundle: Path, entry: str, value: object, message: str) -> None:
    edit_config(bundle, lambda config: config.update({entry: value}))
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        from_pretrained(bundle)


def test_a_new_model_does_not_inherit_the_training_images_of_the_one_before(bundle: Path) -> None:
    (bundle / TRAINED_ON).write_bytes(b"marks of the earlier model")
    make_model().save_pretrained(bundle)
    assert not (bundle / TRAINED_ON).exists()


HOSTILE = [None, True, -1, 0, 10**30, 1e308, float("nan"), "../../x", [], {}, [[[]]], {"a": {}}, [1e9] * 3, "x" * 10**5]


def entries(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value in nested objects and lists."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, each in inside for place in entries(each, (*path, key))]


def test_any_value_at_any_place_is_refused_or_leaves_the_scores(bundle: Path) -> None:
    whole = json.loads((bundle / CONFIG).read_text(encoding="utf-8"))
    del whole["digest"]  # which would refuse them all
    scores = SSGRL.from_pretrained(bundle)(IMAGES)
    assert len(entries(whole)) > 40
    refused = 0
    for place in entries(whole):
        for value in HOSTILE[2:] if place[-1] == "pool" else HOSTILE:  # true is as good there as false
            config = json.loads(json.dumps(whole))
            holder = config
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = value
            (bundle / CONFIG).write_text(json.dumps(config), encoding="utf-8")
            try:
                model = from_pretrained(bundle)
            except ValueError as error:
                assert str(error).startswith(f"{bundle}/"), (place, value, error)
                assert len(str(error)) < 1000
                refused += 1
            else:
                assert torch.equal(model(IMAGES), scores), (place, value)
    assert refused > 300


def test_no_flipped_bit_of_the_configuration_passes_unseen(bundle: Path) -> None:
    """Another letter in a class's name, another digit of the image size: all but the six letters of 'digest' itself."""
    whole = (bundle / CONFIG).read_bytes()
    config, key = json.loads(whole), whole.index(b'"digest"')
    config.pop("digest")
    draw, seen = random.Random(0), 0
    for _ in range(400):
        place = draw.choice([*range(key), *range(key + 8, len(whole))])
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        (bundle / CONFIG).write_bytes(damaged)
        try:
            found = read_config(bundle)
        except ValueError as error:
            seen += "damaged, or changed after it was written" in str(error)
        else:
            assert found == config, "a blank between two entries, nothing else"
    assert seen > 100, "what the checks of types and sizes alone would let through"


def test_an_enormous_network_takes_no_memory(bundle: Path) -> None:
    """The first convolutions alone would have 9.7 GB, the second network 100 GB."""
    for entry, options in (("backbone", {"width": 16384}), ("head", {"joint_dim": 65536, "attention_dim": 65536})):
        whole = (bundle / CONFIG).read_text(encoding="utf-8")
        changes = {"options": {"pool": False, **options}} if entry == "backbone" else options
        edit_config(bundle, lambda config, entry=entry, changes=changes: config[entry].update(changes))  # type: ignore[misc]
        with pytest.raises(ValueError, match=r"model\.safetensors: does not fit the model; .* of another shape"):
            SSGRL.from_pretrained(bundle)
        (bundle / CONFIG).write_text(whole, encoding="utf-8")


def test_configurations_that_are_too_large_or_too_deep(bundle: Path) -> None:
    (bundle / CONFIG).write_text("[" * 10**6, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: not readable as JSON .* nested too deeply"):
        SSGRL.from_pretrained(bundle)
    os.truncate(bundle / CONFIG, 2**40)  # a sparse file
    with pytest.raises(ValueError, match=r"config\.json: has 1099511627776 bytes, 67108864 at most are read"):
        SSGRL.from_pretrained(bundle)


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    model = make_model()
    model.preprocessing = {"image_size": 10**6}
    with pytest.raises(ValueError, match=r"new: this model cannot be saved: .*'preprocessing' .* from 1 to 8192"):
        model.save_pretrained(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_integers_in_the_place_of_weights(bundle: Path) -> None:
    edit_weights(bundle, lambda t: t.update({"head.classifier.bias_c": torch.zeros(3, dtype=torch.int64)}))
    with pytest.raises(ValueError, match=r"1 of another kind of number: head\.classifier\.bias_c torch\.int64"):
        SSGRL.from_pretrained(bundle)


SAVES = """
import sys, torch
from ssgrl_fast.models.backbones import build_backbone
from ssgrl_fast.models.ssgrl import SSGRL
values = torch.full((3, 8), float(sys.argv[2]))
model = SSGRL(build_backbone("small-cnn"), values, torch.eye(3), class_names=["a", "b", "c"], joint_dim=8)
if sys.argv[3] == "killed":
    import os, signal
    from ssgrl_fast.models import bundle
    bundle._digest = lambda part: os.kill(os.getpid(), signal.SIGKILL)
for _ in range(int(sys.argv[3]) if sys.argv[3].isdigit() else 1):
    model.save_pretrained(sys.argv[1])
"""


@pytest.mark.thorough
def test_saves_that_are_killed_or_at_once_leave_one_whole_bundle(tmp_path: Path) -> None:
    def start(value: int, how: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SAVES, str(tmp_path), str(value), how])

    assert start(1, "1").wait() == 0
    assert start(2, "killed").wait() == -signal.SIGKILL
    assert float(SSGRL.from_pretrained(tmp_path).head.words.mean()) == 1.0
    assert {path.name for path in tmp_path.glob(".*")} == {".model.safetensors.partial"}
    assert start(2, "1").wait() == 0
    assert not list(tmp_path.glob(".*"))
    for name in (
        f".config.json.{socket.gethostname()}.{os.getpid()}.partial",
        ".model.safetensors.elsewhere.1.partial",
    ):
        (tmp_path / name).touch()  # of a living process, and of another machine, today
    assert start(2, "1").wait() == 0
    assert len(list(tmp_path.glob(".*"))) == 2
    os.utime(tmp_path / ".model.safetensors.elsewhere.1.partial", (0, 0))
    os.rename(
        tmp_path / f".config.json.{socket.gethostname()}.{os.getpid()}.partial",
        tmp_path / f".config.json.{socket.gethostname()}.{2**22 + 1}.partial",
    )
    assert [process.wait() for process in [start(value, "20") for value in (3, 4)]] == [0, 0]
    assert float(SSGRL.from_pretrained(tmp_path).head.words.mean()) in (3.0, 4.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
