"""The whole network's rivals for inference on a CPU: prepared, and with ONNX Runtime or OpenVINO.

- ``published-onnxruntime``, ``published-openvino``: the published network as a whole, converted and run by the runtime.
- ``ours-prepared``: :func:`ssgrl_fast.prepare`, PyTorch alone.
- ``ours-onnxruntime``, ``ours-openvino``: ``--runtime``, the backbone in the runtime and the head in our kernels.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import rivals
from benchmarks.rivals.network_models import Backbone, Network, Rival, Runner, build_published, random_batch
from ssgrl_fast.inference.conversion import SUFFIXES, Run, convert, open_converted
from ssgrl_fast.inference.runtimes import with_runtime
from ssgrl_fast.models.prepare import prepare
from ssgrl_fast.models.ssgrl import SSGRL

RUNTIMES = tuple(SUFFIXES)


class Converted(nn.Module):
    """A network that a runtime runs."""

    def __init__(self, network: nn.Module, images: Tensor, runtime: str) -> None:
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"network{SUFFIXES[runtime]}"
            convert(network, torch.cat([images, images]), runtime, path)
            self.run: Run = open_converted(path, runtime)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, S, S]."""
        return self.run(images)


def build_published_in(runtime: str, case: Network, backbone: Backbone, tensors: rivals.Tensors) -> Runner:
    """The published network in a runtime, for the case's own size."""
    plain = build_published(case, backbone, tensors)
    return Runner(Converted(plain.model.eval(), plain.images, runtime), plain.images, plain.labels)


def build_prepared(runtime: str | None, case: Network, backbone: Backbone, tensors: rivals.Tensors) -> Runner:
    """Ours as ``predict`` runs it: prepared, the backbone in a runtime or in PyTorch."""
    model = SSGRL(backbone, tensors["words"], tensors["adjacency"])
    model.head = rivals.head_module(None, case.head, tensors)
    prepared = prepare(model.eval())
    if runtime is not None:
        prepared, _ = with_runtime(prepared, runtime, image_size=case.side)
    return Runner(prepared, *random_batch(case))


SERVED = (
    *(
        Rival(
            f"published-{runtime}",
            "c",
            f"as published, {runtime}",
            partial(build_published_in, runtime),
            served=True,
            package=runtime,
        )
        for runtime in RUNTIMES
    ),
    Rival("ours-prepared", "d", "ssgrl_fast, prepared", partial(build_prepared, None), served=True),
    *(
        Rival(
            f"ours-{runtime}",
            "d",
            f"ssgrl_fast, {runtime}",
            partial(build_prepared, runtime),
            served=True,
            package=runtime,
        )
        for runtime in RUNTIMES
    ),
)
