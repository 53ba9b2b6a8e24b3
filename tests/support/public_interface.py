"""What a user can name: public names with their arguments, and the options of every verb of the command line."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import re
from collections.abc import Sequence

from ssgrl_fast import cli

FACES = (
    "",
    ".functional",
    ".modules",
    ".reference",
    ".backends",
    ".graph",
    ".words",
    ".testing",
    ".metrics",
    ".models",
)
_OPTION = re.compile(r"^ {2}(?:-\w, |-\w \w+, )?(--[\w.-]+)", re.MULTILINE)


def names(face: str) -> dict[str, list[str] | None]:
    """The public names of ``ssgrl_fast<face>`` with the names of their arguments; None for what takes none."""
    package = importlib.import_module("ssgrl_fast")
    module = getattr(package, face[1:], None) if face else package
    module = importlib.import_module(f"ssgrl_fast{face}") if module is None else module
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    listed = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return {name: arguments(getattr(module, name)) for name in sorted(listed)}


def arguments(value: object) -> list[str] | None:
    """The names of a function's or a class's arguments, in their order."""
    if inspect.isclass(value) and issubclass(value, BaseException):
        return None
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return None
    return list(inspect.signature(value).parameters)


def options(verb: str) -> list[str]:
    """The options that ``ssgrl-fast VERB --help`` lists."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main([verb, "--help"])
    return sorted(set(_OPTION.findall(printed.getvalue())))


def interface(verbs: Sequence[str]) -> dict[str, dict[str, dict[str, list[str] | None] | list[str]]]:
    """All of it."""
    return {
        "names": {f"ssgrl_fast{face}": names(face) for face in FACES},
        "options": {verb: options(verb) for verb in verbs},
    }
