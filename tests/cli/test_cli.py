"""The command line: verbs, exit statuses, sentences in place of tracebacks, and whole runs on the embedded digits."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ssgrl_fast import cli
from ssgrl_fast._version import __version__

VERBS = [
    "train",
    "fit",
    "validate",
    "test",
    "evaluate",
    "predict",
    "export",
    "graph",
    "words",
    "visual-genome",
    "comp1",
    "convert",
    "plot-ap",
    "plot-attention",
    "app",
    "compare",
    "ablate",
    "recipes",
    "env",
    "demo",
    "parity",
    "bench",
]
OVERLAYS = ("protocol_", "scale_")  # second and third files, tests/training/test_recipes.py
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
CONFIGS = [path for path in CONFIGS if not path.name.startswith(OVERLAYS)]
SMALL = [
    "--model.backbone=small-cnn",
    "--model.freeze=none",
    "--model.joint_dim=8",
    "--model.lr=1e-3",
    "--data.counts=[32,16,16]",
    "--data.batch_size=16",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def plain_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pytest's own arguments are none of ours."""
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("".join(f"{name} {index} {index % 3} 1.5\n" for index, name in enumerate(names)))
    return f"--model.words={path}"


def test_help_lists_every_verb_in_one_line_and_imports_no_lightning() -> None:
    script = (
        "import sys; from ssgrl_fast.cli import main; status = main(['--help']);"
        "heavy = {'lightning', 'jsonargparse', 'torchvision', 'matplotlib', 'sklearn', 'timm'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for verb in VERBS:
        matching = [line for line in lines if line.split()[:1] == [verb]]
        assert len(matching) == 1 and len(matching[0].split()) > 3, verb
    assert len(lines) <= len(VERBS) + 14  # the usage around them


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ssgrl_fast", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"ssgrl_fast {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["trian"], ["--verbose"], ["graph"], ["predict"], ["plot-ap", "--colour"]])
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert "usage: ssgrl-fast" in said or "there is no verb trian; the nearest is train" in said


@pytest.mark.parametrize(
    ("option", "text", "read", "quoted"),
    [
        ("classes", "[yes, no]", "[True, False]", '["yes", "no"]'),
        ("classes", "[cat, off, 7, null]", "['cat', False, 7, None]", '["yes", "no"]'),
        ("classes", "[0x1F, 1e3]", "[31, 1000.0]", '["yes", "no"]'),
        ("train_split", "no", "False", "no"),
    ],
)
def test_names_that_yaml_takes_for_other_things(
    option: str, text: str, read: str, quoted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a file; quoted as the sentence says, they are names."""
    (recipe := tmp_path / "own.yaml").write_text(f"data:\n  {option}: {text}\n")
    given = ["--config", str(recipe)] if option == "train_split" else [f"--data.{option}", text]
    for arguments in (given, ["--config", str(recipe)]):
        assert cli.main(["fit", *arguments]) == 2
        sentence = capsys.readouterr().err
        assert f"data.{option} was read as {read}: unquoted, YAML takes yes, no, on and off" in sentence
        assert (f"--data.{option} '{quoted}'" if "[" in quoted else 'data.train_split: "no"') in sentence
        assert sentence.count("\n") == 1
    assert cli.main(["fit", f"--data.{option}", quoted, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "  classes:\n  - 'yes'\n  - 'no'\n" in printed if option == "classes" else "  train_split: 'no'\n" in printed


def test_wrong_options_of_fit_are_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--model.learning_rate", "1"]) == 2
    assert "there is no option model.learning_rate; the nearest is " in (sentence := capsys.readouterr().err)
    assert sentence.count("\n") == 1
    assert cli.main(["fit", "--model.kind", "cnn"]) == 2
    assert "kind" in capsys.readouterr().err
    assert cli.main(["fit", "--config", "configs/nowhere.yaml"]) == 1
    assert "nowhere.yaml: no such file, and no recipe of that name" in capsys.readouterr().err


def test_an_expected_error_is_a_sentence_and_traceback_shows_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["test", "--run_dir", str(tmp_path / "none")]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("ssgrl-fast test: no checkpoint in a run under")
    for place in (0, 1, 3):
        assert cli.main([*command[:place], "--traceback", *command[place:]]) == 1
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_error_of_the_programs_own_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(argv: list[str]) -> int:
        raise AssertionError("cannot be")

    monkeypatch.setattr("ssgrl_fast.cli.env.main", broken)
    assert cli.main(["env"]) == 1
    assert "AssertionError: cannot be" in capsys.readouterr().err

    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssgrl_fast.cli.env.main", interrupted)
    assert cli.main(["env"]) == 130
    assert capsys.readouterr().err == "ssgrl-fast env: interrupted\n"


def test_bench_without_its_packages_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("benchmarks", "rich")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)  # as if it were not installed
    assert cli.main(["bench", "--help"]) == 1
    assert "benchmarks.run needs rich" in (sentence := capsys.readouterr().err) and "ssgrl_fast[bench]" in sentence


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert "usage:" in capsys.readouterr().out


def test_the_table_has_every_verb_and_every_verb_a_module() -> None:
    assert list(cli.VERBS) == VERBS
    folder = Path(cli.__file__).parent
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    assert modules == {verb.replace("-", "_") for verb in VERBS}


class Parsing(Exception):
    """Raised in place of parsing, with the parser."""


def without_help(parser: argparse.ArgumentParser, verb: str) -> list[str]:
    """The options of a parser, and of its sub-parser for the verb, that have no line of help."""
    missing = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            missing += without_help(action._name_parser_map[verb], verb)
        elif not action.help or not action.help.strip() or action.help == argparse.SUPPRESS:
            missing.append(" ".join(action.option_strings) or action.dest)
    return missing


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_a_line_of_help(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonargparse = pytest.importorskip("jsonargparse", reason="the training extra is not installed")

    def seen(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise Parsing(parser)

    for kind in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
        monkeypatch.setattr(kind, "parse_args", seen)
    with pytest.raises(Parsing) as parsing:
        importlib.import_module(f"ssgrl_fast.cli.{verb.replace('-', '_')}").main([])
    parser = parsing.value.args[0]
    assert len(parser._actions) > 1 or verb == "env"  # which has --help alone
    assert without_help(parser, verb) == []


@pytest.mark.skipif(sys.platform == "win32", reason="closed pipes are reported otherwise there")
def test_a_closed_pipe_ends_it_quietly() -> None:
    """As in `ssgrl-fast env | head -1`: the reader is gone before there is output."""
    command = [sys.executable, "-m", "ssgrl_fast", "env"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_broken_pipe_elsewhere_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(argv: list[str]) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def read_only(argv: list[str]) -> int:
        raise OSError(30, "Read-only file system", "disk/run")

    for verb, said in (
        (broken, "a file that was being written: Broken pipe"),
        (read_only, "disk/run: Read-only file system"),
    ):
        monkeypatch.setattr("ssgrl_fast.cli.env.main", verb)
        assert cli.main(["env"]) == 1
        assert f"ssgrl-fast env: {said} (" in capfd.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_every_recipe_is_read(path: Path, verb: str, tmp_path: Path) -> None:
    from ssgrl_fast.cli.fit import SSGRLCommandLine

    class Parsed(Exception):
        pass

    class OnlyParses(SSGRLCommandLine):
        def instantiate_classes(self) -> None:
            raise Parsed(self.config)

    run = tmp_path / "version_0" / "checkpoints"
    run.mkdir(parents=True)
    (run / "best.ckpt").touch()
    from ssgrl_fast.cli.fit import run_command_line

    with pytest.raises(Parsed) as parsed:
        run_command_line([verb, "--config", str(path), "--run_dir", str(tmp_path)], OnlyParses)
    options = parsed.value.args[0][verb]
    assert options.seed_everything == options.model.seed == options.data.seed
    text = path.read_text()
    assert f"run_dir: runs/{path.stem}" in text
    assert f"configs/{path.name}" in text  # its first lines say how it is run


def test_fit_validate_and_test_on_the_digits(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning", reason="the training extra is not installed")
    monkeypatch.chdir(tmp_path)
    common = [*SMALL, words, "--run_dir=runs/small"]
    assert cli.main(["fit", *common]) == 0
    run = tmp_path / "runs" / "small" / "version_0"
    for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "bundle/config.json"):
        assert (run / name).is_file(), name
    assert "joint_dim: 8" in (run / "config.yaml").read_text()

    assert cli.main(["validate", *common]) == 0
    assert "val/mAP" in capsys.readouterr().out

    assert cli.main(["test", *common]) == 0
    out = capsys.readouterr().out
    for part in ("mode paper", "AP voc2010", "difficult ignore", "device cpu", "dtype float32", "backend", "| nine |"):
        assert part in out
    report = json.loads((run / "report_test.json").read_text())
    assert report["images"] == 16 and report["ap_definition"] == "voc2010" and report["details"]["graph"]
    assert (run / "report_test.md").read_text() in out

    # a second run is the newest; the first one is still to be had by its checkpoint
    assert cli.main(["fit", *common]) == 0
    assert cli.main(["test", *common]) == 0
    assert (run.parent / "version_1" / "report_test.json").is_file()
    assert cli.main(["test", *common, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    assert "version_0/checkpoints/last.ckpt" in capsys.readouterr().out.replace("\\", "/")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_the_configuration_of_a_run_runs_again(words: str, tmp_path: Path) -> None:
    assert cli.main(["fit", *SMALL, words, f"--run_dir={tmp_path / 'a'}", "--seed_everything=3"]) == 0
    config = tmp_path / "a" / "version_0" / "config.yaml"
    assert cli.main(["fit", "--config", str(config), f"--run_dir={tmp_path / 'b'}"]) == 0
    logs = [(tmp_path / name / "version_0" / "metrics.csv").read_text() for name in ("a", "b")]
    assert logs[0] == logs[1]


def test_fit_and_ablate_speak_of_no_deprecated_option(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Neither ours nor Lightning's calls of jsonargparse reach the user as warnings."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")  # not only the first in this process
    assert cli.main(["fit", *SMALL, words, f"--run_dir={tmp_path / 'a'}", "--trainer.limit_train_batches=1"]) == 0
    given = [*SMALL, words, "--seeds=1", '--variants=["baseline"]', "--multiples=[1]", f"--out={tmp_path / 'b'}"]
    assert cli.main(["ablate", *given]) == 0
    assert (tmp_path / "b" / "config.yaml").is_file()
    assert [str(each.message) for each in recwarn if "jsonargparse" in type(each.message).__name__.lower()] == []


def test_a_truncated_checkpoint_is_a_sentence(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "version_0" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK\x03\x04 half a file")
    for verb, which in (("test", "best"), ("fit", str(path))):
        assert cli.main([verb, *SMALL, words, f"--run_dir={tmp_path}", f"--ckpt_path={which}"]) == 1
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith(f"ssgrl-fast {verb}: {path}: not a readable checkpoint")


def test_a_random_seed_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", *SMALL, words, "--seed_everything=true"]) == 2
    assert "seed_everything must be an integer" in capsys.readouterr().err


@pytest.mark.long
def test_the_photos_recipe_fits_and_tests(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Path(__file__).parents[2] / "configs" / "photos.yaml"
    common = ["--config", str(recipe), f"--data.root={shared_data / 'playing_cards'}", "--trainer.accelerator=cpu"]
    assert cli.main(["fit", *common]) == 0
    assert cli.main(["test", *common]) == 0
    report = json.loads((tmp_path / "runs/photos/version_0/report_test.json").read_text())
    assert report["images"] == 67 and len(report["classes"]) == 6
    assert report["mean_ap"] > 0.6
    bundle = tmp_path / "runs/photos/version_0/bundle"
    folder = str(shared_data / "playing_cards" / "test")
    assert cli.main(["predict", folder, "--model", str(bundle), "--output", "predicted.json"]) == 0
    assert (tmp_path / "predicted.json").is_file()
