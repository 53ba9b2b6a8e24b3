"""Every command of the documentation: executed here, or named below with the reason; options of all are parsed."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from packaging_tree import ROOT

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
    "ssgrl-fast app": "serves until it is stopped; tests/inference run its page",
    "torchrun": "several machines; tests/training/test_distributed.py starts processes on one",
    "ssgrl-fast fit": "data that do not come with the package, or minutes; tests/cli and tests/training fit small sets",
    "ssgrl-fast test": "needs the fit above; the tutorial runs it",
    "ssgrl-fast train": "the tutorial runs it",
    "ssgrl-fast evaluate": "needs MS-COCO; tests/inference evaluate small sets",
    "ssgrl-fast ablate": "hours; tests/studies run it on few canvases",
    "ssgrl-fast compare": "minutes for each row; tests/studies run it on few photographs",
    "ssgrl-fast convert": "needs a checkpoint of the published code; tests/published make one",
    "ssgrl-fast plot-ap runs/photos/version_0/report_test.json": "needs the fit above; the tutorial runs it",
    "ssgrl-fast predict": "needs a bundle; the tutorial runs it",
    "ssgrl-fast export |": "a list of verbs",
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
            command = re.split(r"(?:^|\s+)#", line)[0].strip()
            found += [command] if command else []
    return found


ALL = [(page.name, command) for page in PAGES for command in commands(page)]
TUTORIAL = commands(ROOT / "docs" / "tutorial.md")
OURS = sorted({each for _, each in ALL if each.startswith("ssgrl-fast ") and "|" not in each} - {*TUTORIAL})


def test_every_command_is_run_or_named_with_a_reason() -> None:
    assert len(ALL) > 50 and len(OURS) > 30
    ran = {*RUN, *TUTORIAL}
    left = [command for _, command in ALL if command not in ran]
    assert [command for command in left if not any(command.startswith(start) for start in NOT_RUN)] == []
    assert [command for command in RUN if command not in {each for _, each in ALL}] == []
    assert [start for start in NOT_RUN if not any(command.startswith(start) for command in left)] == []


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


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory is an empty folder but for ``photos``, with one folder of images per class."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])
    for seed, name in enumerate(NAMES):
        make_images(tmp_path / "photos" / name, 12, seed)


@pytest.mark.thorough
@pytest.mark.usefixtures("photographs")
def test_the_tutorial_runs_from_an_empty_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(TUTORIAL) == 9 and "app" in TUTORIAL[-1]
    for command in TUTORIAL[:-1]:  # the last serves until it is stopped
        assert cli.main(shlex.split(command)[1:]) == 0, capfd.readouterr().err
    for name in ("ap.png", "attention.png", "scores.json", "maps", "model.pt2", "runs/photos/version_1/report_test.md"):
        assert (tmp_path / name).exists(), name
    (python,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "tutorial.md").read_text(), re.S | re.M)
    names: dict[str, Any] = {}
    exec(python, names)
    assert sorted(names["predictor"].class_names) == sorted(NAMES)
    table = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    shown = table[table.index("### A run folder") : table.index("## Test and predict")]
    run = tmp_path / "runs" / "photos" / "version_0"
    missing = [path.name for path in run.iterdir() if path.name.split(".out.")[0] not in shown]
    assert missing == []  # the page names every file of a run folder


@pytest.mark.thorough
@pytest.mark.usefixtures("photographs")
def test_commands_that_need_no_training_run(tmp_path: Path) -> None:
    for split in ("train", "test"):
        make_images(tmp_path / "cards" / split, 6, 0)
        for image in list((tmp_path / "cards" / split).glob("*.*")):
            objects = "".join(f"<object><name>{name}</name></object>" for name in NAMES[:2])
            image.with_suffix(".xml").write_text(f"<annotation>{objects}</annotation>")
    make_images(tmp_path / "PATH", 2, 0)
    first, second = sorted(path.name for path in (tmp_path / "PATH").glob("*.*"))
    (tmp_path / "PATH" / "labels.csv").write_text(f"file,labels,split\n{first},cat;dog,train\n{second},dog,train\n")
    for command in RUN:
        assert cli.main(shlex.split(command)[1:]) == 0, command


@pytest.mark.thorough
@pytest.mark.usefixtures("photographs")
def test_the_messages_of_the_page_on_troubles_are_those_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `ssgrl-fast (.+?)` \| (.+?) \|", text, flags=re.MULTILINE)
    assert len(rows) == 10
    for command, message in rows:
        assert cli.main(shlex.split(command)) in (1, 2), command
        assert message.partition("…")[0] in capsys.readouterr().err, command
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
