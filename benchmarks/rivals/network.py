"""The whole network: images [B, 3, S, S] to logits [B, C] through a ResNet and the head, and the paper's training step.

Rivals, on the same random weights (nothing is downloaded):

- ``published``: float32, the head in the published form; on a GPU cuDNN convolves in tf32, PyTorch's default.
- ``ours``: channels_last, this library's head; on a GPU in bfloat16 (weights cast in inference, autocast in training).
- ``ours-compiled``: the same with the backbone under torch.compile.
- ``ours-captured``: the same with the whole step captured as one CUDA graph, and a fused Adam in training.
- on a CPU in inference also those of benchmarks/rivals/network_runtimes.py: prepared, in ONNX Runtime, in OpenVINO.

A training step is forward, loss, backward and Adam, with all before layer4 frozen (the published code's choice).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from functools import partial

import torch
from rich.table import Table

from benchmarks.harness import cases, gpu, memory, report, timing
from benchmarks.harness.measure import Bench, forget_compiled, interleaved, why
from benchmarks.harness.peak import Measured
from benchmarks.harness.verify import Check, ParityError
from benchmarks.rivals.network_models import (
    NETWORK,
    Network,
    Rival,
    Runner,
    build_backbone,
    build_ours,
    build_published,
    make_backbone,
)
from benchmarks.rivals.network_runtimes import SERVED
from benchmarks.rivals.programs import LOOSE
from ssgrl_fast.testing import relative_error

RIVALS = {
    rival.name: rival
    for rival in (
        Rival("published", "a", "as published", build_published),
        Rival("ours", "d", "ssgrl_fast, channels_last", build_ours),
        Rival("ours-compiled", "d", "and backbone compiled", partial(build_ours, compiled=True), compiled=True),
        Rival(
            "ours-captured",
            "d",
            "and the step captured",
            partial(build_ours, compiled=True, captured=True),
            compiled=True,
            captured=True,
        ),
        *SERVED,
    )
}


def plan(arguments: argparse.Namespace) -> list[Network]:
    """The cases of a command line: by default inference at B = 1 and 16 and training at B = 4.

    Raises:
        ValueError: a dtype that the network is not measured in.
    """
    default = "bfloat16" if arguments.device == "cuda" else "float32"
    precision = arguments.dtype[0] if arguments.dtype else default
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"--operation network: ours runs in float32 or bfloat16, not {precision}")
    shape = cases.SHAPES[arguments.shape[0] if arguments.shape else "coco"]
    if arguments.net not in ("resnet50", "resnet101", "resnet152"):  # whose D is the shapes'
        channels = build_backbone(arguments.net, pretrained=False).out_channels
        shape = replace(shape, channels=channels)
    networks = []
    for mode in arguments.mode or cases.MODES:
        for batch in arguments.batch or ((1, 16) if mode == "infer" else (4,)):
            dtype = cases.PRECISIONS[precision][0]
            networks.append(Network(arguments.net, arguments.image, shape, batch, mode, arguments.device, dtype))
    return networks


def names(case: Network, compiled: bool) -> tuple[str, ...]:
    """The rivals of a case."""
    return tuple(rival.name for rival in RIVALS.values() if rival.applies(case, compiled))


def check(case: Network) -> list[Check]:
    """The parity check: logits of two small images against float64, within LOOSE times the published form's own error.

    The plain error is that of the published form in ours' dtype, under autocast where that is a reduced one. Compiled
    rivals compute what ``ours`` does and are not checked apart; the head alone has its own gate
    (benchmarks.harness.verify). A runtime that computes the published network wrong is in the result and not timed.

    Raises:
        ParityError: one of ours differs by more.
    """
    small = case.small()
    tensors, backbone = cases.tensors(small.head), make_backbone(small)

    def built(name: str) -> Runner:
        runner = RIVALS[name].build(small, copy.deepcopy(backbone), tensors)
        runner.model.eval()
        return runner

    plain = built("published")
    reduced = partial(torch.autocast, case.device, case.dtype) if case.dtype != torch.float32 else nullcontext
    rough = replace(plain, precision=reduced).logits()
    truth = replace(plain, model=plain.model.double(), images=plain.images.double()).logits()
    floor = torch.finfo(case.dtype).eps / 2
    allowed = max(floor, LOOSE * relative_error(rough, truth))
    checked = [name for name in names(small, compiled=False) if name != "published" and not RIVALS[name].captured]
    errors = dict[str, float]()
    for name in checked:
        try:
            errors[name] = relative_error(built(name).logits(), truth)
        except Exception:  # what a runtime cannot convert is named by measure()
            if name.startswith("ours"):
                raise
    found = [Check(name, small, "logits", error, allowed) for name, error in errors.items()]  # type: ignore[arg-type]
    if red := [one for one in found if not one.green and one.rival.startswith("ours")]:
        raise ParityError(red)
    return found


def measure(case: Network, wanted: tuple[str, ...], bench: Bench, checks: Sequence[Check] = ()) -> list[report.Row]:
    """Memory and interleaved times of the network's rivals; one that raises, or is wrong by the parity check, gets a
    row with the reason."""
    load, backbone, tensors = timing.load_average(), make_backbone(case), cases.tensors(case.head)
    steps: dict[str, Callable[[], object]] = {}
    metered: dict[str, Measured] = {}
    refused = {one.rival: ("wrong", str(one)) for one in checks if not one.green}
    forget_compiled()
    for name in [name for name in wanted if name not in refused]:
        bench.say(f"warm-up: {name}, {case}")
        try:
            own = {key: value.clone() for key, value in tensors.items()}
            step = RIVALS[name].build(case, copy.deepcopy(backbone), own).step(case.mode)
            for _ in range(gpu.WARM_UP if case.device == "cuda" else 1):
                step()
            if bench.settings.memory:
                metered[name] = _meter(step, case.device)
            steps[name] = gpu.graphed(step) if RIVALS[name].captured else step
        except Exception as error:
            refused[name] = why(error)
        if case.device == "cuda":
            gpu.release()
    bench.say(f"time: {case}")
    times, failed = interleaved(steps, bench)
    with torch.inference_mode():
        locations = backbone.eval()(torch.zeros(1, 3, case.side, case.side, device=case.device))[0, 0].numel()
    return list(rows(case, wanted, times, metered, refused | failed, load, locations))


def _meter(step: Callable[[], tuple[torch.Tensor, ...]], device: str) -> Measured:
    """Memory beyond weights and optimizer state, in this process; a captured step is measured before its capture."""
    if device == "cuda":
        return gpu.metered(step)
    reason = memory.meter_missing()
    if reason is not None:
        return Measured(None, "unavailable", reason)
    return Measured(memory.peak_extra(step, allocator=False))


def rows(
    case: Network,
    wanted: tuple[str, ...],
    times: dict[str, timing.Timing],
    metered: dict[str, Measured],
    refused: dict[str, tuple[str, str]],
    load: float | None,
    locations: int,
) -> Iterator[report.Row]:
    """One row per rival; columns that apply only to the head (products, ceilings) are empty."""
    empty = dict.fromkeys(field.name for field in fields(report.Row))
    for name in wanted:
        time, meter = times.get(name), metered.get(name)
        status, reason = refused.get(name, ("ok", ""))
        dtype = torch.float32 if name == "published" else case.dtype
        known = {
            "operation": NETWORK,
            "shape": f"{case.net}-{case.side}-{case.shape.name}",
            "B": case.batch,
            "C": case.shape.classes,
            "L": locations,
            "D": case.shape.channels,
            "K": case.shape.joint_dim,
            "T": case.shape.steps,
            "dtype": str(dtype).removeprefix("torch."),
            "mode": case.mode,
            "rival": name,
            "letter": RIVALS[name].letter,
            "status": status,
            "reason": reason,
            "load_average": load,
            "memory_note": f"{meter.status}: {meter.reason}" if meter and meter.reason else "",
        }
        if time:
            p20, p50, p80 = (time.percentile(percent) for percent in (20, 50, 80))
            over = time.ratio(times["published"]) if "published" in times else None
            known |= {"rounds": len(time.seconds), "p20_ms": p20 * 1e3, "p50_ms": p50 * 1e3, "p80_ms": p80 * 1e3}
            known |= {"over_published": over, "images_per_s": case.batch / p50}
        if meter and meter.peak:
            known |= {f"{key}_bytes": value for key, value in asdict(meter.peak).items()}
            known["extra_bytes"] = meter.peak.extra
        yield report.Row(**(empty | known))  # type: ignore[arg-type]


def table(case: Network, found: list[report.Row]) -> Table:
    """The rows of one case, aligned."""
    out = Table(title=str(case), title_justify="left")
    for column in ("", "rival", "dtype"):
        out.add_column(column, no_wrap=True)
    for column in ("p20 ms", "median", "p80 ms", "images/s", "/ published", "extra MB"):
        out.add_column(column, justify="right")
    for row in found:
        label = RIVALS[row.rival].label
        if row.status != "ok":
            out.add_row(row.letter, label, row.dtype, row.status)
            continue
        times = [report.number(value, "{:.1f}") for value in (row.p20_ms, row.p50_ms, row.p80_ms)]
        rate, ratio = report.number(row.images_per_s, "{:.1f}"), report.number(row.over_published, "{:.2f}x")
        out.add_row(row.letter, label, row.dtype, *times, rate, ratio, report.megabytes(row.extra_bytes))
    return out
