"""The integer instructions of SASS, as one thread executes them; floating-point values are not known.

What an instruction does is not documented by NVIDIA beyond its name (CUDA Binary Utilities, instruction set reference);
the tests hold it to what the compiled code must compute.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence

Value = int | None  # 32 bits, or not known
_MASK = 0xFFFFFFFF


class Registers:
    """Registers and predicates of a thread by name ("R0", "UR4", "P0"), and what else an operand may name.

    Args:
        constants: the constant bank 0 by byte offset, 32-bit words: the kernel's parameters.
        special: values of special registers by name ("SR_CTAID.X").
    """

    def __init__(self, constants: Mapping[int, int], special: Mapping[str, int]) -> None:
        self.constants, self.special = constants, special
        self.values: dict[str, Value] = {}

    def predicate(self, text: str) -> bool | None:
        """The value of a predicate operand, negated or not."""
        name = text.lstrip("!")
        value = 1 if name in ("PT", "UPT") else self.values.get(name)
        return None if value is None else bool(value) != text.startswith("!")

    def read(self, text: str, offset: int = 0) -> Value:
        """The value of an operand, or of the register ``offset`` behind it; immediates are extended with their sign."""
        sign, inverse, absolute = text.startswith("-"), text.startswith("~"), "|" in text
        body = text.strip("-~|").partition(".")[0] if "[" not in text else text.strip("-~|")
        value: Value = None
        if body in ("RZ", "URZ", "SRZ"):
            value = 0
        elif bank := re.match(r"c\[0x0\]\[0x(\w+)\]", body):
            value = self.constants.get(int(bank[1], 16) + 4 * offset)
        elif body == "sum":
            value = self.values["sum"]
        elif register := re.match(r"(U?R)(\d+)$", body):
            value = self.values.get(f"{register[1]}{int(register[2]) + offset}")
        elif body.startswith("0x"):
            number = int(body, 16)
            value = number if offset == 0 else (_MASK if (number >> 31) ^ sign else 0)
        if value is None:
            return None
        if absolute:
            value = abs(_signed(value))
        return (-value if sign else ~value if inverse else value) & _MASK

    def pair(self, text: str) -> Value:
        """The 64 bits of an operand and the register behind it."""
        low, high = self.read(text), self.read(text, 1)
        return None if low is None or high is None else low | high << 32

    def write(self, name: str, value: Value, count: int = 1) -> None:
        """Set a register, or ``count`` of them from a longer number."""
        if register := re.match(r"(U?R)(\d+)", name):
            for i in range(count):
                part = None if value is None else value >> 32 * i & _MASK
                self.values[f"{register[1]}{int(register[2]) + i}"] = part
        elif re.match(r"U?P\d", name):
            self.values[name] = value


def is_predicate(text: str) -> bool:
    """Whether an operand is a predicate."""
    return bool(re.fullmatch(r"U?P[\dT]", text))


def _signed(value: int) -> int:
    return value - 2**32 if value >> 31 else value


Compute = Callable[[Registers, str, Sequence[str]], Value]


def _of(function: Callable[..., Value], count: int) -> Compute:
    """A function of the first operands as unsigned numbers."""

    def compute(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
        values = [registers.read(text) for text in operands[:count]]
        return None if None in values else function(opcode, *values)

    return compute


def _add(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    values: list[Value] = [registers.read(text) for text in operands[:3]]
    if ".X" in opcode:
        values += [registers.predicate(text) for text in operands[3:]]
    return None if None in values else sum(value for value in values if value is not None)


def _multiply(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    a, b = registers.read(operands[0]), registers.read(operands[1])
    wide = ".WIDE" in opcode or ".HI" in opcode
    c = registers.pair(operands[2]) if wide else registers.read(operands[2])
    if 0 in (a, b):  # a move or an addition, whatever the other factor is
        a = b = 0
    if a is None or b is None or c is None:
        return None
    if wide and ".U32" not in opcode:
        a, b = _signed(a), _signed(b)
    total = a * b + c
    if ".X" in opcode:
        carry = registers.predicate(operands[3])
        if carry is None:
            return None
        total += carry
    return (total >> 32) & _MASK if ".HI" in opcode else total & (2**64 - 1 if wide else _MASK)


def _lea(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    high, carried = ".HI" in opcode, ".X" in opcode
    a, b = registers.read(operands[0]), registers.read(operands[1])
    place = 3 if high and "SX32" not in opcode else 2
    top = registers.read(operands[2]) if place == 3 else (_MASK if a is not None and a >> 31 and high else 0)
    carry = registers.predicate(operands[place + 1]) if carried else False
    shift = registers.read(operands[place])
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


def _permute(opcode: str, a: int, selector: int, b: int) -> int:
    """Four bytes of the eight of a and b; a chosen one is its sign where the selector's bit 3 is set."""
    pool, result = a | b << 32, 0
    for place in range(4):
        chosen = selector >> 4 * place & 15
        byte = pool >> 8 * (chosen & 7) & 255
        result |= ((byte >> 7) * 255 if chosen & 8 else byte) << 8 * place
    return result


def _pack(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    """The predicates of a mask as the bits of a register."""
    mask = int(operands[2], 16)
    bits = [registers.predicate(f"P{i}") if mask >> i & 1 else False for i in range(7)]
    return None if None in bits else sum(1 << i for i, bit in enumerate(bits) if bit)


def _logic(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    values = [registers.read(text) for text in operands[:3]]
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


def _predicates(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    rows, table = [0], int(operands[3], 16)
    for text in operands[:3]:
        value = registers.predicate(text)
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


def _set(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    a, b = registers.read(operands[0]), registers.read(operands[1])
    other = registers.predicate(operands[2])
    _, compare, *kinds = opcode.split(".")
    if other is not None and ("AND" in kinds) != other:
        return int(other)  # false AND anything, true OR anything
    if a is None or b is None:
        return None
    low = registers.predicate(operands[3]) if "EX" in kinds else None
    signed = "U32" not in kinds
    result = _COMPARE[compare](_signed(a), _signed(b)) if signed else _COMPARE[compare](a, b)
    if "EX" in kinds and a == b:
        if low is None:
            return None
        result = low
    return None if other is None else int(result)


def _select(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    chosen = registers.predicate(operands[2])
    return None if chosen is None else registers.read(operands[0 if chosen else 1])


def _least(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    a, b, least = registers.read(operands[0]), registers.read(operands[1]), registers.predicate(operands[2])
    if a is None or b is None or least is None:
        return None
    key = (lambda value: value) if "U32" in opcode else _signed
    return min(a, b, key=key) if least else max(a, b, key=key)


def _add_least(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    total = _add(registers, opcode, ("RZ", *operands[:2]))
    registers.values["sum"] = None if total is None else total & _MASK
    return _least(registers, opcode, ("sum", *operands[2:]))


def _special(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    return 0 if operands[0] == "SRZ" else registers.special.get(operands[0])


def _load(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    return registers.pair(operands[0]) if "64" in opcode else registers.read(operands[0])


def _half_constant(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
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
    "PRMT": _of(_permute, 3),
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


def compute(registers: Registers, opcode: str, operands: Sequence[str]) -> Value:
    """The result of an instruction from its inputs; more than 32 bits where it carries; None where it is not known."""
    name = opcode.partition(".")[0].removeprefix("U")
    return _COMPUTE[name](registers, opcode, operands) if name in _COMPUTE else None
