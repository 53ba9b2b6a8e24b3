"""A head in a long-running process: threads, streams, too little memory, workers, repeatability."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import operations
import pytest
import shapes
import torch
from operations import Variant, by_backend
from shapes import SHAPES
from torch import Tensor
from torch.utils.data import Dataset

import ssgrl_fast as sf
from ssgrl_fast import functional
from ssgrl_fast.backends import extension

C, S, D, SIDE = 20, 7, 48, 5
BIG = 1 << 24
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_library = pytest.mark.skipif(extension.library() is not None, reason=str(extension.library()))


def make_head(**options: Any) -> sf.SSGRLHead:
    torch.manual_seed(0)
    words, graph = torch.randn(C, S), torch.rand(C, C) / C
    return sf.SSGRLHead(D, words, graph, joint_dim=30, **options)


def map_of(seed: int) -> Tensor:
    return torch.randn(2, D, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def results(head: sf.SSGRLHead, x: Tensor) -> list[Tensor]:
    """Logits and the gradient of every parameter, without touching the parameters' own."""
    logits = head(x)
    return [logits.detach(), *torch.autograd.grad(logits.square().sum(), list(head.parameters()))]


def same(mine: list[Tensor], truth: list[Tensor]) -> bool:
    return len(mine) == len(truth) and all(torch.equal(a, b) for a, b in zip(mine, truth, strict=True))


# Threads and streams


@by_backend
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_one_head_serves_several_threads(training: bool, backend: str) -> None:
    """The same bits as one after another, each call on two threads of its own."""
    head, seeds = make_head(mode="official"), range(24)

    def serve(seed: int) -> list[Tensor]:
        torch.set_num_threads(2)  # a setting of each thread
        with sf.use_backend(backend), torch.set_grad_enabled(training):
            return results(head, map_of(seed)) if training else list(head(map_of(seed), return_attention=True))

    with operations.threads(2):
        alone = [serve(seed) for seed in seeds]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(serve, seeds))
    for mine, truth in zip(together, alone, strict=True):
        assert same(mine, truth)


def test_threads_keep_their_own_backend() -> None:
    head, asked = make_head(), ["reference", None, "no such backend"] * 8

    def serve(name: str | None) -> str:
        try:
            with sf.use_backend(name), operations.Recorder() as seen:
                head(map_of(1))
                return "kernels" if seen.operators else "equations"
        except ValueError:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(serve, asked))
    kernels = "equations" if extension.library() is not None else "kernels"
    assert found == ["equations", kernels, "refused"] * 8


@needs_gpu
def test_streams_give_what_one_stream_gives() -> None:
    head = make_head(mode="official").cuda()
    maps = [map_of(seed).cuda() for seed in range(16)]
    alone = [results(head, x) for x in maps]
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    together: list[list[Tensor]] = []
    for i, x in enumerate(maps):
        with torch.cuda.stream(streams[i % 4]):
            together.append(results(head, x))
    torch.cuda.synchronize()
    for mine, truth in zip(together, alone, strict=True):
        assert same(mine, truth)


# Too little memory


def _attend(backend: str) -> object:
    u = torch.zeros(1, BIG, 1)
    return functional.semantic_attention(u, u[0], torch.zeros(1), u, backend=backend)


def _propagate(backend: str) -> object:
    h0, adjacency = torch.zeros(1, 2, 2, requires_grad=True), torch.zeros(2, 2)
    weights = (torch.zeros(4, 6), None, torch.zeros(2, 6), None)
    return functional.graph_propagation(h0, adjacency, *weights, steps=1 << 42, backend=backend)


def _score(backend: str) -> object:
    h, wide = torch.zeros(BIG, 1, 1), torch.zeros(1, BIG)
    return functional.label_scores(h, h, torch.zeros(BIG, 2), wide[0], wide, torch.zeros(1), backend=backend)


@by_backend
@pytest.mark.parametrize("call", [_attend, _propagate, _score])
def test_memory_that_is_not_there_is_refused_and_the_process_goes_on(
    call: Callable[[str], object], backend: str
) -> None:
    """2^48 attention weights or outputs, 2^42 steps of saved states: a petabyte."""
    if (call, backend) == (_propagate, "reference"):
        pytest.skip("the equations take their memory step by step")
    head = make_head()
    before = results(head, map_of(0))
    said = r"can't allocate memory: you tried to allocate \d+ bytes"
    if backend != "reference" and torch.__version__.startswith("2.11."):
        said = "new_empty"  # its stable interface keeps an error's text to itself
    with pytest.raises(RuntimeError, match=said):
        call(backend)
    assert same(results(head, map_of(0)), before)


@needs_gpu
def test_a_full_gpu_is_refused_and_the_process_goes_on() -> None:
    head = make_head().cuda()
    before = results(head, map_of(0).cuda())
    held = torch.cuda.memory_allocated()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        head(torch.zeros(1, D, 1, 1, device="cuda").expand(1 << 40, D, 1, 1))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= held
    assert same(results(head, map_of(0).cuda()), before)


# Workers and other processes


class Scored(Dataset[Tensor]):
    """Maps scored by a head inside a worker."""

    def __init__(self) -> None:
        self.head = make_head(mode="official")

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return results(self.head, map_of(index))[0]


def in_a_fresh_process(code: str) -> None:
    """A process that has used autograd's threads, as other tests do, cannot use autograd after a fork."""
    root = Path(__file__).resolve().parents[2]
    folders = [str(root / "tests" / "modules"), str(root / "tests" / "support"), str(root)]
    setup = f"import sys\nsys.path[:0] = {folders!r}\n"
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


_LOADER = """
import torch
from test_reliability import Scored
torch.set_num_threads(2)  # a forked worker inherits OpenMP's state after parallel regions
data = Scored()
truth = [data[index] for index in range(len(data))]
options = {"num_workers": 2, "multiprocessing_context": METHOD, "timeout": 100}
found = list(torch.utils.data.DataLoader(data, batch_size=None, **options))
assert len(found) == len(truth) == 6
for mine, expected in zip(found, truth):
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_run_the_head(method: str) -> None:
    in_a_fresh_process(_LOADER.replace("METHOD", repr(method)))


_FORK = """
import os, sys, time
import torch
from test_reliability import make_head, map_of, results, same
torch.set_num_threads(2)
head = make_head()
results(head, map_of(0))
torch.set_num_threads(1)
truth = results(head, map_of(0))
torch.set_num_threads(2)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if same(results(head, map_of(0)), truth) else 3)
for _ in range(600):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, 9)
sys.exit("the child hangs")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_process_on_one_thread_runs_the_head() -> None:
    """On more threads a fork after a parallel region hangs in GNU OpenMP, PyTorch's own operators as well."""
    in_a_fresh_process(_FORK)


# Repeatability


@by_backend
@pytest.mark.parametrize("mode", ["paper", "official"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_algorithms_are_what_runs_anyway(dtype: torch.dtype, mode: str, backend: str) -> None:
    head, x = make_head(mode=mode, backend=backend).to(dtype), map_of(0).to(dtype)
    with operations.threads(2):
        free = results(head, x)
        torch.use_deterministic_algorithms(True)
        try:
            bound = results(head, x)
        finally:
            torch.use_deterministic_algorithms(False)
    assert same(bound, free)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_cpu_kernels_own_sums_do_not_depend_on_the_number_of_threads(dtype: torch.dtype) -> None:
    """Each sum is one thread's, in a fixed order. The products between them are PyTorch's and may depend on it."""
    ops, shape = torch.ops.ssgrl_fast, SHAPES["off_tile"]
    attend = operations.inputs_of("semantic_attention", shape, dtype)
    u, v, p, features = (attend[name] for name in ("u", "v", "p", "features"))
    scores = operations.inputs_of("label_scores", shape, dtype, variant=Variant())
    h, weights = (scores["h_T"], scores["h0"]), [scores[n] for n in ("weight_o", "bias_o", "weight_c", "bias_c")]

    _, attention = ops.semantic_attention.default(u, v, p, features)
    upstream = shapes.normal(shapes.generator(1), *attention.shape).to(attention.dtype)
    logits, *saved = ops.label_scores.default(*h, None, None, *weights, True)

    def sums() -> list[Tensor]:
        again = ops.semantic_attention.default(u, v, p, features)[1]
        back = ops.semantic_attention_backward.default(None, upstream, u, v, p, features, attention, False)
        rows = ops.label_scores_backward.default(logits, *h, None, None, weights[0], weights[2], saved, False)
        return [again, *back[:3], *rows[5:]]  # d_u, d_v, d_p; d_bias_o, d_weight_c, d_bias_c

    with operations.threads(1):
        truth = sums()
    assert len(truth) == 7 and all(bool(t.any()) for t in truth)
    for count in (2, 3, 7):
        with operations.threads(count):
            assert same(sums(), truth), count
