"""Wrong options of the parsers that jsonargparse makes: one sentence with the nearest option, in place of the usage."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from ssgrl_fast.cli._safe import SAFE_PACKAGES

_UNKNOWN = re.compile(
    r"does not accept option '([^']+)'|unrecognized arguments: -*([^\s=]+)|Key '([^']+)' is not expected"
)
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")


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
        verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        print(f"ssgrl-fast {verb}: {' '.join(message.split())} (--help lists the options)", file=sys.stderr)
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
