"""Labels that were read from annotations, kept so that the next run need not parse them again.

A cache is one file a list of annotations and options. It holds the size and the times of change (of the content, and of
the inode where the system has one) of every annotation file, and is used only if all are as they were: what was
altered, added or taken away is read anew, and the file replaced. Annotations altered less than two seconds before they
are read are not kept, since an alteration within the clock's step would not show. A broken cache is a warning, and is
made again; where the folder cannot be written to there is none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.files import replacing

__all__ = ["BrokenCache", "CachedLabels", "LabelCache"]

_FORMAT = 1
_SETTLED = 2.0  # seconds; the coarsest clock of a file system (FAT) steps by two
_ABSENT = (-1, -1, -1)
_log = logging.getLogger(__name__)


class BrokenCache(UserWarning):
    """A file of cached labels cannot be read; the annotations are read instead."""


@dataclass(frozen=True)
class CachedLabels:
    """Labels int8 [M, C], C class names, and M names of the rows."""

    labels: Tensor
    class_names: list[str]
    rows: list[str]


class LabelCache:
    """The labels of some annotation files under some options.

    Args:
        folder: where caches lie, made if need be; None: there are none.
        options: what decides the labels beside the files, JSON values: kind, class list, rules.
        files: the annotation files, in order; how they are now is looked at here.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None, options: Mapping[str, Any], files: Sequence[Path]
    ) -> None:
        self.path: Path | None = None
        if folder is None:
            return
        self._files = list(files)
        names = [os.path.abspath(file) for file in files]
        self._key = json.dumps({"format": _FORMAT, "options": options, "files": names}, ensure_ascii=False)
        self._stamps, self._seen = _stamps(files), time.time()
        self.path = Path(folder) / f"labels-{hashlib.sha256(self._key.encode()).hexdigest()[:20]}.npz"

    def load(self) -> CachedLabels | None:
        """What an earlier run kept, if the files are as they were then; None: they are to be read."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                stamps, labels = arrays["stamps"], arrays["labels"]
                text = json.loads(arrays["text"].tobytes().decode())
            found = CachedLabels(torch.from_numpy(labels), text["class_names"], text["rows"])
            sound = labels.dtype == np.int8 and labels.shape == (len(found.rows), len(found.class_names))
            if text["key"] != self._key or not sound:
                raise ValueError("its content is not what its name says")
        except (
            BadZipFile,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            OSError,
            NotImplementedError,
            zlib.error,
        ) as error:
            warnings.warn(
                f"{self.path}: not a readable cache of labels ({error}): annotations are read anew, it is replaced",
                BrokenCache,
                stacklevel=3,
            )
            return None
        if not np.array_equal(stamps, self._stamps):
            _log.info("%s: annotations were altered since, and are read again", self.path)
            return None
        return found

    def store(self, labels: Tensor, class_names: Sequence[str], rows: Sequence[str]) -> None:
        """Keep what was read, unless the files changed meanwhile or just before, or the folder cannot be written to.

        Args:
            labels: int8 [M, C].
            class_names: C names.
            rows: M names.
        """
        if self.path is None:
            return
        newest = self._stamps[:, 1:].max(initial=0) / 1e9
        if newest > self._seen - _SETTLED or not np.array_equal(_stamps(self._files), self._stamps):
            _log.info("%s: annotations were altered just now, and are not kept", self.path)
            return
        text = json.dumps({"key": self._key, "class_names": list(class_names), "rows": list(rows)}, ensure_ascii=False)
        content = np.frombuffer(text.encode(), np.uint8)
        try:
            with replacing(self.path) as part, part.open("wb") as file:
                np.savez(file, stamps=self._stamps, labels=labels.numpy(), text=content)
        except OSError as error:
            _log.info("labels are not cached: %s", error)


def _stamps(files: Sequence[Path]) -> np.ndarray:
    """Size, time of change of the content and of the inode (ns) of every file, int64 [n, 3]; -1 where there is none."""
    found = np.empty((len(files), 3), dtype=np.int64)
    for row, file in enumerate(files):
        try:
            facts = os.stat(file)
        except OSError:
            found[row] = _ABSENT
        else:
            found[row] = facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
    return found
