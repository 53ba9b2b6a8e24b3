"""The recipes of configs/: every data set with every protocol is read, settled, run for two steps; averaged weights."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ssgrl_fast.training import checkpoint

pytest.importorskip("lightning", reason="the training extra is not installed")

from small_runs import make_data, make_task, make_trainer, write_words
from small_sets import NAMES, make_coco, make_table, make_voc

from ssgrl_fast import cli
from ssgrl_fast.models.ssgrl import SSGRL

ROOT = Path(__file__).parents[2]
SETS = {"coco": "coco", "voc2007": "voc", "voc2012": "voc", "vg500": "vg"}
SETTLED: dict[str, dict[str, Any]] = {
    "paper": {
        "model": {
            "mode": "paper",
            "freeze": "paper",
            "loss": "sum",
            "schedule": "plateau",
            "optimizer": "adam",
            "lr": 1e-5,
        },
        "data": {"batch_size": 4, "val_fraction": 0.1, "val_split": None, "unlabelled": "drop", "image_size": 576},
    },
    "official": {
        "model": {"mode": "official", "freeze": "official", "loss": "mean", "schedule": "constant", "lr": 1e-5},
        "data": {"batch_size": 4, "val_fraction": None, "val_split": "test_split", "unlabelled": "keep"},
    },
    "modern": {
        "model": {"freeze": "none", "loss": "asymmetric", "optimizer": "adamw", "schedule": "onecycle"},
        "data": {"batch_size": 64, "val_fraction": 0.05, "flip": True, "image_size": 448},
    },
}


@pytest.fixture(autouse=True)
def plain_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pytest's own arguments are none of ours."""
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small set for each data set's recipe, and the word vectors."""
    parent = tmp_path_factory.mktemp("sets")
    make_coco(parent / "coco", ("train2014", "val2014"))
    make_table(parent / "vg500")
    make_voc(parent / "voc2007", "2007", ("trainval", "test"))
    make_voc(parent / "voc2012", "2012", ("train", "val"))
    write_words(parent / "words.txt", NAMES)
    return {"words": parent / "words.txt", **{name: parent / name for name in SETS}}


def recipe(name: str, *overlays: str) -> list[str]:
    files = [f"{name}.yaml", *(f"{overlay}.yaml" for overlay in overlays)]
    return [part for file in files for part in ("--config", str(ROOT / "configs" / file))]


def parsed(arguments: list[str], tmp_path: Path) -> Any:
    """The configuration that `fit` settles, its objects not made."""
    from ssgrl_fast.cli.fit import SSGRLCommandLine, run_command_line

    class Parsed(Exception):
        pass

    class OnlyParses(SSGRLCommandLine):
        def instantiate_classes(self) -> None:
            raise Parsed(self.config)

    with pytest.raises(Parsed) as found:
        run_command_line(["fit", *arguments, "--run_dir", str(tmp_path)], OnlyParses)
    return found.value.args[0]["fit"]


@pytest.mark.parametrize("protocol", SETTLED)
@pytest.mark.parametrize("name", SETS)
def test_a_protocol_settles_what_the_paper_or_the_code_says(name: str, protocol: str, tmp_path: Path) -> None:
    options = parsed(recipe(name, f"protocol_{protocol}"), tmp_path)
    for section, wanted in SETTLED[protocol].items():
        found = {key: options[section][key] for key in wanted}
        assert found == wanted, section
    assert options.model.backbone == "resnet101" and options.model.joint_dim == 1024 and options.model.steps == 3
    small = parsed(recipe(name, f"protocol_{protocol}", "scale_512"), tmp_path)
    assert small.data.image_size == 448 and small.data.crops is None and small.data.resize is None  # the table's


@pytest.mark.parametrize("protocol", SETTLED)
@pytest.mark.parametrize("name", SETS)
def test_every_recipe_runs_two_steps(name: str, protocol: str, made: dict[str, Path], tmp_path: Path) -> None:
    small = {
        "model.words": made["words"],
        "model.backbone": "small-cnn",
        "model.freeze": "none",  # the protocols' policies are for a ResNet: tests/models/test_backbones.py
        "model.joint_dim": 8,
        "model.compile_backbone": "false",
        "data.root": made[name],
        "data.classes": json.dumps(NAMES),
        "data.image_size": 32,
        "data.batch_size": 3,
        "data.num_workers": 0,
        "trainer.max_epochs": 1,
        "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "run_dir": tmp_path,
    }
    given = [f"--{key}={value}" for key, value in small.items()]
    assert cli.main(["fit", *recipe(name, f"protocol_{protocol}"), *given]) == 0
    run = tmp_path / "version_0"
    state = checkpoint.read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert state["global_step"] == 2
    bundle = SSGRL.from_pretrained(run / "bundle")
    assert bundle.class_names == NAMES and bundle.recipe is not None
    facts = bundle.recipe
    assert facts["loss"] == SETTLED[protocol]["model"]["loss"]
    assert facts["schedule"] == SETTLED[protocol]["model"]["schedule"]
    chosen = {"paper": "0.1 of the training", "official": "the test images themselves (D19)", "modern": "0.05 of the"}
    assert facts["selected on"].startswith(chosen[protocol])
    assert ("averaging_state" in state) == (protocol == "modern")
    if name == "coco":  # the run's own configuration tests it and fits again
        again = ["--config", str(run / "config.yaml"), f"--run_dir={tmp_path}"]
        assert cli.main(["test", *again]) == 0
        details = json.loads((run / "report_test.json").read_text())["details"]
        assert details["selected on"] == facts["selected on"] and details["seed"] == "0"
        assert cli.main(["fit", *again]) == 0
        losses = [(tmp_path / f"version_{number}" / "metrics.csv").read_text() for number in (0, 1)]
        assert losses[0] == losses[1]


def test_averaged_weights_are_the_running_mean_and_resume(tmp_path: Path) -> None:
    """Two epochs in one go and in two give one average, the one that a loop over the steps' weights gives."""
    from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

    words = write_words(tmp_path / "words.txt")
    seen: list[torch.Tensor] = []

    class Weights(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            seen.append(pl_module.model.head.semantic_decoupling.weight_u.detach().clone())

    class Stops(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 0

    def fit(run: Path, *callbacks: Callback, resumed: bool = False) -> Any:
        trainer = make_trainer(run, max_epochs=2)
        trainer.callbacks += [EMAWeightAveraging(decay=0.9), *callbacks]
        trainer.ckpt_path = str(run / "checkpoints" / "last.ckpt") if resumed else None
        task = make_task(words, schedule="constant")
        trainer.fit(task, datamodule=make_data())
        return checkpoint.read_checkpoint(run / "checkpoints" / "last.ckpt")

    whole = fit(tmp_path / "version_0", Weights())
    average = seen[0].double()
    for weights in seen[1:]:
        average = 0.9 * average + 0.1 * weights.double()
    name = "model.head.semantic_decoupling.weight_u"
    assert len(seen) == 6 and torch.allclose(whole["state_dict"][name].double(), average, rtol=0, atol=1e-6)
    assert torch.equal(whole["current_model_state"][name], seen[-1])

    fit(tmp_path / "version_1", Stops())
    again = fit(tmp_path / "version_1", resumed=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, again[key][part]) for part, value in whole[key].items()), key


def test_channels_last_and_a_compiled_backbone_change_no_names_and_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled by TorchDynamo without a code generator, which the ordinary suite has no minutes for."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: original(module, backend="eager"))
    words = write_words(tmp_path / "words.txt")
    found = []
    for options in ({}, {"channels_last": True, "compile_backbone": True}):
        task = make_task(words, **options)
        trainer = make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        trainer.fit(task, datamodule=make_data())
        found.append((task, float(trainer.callback_metrics["train/loss"])))
    (plain, loss), (fast, other) = found
    assert other == pytest.approx(loss, rel=1e-5)  # of the first batch; Adam then blows rounding up to whole steps
    assert list(plain.state_dict()) == list(fast.state_dict())
    assert fast.model.backbone._compiled_call_impl is not None
    copy.deepcopy(fast)  # as averaging does
    weight = fast.model.backbone.net[3].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
