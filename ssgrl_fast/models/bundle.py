"""Bundles: a model as one folder.

    my_model/
        model.safetensors   every parameter and buffer, for SSGRL the words and the graph among them
        README.md           a model card
        config.json         kind, class names, normalisation, backbone and its options, the head's options, where the
                            cells of the map look, and the SHA-256 of model.safetensors

The files are written beside their places and renamed. The SHA-256 ties them: a save that was interrupted between the
two renames, or a file from elsewhere, is refused when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ssgrl_fast._utils.checks import need, some
from ssgrl_fast._utils.files import locked, replacing
from ssgrl_fast.backends.base import BackendUnavailable
from ssgrl_fast.models.attention_grid import read_grids
from ssgrl_fast.models.backbone import Backbone
from ssgrl_fast.models.bundle_config import (
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS,
    check_config,
    config_digest,
    read_config,
)
from ssgrl_fast.models.model_card import write_card
from ssgrl_fast.models.weight_files import check_fit, read_tensors

TRAINED_ON = "trained_on.npy"
"""Written by training: marks of the training images (:mod:`ssgrl_fast.training.trained_on`)."""

__all__ = ["CONFIG", "WEIGHTS", "BundleMixin", "locate", "read_bundle", "read_config", "write_bundle"]

_REPOSITORY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


class BundleMixin(nn.Module):
    """``save_pretrained`` and ``from_pretrained`` for a model that can describe itself in JSON.

    Attributes:
        preprocessing: what images went through before normalisation, {"image_size": pixels, "resize": pixels} of
            :func:`~ssgrl_fast.data.transforms.eval_transform`, or None where unknown; stored in the bundle.
        origin: how its word vectors and graph were made (:mod:`ssgrl_fast.labels.origin`), or None; stored as well.
        recipe: how it was trained, by name (mode, loss, seed, what chose its epoch, …), or None; stored as well.
        prepared: whether :func:`~ssgrl_fast.models.prepare.prepare` made this model; it cannot be saved then.
    """

    preprocessing: dict[str, int] | None = None
    recipe: dict[str, str] | None = None
    origin: dict[str, Any] | None = None
    prepared: bool = False

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
            ValueError: the model is prepared for inference.
            FileExistsError: path is a file.
            OSError: the disc refused; the files that were there are untouched.
        """
        if self.prepared:
            raise ValueError(
                f"{type(self).__name__}: this model is prepared for inference, with weights that were folded: save the "
                "one that it was made from"
            )
        config = self.bundle_config()
        if self.preprocessing is not None:
            config["preprocessing"] = dict(self.preprocessing)
        if self.recipe is not None:
            config["recipe"] = dict(self.recipe)
        write_bundle(path, type(self).__name__, self.state_dict(), config)
        (Path(path) / TRAINED_ON).unlink(missing_ok=True)  # of the model that was there before

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Write the model as a bundle into a Hugging Face Hub repository, made if need be.

        Args:
            repo_id: ``owner/model``.
            private: whether a new repository is private.
            token: of the Hub; None is that of ``hf auth login``.

        Returns:
            The address of the commit.

        Raises:
            ImportError: huggingface_hub is not installed.
            ValueError: no such name can be; and what huggingface_hub raises.
        """
        if "@" in repo_id or not _REPOSITORY.fullmatch(repo_id):
            raise ValueError(f"push_to_hub: repo_id must be owner/model, got {repo_id!r}")
        api = need("huggingface_hub", "hub", "push_to_hub").HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload the model"))

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        backbone: nn.Module | None = None,
        class_names: Sequence[str] | None = None,
        words: Tensor | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Self:
        """Read a model that :meth:`save_pretrained` wrote, on the CPU, in its stored dtypes and in evaluation mode.

        huggingface_hub's own mixin is not used: it fetches config.json and the weights by two requests, which may see
        two commits, gives config.json's entries to the class unchecked, and would be needed to import this package.

        Args:
            path_or_repo: a folder, or where no such folder exists the name ``owner/model`` or ``owner/model@revision``
                of a Hugging Face Hub repository that holds the two files; both are read from one commit.
            backbone: the module that serves as backbone, needed where the bundle was saved with one of the user's own;
                it receives the bundle's weights.
            class_names: the classes that the caller works with, in its order; other ones are refused.
            words: [C, S], the word vectors that the caller works with; other ones are refused.
            revision: branch, tag or commit of the Hub repository; None: its main branch.
            cache_dir: where the Hub's files are kept; None: huggingface_hub's own place.
            options: what the model takes beside what is stored: ``backend`` for SSGRL.

        Raises:
            FileNotFoundError: no such folder, or one of the two files is missing.
            ValueError: other classes or words than the caller's, another kind of model, a truncated or foreign file,
                keys or shapes that do not fit, a revision or cache_dir for a folder. The message names the file.
                Nothing is changed then, not even ``backbone``.
        """
        folder = locate(path_or_repo, revision, cache_dir)
        config, tensors = read_bundle(folder, cls.__name__)
        if class_names is not None:
            _check_names(folder / CONFIG, config["class_names"], list(class_names))
        if words is not None:
            _check_words(folder / WEIGHTS, tensors.get("head.words"), words)
        with torch.device("meta"):  # takes no memory, whatever sizes config.json has
            planned = cls._built(folder, config, tensors, backbone=backbone, **options)
        check_fit(planned.state_dict(), tensors, folder / WEIGHTS)
        model = cls._built(folder, config, tensors, backbone=backbone, **options)
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.dtype != tensors[name].dtype:
                tensor.data = tensor.data.to(tensors[name].dtype)
        model.load_state_dict(tensors)
        for name in ("preprocessing", "recipe", "origin"):
            setattr(model, name, config.get(name))
        if isinstance(body := getattr(model, "backbone", None), Backbone):
            body.grids.update(read_grids(config.get("attention_grid", {})))
        return model.eval()

    @classmethod
    def _built(cls, folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], **options: Any) -> Self:
        try:
            return cls.from_config(config, tensors, **options)
        except (ImportError, OSError, BackendUnavailable):
            raise
        except Exception as error:  # networks of timm raise many types for options that do not fit together
            reason = f"it has no entry {error}" if isinstance(error, KeyError) else error or repr(error)
            raise ValueError(f"{folder / CONFIG}: does not describe a model that can be built: {reason}") from error


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
        ValueError: values that :func:`~ssgrl_fast.models.bundle_config.read_config` would not read again.
        FileExistsError: path is a file.
        OSError: the disc refused.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as alone:
        # the weights are renamed first: read_bundle sees by their digest where a save ended between the two
        with replacing(folder / CONFIG, alone=alone) as config_part, replacing(folder / WEIGHTS, alone=alone) as part:
            # save_file would write to a .tmp file of its own, which a kill leaves in the folder
            part.write_bytes(to_bytes(_separate(tensors), metadata={"format": "pt"}))
            full = {"format": FORMAT, "format_version": FORMAT_VERSION, "kind": kind, **config}
            full["weights"] = {"file": WEIGHTS, "sha256": _digest(part)}
            full = json.loads(json.dumps(full))
            check_config(full, f"{folder}: this model cannot be saved: its configuration")
            full["digest"] = config_digest(full)
            config_part.write_text(json.dumps(full, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        write_card(folder, full, alone=alone)


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
    if (digest := _digest(weights)) != expected:
        raise ValueError(
            f"{weights}: not the file that {CONFIG} was written with (SHA-256 {digest[:12]}…, expected"
            f" {str(expected)[:12]}…): it was changed, or a save was interrupted; save the bundle again"
        )
    return config, tensors


def locate(
    path_or_repo: str | os.PathLike[str], revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> Path:
    """The folder of a bundle: a folder as it is, or the local copy of a Hugging Face Hub repository, ``owner/model`` or
    ``owner/model@revision``; revision and cache_dir as for :meth:`BundleMixin.from_pretrained`.

    Raises:
        FileNotFoundError: neither exists.
        ValueError: a revision or cache_dir for a folder, or two revisions.
        ImportError: a repository was named and huggingface_hub is not installed.
    """
    folder, name = Path(path_or_repo), os.fspath(path_or_repo)
    if folder.is_dir():
        if revision is not None or cache_dir is not None:
            raise ValueError(f"{name} is a folder on this machine: revision and cache_dir are for Hub repositories")
        return folder
    found = _REPOSITORY.fullmatch(name) if isinstance(path_or_repo, str) else None
    if folder.exists() or found is None:
        raise FileNotFoundError(f"{name}: no such folder; a bundle is a folder with {CONFIG} and {WEIGHTS}")
    if found["revision"] and revision is not None:
        raise ValueError(f"{name} names a revision, and revision={revision!r} is another: give one of them")
    hub = need("huggingface_hub", "hub", f"{name!r} is no folder here, and reading it from the Hugging Face Hub")
    wanted = {"revision": found["revision"] or revision, "cache_dir": cache_dir}
    try:
        return Path(hub.snapshot_download(found["name"], allow_patterns=[CONFIG, WEIGHTS, TRAINED_ON], **wanted))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{name}: no such folder, and no such Hub repository could be read: {error}") from error


def _check_names(path: Path, stored: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a bundle of other classes, or of the same in another order."""
    if list(stored) == list(wanted):
        return
    if sorted(stored) == sorted(wanted):
        place = next(index for index, pair in enumerate(zip(stored, wanted, strict=True)) if pair[0] != pair[1])
        raise ValueError(
            f"{path}: has the classes in another order than class_names: at {place} it has {stored[place]!r}, not"
            f" {wanted[place]!r}; logits of one would be read as those of the other"
        )
    lacking = [name for name in wanted if name not in stored]
    besides = [name for name in stored if name not in wanted]
    differences = [f"lacks {some(lacking)}"] * bool(lacking) + [f"has {some(besides)} besides"] * bool(besides)
    raise ValueError(f"{path}: is over other classes than class_names: it {' and '.join(differences)}")


def _check_words(path: Path, stored: Tensor | None, wanted: Tensor) -> None:
    """Refuse a bundle with other word vectors, beyond the rounding of another dtype."""
    if stored is None:
        raise ValueError(f"{path}: holds no words to compare with words=")
    if stored.shape != wanted.shape:
        raise ValueError(f"{path}: was made with words {list(stored.shape)}, words= is {list(wanted.shape)}")
    pair = (stored.double(), wanted.detach().cpu().to(stored.dtype).double())
    if not torch.equal(*pair):
        row = int((pair[0] - pair[1]).abs().amax(1).argmax())
        raise ValueError(f"{path}: was made with other words than words=: row {row} differs most")


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
