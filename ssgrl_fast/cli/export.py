"""The verb ``export``: a bundle as one file for another runtime."""

from __future__ import annotations

import argparse
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from ssgrl_fast.inference.export import FORMATS, export_model


def register(subparsers: Any) -> None:
    """Add the verb ``export`` to an argparse subparser collection; it sets ``run``."""
    text = "a bundle as one file for ONNX Runtime, torch.export or AOTInductor, checked against the bundle"
    parser = subparsers.add_parser("export", help=text, description=text)
    parser.add_argument("--model", required=True, metavar="BUNDLE", help="folder of a bundle")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--output", required=True, metavar="FILE", help=".onnx for onnx, .pt2 for pt2 and aoti")
    parser.add_argument("--image-size", type=int, help="side of the images (the bundle's)")
    parser.add_argument("--attention", action="store_true", help="also give the attention maps")
    parser.add_argument("--device", default="cpu", help="where the file is to run (cpu)")
    parser.add_argument("--backend", help="backend of the three operations (the fastest; onnx: reference)")
    parser.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    """``export``: a bundle to a file, checked.

    Raises:
        FileNotFoundError, ValueError: see :class:`ssgrl_fast.inference.predict.Predictor` and :func:`export_model`.
    """
    from ssgrl_fast.inference.predict import Predictor

    backend = options.backend
    predictor = Predictor.load(options.model, image_size=options.image_size, device=options.device, backend=backend)
    model, size = predictor.model, predictor.image_size
    if options.attention and not hasattr(model.head, "semantic_decoupling"):
        raise ValueError(f"export: {options.model} holds a {type(model).__name__}, which has no attention maps")
    facts = {**predictor.facts(), "class_names": predictor.class_names}
    facts["backend"] = "reference" if options.format == "onnx" else facts["backend"]
    print(f"exporting {options.model} as {options.format}, images [B, 3, {size}, {size}] …", flush=True)
    path, given = Path(options.output), {"image_size": size, "attention": options.attention}
    difference = export_model(model, path, options.format, **given, backend=backend, facts=facts)
    mean, std = ([round(value, 4) for value in facts["normalisation"][name]] for name in ("mean", "std"))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {', '.join(['logits'] + ['attention'] * options.attention)}")
    print(f"images as RGB in [0, 1], resized to {facts['resize']}, centre crop {size}, less mean {mean}, by std {std}")
    print(f"mode {facts['mode']}, backend {facts['backend']}, device {facts['device']}, dtype {facts['dtype']}")
    print(f"needs {_needs(options.format, facts['backend'])}")
    print(f"checked against the bundle in batches of 1, 2 and 3: largest difference {difference:.1e}")
    return 0


def _needs(format: str, backend: str) -> str:
    if format == "onnx":
        return "an ONNX runtime"
    if "triton" in backend:
        return "PyTorch and `import ssgrl_fast`, whose Triton kernels it calls"
    found = PathFinder.find_spec("ssgrl_fast._C", [str(Path(__file__).parents[1])])
    if "cpu" in backend and found is not None:
        return f"PyTorch and torch.ops.load_library({found.origin!r}), in C++ dlopen of that file"
    return "PyTorch alone"
