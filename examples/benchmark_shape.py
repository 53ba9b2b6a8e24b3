"""Time the head at a shape of your own, with each backend that can run it.

    python examples/benchmark_shape.py --classes 80 --channels 2048 --side 9 --images 4

`python -m benchmarks.run` measures more: it first compares with the float64 reference, then measures memory, other
implementations and the limits of the machine.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.benchmark import Timer

import ssgrl_fast as sf
from ssgrl_fast.backends.base import STEMS


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1, help="images per batch (B)")
    parser.add_argument("--classes", type=int, default=80, help="classes (C)")
    parser.add_argument("--channels", type=int, default=2048, help="feature channels (D)")
    parser.add_argument("--joint", type=int, default=1024, help="joint dimension of features and words (K)")
    parser.add_argument("--side", type=int, default=9, help="height and width of the feature map; L = side * side")
    parser.add_argument("--seconds", type=float, default=3.0, help="time spent on each backend")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float64", "float32", "bfloat16", "float16"))
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    words, graph = torch.randn(options.classes, 300), torch.rand(options.classes, options.classes)
    head = sf.SSGRLHead(options.channels, words, graph, joint_dim=options.joint).to(device, dtype)
    features = torch.randn(options.images, options.channels, options.side, options.side).to(device, dtype)

    milliseconds: dict[str, float] = {}
    for backend in sf.backends.names():
        try:
            for stem in STEMS:
                sf.backends.choose(stem, device, dtype, backend)
        except sf.BackendUnavailable as reason:
            print(f"{backend:>10}: cannot run here: {reason}")
            continue
        with torch.inference_mode(), sf.use_backend(backend):
            timer = Timer("head(features)", globals={"head": head, "features": features})
            milliseconds[backend] = 1e3 * timer.blocked_autorange(min_run_time=options.seconds).median
        print(f"{backend:>10}: {milliseconds[backend]:.2f} ms")
    return milliseconds


if __name__ == "__main__":
    main()
