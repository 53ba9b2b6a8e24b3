"""``train``: from photographs to a report; recipes by name from any folder; logs off a terminal."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")

from small_runs import write_words
from small_sets import NAMES, make_images, make_voc

from ssgrl_fast import cli
from ssgrl_fast.cli.recipes import find_recipe, recipes, title, with_recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; pytest's own arguments are none of ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])
    return tmp_path


def test_a_devkit_is_trained_compared_and_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lightning.pytorch")  # studies of other tests silence it
    make_voc(tmp_path / "set", "2007", ("trainval", "test"))
    write_words(tmp_path / "words.txt", [*NAMES])
    command = ["train", "set/VOC2007", "--quick", "--epochs", "2", "--backbone", "small-cnn", "--compare", "--out", "r"]
    assert cli.main([*command, "--words", "words.txt"]) == 0
    shown = capfd.readouterr()
    assert "training          16" in shown.out and "test               6" in shown.out
    assert "set/VOC2007: voc, 26 images, 3 classes" in shown.out
    assert "20% of the images that are left choose the epoch" in shown.out
    assert re.search(r"^mAP [\d.]+ % over 3 classes in 6 images; baseline [\d.]+ %$", shown.out, re.MULTILINE)
    assert (
        "| class |" not in shown.out
        and "| class |" in (tmp_path / "r" / "version_0" / "report" / "report.md").read_text()
    )
    run = tmp_path / "r" / "version_0"
    written = {path.name for path in (run / "report").iterdir()}
    assert {"report.json", "report.md", "ap.png", "attention.png", "worst.png", "baseline.json"} <= written
    assert json.loads((run / "report" / "report.json").read_text())["images"] == 6
    assert f"ssgrl-fast app --model {Path('r') / 'version_0' / 'bundle'}" in shown.out
    said = [record.getMessage() for record in caplog.records]
    lines = [line for line in said if line.startswith("epoch ")]  # SSGRL's two, pooling's four
    assert [line.partition(":")[0] for line in lines][:2] == ["epoch 1 of 2", "epoch 2 of 2"] and len(lines) == 6
    assert all("loss " in line and "validation mAP " in line and line.endswith(" s") for line in lines)
    noise = ("Tip:", "litlogger", "FLOPs", "deprecated", "TPU", "batch/s", "Epoch 0")
    assert [word for word in noise if word in shown.out + shown.err + "\n".join(said)] == []
    # the recipe that it wrote gives the same model again
    assert cli.main(["fit", "--config", "r/train.yaml"]) == 0
    logs = [(tmp_path / "r" / name / "metrics.csv").read_text() for name in ("version_0", "version_1")]
    assert logs[0] == logs[1]


def test_names_without_vectors_end_in_numbered_ways_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("boat", "qqxzz")):
        make_images(tmp_path / "set" / name, 6, seed)
    write_words(tmp_path / "words.txt", ["boat", "ship"])
    assert cli.main(["train", "set", "--words", "words.txt", "--dry-run"]) == 1
    error = capsys.readouterr().err
    assert (
        "'qqxzz'" in error and "\n1. spell" in error and "\n2. give other vectors" in error and "\n3. rename" in error
    )
    given = ["--words", "words.txt", "--compound", "qqxzz=boat+ship", "--dry-run"]
    assert cli.main(["train", "set", *given]) == 0
    assert "set: one folder per class, 12 images, 2 classes" in capsys.readouterr().out
    assert "qqxzz:\n    - boat\n    - ship" in (tmp_path / "runs" / "set" / "train.yaml").read_text()
    assert cli.main(["train"]) == 2 and "DATA is missing: a folder in Pascal VOC" in capsys.readouterr().err


def test_mistakes_of_a_first_run_end_in_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("cat", "dog")):
        make_images(tmp_path / "photos" / "animals" / name, 2, number)
    make_images(tmp_path / "heap", 2, 3)
    make_images(tmp_path / "lines" / "cat", 2, 4)
    (tmp_path / "lines" / "cat" / "000001.jpg").rename(tmp_path / "lines" / "cat" / "new\nline.jpg")
    make_images(tmp_path / "alone" / "cat", 9, 5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "commas.csv").write_text(
        "file;labels\n" + "".join(f"{n}.jpg;cat,dog\n{n}b.jpg;dog|cat\n" for n in range(5))
    )
    cases = {
        "photos": "no known data set here, but photos/animals holds one (folders): give that folder",
        "heap": "no known data set here, it holds .jpg (2); needed is a folder in Pascal VOC format",
        "heap/000001.jpg": "no known data set here, a file .jpg; needed is",
        "empty": "no known data set here, the folder is empty; needed is",
        "lines": "the name 'cat/new\\nline.jpg' holds a control character: rename this file or folder",
        "photos/animals": "4 images are too few for 5 folds, of which one is set aside as a test",
        "alone": "at least two classes need a training image each, got 1 of cat",
        "commas.csv": "those of fit, whose recipe train writes: ssgrl-fast fit --config photos --data.kind",
    }
    for data, sentence in cases.items():
        assert cli.main(["train", data, "--dry-run"]) == 1, data
        error = capsys.readouterr().err
        assert sentence in error and "Traceback" not in error, (data, error)


def test_a_failed_run_leaves_what_serves_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssgrl_fast.training.task import SSGRLTask

    for seed, name in enumerate(NAMES):
        make_images(tmp_path / "set" / name, 8, seed)
    write_words(tmp_path / "words.txt", [*NAMES])
    out, step = tmp_path / "runs" / "set", SSGRLTask.training_step
    train = ["train", "set", "--quick", "--epochs", "1", "--backbone", "small-cnn", "--words"]

    def there() -> set[str]:
        return {path.name for path in out.iterdir()} - {"features"} if out.is_dir() else set()

    def fail(*_: object) -> None:
        raise ValueError("no step was made")

    def stop(*given: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)  # type: ignore[arg-type]

    # before there is a recipe: nothing, and what was there stays
    assert cli.main([*train, "none.txt"]) == 1 and not out.exists()
    for name in ("notes.txt", "labels.csv"):
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        assert cli.main([*train, "none.txt"]) == 1 and name in there()
        (out / name).unlink()
    # before the first step: the recipe with its table, which fit takes
    with monkeypatch.context() as patch:
        patch.setattr(SSGRLTask, "training_step", fail)
        assert cli.main([*train, "words.txt"]) == 1 and there() == {"labels.csv", "train.yaml"}
        patch.setattr(SSGRLTask, "training_step", stop)
        capsys.readouterr()
        assert cli.main([*train, "words.txt"]) == 143
        assert "run ssgrl-fast fit --config runs/set/train.yaml again" in capsys.readouterr().err
    for left in out.glob("version_*"):  # stopped after a step, it keeps its log
        assert (left / "metrics.csv").is_file()
        shutil.rmtree(left)
    assert cli.main(["fit", "--config", "runs/set/train.yaml"]) == 0
    # a trial that fails: an earlier run's files are none of its own
    run = out / "version_0"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert run / "config.yaml" in before
    with monkeypatch.context() as patch:
        patch.setattr(SSGRLTask, "training_step", fail)
        assert cli.main(["fit", "--config", "runs/set/train.yaml", "--trainer.fast_dev_run", "true"]) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.thorough
@pytest.mark.parametrize("table", [False, True], ids=["labels beside", "labels.parquet"])
def test_shards_are_trained_and_reported(table: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    make_images(tmp_path / "images", 24, 0)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    labels = [[NAMES[number % 2]] + [NAMES[2]] * (number % 3 == 0) for number in range(len(names))]
    (tmp_path / "set").mkdir()
    for part in (0, 1):
        with tarfile.open(tmp_path / "set" / f"{part}.tar", "w") as archive:
            for name, words in list(zip(names, labels, strict=True))[part::2]:
                archive.add(tmp_path / "images" / name, name)
                (tmp_path / "one.txt").write_text("\n".join(words))
                if not table:
                    archive.add(tmp_path / "one.txt", name.replace(".jpg", ".txt"))
    if table:
        parquet.write_table(pyarrow.table({"file": names, "labels": labels}), tmp_path / "set" / "labels.parquet")
    write_words(tmp_path / "words.txt", [*NAMES])
    command = ["train", "set", "--quick", "--epochs", "1", "--backbone", "small-cnn", "--words", "words.txt"]
    assert cli.main([*command, "--out", "r"]) == 0
    assert "set: shards, 24 images, 3 classes" in capsys.readouterr().out
    report = tmp_path / "r" / "version_0" / "report"
    assert {"ap.png", "attention.png", "worst.png"} <= {path.name for path in report.iterdir()}


def test_recipes_are_found_by_name_from_any_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(recipes()) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert find_recipe("digits") == find_recipe("digits.yaml") == find_recipe("configs/digits.yaml")
    assert with_recipes(["--config=digits", "-c", "coco"])[0].endswith("configs/digits.yaml")
    with pytest.raises(FileNotFoundError, match="--config digts: no such file.*there is digits"):
        find_recipe("digts")
    assert cli.main(["recipes"]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert all(title(path) in listed[name] and len(title(path)) > 20 for name, path in recipes().items())
    assert cli.main(["recipes", "--copy", "photos"]) == 0
    assert (tmp_path / "photos.yaml").read_text() == (ROOT / "configs" / "photos.yaml").read_text()
    assert find_recipe("photos.yaml") == Path("photos.yaml")  # the copy of the current folder goes first
    assert cli.main(["recipes", "--copy", "photos"]) == 1
    assert "photos.yaml is here already" in capsys.readouterr().err


LIGHT = [["--help"], ["--version"], ["recipes"], ["train", "--help"], ["demo", "-h"], []]


@pytest.mark.parametrize("arguments", LIGHT)
def test_the_console_script_answers_without_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['ssgrl-fast', *{arguments!r}]; import ssgrl_fast_cli; status = ssgrl_fast_cli.main();"
        "sys.exit('torch was imported' if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if arguments else 2), done.stderr


def as_module(arguments: list[str]) -> tuple[int, str, set[str]]:
    """Status, output and imported modules of ``python -m ssgrl_fast``."""
    command = [sys.executable, "-X", "importtime", "-m", "ssgrl_fast", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    return done.returncode, done.stdout, imported


@pytest.mark.parametrize("arguments", LIGHT)
def test_python_m_answers_without_torch(arguments: list[str]) -> None:
    status, _, imported = as_module(arguments)
    assert status == (0 if arguments else 2)
    assert "ssgrl_fast.cli" in imported and [name for name in imported if name.split(".")[0] == "torch"] == []


@pytest.mark.thorough
@pytest.mark.parametrize("verb", ["fit", "test"])
def test_help_without_what_it_does_not_show_is_the_whole_help(verb: str) -> None:
    code = f"from ssgrl_fast import cli; cli.main(['{verb}', '--help'])"  # as a function it imports everything
    whole = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    status, shown, imported = as_module([verb, "--help"])
    assert status == 0 and shown == whole and "--trainer.accelerator" in shown and "--model.backbone" in shown
    slow = {"torch._dynamo.convert_frame", "torchmetrics.functional", "torchvision.models", "sympy"}
    assert "lightning.pytorch.cli" in imported and imported & slow == set()


def test_the_console_script_registers_the_operators_for_a_verb() -> None:
    code = (
        "import sys; sys.argv = ['ssgrl-fast', 'graph', '--help']; import ssgrl_fast_cli; ssgrl_fast_cli.main();"
        "import ssgrl_fast; sys.exit(0 if ssgrl_fast.SSGRL else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_devices_that_are_not_there_are_a_sentence() -> None:
    import torch

    from ssgrl_fast._utils.pytorch import check_device

    assert check_device("predict", "cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="predict: device must be cpu, cuda or cuda:0, .* got 'gpu'"):
        check_device("predict", "gpu")
    with pytest.raises(ValueError, match="predict: device 'cuda:99' is not there: this torch .* finds"):
        check_device("predict", "cuda:99")
