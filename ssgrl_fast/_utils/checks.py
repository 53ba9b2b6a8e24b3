"""Checks of arguments: every error names the argument, its value and what was expected.

No check reads the values of a tensor, so none waits for a device.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

LARGEST_IMAGE = 8192
"""Pixels of a side that a network takes at most; its image takes 0.8 GB."""

_LISTED = 6  # names that an error message lists


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import an optional package, or raise an error that names the extra to install.

    Args:
        module: the package to import, ``"torchvision.transforms.v2"``.
        extra: the extra of this project that installs it, ``"train"``.
        what: the part of this project that needs it, ``"ssgrl_fast.data.transforms"``.

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
