"""A GPU owner's measurements put ``cuda`` first, on that GPU and with those versions alone; a file that cannot be read
changes nothing and is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from operations import STEMS

from benchmarks import parity
from benchmarks.harness import cases
from ssgrl_fast import backends
from ssgrl_fast.backends import cuda, extension, triton, verdicts
from ssgrl_fast.backends.verdicts import Verdict

BF16, F32 = torch.bfloat16, torch.float32
GPUS = [("NVIDIA H200", (9, 0)), ("NVIDIA GeForce GTX 1080", (6, 1)), ("NVIDIA A100", (8, 0))]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with three GPUs, all backends usable, and an empty cache folder; the place of the verdicts."""

    def index(device: torch.device) -> int:
        return device.index or 0

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: GPUS[index(device)][1])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPUS[index(device)][0])
    monkeypatch.setattr(extension, "cuda_library", lambda: None)
    monkeypatch.setattr(cuda, "_has_products", lambda: True)
    monkeypatch.setattr(triton, "_MISSING", None)
    monkeypatch.setattr(triton, "_INTERPRETED", False)
    monkeypatch.setattr(triton, "_missing_compiler", lambda: None)
    monkeypatch.setattr(backends, "_remembered", {})
    return verdicts.place()


def here(number: int = 0, **changed: object) -> Verdict:
    facts = verdicts.circumstances(torch.device("cuda", number))
    return replace(Verdict(**facts, operation="label_scores", dtype="bfloat16", parity=True, ratio=0.8), **changed)


def remark(number: int = 0, operation: str = "label_scores") -> str:
    table = backends.explain(torch.device("cuda", number))
    return next(row.remark for row in table if (row.backend, row.operation) == ("cuda", operation))


def test_the_tensors_gpu_is_asked(gpus: Path) -> None:
    """Not the current one: the second GPU of this machine is too old for both."""
    for stem in STEMS:
        assert [backends.choose(stem, f"cuda:{n}", F32) for n in range(3)] == ["triton", "reference", "triton"]
        for name in ("triton", "cuda"):
            assert "6.1" in str(backends.get(name).refusal(stem, "cuda:1", F32))
            assert backends.get(name).refusal(stem, "cuda:2", F32) is None
    fp8 = [backends.get("cuda").refusal("graph_propagation_fp8", f"cuda:{n}", BF16) for n in (0, 2)]
    assert fp8 == [None, "its e4m3 products need compute capability 9.0, this GPU has 8.0"]


def test_a_verdict_puts_cuda_first_for_its_operation_dtype_and_gpu(gpus: Path) -> None:
    assert "no verdict yet" in remark()
    assert verdicts.record([here(), here(dtype="float32", ratio=1.2)]) is None
    assert backends.choose("label_scores", "cuda:0", BF16) == "cuda"
    others = [("label_scores", "cuda:0", F32), ("label_scores", "cuda:2", BF16), ("graph_propagation", "cuda:0", BF16)]
    assert [backends.choose(*other) for other in others] == ["triton"] * 3
    assert backends.first_able("label_scores", torch.device("cuda", 0), BF16, verdict=False) == "triton"
    assert "bfloat16 0.80 of the time, float32 1.20 of the time" in remark()
    assert "bfloat16 0.80 of the time" in str(backends.explain("cuda:0"))
    assert "no verdict yet" in remark(operation="graph_propagation")
    assert "gpu (NVIDIA H200), capability (9.0)" in remark(2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"parity": False, "ratio": None}, "bfloat16 over its error budget"),
        ({"ratio": None}, "bfloat16 not timed"),
        ({"ratio": 1.0}, "bfloat16 1.00 of the time"),
        ({"torch": "2.9.0"}, "its verdicts are of other torch (2.9.0)"),
        ({"triton": "3.1"}, "its verdicts are of other triton (3.1)"),
        ({"library": "0.0.1 abc"}, "its verdicts are of other library (0.0.1 abc)"),
    ],
)
def test_what_puts_nothing_first(gpus: Path, changed: dict[str, object], said: str) -> None:
    verdicts.record([here(**changed)])
    assert backends.choose("label_scores", "cuda:0", BF16) == "triton"
    assert said in remark()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "Expecting property name"),
        (b"\xff\xfe\x00", "decode"),
        (b"[]", "no file of the format"),
        (b'{"format": "ssgrl_fast verdicts 2", "verdicts": []}', "no file of the format"),
        (b'{"format": "ssgrl_fast verdicts 1"}', "verdicts"),
        (b'{"format": "ssgrl_fast verdicts 1", "verdicts": [{"gpu": "x"}]}', "missing"),
        ("ratio", "ratio -1.0 cannot be meant"),
        ("parity", "parity -1.0 cannot be meant"),
        ("gpu", "gpu -1.0 cannot be meant"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_counts_for_nothing(
    gpus: Path, content: bytes | str, said: str
) -> None:
    verdicts.record([here()])
    if isinstance(content, str):
        whole = json.loads(gpus.read_text())
        whole["verdicts"][0][content] = -1.0
        content = json.dumps(whole).encode()
    gpus.write_bytes(content)
    assert backends.choose("label_scores", "cuda:0", BF16) == "triton"
    assert said in remark() and str(gpus) in remark()
    assert said in str(verdicts.record([here()])), "what is replaced is named"
    assert verdicts.read() == ([here()], None)


def test_records_are_kept_beside_each_other(gpus: Path) -> None:
    verdicts.record([here(), here(2)])
    verdicts.record([here(ratio=0.7), here(operation="graph_propagation")])
    assert verdicts.read()[0] == [here(ratio=0.7), here(2), here(operation="graph_propagation")]


def test_parity_times_and_records(gpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """On a CPU, where the reference stands for cuda: what was right is timed, what was not is recorded as that."""
    monkeypatch.setattr(parity._worst_ratio, "__defaults__", ("reference",))
    whole = cases.select
    monkeypatch.setattr(cases, "select", lambda *given: [case.tiny() for case in whole(*given)])
    right = {("label_scores", "float32"): True, ("graph_propagation", "float32"): False}
    parity.keep(right, ("float32",), device="cpu")
    timed, wrong = verdicts.read()[0]
    assert timed.parity and timed.ratio is not None and 0.01 < timed.ratio < 100
    assert (wrong.operation, wrong.parity, wrong.ratio) == ("graph_propagation", False, None)
    assert str(gpus) in capsys.readouterr().out


def test_a_build_without_cutlass_says_so(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CUTLASS" not in remark()
    monkeypatch.setattr(cuda, "_has_products", lambda: False)
    said = [remark(operation=stem) for stem in ("graph_propagation", "label_scores", "semantic_attention")]
    assert ["built without CUTLASS" in one for one in said] == [True, True, False]


def test_memory_is_of_the_device(gpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(extension, "native", lambda: (SimpleNamespace(build_info=lambda: {"sources": "a"}), None))
    assert backends.choose("label_scores", "cuda:0", BF16) == "triton"
    verdicts.record([here()])
    assert backends.choose("label_scores", "cuda:0", BF16) == "triton", "the choice holds for the process"
    monkeypatch.setattr(backends, "_remembered", {})
    assert backends.choose("label_scores", torch.device("cuda", 0), BF16) == "cuda"
