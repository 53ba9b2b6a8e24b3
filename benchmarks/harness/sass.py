"""What one warp of a compiled kernel executes: its machine code (SASS), followed instruction by instruction.

The integer instructions of one thread are computed as the GPU would: loop counters, addresses and program numbers
are known, so that loops run as often as they do there, however ptxas has unrolled them. Floating-point values are not
known. A branch that depends on one is decided as follows: code with tensor-core products is executed; other code that
such a branch can leave out is left out (a slow path for rare values).

The control bits of each instruction (stall cycles, scoreboards) give the time that a warp takes that is alone on its
scheduler. Their layout is not documented by NVIDIA; it is that of Jia et al. 2018 (arXiv:1804.06826), section 2.1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from benchmarks.harness.sass_integers import Registers, compute, is_predicate

_LINE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;\s*/\* 0x\w+ \*/\s*/\* 0x(\w+) \*/"
)
_SPLIT = re.compile(r",\s*(?![^\[]*\])")
_WIDE = re.compile(r"\.(64|128)\b")
LATENCY = {"LDG": 262, "LDGSTS": 262, "LDS": 29, "LDSM": 33, "SHFL": 23, "MUFU": 23}
"""Cycles until a result can be read: L2 and shared memory as in Luo et al. 2024 (arXiv:2402.13499), others assumed."""
_LATENCY, _PRODUCT_LATENCY = 20, 32  # assumed: other instructions that a scoreboard waits for; a warp group's product
_LIMIT = 5_000_000  # instructions of one thread


@dataclass(frozen=True)
class Instruction:
    """One instruction: its guard ("", "P0", "!P0"), opcode, operands, and its control bits."""

    guard: str
    opcode: str
    operands: tuple[str, ...]
    stall: int  # cycles before the next instruction
    sets: int  # the scoreboard that its result clears, 7 for none
    waits: int  # a mask of scoreboards

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def bytes(self) -> int:
        """Bytes that a thread moves, for an instruction that moves any."""
        width = re.search(r"\.(U8|S8|U16|S16|64|128)\b", self.opcode)
        return {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}[width[1]] if width else 4

    @property
    def flop(self) -> int:
        """FLOP of a warp's share of a tensor-core product."""
        if group := re.match(r"[A-Z]GMMA\.(\d+)x(\d+)x(\d+)", self.opcode):  # of four warps
            return int(group[1]) * int(group[2]) * int(group[3]) // 2
        shape = re.search(r"MMA\.(16)(8)(\d+)", self.opcode)
        return 2 * int(shape[1]) * int(shape[2]) * int(shape[3]) if shape else 0


def parse(text: str) -> dict[int, Instruction]:
    """The instructions of the output of ``cuobjdump -sass``, by their addresses."""
    found = {}
    for address, guard, opcode, operands, control in _LINE.findall(text):
        bits = int(control, 16) >> 41
        parts = tuple(part.strip() for part in _SPLIT.split(operands)) if operands else ()
        found[int(address, 16)] = Instruction(guard, opcode, parts, bits & 15, bits >> 5 & 7, bits >> 11 & 63)
    return found


@dataclass
class Trace:
    """What one warp executed."""

    opcodes: Counter[Instruction] = field(default_factory=Counter)
    moved: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Bytes of a warp by "read" or "write" and the argument (its place) whose memory it was."""
    touched: dict[tuple[str, int], set[int]] = field(default_factory=dict)
    """The thread's addresses, by the same."""
    cycles: int = 0  # of a warp that is alone


class Thread:
    """Executes the code for one thread of one program.

    Args:
        code: see :func:`parse`.
        constants: the constant bank 0 by byte offset, 32-bit words: the kernel's parameters.
        special: values of special registers by name ("SR_CTAID.X").
        everything: execute also what a branch on an unknown value can leave out.
        tensor: tensor-core FLOP of a cycle that the warp has, beside the others of its program.
    """

    def __init__(
        self,
        code: Mapping[int, Instruction],
        constants: Mapping[int, int],
        special: Mapping[str, int],
        everything: bool = False,
        tensor: float = 1024,
    ) -> None:
        self.code, self.registers, self.everything = code, Registers(constants, special), everything
        self.tensor = tensor
        self.addresses = sorted(code)
        self._tensor = [at for at in self.addresses if code[at].flop]
        self._ends = [at for at in self.addresses if code[at].name == "EXIT" and not code[at].guard]
        self._clear = [0] * 8  # when each scoreboard is clear
        self._copies: list[int] = []  # when each group of asynchronous copies has arrived
        self._newest = 0  # when the newest copy has arrived
        self._products = 0.0  # when all products of the warp are done
        self._groups: list[float] = []  # when each group of a warp group's products is done

    def run(self) -> Trace:
        """The trace, to the end of the thread.

        Raises:
            ValueError: the thread does not end, or the condition of a loop or an address of memory is not known.
        """
        trace, at, returns, time = Trace(), self.addresses[0], [], 0
        step = self.addresses[1] - self.addresses[0]
        for _ in range(_LIMIT):
            one = self.code[at]
            trace.opcodes[one] += 1
            time = self._wait(one, time)
            guard = self.registers.predicate(one.guard) if one.guard else True
            if guard is None and one.name not in ("BRA", "CALL", "RET", "EXIT"):
                guard = True if self.everything else False if one.name in ("LDG", "STG", "LDGSTS") else None
            following = at + step
            if one.name in ("BRA", "CALL", "RET", "EXIT"):
                if one.name == "EXIT" and guard is None:  # leaves out all that follows
                    guard = self._decide(at, self.addresses[-1] + step)
                if one.name == "EXIT" and guard:
                    trace.cycles = time
                    return trace
                target = int(one.operands[-1], 16) if one.name in ("BRA", "CALL") else 0
                if one.name == "BRA" and len(one.operands) > 1 and guard is not False:  # a second condition
                    guard = self.registers.predicate(one.operands[0]) if guard else None
                if one.opcode == "BRA.DIV":  # a warp whose threads have diverged
                    guard = False
                if guard is None and one.name == "BRA":
                    guard = self._decide(at, target)
                if guard and one.name == "CALL":
                    returns.append(following)
                if guard and one.name != "EXIT":
                    following = returns.pop() if one.name == "RET" else target
            else:
                # an asynchronous copy whose last predicate is false fills with zeros and reads nothing
                masked = is_predicate((one.operands or ("",))[-1].lstrip("!"))
                reads = self.registers.predicate(one.operands[-1]) if masked else True
                if one.name in ("LDG", "STG", "LDGSTS") and guard is not False and reads is not False:
                    address = self._address(one)
                    key = ("write" if one.name == "STG" else "read", address >> 40)  # arguments lie 2^40 bytes apart
                    trace.moved[key] += 32 * one.bytes
                    trace.touched.setdefault(key, set()).add(address)
                if guard is not False:
                    self._execute(one, known=guard is True)
            time += max(one.stall, 1)
            at = following
        raise ValueError(f"the code does not end within {_LIMIT} instructions of a thread")

    def _wait(self, one: Instruction, time: int) -> int:
        """The time at which an instruction starts; notes when its results arrive."""
        for index in range(6):
            if one.waits >> index & 1:
                time = max(time, self._clear[index])
        if one.name == "LDGDEPBAR":
            self._copies.append(self._newest)
        elif one.name == "DEPBAR" and len(one.operands) > 1:
            left = int(one.operands[1], 16)
            arrived = self._copies[: len(self._copies) - left] if left else self._copies
            time = max([time, *arrived])
        elif one.opcode.startswith("WARPGROUP.DEPBAR"):
            left = int(one.operands[1], 16)
            time = max([time, *map(ceil, self._groups[-1 - left : len(self._groups) - left])])
        elif one.name.endswith("GMMA"):  # started, not waited for
            self._products = max(self._products, time + _PRODUCT_LATENCY) + one.flop / self.tensor
            if one.operands[-1].startswith("gsb"):
                self._groups.append(self._products)
        elif one.flop:
            time = max(time, ceil(self._products))
            self._products = time + one.flop / self.tensor
        done = time + LATENCY.get(one.name, _LATENCY)
        if one.name == "LDGSTS":
            self._newest = done
        if one.sets < 6:
            self._clear[one.sets] = max(self._clear[one.sets], done)
        return time

    def _decide(self, at: int, target: int) -> bool:
        """Whether a branch on an unknown value is taken."""
        if target <= at:
            raise ValueError(f"how often the loop at {target:#x} runs is not known")
        if self.everything or (self.code[at].name == "BRA" and any(at < end < target for end in self._ends)):
            return False
        return not any(at < product < target for product in self._tensor)

    def _address(self, one: Instruction) -> int:
        """The address of an access to global memory.

        Raises:
            ValueError: it is not known.
        """
        text = next((part for part in reversed(one.operands) if "desc[" in part or ".64" in part), one.operands[-1])
        address = re.search(r"\[(U?R\d+)(?:\.64|\.U32)?(?:\+(UR\d+))?(?:\+?(-?0x\w+))?\]$", text)
        values = [self.registers.pair(name) for name in address.groups()[:2] if name] if address else [None]
        if address is None or None in values:
            raise ValueError(f"the address of {one.opcode} {', '.join(one.operands)} is not known")
        return (sum(v for v in values if v is not None) + int(address[3] or "0", 16)) % 2**64

    def _execute(self, one: Instruction, known: bool) -> None:
        operands = list(one.operands)
        if not operands or operands[0].startswith(("[", "desc[", "gdesc[")):
            return
        name = one.name.removeprefix("U")
        outputs = [operands.pop(0)]
        if outputs[0] == "PR":  # predicates from the bits of a register
            value, mask = self.registers.read(operands[0]), int(operands[1], 16)
            for i in range(7):
                if mask >> i & 1:
                    self.registers.values[f"P{i}"] = None if value is None or not known else value >> i & 1
            return
        of_predicate = is_predicate(outputs[0])
        if of_predicate or name in ("IADD3", "LEA", "IMAD"):  # a second predicate or a register; carries
            while operands and (is_predicate(operands[0]) if len(outputs) < 3 else False):
                outputs.append(operands.pop(0))
                if of_predicate:
                    break
            if of_predicate and len(outputs) == 1:
                outputs.append(operands.pop(0))
        result = compute(self.registers, one.opcode, operands) if known else None
        if of_predicate:
            logic = name in ("LOP3", "SHFL")  # the register behind takes the result
            self.registers.write(outputs[0], None if result is None else int(result != 0))
            self.registers.write(outputs[1], result if logic else None)
            return
        self.registers.write(outputs[0], result, _outputs(one))
        for i, carry in enumerate(outputs[1:]):
            self.registers.write(carry, None if result is None else int(result >> 32 > i))


def _outputs(one: Instruction) -> int:
    """How many registers an instruction writes."""
    if group := re.match(r"[A-Z]GMMA\.\d+x(\d+)", one.opcode):
        return int(group[1]) // 2
    if one.flop or (one.name == "LDSM" and one.opcode.endswith("4")):
        return 4
    if one.name == "CS2R" or ".WIDE" in one.opcode or one.name[0] == "D":
        return 2
    width = _WIDE.search(one.opcode)
    return int(width[1]) // 32 if width and one.name in ("LDG", "LDS", "LDC", "ULDC", "MOV", "UIADD3") else 1
