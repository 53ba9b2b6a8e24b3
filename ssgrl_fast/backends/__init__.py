"""Which kernels run: the list of backends, the choice among them, and the reason for every refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock

import torch

from ssgrl_fast.backends import cpu, cuda, reference, triton, verdicts
from ssgrl_fast.backends.base import INFERENCE_STEMS, STEMS, Backend, BackendUnavailable

__all__ = [
    "Backend",
    "BackendUnavailable",
    "Row",
    "Table",
    "choose",
    "chosen",
    "explain",
    "get",
    "names",
    "use_backend",
]

_BACKENDS: dict[str, Backend] = {  # fastest first; behind reference, which refuses nothing, stands what must be named
    backend.name: backend for backend in (cpu.BACKEND, triton.BACKEND, reference.BACKEND, cuda.BACKEND)
}
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_preferred: ContextVar[str | None] = ContextVar("ssgrl_fast_backend", default=None)
_remembered: dict[tuple[str, torch.device, torch.dtype], str] = {}  # the fastest backend, by what the choice depends on
_blocks = 0  # open use_backend blocks, of all threads; at 0 _preferred, which torch 2.11 cannot trace, is not read
_blocks_lock = Lock()


def names() -> tuple[str, ...]:
    """The names of all backends in the order of choice, the fastest first; those behind "reference" must be named, or
    be put first by a verdict of ``ssgrl-fast parity --device cuda``."""
    return tuple(_BACKENDS)


def get(name: str) -> Backend:
    """The backend of this name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, _BACKENDS))}, got {name!r}")
    return _BACKENDS[name]


def named(requested: str | None) -> str | None:
    """The backend that an operation was told to use: by its own argument, else by ``use_backend``, else None."""
    return requested if requested is not None or _blocks == 0 else _preferred.get()


def choose(stem: str, device_type: str | torch.device, dtype: torch.dtype, requested: str | None = None) -> str:
    """The name of the backend that runs an operation.

    Args:
        stem: "semantic_attention", "graph_propagation", "label_scores" or "graph_propagation_fp8".
        device_type: the tensors' device, or its type alone: "cuda" is then the current GPU.
        dtype: of the features or states.
        requested: a backend's name; None takes that of ``use_backend``, else the fastest that can run.

    Raises:
        ValueError: no backend has this name.
        BackendUnavailable: the named backend cannot run these inputs.
    """
    name = named(requested)
    if name is None:
        return _fastest(stem, torch.device(device_type), dtype)
    reason = get(name).refusal(stem, device_type, dtype)
    if reason is not None:
        raise BackendUnavailable(f"{stem}: backend {name!r} cannot run here: {reason}")
    return name


def _fastest(stem: str, device: torch.device, dtype: torch.dtype) -> str:
    """The first backend that can run; remembered, because every call of an operation asks for it."""
    key = (stem, device, dtype)  # GPUs of one machine may differ
    if key in _remembered:
        return _remembered[key]
    name = first_able(stem, device, dtype)
    if device.type == "cpu" or (device.index is not None and torch.cuda.is_initialized()):
        _remembered[key] = name
    return name


# torch.compile evaluates it while it traces: torch._dynamo.assume_constant_result, whose import would take long.
_fastest._dynamo_marked_constant = True  # type: ignore[attr-defined]


def first_able(stem: str, device: torch.device, dtype: torch.dtype, *, verdict: bool = True) -> str:
    """The name of the first backend that can run an operation; without ``verdict`` recorded verdicts do not count."""
    order = [b for b in _BACKENDS.values() if b.refusal(stem, device, dtype) is None]
    if verdict and device.type == "cuda" and cuda.BACKEND in order and verdicts.puts_first(stem, device, dtype):
        return cuda.BACKEND.name
    return order[0].name


def chosen(
    device_type: str | torch.device, dtype: torch.dtype, requested: str | None = None, stems: Sequence[str] = STEMS
) -> str:
    """The names of the backends that run a head's operations, each once, for reports; see :func:`choose`."""
    return ", ".join(dict.fromkeys(choose(stem, device_type, dtype, requested) for stem in stems))


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Within the block every operation without a ``backend`` of its own runs on this one; None restores the choice.

    The setting belongs to the current thread or task. A function under ``torch.compile`` keeps the backend that it was
    compiled with.

    Raises:
        ValueError: no backend has this name.
        BackendUnavailable: at an operation inside the block, when the backend cannot run its inputs.
    """
    if name is not None:
        get(name)
    token = _preferred.set(name)
    _count_blocks(1)
    try:
        yield
    finally:
        _count_blocks(-1)
        _preferred.reset(token)


def _count_blocks(change: int) -> None:
    global _blocks
    with _blocks_lock:
        _blocks += change


@dataclass(frozen=True)
class Row:
    """One operation on one backend and device: the dtypes it runs, the reason where it runs none, and a remark."""

    operation: str
    backend: str
    device: str
    dtypes: tuple[torch.dtype, ...]
    reason: str
    remark: str = ""

    @property
    def usable(self) -> bool:
        """Whether any dtype runs."""
        return bool(self.dtypes)


class Table(list[Row]):
    """The rows of :func:`explain`; prints as aligned text."""

    def __str__(self) -> str:
        head = ("operation", "backend", "device", "runs")
        body = [(r.operation, r.backend, r.device, _said(r)) for r in self]
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(3)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in [head, *body]
        ]
        return "\n".join(lines)


def explain(device: str | torch.device | None = None) -> Table:
    """Say for each operation and backend whether it can run on a device, in which dtypes, or why not.

    Args:
        device: a device; None stands for cpu and, where there is one, the current GPU.

    Returns:
        A list of rows, the fastest backend first, that prints as a table.
    """
    if device is None:
        devices: list[str | torch.device] = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    else:
        devices = [device]
    table = Table()
    for where in map(torch.device, devices):
        for stem in (*STEMS, *INFERENCE_STEMS):
            for backend in _BACKENDS.values():
                reasons = {dtype: backend.refusal(stem, where, dtype) for dtype in _DTYPES}
                usable = tuple(dtype for dtype, reason in reasons.items() if reason is None)
                reason = "" if usable else str(reasons[torch.bfloat16 if stem in INFERENCE_STEMS else torch.float32])
                table.append(Row(stem, backend.name, str(where), usable, reason, backend.remark(stem, where)))
    return table


def _said(row: Row) -> str:
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in row.dtypes)
    return "; ".join(filter(None, (names if row.usable else f"no: {row.reason}", row.remark)))
