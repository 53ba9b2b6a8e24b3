"""The verb ``recipes``: the training recipes that come with the package.

ssgrl-fast recipes
ssgrl-fast recipes --copy photos

Imports no torch: the console script answers without it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast._utils.files import config_folder, write_text
from ssgrl_fast.cli._options import verb_parser
from ssgrl_fast.cli._sentences import say


def main(argv: Sequence[str]) -> int:
    """Run ``recipes``: one line for each recipe, or a copy of one.

    Raises:
        FileNotFoundError: no recipe of that name.
        FileExistsError: a file of its name is in the current folder.
    """
    parser = verb_parser("recipes")
    parser.add_argument("--copy", metavar="NAME", help="write NAME.yaml into the current folder, to change it (none)")
    options = parser.parse_args(argv)
    if options.copy is None:
        found = recipes()
        width = max(map(len, found))
        say("\n".join(f"{name:{width}}  {title(path)}" for name, path in found.items()))
        say("\nssgrl-fast fit --config NAME runs one; several files may be given, and later ones win")
        return 0
    source = find_recipe(options.copy)
    target = Path(source.name)
    if target.exists():
        raise FileExistsError(f"{target} is here already: move or remove it first")
    write_text(target, source.read_text(encoding="utf-8"))
    say(f"{target} written: ssgrl-fast fit --config {target}")
    return 0


def recipes() -> dict[str, Path]:
    """The recipes of the package by name."""
    return {path.stem: path for path in sorted(config_folder().glob("*.yaml"))}


def title(path: Path) -> str:
    """The first sentence of a recipe's first comment."""
    first = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return first.partition(". ")[0].rstrip(".:")


def find_recipe(text: str) -> Path:
    """The file that ``--config`` names: a path, or a recipe of the package as digits, digits.yaml or
    configs/digits.yaml. A file of the current folder comes first.

    Raises:
        FileNotFoundError: neither; the message has the nearest names.
    """
    path, found = Path(text), recipes()
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    if str(path.parent) in (".", "configs") and name in found:
        return found[name]
    near = difflib.get_close_matches(name, found, n=2, cutoff=0.5) or list(found)
    raise FileNotFoundError(f"--config {text}: no such file, and no recipe of that name; there is {', '.join(near)}")


def with_recipes(argv: Sequence[str]) -> list[str]:
    """Arguments with the file in place of the name behind each ``--config``.

    Raises:
        FileNotFoundError: see :func:`find_recipe`.
    """
    arguments = list(argv)
    for place, argument in enumerate(arguments):
        if argument in ("-c", "--config") and place + 1 < len(arguments):
            arguments[place + 1] = str(find_recipe(arguments[place + 1]))
        elif argument.startswith("--config="):
            arguments[place] = f"--config={find_recipe(argument.removeprefix('--config='))}"
    return arguments
