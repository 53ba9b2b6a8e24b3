"""Export of a trained model as one file for another runtime (the verb ``export``).

ssgrl-fast export --model BUNDLE --format onnx --output model.onnx

- ``onnx``: the reference equations as an ONNX graph, for ONNX Runtime and similar programs. Needs the extra ``onnx``.
- ``openvino``: the same as OpenVINO's two files, .xml and .bin beside it. Needs the extra ``openvino``. A program that
  loads them, or the ONNX file, in OpenVINO sets ``INFERENCE_PRECISION_HINT`` to ``f32``: on a CPU with bfloat16
  instructions OpenVINO computes in bfloat16 otherwise.
- ``pt2``: a ``torch.export`` program, read by ``torch.export.load(FILE).module()``.
- ``aoti``: an AOTInductor package of compiled code, read by ``torch._inductor.aoti_load_package`` from Python or by
  ``torch::inductor::AOTIModelPackageLoader`` from C++. Needs a C++ compiler. It runs on machines like this one.

All take images [B, 3, S, S] of one size S, normalised as the model's backbone requires, with any B >= 1. They are for
inference only and have no backward. Programs and packages of the ``cpu`` backend call operators of its compiled
library, so their process first runs ``torch.ops.load_library(PATH)`` on it, or ``dlopen`` in C++; those of
``reference`` need nothing more.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ssgrl_fast._utils.checks import check_choice, need
from ssgrl_fast._utils.files import replacing
from ssgrl_fast.backends import use_backend

__all__ = ["FORMATS", "check_exported", "export_model", "load_exported"]

Format = Literal["onnx", "openvino", "pt2", "aoti"]
FORMATS = ("onnx", "openvino", "pt2", "aoti")
_EQUATIONS = ("onnx", "openvino")
"""Formats without this library's operators: they hold the equations of the backend ``reference``."""
FACTS = "ssgrl_fast.json"
"""The key of what the logits depend on: in the metadata of ONNX and AOTInductor files, an extra file in pt2."""
_SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "aoti": ".pt2"}
_TOLERANCE, _OWN = 1e-5, 4.0  # of the largest value, at least of 1; or this many times the model's own float32 error


class _Outputs(nn.Module):
    """The model with a fixed set of outputs, because an exported file has no keyword arguments."""

    def __init__(self, model: nn.Module, attention: bool) -> None:
        super().__init__()
        self.model, self.attention = model, attention

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.model(images, return_attention=True) if self.attention else (self.model(images),)


def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: Format,
    *,
    image_size: int,
    attention: bool = False,
    backend: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> float:
    """Write a model to one file, after a check that the file gives the model's outputs (:func:`check_exported`).

    Args:
        model: an :class:`~ssgrl_fast.SSGRL` or pooling classifier in evaluation mode, float32.
        path: the file: ``.onnx`` for onnx, ``.xml`` for openvino, ``.pt2`` for pt2 and aoti; an earlier one is
            replaced.
        format: "onnx", "openvino", "pt2" or "aoti", see the module.
        image_size: S, pixels, of the images [B, 3, S, S]; B stays free.
        attention: also output the attention [B, C, H', W'] beside the logits [B, C].
        backend: of the three operations; None: the fastest for pt2 and aoti, ``reference`` for onnx and openvino.
        facts: values for JSON, stored in the file under "ssgrl_fast.json": class names, normalisation, ...

    Returns:
        The largest error found by the check.

    Raises:
        ValueError: an unknown format, or a suffix, dtype or backend that the format does not support; a model in
            training mode; a file whose outputs differ from the model's; aoti without a C++ compiler. No file is then
            written.
        ImportError: onnx and openvino need the extras of these names.
        BackendUnavailable: the named backend cannot run here.
        OSError: the file could not be written; an earlier file is unchanged.
    """
    check_choice("export", "format", format, FORMATS)
    path, weight = Path(path), next(model.parameters())
    if path.suffix != _SUFFIX[format]:
        raise ValueError(f"export: the file of format {format!r} must end in {_SUFFIX[format]}, got {path}")
    if quantized := getattr(getattr(model, "head", None), "quantized", None):
        raise ValueError(
            f"export: the model must be float32, and its head is quantized ({quantized}): export the original"
        )
    if weight.dtype != torch.float32:
        raise ValueError(f"export: the model must be float32, got {weight.dtype}: convert it with model.float()")
    if model.training:
        raise ValueError("export: the model must be in evaluation mode, got one in training mode: call model.eval()")
    if format == "aoti":
        _need_compiler()
    if format in _EQUATIONS:
        if backend not in (None, "reference"):
            raise ValueError(f"export: {format} holds the equations of backend 'reference', got backend={backend!r}")
        backend = "reference"
    if format == "openvino":
        need("openvino", "openvino", "export to openvino")
    if format == "onnx":
        need("onnxscript", "onnx", "export to onnx")
        need("onnxruntime", "onnx", "the check of an exported ONNX file")
    built_with = {name for module in model.modules() if (name := getattr(module, "backend", None)) is not None}
    if backend is not None and built_with - {backend}:
        raise ValueError(
            f"export: the model was built with backend={built_with.pop()!r}, the export requests {backend!r}"
        )
    names = ["logits", "attention"] if attention else ["logits"]
    text = json.dumps({"outputs": names, "image_size": image_size, **(facts or {})})
    example = torch.zeros(2, 3, image_size, image_size, device=weight.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    # written and checked in a temporary folder, with the data file that an ONNX model of more than 2 GB has
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder, torch.no_grad():
        with use_backend(backend):
            program = _trace(_Outputs(model, attention).eval(), example)
        written = Path(folder) / path.name
        _WRITERS[format](program, example, written, names, text)
        difference = check_exported(written, format, model, image_size=image_size, attention=attention)
        if format == "onnx" and importlib.util.find_spec("openvino") is not None:  # its other runtime
            other = check_exported(written, "openvino", model, image_size=image_size, attention=attention)
            difference = max(difference, other)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):  # the model after its data
            with replacing(path.parent / file.name) as part:
                os.replace(file, part)
    return difference


def _need_compiler() -> None:
    from torch._inductor import config

    names = [name for name in config.cpp.cxx if name]
    if not any(shutil.which(name) for name in names):
        raise ValueError(f"export: aoti compiles C++, and there is no compiler {' or '.join(names)}: install one (g++)")


def _trace(outputs: nn.Module, example: Tensor) -> ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(outputs, (example,), dynamic_shapes={"images": {0: batch}})


def _write_onnx(program: ExportedProgram, example: Tensor, path: Path, names: list[str], text: str) -> None:
    written = torch.onnx.export(program, (example,), input_names=["images"], output_names=names, verbose=False)
    if written is None:
        raise ValueError("export: torch.onnx.export returned no program")
    written.model.metadata_props[FACTS] = text
    written.save(str(path))


def _write_openvino(program: ExportedProgram, example: Tensor, path: Path, names: list[str], text: str) -> None:
    openvino = need("openvino", "openvino", "export to openvino")
    network = openvino.convert_model(program)
    network.inputs[0].get_tensor().set_names({"images"})
    for output, name in zip(network.outputs, names, strict=True):
        output.get_tensor().set_names({name})
    network.set_rt_info(text, FACTS)
    openvino.save_model(network, str(path), compress_to_fp16=False)


def _write_pt2(program: ExportedProgram, example: Tensor, path: Path, names: list[str], text: str) -> None:
    torch.export.save(program, str(path), extra_files={FACTS: text})


def _write_aoti(program: ExportedProgram, example: Tensor, path: Path, names: list[str], text: str) -> None:
    options = {"aot_inductor.metadata": {FACTS: text}}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


_WRITERS: dict[str, Callable[[ExportedProgram, Tensor, Path, list[str], str], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "pt2": _write_pt2,
    "aoti": _write_aoti,
}


def load_exported(path: str | os.PathLike[str], format: Format) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """An exported file as a function of images [B, 3, S, S] that returns logits [B, C], and attention if it has it.

    Raises:
        ValueError: an unknown format.
        ImportError: onnx and openvino need the extras of these names.
    """
    check_choice("load_exported", "format", format, FORMATS)
    if format == "onnx":
        runtime = need("onnxruntime", "onnx", "running an ONNX file")
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda images: tuple(
            torch.from_numpy(value) for value in session.run(None, {"images": images.cpu().contiguous().numpy()})
        )
    if format == "openvino":
        core = need("openvino", "openvino", "running an OpenVINO file").Core()
        network = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda images: tuple(
            torch.from_numpy(value).clone() for value in network(images.cpu().contiguous().numpy()).to_tuple()
        )
    if format == "aoti":
        package = torch._inductor.aoti_load_package(str(path))
        return lambda images: tuple(package(images))
    program = torch.export.load(str(path)).module()
    return lambda images: tuple(program(images))


@torch.no_grad()
def check_exported(
    path: str | os.PathLike[str], format: Format, model: nn.Module, *, image_size: int, attention: bool = False
) -> float:
    """Compare an exported file with its model in float64, on random images in batches of 1, 2 and 3.

    Args:
        path, format: the file; an ONNX file is read by OpenVINO with format "openvino".
        model: in evaluation mode, on its own device and backend.
        image_size, attention: as for :func:`export_model`.

    Returns:
        The largest error of an output against the model in float64, relative to the largest value of that output or to
        1 if that is larger.

    Raises:
        ValueError: it exceeds 1e-5 and 4 times the float32 model's own error, or the shapes differ.
    """
    run, device, largest, allowed = load_exported(path, format), next(model.parameters()).device, 0.0, _TOLERANCE
    exact = copy.deepcopy(model).double()
    for batch in (1, 2, 3):
        draw = torch.Generator().manual_seed(batch)
        images = torch.randn(batch, 3, image_size, image_size, generator=draw).to(device)
        expected = _Outputs(model, attention)(images)
        with use_backend("reference" if device.type == "cpu" else None):
            truths = _Outputs(exact, attention)(images.double())
        outputs = run(images)
        if [list(t.shape) for t in outputs] != [list(t.shape) for t in expected]:
            shapes = f"{[list(t.shape) for t in outputs]}, expected {[list(t.shape) for t in expected]}"
            raise ValueError(f"export: {path} gives outputs of shapes {shapes}")
        for output, own, truth in zip(outputs, expected, truths, strict=True):
            scale = truth.abs().max().clamp_min(1.0)
            error, plain = ((value.to(device) - truth).abs().max() / scale for value in (output, own))
            largest = max(largest, error.nan_to_num(torch.inf).item())
            allowed = max(allowed, _OWN * plain.nan_to_num(0.0).item())
    if largest > allowed:
        raise ValueError(f"export: {path} differs from the model by {largest:.1e}, more than {allowed:.0e}")
    return largest
