"""Two processes equal one: loss curve, gradients and metrics, under DDP and with sharded weights, over uneven sets.

The processes run ``distributed_runs.py`` on the CPU, by gloo; the same runs on one process are made here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pictures import Colours

from ssgrl_fast.training import checkpoint

pytest.importorskip("lightning", reason="the training extra is not installed")

from distributed_runs import HANDED_ON, RUNS, STEPS, fit
from small_runs import make_data, make_task, make_trainer, rows, write_words

from ssgrl_fast import cli
from ssgrl_fast.data.sampler import EpochSampler, epoch_loader
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.modules import SSGRLHead
from ssgrl_fast.training.averaging import AveragedWeights
from ssgrl_fast.training.distributed import shard_network, share_of_loss

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="PyTorch was built without gloo")

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
CLOSE = 1e-6  # of float32 values, relative to 1 or to what is larger
QUICK = ("plain-ddp", "stopped-fsdp2", "swapped-ddp", "metrics-ddp", "cached-ddp")
THOROUGH = ("exact-ddp", "averaged-fsdp2", "normalised-fsdp2", "sharded-ddp", "swapped-fsdp2")
LONG = ("modern-ddp", "averaged-ddp", "plain-fsdp2")
OfTwo = Callable[[str], list[dict[str, Any]]]


def environment(**more: str) -> dict[str, str]:
    """Of a process that is one of several: one thread, no network but the machine's own."""
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}
    local = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {**os.environ, **own, **local, **more}


def together(folder: Path, names: tuple[str, ...], processes: int = 2) -> list[dict[str, Any]]:
    """Start the processes, and give what each of them found when asked for it."""
    script = str(SUPPORT / "distributed_runs.py")
    logs = [folder / f"{rank}.log" for rank in range(processes)]
    started = []
    for rank, log in enumerate(logs):
        command = [sys.executable, script, str(rank), str(processes), str(folder), *names]
        with open(log, "w") as file:
            started.append(subprocess.Popen(command, env=environment(), stdout=file, stderr=subprocess.STDOUT))
    try:
        ended = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for log, code in zip(logs, ended, strict=True):
        assert code == 0, log.read_text()[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes leave their runs, in a folder of the first one's name."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def of_two(place: Path) -> OfTwo:
    """What two processes found in a run; those of QUICK or THOROUGH are made at once, when one is asked for."""

    @cache
    def made(group: tuple[str, ...]) -> list[dict[str, Any]]:
        (place / group[0]).mkdir()
        return together(place / group[0], group)

    return lambda name: [found[name] for found in made(QUICK if name in QUICK else THOROUGH)]


def alone(name: str, folder: Path) -> dict[str, Any]:
    """The same run on one process."""
    place = folder / name
    place.mkdir()
    return RUNS[name.partition("-")[0]](place, 1)


def assert_close(mine: Any, truth: Any, what: str, near: float = CLOSE) -> None:
    """Values within 1e-6 of each other, relative to the largest of them or to 1."""
    mine, truth = (torch.as_tensor(values, dtype=torch.float64) for values in (mine, truth))
    assert mine.shape == truth.shape and mine.numel(), what
    assert bool(truth.isfinite().all()), what
    error = float((mine - truth).abs().max() / truth.abs().max().clamp(min=1))
    assert error <= near, f"{what}: {error:.2e}"


def assert_same_run(mine: dict[str, Any], truth: dict[str, Any], near: float = CLOSE) -> None:
    """A run's losses, first gradients, metrics of every epoch, and report are those of another."""
    assert len(truth["losses"]) == STEPS and len({round(loss, 4) for loss in truth["losses"]}) > 1
    assert_close(mine["losses"], truth["losses"], "losses", near)
    assert set(mine["gradients"]) == set(truth["gradients"]) and any(g.any() for g in truth["gradients"].values())
    largest = max(float(gradient.abs().max()) for gradient in truth["gradients"].values())
    for name, gradient in truth["gradients"].items():
        assert_close(mine["gradients"][name] / largest, gradient / largest, f"gradient of {name}", near)
    for mine_epoch, epoch in zip(mine["epochs"], truth["epochs"], strict=True):
        assert set(mine_epoch) == set(epoch) and {"val/loss", "val/mAP", "val/CF1_top3", "train/loss_epoch"} <= set(
            epoch
        )
        for name, value in epoch.items():
            assert_close(mine_epoch[name], value, name, near)
    if "report" in truth:
        assert_same_report(mine["report"], truth["report"])


def assert_same_report(mine: dict[str, Any], truth: dict[str, Any]) -> None:
    """Reports agree in all but their list of facts, which names paths: the ranking of every class is the same."""
    assert {**mine, "details": None} == {**truth, "details": None}


# ---- training ----


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("plain-ddp", CLOSE),
        *(pytest.param(name, 1e-10, marks=pytest.mark.thorough) for name in ("exact-ddp", "sharded-ddp")),
    ],
)
def test_two_processes_train_as_one(name: str, near: float, of_two: OfTwo, tmp_path: Path) -> None:
    """Thirteen images by six: in the last step one process has an image and the other none."""
    truth = alone(name, tmp_path)
    for found in of_two(name):
        assert_same_run(found, truth, near)


@pytest.mark.thorough
def test_averaged_weights_and_resumption_go_on_as_on_one(of_two: OfTwo, tmp_path: Path) -> None:
    assert_parts(alone("averaged-fsdp2", tmp_path), of_two("averaged-fsdp2"))


def assert_parts(truth: dict[str, Any], several: list[dict[str, Any]]) -> None:
    for found in (truth, *several):
        whole, stopped, rest = (found[part] for part in ("whole", "parts, stopped", "parts"))
        assert stopped["losses"] + rest["losses"] == whole["losses"]  # to the bit
        assert rest["epochs"] == whole["epochs"][1:] and rest["report"].keys() == whole["report"].keys()
        assert all(torch.equal(value, whole["weights"][key]) for key, value in rest["weights"].items())
        assert_same_run(whole, truth["whole"])
        for key, value in truth["whole"]["weights"].items():
            assert_close(whole["weights"][key], value, f"averaged {key}")


def test_one_process_goes_on_with_what_sharded_ones_began(place: Path, of_two: OfTwo, tmp_path: Path) -> None:
    truth = fit(tmp_path, 1, "auto", **HANDED_ON)
    stopped = of_two("stopped-fsdp2")[0]
    rest = fit(place / QUICK[0] / "stopped-fsdp2", 1, "auto", **HANDED_ON)
    assert_close(stopped["losses"] + rest["losses"], truth["losses"], "losses")
    for name, value in truth["weights"].items():
        assert_close(rest["weights"][name], value, name, near=1e-5)  # Adam makes whole steps of rounding
    assert_same_report(rest["report"], truth["report"])


@pytest.mark.thorough
def test_processes_that_normalise_apart_validate_one_model(place: Path, of_two: OfTwo) -> None:
    first, second = of_two("normalised-fsdp2")
    assert first["epochs"] == second["epochs"] and first["report"] == second["report"]
    assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())
    said = [
        (place / THOROUGH[0] / f"{rank}.log").read_text().count("5 BatchNorm layers train, in each process")
        for rank in (0, 1)
    ]
    assert said == [1, 0]


def test_metrics_of_a_process_without_images(of_two: OfTwo, tmp_path: Path) -> None:
    truth = alone("metrics-ddp", tmp_path)
    for found in of_two("metrics-ddp"):
        assert_same_report(found["report"], truth["report"])
        for name, value in truth["values"].items():
            assert_close(found["values"][name], value, name)


def test_one_process_computes_features_and_the_others_wait_once_per_part(of_two: OfTwo) -> None:
    first, other = of_two("cached-ddp")  # the training part has two views
    assert first["done"] == ["computed", "computed", "met", "computed", "met"] and other["done"] == ["met", "met"]
    assert len(first["maps"]) == len(other["maps"]) == 20 and all(map(torch.equal, first["maps"], other["maps"]))


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.thorough)])
def test_accelerated_networks_in_pytorchs_own_wrappers(strategy: str, of_two: OfTwo, tmp_path: Path) -> None:
    name = f"swapped-{strategy}"
    truth = alone(name, tmp_path)
    for mine in of_two(name):
        assert mine["kept"] == truth["kept"] == ["word_semantic", "graph_net", "classifiers"]
        assert mine["losses"] == pytest.approx(truth["losses"], rel=1e-12)
        for key, gradient in truth["gradients"].items():  # DDP gives what no one reads a gradient of zero
            assert_close(mine["gradients"][key], gradient, key, near=1e-12)


@pytest.mark.long
def test_the_other_recipes_and_strategies(tmp_path: Path) -> None:
    two = together(tmp_path, LONG)
    (tmp_path / "one").mkdir()
    for name in LONG:
        truth, several = alone(name, tmp_path / "one"), [found[name] for found in two]
        if name.startswith("averaged"):
            assert_parts(truth, several)
        else:
            for found in several:
                assert_same_run(found, truth)


@pytest.mark.long
def test_three_processes_train_as_one(tmp_path: Path) -> None:
    three = together(tmp_path, ("exact-ddp", "metrics-ddp"), processes=3)
    (tmp_path / "one").mkdir()
    truth = alone("exact-ddp", tmp_path / "one")
    for found in three:
        assert_same_run(found["exact-ddp"], truth, near=1e-10)


# ---- the command line ----


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_fit_resume_and_test_from_the_command_line(launcher: str, tmp_path: Path) -> None:
    """As a user starts it; a run that stops and goes on leaves what one process leaves in one go."""
    words = write_words(tmp_path / "words.txt")
    model = {"words": words, "joint_dim": 8, "freeze": "all"}
    data = {"counts": "[41, 13, 9]", "eval_batch_size": 4}
    quiet = {"accelerator": "cpu", "enable_progress_bar": "false", "enable_model_summary": "false"}
    given = [f"--model.{k}={v}" for k, v in model.items()] + [f"--data.{k}={v}" for k, v in data.items()]
    recipe = ["--config", str(ROOT / "configs" / "digits.yaml"), *given]
    shown = [f"--trainer.{k}={v}" for k, v in quiet.items()]
    fitting = ["--model.schedule=constant", "--trainer.max_epochs=2"]
    assert cli.main(["fit", *recipe, *shown, *fitting, "--data.batch_size=8", "--run_dir", str(tmp_path / "one")]) == 0
    truth = rows(tmp_path / "one" / "version_0")

    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if launcher == "torchrun" else []
    place = ["--run_dir", str(tmp_path / "two"), "--trainer.devices=2", "--trainer.strategy=ddp"]

    def run(*arguments: str) -> None:
        command = [sys.executable, *start, "-m", "ssgrl_fast", *arguments]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    run("fit", *recipe, *shown, "--model.schedule=constant", "--trainer.max_epochs=1", "--data.batch_size=4", *place)
    run("fit", *recipe, *shown, *fitting, "--data.batch_size=4", "--ckpt_path=last", *place)
    found = rows(tmp_path / "two" / "version_0")
    assert len(found) == len(truth) and list(found[0]) == list(truth[0])
    for mine, theirs in zip(found, truth, strict=True):
        assert [bool(value) for value in mine.values()] == [bool(value) for value in theirs.values()]
        for name, value in theirs.items():
            if value:
                assert_close(float(mine[name]), float(value), name)
    for folder in ("one", "two"):
        SSGRL.from_pretrained(tmp_path / folder / "version_0" / "bundle")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["version_0"]

    run("test", *recipe, *shown, *place)
    assert cli.main(["test", *recipe, *shown, "--run_dir", str(tmp_path / "one")]) == 0
    reports = [(tmp_path / folder / "version_0" / "report_test.md").read_text() for folder in ("one", "two")]
    assert reports[0] == reports[1]


# ---- shares of an epoch ----


def share(rank: int, processes: int) -> Any:
    """What a loader asks of a trainer."""
    return SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": processes})


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 4, 12, 13])
def test_batches_of_all_processes_are_those_of_one(images: int, processes: int, shuffle: bool) -> None:
    """Index by index, with what is random in them; all processes have as many batches, none of them empty."""
    whole = epoch_loader(Colours(images), 2 * processes, 3, shuffle=shuffle)
    parts = [
        epoch_loader(Colours(images), 2, 3, shuffle=shuffle, trainer=share(rank, processes))
        for rank in range(processes)
    ]
    orders = []
    for epoch in (0, 1):
        for loader in (whole, *parts):
            loader.sampler.set_epoch(epoch)
        assert len({len(part) for part in parts}) == 1
        orders.append([])
        for batch, *shares in zip(whole, *parts, strict=True):
            seen = {}
            for one in shares:
                assert len(one["index"]) >= 1
                if not one.get("placeholder"):
                    seen |= {int(i): image for i, image in zip(one["index"], one["image"], strict=True)}
            counted = sum(0 if one.get("placeholder") else len(one["index"]) for one in shares)
            assert counted == len(batch["index"]) == len(seen)
            for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                assert torch.equal(seen[index], image)
            orders[-1] += batch["index"].tolist()
        assert sorted(orders[-1]) == list(range(images))
    assert (orders[0] != orders[1]) == (shuffle and images > 1)


def test_drop_last_leaves_out_what_one_process_would() -> None:
    for images in range(1, 20):
        whole = epoch_loader(Colours(images), 4, shuffle=True, drop_last=True)
        parts = [epoch_loader(Colours(images), 2, shuffle=True, drop_last=True, trainer=share(r, 2)) for r in (0, 1)]
        expected = [set(batch["index"].tolist()) for batch in whole]
        found = [set(torch.cat([one["index"] for one in batches]).tolist()) for batches in zip(*parts, strict=True)]
        assert found == expected and not any("placeholder" in batch for part in parts for batch in part)


def test_lightning_keeps_the_samplers(tmp_path: Path) -> None:
    """It would wrap others, pad them, and tell them no epoch."""
    for loader in (make_data().train_dataloader(), make_data().val_dataloader(), make_data().test_dataloader()):
        assert isinstance(loader.sampler, torch.utils.data.DistributedSampler)


def test_a_rank_beyond_the_processes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank must be in 0 \.\. 1, got 2 of 2 processes"):
        EpochSampler(Colours(), rank=2, processes=2)


# ---- losses, strategies, averages ----


@pytest.mark.parametrize("mode", ["paper", "official"])
@pytest.mark.parametrize(
    "options", [{}, {"recompute": True}, {"interaction": False}, {"decoupling": "concat"}], ids=str
)
def test_every_weight_of_the_head_gets_a_gradient(options: dict[str, Any], mode: Any) -> None:
    """DDP waits for all of them; what has no effect gets zeros."""
    head = SSGRLHead(6, torch.randn(3, 4), torch.rand(3, 3), joint_dim=5, mode=mode, **options)
    head(torch.randn(2, 6, 2, 2)).sum().backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("mean", [True, False])
def test_shares_of_the_loss_average_to_the_loss(mean: bool) -> None:
    """Three processes with 4, 1 and no entries that count."""
    totals, entries, images = [6.0, 2.5, 0.0], [4, 1, 0], [2, 1, 0]
    counts = torch.tensor([sum(entries), sum(images)])
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: counts if reduce_op == "sum" else None)
    trainer: Any = SimpleNamespace(**vars(share(0, 3)), strategy=strategy)
    found = [
        share_of_loss(torch.tensor(total), torch.tensor(entry), image, mean=mean, trainer=trainer)
        for total, entry, image in zip(totals, entries, images, strict=True)
    ]
    assert [everywhere for _, everywhere in found] == [3, 3, 3]
    assert sum(float(part) for part, _ in found) / 3 == pytest.approx(8.5 / 5 if mean else 8.5)
    single: Any = SimpleNamespace(distributed_sampler_kwargs=None)
    assert share_of_loss(torch.tensor(6.0), torch.tensor(4), 2, mean=mean, trainer=single) == (1.5 if mean else 6.0, 2)


def test_strategies_that_cannot_work_say_so() -> None:
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

    network = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="strategy 'fsdp' flattens weights.*'fsdp2'"):
        shard_network(network, FSDPStrategy())
    folders = ModelParallelStrategy(tensor_parallel_size=1)
    folders._device_mesh = {"tensor_parallel": torch.zeros(1)}  # type: ignore[assignment]  # of one process, it has a size
    with pytest.raises(ValueError, match="save_distributed_checkpoint=False"):
        shard_network(network, folders)


def test_averages_are_lightnings(tmp_path: Path) -> None:
    """The average after two epochs, in the same places of a checkpoint, and gradients accumulated count once."""
    from lightning.pytorch.callbacks import EMAWeightAveraging

    words, kept = write_words(tmp_path / "words.txt"), []
    for name, callback in (("version_0", EMAWeightAveraging(decay=0.8)), ("version_1", AveragedWeights(decay=0.8))):
        trainer = make_trainer(tmp_path / name, accumulate_grad_batches=2)
        trainer.callbacks.insert(0, callback)
        task = make_task(words, schedule="constant")
        trainer.fit(task, datamodule=make_data())
        kept.append(checkpoint.read_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt"))
        assert rows(tmp_path / name)
        left = task.state_dict()
        assert all(torch.equal(value, kept[-1]["state_dict"][key]) for key, value in left.items())
    lightning, mine = kept
    assert int(mine["averaging_state"]["n_averaged"]) == int(lightning["averaging_state"]["n_averaged"]) == 4
    for part in ("state_dict", "current_model_state"):
        assert set(mine[part]) == set(lightning[part])
        for key, value in lightning[part].items():
            if value.is_floating_point():  # whole numbers are copied here, and averaged and cut off there
                assert torch.allclose(mine[part][key], value, rtol=1e-6, atol=1e-7), key
    with pytest.raises(ValueError, match="decay must be from 0 to below 1, got 1"):
        AveragedWeights(decay=1)
