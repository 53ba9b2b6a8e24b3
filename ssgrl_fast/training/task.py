"""Training and evaluation as a LightningModule: the paper's recipe (section 3.5), with that of the published code as a
mode; :mod:`ssgrl_fast.training.options` lists the options and what the modes differ in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ssgrl_fast._utils.memory import return_memory
from ssgrl_fast.data.base import MultiLabelDataset
from ssgrl_fast.data.contract import check_batch, check_data
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.features import CachedFeatures, cache_splits, weights_digest
from ssgrl_fast.data.splits import selection
from ssgrl_fast.labels.class_names import check_same_classes
from ssgrl_fast.metrics import AveragePrecision, MeanLoss, PrecisionRecallF1, Report
from ssgrl_fast.models.prepare import prepare_backbone
from ssgrl_fast.training.checkpoint import TrainingEntry, read_checkpoint
from ssgrl_fast.training.distributed import epoch_seed, shard_network, share_buffers, share_of_loss, warn_of_batch_norm
from ssgrl_fast.training.facts import LAST_EPOCH, OF_TRAINING, epoch_chosen_on, naming_images, training_facts
from ssgrl_fast.training.logs import callbacks_of, quiet
from ssgrl_fast.training.losses import loss_sums
from ssgrl_fast.training.network import Ingredients, build_network, words_and_graph
from ssgrl_fast.training.optim import lightning_schedule, make_optimizer, make_schedule, split_parameters
from ssgrl_fast.training.options import ARCHITECTURE, TaskOptions
from ssgrl_fast.training.transfer import start_from

quiet()  # a trainer made in Python speaks as the one of the command line


class SSGRLTask(LightningModule):
    """SSGRL, or global pooling + linear on the same backbone, trained and evaluated by one recipe.

    The network is built when a trainer has its data (class names, training labels for the graph), or from the
    checkpoint that is resumed or tested, in which words, graph and class names are stored beside the weights.

    Args:
        options: keyword arguments, the fields of :class:`~ssgrl_fast.training.options.TaskOptions`. They stay in the
            attribute ``options`` and, by name, in Lightning's ``hparams``, those that follow the mode filled in.

    Raises:
        ValueError: an option that is none of its choices, or options that contradict each other.
        TypeError: an option of another type, or an unknown option.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = TaskOptions(**options)
        self.save_hyperparameters(self.options.to_dict())
        self.model: Any = None
        self.transfer: dict[str, Any] | None = None  # Transfer.to_dict() of what training started from
        self._trained: dict[str, str] | None = None  # the recipe of the weights, where they are not being trained here
        self.class_names: list[str] = []
        self.report: Report | None = None
        self._epoch_open = False
        self._validated = False
        self._features: dict[str, CachedFeatures] = {}  # in the place of the data module's images, by part
        self._cached: str | None = None  # digest of the backbone's weights that they were computed with

    # ---- building -------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the network from the trainer's checkpoint if it has one, else from its data; called by Lightning.

        Raises:
            ValueError: no data module, no word vectors for kind "ssgrl", or a checkpoint of another architecture.
        """
        if self._trainer is None:  # load_from_checkpoint: on_load_checkpoint builds
            return
        # the network, of the checkpoint or of the data
        if self.model is None:
            if self.trainer.ckpt_path:
                checkpoint = read_checkpoint(self.trainer.ckpt_path)
                self._build_from(checkpoint, str(self.trainer.ckpt_path))
                self.load_state_dict(checkpoint["state_dict"])  # before features are cached; Lightning loads them again
            else:
                data = self._datamodule()
                self._build(list(data.class_names), words_and_graph(self.options, data))
        # what it is trained on, and where its weights lie
        self._check_classes()
        if self.options.cache_features is not None:
            self._cache(self.options.cache_features)
        shard_network(self.model if self._cached is None else self.model.head, self.trainer.strategy)

    def _cache(self, folder: str) -> None:
        """Compute the features of the data's images, or find them in the folder."""
        data = self._datamodule()
        if not isinstance(data, MultiLabelDataModule):
            raise ValueError(f"SSGRLTask: cache_features needs a MultiLabelDataModule, got a {type(data).__name__}")
        body = self.model.backbone
        self._cached = weights_digest(body.state_dict())
        self._features = cache_splits(
            data,
            body,
            folder,
            trainer=self.trainer,
            name=self.options.backbone,
            weights=self._cached,
            prepare=prepare_backbone,
        )

    def data_for(self, part: str, dataset: Any) -> Any:
        """What this task is fed with in the place of a data set; data modules call it when they make their loaders.

        Args:
            part: "train_dataset", "val_dataset" or "test_dataset".
            dataset: that part of the data module; it stays as it is.

        Returns:
            Cached features under ``cache_features``; images under the backbone's normalisation; any other data set
            itself.
        """
        if part in self._features:
            return self._features[part]
        if isinstance(dataset, MultiLabelDataset):
            return dataset.with_normalisation(self.model.backbone.mean, self.model.backbone.std)
        return dataset

    def _datamodule(self) -> Any:
        data = getattr(self.trainer, "datamodule", None)
        check_data(data)
        return data

    def _build_from(self, checkpoint: dict[str, Any], path: str) -> None:
        """The network that a checkpoint holds, without its weights: those Lightning loads."""
        entry = TrainingEntry.read(checkpoint, path)
        resuming = self._trainer is not None and self.trainer.state.fn == "fit"
        self.options = entry.settle(self.options, path, resuming=resuming)
        self.hparams.update(self.options.to_dict())
        self._build(entry.class_names, entry.ingredients, fresh=False)
        self.transfer = entry.transfer

    def _build(self, names: list[str], ingredients: Ingredients, *, fresh: bool = True) -> None:
        self.model = build_network(self.options, names, ingredients, fresh=fresh)
        if fresh and (done := start_from(self.model, self.options)) is not None:
            rank_zero_info(done.describe())
            self.transfer = done.to_dict()
        if self.options.channels_last:
            self.model.backbone.to(memory_format=torch.channels_last)
        if self.options.compile_backbone:
            self.model.backbone.compile()
        self.class_names = names
        self._ingredients = ingredients
        rule: dict[str, Any] = {"difficult": self.options.difficult}
        self.val_loss = MeanLoss()
        self.val_ap = AveragePrecision(len(names), definition=self.options.ap_definition, **rule)
        self.val_all = PrecisionRecallF1(len(names), **rule)
        self.val_top3 = PrecisionRecallF1(len(names), top_k=min(3, len(names)), **rule)

    def build_like(self, other: SSGRLTask) -> None:
        """Build the network that another task has, without its weights."""
        self._build(other.class_names, other._ingredients, fresh=False)
        self.transfer, self._trained = other.transfer, other._trained
        self.model.preprocessing, self.model.recipe = other.model.preprocessing, other.model.recipe

    def _check_classes(self) -> None:
        check_same_classes("SSGRLTask: the model", self.class_names, "the data", self._datamodule().class_names)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the network is built from beside its weights."""
        architecture = {name: getattr(self.options, name) for name in ARCHITECTURE}
        recipe = self.recipe()
        if self._trained is None:
            recipe["selected on"] = epoch_chosen_on(self.trainer)
        TrainingEntry(
            architecture,
            self.class_names,
            self._ingredients,
            self.transfer,
            preprocessing=self.model.preprocessing,
            recipe=recipe,
        ).write(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network where there is none yet (SSGRLTask.load_from_checkpoint), and take over what the checkpoint
        says of its training."""
        entry = TrainingEntry.read(checkpoint, "the checkpoint")
        if self.model is None:
            self._build_from(checkpoint, "the checkpoint")
        else:
            check_same_classes("the checkpoint", entry.class_names, "the model", self.class_names)
        self._trained = {"selected on": "not recorded in the checkpoint", **(entry.recipe or {})}
        if self._trainer is not None and Path(self.trainer.ckpt_path or "").name == "last.ckpt":
            self._trained["selected on"] = LAST_EPOCH  # of an epoch that may have been the best one so far
        self.model.preprocessing = entry.preprocessing
        self.model.recipe = self._trained if entry.recipe is not None else None
        start = "model.backbone."
        state = checkpoint.get("state_dict", {})  # not there where weights are sharded: those were read before
        body = {name.removeprefix(start): w for name, w in state.items() if name.startswith(start)}
        if self._cached is not None and body and weights_digest(body) != self._cached:
            raise ValueError(
                "the checkpoint's backbone is not the one that the cached features were computed with: set "
                "trainer.ckpt_path before fit or test, in place of their argument; features are then computed with it"
            )

    # ---- steps ----------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] (normalised) to logits [B, C]."""
        logits: Tensor = self.model(images)
        return logits

    def _logits(self, batch: dict[str, Any]) -> Tensor:
        if "features" in batch:
            logits: Tensor = self.model.head(batch["features"])
            return logits
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        return self.forward(batch["image"].contiguous(memory_format=layout))

    def _scores(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits and targets [B, C] of a batch; B = 0 for a place-holder (``epoch_loader``): it only passes through."""
        check_batch(batch, len(self.class_names))
        logits, count = self._logits(batch), 0 if batch.get("placeholder") else len(batch["target"])
        return logits[:count], batch["target"][:count]

    def configure_callbacks(self) -> list[Callback]:
        """Off a terminal one line per epoch in the place of a progress bar."""
        return callbacks_of(self.trainer)

    def on_fit_start(self) -> None:
        """Say once what is being done.

        Raises:
            ValueError: the schedule watches validation values and there are no validation images.
        """
        name = self.options.plateau_monitor
        watches = self.options.schedule == "plateau" and name.startswith("val/")
        if watches and getattr(self._datamodule(), "val_dataset", ...) is None:
            raise ValueError(
                f"SSGRLTask: plateau_monitor {name!r} needs validation images (data.val_fraction or data.val_split); "
                "without any use plateau_monitor='train/loss' or schedule='constant'"
            )
        self._trained = None
        self._record(self.recipe())
        sizes = [(weight.requires_grad, weight.numel()) for weight in self.model.parameters()]
        trained = sum(size for learns, size in sizes if learns)
        stay = sum(size for _, size in sizes) - trained
        rank_zero_info(f"{self.describe()}; {trained:,} weights are trained, {stay:,} stay")
        warn_of_batch_norm(self.model, self.trainer)

    def _record(self, recipe: dict[str, str]) -> None:
        """Set what bundles of the model say of its images and its training; its origin is known since it was built."""
        self.model.preprocessing = getattr(self._datamodule(), "preprocessing", None)
        self.model.recipe = recipe

    def on_fit_end(self) -> None:
        """Say of the weights, from now on, that they are those of the last epoch."""
        self._trained = {**self.recipe(), "selected on": LAST_EPOCH}
        self._record(self._trained)

    def on_train_epoch_start(self) -> None:
        """Seed what is random in the model by (seed, epoch, process), so that a resumed epoch repeats itself."""
        torch.manual_seed(epoch_seed(self.options.seed, self.current_epoch, self.global_rank))
        self._epoch_open, self._validated = True, False
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], sync_dist=True)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Loss of a batch {"image" or "features", "target"}; logged as train/loss of every step and of the epoch. Of
        several processes: this one's share of the loss over all their images."""
        logits, targets = self._scores(batch)
        sums, mean = loss_sums(logits, targets, self.options), self.options.loss == "mean"
        loss, images = share_of_loss(*sums, len(targets), mean=mean, trainer=self.trainer)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True, batch_size=images)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Let all processes validate one model."""
        share_buffers(self.model)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Logits of a batch into val/loss (per image where the loss is a sum, else per entry) and the metrics."""
        logits, targets = self._scores(batch)
        total, entries = loss_sums(logits, targets, self.options)
        self.val_loss.update(total, entries if self.options.loss == "mean" else len(targets))
        self.val_ap.update(logits.float(), targets)
        self.val_all.update(logits.float(), targets)
        self.val_top3.update(logits.float(), targets)
        self._validated = True

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the metrics of the validation set, as fractions."""
        self.log("val/loss", self.val_loss.compute(), prog_bar=True, sync_dist=True)
        self.log("val/mAP", self.val_ap.compute()["mAP"], prog_bar=True, sync_dist=True)
        for suffix, metric in (("", self.val_all), ("_top3", self.val_top3)):
            self.log_dict({f"val/{name}{suffix}": value for name, value in metric.compute().items()}, sync_dist=True)
        for meter in (self.val_loss, self.val_ap, self.val_all, self.val_top3):
            meter.reset()

    def on_train_epoch_end(self) -> None:
        """Return kept memory, and step the plateau schedule here, before the epoch's checkpoints are written, so that
        they hold its state."""
        return_memory()
        if not self._epoch_open:  # a resumed fit closes the epoch of its checkpoint once more
            return
        self._epoch_open = False
        name = self.options.plateau_monitor
        if self.options.schedule != "plateau" or (name.startswith("val/") and not self._validated):
            return
        values = self.trainer.callback_metrics
        if name not in values:
            raise ValueError(
                f"SSGRLTask: plateau_monitor {name!r} is not logged; there are {', '.join(sorted(values))}"
            )
        schedule = self.lr_schedulers()
        assert isinstance(schedule, ReduceLROnPlateau)  # of configure_optimizers
        schedule.step(float(values[name]))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step "onecycle" and "cosine" with every batch; on_train_epoch_end has stepped "plateau"."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what is not frozen, head first, and the schedule (``ssgrl_fast.training.optim``).

        Raises:
            ValueError: nothing is left to train.
        """
        optimizer = make_optimizer(*split_parameters(self.model), self.options)
        schedule = make_schedule(optimizer, self.options, lambda: self.trainer.estimated_stepping_batches)
        return lightning_schedule(optimizer, schedule, self.options.plateau_monitor)

    # ---- test -----------------------------------------------------------------------------------------------------

    def on_test_epoch_start(self) -> None:
        """Forget an earlier test."""
        self.val_ap.reset()

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Keep the logits of a batch for the report."""
        logits, targets = self._scores(batch)
        self.val_ap.update(logits.float(), targets)

    def on_test_epoch_end(self) -> None:
        """Put everything seen together to ``self.report``, and log its mAP, CP … OF1 and the top 3's as fractions."""
        facts = self.facts()
        measured = {name: facts.pop(name) for name in ("mode", "backend", "device", "dtype")}
        self.report = naming_images(self.val_ap.report(self.class_names, **measured, details=facts), self.trainer)
        self.log_dict({f"test/{name}": value for name, value in self.report.summary().items()}, sync_dist=True)

    def facts(self) -> dict[str, str]:
        """What a number depends on, by name: mode, backend, device, dtype, and the options of model and training."""
        selected = selection(getattr(self.trainer, "datamodule", None))
        facts = training_facts(self.options, str(self.trainer.precision), self.device, selected, self.transfer)
        return {**facts, **{name: value for name, value in (self._trained or {}).items() if name in OF_TRAINING}}

    def recipe(self) -> dict[str, str]:
        """The facts with AP definition and difficult rule; bundles carry them."""
        return {**self.facts(), "AP": self.options.ap_definition, "difficult": str(self.options.difficult)}

    def describe(self) -> str:
        """The recipe in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.recipe().items())
