"""Options as frozen dataclasses: the type of each field is checked, and a part of the fields can be taken out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ssgrl_fast._utils.checks import check_choice

_Part = TypeVar("_Part")


def check_fields(owner: str, options: Any) -> None:
    """Check that each field of a dataclass holds a value of its annotated type.

    Understood are ``Literal``, ``None``, ``bool``, ``int``, ``float`` (whole numbers pass), ``str`` (paths pass),
    ``tuple`` with a fixed length, ``list``, ``dict``, ``Callable`` and unions of them; sequences of any type pass for
    tuple and list.

    Args:
        owner: the class that the message names.
        options: an instance of a dataclass.

    Raises:
        ValueError: none of the choices of a ``Literal``.
        TypeError: a value of another type.
    """
    hints = get_type_hints(type(options))
    for field in fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        if _fits(value, hint):
            continue
        choices = [choice for part in _parts(hint) if get_origin(part) is Literal for choice in get_args(part)]
        if choices:
            check_choice(owner, field.name, value, tuple(choices))
        expected = " or ".join("None" if part is NoneType else _name(part) for part in _parts(hint))
        raise TypeError(f"{owner}: {field.name} must be {expected}, got {value!r} of type {type(value).__name__}")


def part_of(part: type[_Part], options: Any) -> _Part:
    """The dataclass ``part`` with the values that the fields of the same names have in ``options``."""
    taken: tuple[Field[Any], ...] = fields(part)  # type: ignore[arg-type]  # it is a dataclass
    return part(**{field.name: getattr(options, field.name) for field in taken})


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _name(hint: Any) -> str:
    return str(hint) if get_args(hint) else str(hint.__name__)


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if hint is Callable:
        return callable(value)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(entry, arguments[1]) for key, entry in value.items()
        )
    if origin in (tuple, list):
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return False
        kinds = arguments if origin is tuple else arguments * len(value)
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return isinstance(value, str | os.PathLike if hint is str else hint)
