"""Options as dataclasses: what is refused, what the mode decides, and what stays as it was told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.options import DataOptions
from ssgrl_fast.training.options import TaskOptions
from ssgrl_fast.training.task import SSGRLTask


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "hinge"}, ValueError, "SSGRLTask: loss must be one of 'sum', 'mean', 'asymmetric', got 'hinge'"),
        ({"transfer_classes": None}, ValueError, "transfer_classes must be one of 'new', 'by_name', got None"),
        ({"lr": "1e-5"}, TypeError, "SSGRLTask: lr must be float, got '1e-5' of type str"),
        ({"head_lr": True}, TypeError, "head_lr must be float or None, got True of type bool"),
        ({"steps": 2.0}, TypeError, "steps must be int, got 2.0 of type float"),
        ({"interaction": 1}, TypeError, "interaction must be bool, got 1 of type int"),
        ({"betas": (0.9,)}, TypeError, r"betas must be tuple\[float, float\], got \(0.9,\) of type tuple"),
        ({"transfer_aliases": {"tv": 3}}, TypeError, r"transfer_aliases must be dict\[str, str\] or None, got"),
        ({"backbone": None}, TypeError, "backbone must be str, got None of type NoneType"),
        ({"learning_rate": 1e-5}, TypeError, "unexpected keyword argument 'learning_rate'"),
        ({"transfer_from": "a", "backbone_weights": "b"}, ValueError, "give no backbone_weights beside it"),
    ],
)
def test_what_a_task_does_not_take(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SSGRLTask(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "coco", "root": "x", "crowd": "some"}, ValueError, "crowd must be one of 'positive', 'ignore'"),
        ({"crops": [1.5]}, TypeError, r"crops must be list\[int\] or None, got \[1.5\] of type list"),
        ({"counts": (10, 5)}, TypeError, "counts must be tuple"),
        ({"flip": "yes"}, TypeError, "MultiLabelDataModule: flip must be bool, got 'yes' of type str"),
        ({"eval_batch_size": 0}, ValueError, "batch sizes of at least 1"),
        ({"shuffle": True}, TypeError, "unexpected keyword argument 'shuffle'"),
    ],
)
def test_what_a_data_module_does_not_take(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultiLabelDataModule(**options)


def test_whole_numbers_sequences_and_paths_are_taken(tmp_path: Path) -> None:
    task = SSGRLTask(lr=1, asymmetry=[4, 0, 0.05], words=tmp_path / "words.txt")
    assert task.options.lr == 1 and list(task.options.asymmetry) == [4, 0, 0.05]
    assert task.hparams["words"] == str(tmp_path / "words.txt")  # a checkpoint holds no objects
    assert MultiLabelDataModule("voc", tmp_path, crops=(16, 12)).options.crops == (16, 12)


def test_hyperparameters_are_the_options_by_name() -> None:
    task = SSGRLTask(mode="official", lr=1e-3)
    assert dict(task.hparams) == task.options.to_dict() == dataclasses.asdict(task.options)
    assert SSGRLTask(**task.hparams).options == task.options
    assert task.options == TaskOptions(mode="official", lr=1e-3)


def test_options_do_not_change() -> None:
    for options in (TaskOptions(), DataOptions()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            options.seed = 1  # type: ignore[misc]
