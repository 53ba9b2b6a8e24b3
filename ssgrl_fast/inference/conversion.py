"""Networks converted for ONNX Runtime or OpenVINO, and opened there, on the CPU; for OpenVINO also in int8."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.files import replacing

__all__ = ["SUFFIXES", "Run", "convert", "convert_int8", "open_converted"]

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


def convert_int8(source: Path, images: Sequence[Tensor], path: Path) -> None:
    """Write an OpenVINO network of :func:`convert` with int8 weights and activations, by NNCF's post-training
    quantization: scales from the images, ResNets' sums of mixed signs asymmetric, biases corrected.

    Args:
        source: the network's ``.xml``.
        images: what the activations' ranges are taken from, each [3, H, W], as the network is fed.
        path: the ``.xml`` to write; the weights come beside it as ``.bin``.

    Raises:
        ImportError: the extra "int8" is not installed.
        ValueError: no images.
    """
    nncf = need("nncf", "int8", "--dtype int8")
    if not images:
        raise ValueError("int8: no images to take the ranges of the activations from")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its set_log_level changes the handlers of others as well
    core = _openvino_core()
    data = nncf.Dataset([image[None].numpy() for image in images])
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        network = nncf.quantize(
            core.read_model(source, source.with_suffix(".bin")),
            data,
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
        )
    _save_openvino(network, path)


def open_converted(path: Path, runtime: str, *, reduced: bool = False) -> Run:
    """A function of images [B, 3, H, W] that runs a file of :func:`convert` on PyTorch's number of threads.

    Args:
        path: the file.
        runtime: "onnxruntime" or "openvino".
        reduced: let OpenVINO compute products in bfloat16.
    """
    return _open_onnx(path) if runtime == "onnxruntime" else _open_openvino(path, reduced)


def _to_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    need("onnxscript", "onnx", "--runtime onnxruntime")
    with replacing(path) as part:
        torch.onnx.export(
            program, (), str(part), input_names=["images"], output_names=["map"], external_data=False, verbose=False
        )


def _to_openvino(program: torch.export.ExportedProgram, path: Path) -> None:
    import openvino

    _save_openvino(openvino.convert_model(program), path)


def _save_openvino(network: Any, path: Path) -> None:
    import openvino

    with replacing(path.with_suffix(".bin")) as weights:
        scratch = weights.with_name(f"{weights.name}.xml")
        openvino.save_model(network, scratch, compress_to_fp16=False)
        os.replace(scratch.with_suffix(".bin"), weights)
    os.replace(scratch, path)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # threads that wait in a loop would take the cores from the head's; ONNX Runtime alone is as fast without
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
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


def _open_openvino(path: Path, reduced: bool) -> Run:
    options: dict[str, Any] = {  # by default OpenVINO computes in bfloat16 where the CPU can
        "INFERENCE_PRECISION_HINT": "bf16" if reduced else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = _openvino_core()
    compiled = core.compile_model(core.read_model(path, path.with_suffix(".bin")), "CPU", options)
    return lambda images: torch.from_numpy(compiled([images.contiguous().numpy()])[0].copy())
