"""config.json of a bundle, checked as a whole before anything is built from it: types, sizes and their limits.

What is written goes through the same check, so that every bundle that could be saved can be read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.checks import LARGEST_IMAGE
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.models.attention_grid import read_grids

__all__ = ["CONFIG", "FORMAT", "FORMAT_VERSION", "WEIGHTS", "check_config", "config_digest", "read_config"]

FORMAT = "ssgrl_fast bundle"
FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
LARGEST_FILE = 2**26  # bytes of config.json
LARGEST_LEVEL = 1000  # of mean and std of pixel values, which lie in 0…1
LONGEST_NAME = 1000  # characters
LARGEST_SIZE = 2**16  # of a layer, a number of layers or of steps
MOST_CLASSES = 10**5
_SHOWN = 200  # characters of a value in a message


def _is_size(value: Any, most: int = LARGEST_SIZE) -> bool:
    return type(value) is int and 1 <= value <= most


def _is_object(value: Any) -> bool:
    return type(value) is dict


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_name(value: Any) -> bool:
    return _is_text(value) and 1 <= len(value) <= LONGEST_NAME


def _is_triple(value: Any) -> bool:
    numbers = type(value) is list and all(type(each) in (int, float) for each in value)
    return numbers and len(value) == 3 and all(abs(each) <= LARGEST_LEVEL for each in value)


def _is_option(value: Any) -> bool:
    """What builds a part of a model: text, a truth value, nothing, a number within the limits, or a list of these."""
    if type(value) is list:
        return len(value) <= LARGEST_SIZE and all(_is_option(each) for each in value)
    if type(value) is str:
        return len(value) <= LONGEST_NAME
    return value is None or type(value) is bool or (type(value) in (int, float) and abs(value) <= LARGEST_SIZE)


def _are_options(value: Any) -> bool:
    return _is_object(value) and all(_is_option(each) for each in value.values())


def _are_names(value: Any) -> bool:
    return type(value) is list and 1 <= len(value) <= MOST_CLASSES and all(map(_is_name, value))


_OPTIONS = f"true, false, null, numbers up to {LARGEST_SIZE}, text up to {LONGEST_NAME} characters, lists of these"
_NAME = f"text of 1 to {LONGEST_NAME} characters"
_LEVELS = f"numbers up to {LARGEST_LEVEL}"
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (_is_name, _NAME),
    "class_names": (_are_names, f"a list of 1 to {MOST_CLASSES} names, {_NAME} each"),
    "normalisation": (_is_object, "an object"),
    "normalisation.mean": (_is_triple, f"three {_LEVELS}"),
    "normalisation.std": (lambda value: _is_triple(value) and min(value) > 0, f"three positive {_LEVELS}"),
    "backbone": (_is_object, "an object"),
    "backbone.name": (lambda value: value is None or _is_name(value), f"null or {_NAME}"),
    "backbone.class": (_is_name, _NAME),
    "backbone.out_channels": (_is_size, f"a number of channels from 1 to {LARGEST_SIZE}"),
    "backbone.options": (_are_options, _OPTIONS),
    "backbone.options.pool": (lambda value: type(value) is bool, "true or false"),
    "weights": (_is_object, "an object"),
    "weights.sha256": (lambda value: _is_text(value) and bool(re.fullmatch("[0-9a-f]{64}", value)), "64 hex digits"),
}
_OPTIONAL: dict[str, tuple[Callable[[Any], bool], str]] = {  # null where nothing is known
    "head": (_are_options, _OPTIONS),
    "preprocessing": (
        lambda value: _is_object(value) and all(_is_size(each, LARGEST_IMAGE) for each in value.values()),
        f"sizes in pixels, from 1 to {LARGEST_IMAGE}, by name",
    ),
    "recipe": (lambda value: _is_object(value) and all(map(_is_text, value.values())), "text by name"),
    "origin": (_is_object, "an object"),
}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a bundle, checked.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: no JSON, no bundle of this project, a newer format, or an entry that is missing, of another type or
            beyond its limit; the message names the file and the entry.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a bundle is a folder with {CONFIG} and {WEIGHTS}")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{path}: has {size} bytes, {LARGEST_FILE} at most are read")
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON (truncated?): {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path}: not the configuration of an {FORMAT} (it has no entry 'format': {FORMAT!r})")
    if type(version := config.get("format_version")) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: bundle format {_shown(version)}, this version of ssgrl_fast reads format {FORMAT_VERSION}"
        )
    check_config(config, str(path))
    if (digest := config.pop("digest", None)) is not None and digest != config_digest(config):
        raise ValueError(
            f"{path}: damaged, or changed after it was written: its entries are not those of its 'digest'; after a "
            "change by hand delete that entry"
        )
    return config


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of the entries, by which damage is seen that leaves them readable, as another letter in a class's name;
    bundles that were written before there was one have none."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def check_config(config: Mapping[str, Any], source: str) -> None:
    """Check every entry, as :func:`read_config` does.

    Args:
        config: as JSON gives it.
        source: opens the messages.

    Raises:
        ValueError: an entry is missing, of another type or beyond its limit.
    """
    if not _is_finite(config):
        raise ValueError(f"{source}: holds NaN or an infinite number")
    for name, (fits, expected) in _ENTRIES.items():
        value: Any = config
        for part in name.split("."):
            if part not in value:
                raise ValueError(f"{source}: it has no entry {name!r}, expected {expected}")
            value = value[part]
        if not fits(value):
            raise ValueError(f"{source}: entry {name!r} must be {expected}, got {_shown(value)}")
    for name, (fits, expected) in _OPTIONAL.items():
        if config.get(name) is not None and not fits(config[name]):
            raise ValueError(f"{source}: entry {name!r} must be {expected}, got {_shown(config[name])}")
    try:
        read_grids(config.get("attention_grid", {}))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _is_finite(value: Any) -> bool:
    """Whether every number in a JSON value is finite."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
