"""Class names as users keep them: in a list, in COCO annotations, or beside a graph."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.text import parse_json, read_lines, read_text
from ssgrl_fast.labels.graph import read
from ssgrl_fast.labels.matrix import check_class_names

_NUMBERED = re.compile(r"(\d{1,9})(?:\s*[:.,;)]\s*|\s+)\S")


def read_class_names(path: str | PathLike[str]) -> list[str]:
    """Class names from a file.

    Args:
        path: ``.json``: a list, COCO annotations (their categories by id, D8), or names by number or numbers by name;
            ``.yaml``: the entry ``names`` of YOLO's data.yaml, a list or names by number; ``.safetensors`` or ``.npz``:
            a graph saved by :func:`ssgrl_fast.labels.graph.save`; anything else: text in UTF-8, one name per line.

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
            names = _listed(parse_json(text))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"class names: {source} is neither a JSON list, names by number nor COCO annotations: {error!r}"
            ) from error
    elif source.suffix.lower() in (".yaml", ".yml"):
        text = read_text(source, f"class names: {source}")
        yaml = need("yaml", "train", "class names in YAML")
        try:  # every value as text: yes, no, on and off are names here
            names = _listed(yaml.load(text, yaml.BaseLoader))
        except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"class names: {source}: no list of names, nor one under 'names': {error!r}") from error
    else:
        names = _lines(source)
    try:
        return check_class_names("class names", names)
    except TypeError as error:
        raise ValueError(f"class names: {source}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _listed(content: Any) -> Any:
    """The names in the content of a JSON or YAML file, in their order."""
    if not isinstance(content, dict):
        return content
    if "categories" in content:
        return [entry["name"] for entry in sorted(content["categories"], key=lambda entry: entry["id"])]
    if isinstance(content.get("names"), (list, dict)):
        return _listed(content["names"])
    if all(isinstance(number, int) for number in content.values()):
        numbered = [(number, name) for name, number in content.items()]
    else:
        numbered = [(int(number), name) for number, name in content.items()]
    numbers = sorted(number for number, _ in numbered)
    if numbers not in (list(range(len(numbers))), list(range(1, len(numbers) + 1))):
        raise ValueError(f"the numbers of {len(numbers)} names must count up from 0 or 1, got {numbers[:5]}")
    return [name for _, name in sorted(numbered)]


def _lines(source: Path) -> list[str]:
    """The names of a text file, one in a line."""
    names = [line.strip() for line in read_lines(source, f"class names: {source}") if line.strip()]
    if names and names[0][0] == "[" and names[-1][-1] == "]":
        with suppress(ValueError):
            found = parse_json("\n".join(names))
            if all(isinstance(name, str) for name in found):
                return list(found)
    if len(names) == 1 and len(re.split(r"[\s,;|，；、]+", names[0])) > 1:
        raise ValueError(
            f"class names: {source} holds the one line {names[0]!r}: write each name in a line of its own, or, if it "
            f"is one name, {json.dumps(names, ensure_ascii=False)}"
        )
    numbered = [int(match[1]) for name in names if (match := _NUMBERED.match(name))]
    if len(names) > 1 and numbered in (list(range(len(names))), list(range(1, len(names) + 1))):
        raise ValueError(
            f"class names: {source} numbers its lines, {names[0]!r}: leave the numbers out, or, if they belong to the "
            "names, write a JSON list"
        )
    return names


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
