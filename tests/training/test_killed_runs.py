"""fit, evaluate, predict and train, killed at random moments: every file is whole, and what goes on ends in the same
numbers."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")

from killed_runs import Chaos
from PIL import Image
from small_runs import write_words

from ssgrl_fast.data.digits import CLASS_NAMES
from ssgrl_fast.models import from_pretrained
from ssgrl_fast.training.checkpoint import read_checkpoint
from ssgrl_fast.training.runs import newest_run

FIT = ["--model.backbone", "small-cnn", "--model.freeze", "none", "--model.joint_dim", 16, "--model.lr", "1e-3"]
FIT += ["--model.plateau_patience", 0, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
DIGITS = ["--data.kind", "digits", "--data.counts", "[32,16,16]"]


def digests(folder: Path) -> dict[Path, str]:
    """SHA-256 of every file in a folder."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def whole(folder: Path) -> None:
    """Read every file in a folder that bears its final name."""
    for path in folder.rglob("*"):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.suffix == ".ckpt":
            assert read_checkpoint(path)["state_dict"]
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv":
            rows = list(csv.reader(path.open(newline="")))
            assert all(len(row) == len(rows[0]) for row in rows), path
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        if path.name == "config.json":
            from_pretrained(path.parent)


def no_leftovers(folder: Path) -> None:
    assert not list(folder.rglob(".*.partial")), "a finished command leaves no temporary file of a killed one"


def fit_chaos(folder: Path, words: str) -> Chaos:
    runs = folder / "fit"
    command = ["fit", *FIT, *DIGITS, "--model.words", words, "--trainer.max_epochs", 3, "--run_dir", runs]
    earlier: dict[Path, str] = {}

    def check() -> None:
        whole(runs)
        assert {path: digest for path, digest in digests(runs / "version_0").items() if path in earlier} == earlier

    def resume() -> list[object]:
        started = (newest_run(runs) / "checkpoints" / "last.ckpt").is_file() if runs.is_dir() else False
        return [*command, "--ckpt_path", "last"] if started and newest_run(runs).name != "version_0" else command

    def result() -> object:
        run = newest_run(runs)
        with open(run / "metrics.csv", newline="") as file:
            rows = [{name: value for name, value in row.items() if "time" not in name} for row in csv.DictReader(file)]
        no_leftovers(run)
        return digests(run / "bundle")[run / "bundle" / "model.safetensors"], rows

    chaos = Chaos(command, resume, check, result, folder / "fit.log")
    chaos.prepare()
    earlier |= digests(runs / "version_0")
    return chaos


def evaluate_chaos(folder: Path, bundle: Path) -> Chaos:
    report = folder / "report"
    command = [
        "evaluate",
        "--model",
        bundle,
        *DIGITS,
        "--output",
        report,
        "--attention",
        2,
        "--overwrite",
        "--no-progress",
    ]

    def result() -> object:
        no_leftovers(report)
        return json.loads((report / "report.json").read_text(encoding="utf-8"))["classes"], sorted(digests(report))

    return Chaos(command, lambda: command, lambda: whole(report), result, folder / "evaluate.log")


def predict_chaos(folder: Path, bundle: Path) -> Chaos:
    images, output = folder / "images", folder / "rows" / "labels.jsonl"
    images.mkdir()
    for number in range(40):
        draw = random.Random(number)
        Image.frombytes("RGB", (64, 64), draw.randbytes(64 * 64 * 3)).save(images / f"{number:03}.png")
    command = ["predict", images, "--model", bundle, "--output", output, "--resume", "--no-progress", "--batch-size", 2]

    def check() -> None:
        lines = output.read_bytes().splitlines(keepends=True) if output.exists() else []
        assert all(isinstance(json.loads(line), dict) for line in lines if line.endswith(b"\n"))
        assert all(line.endswith(b"\n") for line in lines[:-1])

    def result() -> object:
        content = output.read_bytes()
        output.unlink()  # the next one starts anew
        return content

    return Chaos(command, lambda: command, check, result, folder / "predict.log")


def train_chaos(folder: Path) -> Chaos:
    photos, out = folder / "photos", folder / "trained"
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        for number in range(12):
            draw = random.Random(f"{name} {number}")
            level = draw.randrange(60) + (120 if name == "cat" else 0)
            Image.new("RGB", (32, 32), (level, 40, 200 - level)).save(photos / name / f"{number}.png")
    words = write_words(folder / "photos.txt", ["cat", "dog"])
    command = ["train", photos, "--out", out, "--backbone", "small-cnn", "--words", words, "--epochs", 2, "--quick"]

    def result() -> object:
        run = newest_run(out)
        no_leftovers(run)
        return json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))["classes"]

    return Chaos(command, lambda: command, lambda: whole(out), result, folder / "train.log")


@pytest.mark.parametrize(
    "kills", [pytest.param(20, marks=pytest.mark.thorough), pytest.param(200, marks=pytest.mark.long)]
)
def test_kills_at_random_moments_lose_and_change_nothing(kills: int, tmp_path: Path) -> None:
    draw, words = random.Random(kills), write_words(tmp_path / "words.txt", CLASS_NAMES)
    fit = fit_chaos(tmp_path, words)
    bundle = tmp_path / "fit" / "version_0" / "bundle"
    commands = {"fit": fit, "evaluate": evaluate_chaos(tmp_path, bundle), "predict": predict_chaos(tmp_path, bundle)}
    commands["train"] = train_chaos(tmp_path)
    for name, chaos in commands.items():
        if name != "fit":
            chaos.prepare()
    counts = dict.fromkeys(commands, 0)
    while sum(counts.values()) < kills:
        name = min(counts, key=lambda each: counts[each])
        counts[name] += commands[name].strike(draw)
    print(f"kills and resumes {counts}, differences 0")
    assert min(counts.values()) >= kills // len(counts)
