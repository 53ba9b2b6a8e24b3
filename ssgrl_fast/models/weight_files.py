"""Files of weights: read without running what is in them, and compared with a model by name and shape."""

from __future__ import annotations

import importlib
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssgrl_fast._utils.checks import some
from ssgrl_fast._utils.text import binary_kind

__all__ = ["check_fit", "load_whole", "read_tensors", "read_torch_file", "state_dict_of"]

_REASON = 200  # characters of torch's own reason in a message
_HEAD = 1024  # bytes that tell what kind of file it is
_STATE_DICTS = ("state_dict", "model_state_dict", "model")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state_dict from a .safetensors file, or from a torch file (see :func:`state_dict_of`), on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, of another kind, or it holds more than tensors; the message names the file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: not a readable safetensors file (truncated?): {error}") from error
    return state_dict_of(read_torch_file(file), file)


def read_torch_file(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """What a torch file holds, zip or legacy pickle, written under Python 2 or 3, on the CPU.

    It is read with weights_only=True and numpy's scalars allowed besides (a metric beside the weights, as the published
    code saves it, is one): no code in it runs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, no torch file, something else than a dictionary, or it asks for code to run; the message
            names the file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pickle_load_args only works")  # encoding works: strings of Python 2
            content = load_whole(file, map_location="cpu", encoding="latin1")
    except PermissionError:
        raise
    except Exception as error:  # broken pickles raise many types: struct.error, IndexError, OSError, AttributeError, …
        raise ValueError(f"{file}: {_why_unreadable(file, error)}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: a torch file, but no state_dict of tensors (it holds a {type(content).__name__})")
    return content


def load_whole(path: str | os.PathLike[str], **options: Any) -> Any:
    """``torch.load`` with weights_only=True of a file whose entries have their CRC-32, which torch writes and does not
    read; files of the older form have none. About 1 s per GB.

    Args:
        path: the file; it is opened once.
        options: of ``torch.load``.

    Raises:
        ValueError: an entry has changed since it was written; and whatever torch raises for a damaged file.
    """
    with open(path, "rb") as stream:
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                if (entry := archive.testzip()) is not None:
                    raise ValueError(f"{entry} does not have its checksum: the file has changed since it was written")
        stream.seek(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # of a damaged file
            try:
                return torch.load(stream, weights_only=True, **options)
            except MemoryError as error:
                raise ValueError("the memory does not suffice for the sizes in it") from error


def state_dict_of(content: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a torch file's content: it is a state_dict itself, or holds one under a usual key.

    Raises:
        ValueError: neither; the message names the file.
    """
    inner = next((content[key] for key in _STATE_DICTS if isinstance(content.get(key), Mapping)), content)
    if not inner or not all(isinstance(value, Tensor) for value in inner.values()):
        raise ValueError(f"{os.fspath(path)}: a torch file, but no state_dict of tensors")
    return dict(inner)


def _why_unreadable(file: Path, error: Exception) -> str:
    """Why torch did not read a file, in this project's words: its own advise to run the code in it."""
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if not head:
        return "an empty file, no weights"
    classes = _classes_in_the_way(file, error)
    if classes:
        return (
            f"not a readable file of weights: it holds objects of {', '.join(classes)} besides tensors, and nothing in "
            "it is run to make them; save it without them, where its classes are installed and the file is trusted: "
            "torch.save({'state_dict': checkpoint['state_dict']}, FILE)"
        )
    torch_file = head.startswith((b"PK\x03\x04", b"\x80"))
    if not torch_file and (kind := binary_kind(head)) is not None and "unknown kind" not in kind:
        return f"not a readable file of weights, but {kind}"
    if head.isascii() and b"\0" not in head:
        return "not a readable file of weights, but text"
    reason = "".join(each if each.isprintable() else " " for each in str(error).split("\n")[0])[:_REASON]
    if "weights_only" in str(error) or "Weights only" in str(error):
        reason = "its content is no pickle of tensors"
    return f"not a readable file of weights (truncated, not a torch file, or with code in it): {reason}"


def _classes_in_the_way(file: Path, error: Exception) -> list[str]:
    """The classes of objects in a torch file that are not loaded, by their full names."""
    names: set[str] = set()
    if zipfile.is_zipfile(file):
        with suppress(Exception):  # of a file that is broken as well, torch's own error is told
            names = set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    allowed = {name for _, name in (entry for entry in _numpy_scalars() if isinstance(entry, tuple))}
    names |= set(re.findall(r"GLOBAL ([A-Za-z_][\w.]*)", str(error)))
    return sorted(name for name in names - allowed if not name.startswith("torch."))


def _numpy_scalars() -> list[Any]:
    """numpy's scalars for torch's allow-list, under the names that files of numpy 1 and 2 call them by."""
    scalar = importlib.import_module(
        "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
    ).scalar
    kinds = ("float64", "float32", "int64", "int32", "bool")
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


def check_fit(
    expected: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    source: str | os.PathLike[str],
    *,
    optional: Callable[[str], bool] = lambda name: False,
) -> None:
    """Check that tensors have the names, shapes and kinds of number of a state_dict.

    Args:
        expected: the model's own state_dict.
        loaded: the tensors of the file.
        source: the file it came from, which opens the message.
        optional: whether a name may be missing.

    Raises:
        ValueError: names are missing or unknown, shapes differ, or integers stand for real numbers; the message lists
            them.
    """
    wrong = [
        f"{name} {list(loaded[name].shape)} (expected {list(expected[name].shape)})"
        for name in expected
        if name in loaded and loaded[name].shape != expected[name].shape
    ]
    missing = [name for name in expected if name not in loaded and not optional(name)]
    faults = {
        "missing": missing,
        "unknown": [name for name in loaded if name not in expected],
        "of another shape": wrong,
        "of another kind of number": [
            f"{name} {loaded[name].dtype} (expected {expected[name].dtype})"
            for name in expected
            if name in loaded and loaded[name].is_floating_point() != expected[name].is_floating_point()
        ],
    }
    listed = [f"{len(names)} {fault}: {some(names)}" for fault, names in faults.items() if names]
    if listed:
        raise ValueError(f"{os.fspath(source)}: does not fit the model; tensors {'; '.join(listed)}")
