"""``--safe``: a recipe that names other code than this project's and Lightning's is refused before it is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")

from jsonargparse import _common
from small_bundles import make_model

from ssgrl_fast.cli import main

MALICIOUS = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
from lightning.pytorch import Callback
class Spy(Callback):
    pass
def call(*arguments):
    Path(__file__).with_name("called").touch()
"""


def callback(value: str) -> str:
    return f"trainer:\n  callbacks:\n    - class_path: {value}\n"


def calling(name: str) -> str:
    return callback(f"lightning.pytorch.callbacks.LambdaCallback\n      init_args:\n        on_fit_start: {name}")


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``fit`` with a recipe; ``malicious.py`` leaves traces in the folder."""
    (tmp_path / "malicious.py").write_text(MALICIOUS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_common, "parsing_settings", dict(_common.parsing_settings))  # as in a new process

    def run(recipe: str, *more: str) -> int:
        monkeypatch.delitem(sys.modules, "malicious", raising=False)
        (tmp_path / "recipe.yaml").write_text(recipe)
        given = ["fit", "--config", "digits", "--config", str(tmp_path / "recipe.yaml"), "--data.counts", "[8,8,8]"]
        return main([*given, "--trainer.fast_dev_run", "true", "--run_dir", str(tmp_path / "runs"), *more])

    return run


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        (callback("malicious.Spy"), "malicious.Spy"),
        ("trainer:\n  callbacks: malicious.Spy\n", "malicious.Spy"),
        ("trainer:\n  strategy:\n    class_path: malicious.Spy\n", "malicious.Spy"),
        ("trainer:\n  plugins:\n    - class_path: malicious.Spy\n", "malicious.Spy"),
        ("trainer:\n  logger:\n    class_path: malicious.Spy\n", "malicious.Spy"),
        (calling("malicious.call"), "malicious.call"),
        ("data:\n  train_transform: malicious.call\n", "malicious.call"),
        (calling("os.system"), "os.system"),
        (calling("torch.os.system"), "posix.system"),
        (calling("torch.hub.load"), "torch.hub.load"),
        (calling("ssgrl_fast.cli.main"), "ssgrl_fast.cli.main"),
        (calling("torch.serialization.load"), "torch.serialization.load"),
    ],
)
def test_a_malicious_recipe_is_refused_before_the_import(
    recipe: str, named: str, fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--safe", "--saf"):
        assert fit(recipe, option) == 2
        assert f"--safe refuses {named}, which would be imported and run: it allows classes" in capsys.readouterr().err
    assert not (tmp_path / "imported").exists() and not (tmp_path / "called").exists()
    assert not (tmp_path / "runs").exists()


def test_python_objects_in_yaml_are_refused_with_and_without(fit: Callable[..., int], tmp_path: Path) -> None:
    tag = f"trainer:\n  callbacks: !!python/object/apply:os.system ['touch {tmp_path / 'called'}']\n"
    assert fit(tag) == 2 and fit(tag, "--safe") == 2
    assert not (tmp_path / "called").exists()


def test_without_the_option_a_recipe_is_a_program(fit: Callable[..., int], tmp_path: Path) -> None:
    assert fit(calling("malicious.call")) == 0
    assert (tmp_path / "imported").exists() and (tmp_path / "called").exists()


def test_recipes_of_the_four_packages_run(fit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    classes = callback("ssgrl_fast.training.averaging.AveragedWeights") + (
        "    - class_path: lightning.pytorch.callbacks.EarlyStopping\n      init_args:\n        monitor: val/mAP\n"
        "  strategy:\n    class_path: lightning.pytorch.strategies.SingleDeviceStrategy\n"
    )
    assert fit(classes, "--safe") == 0, capsys.readouterr().err
    assert fit("safe: true\n") == 1
    assert "safe in a recipe has no effect: give --safe on the command line" in capsys.readouterr().err


def test_evaluate_imports_nothing_that_a_recipe_names(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del fit  # it has made malicious.py
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "trainer:\n  callbacks: malicious.Spy\ndata:\n  kind: digits\n  train_transform: malicious.call\n"
    )
    make_model().save_pretrained(tmp_path / "bundle")
    given = ["--model", str(tmp_path / "bundle"), "--image-size", "32", "--output", str(tmp_path / "report")]
    assert main(["evaluate", "--config", str(recipe), *given]) == 1
    assert "the model" in capsys.readouterr().err  # it has other classes than the digits, which were read
    assert not (tmp_path / "imported").exists()
