"""The option groups of model and data in ``--help``: one section per dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any


def group_options(parser: Any, key: str, groups: Sequence[type]) -> None:
    """Show the options of a class under one title per dataclass that they come from.

    Args:
        parser: a jsonargparse parser that has the class's arguments.
        key: their prefix, "model" or "data".
        groups: the dataclasses in the order of the sections; the first line of a docstring is its title.
    """
    of_option: dict[str, Any] = {action.dest: action for action in parser._actions}
    for group in groups:
        title = (inspect.getdoc(group) or group.__name__).splitlines()[0].rstrip(".")
        section = parser.add_argument_group(f"{title} (--{key}.*)")
        for name in vars(group)["__annotations__"]:
            if (action := of_option.get(f"{key}.{name}")) is not None:
                action.container._group_actions.remove(action)
                section._group_actions.append(action)
