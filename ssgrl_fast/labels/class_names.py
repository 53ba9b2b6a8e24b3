"""Class names as users keep them: in a list, in COCO annotations, or beside a graph."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.text import read_lines, read_text
from ssgrl_fast.labels.graph import read
from ssgrl_fast.labels.matrix import check_class_names


def read_class_names(path: str | PathLike[str]) -> list[str]:
    """Class names from a file.

    Args:
        path: ``.json``: a list, or COCO annotations (their categories by id, D8); ``.safetensors`` or ``.npz``: a
            graph saved by :func:`ssgrl_fast.labels.graph.save`; anything else: text in UTF-8, one name per line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no names in it, or names :func:`~ssgrl_fast.labels.matrix.check_class_names` refuses; the
            message names
            the file.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"class names: {source} is no file")
    names: Any
    if source.suffix.lower() in (".safetensors", ".npz"):
        names = read(source).class_names
    elif source.suffix.lower() == ".json":
        text = read_text(source, f"class names: {source}")
        try:
            names = json.loads(text)
            if isinstance(names, dict):
                names = [entry["name"] for entry in sorted(names["categories"], key=lambda entry: entry["id"])]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"class names: {source} is neither a JSON list nor COCO annotations: {error!r}") from error
    else:
        names = [line.strip() for line in read_lines(source, f"class names: {source}") if line.strip()]
    try:
        return check_class_names("class names", names)
    except TypeError as error:
        raise ValueError(f"class names: {source}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def check_same_classes(one: str, names: Sequence[str], other: str, expected: Sequence[str]) -> None:
    """Check that two have the same classes in the same order.

    Args:
        one, other: what the message calls them, "the model" and "the data".
        names, expected: their names.

    Raises:
        ValueError: other names, or another order.
    """
    if list(names) != list(expected):
        raise ValueError(f"{one} has the classes {_few(names)}, {other} {_few(expected)}; the order counts as well")


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"[{shown}{', …' if len(names) > 5 else ''}] ({len(names)})"
