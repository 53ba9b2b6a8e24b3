"""Who computes the backbone of a prepared model on a CPU: PyTorch, its compiler, ONNX Runtime or OpenVINO.

The head stays with this library's kernels, which beat what a runtime makes of its equations; a runtime gains on the
convolutions, which it fuses with the activations and sums after them.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssgrl_fast._utils.checks import check_choice, need
from ssgrl_fast.inference.conversion import SUFFIXES, Run, convert, open_converted
from ssgrl_fast.models.attention_grid import Grid
from ssgrl_fast.models.backbone import Backbone
from ssgrl_fast.models.pooling import GlobalPoolingClassifier
from ssgrl_fast.models.ssgrl import SSGRL

__all__ = ["RUNTIMES", "RuntimeBackbone", "with_runtime"]

RUNTIMES = ("torch", "compile", "onnxruntime", "openvino", "auto")
_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnx"}  # each with the extra that brings it, in auto's order
_BUDGET = 1e-5  # relative L2 of the logits, or 1.2 times PyTorch's own error
_RUNS = 3  # timed runs of two images for auto; the fastest counts
Model = TypeVar("Model", bound=SSGRL | GlobalPoolingClassifier)


class RuntimeBackbone(nn.Module):
    """A backbone whose maps another runtime computes, on the CPU in float32.

    The network is converted at its first image of a size; the file is kept in ``folder`` and used again by later
    processes. Its name holds a digest of the weights, so that no other network's file is ever taken.

    Args:
        backbone: in evaluation mode; as :func:`~ssgrl_fast.models.prepare.prepare` leaves it.
        runtime: "compile", "onnxruntime" or "openvino".
        folder: where converted networks are kept; None, or one that cannot be written: they are made anew each time.

    Raises:
        ImportError: the runtime's extra is not installed.
    """

    def __init__(self, backbone: Backbone, runtime: str, folder: Path | None) -> None:
        super().__init__()
        if runtime in _PACKAGES:
            need(runtime, _PACKAGES[runtime], f"--runtime {runtime}")
        self.mean, self.std, self.out_channels, self.name = (
            backbone.mean,
            backbone.std,
            backbone.out_channels,
            backbone.name,
        )
        self.runtime, self.folder = runtime, folder
        self._source = [backbone]  # in a list: its parameters are not this module's, which has none
        self._digest = "" if runtime == "compile" else _digest(backbone)
        self._runs: dict[tuple[int, ...], Run] = {}

    def forward(self, images: Tensor) -> Tensor:
        """The map [B, D, H', W'], float32, of images [B, 3, H, W], float32 on the CPU.

        Raises:
            ValueError: images of another shape, dtype or device.
        """
        if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.float32 or images.device.type != "cpu":
            raise ValueError(
                f"{self.runtime}: images must be float32 [B, 3, H, W] on the CPU, got {images.dtype} "
                f"{list(images.shape)} on {images.device}"
            )
        size = tuple(images.shape[2:])
        if size not in self._runs:
            self._runs[size] = self._load(size)
        return self._runs[size](images)

    def grid(self, height: int, width: int) -> Grid:
        """See :meth:`~ssgrl_fast.models.backbone.Backbone.grid`."""
        return self._source[0].grid(height, width)

    def _load(self, size: tuple[int, ...]) -> Run:
        if self.runtime == "compile":
            compiled: Run = torch.compile(self._source[0], options={"freezing": True})
            return compiled
        name = f"{self.runtime}-{self._digest}-{size[0]}x{size[1]}{SUFFIXES[self.runtime]}"
        folder = self._writable()
        with tempfile.TemporaryDirectory() as scratch:
            path = (folder or Path(scratch)) / name
            if not path.is_file():
                convert(self._source[0], torch.zeros(2, 3, *size), self.runtime, path)
            return open_converted(path, self.runtime)

    def _writable(self) -> Path | None:
        if self.folder is None:
            return None
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError:
            return None
        return self.folder if os.access(self.folder, os.W_OK) else None

    def extra_repr(self) -> str:
        return f"runtime={self.runtime!r}, name={self.name!r}, out_channels={self.out_channels}"


def with_runtime(model: Model, runtime: str, *, image_size: int, folder: Path | None = None) -> tuple[Model, str]:
    """A prepared model whose backbone runs in a runtime.

    ``auto`` takes the fastest of those that are installed ("compile" apart, which compiles for many seconds in each
    process), by the time of two random images on this machine, among those whose logits are equal to PyTorch's within
    1e-5 or 1.2 times PyTorch's own error against float64. What is asked for by name is held to the same bound.

    Args:
        model: from :func:`~ssgrl_fast.models.prepare.prepare`.
        runtime: "torch", "compile", "onnxruntime", "openvino" or "auto".
        image_size: side of the images that it is tried on, pixels; others serve as well.
        folder: where converted networks are kept, see :class:`RuntimeBackbone`.

    Returns:
        The model (the given one for "torch"), and in one line which runtime it uses and why.

    Raises:
        ValueError: an unknown runtime; a model that is not float32 on the CPU, or whose logits the runtime changes.
        ImportError: the runtime's extra is not installed.
    """
    check_choice("runtime", "runtime", runtime, RUNTIMES)
    dtype, device = _dtype_and_device(model)
    if runtime == "torch":
        return model, "runtime torch"
    if (dtype, device) != (torch.float32, "cpu"):
        if runtime == "auto":
            return model, f"runtime torch: the others run float32 on a CPU, and the model is {dtype} on {device}"
        raise ValueError(f"runtime {runtime!r} runs float32 on a CPU, and the model is {dtype} on {device}")
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=draw)
    installed = [name for name in _PACKAGES if importlib.util.find_spec(name) is not None]
    if runtime == "auto" and not installed:
        return (
            model,
            "runtime torch: neither openvino nor onnxruntime is installed (pip install 'ssgrl_fast[openvino]')",
        )
    with torch.inference_mode():
        truth = model(images)
        if runtime != "auto":
            changed = _changed(model, runtime, folder)
            _check(runtime, changed(images), truth, model, images)
            return changed, f"runtime {runtime}"
        return _fastest(model, images, truth, installed, folder)


def _fastest(
    model: Model, images: Tensor, truth: Tensor, installed: list[str], folder: Path | None
) -> tuple[Model, str]:
    times, models, refused = {"torch": _seconds(model, images)}, {"torch": model}, []
    for name in installed:
        try:
            candidate = _changed(model, name, folder)
            _check(name, candidate(images), truth, model, images)
        except Exception as error:  # whatever a converter or a runtime makes of a network it does not know
            refused.append(f"{name} is left out ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
            continue
        times[name], models[name] = _seconds(candidate, images), candidate
    best = min(times, key=times.__getitem__)
    measured = ", ".join(f"{name} {1e3 * seconds / len(images):.0f}" for name, seconds in times.items())
    reasons = "; ".join([f"ms an image here: {measured}", *refused])
    return models[best], f"runtime {best} ({reasons})"


def _changed(model: Model, runtime: str, folder: Path | None) -> Model:
    changed = copy.copy(model)
    changed._modules = dict(model._modules)
    changed.backbone = RuntimeBackbone(model.backbone, runtime, folder)  # type: ignore[assignment]
    return changed


def _check(runtime: str, logits: Tensor, truth: Tensor, model: nn.Module, images: Tensor) -> None:
    """Hold a runtime's logits to the budget.

    Raises:
        ValueError: they differ from PyTorch's by more.
    """
    difference = ((logits - truth).norm() / truth.norm()).item()
    if difference <= _BUDGET:
        return
    exact = copy.deepcopy(model).double()(images.double())
    own, error = (((values - exact).norm() / exact.norm()).item() for values in (truth, logits))
    if not error <= 1.2 * own:
        raise ValueError(
            f"runtime {runtime!r} changes the logits: they are {error:.1e} off float64, PyTorch's in float32 {own:.1e}"
        )


def _seconds(model: nn.Module, images: Tensor) -> float:
    """The fastest of a few runs, after one that is not counted."""
    model(images)
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        model(images)
        times.append(time.perf_counter() - start)
    return min(times)


def _dtype_and_device(model: nn.Module) -> tuple[torch.dtype, str]:
    tensor = next(iter([*model.parameters(), *model.buffers()]))
    return tensor.dtype, tensor.device.type


def _digest(backbone: Backbone) -> str:
    """16 hexadecimal digits over the weights, their names and what converts them."""
    digest = hashlib.sha256(json.dumps([torch.__version__, str(backbone)]).encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
