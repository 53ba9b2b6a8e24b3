"""Models: SSGRL, its baseline, their backbones and bundles."""

from __future__ import annotations

import os
from typing import Any

from ssgrl_fast.models import bundle
from ssgrl_fast.models.backbones import build_backbone, freeze_backbone
from ssgrl_fast.models.pooling import GlobalPoolingClassifier
from ssgrl_fast.models.ssgrl import SSGRL

__all__ = ["SSGRL", "GlobalPoolingClassifier", "build_backbone", "freeze_backbone", "from_pretrained"]


def from_pretrained(
    path_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> SSGRL | GlobalPoolingClassifier:
    """Read a bundle of whichever kind it holds.

    Args:
        path_or_repo, revision, cache_dir: as for ``SSGRL.from_pretrained``.
        options: ``backbone=``, and what that kind takes (``backend=`` for SSGRL).

    Raises:
        FileNotFoundError, ValueError: as for ``SSGRL.from_pretrained``; a kind that this version does not know.
    """
    folder = bundle.locate(path_or_repo, revision, cache_dir)
    kind = bundle.read_config(folder)["kind"]
    kinds: dict[str, type[SSGRL | GlobalPoolingClassifier]] = {
        "SSGRL": SSGRL,
        "GlobalPoolingClassifier": GlobalPoolingClassifier,
    }
    if kind not in kinds:
        raise ValueError(f"{folder / bundle.CONFIG}: unknown kind {kind!r}, known are {', '.join(kinds)}")
    return kinds[kind].from_pretrained(folder, **options)
