"""The verb ``env``: what is installed, how it was built, which devices there are and which kernels run on them."""

from __future__ import annotations

import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch

from ssgrl_fast import backends
from ssgrl_fast._utils import files
from ssgrl_fast._utils.memory import keep_memory
from ssgrl_fast._version import __version__
from ssgrl_fast.backends import build, extension
from ssgrl_fast.cli._options import verb_parser
from ssgrl_fast.cli._sentences import say

_DISTRIBUTION = "ssgrl_fast"
_WIDTH = 100  # columns of a value before it is wrapped


def report() -> str:
    """The report as text: sections of aligned ``name  value`` lines. Compiles nothing; asks for no network."""
    sections = [
        ("Versions", _versions()),
        ("Compiled library", _library()),
        ("Devices", _devices()),
        ("Extras", _extras()),
    ]
    blocks = [f"{title}\n{_aligned(rows)}" for title, rows in sections]
    table = "\n".join(f"  {line}" for line in str(backends.explain()).splitlines())
    return "\n\n".join([*blocks, f"Backends (the fastest first)\n{table}"])


def main(argv: Sequence[str]) -> int:
    """Run ``env``: print :func:`report`."""
    verb_parser("env").parse_args(argv)
    say(report())
    return 0


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        first, *rest = textwrap.wrap(value, _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"  {name.ljust(width)}  {first}", *(f"  {' ' * width}  {line}" for line in rest)]
    return "\n".join(lines)


def _versions() -> list[tuple[str, str]]:
    return [
        ("ssgrl_fast", f"{__version__}, {Path(__file__).resolve().parents[1]}"),
        ("recipes", _recipes()),
        ("Python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"),
        ("torch", torch.__version__),
        ("numpy", numpy.__version__),
        ("triton", _version("triton") or "not installed"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("freed memory", str(keep_memory())),
    ]


def _recipes() -> str:
    try:
        return str(files.config_folder())
    except FileNotFoundError as error:
        return str(error)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _library() -> list[tuple[str, str]]:
    reason = extension.library()
    cuda = extension.cuda_library()
    rows = [
        ("operators", "loaded" if reason is None else f"not usable: {reason}"),
        ("CUDA kernels", "loaded" if cuda is None else f"not usable: {cuda}"),
    ]
    module, missing = extension.native()
    if module is None:
        return [*rows, ("build facts", f"not known: {missing}")]
    facts = module.build_info()
    digest = build.source_digest()
    if digest is None:
        state = f"{facts['sources']}"
    elif digest == facts["sources"]:
        state = f"{facts['sources']}, those of this source tree"
    else:
        state = f"{facts['sources']}, but csrc/ is {digest}: it changed after the build"
    return [
        *rows,
        ("version", f"{facts['version']}, for Python {facts['built_for_python']}, with pybind11 {facts['pybind11']}"),
        ("compiler", facts["compiler"]),
        ("flags", facts["flags"]),
        ("CUDA build", _cuda_build(facts)),
        ("torch ABI", f"stable, target {facts['torch_target']}, built with torch {facts['built_with_torch']}"),
        ("sources", state),
        ("compiled for", ", ".join(module.kernel_isas())),
        ("in use here", _in_use(module)),
    ]


def _in_use(module: Any) -> str:
    """The CPU kernels' instruction set, and the library of their large products, which an older ``_native`` lacks."""
    if not hasattr(module, "product_library"):
        return str(module.cpu_isa())
    return f"{module.cpu_isa()}; large float32 products by {module.product_library()}"


def _cuda_build(facts: dict[str, str]) -> str:
    """What the build facts say of the CUDA kernels, which an older ``_native`` does not know."""
    if "nvcc" not in facts:
        return "not known: the library was built before its facts named it"
    if not facts["nvcc"]:
        return "none: this build left the CUDA kernels out"
    products = f"with CUTLASS {facts['cutlass']}" if facts["cutlass"] else "left out, for want of CUTLASS"
    return f"nvcc {facts['nvcc']}, for {facts['cuda_targets']}; gated products {products}"


def _devices() -> list[tuple[str, str]]:
    capability = torch.backends.cpu.get_cpu_capability()
    rows = [("cpu", f"{os.cpu_count()} logical CPUs, {torch.get_num_threads()} torch threads, ATen uses {capability}")]
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        return [*rows, ("cuda", f"no device ({built})")]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = facts.total_memory / 2**30
        rows.append((f"cuda:{index}", f"{facts.name}, sm_{facts.major}{facts.minor}, {memory:.1f} GiB"))
    return rows


def _extras() -> list[tuple[str, str]]:
    """For each extra of this installation the packages that are missing, by the installed metadata."""
    try:
        requires = metadata.requires(_DISTRIBUTION) or []
        extras = metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return [("not known", "ssgrl_fast runs from a source tree that is not installed")]
    rows = []
    for extra in extras:
        names = [_requirement_name(line) for line in requires if f'extra == "{extra}"' in line.replace("'", '"')]
        absent = [name for name in names if _version(name) is None]
        present = ", ".join(f"{name} {_version(name)}" for name in names if name not in absent)
        if not absent:
            rows.append((extra, present))
        else:
            rows.append((extra, f"missing {', '.join(absent)}: pip install 'ssgrl_fast[{extra}]'"))
    return rows


def _requirement_name(line: str) -> str:
    for end, character in enumerate(line):
        if not (character.isalnum() or character in "-_."):
            return line[:end]
    return line
