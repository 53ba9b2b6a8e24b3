"""The whole network: images [B, 3, S, S] to logits [B, C] through a ResNet and the head, and the paper's training step.

Rivals, on the same random weights (nothing is downloaded):

- ``published``: float32, the head in the published form; on a GPU cuDNN convolves in tf32, PyTorch's default.
- ``ours``: channels_last, this library's head; on a GPU in bfloat16 (weights cast in inference, autocast in training).
- ``ours-compiled``: the same with the backbone under torch.compile.
- ``ours-captured``: the same with the whole step captured as one CUDA graph, and a fused Adam in training.

A training step is forward, loss, backward and Adam, with all before layer4 frozen (the published code's choice).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import rivals
from benchmarks.harness import cases, gpu, memory, report, timing
from benchmarks.harness.cases import Case, Shape
from benchmarks.harness.measure import Bench, forget_compiled, interleaved, why
from benchmarks.harness.peak import Measured
from benchmarks.harness.verify import Check, ParityError
from benchmarks.rivals.programs import LOOSE
from benchmarks.rivals.published import published_layers
from ssgrl_fast.models.backbones import Backbone, build_backbone, freeze_backbone
from ssgrl_fast.reference import published
from ssgrl_fast.testing import relative_error

NETWORK = "network"
CHECKED = 128  # side of the gate's images: a map of 2x2 behind the pool


@dataclass(frozen=True)
class Network:
    """One case: a torchvision ResNet, images of ``side`` and the head of ``shape`` (its channels are the ResNet's)."""

    net: str
    side: int
    shape: Shape
    batch: int
    mode: str
    device: str = "cpu"
    dtype: torch.dtype = torch.float32  # of ours

    def __str__(self) -> str:
        return f"{NETWORK} {self.mode}, {self.net} {self.side}x{self.side}: C={self.shape.classes} B={self.batch}"

    @property
    def head(self) -> Case:
        """The head's case in float32, whose tensors are its weights."""
        return Case("head", self.shape, self.batch, self.mode, device=self.device)

    def small(self) -> Network:
        """The case of the parity check: two small images."""
        return replace(self, side=min(self.side, CHECKED), batch=2, mode="infer")


class Published(nn.Module):
    """Backbone and head as published; the head's weights are parameters by the names of its layers."""

    def __init__(self, backbone: Backbone, case: Case, tensors: rivals.Tensors) -> None:
        super().__init__()
        self.backbone, self.steps = backbone, case.shape.steps
        layers, _ = published_layers(case, tensors)
        self.layers = nn.ParameterDict({name: nn.Parameter(value.detach()) for name, value in layers.items()})
        self.register_buffer("words", tensors["words"])
        self.register_buffer("adjacency", tensors["adjacency"])
        names = [field.name for field in fields(published.PublishedWeights)]
        self.absent = {name: None for name in names if name not in layers}

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, S, S]."""
        features = self.backbone(images).flatten(2).transpose(1, 2).contiguous()
        weights = published.PublishedWeights(**dict(self.layers.items()), **self.absent)  # type: ignore[arg-type]
        return published.published_head(features, self.words, self.adjacency, weights, steps=self.steps)[0]


class Ours(nn.Module):
    """Backbone and this library's head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, S, S]."""
        return self.head(self.backbone(images))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Runner:
    """A model with the images, labels and precision of its steps."""

    model: nn.Module
    images: Tensor  # [B, 3, S, S]
    labels: Tensor  # [B, C], 0 or 1
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    fused: bool = False

    def logits(self) -> Tensor:
        """[B, C], without autograd."""
        with torch.inference_mode(), self.precision():
            return self.model(self.images)  # type: ignore[no-any-return]

    def step(self, mode: str) -> Callable[[], tuple[Tensor, ...]]:
        """The timed function; it keeps no tensors."""
        if mode == "infer":
            self.model.eval()
            return lambda: (self.logits(), ())[1]
        self.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        adam = torch.optim.Adam(trained, lr=1e-5, **({"fused": True, "capturable": True} if self.fused else {}))

        def train() -> tuple[Tensor, ...]:
            with self.precision():
                loss = binary_cross_entropy_with_logits(self.model(self.images).float(), self.labels)
            loss.backward()
            adam.step()
            adam.zero_grad(set_to_none=True)
            return ()

        return train


def build_published(case: Network, backbone: Backbone, tensors: rivals.Tensors) -> Runner:
    """As published, float32."""
    return Runner(Published(backbone, case.head, tensors), *_batch(case))


def build_ours(
    case: Network, backbone: Backbone, tensors: rivals.Tensors, compiled: bool = False, captured: bool = False
) -> Runner:
    """Ours in the case's dtype, channels_last."""
    model = Ours(backbone, rivals.head_module(None, case.head, tensors)).to(memory_format=torch.channels_last)
    images, labels = _batch(case)
    images = images.to(memory_format=torch.channels_last)
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    if case.dtype != torch.float32 and case.mode == "infer":
        model, images = model.to(case.dtype), images.to(case.dtype)
    elif case.dtype != torch.float32:
        precision = partial(torch.autocast, case.device, case.dtype, cache_enabled=not captured)
    if compiled:
        model.backbone = torch.compile(model.backbone, dynamic=False)  # type: ignore[assignment]
    return Runner(model, images, labels, precision, fused=captured)


@dataclass(frozen=True)
class Rival:
    """An implementation of the network; ``build`` receives its own copy of the backbone."""

    name: str
    letter: str
    label: str
    build: Callable[[Network, Backbone, rivals.Tensors], Runner]
    compiled: bool = False
    captured: bool = False


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
    networks = []
    for mode in arguments.mode or cases.MODES:
        for batch in arguments.batch or ((1, 16) if mode == "infer" else (4,)):
            dtype = cases.PRECISIONS[precision][0]
            networks.append(Network(arguments.net, arguments.image, shape, batch, mode, arguments.device, dtype))
    return networks


def names(case: Network, compiled: bool) -> tuple[str, ...]:
    """The rivals of a case: the captured step only on a GPU, the compiled ones only if requested."""
    every = RIVALS.values()
    return tuple(r.name for r in every if (compiled or not r.compiled) and (case.device == "cuda" or not r.captured))


def check(case: Network) -> list[Check]:
    """The parity check: logits of two small images against float64, within LOOSE times the published form's own error.

    The plain error is that of the published form in ours' dtype, under autocast where that is a reduced one. Compiled
    rivals compute what ``ours`` does and are not checked apart; the head alone has its own gate
    (benchmarks.harness.verify).

    Raises:
        ParityError: ours differs by more.
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
    found = Check("ours", small, "logits", relative_error(built("ours").logits(), truth), allowed)  # type: ignore[arg-type]
    if not found.green:
        raise ParityError([found])
    return [found]


def make_backbone(case: Network) -> Backbone:
    """A ResNet with random weights, its running statistics those of random images, all before layer4 frozen.

    Without the statistics a deep random network in evaluation mode overflows.
    """
    torch.manual_seed(0)
    backbone = build_backbone(case.net, pretrained=False).to(case.device)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.inference_mode():
        backbone.train()(torch.randn(4, 3, CHECKED, CHECKED, device=case.device))
    for norm in norms:
        norm.momentum = 0.1
        norm.load_state_dict({name: value.clone() for name, value in norm.state_dict().items()}, assign=True)
    return freeze_backbone(backbone, "official")


def _batch(case: Network) -> tuple[Tensor, Tensor]:
    """Random images [B, 3, S, S] and labels [B, C] on the case's device, the same for every rival."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(case.batch, 3, case.side, case.side, generator=generator)
    labels = torch.randint(0, 2, (case.batch, case.shape.classes), generator=generator)
    return images.to(case.device), labels.to(case.device, torch.float32)


def measure(case: Network, wanted: tuple[str, ...], bench: Bench) -> list[report.Row]:
    """Memory and interleaved times of the network's rivals; a rival that raises gets a row with the reason."""
    load, backbone, tensors = timing.load_average(), make_backbone(case), cases.tensors(case.head)
    steps: dict[str, Callable[[], object]] = {}
    metered: dict[str, Measured] = {}
    refused: dict[str, tuple[str, str]] = {}
    forget_compiled()
    for name in wanted:
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
    return list(rows(case, wanted, times, metered, refused | failed, load))


def _meter(step: Callable[[], tuple[Tensor, ...]], device: str) -> Measured:
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
            "L": (case.side // 64) ** 2,
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
