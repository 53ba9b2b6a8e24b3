"""Checks of what users pass in: every error names the argument, what came and what was expected.

Nothing here reads a tensor's values, so nothing waits for a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

_LISTED = 6  # names that a message shows


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: the package to import, ``"torchvision.transforms.v2"``.
        extra: the extra of this project that installs it, ``"train"``.
        what: what of this project needs it, ``"ssgrl_fast.data.transforms"``.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        name = module.split(".")[0]
        raise ImportError(f"{what} needs {name}: pip install 'ssgrl_fast[{extra}]'", name=name) from error


def check_choice(operation: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that a named option is one of its choices.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{operation}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    rest = len(listed) - _LISTED
    return ", ".join(listed[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
