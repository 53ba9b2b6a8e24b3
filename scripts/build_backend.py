"""The build backend: setuptools, which asks for torch only where something is compiled.

A static ``requires`` would fetch torch, some gigabytes, for every sdist and for builds with SSGRL_SKIP_EXT=1.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def _build() -> ModuleType:
    path = Path(__file__).resolve().parent.parent / "ssgrl_fast" / "backends" / "build.py"
    spec = importlib.util.spec_from_file_location("ssgrl_fast_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _requirements() -> list[str]:
    try:
        return list(_build().requirements())
    except ValueError as error:
        raise SystemExit(f"ssgrl_fast: {error}") from None


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What a wheel needs beside the static requirements."""
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requirements()]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    """What an editable installation needs beside the static requirements."""
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requirements()]
