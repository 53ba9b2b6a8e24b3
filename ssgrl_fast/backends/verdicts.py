"""Measured facts that put the backend ``cuda`` before the others, operation by operation, on the GPU they are of.

``ssgrl-fast parity --device cuda`` writes them into the user's cache folder. A verdict counts where GPU, torch, triton
and this library are those that it was measured with; a file that cannot be read counts for nothing, and ``explain()``
says why.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ssgrl_fast._utils.files import write_json
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast._version import __version__
from ssgrl_fast.backends import extension

_FORMAT = "ssgrl_fast verdicts 1"


@dataclass(frozen=True)
class Verdict:
    """What a GPU's owner measured of ``cuda`` for one operation in one dtype."""

    gpu: str
    capability: str  # such as "9.0"
    torch: str
    triton: str
    library: str  # version and digest of the compiled sources
    operation: str
    dtype: str
    parity: bool  # every error within its budget
    ratio: float | None  # time of cuda over that of the backend without a verdict: the worst case; None: not timed

    @property
    def is_better(self) -> bool:
        """Whether cuda is right and faster."""
        return self.parity and self.ratio is not None and self.ratio < 1

    @property
    def circumstances(self) -> dict[str, str]:
        """What it was measured on and with."""
        return {name: getattr(self, name) for name in ("gpu", "capability", "torch", "triton", "library")}

    def __str__(self) -> str:
        speed = "not timed" if self.ratio is None else f"{self.ratio:.2f} of the time"
        return f"{self.dtype} {speed if self.parity else 'over its error budget'}"


def place() -> Path:
    """The file verdicts.json in the folder ssgrl_fast of the user's cache folder: $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssgrl_fast" / "verdicts.json"


def circumstances(device: torch.device) -> dict[str, str]:
    """GPU, torch, triton and library, as a verdict of this process on a GPU names them."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    native = extension.native()[0]
    return {
        "gpu": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "torch": torch.__version__,
        "triton": triton,
        "library": f"{__version__} {native.build_info()['sources'] if native else 'of unknown sources'}",
    }


def read() -> tuple[list[Verdict], str | None]:
    """The recorded verdicts, and the reason why there are none where a file is there and cannot be used."""
    path = place()
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise ValueError(f"it is no file of the format {_FORMAT!r}")
        return [_checked(entry) for entry in found["verdicts"]], None
    except FileNotFoundError:
        return [], None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"the verdicts in {path} are ignored: {error}"


def _checked(entry: Any) -> Verdict:
    verdict = Verdict(**entry)
    texts = {name: value for name, value in asdict(verdict).items() if name not in ("parity", "ratio")}
    wrong = [name for name, value in texts.items() if not isinstance(value, str)]
    wrong += [] if isinstance(verdict.parity, bool) else ["parity"]
    ratio: Any = verdict.ratio
    wrong += [] if ratio is None or (isinstance(ratio, float) and 0 < ratio < float("inf")) else ["ratio"]
    if wrong:
        raise ValueError(f"{', '.join(f'{name} {getattr(verdict, name)!r}' for name in wrong)} cannot be meant")
    return verdict


def record(verdicts: Iterable[Verdict]) -> str | None:
    """Write verdicts beside those of other GPUs, versions, operations and dtypes, and over older ones of the same.

    Returns:
        None, or why the file that was there could not be read, and is replaced.
    """
    known, reason = read()
    merged = {(*v.circumstances.values(), v.operation, v.dtype): v for v in (*known, *verdicts)}
    write_json(place(), {"format": _FORMAT, "verdicts": [asdict(v) for v in merged.values()]})
    return reason


def of(operation: str, device: torch.device) -> tuple[list[Verdict], str]:
    """The verdicts on an operation that count on a device, and a sentence about them and about what does not count."""
    recorded, reason = read()
    known = [verdict for verdict in recorded if verdict.operation == operation]
    here = circumstances(device) if known else {}
    counting = [verdict for verdict in known if verdict.circumstances == here]
    if counting:
        return counting, f"measured: {', '.join(map(str, counting))}; first where faster"
    if known:
        other = min(({k: v for k, v in one.circumstances.items() if v != here[k]} for one in known), key=len)
        reason = "its verdicts are of other " + ", ".join(f"{name} ({value})" for name, value in other.items())
    return [], f"runs where it is named; {reason or 'no verdict yet'}: ssgrl-fast parity --device cuda"


def puts_first(operation: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a verdict puts ``cuda`` before the other backends for an operation."""
    name = str(dtype).removeprefix("torch.")
    return any(verdict.is_better for verdict in of(operation, device)[0] if verdict.dtype == name)
