"""The verb ``ablate``: the paper's ablations by one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.files import write_json, write_text
from ssgrl_fast.cli.option_groups import group_options
from ssgrl_fast.metrics.report import defined
from ssgrl_fast.studies.ablations import MULTIPLES, VARIANTS, ablate, draw_ablations


def _parser() -> Any:
    need("lightning", "train", "ssgrl-fast ablate")
    jsonargparse = need("jsonargparse", "train", "ssgrl-fast ablate")
    from lightning.pytorch import Trainer

    from ssgrl_fast.data.datamodule import MultiLabelDataModule
    from ssgrl_fast.data.options import DATA_GROUPS
    from ssgrl_fast.training.options import TASK_GROUPS
    from ssgrl_fast.training.task import SSGRLTask

    text = "The paper's ablations by one recipe, over seeds."
    parser = jsonargparse.ArgumentParser(prog="ssgrl-fast ablate", description=text)
    parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help="the recipe, as for fit")
    parser.add_argument("--seed_everything", type=Any, default=0, help="of a recipe; seeds here count from 0")
    parser.add_argument("--run_dir", type=str, default="runs/default", help="of a recipe; not used here")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--variants", type=list[str], default=list(VARIANTS), help="rows of the table")
    parser.add_argument(
        "--multiples", type=list[float], default=list(MULTIPLES), help="of model.lr, tried for each row"
    )
    parser.add_argument("--search_seeds", type=int, default=1, help="runs that the trial of a rate is averaged over")
    parser.add_argument("--rates", type=dict[str, float], default={}, help="learning rates by row, not searched")
    parser.add_argument("--out", type=str, default="runs/ablations", help="folder of the report")
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip={"logger", "callbacks", "plugins"})
    parser.add_class_arguments(SSGRLTask, "model", instantiate=False)
    parser.add_class_arguments(MultiLabelDataModule, "data", instantiate=False)
    group_options(parser, "model", TASK_GROUPS)
    group_options(parser, "data", DATA_GROUPS)
    return parser


def main(arguments: Sequence[str]) -> int:
    """``ablate``: print the table and write ablations.json, .md and .png.

    Raises:
        ValueError, FileNotFoundError, ImportError: see :func:`ablate`.
    """
    parser = _parser()
    options = parser.parse_args(list(arguments))
    model, data, trainer = (options[name].as_dict() for name in ("model", "data", "trainer"))
    trainer = {name: value for name, value in trainer.items() if value is not None}
    chosen = {name: options[name] for name in ("seeds", "variants", "multiples", "rates", "search_seeds")}
    table = ablate(model, data, trainer, **chosen)
    out = Path(options.out)
    write_json(out / "ablations.json", defined(table.to_dict()))
    write_text(out / "ablations.md", table.markdown())
    draw_ablations(table, out / "ablations.png")
    parser.save(options, out / "config.yaml", skip_unset=False, overwrite=True)
    print(f"\n{table.markdown()}\nreport in {out / 'ablations.md'}, .json and .png")
    return 0
