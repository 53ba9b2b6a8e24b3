"""Who computes the backbone of a prepared model on a CPU: PyTorch, its compiler, ONNX Runtime or OpenVINO.

The head stays with this library's kernels, which beat what a runtime makes of its equations; a runtime gains on the
convolutions, which it fuses with the activations and sums after them. OpenVINO also computes the backbone of a bfloat16
model in bfloat16, and of any model in int8.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ssgrl_fast._utils.checks import check_choice, need
from ssgrl_fast._utils.files import write_json
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.inference.conversion import SUFFIXES, Run, convert, convert_int8, open_converted
from ssgrl_fast.models.attention_grid import Grid
from ssgrl_fast.models.backbone import Backbone
from ssgrl_fast.models.pooling import GlobalPoolingClassifier
from ssgrl_fast.models.prepare import fuse_backbone
from ssgrl_fast.models.ssgrl import SSGRL

__all__ = ["RUNTIMES", "RuntimeBackbone", "backbone_digest", "with_runtime"]

RUNTIMES = ("torch", "compile", "onnxruntime", "openvino", "auto")
_PACKAGES = {"openvino": "openvino", "onnxruntime": "onnx"}  # each with the extra that brings it, in auto's order
_PRECISIONS = {"openvino": ("float32", "bfloat16", "int8"), "onnxruntime": ("float32",), "compile": ("float32",)}
_BUDGET = 1e-5  # relative L2 of float32's logits, or 1.2 times PyTorch's own error in the model's dtype
_RUNS = 3  # timed runs of a batch for auto; the fastest counts
Model = TypeVar("Model", bound=SSGRL | GlobalPoolingClassifier)
Calibration = Callable[[int], Sequence[Tensor]]
_CALIBRATED = 128  # images that int8's ranges are taken from, at most


class RuntimeBackbone(nn.Module):
    """A backbone whose maps another runtime computes, on the CPU.

    The network is converted at its first image of a size; the file is kept in ``folder`` and used again by later
    processes. Its name holds a digest of the weights, so that no other network's file is ever taken.

    Args:
        backbone: in evaluation mode; as :func:`~ssgrl_fast.models.prepare.prepare` leaves it.
        runtime: "compile", "onnxruntime" or "openvino".
        folder: where converted networks are kept; None, or one that cannot be written: they are made anew each time.
        precision: "float32", or with OpenVINO "bfloat16" or "int8".
        dtype: of the maps.
        calibration: gives at most so many images [3, H, W], which the ranges of int8 are taken from; None: only a
            network that was converted before is taken.
        digest: of the backbone (:func:`backbone_digest`), where it is known.

    Raises:
        ImportError: the runtime's extra is not installed.
    """

    def __init__(
        self,
        backbone: Backbone,
        runtime: str,
        folder: Path | None,
        *,
        precision: str = "float32",
        dtype: torch.dtype = torch.float32,
        calibration: Calibration | None = None,
        digest: str | None = None,
    ) -> None:
        super().__init__()
        if runtime in _PACKAGES:
            need(runtime, _PACKAGES[runtime], f"--runtime {runtime}")
        self.mean, self.std, self.out_channels, self.name = (
            backbone.mean,
            backbone.std,
            backbone.out_channels,
            backbone.name,
        )
        self.runtime, self.folder, self.precision, self.dtype = runtime, folder, precision, dtype
        self._calibration = calibration
        self._source = [backbone.float()]  # in a list: its parameters are not this module's, which has none
        self._digest = digest or ("" if runtime == "compile" else backbone_digest(backbone))
        self._runs: dict[tuple[int, ...], Run] = {}

    def forward(self, images: Tensor) -> Tensor:
        """The map [B, D, H', W'] of images [B, 3, H, W], float32 on the CPU.

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
        return self._runs[size](images).to(self.dtype)

    def grid(self, height: int, width: int) -> Grid:
        """See :meth:`~ssgrl_fast.models.backbone.Backbone.grid`."""
        return self._source[0].grid(height, width)

    def _load(self, size: tuple[int, ...]) -> Run:
        if self.runtime == "compile":
            compiled: Run = torch.compile(self._source[0], options={"freezing": True})
            return compiled
        folder = self._writable()
        with tempfile.TemporaryDirectory() as scratch:
            stem = f"{self._digest}-{size[0]}x{size[1]}{SUFFIXES[self.runtime]}"
            plain = (folder or Path(scratch)) / f"{self.runtime}-{stem}"
            path = plain.with_name(f"{self.runtime}-int8-{stem}") if self.precision == "int8" else plain
            if path.is_file():
                with suppress(Exception):  # it was damaged: it is made anew
                    return open_converted(path, self.runtime, reduced=self.precision == "bfloat16")
            if path == plain or not plain.is_file():
                convert(self._source[0], torch.zeros(2, 3, *size), self.runtime, plain)
            if path != plain:
                convert_int8(plain, self._calibrated(size), path)
            return open_converted(path, self.runtime, reduced=self.precision == "bfloat16")

    def _calibrated(self, size: tuple[int, ...]) -> Sequence[Tensor]:
        """The images that int8's ranges are taken from."""
        if self._calibration is None:
            raise ValueError(
                f"int8 needs photographs for images of {size[0]}x{size[1]} pixels, from which the ranges of the "
                "activations are taken once: --calibration FOLDER (in Python: calibration=[…])"
            )
        return self._calibration(_CALIBRATED)

    def _writable(self) -> Path | None:
        if self.folder is None:
            return None
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError:
            return None
        return self.folder if os.access(self.folder, os.W_OK) else None

    def extra_repr(self) -> str:
        return f"{self.runtime}, {self.precision}, name={self.name!r}, out_channels={self.out_channels}"


def with_runtime(
    model: Model,
    runtime: str,
    *,
    image_size: int,
    folder: Path | None = None,
    int8: bool = False,
    calibration: Calibration | None = None,
) -> tuple[Model, str]:
    """A prepared model whose backbone runs in a runtime.

    ``auto`` takes the fastest of those that are installed ("compile" apart, which compiles for many seconds in each
    process), by the time of eight random images on this machine, among those whose logits are equal to PyTorch's within
    1e-5 or 1.2 times PyTorch's own error against float64 in the model's dtype. Its choice is kept in the folder for
    this machine, number of threads and these versions; what was chosen is held to the bound by every process. A runtime
    that is asked for by name is held to the same bound in float32; in bfloat16 and int8 the line says how far it moves
    the probabilities of two images.

    Args:
        model: from :func:`~ssgrl_fast.models.prepare.prepare`; on a CPU in float32, or for OpenVINO in bfloat16. With
            ``fuse=False``, unless for "torch", it is ready sooner: "auto" fuses it where PyTorch is the fastest.
        runtime: "torch", "compile", "onnxruntime", "openvino" or "auto".
        image_size: side of the images that it is tried on, pixels; others serve as well.
        folder: where converted networks are kept, see :class:`RuntimeBackbone`.
        int8: compute the backbone in int8, which OpenVINO does; the head keeps its dtype.
        calibration: see :class:`RuntimeBackbone`.

    Returns:
        The model (for "torch" the given one, or from "auto" its fused form), and in one line which runtime it uses and
        why.

    Raises:
        ValueError: an unknown runtime; a dtype or device that it does not run; logits that the runtime changes; int8
            without images to calibrate it by.
        ImportError: the runtime's extra is not installed.
    """
    check_choice("runtime", "runtime", runtime, RUNTIMES)
    weight = _head_weight(model)
    precision = "int8" if int8 else str(weight.dtype).removeprefix("torch.")
    able = [name for name in _PRECISIONS if precision in _PRECISIONS[name] and weight.device.type == "cpu"]
    if int8 and runtime == "auto":
        runtime = "openvino"
    if runtime == "torch" and not int8:
        return model, "runtime torch"
    if runtime == "auto" and not able:
        return _fused(model), f"runtime torch: no other computes in {precision} on {weight.device.type}"
    if runtime not in (*able, "auto"):
        where = f"{precision} on {weight.device.type}"
        others = f"; {', '.join(able)} can" if able else ""
        raise ValueError(f"runtime {runtime!r} does not compute in {where}{others}")
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    installed = [name for name in _PACKAGES if name in able and importlib.util.find_spec(name) is not None]
    if runtime == "auto" and not installed:
        names = [name for name in _PACKAGES if name in able]
        missing = ("neither " if len(names) > 1 else "no ") + " nor ".join(names)
        return _fused(model), f"runtime torch: {missing} is installed (pip install 'ssgrl_fast[openvino]')"
    digest = None if runtime == "compile" else backbone_digest(model.backbone)
    change = partial(_changed, model, folder=folder, precision=precision, calibration=calibration, digest=digest)
    with torch.inference_mode():
        if precision != "float32" and runtime != "auto":
            changed, exact = change(runtime), change(runtime, precision="float32")
            return changed, f"runtime {runtime}, backbone in {precision}: {_moved(changed, exact, calibration, images)}"
        truth = model(images.to(weight.dtype))
        if runtime != "auto":
            changed = change(runtime)
            _check(runtime, changed(images), truth, model, images)
            return changed, f"runtime {runtime}"
        kept = None if folder is None else folder / f"auto-{_conditions(digest, model, image_size, installed)}.json"
        if kept is not None and (chosen := _chosen_before(kept, installed)) is not None:
            with suppress(Exception):  # a converted network that was damaged since: all are tried anew
                if chosen[0] == "torch":
                    changed = _fused(model)
                else:
                    changed = change(chosen[0])
                    _check(chosen[0], changed(images), truth, model, images)
                return changed, f"runtime {chosen[0]} ({chosen[1]}, measured before)"
        fastest, name, reasons = _fastest(model, images, truth, installed, change)
        if kept is not None and os.access(kept.parent, os.W_OK):
            write_json(kept, {"runtime": name, "reasons": reasons})
        return fastest, f"runtime {name} ({reasons})"


def _moved(changed: nn.Module, exact: nn.Module, calibration: Calibration | None, images: Tensor) -> str:
    """How far the probabilities of two images move.

    Raises:
        ValueError: to what is not finite.
    """
    if calibration is not None:
        images = torch.stack(list(calibration(2)))
    values = [model(images).float().sigmoid() for model in (changed, exact)]
    if not values[0].isfinite().all():
        raise ValueError(
            f"{type(changed).__name__}: the backbone in reduced precision gives logits that are not finite"
        )
    kind = "random images" if calibration is None else "the photographs"
    moved = (values[0] - values[1]).abs().max()
    return f"probabilities of two of {kind} move by up to {moved:.3f}"


def _fastest(
    model: Model, images: Tensor, truth: Tensor, installed: list[str], change: Callable[[str], Model]
) -> tuple[Model, str, str]:
    """The model in the fastest runtime, its name, and the times."""
    batch = images.repeat(4, 1, 1, 1)
    plain = _fused(model)
    times, models, refused = {"torch": _seconds(plain, batch.to(truth.dtype))}, {"torch": plain}, []
    for name in installed:
        try:
            candidate = change(name)
            _check(name, candidate(images), truth, model, images)
        except Exception as error:  # whatever a converter or a runtime makes of a network it does not know
            refused.append(f"{name} is left out ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
            continue
        times[name], models[name] = _seconds(candidate, batch), candidate
    best = min(times, key=times.__getitem__)
    measured = ", ".join(f"{name} {1e3 * seconds / len(batch):.0f}" for name, seconds in times.items())
    return models[best], best, "; ".join([f"ms per image here: {measured}", *refused])


def _conditions(digest: str | None, model: Model, image_size: int, installed: list[str]) -> str:
    """16 hexadecimal digits over all that the choice of a runtime depends on."""
    versions = [(name, importlib.metadata.version(name)) for name in installed]
    machine = platform.node(), platform.processor(), torch.get_num_threads()
    shapes = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in model.head.state_dict().items()]
    facts = json.dumps([digest, image_size, versions, machine, shapes])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _chosen_before(path: Path, installed: list[str]) -> tuple[str, str] | None:
    """The runtime that an earlier process chose, and its reasons; None where there is no readable choice."""
    try:
        choice = parse_json(path.read_text(encoding="utf-8"))
        name, reasons = choice["runtime"], choice["reasons"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (name, str(reasons)) if name in (*installed, "torch") else None


def _changed(model: Model, runtime: str, *, folder: Path | None, precision: str, **known: Any) -> Model:
    body = model.backbone if precision == "float32" else copy.deepcopy(model.backbone)
    dtype = _head_weight(model).dtype
    return _with_backbone(model, RuntimeBackbone(body, runtime, folder, precision=precision, dtype=dtype, **known))


def _fused(model: Model) -> Model:
    """The model whose backbone PyTorch is to compute; the given one where nothing is left to fuse."""
    backbone = copy.deepcopy(model.backbone)
    return _with_backbone(model, backbone) if fuse_backbone(backbone) else model


def _with_backbone(model: Model, backbone: nn.Module) -> Model:
    """The model on another backbone; the given one stays as it is, and they share the head."""
    changed = copy.copy(model)
    changed._modules = {**model._modules, "backbone": backbone}
    return changed


def _head_weight(model: Model) -> Tensor:
    """A tensor with the dtype and device of the head."""
    return next(iter([*model.head.parameters(), *model.head.buffers()]))


def _check(runtime: str, logits: Tensor, truth: Tensor, model: nn.Module, images: Tensor) -> None:
    """Hold a runtime's logits to the budget.

    Raises:
        ValueError: they differ from PyTorch's by more.
    """
    difference = ((logits - truth).norm() / truth.norm()).item()
    if difference <= _BUDGET and truth.dtype == torch.float32:
        return
    exact = copy.deepcopy(model).double()(images.double())
    own, error = (((values - exact).norm() / exact.norm()).item() for values in (truth, logits))
    if not error <= 1.2 * own:
        raise ValueError(
            f"runtime {runtime!r} changes the logits: they are {error:.1e} off float64, PyTorch's {own:.1e}"
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


def backbone_digest(backbone: Backbone) -> str:
    """16 hexadecimal digits over the weights in float32, their names and what converts them."""
    digest = hashlib.sha256(json.dumps([torch.__version__, str(backbone)]).encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode())
        tensor = tensor.detach().float() if tensor.is_floating_point() else tensor
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
