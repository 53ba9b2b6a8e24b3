"""Run folders and checkpoints: resumption to the bit, kills, damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import digits_command, make_data, make_task, make_trainer, rows, write_image, write_words

from ssgrl_fast.training import checkpoint

pytest.importorskip("lightning", reason="the training extra is not installed")

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.training import runs
from ssgrl_fast.training.task import SSGRLTask


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_words(tmp_path_factory.mktemp("words") / "words.txt")


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_fit_resumes_with_the_same_losses_to_the_bit(words: str, tmp_path: Path, workers: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(digits_command(words, whole, workers), check=True, capture_output=True, env=environment)

    log = killed / "version_0" / "metrics.csv"
    process = subprocess.Popen(
        digits_command(words, killed, workers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    deadline = time.monotonic() + 240
    while not (log.is_file() and "\n1,30," in log.read_text()):  # epoch 1 has steps 24 to 47
        assert process.poll() is None, "fit ended before it could be killed"
        assert time.monotonic() < deadline, "fit made no progress"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    interrupted = [row for row in rows(killed / "version_0") if row["train/loss_step"]]
    assert 30 < len(interrupted) < 72

    subprocess.run(
        digits_command(words, killed, workers, "--ckpt_path", "last"), check=True, capture_output=True, env=environment
    )
    assert not (killed / "version_1").exists()
    expected, found = rows(whole / "version_0"), rows(killed / "version_0")
    assert sum(bool(row["train/loss_step"]) for row in expected) == 72
    assert found == expected  # every loss of every step, every metric and rate of every epoch
    one, other = (checkpoint.read_checkpoint(folder / "version_0/checkpoints/last.ckpt") for folder in (whole, killed))
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name


def test_resuming_another_architecture_or_other_classes_is_refused(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    make_trainer(run, max_epochs=1).fit(make_task(words), datamodule=make_data())
    path = run / "checkpoints" / "last.ckpt"

    trainer = make_trainer(max_epochs=2)
    trainer.ckpt_path = str(path)
    with pytest.raises(ValueError, match=r"cannot resume with another architecture: joint_dim=32 \(checkpoint: 16\)"):
        trainer.fit(make_task(words, joint_dim=32), datamodule=make_data())

    for index, names in enumerate((["one", "two"], ["two"])):
        folder = tmp_path / "images" / "test" if index else tmp_path / "images" / "train"
        folder.mkdir(parents=True)
        write_image(folder / f"{index}.png", names)
    other = MultiLabelDataModule(kind="voc", root=str(tmp_path / "images"), image_size=16, resize=16)
    trainer = make_trainer()
    trainer.ckpt_path = str(path)
    with pytest.raises(ValueError, match=r"the model has the classes \[zero, one, .* the data \[one, two\]"):
        trainer.test(make_task(words), datamodule=other)


def test_a_test_rebuilds_the_network_of_its_checkpoint(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    task = make_task(words)
    trainer = make_trainer(run, max_epochs=2)
    trainer.fit(task, datamodule=make_data())
    trainer.test(task, datamodule=make_data(), verbose=False)
    assert task.report is not None
    expected = task.report.to_dict()

    # no words, another architecture and an untrained start: all of it comes from the checkpoint
    again = SSGRLTask(backbone="resnet18", freeze="none", ap_definition="voc2010")
    trainer = make_trainer()
    trainer.ckpt_path = str(run / "checkpoints" / "last.ckpt")
    trainer.test(again, datamodule=make_data(), verbose=False)
    assert again.report is not None
    found = again.report.to_dict()
    for name in ("mean_ap", "all_labels", "top_k_labels", "classes", "images", "mode", "backend", "difficult"):
        assert found[name] == expected[name], name
    assert found["details"]["model"] == "ssgrl on small-cnn"


# ---- files ----


def test_a_truncated_checkpoint_is_named(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    make_trainer(run, max_epochs=1).fit(make_task(words), datamodule=make_data())
    path = run / "checkpoints" / "last.ckpt"
    content = path.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"last\.ckpt: not a readable checkpoint"):
            checkpoint.read_checkpoint(path)
    trainer = make_trainer()
    trainer.ckpt_path = str(path)
    with pytest.raises(ValueError, match=r"last\.ckpt: not a readable checkpoint"):
        trainer.fit(make_task(words), datamodule=make_data())
    legacy = tmp_path / "legacy.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(300)}}, legacy, _use_new_zipfile_serialization=False)
    content = legacy.read_bytes()
    for length in range(1, len(content) - 1, 7):
        legacy.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"legacy\.ckpt: not a readable checkpoint"):
            checkpoint.read_checkpoint(legacy)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"last\.ckpt: a torch file, but no training checkpoint"):
        checkpoint.read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        checkpoint.read_checkpoint(tmp_path / "none.ckpt")


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {}, "payload": Touch()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt: not a readable checkpoint"):
        checkpoint.read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def saved(weight: torch.Tensor) -> dict[str, Any]:
    """What a training checkpoint cannot do without."""
    return {"state_dict": {"w": weight}, "epoch": 0, "global_step": 1}


def test_a_failed_save_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    writer = checkpoint.AtomicCheckpointIO()
    writer.save_checkpoint(saved(torch.ones(1000)), path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        writer.save_checkpoint(saved(torch.zeros(1000)), path)
    assert torch.equal(checkpoint.read_checkpoint(path)["state_dict"]["w"], torch.ones(1000))
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


KILLED_SAVE = """
import os, signal, sys, torch
from ssgrl_fast.training.checkpoint import AtomicCheckpointIO
def die(checkpoint, file):
    file.write(b"half of it"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = die
AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, sys.argv[1])
"""


def test_a_kill_during_a_save_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.AtomicCheckpointIO().save_checkpoint(saved(torch.ones(1000)), path)
    done = subprocess.run([sys.executable, "-c", KILLED_SAVE, str(path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert torch.equal(checkpoint.read_checkpoint(path)["state_dict"]["w"], torch.ones(1000))
    checkpoint.AtomicCheckpointIO().save_checkpoint(saved(torch.zeros(1000)), path)
    assert torch.equal(checkpoint.read_checkpoint(path)["state_dict"]["w"], torch.zeros(1000))
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_run_folders_are_numbered_and_found(tmp_path: Path) -> None:
    assert runs.new_run(tmp_path / "none") == tmp_path / "none" / "version_0"
    for number in (0, 2, 10):
        (tmp_path / f"version_{number}" / "checkpoints").mkdir(parents=True)
    (tmp_path / "version_x").mkdir()
    assert runs.new_run(tmp_path) == tmp_path / "version_11"
    with pytest.raises(FileNotFoundError, match="no checkpoint in a run under"):
        runs.find_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoints/best\.ckpt in a run under"):
        runs.find_checkpoint(tmp_path, "best")
    for number in (0, 2):
        (tmp_path / f"version_{number}" / "checkpoints" / "best.ckpt").touch()
    found = runs.find_checkpoint(tmp_path, "best")
    assert found == tmp_path / "version_2" / "checkpoints" / "best.ckpt"
    assert runs.run_of(found) == tmp_path / "version_2"
    assert runs.find_checkpoint(tmp_path) == found
    (tmp_path / "version_10" / "checkpoints" / "last.ckpt").touch()  # of a run without validation images
    assert runs.find_checkpoint(tmp_path) == tmp_path / "version_10" / "checkpoints" / "last.ckpt"
    elsewhere = tmp_path / "mine.ckpt"
    elsewhere.touch()
    assert runs.find_checkpoint(tmp_path, str(elsewhere)) == elsewhere
    assert runs.run_of(elsewhere) is None
    with pytest.raises(FileNotFoundError, match="gone.ckpt: no such checkpoint"):
        runs.find_checkpoint(tmp_path, str(tmp_path / "gone.ckpt"))
