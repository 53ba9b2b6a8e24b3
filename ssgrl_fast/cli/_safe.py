"""The option ``--safe``: a recipe may only name classes and functions of a few packages.

A recipe is a program: the classes and functions that it names are imported and called. jsonargparse compares a name
with its lists before it imports anything, and afterwards the place where the object is defined: ``torch.os.system`` is
refused too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ssgrl_fast._utils.checks import need

SAFE_PACKAGES = ("lightning", "ssgrl_fast", "torch", "torchvision")
_REFUSED = (  # parts of these packages that run, build, unpickle or download programs
    *("lightning.fabric.cli", "lightning.pytorch.cli"),
    *(f"ssgrl_fast.{name}" for name in ("backends", "benchmarks", "cli", "testing")),
    *(f"torch.{name}" for name in ("_dynamo", "_inductor", "classes", "distributed", "hub", "jit", "load", "ops")),
    *(f"torch.{name}" for name in ("multiprocessing", "package", "serialization", "testing", "utils")),
    "torchvision.datasets",
)


class _Safe(argparse.Action):
    """Shown in the help; :func:`obey_safe` has obeyed it before the parser reads a recipe."""

    def __call__(self, *_: Any) -> None:
        """Nothing is left to do."""


def add_safe_option(parser: Any) -> None:
    """Add ``--safe``, which no recipe can give or take away."""
    parser.add_argument(
        "--safe",
        action=_Safe,
        nargs=0,
        default=argparse.SUPPRESS,
        help=f"refuse recipes that name anything outside {', '.join(SAFE_PACKAGES)}, before it is imported",
    )


def obey_safe(arguments: Sequence[str]) -> None:
    """Restrict for the rest of the process what recipes may name, if ``--safe`` or its beginning is an argument."""
    if any(len(each) > 2 and "--safe".startswith(each) for each in arguments):
        need("jsonargparse", "train", "--safe").set_parsing_settings(
            import_path_denylist=["*", *_REFUSED],
            import_path_allowlist=list(SAFE_PACKAGES),
            instantiate_subclass_spec_in_any=False,
        )
