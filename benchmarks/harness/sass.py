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
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Value = int | None  # 32 bits, or not known
_MASK = 0xFFFFFFFF
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
    """

    def __init__(
        self, code: Mapping[int, Instruction], constants: Mapping[int, int], special: Mapping[str, int]
    ) -> None:
        self.code, self.constants, self.special = code, constants, special
        self.registers: dict[str, Value] = {}
        self.addresses = sorted(code)
        self._tensor = [at for at in self.addresses if code[at].flop]
        self._ends = [at for at in self.addresses if code[at].name == "EXIT" and not code[at].guard]
        self._clear = [0] * 8  # when each scoreboard is clear
        self._copies: list[int] = []  # when each group of asynchronous copies has arrived
        self._newest = self._products = 0  # when the newest copy has arrived, when all products of the warp are done

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
            guard = self._predicate(one.guard) if one.guard else True
            following = at + step
            if one.name in ("BRA", "CALL", "RET", "EXIT"):
                if one.name == "EXIT" and guard is True:
                    trace.cycles = time
                    return trace
                target = int(one.operands[-1], 16) if one.name in ("BRA", "CALL") else 0
                if one.name == "BRA" and len(one.operands) > 1 and guard is not False:  # a second condition
                    guard = self._predicate(one.operands[0]) if guard else None
                if one.opcode == "BRA.DIV":  # a warp whose threads have diverged
                    guard = False
                if guard is None and one.name == "BRA":
                    guard = self._decide(at, target)
                if guard and one.name == "CALL":
                    returns.append(following)
                if guard and one.name != "EXIT":
                    following = returns.pop() if one.name == "RET" else target
            else:
                if guard is not False and one.name in ("LDG", "STG", "LDGSTS"):
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
            time = max(time, self._products)
        elif one.name.endswith("GMMA"):
            self._products = max(self._products, time + _PRODUCT_LATENCY) + one.flop // 1024  # four warps' 4096 a cycle
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
        if any(at < end < target for end in self._ends):
            return False
        return not any(at < product < target for product in self._tensor)

    # operands

    def _predicate(self, text: str) -> bool | None:
        name = text.lstrip("!")
        value = 1 if name in ("PT", "UPT") else self.registers.get(name)
        return None if value is None else bool(value) != text.startswith("!")

    def _read(self, text: str, offset: int = 0) -> Value:
        """The value of an operand, or of the register ``offset`` behind it; immediates are extended with their sign."""
        sign, inverse, absolute = text.startswith("-"), text.startswith("~"), "|" in text
        body = text.strip("-~|").partition(".")[0] if "[" not in text else text.strip("-~|")
        value: Value = None
        if body in ("RZ", "URZ", "SRZ"):
            value = 0
        elif bank := re.match(r"c\[0x0\]\[0x(\w+)\]", body):
            value = self.constants.get(int(bank[1], 16) + 4 * offset)
        elif body == "sum":
            value = self.registers["sum"]
        elif register := re.match(r"(U?R)(\d+)$", body):
            value = self.registers.get(f"{register[1]}{int(register[2]) + offset}")
        elif body.startswith("0x"):
            number = int(body, 16)
            value = number if offset == 0 else (_MASK if (number >> 31) ^ sign else 0)
        if value is None:
            return None
        if absolute:
            value = abs(_signed(value))
        return (-value if sign else ~value if inverse else value) & _MASK

    def _pair(self, text: str) -> Value:
        low, high = self._read(text), self._read(text, 1)
        return None if low is None or high is None else low | high << 32

    def _address(self, one: Instruction) -> int:
        """The address of an access to global memory.

        Raises:
            ValueError: it is not known.
        """
        text = next((part for part in reversed(one.operands) if "desc[" in part or ".64" in part), one.operands[-1])
        address = re.search(r"\[(U?R\d+)(?:\.64|\.U32)?(?:\+(UR\d+))?(?:\+?(-?0x\w+))?\]$", text)
        values = [self._pair(name) for name in address.groups()[:2] if name] if address else [None]
        if address is None or None in values:
            raise ValueError(f"the address of {one.opcode} {', '.join(one.operands)} is not known")
        return (sum(v for v in values if v is not None) + int(address[3] or "0", 16)) % 2**64

    def _write(self, name: str, value: Value, count: int = 1) -> None:
        """Set a register, or ``count`` of them from a longer number."""
        if register := re.match(r"(U?R)(\d+)", name):
            for i in range(count):
                part = None if value is None else value >> 32 * i & _MASK
                self.registers[f"{register[1]}{int(register[2]) + i}"] = part
        elif re.match(r"U?P\d", name):
            self.registers[name] = value

    def _execute(self, one: Instruction, known: bool) -> None:
        operands = list(one.operands)
        if not operands or operands[0].startswith(("[", "desc[", "gdesc[")):
            return
        name = one.name.removeprefix("U")
        outputs = [operands.pop(0)]
        if outputs[0] == "PR":  # predicates from the bits of a register
            value, mask = self._read(operands[0]), int(operands[1], 16)
            for i in range(7):
                if mask >> i & 1:
                    self.registers[f"P{i}"] = None if value is None or not known else value >> i & 1
            return
        of_predicate = _is_predicate(outputs[0])
        if of_predicate or name in ("IADD3", "LEA", "IMAD"):  # a second predicate or a register; carries
            while operands and (_is_predicate(operands[0]) if len(outputs) < 3 else False):
                outputs.append(operands.pop(0))
                if of_predicate:
                    break
            if of_predicate and len(outputs) == 1:
                outputs.append(operands.pop(0))
        compute = _COMPUTE.get(name)
        result = compute(self, one.opcode, operands) if compute and known else None
        if of_predicate:
            logic = name in ("LOP3", "SHFL")  # the register behind takes the result
            self._write(outputs[0], None if result is None else int(result != 0))
            self._write(outputs[1], result if logic else None)
            return
        self._write(outputs[0], result, _outputs(one))
        for i, carry in enumerate(outputs[1:]):
            self._write(carry, None if result is None else int(result >> 32 > i))


def _is_predicate(text: str) -> bool:
    return bool(re.fullmatch(r"U?P[\dT]", text))


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


def _signed(value: int) -> int:
    return value - 2**32 if value >> 31 else value


Compute = Callable[[Thread, str, Sequence[str]], Value]


def _of(function: Callable[..., Value], count: int) -> Compute:
    """A function of the first operands as unsigned numbers."""

    def compute(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
        values = [thread._read(text) for text in operands[:count]]
        return None if None in values else function(opcode, *values)

    return compute


def _add(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    values: list[Value] = [thread._read(text) for text in operands[:3]]
    if ".X" in opcode:
        values += [thread._predicate(text) for text in operands[3:]]
    return None if None in values else sum(value for value in values if value is not None)


def _multiply(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    a, b = thread._read(operands[0]), thread._read(operands[1])
    wide = ".WIDE" in opcode or ".HI" in opcode
    c = thread._pair(operands[2]) if wide else thread._read(operands[2])
    if 0 in (a, b):  # a move or an addition, whatever the other factor is
        a = b = 0
    if a is None or b is None or c is None:
        return None
    if wide and ".U32" not in opcode:
        a, b = _signed(a), _signed(b)
    total = a * b + c
    if ".X" in opcode:
        carry = thread._predicate(operands[3])
        if carry is None:
            return None
        total += carry
    return (total >> 32) & _MASK if ".HI" in opcode else total & (2**64 - 1 if wide else _MASK)


def _lea(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    high, carried = ".HI" in opcode, ".X" in opcode
    a, b = thread._read(operands[0]), thread._read(operands[1])
    place = 3 if high and "SX32" not in opcode else 2
    top = thread._read(operands[2]) if place == 3 else (_MASK if a is not None and a >> 31 and high else 0)
    carry = thread._predicate(operands[place + 1]) if carried else False
    shift = thread._read(operands[place])
    if a is None or b is None or top is None or carry is None or shift is None:
        return None
    shifted = (a | top << 32) << shift
    return (shifted >> 32 & _MASK if high else shifted & _MASK) + b + carry


def _shift(opcode: str, low: int, by: int, high: int) -> int:
    both = low | high << 32
    if ".L" in opcode:
        return both << by >> (32 if ".HI" in opcode else 0) & _MASK
    if "U64" in opcode or "S64" in opcode:
        return both >> by & _MASK
    number = _signed(high) if "S32" in opcode else high
    return (number >> min(by, 32) if ".HI" in opcode else both >> by) & _MASK


def _extend(opcode: str, value: int, bits: int) -> int:
    low = value & ((1 << bits) - 1)
    return low if "U32" in opcode or not low >> (bits - 1) else (low - (1 << bits)) & _MASK


def _pack(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    """The predicates of a mask as the bits of a register."""
    mask = int(operands[2], 16)
    bits = [thread._predicate(f"P{i}") if mask >> i & 1 else False for i in range(7)]
    return None if None in bits else sum(1 << i for i, bit in enumerate(bits) if bit)


def _logic(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    values = [thread._read(text) for text in operands[:3]]
    table = int(operands[3], 16)
    for i, value in enumerate(values):  # an operand that the table does not ask for, and masks of zero
        if value is None and table == 0xC0 and values[1 - i if i < 2 else 0] == 0:
            return 0
    if None in values:
        return None
    a, b, c = (value for value in values if value is not None)
    result = 0
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result & _MASK


def _predicates(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    rows, table = [0], int(operands[3], 16)
    for text in operands[:3]:
        value = thread._predicate(text)
        rows = [2 * row + bit for row in rows for bit in ((0, 1) if value is None else (int(value),))]
    results = {table >> row & 1 for row in rows}
    return results.pop() if len(results) == 1 else None


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}


def _set(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    a, b = thread._read(operands[0]), thread._read(operands[1])
    other = thread._predicate(operands[2])
    _, compare, *kinds = opcode.split(".")
    if other is not None and ("AND" in kinds) != other:
        return int(other)  # false AND anything, true OR anything
    if a is None or b is None:
        return None
    low = thread._predicate(operands[3]) if "EX" in kinds else None
    signed = "U32" not in kinds
    result = _COMPARE[compare](_signed(a), _signed(b)) if signed else _COMPARE[compare](a, b)
    if "EX" in kinds and a == b:
        if low is None:
            return None
        result = low
    return None if other is None else int(result)


def _select(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    chosen = thread._predicate(operands[2])
    return None if chosen is None else thread._read(operands[0 if chosen else 1])


def _least(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    a, b, least = thread._read(operands[0]), thread._read(operands[1]), thread._predicate(operands[2])
    if a is None or b is None or least is None:
        return None
    key = (lambda value: value) if "U32" in opcode else _signed
    return min(a, b, key=key) if least else max(a, b, key=key)


def _add_least(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    total = _add(thread, opcode, ("RZ", *operands[:2]))
    thread.registers["sum"] = None if total is None else total & _MASK
    return _least(thread, opcode, ("sum", *operands[2:]))


def _special(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    return 0 if operands[0] == "SRZ" else thread.special.get(operands[0])


def _load(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    return thread._pair(operands[0]) if "64" in opcode else thread._read(operands[0])


def _half_constant(thread: Thread, opcode: str, operands: Sequence[str]) -> Value:
    """HFMA2 of zeros, which ptxas uses to load a constant as two halves."""
    if [text.strip("-") for text in operands[:2]] != ["RZ", "RZ"] or len(operands) < 4:
        return None
    try:
        high, low = (struct.unpack("<H", struct.pack("<e", float(text)))[0] for text in operands[2:4])
    except (ValueError, OverflowError):
        return None
    return int(high) << 16 | int(low)


def _float(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


_COMPUTE: dict[str, Compute] = {
    "MOV": _load,
    "LDC": _load,
    "R2UR": _of(lambda opcode, a: a, 1),
    "S2R": _special,
    "S2UR": _special,
    "CS2R": _special,
    "IADD3": _add,
    "VIADD": _of(lambda opcode, a, b: (a + b) & _MASK, 2),
    "IMAD": _multiply,
    "LEA": _lea,
    "SHF": _of(_shift, 3),
    "LOP3": _logic,
    "PLOP3": _predicates,
    "ISETP": _set,
    "SEL": _select,
    "IMNMX": _least,
    "VIMNMX": _least,
    "VIADDMNMX": _add_least,
    "IABS": _of(lambda opcode, a: abs(_signed(a)), 1),
    "SGXT": _of(_extend, 2),
    "SHFL": _of(lambda opcode, a: a, 1),
    "HFMA2": _half_constant,
    "I2F": _of(lambda opcode, a: _bits(a), 1),
    "F2I": _of(lambda opcode, a: int(_float(a)) & _MASK, 1),
    "MUFU": _of(lambda opcode, a: _bits(1 / _float(a)) if "RCP" in opcode and _float(a) else None, 1),
    "P2R": _pack,
}
