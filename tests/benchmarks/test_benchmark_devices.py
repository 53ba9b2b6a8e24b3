"""The benchmarks on other devices and in other precisions: the GPU's clock and meter, and the gate."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")

from benchmark_shapes import LOW, TINY, put

from benchmarks import rivals, run
from benchmarks.harness import cases, gpu, timing, verify
from benchmarks.harness.cases import Case
from benchmarks.harness.peak import Measured, Peak


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch)


without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")


class Driver:
    """In place of torch.cuda: writes down what it is asked, lets 2 ms pass a step, and has the memory it is given."""

    def __init__(self, before: int = 0, peak: int = 0) -> None:
        self.calls: list[str] = []
        self.now, self.before, self.peak = 0.0, before, peak

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.calls.append(name)

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at=None)
        event.record = lambda: (self.calls.append("record"), setattr(event, "at", self.now))
        event.synchronize = lambda: self.calls.append("synchronize")
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def step(self) -> None:
        self.calls.append("step")
        self.now += 2.0

    def is_available(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, _: int) -> Any:
        return SimpleNamespace(total_memory=1000, L2_cache_size=64)

    def memory_allocated(self) -> int:
        return self.before

    def memory_reserved(self) -> int:
        return self.before

    def max_memory_allocated(self) -> int:
        return self.peak

    def set_per_process_memory_fraction(self, share: float) -> None:
        self.share = share

    @contextmanager
    def graph(self, _: object) -> Iterator[None]:
        self.calls.append("begin capture")
        yield
        self.calls.append("end capture")

    @contextmanager
    def stream(self, _: object) -> Iterator[None]:
        yield

    def Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda _: self.calls.append("side waits"))

    def current_stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda _: self.calls.append("main waits"))

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.calls.append("replay"))


class Room:
    def __init__(self, driver: Driver) -> None:
        self.zero_ = lambda: driver.calls.append("flush")


# the GPU's clock and meter


def test_a_sample_is_between_two_events_behind_a_flush() -> None:
    driver = Driver()
    clock = gpu.EventClock(driver, Room(driver))  # type: ignore[arg-type]
    assert [clock.sample(driver.step), clock.sample(driver.step)] == [2e-3, 2e-3]
    assert driver.calls == 2 * ["flush", "record", "step", "record", "synchronize"]


def test_a_clock_serves_interleaving() -> None:
    driver = Driver()
    sample = gpu.EventClock(driver, Room(driver)).sample  # type: ignore[arg-type]
    times = timing.interleave({"a": driver.step, "b": driver.step}, rounds=3, seconds=100, sample=sample)
    assert times["a"].seconds == times["b"].seconds == (2e-3, 2e-3, 2e-3)


@pytest.mark.parametrize(("peak", "extra"), [(1000, 700), (250, 0)])
def test_the_allocators_peak_is_above_what_was_there_and_without_gradients(peak: int, extra: int) -> None:
    driver, gradient = Driver(before=100, peak=peak), torch.ones(50)
    assert gpu.peak_extra(lambda: (gradient, gradient.view(5, 10)), driver) == Peak(extra)
    assert driver.calls == ["synchronize", "reset_peak_memory_stats", "synchronize"]


def test_no_room_on_the_device_is_a_finding_and_the_cache_is_given_back() -> None:
    driver = Driver()

    def step() -> Sequence[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5 GiB.\nmore")

    assert gpu.metered(step, driver) == Measured(None, "out of memory", "CUDA out of memory. Tried to allocate 5 GiB.")
    assert driver.calls[-1] == "empty_cache"
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        gpu.metered(lambda: (_ for _ in ()).throw(RuntimeError("an illegal memory access")), driver)


def test_a_limit_is_a_share_of_the_device() -> None:
    driver = Driver(before=100)
    for extra, share in ((400, 0.5), (None, 1.0), (5000, 1.0)):
        gpu.limit(extra, driver)
        assert driver.share == share


def test_a_graph_is_captured_after_a_run_on_a_side_stream() -> None:
    driver = Driver()
    replay = gpu.graphed(driver.step, driver)
    assert driver.calls == ["side waits", "step", "main waits", "begin capture", "step", "end capture"]
    replay()
    assert driver.calls[-1] == "replay"


def test_without_a_device_a_sentence_says_so() -> None:
    with pytest.raises(ValueError, match=r"device cuda: torch .* sees no CUDA device here; use --device cpu"):
        gpu.device_name(Driver())


@without_gpu
def test_the_command_refuses_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="device cuda: torch .* sees no CUDA device here"):
        run.main(["--device", "cuda", "--quick"])


# precisions


def test_precisions_have_names_and_limits() -> None:
    chosen = list(cases.select(["head"], ["voc"], [1], ["infer"], "cuda", cases.PRECISIONS))
    assert [case.precision for case in chosen] == ["float32", "tf32", "bfloat16", "float16"]
    assert str(chosen[1]).endswith("B=1 tf32") and chosen[1].dtype == torch.float32
    assert [cases.from_description(cases.describe(case)) for case in chosen] == chosen
    with pytest.raises(ValueError, match="tf32 is a mode of NVIDIA GPUs, and the device is cpu"):
        list(cases.select(["head"], ["voc"], [1], ["infer"], "cpu", ["tf32"]))
    with pytest.raises(ValueError, match=r"tf32 is a way to multiply float32, not torch\.bfloat16"):
        Case("head", TINY, 1, "infer", torch.bfloat16, tf32=True)


def test_tf32_is_pytorchs_own_setting_and_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with cases.multiplying(True):
        assert torch.get_float32_matmul_precision() == "high"
        with cases.multiplying(False):
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


def test_the_published_form_is_measured_in_every_way_a_user_may_run_it() -> None:
    names = {
        precision: run._rivals(Case("head", TINY, 1, "infer", dtype, "cuda", tf32), None, True)
        for precision, (dtype, tf32) in cases.PRECISIONS.items()
    }
    beside = {"published-float32", "published-autocast"}
    assert {name: beside & set(found) for name, found in names.items()} == {
        "float32": set(),
        "tf32": {"published-float32"},
        "bfloat16": beside,
        "float16": {"published-float32"},
    }
    assert all({"published-compiled", "handwritten-compiled", "products"} < set(found) for found in names.values())


def test_the_captured_head_is_for_inference_on_a_gpu_and_is_gated() -> None:
    captured = rivals.RIVALS["captured"]
    infer, train = (Case("head", TINY, 1, mode, device="cuda") for mode in cases.MODES)
    assert captured.applies(infer) and not captured.applies(train)
    assert captured.refuses(train) is None, "the gate asks with a training case"
    assert captured.refuses(replace(infer, device="cpu")) == "a CUDA graph is captured on a GPU only"
    assert captured.refuses(replace(infer, operation="label_scores")) == "only the whole head can be captured"


def test_every_registered_backend_is_a_rival() -> None:
    from ssgrl_fast import backends

    assert {name for name, rival in rivals.RIVALS.items() if rival.ours} == set(backends.names())


@pytest.mark.parametrize("precision", cases.PRECISIONS)
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_what_a_rival_builds_lies_on_the_cases_device(
    operation: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under fake tensors, which hold no data but raise where a CPU tensor meets one of a GPU."""
    monkeypatch.setattr("ssgrl_fast.modules.head.shared.words_and_graph", lambda *given: given)  # it reads values
    for case in cases.select([operation], ["tiny", "tiny-low"], [2], ["infer"], "cuda", [precision]):
        for rival in able(case):
            with FakeTensorMode(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "CUDA is not available")  # autocast's
                program = rival.build(case, cases.tensors(case))
                outputs = program.forward()
                every = (*outputs, *program.leaves.values(), *rivals.cotangents(case))
                devices = {value.device.type for value in every}
            assert devices == {"cuda"}, f"{rival.name} at {case}"
            assert [tuple(output.shape) for output in outputs] == cases.output_shapes(case)


def able(case: Case) -> list[rivals.Rival]:
    """Those that can run on the case's device; a capture needs a real one, and accelerate compares real values."""
    every = [rival for name, rival in rivals.RIVALS.items() if name not in ("captured", "accelerated")]
    return [rival for rival in every if not rival.compiled and rival.applies(case) and rival.refuses(case) is None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_reduced_precisions_pass_the_gate(operation: str, dtype: torch.dtype) -> None:
    for shape in (TINY, LOW):
        case = Case(operation, shape, 2, "train", dtype)
        checks = verify.gate(case, able(case))
        assert {check.rival for check in checks} >= {"handwritten", "reference"}
        assert all(0 < check.allowed < 0.2 for check in checks)


@pytest.mark.parametrize(("ours", "scale"), [(True, 1.02), (False, 1.06)])
def test_a_wrong_kernel_is_refused_in_bfloat16(ours: bool, scale: float) -> None:
    right = rivals.RIVALS["reference"]

    def build(case: Case, tensors: rivals.Tensors) -> rivals.Program:
        program = right.build(case, tensors)
        return replace(program, forward=lambda: tuple(out * scale for out in program.forward()))

    with pytest.raises(verify.ParityError, match="wrong: output 0 of head train"):
        verify.gate(
            Case("head", TINY, 2, "train", torch.bfloat16), [replace(right, name="wrong", build=build, ours=ours)]
        )


def test_float32_as_published_keeps_its_precision_beside_bfloat16() -> None:
    case = Case("head", TINY, 2, "train", torch.bfloat16)
    tensors = cases.tensors(case)
    leaves = {name: rivals.RIVALS[name].build(case, tensors).leaves for name in ("published", "published-float32")}
    assert {value.dtype for value in leaves["published"].values()} == {torch.bfloat16}
    assert {value.dtype for value in leaves["published-float32"].values()} == {torch.float32}
