"""The verb ``export``: a bundle as one file for another runtime.

ssgrl-fast export --model runs/cards/version_0/bundle --format onnx --output model.onnx
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from ssgrl_fast.cli._options import verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.inference.export import FORMATS, export_model
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.models import SSGRL


def main(argv: Sequence[str]) -> int:
    """Run ``export``: write the file, and print what it expects and needs.

    Raises:
        FileNotFoundError, ValueError: see :class:`Predictor` and :func:`export_model`.
    """
    options = _parser().parse_args(argv)
    backend = options.backend
    predictor = Predictor.load(options.model, image_size=options.image_size, device=options.device, backend=backend)
    model, size = predictor.model, predictor.image_size
    if options.attention and not hasattr(model.head, "semantic_decoupling"):
        raise ValueError(f"export: {options.model} holds a {type(model).__name__}, which has no attention maps")
    facts = {**predictor.facts(), "class_names": predictor.class_names}
    facts["backend"] = "reference" if options.format in ("onnx", "openvino") else facts["backend"]
    if isinstance(model, SSGRL) and options.attention:
        facts["attention_grid"] = dict(
            zip("yx", (axis.tolist() for axis in model.attention_grid(size, size)), strict=True)
        )
    say(f"exporting {options.model} as {options.format}, images [B, 3, {size}, {size}] …")
    path = Path(options.output)
    difference = export_model(
        model, path, options.format, image_size=size, attention=options.attention, backend=backend, facts=facts
    )
    mean, std = ([round(value, 4) for value in facts["normalisation"][name]] for name in ("mean", "std"))
    outputs = "logits and attention" if options.attention else "logits"
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB, outputs {outputs}")
    say(
        f"input: RGB in [0, 1], resized to {facts['resize']}, centre crop {size}, mean {mean} subtracted, "
        f"divided by std {std}"
    )
    say(f"mode {facts['mode']}, backend {facts['backend']}, device {facts['device']}, dtype {facts['dtype']}")
    say(f"needs {_requirements(options.format, facts['backend'])}")
    say(f"checked against the bundle in batches of 1, 2 and 3: largest error {difference:.1e}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("export")
    add = parser.add_argument
    add("--model", required=True, metavar="BUNDLE", help="bundle, a model as fit exports it")
    add("--format", required=True, choices=FORMATS, help="format to write")
    add(
        "--output",
        required=True,
        metavar="FILE",
        help="file to write: .onnx for onnx, .xml for openvino, .pt2 for pt2 and aoti",
    )
    add("--image-size", type=int, help="side of the images, pixels (the bundle's)")
    add("--attention", action="store_true", help="also output the attention maps; the file's facts say where they look")
    add("--device", default="cpu", help="where the file is to run (cpu)")
    add("--backend", help="backend of the three operations (the fastest; onnx and openvino: reference)")
    return parser


def _requirements(format: str, backend: str) -> str:
    """What a program must have or load to run the file."""
    if format == "onnx":
        return "an ONNX runtime"
    if format == "openvino":
        return "OpenVINO, with INFERENCE_PRECISION_HINT=f32"
    if "triton" in backend:
        return "PyTorch and `import ssgrl_fast`, whose Triton kernels it calls"
    library = PathFinder.find_spec("ssgrl_fast._C", [str(Path(__file__).parents[1])])
    if "cpu" in backend and library is not None:
        return f"PyTorch and torch.ops.load_library({library.origin!r}), in C++ dlopen of that file"
    return "PyTorch alone"
