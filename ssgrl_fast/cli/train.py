"""The verb ``train``: from a folder of photographs to a trained model and a report, with every choice written down.

ssgrl-fast train photos/ --quick

It looks at the data, prints what it found, writes ``train.yaml`` (a recipe of ``fit``) and runs ``fit`` and
``evaluate`` with it.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import join, quote
from typing import TYPE_CHECKING, Any

from ssgrl_fast._utils.checks import need, some
from ssgrl_fast._utils.escape import for_terminal
from ssgrl_fast._utils.files import config_folder, write_text
from ssgrl_fast._utils.signals import Stopped
from ssgrl_fast._utils.text import read_text
from ssgrl_fast.cli._options import add_compound_option, compounds_of, given_compounds, verb_parser
from ssgrl_fast.cli._sentences import say

if TYPE_CHECKING:
    from ssgrl_fast.data.datamodule import MultiLabelDataModule

_TABLES = ("spacy-md-300d", "glove-6b-50d")
_DATA = (
    "a folder in Pascal VOC or COCO format, with Open Images' tables, a table (.csv, .tsv, .parquet), tar shards, or "
    "one folder of images per class; or the table, .tar or .json file"
)
_TABLE = "labels.csv"  # of images in one folder per class
_KINDS = ("voc", "coco", "csv", "openimages", "shards", "folders")
_QUICK = {"epochs": 5, "side": 224}
_POOLING_LR = 3e-3  # of configs/photos.yaml
_SHOWN = 30  # classes that the table lists
_WORST = 20  # images of the report


def main(argv: Sequence[str]) -> int:
    """Run ``train``; the exit status is that of the report.

    Raises:
        FileNotFoundError, ValueError: data that are none of the known kinds, without labels, or whose names have no
            word vectors; see also ``fit`` and ``evaluate``.
        ImportError: the extra "train" is not installed.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.data is None:
        parser.error(f"DATA is missing: {_DATA}; --help lists the options")
    need("lightning", "train", "ssgrl-fast train")
    yaml = need("yaml", "train", "ssgrl-fast train")
    out = Path(options.out or Path("runs") / (Path(options.data).resolve().stem or "photos"))
    table, config = out / _TABLE, out / "train.yaml"
    had_one = table.exists()
    try:
        recipe, notes = _recipe(yaml.safe_load(read_text(config_folder() / "photos.yaml")), options, out)
        head = "# Written by ssgrl-fast train; ssgrl-fast fit --config takes it.\n"
        write_text(config, head + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    except BaseException:  # a table without a recipe serves nobody
        if not had_one:
            table.unlink(missing_ok=True)
            with suppress(OSError):  # something else lies there, or it was never made
                out.rmdir()
        raise
    say("\n".join([*notes, f"words {recipe['model']['words']}; every choice is in {config}\n"]))
    return 0 if options.dry_run else _run(config, recipe, options, out)


def _recipe(recipe: dict[str, Any], options: argparse.Namespace, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Look at the data, say what was found, and put what was chosen into the recipe for photographs; sentences about
    what is not evident."""
    from ssgrl_fast.data.datamodule import MultiLabelDataModule

    try:
        kind, section, notes = _data(options, out)
        recipe["data"] |= {"root": None, **section, "allow_outside": options.allow_outside}
        if recipe["data"].get("val_split") is not None:
            del recipe["data"]["val_fraction"]
        if options.quick:
            recipe["data"] |= {"image_size": _QUICK["side"], "resize": _QUICK["side"], "crops": [_QUICK["side"]]}
        data = MultiLabelDataModule(**recipe["data"])
        say("\n".join(_found(data, f"{options.data}: {kind}")))
        _check(data)
    except ValueError as error:
        if "--data." not in str(error):
            raise
        fit = f"ssgrl-fast fit --config photos --data.kind KIND --data.root {quote(options.data)}"
        raise ValueError(f"{error}\nOptions --data.… are those of fit, whose recipe train writes: {fit}") from error
    recipe["model"] |= {"words": _words(data.class_names, options), "cache_features": str(out / "features")}
    if options.compound:
        recipe["model"]["compounds"] = {word: list(parts) for word, parts in given_compounds(options).items()}
    if options.backbone is not None:
        recipe["model"]["backbone"] = options.backbone
    recipe["run_dir"] = str(out)
    recipe["trainer"]["max_epochs"] = options.epochs or (_QUICK["epochs"] if options.quick else 10)
    return recipe, notes


def _run(config: Path, recipe: dict[str, Any], options: argparse.Namespace, out: Path) -> int:
    """``fit``, with --compare the baseline too, ``evaluate``, and the next commands."""
    from ssgrl_fast.cli import evaluate
    from ssgrl_fast.labels.graph import ClassesWithoutPositives
    from ssgrl_fast.training.runs import newest_run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClassesWithoutPositives)  # said above
        _fit(["--config", str(config)])
    run = newest_run(out)
    report, more = run / "report", []
    if options.compare:
        say("\nthe baseline, global pooling on the same features:")
        changed = ["--model.kind", "pooling", "--model.lr", str(_POOLING_LR), "--run_dir", str(out / "pooling")]
        epochs = 2 * recipe["trainer"]["max_epochs"]
        _fit(["--config", str(config), *changed, "--trainer.max_epochs", str(epochs)])
        pooled = newest_run(out / "pooling")
        more = ["--baseline", str(pooled / "bundle")]
    arguments = ["--model", str(run / "bundle"), "--config", str(config), "--output", str(report), "--brief", *more]
    arguments += [] if sys.stdout.isatty() else ["--no-progress"]
    say()
    status = evaluate.main([*arguments, "--worst", str(_WORST)])
    bundle = quote(str(run / "bundle"))
    following = {
        f"app --model {bundle}": "a page in the browser",
        f"predict PHOTOS --model {bundle} --output labels.csv": "labels of other photographs",
        f"fit --config {quote(str(config))}": "again, after a change in this file",
    }
    width = max(map(len, following))
    say("\n".join(["next:", *(f"  ssgrl-fast {command:{width}}  # {why}" for command, why in following.items())]))
    return status


def _fit(arguments: list[str]) -> None:
    """``fit``; if it is stopped, its advice names ``fit``, because ``train`` cannot continue a run."""
    from ssgrl_fast.cli import fit

    try:
        fit.run_verb("fit", arguments)
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning makes the second of the first
        stopped = end if isinstance(end, KeyboardInterrupt) else end.__context__
        if isinstance(stopped, Stopped):
            stopped.advice = stopped.advice.replace("the same command", f"ssgrl-fast fit {join(arguments)}")
        raise


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("train")
    add = parser.add_argument
    add("data", nargs="?", metavar="DATA", help=_DATA)
    add("--out", metavar="FOLDER", help="folder of the run and its report (runs/NAME of DATA)")
    add("--quick", action="store_true", help="smaller images and fewer epochs, for a first look")
    add("--epochs", type=int, help="passes over the training images (10, with --quick 5)")
    add(
        "--backbone",
        help="frozen backbone, such as resnet101 or timm:NAME (efficientnet-lite0, which needs no download)",
    )
    add("--words", help=f"word vectors: a package or a file (of {' and '.join(_TABLES)} the first with every name)")
    add_compound_option(parser)
    add("--compare", action="store_true", help="also train global pooling and report both")
    add("--kind", choices=_KINDS, help="format of DATA (found automatically)")
    add("--allow-outside", action="store_true", help="follow tables, lists and symbolic links out of DATA")
    add("--dry-run", action="store_true", help="only look at the data and write the recipe")
    return parser


# ---- what was found --------------------------------------------------------------------------------------------------


def _data(options: argparse.Namespace, out: Path) -> tuple[str, dict[str, Any], list[str]]:
    """What the data are, the section data of the recipe, and sentences about it."""
    from ssgrl_fast.data.discovery import FOLDERS, discover, write_folder_table

    found = discover(options.data, options.kind)
    if found["kind"] != FOLDERS:
        return found["kind"], found, []
    return "one folder per class", *write_folder_table(found["root"], out / _TABLE)


def _parts(data: MultiLabelDataModule) -> dict[str, Any]:
    parts = {"training": data.train_dataset, "validation": data.val_dataset, "test": data.test_dataset}
    return {name: part for name, part in parts.items() if part is not None}


def _found(data: MultiLabelDataModule, place: str) -> list[str]:
    """The table of images, labels and classes, as lines."""
    options, parts = data.options, _parts(data)
    counts = {name: (part.labels == 1).sum(0).tolist() for name, part in parts.items()}
    lines = [f"{place}, {sum(map(len, parts.values()))} images, {len(data.class_names)} classes", ""]
    lines.append(f"{'images':12}{'number':>8}{'labels per image':>17}{'without a label':>17}")
    for name, part in parts.items():
        per_image = (part.labels == 1).sum(1)
        mean = f"{per_image.float().mean():.2f}" if len(part) else "-"
        lines.append(f"{name:12}{len(part):8}{mean:>17}{int((per_image == 0).sum()):17}")
    names = [*map(for_terminal, data.class_names)]
    width = max(12, *(len(name) + 2 for name in names))
    lines += ["", f"{'class':{width}}" + "".join(f"{name:>12}" for name in parts)]
    for index, name in enumerate(names[:_SHOWN]):
        lines.append(f"{name:{width}}" + "".join(f"{counts[part][index]:12}" for part in parts))
    if len(data.class_names) > _SHOWN:
        lines.append(f"and {len(data.class_names) - _SHOWN} more classes")
    lines.append("")
    if options.folds:
        lines.append(f"no test split: fold {options.fold} of {options.folds} (seed {options.split_seed}) is set aside")
    if options.val_fraction is not None:
        lines.append(f"{options.val_fraction:.0%} of the images that are left choose the epoch")
    lines += [f"left out: {for_terminal(message)}" for message in data.skipped]
    return lines


def _check(data: MultiLabelDataModule) -> None:
    """Refuse data that nothing can be learned from; say which classes cannot be.

    Raises:
        ValueError: fewer than two classes have a label.
    """
    seen = (data.train_labels == 1).any(0).tolist()
    if sum(seen) < 2:
        names = some(map(for_terminal, data.class_names))
        raise ValueError(f"at least two classes need a training image each, got {sum(seen)} of {names}")
    unseen = [name for name, known in zip(data.class_names, seen, strict=True) if not known]
    if unseen:
        say(f"no training image has {some(map(for_terminal, unseen))}: these classes cannot be learned")


def _words(names: list[str], options: argparse.Namespace) -> str:
    """The word vectors: those of --words, or of the first package that knows every name.

    Raises:
        ValueError: neither does; the message numbers the ways out.
    """
    from ssgrl_fast.labels import words

    problems = []
    for source in [options.words] if options.words else _TABLES:
        try:
            words.lookup(source, names, compounds=compounds_of(options))
            return str(source)
        except (ValueError, ImportError) as error:
            problems.append(str(error).partition(" Spell such a word")[0])
    listed = "\n  ".join(problems)
    raise ValueError(
        f"no table of word vectors has every class name:\n  {listed}\n"
        "1. spell the unknown words with known ones: --compound 'WORD=A+B', once for each\n"
        "2. give other vectors: --words FILE (one word per line with its numbers, as glove.6B.300d.txt, or a .npy)\n"
        "3. rename the classes in the data"
    )
