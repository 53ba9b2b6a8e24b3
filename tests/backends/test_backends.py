"""Which backend runs, why another does not, and that nothing falls back in silence."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import operations
import pytest
import torch
from operations import STEMS, Recorder, by_each_stem
from shapes import SHAPES

import ssgrl_fast
from ssgrl_fast import backends
from ssgrl_fast.backends import extension

TINY = SHAPES["tiny"]
ROOT = Path(ssgrl_fast.__file__).resolve().parent
by_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
needs_cpu_kernels = pytest.mark.skipif(
    not operations.runs("cpu", torch.float32),
    reason=next(r.reason for r in backends.explain("cpu") if r.backend == "cpu") or "usable",
)


def run(stem: str, dtype: torch.dtype = torch.float32, backend: str | None = None) -> list[str]:
    """The project's own operators that an operation ran."""
    inputs = operations.inputs_of(stem, TINY, dtype)
    with Recorder() as recorder, torch.no_grad():
        operations.fused(stem, operations.PLAIN, 3, backend)(inputs)
    return recorder.operators


# explain()


def test_explain_has_a_row_for_every_operation_and_backend() -> None:
    table = backends.explain("cpu")
    every = (*STEMS, "graph_propagation_fp8")
    assert {(r.operation, r.backend) for r in table} == {(s, b) for s in every for b in backends.names()}
    assert len(table) == len(every) * len(backends.names())
    for row in table:
        assert row.device == "cpu"
        assert row.usable != bool(row.reason), f"{row}: usable, or with a reason, and not both"


def test_explain_says_that_the_reference_runs_everything_everywhere() -> None:
    for device in ("cpu", "cuda", "meta"):
        for row in backends.explain(device):
            if row.backend == "reference" and row.operation in STEMS:
                assert set(row.dtypes) == {torch.float64, torch.float32, torch.bfloat16, torch.float16}
            elif row.backend == "reference":
                assert row.dtypes == (torch.bfloat16,)


def test_explain_gives_the_reason_of_the_cpu_kernels_for_another_device() -> None:
    for row in backends.explain(torch.device("cuda", 0)):
        assert row.device == "cuda:0"
        if row.backend == "cpu":
            assert not row.usable and row.reason


def test_explain_prints_one_aligned_line_a_row() -> None:
    table = backends.explain("cpu")
    lines = str(table).splitlines()
    assert len(lines) == 1 + len(table)
    for row, line in zip(table, lines[1:], strict=True):
        assert line.startswith(row.operation) and row.backend in line
        shown = [str(dtype).removeprefix("torch.") for dtype in row.dtypes] if row.usable else [row.reason]
        assert all(text in line for text in shown)


def test_explain_covers_every_device_here() -> None:
    devices = {row.device for row in backends.explain()}
    assert devices == ({"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"})


def test_explain_refuses_an_unknown_device() -> None:
    with pytest.raises(RuntimeError, match="abacus"):
        backends.explain("abacus")


# The choice.


@by_each_stem
@by_dtype
def test_the_fastest_that_can_is_chosen(stem: str, dtype: torch.dtype) -> None:
    usable = [row.backend for row in backends.explain("cpu") if row.operation == stem and dtype in row.dtypes]
    chosen = backends.choose(stem, "cpu", dtype)
    assert chosen == usable[0]
    assert run(stem, dtype) == ([stem] if chosen == "cpu" else [])


@by_each_stem
def test_a_named_reference_runs_no_kernel(stem: str) -> None:
    assert run(stem, backend="reference") == []


@needs_cpu_kernels
@by_each_stem
def test_a_named_backend_runs_its_kernel(stem: str) -> None:
    assert run(stem, backend="cpu") == [stem]


@needs_cpu_kernels
@by_each_stem
def test_a_named_backend_that_cannot_says_why(stem: str) -> None:
    with pytest.raises(backends.BackendUnavailable, match="float16") as caught:
        run(stem, torch.float16, backend="cpu")
    assert stem in str(caught.value) and "'cpu'" in str(caught.value)
    inputs = {
        n: None if t is None else t.to("meta") for n, t in operations.inputs_of(stem, TINY, torch.float32).items()
    }
    with pytest.raises(backends.BackendUnavailable, match="meta"):
        operations.fused(stem, operations.PLAIN, 3, "cpu")(inputs)


@by_each_stem
def test_on_meta_tensors_the_reference_gives_shapes(stem: str) -> None:
    inputs = operations.inputs_of(stem, TINY, torch.float32)
    meta = {n: None if t is None else t.to("meta") for n, t in inputs.items()}
    real = operations.fused(stem, operations.PLAIN, 3, None)(inputs)
    for m, r in zip(operations.fused(stem, operations.PLAIN, 3, None)(meta), real, strict=True):
        assert m.is_meta and m.shape == r.shape and m.dtype == r.dtype


# use_backend()


def test_use_backend_holds_within_the_block_only() -> None:
    before = run("semantic_attention")
    with ssgrl_fast.use_backend("reference"):
        assert run("semantic_attention") == []
    assert run("semantic_attention") == before


@needs_cpu_kernels
def test_use_backend_nests_and_an_argument_wins() -> None:
    with ssgrl_fast.use_backend("reference"):
        with ssgrl_fast.use_backend("cpu"):
            assert run("label_scores") == ["label_scores"]
            assert run("label_scores", backend="reference") == []
            with ssgrl_fast.use_backend(None):
                assert run("label_scores", torch.float16) == []
        assert run("label_scores") == []
        assert run("label_scores", backend="cpu") == ["label_scores"]


def test_use_backend_is_left_after_an_exception() -> None:
    before = run("graph_propagation")
    with pytest.raises(ZeroDivisionError), ssgrl_fast.use_backend("reference"):
        raise ZeroDivisionError
    assert run("graph_propagation") == before


@pytest.mark.parametrize("name", ["gpu", "", "CPU"])
def test_use_backend_refuses_an_unknown_name_at_once(name: str) -> None:
    with pytest.raises(ValueError, match="backend") as caught, ssgrl_fast.use_backend(name):
        pytest.fail("the block must not start")
    assert repr(name) in str(caught.value)
    for known in backends.names():
        assert repr(known) in str(caught.value)


@needs_cpu_kernels
def test_use_backend_that_cannot_run_these_inputs_raises() -> None:
    with ssgrl_fast.use_backend("cpu"), pytest.raises(backends.BackendUnavailable, match="float16"):
        run("semantic_attention", torch.float16)


@needs_cpu_kernels
def test_use_backend_belongs_to_its_thread() -> None:
    seen: dict[str, list[str]] = {}
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        assert inside.wait(30)
        seen["other"] = run("semantic_attention")
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with ssgrl_fast.use_backend("reference"):
        inside.set()
        assert done.wait(30)
        seen["mine"] = run("semantic_attention")
    thread.join()
    assert seen == {"mine": [], "other": ["semantic_attention"]}


@needs_cpu_kernels
def test_use_backend_belongs_to_its_task() -> None:
    async def task(name: str) -> list[str]:
        with ssgrl_fast.use_backend(name):
            await asyncio.sleep(0)
            return run("semantic_attention")

    async def both() -> list[list[str]]:
        return await asyncio.gather(task("reference"), task("cpu"))

    assert asyncio.run(both()) == [[], ["semantic_attention"]]


@needs_cpu_kernels
def test_the_backward_runs_on_the_forwards_backend() -> None:
    inputs = operations.leaves_of(operations.inputs_of("graph_propagation", TINY, torch.float32))
    with ssgrl_fast.use_backend("cpu"):
        (h_T,) = operations.fused("graph_propagation", operations.PLAIN, 3, None)(inputs)
    with Recorder() as recorder, ssgrl_fast.use_backend("reference"):
        h_T.sum().backward()
    assert recorder.operators == ["graph_propagation_backward"]


@needs_cpu_kernels
@by_each_stem
def test_a_named_backend_is_not_replaced_under_torch_func(stem: str) -> None:
    """Transforms run the reference equations; who named another backend is told so."""
    inputs = operations.inputs_of(stem, TINY, torch.float32)
    name = {"semantic_attention": "u", "graph_propagation": "h0", "label_scores": "h_T"}[stem]

    def total(x: torch.Tensor, backend: str | None) -> torch.Tensor:
        return operations.fused(stem, operations.PLAIN, 3, backend)(inputs | {name: x})[0].sum()

    with pytest.raises(backends.BackendUnavailable, match=r"torch\.func"):
        torch.func.grad(lambda x: total(x, "cpu"))(inputs[name])
    with ssgrl_fast.use_backend("cpu"), pytest.raises(backends.BackendUnavailable, match=r"torch\.func"):
        torch.func.grad(lambda x: total(x, None))(inputs[name])
    with Recorder() as recorder:
        torch.func.grad(lambda x: total(x, "reference"))(inputs[name])
    assert recorder.operators == []


def test_the_cuda_backend_says_what_its_e4m3_products_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("graph_propagation_fp8", "cuda", torch.bfloat16)
    backend = backends.get("cuda")
    assert (
        backend.refusal(*where[:2], torch.float32)
        == "graph_propagation_fp8 keeps its states in bfloat16, not in float32"
    )
    if not torch.cuda.is_available():
        assert "no CUDA device" in str(backend.refusal(*where))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(extension, "cuda_library", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert backend.refusal(*where) == "its e4m3 products need compute capability 9.0, this GPU has 8.9"
    assert backend.refusal("graph_propagation", "cuda", torch.bfloat16) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for built, reason in ((True, "None"), (False, "it was built without CUTLASS")):
        monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_, built=built: built)
        assert reason in str(backend.refusal(*where))


# Without the compiled library.

PROBE = """
import torch, ssgrl_fast as sf
from ssgrl_fast import backends
table = backends.explain("cpu")
rows = [r for r in table if r.backend == "cpu" and r.operation in backends.base.STEMS]
assert len(rows) == 3 and not any(r.usable for r in rows), table
reasons = {r.reason for r in rows}
assert len(reasons) == 1 and all(reasons), reasons
u, v, p, f = torch.randn(2, 5, 6), torch.randn(3, 6), torch.randn(6), torch.randn(2, 5, 4)
u.requires_grad_()
for stem in ("semantic_attention", "graph_propagation", "label_scores"):
    assert backends.choose(stem, "cpu", torch.float32) == "reference"
pooled, attention = sf.functional.semantic_attention(u, v, p, f)
assert torch.equal(pooled, sf.reference.semantic_attention(u.detach(), v, p, f)[0])
pooled.sum().backward()
assert u.grad.isfinite().all()
try:
    sf.functional.semantic_attention(u, v, p, f, backend="cpu")
except sf.BackendUnavailable as error:
    assert reasons.pop() in str(error), error
    print("REASON:", error)
else:
    raise SystemExit("backend='cpu' ran without its library")
"""


def probe(package: Path) -> str:
    """Run the probe in a fresh interpreter that imports the package from its parent folder; its output."""
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(package.parent)!r})\n{PROBE}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=package.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def pure_copy(tmp_path: Path) -> Path:
    """The package without anything compiled."""
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "*.dylib", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "ssgrl_fast", ignore=ignore)
    if (ROOT.parent / "kernels").is_dir():
        shutil.copytree(ROOT.parent / "kernels", tmp_path / "kernels", ignore=ignore)
    return tmp_path / "ssgrl_fast"


def test_without_the_library_the_reference_runs_and_says_why(pure_copy: Path) -> None:
    assert "REASON: semantic_attention: backend 'cpu' cannot run here: " in probe(pure_copy)


def test_a_broken_library_is_a_reason_and_no_crash(pure_copy: Path) -> None:
    libraries = sorted(ROOT.glob("_C*.so"))
    if not libraries:
        pytest.skip("the library is not compiled here")
    for library in libraries:
        (pure_copy / library.name).write_bytes(b"no library\n" * 1000)
    out = probe(pure_copy)
    assert any(library.name in out for library in libraries), out
