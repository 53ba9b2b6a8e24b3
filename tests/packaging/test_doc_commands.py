"""Every command of the documentation: executed here, or named below with the reason; options of all are parsed.

They are executed with the wheel alone, without compiled modules, in processes of its own that start in an empty folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from packaging_tree import ROOT, python, run

pytest.importorskip("lightning", reason="the training extra is not installed")

import jsonargparse
from small_sets import NAMES, make_images

from ssgrl_fast import cli

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# run by a test below, in a folder with what they need
RUN = (
    'ssgrl-fast words glove-6b-50d --names ace king "traffic light" --out vectors.npy',
    "ssgrl-fast graph --voc cards --split train --out cards.safetensors",
    "ssgrl-fast graph --inspect cards.safetensors",
    "ssgrl-fast graph --labels PATH/labels.csv --out graph.safetensors",
    "ssgrl-fast env",
)
# run by a test below, in this order, beside the tutorial's bundle; PATH and cards are made there
AFTER = (
    "ssgrl-fast fit --config configs/photos.yaml --data.root cards",
    "ssgrl-fast test --config configs/photos.yaml --data.root cards",
    "ssgrl-fast plot-ap runs/photos/version_0/report_test.json --out ap.png",
    "ssgrl-fast predict --model runs/photos/version_0/bundle photos/ --output scores.json --overlays maps/",
    "ssgrl-fast fit --config photos --data.root PATH",
    "ssgrl-fast fit --config configs/photos.yaml --data.kind csv --data.root PATH",
    "ssgrl-fast predict --model BUNDLE PHOTOS… --output scores.json --overlays DIR",
    "ssgrl-fast predict --model bundle photos/",
    "ssgrl-fast evaluate --model BUNDLE --config photos --data.root PATH --output float32",
)
# run by a test below, in this order
SHARDS = (
    "mkdir lists shards",
    "find images -name '*.jpg' | shuf | split -l 10000 -d -a 5 - lists/train-",
    "for list in lists/*; do tar -cf shards/${list#*/}.tar -T $list; done",
)
# start of a command -> why no test runs it as it stands
NOT_RUN = {
    "make ": "runs this test among others, or the demonstration (tests/studies/test_demo.py runs that)",
    "python3 -m venv": "makes an environment; tests/packaging/test_packaging_long.py makes one",
    "pip install": "fetches packages; tests/packaging/test_packaging_long.py installs the archives",
    "python -m ruff": "the linters and tests themselves",
    "python -m ssgrl_fast demo": "minutes; tests/studies/test_demo.py runs it",
    "ssgrl-fast demo": "minutes; tests/studies/test_demo.py runs it",
    "python -m benchmarks.": "minutes; tests/benchmarks runs every command on small shapes",
    "python examples/benchmark_shape.py": "minutes; tests/packaging/test_examples.py runs it on a small shape",
    "ssgrl-fast parity": "most of a minute, or a GPU; tests/packaging/test_gpu_check.py runs it on a small shape",
    "ssgrl-fast app": "serves until it is stopped; that of the tutorial is run and answers",
    "torchrun": "several machines; tests/training/test_distributed.py starts processes on one",
    "ssgrl-fast fit": "other data, a GPU or minutes; tests/cli and tests/training fit small sets",
    "ssgrl-fast test": "needs the digits, minutes; the tutorial runs test on a small set",
    "ssgrl-fast train": "the tutorial runs it on photos",
    "ssgrl-fast evaluate": "needs MS-COCO, the digits or int8; tests/inference evaluate small sets",
    "ssgrl-fast ablate": "hours; tests/studies run it on few canvases",
    "ssgrl-fast compare": "minutes for each row; tests/studies run it on few photographs",
    "ssgrl-fast convert": "needs a checkpoint of the published code; tests/published make one",
}


def commands(page: Path) -> list[str]:
    """The commands of a page, without comments, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    found: list[str] = []
    language = None
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        if line.startswith("```"):
            language = None if language is not None else line[3:].strip()
        elif language == "bash" or (language == "" and page.name in ("README.md",)):
            command = re.sub(r"\s+", " ", re.split(r"(?:^|\s+)#", line)[0]).strip()
            found += [command] if command else []
    return found


ALL = [(page.name, command) for page in PAGES for command in commands(page)]
TUTORIAL = commands(ROOT / "docs" / "tutorial.md")
OURS = sorted({each for _, each in ALL if each.startswith("ssgrl-fast ") and "|" not in each} - {*TUTORIAL})


def test_every_command_is_run_or_named_with_a_reason() -> None:
    assert len(ALL) > 50 and len(OURS) > 30
    ran = {*RUN, *AFTER, *SHARDS, *TUTORIAL}
    left = [command for _, command in ALL if command not in ran]
    assert [command for command in left if not any(command.startswith(start) for start in NOT_RUN)] == []
    assert [command for command in (*RUN, *AFTER, *SHARDS) if command not in {each for _, each in ALL}] == []
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in left)] == []


def test_shards_are_written_as_the_page_says(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 3, seed=0)
    subprocess.run(["bash", "-euc", "\n".join(SHARDS)], cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / "shards" / "train-00000.tar") as shard:
        assert sorted(shard.getnames()) == [f"images/{index:06d}.jpg" for index in range(3)]


class Parsed(Exception):
    """The parser took the arguments."""


@pytest.mark.thorough
@pytest.mark.parametrize("command", OURS)
def test_the_options_of_every_command_exist(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = shlex.split(re.sub(r"…|\.\.\. ", "", command))[1:]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])

    def parsing(original: Any) -> Any:
        def parse(self: Any, *given: Any, **options: Any) -> NoReturn:
            original(self, *given, **options)
            raise Parsed

        return parse

    for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
        monkeypatch.setattr(kind, "parse_args", parsing(kind.parse_args))
    monkeypatch.setattr(cli, "_is_expected", lambda error: not isinstance(error, Parsed))
    status = cli.main(arguments)
    assert "Parsed" in capsys.readouterr().err.splitlines()[-1], (status, command)


RUNNER = """
import contextlib, io, json, shlex, sys
import ssgrl_fast, ssgrl_fast_cli
site, *commands = sys.argv[1:]
assert ssgrl_fast.__file__.startswith(site) and ssgrl_fast_cli.__file__.startswith(site), ssgrl_fast.__file__
done = []
for command in commands:
    sys.argv = shlex.split(command)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = ssgrl_fast_cli.main()
    done.append((status, said.getvalue()))
print(json.dumps(done))
"""


def with_the_wheel(installed: Path, folder: Path, commands: Sequence[str]) -> list[tuple[int, str]]:
    """Exit status and standard error of each command, run in a folder by the console script of the installed wheel."""
    environ = {"PYTHONPATH": str(installed)}
    done = run([sys.executable, "-P", "-c", RUNNER, str(installed), *commands], folder, environ)
    assert done.returncode == 0, done.stderr
    statuses: list[tuple[int, str]] = [tuple(each) for each in json.loads(done.stdout.splitlines()[-1])]
    return statuses


def assert_run(installed: Path, folder: Path, commands: Sequence[str]) -> None:
    """Each of the commands ends with 0."""
    failed = dict(zip(commands, with_the_wheel(installed, folder, commands), strict=True))
    assert {command: done for command, done in failed.items() if done[0] != 0} == {}


def make_photographs(folder: Path) -> None:
    """``photos``, with one folder of images per class."""
    for seed, name in enumerate(NAMES):
        make_images(folder / "photos" / name, 12, seed)


def make_cards(root: Path) -> None:
    """A folder with annotations in the format of Pascal VOC beside the images, and the same as a table."""
    rows = ["file,labels,split"]
    for seed, split in enumerate(("train", "test"), start=10):  # other images than the tutorial's
        for index, labels in enumerate(make_images(root / split, 12, seed)):
            found = [NAMES[label] for label in labels]
            objects = "".join(f"<object><name>{name}</name></object>" for name in found)
            (root / split / f"{index:06d}.xml").write_text(f"<annotation>{objects}</annotation>")
            rows.append(f"{split}/{index:06d}.jpg,{';'.join(found)},{split}")
    (root / "labels.csv").write_text("\n".join([*rows, ""]))


@pytest.fixture(scope="module")
def tutorial(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tutorial, in which its commands were run; the last serves until it is stopped."""
    folder = tmp_path_factory.mktemp("tutorial")
    make_photographs(folder)
    assert len(TUTORIAL) == 9 and "app" in TUTORIAL[-1]
    assert_run(installed, folder, TUTORIAL[:-1])
    return folder


@pytest.mark.thorough
def test_the_tutorial_runs_from_an_empty_folder_with_the_wheel(tutorial: Path, installed: Path) -> None:
    for name in ("ap.png", "attention.png", "scores.json", "maps", "model.pt2", "runs/photos/version_1/report_test.md"):
        assert (tutorial / name).exists(), name
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.S | re.M)
    done = python(f"{block}\nprint(*sorted(predictor.class_names))", tutorial, {"PYTHONPATH": str(installed)})
    assert done.stdout.split() == sorted(NAMES), done.stderr
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    shown = table[table.index("### A run folder") : table.index("## Test and predict")]
    files = (tutorial / "runs" / "photos" / "version_0").iterdir()
    missing = [path.name for path in files if path.name.split(".out.")[0] not in shown]
    assert missing == []  # the page names every file of a run folder


@pytest.mark.thorough
def test_the_page_of_the_tutorial_answers(tutorial: Path, installed: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    command = [sys.executable, "-P", "-m", *TUTORIAL[-1].replace("ssgrl-fast", "ssgrl_fast").split()]
    environ = os.environ | {"PYTHONPATH": str(installed), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tutorial, env=environ, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            addresses = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in served.stdout)
            found = next(filter(None, addresses))
            with urllib.request.urlopen(found[0], timeout=60) as answer:
                assert "Labels of a photograph" in answer.read().decode("utf-8")
        finally:
            served.terminate()


@pytest.mark.thorough
def test_commands_on_a_trained_model_run(tutorial: Path, installed: Path, tmp_path: Path) -> None:
    bundle = tutorial / "runs" / "photos" / "version_0" / "bundle"
    for copy in ("BUNDLE", "bundle"):
        shutil.copytree(bundle, tmp_path / copy)
    make_photographs(tmp_path)
    shutil.copytree(tmp_path / "photos", tmp_path / "PHOTOS")
    for root in ("PATH", "cards"):
        make_cards(tmp_path / root)
    assert_run(installed, tmp_path, [command.replace("…", "") for command in AFTER])


@pytest.mark.thorough
def test_commands_that_need_no_training_run(installed: Path, tmp_path: Path) -> None:
    for root in ("PATH", "cards"):
        make_cards(tmp_path / root)
    assert_run(installed, tmp_path, RUN)


@pytest.mark.thorough
def test_the_messages_of_the_page_on_troubles_are_those_of_the_program(installed: Path, tmp_path: Path) -> None:
    make_photographs(tmp_path)
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(ssgrl-fast .+?)` \| (.+?) \|", text, flags=re.MULTILINE)
    assert len(rows) == 10
    done = with_the_wheel(installed, tmp_path, [command for command, _ in rows])
    for (command, message), (status, said) in zip(rows, done, strict=True):
        assert status in (1, 2) and message.partition("…")[0] in said, (command, said)
    assert not any((tmp_path / "runs").rglob("version_*"))  # none of them leaves a run


@pytest.mark.thorough
def test_the_python_of_the_page_on_extensions_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    first, second = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len([line for line in first.splitlines() if line]) == 7  # what a training takes in Python
    names: dict[str, Any] = {}
    exec(first, names)
    assert names["trainer"].current_epoch == 1 and names["task"].model is not None
    exec(second, names)
    assert names["data"].options.train_transform is names["augment"]
