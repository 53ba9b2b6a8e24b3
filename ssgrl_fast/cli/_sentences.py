"""What the commands say: without control codes from names of classes and files, and, of wrong options of the parsers
that jsonargparse makes, one sentence with the nearest option in place of the usage."""

from __future__ import annotations

import difflib
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from ssgrl_fast._utils.escape import for_terminal
from ssgrl_fast.cli._safe import SAFE_PACKAGES

_UNKNOWN = re.compile(
    r"does not accept option '([^']+)'|unrecognized arguments: -*([^\s=]+)|Key '([^']+)' is not expected"
)
_NO_TEXT = re.compile(
    r'Parser key "([^"]+)".*Expected a <class \'str\'>.*Given value type: <class \'(?:list|bool|int|float)\'>'
    r"\s+Given value: (.+)",
    re.DOTALL,
)
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")


def say(text: str = "", file: TextIO | None = None) -> None:
    """Print a message on standard output, or on another stream, at once."""
    print(for_terminal(text, lines=True), file=file, flush=True)


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record), lines=True)


@contextmanager
def printable_warnings() -> Iterator[None]:
    """Warnings, as sentences without the place in the source, and the log's lines go to the terminal without control
    codes meanwhile."""
    handler, plain = logging.lastResort, warnings.formatwarning
    before = None if handler is None else handler.formatter
    warnings.formatwarning = lambda message, *_, **__: for_terminal(f"warning: {message}\n", lines=True)
    try:
        if handler is not None:
            handler.setFormatter(_Printable())
        yield
    finally:
        warnings.formatwarning = plain
        if handler is not None:
            handler.setFormatter(before)


class OneSentence:
    """Goes before a parser class of jsonargparse."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the message and the nearest option there is; exit status 2."""
        if (denied := _DENIED.search(message)) is not None:
            allowed = f"classes and functions of {', '.join(SAFE_PACKAGES)} that run no other programs"
            message = f"--safe refuses {denied[1]}, which would be imported and run: it allows {allowed}"
        found = _UNKNOWN.search(message)
        if found is not None:
            name = next(filter(None, found.groups()))
            near = difflib.get_close_matches(name, set(_options(self)), n=1)
            message = f"there is no option {name}{f'; the nearest is {near[0]}' if near else ''}"
        elif (untold := _NO_TEXT.search(message)) is not None:
            quoted = f'--{untold[1]} \'["yes", "no"]\'' if untold[2].startswith("[") else f'{untold[1]}: "no"'
            message = (
                f"{untold[1]} was read as {untold[2]}: unquoted, YAML takes yes, no, on and off for truth values, "
                f"digits for numbers and null for nothing; write names in quotation marks, as in {quoted}"
            )
        verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        say(f"ssgrl-fast {verb}: {' '.join(message.split())} (--help lists the options)", sys.stderr)
        sys.exit(2)


def sentence_parser(jsonargparse: Any, **options: Any) -> Any:
    """A parser of jsonargparse whose errors are sentences."""
    return type("Parser", (OneSentence, jsonargparse.ArgumentParser), {})(**options)


def _options(parser: Any) -> Iterator[str]:
    """The names of a parser's options and of those of its verbs."""
    yield from (action.dest for action in parser._actions if action.option_strings)
    if parser._subcommands_action is not None:
        for each in parser._subcommands_action._name_parser_map.values():
            yield from _options(each)
