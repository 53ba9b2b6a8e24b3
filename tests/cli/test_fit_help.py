"""``fit --help``: groups of options, each option with help of its own."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")

from ssgrl_fast.cli.fit import SSGRLCommandLine, run_command_line
from ssgrl_fast.data.options import DATA_GROUPS, DataOptions
from ssgrl_fast.training.options import TASK_GROUPS, TaskOptions

OWN = ("config", "seed_everything", "run_dir", "ckpt_path")
VERBS = ("fit", "validate", "test")


def parser_of(verb: str) -> Any:
    """The parser behind ``ssgrl-fast VERB``."""

    class Parser(Exception):
        pass

    class OnlyBuilds(SSGRLCommandLine):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise Parser(self._subcommand_parsers[verb])

    with pytest.raises(Parser) as found:
        run_command_line([verb], OnlyBuilds)
    return found.value.args[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help(verb: str) -> None:
    actions = {action.dest: action for action in parser_of(verb)._actions}
    ours = [name for name in actions if name.startswith(("model", "data")) or name in OWN]
    assert {*OWN, *(f"model.{field.name}" for field in fields(TaskOptions) if field.name != "seed")} <= set(ours)
    assert {f"data.{field.name}" for field in fields(DataOptions) if field.name != "seed"} <= set(ours)
    silent = [name for name in ours if not actions[name].help or actions[name].help == argparse.SUPPRESS]
    assert silent == []


@pytest.mark.parametrize("verb", VERBS)
def test_options_are_shown_by_group(verb: str) -> None:
    parser = parser_of(verb)
    shown = {group.title: [action.dest for action in group._group_actions] for group in parser._action_groups}
    for key, groups in (("model", TASK_GROUPS), ("data", DATA_GROUPS)):
        for group in groups:
            title = f"{(group.__doc__ or '').splitlines()[0].rstrip('.')} (--{key}.*)"
            own = [f"{key}.{name}" for name in group.__annotations__ if name not in ("_", "seed")]
            assert shown[title] == own, title
        rest = [name for title, names in shown.items() if "(--" not in str(title) for name in names]
        assert [name for name in rest if name.startswith(f"{key}.")] == [f"{key}.seed"]  # linked to seed_everything
    lines = parser.format_help().splitlines()
    assert lines.index("Optimizer (--model.*):") > lines.index("Network (--model.*):")


def test_every_group_belongs_to_the_options() -> None:
    for whole, groups in ((TaskOptions, TASK_GROUPS), (DataOptions, DATA_GROUPS)):
        named = [name for group in groups for name in group.__annotations__ if name != "_"]
        assert sorted(named) == sorted(field.name for field in fields(whole))  # none missing, none twice


def test_options_that_recipes_and_records_use_keep_their_names() -> None:
    """The names of version 0.1.0, which checkpoints and config.yaml of its runs name."""
    model = "kind backbone pretrained backbone_weights transfer_from transfer_classes transfer_aliases words graph "
    model += "graph_diagonal mode joint_dim steps decoupling interaction backend freeze loss asymmetry difficult "
    model += "ap_definition optimizer lr head_lr betas weight_decay schedule plateau_monitor plateau_patience "
    model += "plateau_factor cache_features channels_last compile_backbone seed"
    data = (
        "kind root train_split test_split val_split val_fraction split_seed folds fold classes year crowd unlabelled "
    )
    data += "on_error label_cache counts canvas_seed image_size resize crops flip augment mean std batch_size "
    data += "eval_batch_size drop_last num_workers multiprocessing_context seed"
    later_data = {
        "separator",
        "coding",
        "negative_word",
        "image_folder",
        "repeated_files",
        "image_column",
        "label_column",
        "label_member",
        "label_table",
        "occlusion",
        "train_transform",
        "split_column",
        "allow_outside",
        "max_pixels",
    }
    assert {field.name for field in fields(TaskOptions)} == {*model.split(), "compounds"}
    assert {field.name for field in fields(DataOptions)} == {*data.split()} | later_data
