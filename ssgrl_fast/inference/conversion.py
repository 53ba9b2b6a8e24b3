"""Networks converted for ONNX Runtime or OpenVINO, and opened there: float32 on the CPU."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.files import replacing

__all__ = ["SUFFIXES", "Run", "convert", "open_converted"]

SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}
Run = Callable[[Tensor], Tensor]


def convert(network: nn.Module, images: Tensor, runtime: str, path: Path) -> None:
    """Write a network of images for a runtime; the batch is free, the size of the images is not.

    Args:
        network: in evaluation mode; takes images [B, 3, H, W] and returns one tensor.
        images: an example, of at least two images.
        runtime: "onnxruntime" or "openvino".
        path: the file to write, with the suffix of SUFFIXES; OpenVINO's weights come beside it as ``.bin``.

    Raises:
        ImportError: the runtime's extra is not installed.
        Exception: what PyTorch's export or the converter makes of a network that it does not know.
    """
    with torch.no_grad():
        batch = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(network, (images,), dynamic_shapes=batch)
    (_to_onnx if runtime == "onnxruntime" else _to_openvino)(program, path)


def open_converted(path: Path, runtime: str) -> Run:
    """A function of images [B, 3, H, W] that runs a file of :func:`convert` on PyTorch's number of threads."""
    return (_open_onnx if runtime == "onnxruntime" else _open_openvino)(path)


def _to_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    need("onnxscript", "onnx", "--runtime onnxruntime")
    with replacing(path) as part:
        torch.onnx.export(
            program, (), str(part), input_names=["images"], output_names=["map"], external_data=False, verbose=False
        )


def _to_openvino(program: torch.export.ExportedProgram, path: Path) -> None:
    import openvino

    with replacing(path.with_suffix(".bin")) as weights:
        scratch = weights.with_name(f"{weights.name}.xml")
        openvino.save_model(openvino.convert_model(program), scratch, compress_to_fp16=False)
        os.replace(scratch.with_suffix(".bin"), weights)
    os.replace(scratch, path)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


@functools.cache
def _openvino_core() -> Any:
    """OpenVINO's one core of this process, never dropped.

    Its CPU plugin gives the first thread a stack for signals of its own, and unmaps it when the last core goes, which
    may be another thread's doing; the next signal with a Python handler (a worker's end, Ctrl-C) would then crash.
    """
    import openvino

    return openvino.Core()


def _open_openvino(path: Path) -> Run:
    exact: dict[str, Any] = {  # by default OpenVINO computes in bfloat16 where the CPU can
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = _openvino_core()
    compiled = core.compile_model(core.read_model(path, path.with_suffix(".bin")), "CPU", exact)
    return lambda images: torch.from_numpy(compiled([images.contiguous().numpy()])[0].copy())
