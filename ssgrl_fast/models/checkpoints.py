"""Bundles: a model as one folder of two files, and the reading of weight files that says what does not fit.

    my_model/
        model.safetensors   every parameter and buffer, for SSGRL the words and the graph among them
        config.json         kind, class names, normalisation, backbone and its options, the head's options, and the
                            SHA-256 of model.safetensors

Both files are written beside their places and renamed. The SHA-256 ties them: a save that was interrupted between the
two renames, or a file from elsewhere, is refused when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssgrl_fast.checks import need

FORMAT = "ssgrl_fast bundle"
FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"

__all__ = ["BundleMixin", "check_fit", "locate", "read_bundle", "read_config", "read_tensors", "write_bundle"]

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LISTED = 6


class BundleMixin(nn.Module):
    """``save_pretrained`` and ``from_pretrained`` for a model that can describe itself in JSON.

    Attributes:
        preprocessing: what images went through before normalisation, {"image_size": pixels, "resize": pixels} of
            :func:`~ssgrl_fast.data.transforms.eval_transform`, or None where nobody said; it travels in the bundle.
        recipe: how it was trained, by name (mode, loss, seed, what chose its epoch, …), or None; travels as well.
    """

    preprocessing: dict[str, int] | None = None
    recipe: dict[str, str] | None = None

    @abstractmethod
    def bundle_config(self) -> dict[str, Any]:
        """What config.json says about this model, beside the format's own entries."""

    @classmethod
    @abstractmethod
    def from_config(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, backbone: nn.Module | None, **options: Any
    ) -> Self:
        """A model as config.json describes it, its weights not yet loaded."""

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a bundle; an earlier bundle in the folder is replaced, other files in it are left alone.

        Args:
            path: the folder, made if need be.

        Raises:
            FileExistsError: path is a file.
            OSError: the disc refused; the files that were there are untouched.
        """
        config = self.bundle_config()
        if self.preprocessing is not None:
            config["preprocessing"] = dict(self.preprocessing)
        if self.recipe is not None:
            config["recipe"] = dict(self.recipe)
        write_bundle(path, type(self).__name__, self.state_dict(), config)

    @classmethod
    def from_pretrained(
        cls, path_or_repo: str | os.PathLike[str], *, backbone: nn.Module | None = None, **options: Any
    ) -> Self:
        """Read a model that :meth:`save_pretrained` wrote, on the CPU, in its stored dtypes and in evaluation mode.

        Args:
            path_or_repo: a folder, or where no such folder exists the name ``owner/model`` of a Hugging Face Hub
                repository that holds the two files.
            backbone: the module that serves as backbone, needed where the bundle was saved with one of the user's own;
                it receives the bundle's weights.
            options: what the model takes beside what is stored: ``backend`` for SSGRL.

        Raises:
            FileNotFoundError: no such folder, or one of the two files is missing.
            ValueError: another kind of model, a truncated or foreign file, keys or shapes that do not fit. The message
                names the file. Nothing has been changed then, in ``backbone`` neither.
        """
        folder = locate(path_or_repo)
        config, tensors = read_bundle(folder, cls.__name__)
        try:
            model = cls.from_config(config, tensors, backbone=backbone, **options)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"it has no entry {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{folder / CONFIG}: does not describe a model that can be built: {reason}") from error
        check_fit(model.state_dict(), tensors, folder / WEIGHTS)
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.dtype != tensors[name].dtype:
                tensor.data = tensor.data.to(tensors[name].dtype)
        model.load_state_dict(tensors)
        model.preprocessing, model.recipe = config.get("preprocessing"), config.get("recipe")
        return model.eval()


def write_bundle(
    path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Write model.safetensors and config.json into a folder, each beside its place first, then renamed.

    Args:
        path: the folder.
        kind: the class that reads the bundle, ``"SSGRL"``.
        tensors: a state_dict; tensors on a device are copied, tensors that share memory are written apart.
        config: JSON values.

    Raises:
        FileExistsError: path is a file.
        OSError: the disc refused.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f".{name}.{os.getpid()}.partial" for name in (WEIGHTS, CONFIG)}
    try:
        save_file(_separate(tensors), parts[WEIGHTS], metadata={"format": "pt"})
        full = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind, **config}
        full["weights"] = {"file": WEIGHTS, "sha256": _digest(parts[WEIGHTS])}
        parts[CONFIG].write_text(json.dumps(full, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for part in parts.values():
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
        for name, part in parts.items():
            os.replace(part, folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def read_bundle(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of a bundle of one kind.

    Raises:
        FileNotFoundError, ValueError: see :meth:`BundleMixin.from_pretrained`.
    """
    config = read_config(folder)
    if config["kind"] != kind:
        other = config["kind"]
        raise ValueError(f"{folder / CONFIG}: holds a {other}, not a {kind}: read it with {other}.from_pretrained")
    weights = folder / WEIGHTS
    tensors = read_tensors(weights)
    expected = config["weights"]["sha256"]
    if (found := _digest(weights)) != expected:
        raise ValueError(
            f"{weights}: not the file that {CONFIG} was written with (SHA-256 {found[:12]}…, expected"
            f" {str(expected)[:12]}…): it was changed, or a save was interrupted; save the bundle again"
        )
    return config, tensors


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a bundle, its format checked.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: no JSON, no bundle of this project, a newer format, or an entry is missing.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a bundle is a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON (truncated?): {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path}: not the configuration of an {FORMAT} (it has no entry 'format': {FORMAT!r})")
    if config.get("format_version") != FORMAT_VERSION:
        found = config.get("format_version")
        raise ValueError(f"{path}: bundle format {found!r}, this version of ssgrl_fast reads format {FORMAT_VERSION}")
    entries = {"kind": str, "class_names": list, "backbone": dict, "normalisation": dict, "weights": dict}
    for name, kind in entries.items():
        if type(config.get(name)) is not kind:
            raise ValueError(f"{path}: entry {name!r} must be a {kind.__name__}, got {config.get(name)!r}")
    if "sha256" not in config["weights"]:
        raise ValueError(f"{path}: entry 'weights' has no 'sha256'")
    return config


def locate(path_or_repo: str | os.PathLike[str]) -> Path:
    """The folder of a bundle: a folder as it is, or the local copy of a Hugging Face Hub repository.

    Raises:
        FileNotFoundError: neither exists.
        ImportError: a repository was named and huggingface_hub is not installed.
    """
    folder = Path(path_or_repo)
    if folder.is_dir():
        return folder
    name = os.fspath(path_or_repo)
    if folder.exists() or not isinstance(path_or_repo, str) or not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(f"{name}: no such folder; a bundle is a folder with {CONFIG} and {WEIGHTS}")
    hub = need("huggingface_hub", "hub", f"{name!r} is no folder here, and reading it from the Hugging Face Hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{name}: no such folder, and no such Hub repository could be read: {error}") from error


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """A state_dict from a .safetensors file, or from a torch file (plain, or under the key 'state_dict'), on the CPU.

    A torch file is read with weights_only=True: no code in it runs.

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
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{file}: not a readable file of weights (truncated, or not a torch file): {reason}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file}: a torch file, but no state_dict of tensors")
    return dict(content)


def check_fit(
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    source: str | os.PathLike[str],
    *,
    optional: Callable[[str], bool] = lambda name: False,
) -> None:
    """Check that tensors have the names and shapes of a state_dict.

    Args:
        expected: the model's own state_dict.
        given: what came.
        source: the file it came from, which opens the message.
        optional: whether a name may be missing.

    Raises:
        ValueError: names are missing or unknown, or shapes differ; the message lists them.
    """
    wrong = [
        f"{name} {list(given[name].shape)} (expected {list(expected[name].shape)})"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    missing = [name for name in expected if name not in given and not optional(name)]
    faults = {
        "missing": missing,
        "unknown": [name for name in given if name not in expected],
        "of another shape": wrong,
    }
    said = [f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names]
    if said:
        raise ValueError(f"{os.fspath(source)}: does not fit the model; tensors {'; '.join(said)}")


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, no two of which share memory."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - _LISTED
    return ", ".join(listed[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
