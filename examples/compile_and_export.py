"""torch.compile and torch.export of a model with the fused head.

python examples/compile_and_export.py                      # Inductor: needs a C++ compiler and about a minute
python examples/compile_and_export.py --compiler aot_eager # traces without compiling
"""

from __future__ import annotations

import argparse

import torch

import ssgrl_fast as sf
from ssgrl_fast.models import build_backbone


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile")
    parser.add_argument("--out", help="file to save the exported program in, NAME.pt2")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = sf.SSGRL(build_backbone("small-cnn", width=8), torch.randn(6, 20), torch.rand(6, 6), joint_dim=32).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        plain = model(images)

    compiled = torch.compile(model, backend=options.compiler, fullgraph=True)  # no graph break anywhere
    with torch.no_grad():
        error = (compiled(images) - plain).abs().max().item()
    print(f"torch.compile(fullgraph=True, backend={options.compiler!r}): largest difference {error:.1e}")

    program = torch.export.export(model, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}})
    with torch.no_grad():
        other = program.module()(torch.cat([images, images, images]))
    exported = (other[:2] - plain).abs().max().item()
    print(f"torch.export with a free batch size, called with 6 images: largest difference {exported:.1e}")
    if options.out:
        torch.export.save(program, options.out)
        print(f"program in {options.out}")
    return max(error, exported)


if __name__ == "__main__":
    main()
