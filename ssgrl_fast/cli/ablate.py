"""The verb ``ablate``: the paper's ablations by one recipe.

ssgrl-fast ablate --config configs/photos.yaml --data.root data/playing_cards --seeds 3
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.files import write_json, write_text
from ssgrl_fast.cli import VERBS
from ssgrl_fast.cli._option_groups import group_options
from ssgrl_fast.cli._safe import add_safe_option, obey_safe
from ssgrl_fast.cli._sentences import say, sentence_parser
from ssgrl_fast.cli.recipes import with_recipes
from ssgrl_fast.metrics.report import defined
from ssgrl_fast.studies.ablations import MULTIPLES, VARIANTS, ablate, draw_ablations


def main(argv: Sequence[str]) -> int:
    """Run ``ablate``: print the table and write ablations.json, .md and .png.

    Raises:
        ValueError, FileNotFoundError, ImportError: see :func:`ablate`.
    """
    obey_safe(argv)
    parser = _parser()
    options = parser.parse_args(with_recipes(argv))
    model, data, trainer = (options[section].as_dict() for section in ("model", "data", "trainer"))
    table = ablate(
        model,
        data,
        {name: value for name, value in trainer.items() if value is not None},
        seeds=options.seeds,
        variants=options.variants,
        multiples=options.multiples,
        rates=options.rates,
        search_seeds=options.search_seeds,
        draws=options.draws,
    )
    out = Path(options.out)
    write_json(out / "ablations.json", defined(table.to_dict()))
    write_text(out / "ablations.md", table.markdown())
    parser.save(options, out / "config.yaml", skip_unset=False, overwrite=True)
    say(f"\n{table.markdown()}\nreport in {out / 'ablations.md'} and .json")
    draw_ablations(table, out / "ablations.png")  # last: if it fails, the numbers are written
    say(f"chart in {out / 'ablations.png'}")
    return 0


def _parser() -> Any:
    """A jsonargparse parser: the options of this verb, and model, data and trainer as ``fit`` has them."""
    need("lightning", "train", "ssgrl-fast ablate")
    jsonargparse = need("jsonargparse", "train", "ssgrl-fast ablate")
    from lightning.pytorch import Trainer

    from ssgrl_fast.data.datamodule import MultiLabelDataModule
    from ssgrl_fast.data.options import DATA_GROUPS
    from ssgrl_fast.training.options import TASK_GROUPS
    from ssgrl_fast.training.task import SSGRLTask

    parser = sentence_parser(jsonargparse, prog="ssgrl-fast ablate", description=VERBS["ablate"])
    add = parser.add_argument
    add("--config", action=jsonargparse.ActionConfigFile, help="recipe to read, as for fit")
    add("--seed_everything", type=Any, default=0, help="accepted because recipes have it; the seeds here are 0, 1, ...")
    add("--run_dir", type=str, default="runs/default", help="accepted because recipes have it; --out is used")
    add("--seeds", type=int, default=3, help="training runs per variant, seeds 0, 1, ...")
    add("--variants", type=list[str], default=list(VARIANTS), help="variants to train, table rows")
    add("--multiples", type=list[float], default=list(MULTIPLES), help="multiples of model.lr to try for each variant")
    add("--search_seeds", type=int, default=1, help="training runs over which each learning rate's score is averaged")
    add("--draws", type=int, default=1000, help="draws of the bootstrap over test images")
    add("--rates", type=dict[str, float], default={}, help="learning rates by variant, in place of a search")
    add("--out", type=str, default="runs/ablations", help="folder of the report")
    add_safe_option(parser)
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip={"logger", "callbacks", "plugins"})
    parser.add_class_arguments(SSGRLTask, "model", instantiate=False)
    parser.add_class_arguments(MultiLabelDataModule, "data", instantiate=False)
    group_options(parser, "model", TASK_GROUPS)
    group_options(parser, "data", DATA_GROUPS)
    return parser
