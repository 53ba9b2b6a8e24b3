"""The process of another commit: answers the requests of benchmarks.harness.base, one JSON line each, until the end of
its input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ssgrl_fast
from benchmarks import rivals
from benchmarks.harness import cases, gpu, measure, timing, verify
from benchmarks.harness.base import MARK
from ssgrl_fast.backends import names


class Server:
    """The state between requests: the warm steps and the clock of the device."""

    def __init__(self) -> None:
        self._steps: dict[str, Callable[[], object]] = {}
        self._sample: Callable[[Callable[[], object]], float] | None = None
        self._tf32 = False

    def hello(self, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        return {"package": str(Path(ssgrl_fast.__file__).resolve()), "backends": list(names())}

    def gate(self, case: dict[str, Any], names: list[str]) -> dict[str, Any]:
        whole = cases.from_description(case)
        able = [rivals.RIVALS[name] for name in names if rivals.RIVALS[name].refuses(whole) is None]
        try:
            return {"red": [], "quantities": len(verify.gate(whole, able)) if able else 0}
        except verify.ParityError as error:
            return {"red": [str(check) for check in error.red]}

    def prepare(self, case: dict[str, Any], names: list[str]) -> dict[str, Any]:
        whole = cases.from_description(case)
        self._steps.clear()
        self._sample, self._tf32 = timing.sampler(whole.device), whole.tf32
        refused: dict[str, tuple[str, str]] = {}
        try:
            tensors = cases.tensors(whole)
        except Exception as error:
            return {"ready": [], "refused": dict.fromkeys(names, measure.why(error))}
        for name in names:
            rival = rivals.RIVALS.get(name)
            reason = "this commit has no such backend" if rival is None else rival.refuses(whole)
            if rival is None or reason is not None:
                refused[name] = ("unavailable", str(reason))
                continue
            try:
                step = rivals.step(rival.build(whole, tensors), whole)
                with cases.multiplying(self._tf32):
                    for _ in range(gpu.WARM_UP if whole.device == "cuda" else 1):
                        step()
            except Exception as error:
                refused[name] = measure.why(error)
                continue
            self._steps[name] = step
        return {"ready": list(self._steps), "refused": refused}

    def sample(self, name: str) -> dict[str, Any]:
        assert self._sample is not None, "prepare comes before sample"
        try:
            with cases.multiplying(self._tf32):
                return {"seconds": self._sample(self._steps[name])}
        except Exception as error:
            status, reason = measure.why(error)
            return {"status": status, "reason": reason}


def main() -> None:
    """Answer requests until the input ends."""
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(server, request.pop("do"))(**request)
        print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
