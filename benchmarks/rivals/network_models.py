"""The whole network's cases, models and steps: what the rivals of ``--operation network`` are built from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import rivals
from benchmarks.harness.cases import Case, Shape
from benchmarks.rivals.published import published_layers
from ssgrl_fast.models.backbones import Backbone, build_backbone, freeze_backbone
from ssgrl_fast.reference import published

NETWORK = "network"
CHECKED = 128  # side of the gate's images: a map of 2x2 behind the pool


@dataclass(frozen=True)
class Network:
    """One case: a backbone by name, images of ``side`` and the head of ``shape`` (its channels are the backbone's)."""

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
    return Runner(Published(backbone, case.head, tensors), *random_batch(case))


def build_ours(
    case: Network, backbone: Backbone, tensors: rivals.Tensors, compiled: bool = False, captured: bool = False
) -> Runner:
    """Ours in the case's dtype, channels_last."""
    model = Ours(backbone, rivals.head_module(None, case.head, tensors)).to(memory_format=torch.channels_last)
    images, labels = random_batch(case)
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
    served: bool = False  # inference on a CPU in float32
    package: str | None = None

    def applies(self, case: Network, compiled: bool) -> bool:
        """Whether it is among a case's rivals: compiled ones only if asked for."""
        if self.served:
            return (case.mode, case.device, case.dtype) == ("infer", "cpu", torch.float32) and (
                self.package is None or find_spec(self.package) is not None
            )
        return (compiled or not self.compiled) and (case.device == "cuda" or not self.captured)


def make_backbone(case: Network) -> Backbone:
    """A network with random weights and running statistics of random images; a ResNet is frozen before layer4.

    Without the statistics a deep random network in evaluation mode overflows.
    """
    torch.manual_seed(0)
    sized = {"img_size": case.side} if "vit" in case.net else {}
    backbone = build_backbone(case.net, pretrained=False, **sized).to(case.device)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.inference_mode():
        if norms:
            backbone.train()(torch.randn(4, 3, CHECKED, CHECKED, device=case.device))
    for norm in norms:
        norm.momentum = 0.1
        norm.load_state_dict({name: value.clone() for name, value in norm.state_dict().items()}, assign=True)
    return freeze_backbone(backbone, "official" if hasattr(backbone.net, "layer4") else "all")


def random_batch(case: Network) -> tuple[Tensor, Tensor]:
    """Random images [B, 3, S, S] and labels [B, C] on the case's device, the same for every rival."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(case.batch, 3, case.side, case.side, generator=generator)
    labels = torch.randint(0, 2, (case.batch, case.shape.classes), generator=generator)
    return images.to(case.device), labels.to(case.device, torch.float32)
