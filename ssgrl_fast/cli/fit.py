"""The verbs fit, validate and test: Lightning's own, with this project's task, data, run folders and reports.

`fit` makes a new run folder under ``--run_dir``; `fit --ckpt_path last` continues the newest one. `validate` and `test`
take the best checkpoint of the newest run (the last one, where there were no validation images) unless ``--ckpt_path``
names another: ``best``, ``last`` or a file.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast.training import checkpoint

need("lightning", "train", "ssgrl-fast fit, validate and test")
need("jsonargparse", "train", "ssgrl-fast fit, validate and test")

from lightning.fabric.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback  # noqa: E402
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only  # noqa: E402

from ssgrl_fast._utils.files import write_text  # noqa: E402
from ssgrl_fast.cli._option_groups import group_options  # noqa: E402
from ssgrl_fast.cli._safe import add_safe_option, obey_safe  # noqa: E402
from ssgrl_fast.cli._sentences import OneSentence, say  # noqa: E402
from ssgrl_fast.cli.recipes import with_recipes  # noqa: E402
from ssgrl_fast.data.datamodule import MultiLabelDataModule  # noqa: E402
from ssgrl_fast.data.options import DATA_GROUPS  # noqa: E402
from ssgrl_fast.training import logs, runs  # noqa: E402
from ssgrl_fast.training.options import TASK_GROUPS  # noqa: E402
from ssgrl_fast.training.stopping import StopOnSignal  # noqa: E402
from ssgrl_fast.training.task import SSGRLTask  # noqa: E402
from ssgrl_fast.training.trained_on import TrainedOn  # noqa: E402

_TRAINER_DEFAULTS = {"log_every_n_steps": 1, "num_sanity_val_steps": 0}


class _SaveConfig(SaveConfigCallback):
    """Keeps the configuration of `fit` as config.yaml in its run folder; a resumed run writes it again."""

    def __init__(self, parser: Any, config: Any, run: Path | None = None, **options: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=False, **options)
        self.run = run

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.run is not None:
            path = str(self.run / "config.yaml")
            self.parser.save(self.config, path, skip_unset=False, overwrite=True, multifile=False)


class _Parser(OneSentence, LightningArgumentParser):
    """Wrong options end in a sentence."""


class SSGRLCommandLine(LightningCLI):
    """LightningCLI for :class:`SSGRLTask` and :class:`MultiLabelDataModule`; a fit that fails before its first step
    leaves no run folder."""

    run: Path
    made: Path | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            super().__init__(*args, **options)
        except BaseException:
            trainer = getattr(self, "trainer", None)  # None: the failure came before there was one
            if self.made is not None and (trainer is None or trainer.global_step == 0):
                shutil.rmtree(self.made, ignore_errors=True)  # its files only say that a fit began
            raise

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs without predict, which here takes files and folders; and the parameters of the trainer's
        methods that are no options here."""
        data = {"datamodule", "train_dataloaders", "val_dataloaders", "dataloaders"}
        return dict.fromkeys(("fit", "validate", "test"), data | {"model", "weights_only", "verbose", "ckpt_path"})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder, one seed for model and data, and a section of the help per group of options."""
        parser.add_argument("--run_dir", type=str, default="runs/default", help="parent of the run folders version_N")
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="checkpoint: a file, or best or last of the newest run; fit resumes it (unset: a new run); validate "
            "and test evaluate it (unset: best, or last if there is no best)",
        )
        parser.add_argument(
            "--allow_trained_images",
            type=bool,
            default=False,
            help="test measures images that the checkpoint was trained on as well, which it otherwise refuses",
        )
        add_safe_option(parser)
        group_options(parser, "model", TASK_GROUPS)
        group_options(parser, "data", DATA_GROUPS)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, find the checkpoint and the run folder, and hide ckpt_path from Lightning, which would replace
        options of the command line by those of the checkpoint, silently."""
        # the configuration
        self.config = parser.parse_args(args)
        options = self.config[self.config.subcommand]
        if "safe" in options:
            raise ValueError("safe in a recipe has no effect: give --safe on the command line")
        fitting = self.config.subcommand == "fit"
        # the checkpoint, which Lightning is not to see
        which = options.ckpt_path
        self.checkpoint = None if fitting and which is None else runs.find_checkpoint(options.run_dir, which)
        options.ckpt_path = None
        # the run folder: that of the checkpoint, or a new one
        own = runs.run_of(self.checkpoint) if self.checkpoint is not None else None
        records = fitting and not options.trainer.fast_dev_run
        self.run = own or (runs.new_run(options.run_dir) if records else Path(options.run_dir, "version_0"))
        if records and own is None and getattr(rank_zero_only, "rank", 0) == 0:  # the other processes make none
            self.made = self.run
        self.save_config_kwargs = {"run": self.run if fitting else None}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer with this project's checkpoints, logs and export where the configuration names no others."""
        config = self._get(self.config_init, "trainer", default={})
        kwargs["plugins"] = [*_listed(config.get("plugins")), checkpoint.AtomicCheckpointIO()]
        if self.subcommand != "fit":
            allowed = self._get(self.config_init, "allow_trained_images", default=False)
            guard = TrainedOn(allowed=allowed)
            kwargs |= {"logger": False, "enable_checkpointing": False}
            kwargs["callbacks"] = [*_listed(config.get("callbacks")), guard]
        else:
            resumed = None if self.checkpoint is None else checkpoint.read_checkpoint(self.checkpoint)["global_step"]
            if config.get("logger") is None and not config.get("fast_dev_run"):
                kwargs["logger"] = runs.loggers(self.run, resume_step=resumed)
            extra: list[Any] = []
            if not config.get("fast_dev_run"):
                monitor = "val/mAP" if self.datamodule.has_val else None
                extra = [*runs.checkpoints(self.run, monitor), runs.RunRecord(self.run), runs.BundleExport(self.run)]
                extra += [TrainedOn(self.run), StopOnSignal(self.run)]
            kwargs["callbacks"] = [*_listed(config.get("callbacks")), *extra]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ModuleNotFoundError) as error:
            raise ValueError(f"{_accelerator_problem(config, error)}") from error
        trainer.ckpt_path = None if self.checkpoint is None else str(self.checkpoint)
        return trainer

    def before_fit(self) -> None:
        """Say where the run lies."""
        rank_zero_info(f"resuming {self.checkpoint} in {self.run}" if self.checkpoint else f"run folder {self.run}")

    def after_validate(self) -> None:
        """Say what the numbers depend on."""
        rank_zero_info(f"{self.model.describe()}; {self.checkpoint}")

    def after_test(self) -> None:
        """Print the report and write it as JSON and Markdown."""
        report = self.model.report
        if report is None or not self.trainer.is_global_zero:
            return
        assert self.checkpoint is not None  # parse_arguments found one
        folder = runs.run_of(self.checkpoint) or Path(self._get(self.config, "run_dir"))
        report.to_json(folder / "report_test.json")
        write_text(folder / "report_test.md", report.to_markdown())
        say(report.to_markdown())
        say(f"{self.model.describe()}; {self.checkpoint}\nreport in {folder / 'report_test.md'} and .json")


def _accelerator_problem(config: Any, error: Exception) -> str:
    """A sentence for a trainer that cannot be made: a device that this machine lacks, or Lightning's own."""
    name = config.get("accelerator")
    if name in ("gpu", "cuda", "mps", "tpu") and re.search("found|not available|torch_xla", str(error)):
        return f"--trainer.accelerator {name}: torch finds no such device on this machine; leave it out, or give cpu"
    return f"--trainer: {error}"


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"seed_everything must be an integer, got {value!r}")
    return value


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def run_command_line(arguments: Sequence[str], command_line: type[SSGRLCommandLine] = SSGRLCommandLine) -> None:
    """Parse and run the arguments that follow the program's name, by this LightningCLI or one that extends it."""
    command_line(
        SSGRLTask,
        MultiLabelDataModule,
        parser_class=_Parser,
        parser_kwargs={"prog": "ssgrl-fast"},
        args=list(arguments),
        save_config_callback=_SaveConfig,
        trainer_defaults=_TRAINER_DEFAULTS,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )


def main(argv: Sequence[str]) -> int:
    """Run ``fit`` with the arguments after the verb; see :func:`run_verb`."""
    return run_verb("fit", argv)


def run_verb(verb: str, argv: Sequence[str]) -> int:
    """Run fit, validate or test with the arguments after the verb; the exit status is 0.

    Raises:
        SystemExit: wrong usage (2) or --help (0), from the parser.
        ValueError, FileNotFoundError, ImportError: see :class:`SSGRLTask` and the data sets.
    """
    logs.quiet()
    obey_safe(argv)
    run_command_line([verb, *with_recipes(argv)])
    return 0
