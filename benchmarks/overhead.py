"""``python -m benchmarks.overhead``: what Python costs in one call of the head, on tiny shapes.

Beside the call, the shortest program is timed that computes the same by the same operators: no modules, no checks, no
choice of a backend, and in training the least autograd Functions. The overhead is the difference. With ``--base``
another source tree with its compiled library is measured too, in turns. Each tree has a process of its own, and times
are of its CPU clock. Beside the times, which a busy machine blurs, stand figures that do not vary: the Python functions
that a call enters, and the frames on the stack from a module's forward to its operator.

With ``--triton`` an inference and a training step by that backend are timed too, with a driver that starts nothing:
what a GPU would wait for, and PyTorch's operators between the launches. Both replay the plans of kernels/replay.py.
Beside them stand the launches of the inference alone, each made as without a plan, and by Triton's own call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES, CLASSES, CHANNELS, SIDE, WORD, JOINT, STEPS = 1, 3, 4, 2, 3, 5, 3
CALLS = 200  # in one sample
STEPS_TIMED = ("infer", "infer shortest", "train", "train shortest")
TRITON = ("triton infer", "triton train", "triton launches", "triton launches by Triton")
_ENTERED = ExitStack()  # what a tree's process has switched on until its end


def make_steps() -> dict[str, Callable[[], object]]:
    """A call of the head and the shortest program, for inference and for training."""
    import torch
    from torch.nn.functional import linear

    import ssgrl_fast as sf

    torch.set_num_threads(1)
    torch.manual_seed(0)
    words, adjacency = torch.randn(CLASSES, WORD), torch.rand(CLASSES, CLASSES)
    head = sf.SSGRLHead(CHANNELS, words, adjacency, joint_dim=JOINT, steps=STEPS, backend="cpu")
    image = torch.randn(IMAGES, CHANNELS, SIDE, SIDE)
    ops = torch.ops.ssgrl_fast
    adjacency = head.adjacency
    weights = dict(head.named_parameters())
    weight_u, weight_v, weight_p, weight_a = (weights[f"semantic_decoupling.weight_{name}"] for name in "uvpa")
    gates = [weights["graph_propagation.weight_zr"], weights["graph_propagation.weight_h"]]
    classifier = list(head.classifier.parameters())

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            pooled, attention = ops.semantic_attention.default(*tensors)
            ctx.save_for_backward(*tensors, attention)
            return pooled, attention

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return ops.semantic_attention_backward.default(*grads, *ctx.saved_tensors, False)

    class Propagation(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            h_T, *saved = ops.graph_propagation.default(*tensors[:4], tensors[4:], [], STEPS, False, True)
            ctx.save_for_backward(*tensors, *saved)
            return h_T

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            kept = ctx.saved_tensors
            start, of_gates, saved = kept[:4], kept[4:6], kept[6:]
            d_h0, _, _, d_gates, _ = ops.graph_propagation_backward.default(
                grad, *start, of_gates, [], saved, STEPS, False, False
            )
            return d_h0, None, None, None, *d_gates

    class Scores(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            logits, *saved = ops.label_scores.default(*tensors, True)
            ctx.save_for_backward(*tensors, *saved)
            return logits

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            h_T, h0, attention, features, weight_o, _, weight_c, _, *saved = ctx.saved_tensors
            d_h_T, d_h0, _, _, *d_weights = ops.label_scores_backward.default(
                grad, h_T, h0, attention, features, weight_o, weight_c, saved, False
            )
            return d_h_T, d_h0, None, None, *d_weights

    def inputs() -> Any:
        features = image.permute(0, 2, 3, 1).flatten(1, 2)
        features = features.contiguous()
        return linear(features, weight_u), linear(words, weight_v), weight_p.t() @ weight_a, features

    def infer() -> object:
        with torch.no_grad():
            return head(image)

    def infer_shortest() -> object:
        with torch.no_grad():
            tensors = inputs()
            pooled, _ = ops.semantic_attention.default(*tensors)
            h_T = ops.graph_propagation.default(pooled, adjacency, None, None, gates, [], STEPS, False, False)[0]
            return ops.label_scores.default(h_T, pooled, None, None, *classifier, False)[0]

    def train() -> None:
        head(image).sum().backward()

    def train_shortest() -> None:
        tensors = inputs()
        pooled, _ = Attention.apply(*tensors)
        h_T = Propagation.apply(pooled, adjacency, None, None, *gates)
        Scores.apply(h_T, pooled, None, None, *classifier).sum().backward()

    # the shortest program computes what the head computes
    torch.testing.assert_close(infer_shortest(), infer())
    for step in (train, train_shortest):
        head.zero_grad()
        step()
        gradients = {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}
        if step is train:
            expected = gradients
    torch.testing.assert_close(gradients, {name: expected[name] for name in gradients})
    return dict(zip(STEPS_TIMED, (infer, infer_shortest, train, train_shortest), strict=True))


def make_triton_steps() -> dict[str, Callable[[], object]]:
    """A call of the head by the Triton backend in bfloat16, whose kernels start nothing from now on; the launches of
    an inference alone."""
    from dataclasses import replace

    import torch
    from harness import stub_driver  # of this tree: the folder of this file is on the path of a tree's process

    import ssgrl_fast as sf
    from ssgrl_fast.kernels import launch, tile_tables

    _ENTERED.enter_context(stub_driver.active(note=False))
    _ENTERED.enter_context(tile_tables.assumed("sm_90"))
    able = replace(sf.backends.get("triton"), refuses=lambda stem, device, dtype: None)
    sf.backends._BACKENDS["triton"] = able  # type: ignore[attr-defined]
    words, adjacency = torch.randn(CLASSES, WORD), torch.rand(CLASSES, CLASSES)
    channels = 128  # the least of the products with gates in their epilogues
    head = sf.SSGRLHead(channels, words, adjacency, joint_dim=JOINT, steps=STEPS, backend="triton").bfloat16()
    image = torch.randn(IMAGES, channels, SIDE, SIDE).bfloat16()

    def infer() -> object:
        with torch.no_grad():
            return head(image)

    def train() -> None:
        head(image).sum().backward()

    with launch.recorded() as launched:
        infer()

    def launches() -> None:
        for one in launched:
            launch.run(one.kernel, one.grid, **one.arguments)

    def by_triton() -> None:
        for one in launched:
            one.kernel[one.grid](**one.arguments)

    return dict(zip(TRITON, (infer, train, launches, by_triton), strict=True))


def count_frames(step: Callable[[], object]) -> dict[str, int]:
    """The Python functions that a step enters; by module the frames from its forward to its operator's call, both
    included."""
    frames: dict[str, int] = {"functions": 0}

    def watch(frame: Any, event: str, argument: object) -> None:
        if event != "call":
            return
        frames["functions"] += 1
        if frame.f_code.co_name != "__call__" or not frame.f_code.co_filename.endswith("_ops.py"):
            return
        if "ssgrl_fast" not in str(frame.f_locals["self"]) or "_backward" in str(frame.f_locals["self"]):
            return
        depth, above = 1, frame.f_back
        while above is not None and not _is_forward(above):
            depth, above = depth + 1, above.f_back
        if above is not None:
            frames[type(above.f_locals["self"]).__name__] = depth + 1

    sys.setprofile(watch)
    try:
        step()
    finally:
        sys.setprofile(None)
    return frames


def _is_forward(frame: Any) -> bool:
    return frame.f_code.co_name == "forward" and f"{os.sep}modules{os.sep}" in frame.f_code.co_filename


def serve(triton: bool) -> None:
    """In a tree's own process: first what does not vary, then one sample in microseconds for each line of the input."""
    steps = make_steps() | (make_triton_steps() if triton else {})
    for _ in range(CALLS):
        for step in steps.values():
            step()
    print(json.dumps({name: count_frames(steps[name]) for name in steps if "shortest" not in name}), flush=True)
    for line in sys.stdin:
        step, start = steps[line.strip()], time.thread_time()
        for _ in range(CALLS):
            step()
        print((time.thread_time() - start) / CALLS * 1e6, flush=True)


class Tree:
    """A source tree measured in a process of its own."""

    def __init__(self, folder: Path, triton: bool) -> None:
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", *(["--triton"] if triton else [])],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.frames: dict[str, dict[str, int]] = json.loads(self._answer())
        self.steps = (*STEPS_TIMED, *(TRITON if triton else ()))
        self.samples: dict[str, list[float]] = {name: [] for name in self.steps}

    def sample(self, name: str) -> None:
        """Time one step once more."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        self.samples[name].append(float(self._answer()))

    def close(self) -> None:
        """End the process, which ends with its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def overheads(self, mode: str) -> list[float]:
        """Microseconds of the call less those of the shortest program, round by round."""
        return [a - b for a, b in zip(self.samples[mode], self.samples[f"{mode} shortest"], strict=True)]

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"the process of {self._process.args} ended with {self._process.wait()}")
        return line


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    add = parser.add_argument
    add("--base", type=Path, help="another source tree, with its compiled library")
    add("--rounds", type=int, default=40, help=f"samples of {CALLS} calls of each step")
    add("--triton", action="store_true", help="also the Triton backend, which compiles its kernels first")
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {arguments.rounds}")
    if arguments.serve:
        serve(arguments.triton)
        return 0
    folders = {"here": ROOT} | ({"base": arguments.base.resolve()} if arguments.base else {})
    trees = {name: Tree(folder, arguments.triton) for name, folder in folders.items()}
    for _ in range(arguments.rounds):
        for step in trees["here"].steps:
            for tree in trees.values():
                tree.sample(step)
    for mode in ("infer", "train"):
        for name, tree in trees.items():
            call, shortest = tree.samples[mode], tree.samples[f"{mode} shortest"]
            times = f"call {min(call):.0f} us, shortest {min(shortest):.0f} us (the least of all rounds)"
            overhead = f"overhead {statistics.median(tree.overheads(mode)):.0f} us (median)"
            print(f"{mode} {name}: {times}, {overhead}; frames {tree.frames[mode]}")
        if arguments.base:
            pairs = zip(trees["here"].overheads(mode), trees["base"].overheads(mode), strict=True)
            print(
                f"{mode} here/base: overhead x {statistics.median(a / b for a, b in pairs):.2f}, median over the rounds"
            )
    for mode in trees["here"].steps[len(STEPS_TIMED) :]:
        for name, tree in trees.items():
            print(
                f"{mode} {name}: {min(tree.samples[mode]):.0f} us (the least of all rounds); frames {tree.frames[mode]}"
            )
        if mode == TRITON[2]:
            samples = trees["here"].samples
            ratios = [a / b for a, b in zip(samples[TRITON[2]], samples[TRITON[3]], strict=True)]
            print(f"{mode} here/{TRITON[3]}: x {statistics.median(ratios):.2f}, median over the rounds")
        if arguments.base:
            ratios = [a / b for a, b in zip(*(tree.samples[mode] for tree in trees.values()), strict=True)]
            print(f"{mode} here/base: x {statistics.median(ratios):.2f}, median over the rounds")
    for tree in trees.values():
        tree.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"benchmarks.overhead: {error}")
