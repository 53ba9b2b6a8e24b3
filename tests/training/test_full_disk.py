"""Writes that fail midway, by a limit that the system itself sets on a file's size: the last good file survives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="limits on a file's size are set through POSIX")
pytest.importorskip("lightning", reason="the training extra is not installed")

SAVES = """
import resource, signal, sys
from pathlib import Path
import torch
from ssgrl_fast import graph, words
from ssgrl_fast._utils.files import write_text
from ssgrl_fast.data import visual_genome
from ssgrl_fast.metrics import evaluate
from ssgrl_fast.models import model_card
from ssgrl_fast.models.backbones import build_backbone
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.training.checkpoint import AtomicCheckpointIO
from ssgrl_fast.inference import comp1
from ssgrl_fast.inference.figures import ap_chart, save_figure

root, names = Path(sys.argv[1]), [f"class {number}" for number in range(80)]

def checkpoint(folder, values):
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": values}}, folder / "last.ckpt")

def bundle(folder, values):
    SSGRL(build_backbone("small-cnn"), values, values, class_names=names, joint_dim=16).save_pretrained(folder)

def safetensors(folder, values):
    graph.save(folder / "graph.safetensors", values, names)

def npz(folder, values):
    graph.save(folder / "graph.npz", values, names)

def npy(folder, values):
    words.save(folder / "words.npy", values, names)

def results(folder, values):
    scores = {f"2008_{number:06d}": values[0, :1] for number in range(1000)}
    comp1.write_comp1(folder, ["boat"], scores)

def table(folder, values):
    folder.mkdir(exist_ok=True)
    visual_genome._write(folder, ["boat"], [(f"{number}.jpg", [], f"split {values[0, 0]}") for number in range(1000)])

def card(folder, values):
    folder.mkdir(exist_ok=True)
    config = {"kind": "SSGRL", "class_names": [f"{number} {values[0, 0]}" for number in range(3000)]}
    config |= {"normalisation": {"mean": [0.5], "std": [0.5]}, "backbone": {"name": "small-cnn"}}
    model_card.write_card(folder, config)

def report(folder, values):
    ids = [f"image {number}" for number in range(80)]
    evaluate(values, torch.eye(80, dtype=torch.int8), names, details={"value": values[0, 0]}, ids=ids).to_json(
        folder / "report.json"
    )

def picture(folder, values):
    save_figure(ap_chart(names, values[0].tolist()), folder / "ap.png")

def text(folder, values):
    write_text(folder / "report.md", f"| {values[0, 0]} |" * 2000)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is then an error, as on a full disc
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
for save in (checkpoint, bundle, safetensors, npz, npy, results, table, card, report, picture, text):
    folder = root / save.__name__
    save(folder, torch.full((80, 80), 0.25))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    said = "nothing"
    try:
        save(folder, torch.full((80, 80), 0.5))
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save(folder, torch.full((80, 80), 0.5))
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    replaced = after.keys() == before.keys() and after != before
    print(save.__name__, "kept" if kept else "damaged", replaced, said, sep="|")
"""


@pytest.mark.thorough
def test_a_write_that_fails_midway_leaves_the_last_good_files(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SAVES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = {name: rest for name, *rest in (line.split("|") for line in done.stdout.splitlines())}
    files = {
        "checkpoint": "last.ckpt",
        "bundle": "model.safetensors",
        "safetensors": "graph.safetensors",
        "npz": "graph.npz",
        "npy": "words.npy",
        "results": "comp1_cls_test_boat.txt",
        "table": "labels.csv",
        "card": "README.md",
        "report": "report.json",
        "picture": "ap.png",
        "text": "report.md",
    }
    assert set(found) == set(files)
    for name, file in files.items():
        state, replaced, said = found[name]
        assert (state, replaced) == ("kept", "True"), name
        assert said.startswith("OSError: ") and f"{tmp_path / name / file}: could not be written" in said, said
