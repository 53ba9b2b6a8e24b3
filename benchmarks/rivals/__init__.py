"""The rivals: the implementations that compute the same outputs and are compared with each other.

A rival builds a :class:`Program` from the tensors of a case (benchmarks.harness.cases.tensors). What building does
(packing and copying weights) is not timed.
"""

from benchmarks.rivals.catalogue import RIVALS
from benchmarks.rivals.library import fastest, head_module
from benchmarks.rivals.programs import CANCELLED, CONSTANTS, Program, Rival, Tensors, cotangents, step

__all__ = [
    "CANCELLED",
    "CONSTANTS",
    "RIVALS",
    "Program",
    "Rival",
    "Tensors",
    "cotangents",
    "fastest",
    "head_module",
    "step",
]
