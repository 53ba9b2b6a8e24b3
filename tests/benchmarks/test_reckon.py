"""Bounds that are reckoned from compiled code: its own arithmetic on hand-counted kernels, and the record."""

from __future__ import annotations

import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

if sys.platform != "linux":
    pytest.skip("triton is for Linux", allow_module_level=True)
triton = pytest.importorskip("triton")
pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")

import triton.language as tl  # noqa: E402

from benchmarks import reckon  # noqa: E402
from benchmarks.harness import cases, reckoned, recorded, sass  # noqa: E402
from benchmarks.harness.occupancy import GPUS, pipe_cycles, resident  # noqa: E402
from benchmarks.rivals import library  # noqa: E402
from ssgrl_fast.kernels.activations import INTERPRETED  # noqa: E402
from ssgrl_fast.kernels.launch import Launch  # noqa: E402

compiles = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter compiles nothing")
H100, A100 = GPUS["H100"], GPUS["A100"]


def instruction(opcode: str, *operands: str, guard: str = "", **control: int) -> sass.Instruction:
    return sass.Instruction(guard, opcode, operands, **{"stall": 1, "sets": 7, "waits": 0} | control)


def follow(*code: sass.Instruction, everything: bool = False, **constants: int) -> sass.Trace:
    bank = {int(name.removeprefix("c"), 16): value for name, value in constants.items()}
    return sass.Thread({16 * i: one for i, one in enumerate(code)}, bank, {"SR_CTAID.X": 3}, everything).run()


def executed(trace: sass.Trace, name: str) -> int:
    return sum(times for one, times in trace.opcodes.items() if one.name == name)


def test_lines_of_the_disassembler() -> None:
    text = """
        /*00a0*/              @!P0 IADD3 R8, P1, R8.reuse, -c[0x0][0x210], RZ ;    /* 0x8000000508088210 */
                                                                                  /* 0x002fe40007ffe0ff */
        /*00b0*/                   STG.E.64 desc[UR4][R2.64+0x8], R6 ;             /* 0x0000080602007986 */
                                                                                  /* 0x000e22000c101b04 */"""
    code = sass.parse(text)
    # 0x002fe4...: waits for scoreboard 1, stalls 2 cycles; 0x000e22...: sets scoreboard 0, stalls 1
    assert code[0xA0] == instruction(
        "IADD3", "R8", "P1", "R8.reuse", "-c[0x0][0x210]", "RZ", guard="!P0", stall=2, waits=2
    )
    assert code[0xB0] == instruction("STG.E.64", "desc[UR4][R2.64+0x8]", "R6", sets=0)
    assert code[0xB0].bytes == 8


@pytest.mark.parametrize("start", [0, 3])
def test_a_loop_runs_as_often_as_its_bound_says(start: int) -> None:
    """for (i = start; i < c[0x210]; i += 2)."""
    trace = follow(
        instruction("MOV", "R0", hex(start)),
        instruction("FADD", "R4", "R4", "R5", stall=4),
        instruction("IADD3", "R0", "R0", "0x2", "RZ", stall=5),
        instruction("ISETP.GE.AND", "P0", "PT", "R0", "c[0x0][0x210]", "PT", stall=13),
        instruction("BRA", "0x10", guard="!P0", stall=5),
        instruction("EXIT"),
        c210=11,
    )
    times = len(range(start, 11, 2))
    assert executed(trace, "FADD") == times
    assert trace.cycles == 1 + 27 * times


def test_a_wait_for_memory_and_shared_addresses() -> None:
    load = instruction("LDG.E.128", "R4", "desc[UR4][R2.64]", sets=2)
    code = (
        instruction("S2R", "R0", "SR_CTAID.X"),
        instruction("IMAD.WIDE", "R2", "R0", "0x100", "c[0x0][0x210]"),
        load,
        instruction("FADD", "R8", "R4", "R5", waits=4),
        instruction("EXIT"),
    )
    trace = follow(*code, c210=0, c214=1 << 8)  # the second argument
    assert trace.moved == {("read", 1): 512} and trace.touched == {("read", 1): {(1 << 40) + 3 * 0x100}}
    assert trace.cycles == 2 + sass.LATENCY["LDG"] + 1


@pytest.mark.parametrize(("bound", "moved"), [(4, {("read", 0): 512}), (3, {})])
def test_a_masked_copy_reads_nothing(bound: int, moved: dict[tuple[str, int], int]) -> None:
    trace = follow(
        instruction("S2R", "R0", "SR_CTAID.X"),  # 3
        instruction("ISETP.LT.AND", "P1", "PT", "R0", "c[0x0][0x218]", "PT"),
        instruction("LDC.64", "R2", "c[0x0][0x210]"),
        instruction("LDGSTS.E.BYPASS.128", "[R9]", "desc[UR4][R2.64]", "P1"),
        instruction("EXIT"),
        c210=64,
        c214=0,
        c218=bound,
    )
    assert trace.moved == moved


def test_what_depends_on_data() -> None:
    """A slow path is left out, a path with products is taken, a loop without a known end is refused."""

    def around(opcode: str) -> sass.Trace:
        branch = instruction("BRA", "0x20", guard="P0")
        return follow(branch, instruction(opcode, "R4", "R8", "R9"), instruction("EXIT"))

    assert executed(around("FADD"), "FADD") == 0
    assert executed(around("HMMA.16816.F32"), "HMMA") == 1
    rest = (instruction("EXIT", guard="P0"), instruction("FADD", "R4", "R8", "R9"), instruction("EXIT"))
    assert executed(follow(*rest), "FADD") == 0 and executed(follow(*rest, everything=True), "FADD") == 1
    with pytest.raises(ValueError, match="loop at 0x0 runs is not known"):
        follow(instruction("FADD", "R4", "R4", "R5"), instruction("BRA", "0x0", guard="P0"), instruction("EXIT"))
    with pytest.raises(ValueError, match="address of LDG.E R4, .* is not known"):
        follow(instruction("LDG.E", "R4", "desc[UR4][R2.64]"), instruction("EXIT"))


@pytest.mark.parametrize(
    ("selector", "result"),
    [("0x6540", 0x65432188), ("0x3210", 0x12F45688), ("0x8080", 0xFF88FF88), ("0xf3c2", 0xFF1200F4)],
)
def test_bytes_are_chosen(selector: str, result: int) -> None:
    """PRMT: of 0x12f45688 (bytes 0 to 3) and 0x87654321 (4 to 7); bit 3 of a choice takes the byte's sign."""
    thread = sass.Thread({0: instruction("EXIT"), 16: instruction("EXIT")}, {0x210: 0x12F45688, 0x214: 0x87654321}, {})
    thread._execute(instruction("PRMT", "R0", "c[0x0][0x210]", selector, "c[0x0][0x214]"), known=True)
    assert thread.registers.values["R0"] == result


@pytest.mark.parametrize("dividend", [0, 1, 79, 80, 6479, 2**31 - 1])
@pytest.mark.parametrize("divisor", [1, 3, 80])
def test_integer_arithmetic_of_a_division(dividend: int, divisor: int) -> None:
    """The sequence by which ptxas divides: it needs 64-bit products, reciprocals and carries."""
    thread = sass.Thread({0: instruction("EXIT"), 16: instruction("EXIT")}, {0x210: dividend, 0x214: divisor}, {})
    text = """I2F.U32.RP R4, c[0x0][0x214]; MUFU.RCP R4, R4; IADD3 R2, R4, 0xffffffe, RZ; F2I.FTZ.U32.TRUNC.NTZ R3, R2
        HFMA2.MMA R2, -RZ, RZ, 0, 0; IADD3 R6, RZ, -R3, RZ; IMAD R7, R6, c[0x0][0x214], RZ; IMAD.HI.U32 R3, R3, R7, R2
        IMAD.HI.U32 R3, R3, c[0x0][0x210], RZ; IADD3 R5, -R3, RZ, RZ; IMAD R8, c[0x0][0x214], R5, c[0x0][0x210]"""
    for part in text.replace("\n", ";").split(";"):
        opcode, _, operands = part.strip().partition(" ")
        thread._execute(instruction(opcode, *operands.split(", ")), known=True)
    for _ in range(2):  # the estimate is at most two too small
        if thread.registers.values["R8"] >= divisor:  # type: ignore[operator]
            thread.registers.values["R8"] -= divisor  # type: ignore[operator]
            thread.registers.values["R3"] += 1  # type: ignore[operator]
    assert (thread.registers.values["R3"], thread.registers.values["R8"]) == divmod(dividend, divisor)


@pytest.mark.parametrize(
    ("gpu", "registers", "warps", "shared", "held"),
    [
        (H100, 32, 4, 0, 16),  # 64 warps
        (H100, 33, 4, 0, 12),  # 40 registers a thread are taken: 12 warps a scheduler
        (H100, 128, 4, 0, 4),
        (H100, 164, 8, 0, 1),
        (H100, 255, 4, 0, 2),
        (H100, 16, 1, 0, 32),  # 32 programs
        (H100, 32, 4, 48 * 1024, 4),  # 49 KiB of 228
        (A100, 32, 4, 48 * 1024, 3),  # of 164
        (H100, 64, 32, 227 * 1024, 1),
    ],
)
def test_occupancy(gpu: Any, registers: int, warps: int, shared: int, held: int) -> None:
    assert resident(gpu, registers, warps, shared) == held


def test_cycles_of_the_pipes() -> None:
    counts = {"issue": 100, "fma": 40, "imad": 6, "alu": 20, "xu": 3, "lsu": 4, "flop": 8192, "bytes": 5120}
    on_h100, on_a100 = pipe_cycles(H100, counts), pipe_cycles(A100, counts)
    assert on_h100 == {"issue": 25, "fma": 13, "alu": 10, "xu": 6, "lsu": 4, "tensor": 2, "L2": 132}
    assert on_a100 == {"issue": 25, "fma": 23, "alu": 10, "xu": 6, "lsu": 4, "tensor": 4, "L2": 108}


@triton.jit
def sum_kernel(p_a, p_b, p_out, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    for i in range(0, N, BLOCK):
        o = tl.program_id(0) * N + i + tl.arange(0, BLOCK)
        tl.store(p_out + o, tl.load(p_a + o) + tl.load(p_b + o))


@triton.jit
def dot_kernel(p_a, p_b, p_out, K, M: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.arange(0, M)
    total = tl.zeros([M, M], tl.float32)
    for i in range(0, K, M):
        total = tl.dot(tl.load(p_a + o[:, None] * K + i + o), tl.load(p_b + (i + o)[:, None] * M + o), total)
    tl.store(p_out + o[:, None] * M + o, total)


@compiles
@pytest.mark.parametrize("architecture", ["sm_90", "sm_80"])
def test_a_hand_counted_sum(architecture: str) -> None:
    """Ten programs of 4 warps add 7 x 256 numbers: 14 additions a thread."""
    values = {f"p_{name}": torch.empty(10 * 1792, device="meta") for name in ("a", "b", "out")}
    one = Launch(sum_kernel, (10,), {**values, "N": 1792, "BLOCK": 256, "num_warps": 4})
    found = reckoned.kernel(one, architecture)
    assert (found.programs, found.warps) == (10, 4)
    assert (found.read, found.written) == (2 * 10 * 1792 * 4, 10 * 1792 * 4)
    counts = dict(found.kinds[0].counts)
    assert counts["fma"] >= 14 and "flop" not in counts  # ptxas may load constants by HFMA2
    assert counts["lsu"] == 3 * 7 * 2  # 8 bytes a thread: two cycles each
    assert counts["bytes"] == 3 * 7 * 256
    code, constants = reckoned._compile(reckoned._Key(one, architecture))[2], reckoned._constants(one, architecture)
    trace = sass.Thread(code, constants, {"SR_TID.X": 127, "SR_CTAID.X": 9}).run()
    assert [executed(trace, name) for name in ("FADD", "LDG", "STG")] == [14, 14, 7]
    assert max(trace.touched["write", 2]) == (2 << 40) + 4 * (10 * 1792 - 2)


@compiles
@pytest.mark.parametrize("architecture", ["sm_90", "sm_80"])
def test_a_hand_counted_product(architecture: str) -> None:
    """[64, 256] x [256, 64] in float16 by one program: 2·64·64·256 FLOP, every value read once."""
    values = {"p_a": torch.empty(64, 256, dtype=torch.float16, device="meta")}
    values |= {
        "p_b": torch.empty(256, 64, dtype=torch.float16, device="meta"),
        "p_out": torch.empty(64, 64, device="meta"),
    }
    one = Launch(dot_kernel, (1,), {**values, "K": 256, "M": 64, "num_warps": 4, "num_stages": 2})
    found = reckoned.kernel(one, architecture)
    assert found.count("flop") * 4 == 2 * 64 * 64 * 256
    assert (found.read, found.written) == (2 * 64 * 256 * 2, 64 * 64 * 4)


@compiles
def test_the_traffic_of_a_kernel_that_masks_rows() -> None:
    """80 of 128 rows: the aggregation's gradient, blended, reads 6 states and the graph and writes 3, each once."""
    one = reckon.case("coco", 2, "train")
    launches = [k for k in recorded.head(one, "sm_90") if isinstance(k, Launch)]
    fused = next(k for k in launches if k.arguments.get("BLEND"))
    found, state = reckoned.kernel(fused, "sm_90"), 2 * 80 * 2048 * 2
    assert found.read == pytest.approx(6 * state + 80 * 80 * 2, rel=0.01)
    assert found.written == pytest.approx(3 * state, rel=0.01)


@triton.jit
def parts_kernel(p_a, p_parts, p_counts, p_out, WHOLE, SPLIT, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    i, o = tl.program_id(0) - WHOLE, tl.arange(0, BLOCK)
    b = tl.load(p_a + tl.program_id(0) * BLOCK + o)
    if i < 0:
        tl.store(p_out + (i + WHOLE) * BLOCK + o, b)
    else:
        tl.store(p_parts + i * BLOCK + o, b)
        tl.debug_barrier()
        if tl.atomic_add(p_counts + i // SPLIT, 1, sem="acq_rel") == SPLIT - 1:
            for j in range(SPLIT):
                b += tl.load(p_parts + (i // SPLIT * SPLIT + j) * BLOCK + o)
            tl.store(p_out + (WHOLE + i // SPLIT) * BLOCK + o, b)


@compiles
def test_programs_that_share_a_tile_are_a_kind_of_their_own() -> None:
    """Ten whole tiles and 30 parts of six: the last part of each reads five and writes the tile."""
    sizes = {"a": 40 * 256, "parts": 30 * 256, "out": 16 * 256}
    values = {f"p_{name}": torch.empty(size, device="meta") for name, size in sizes.items()}
    counts = torch.empty(6, dtype=torch.int32, device="meta")
    arguments = {**values, "p_counts": counts, "WHOLE": 10, "SPLIT": 5, "BLOCK": 256, "num_warps": 4}
    found = reckoned.kernel(Launch(parts_kernel, (40,), arguments), "sm_90")
    whole, part = found.kinds
    assert (whole.programs, part.programs, found.programs) == (10, 30, 40)
    assert dict(whole.counts)["bytes"] == 2 * 256
    assert dict(part.counts)["bytes"] == pytest.approx((2 + (5 + 1) / 5) * 256)
    assert part.last > part.cycles > 0 and whole.last == whole.cycles
    assert found.read == 4 * (sizes["a"] + sizes["parts"]) and found.written == 4 * (sizes["parts"] + sizes["out"])


def test_whole_waves_of_tiles() -> None:
    wave = 2 * 128 * 256 * 6144 * 132 / 770e12 * 1e6
    assert reckoned.product_us(H100, 128 * 12, 256 * 11, 6144) == pytest.approx(wave)
    assert reckoned.product_us(H100, 128 * 12 + 1, 256 * 11, 6144) > 1.2 * wave
    small = reckoned.bound(recorded.Operator("mm", 10**6, 0, 16, 16, 16), H100)
    assert (small.set_by, small.us) == ("memory", pytest.approx(1e6 / 2.98e6))
    assert reckoned.bound(recorded.Operator("copy_", 2**20, 2**20), H100).us == pytest.approx(2**21 / 5120 / 1755)
    assert reckoned.bound(recorded.Operator("copy_", 40 * 2**20, 2**20), A100).set_by == "memory"


@pytest.mark.parametrize(
    ("shape", "batch", "least", "most"), [("coco", 16, 0.66, 0.66), ("coco", 64, 1.78, 2.17), ("vg500", 16, 2.2, 2.2)]
)
def test_the_products_alone_as_measured(shape: str, batch: int, least: float, most: float) -> None:
    """Milliseconds on an H100, measured before this project had kernels; two runs of the second differed."""
    ms = reckoned.products_us(reckon.case(shape, batch, "infer"), H100) / 1e3
    assert 0.9 * least <= ms <= 1.1 * most


def test_what_pytorch_starts_is_recorded() -> None:
    found: list[Any] = []
    with torch.device("meta"), recorded._Recorder(found):
        a, weight, bias = torch.empty(4, 5), torch.empty(3, 5), torch.empty(3)
        assert not found and a.t().expand(2, 5, 4).shape and not found
        torch.nn.functional.linear(a, weight, bias)
        a.copy_(bias[:1].expand(4, 5))
        torch.empty(0).clone()
    product, copy = found
    assert (product.m, product.n, product.k, product.batch, product.flop) == (4, 3, 5, 1, 2 * 4 * 3 * 5)
    assert (product.read, product.written) == (4 * (4 * 5 + 3 * 5), 4 * 4 * 3)
    assert (copy.name, copy.read, copy.written, copy.flop) == ("copy_", 4, 4 * 4 * 5, 0)


def test_a_training_step_records_forward_and_backward() -> None:
    one = reckon.case("coco", 2, "train")
    names = [k.name if isinstance(k, recorded.Operator) else k.kernel.fn.__name__ for k in recorded.head(one, "sm_90")]
    inference = recorded.head(replace(one, mode="infer"), "sm_90")
    counts = [names.count(f"{kernel}_backward_kernel") for kernel in ("aggregate", "gate", "blend")]
    assert counts == [one.shape.steps] * 2 + [1] and len(names) > 2 * len(inference)


def test_the_counted_form_computes_what_the_head_computes() -> None:
    one = replace(reckon.case("coco", 2, "infer").tiny(), device="cpu", dtype=torch.float64)
    tensors = cases.tensors(one)
    own = library.prepared_step("reference", one, tensors)()
    assert torch.allclose(own, library.head_module("reference", one, tensors)(tensors["feature_map"]), rtol=1e-10)


def test_growth_is_named() -> None:
    before: reckon.Rows = {("case", "gate_kernel"): [3, 10.0, 10.0, 20.0], ("case", "gone"): [1, 1.0, 1.0, 1.0]}
    assert reckon.grown({("case", "gate_kernel"): [3, 10.2, 9.0, 20.0]}, before) == []
    after: reckon.Rows = {("case", "gate_kernel"): [4, 10.4, 10.0, 21.0], ("case", "new"): [1, 0, 0, 0]}
    assert reckon.grown(after, before) == [
        "gate_kernel (case): 4 launches, recorded 3",
        "gate_kernel (case): 10.40 us on H100, recorded 10.00",
        "gate_kernel (case): 21.00 us on A100, recorded 20.00",
        "new (case) is not in the record",
    ]


def recorded_with() -> set[str]:
    return {line.rpartition(",")[2] for line in reckon.RECORD.read_text().splitlines()[1:]}


@compiles
@pytest.mark.thorough
@pytest.mark.skipif(
    recorded_with() != {triton.__version__}, reason="recorded with another Triton, which compiles otherwise"
)
def test_no_bound_has_grown() -> None:
    """Rewrite the record with ``python -m benchmarks.reckon --record`` where the growth is meant."""
    assert reckon.grown(reckon.rows(reckon.reckon()), reckon.read(reckon.RECORD)) == []


def test_measured_times_are_laid_beside(tmp_path: Path) -> None:
    one = str(reckon.case("coco", 16, "infer"))
    log, table = tmp_path / "contact-triton-bfloat16.log", tmp_path / "rows.csv"
    facts = {"time": one, "kernels_us": {"gate_kernel": [18.5, 3], "nvjet_tst_128x256": [400.0, 6]}}
    log.write_text("warning: clocks\n" + json.dumps({"time": one, "ms": {}}) + "\n" + json.dumps(facts) + "\n")
    columns = "operation,shape,B,dtype,mode,rival,p50_ms\n"
    rows = [f"head,coco,16,bfloat16,infer,{rival},{ms}\n" for rival, ms in (("triton", 1.2), ("triton-captured", 0.9))]
    table.write_text(columns + "".join(reversed(rows)) + "head,coco,16,bfloat16,infer,products,0.66\n")
    assert reckon.from_gpu(table) == {one: {"head": 900.0}}
    assert reckon.from_gpu(log)[one]["gate_kernel"] == 18.5
    archive = tmp_path / "gpu.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(log, log.name)
        file.add(table, table.name)
    both = reckon.from_gpu(archive)
    assert both[one]["head"] == 900.0 and both[one]["gate_kernel"] == 18.5
    programs = reckoned.Programs(2560, (("fma", 77.0),), 628, 628)
    kernel = reckoned.Kernel("gate_kernel", 4, 32, 0, (programs,), 10_485_760, 5_242_880)
    line = reckon.table(reckon.case("coco", 16, "infer"), [reckoned.bound(kernel, H100)] * 3, both[one]).splitlines()[
        -1
    ]
    assert line.startswith("| gate_kernel | 3 | 2560 x 4 | 32 | 16 | 2 | 10.5 | 5.2 |") and line.endswith(
        "| L2 | 5.3 | 18.5 |"
    )
    table.write_text(columns)
    with pytest.raises(ValueError, match=r"--measured: .*rows.csv has no times of the head with backend triton"):
        reckon.from_gpu(table)


def test_targets_say_what_is_met() -> None:
    one = reckon.case("coco", 16, "infer")
    operator = recorded.Operator("mm", 0, 0, 1280, 4096, 6144)
    found = {one: {"H100": [reckoned.bound(operator, H100)] * 14}}
    values = {what.rpartition(": ")[2]: (value, most) for what, value, most in reckon.targets(found)}
    assert values["launches"] == (14, 14) and len(values) == 2
    assert values["head, ms"][0] == pytest.approx(14 * (reckoned.bound(operator, H100).us + reckoned.GAP) / 1e3)
    assert cases.SHAPES["coco"].classes == 80
