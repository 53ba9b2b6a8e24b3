"""The coding of label matrices, read in one place.

A label matrix is [M, C], M images by C classes. Its codes are those of PASCAL VOC's ``ImageSets/Main`` lists, and one
for labels that nobody has looked at:

====  ==========================================================================
code  meaning
====  ==========================================================================
  1   present
  0   only objects flagged "difficult" (VOC), or plainly absent, see below
 -1   absent
 -2   unknown: nobody said whether the class is there (partial annotation)
====  ==========================================================================

Boolean labels say present or absent. An integer matrix of {0, 1} says the same, unless ``difficult=`` names a rule:
0 means "only difficult objects" when a -1 occurs somewhere in the matrix, or when the caller says so. What becomes of
such an entry is the difficult rule (D27): ``"ignore"`` leaves it out (VOC devkit), ``"positive"`` counts it as present
(ML-GCN in training), ``"negative"`` as absent (SSGRL's published code). Results under different rules do not compare.
Unknown entries are left out under every rule: of the loss, of every metric and of the graph.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast._utils.text import is_utf8

PRESENT = 1
DIFFICULT = 0
ABSENT = -1
UNKNOWN = -2
DIFFICULT_RULES = ("ignore", "positive", "negative")

_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)

Labels = Tensor | np.ndarray | Sequence[Sequence[int]]


class LabelSets(NamedTuple):
    """A label matrix taken apart by a difficult rule.

    Attributes:
        present: bool [M, C], the entry counts as a positive.
        known: bool [M, C], the entry counts at all; false where it is unknown and, under ``"ignore"``, difficult.
        difficult: bool [M, C], the entry holds only difficult objects, whatever the rule makes of it.
        unknown: bool [M, C], nobody said whether the class is there.
        rule: the rule that was applied; ``"ignore"`` where none was named.
    """

    present: Tensor
    known: Tensor
    difficult: Tensor
    unknown: Tensor
    rule: str


def check_labels(operation: str, name: str, labels: Labels) -> Tensor:
    """A label matrix as a tensor: bool, or int8 with codes 1, 0, -1, -2.

    Args:
        operation: the name that opens every message.
        name: the argument's name.
        labels: [M, C]; a tensor, a NumPy array or nested sequences; bool, integers or whole floats.

    Returns:
        bool or int8 [M, C], on the labels' device.

    Raises:
        TypeError: no array of numbers.
        ValueError: not two-dimensional, or a value other than 1, 0, -1 and -2 (soft labels, D23, are refused too).
    """
    tensor = _as_tensor(operation, name, labels)
    if tensor.dim() != 2:
        raise ValueError(f"{operation}: {name} must be [M, C], images by classes, got {list(tensor.shape)}")
    if tensor.dtype == torch.bool:
        return tensor
    if tensor.dtype.is_complex:
        raise TypeError(f"{operation}: {name} must be bool or hold 1, 0 and -1, got {tensor.dtype}")
    if tensor.dtype in _UNSIGNED:
        tensor = tensor.to(torch.int64)
    wrong = ~((tensor == PRESENT) | (tensor == DIFFICULT) | (tensor == ABSENT) | (tensor == UNKNOWN))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{operation}: {name} must hold only 1, 0 and -1, got {tensor[row, column].item()!r} "
            f"at image {row}, class {column} "
            f"({int(wrong.sum())} such entries); -2 stands for unknown"
        )
    return tensor.to(torch.int8)


def split_labels(operation: str, name: str, labels: Labels, difficult: str | None = None) -> LabelSets:
    """Take a label matrix apart by the difficult rule (the module's docstring; D27).

    Args:
        operation: the name that opens every message.
        name: the argument's name.
        labels: [M, C], as :func:`check_labels` takes it.
        difficult: ``"ignore"``, ``"positive"``, ``"negative"``, or None: 0 means difficult, and is ignored, only when a
            -1 occurs. Boolean labels hold no difficult entries under any rule.

    Raises:
        TypeError, ValueError: as :func:`check_labels`, or an unknown rule.
    """
    if difficult is not None:
        check_choice(operation, "difficult", difficult, DIFFICULT_RULES)
    codes = check_labels(operation, name, labels)
    rule, none = difficult or "ignore", torch.zeros_like(codes, dtype=torch.bool)
    if codes.dtype == torch.bool:
        return LabelSets(codes, ~none, none, none, rule)
    present, unknown = codes == PRESENT, codes == UNKNOWN
    if difficult is None and not bool((codes == ABSENT).any()):
        return LabelSets(present, ~unknown, none, unknown, rule)
    unclear = codes == DIFFICULT
    known = ~(unclear | unknown) if rule == "ignore" else ~unknown
    return LabelSets(present | unclear if rule == "positive" else present, known, unclear, unknown, rule)


def check_class_names(
    operation: str, class_names: Sequence[str] | np.ndarray | None, num_classes: int | None = None
) -> list[str]:
    """Class names as a list: strings, none empty, none twice, and as many as there are classes.

    Args:
        operation: the name that opens every message.
        class_names: C names; None, allowed where ``num_classes`` is known: ``"class 0"``, ``"class 1"``, …
        num_classes: C, or None where any number of names will do.

    Raises:
        TypeError: not a sequence of strings (one string is refused too), or None without ``num_classes``.
        ValueError: no name at all, an empty one, one that occurs twice, or not ``num_classes`` of them.
    """
    if class_names is None and num_classes is not None:
        return [f"class {index}" for index in range(num_classes)]
    if isinstance(class_names, np.ndarray):
        class_names = class_names.tolist()
    if isinstance(class_names, (str, bytes)) or not isinstance(class_names, Sequence):
        raise TypeError(f"{operation}: class_names must be a list of strings, got {type(class_names).__name__}")
    names = list(class_names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{operation}: class_names must hold strings, got {name!r}")
        if not name.strip():
            raise ValueError(f"{operation}: class_names holds an empty name at place {names.index(name)}")
        if not is_utf8(name):
            raise ValueError(f"{operation}: class_names holds {name!r}, which is no UTF-8: rename its file or folder")
    if not names:
        raise ValueError(f"{operation}: class_names is empty")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ValueError(f"{operation}: class_names holds {', '.join(map(repr, twice))} more than once")
    if num_classes is not None and len(names) != num_classes:
        raise ValueError(f"{operation}: {len(names)} class_names for {num_classes} classes")
    return names


def alike_names(names: Sequence[str], others: Sequence[str] | None = None) -> str:
    """A clause, opened by a semicolon, about the first two names that differ in case or in Unicode's normalisation
    alone; empty if there are none.

    Args:
        names: class names.
        others: names that they are compared with; None: among themselves.
    """
    first: dict[str, str] = {}
    for name in names if others is None else (*others, *names):
        other = first.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
            how = f"in Unicode's normalisation ({ascii(other)}, {ascii(name)})" if same else "in case"
            return f"; {other!r} and {name!r} differ {how} alone"
    return ""


def _as_tensor(operation: str, name: str, labels: Any) -> Tensor:
    if isinstance(labels, Tensor):
        return labels.detach()
    array = np.asarray(labels)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{operation}: {name} must be an array of numbers [M, C], got {type(labels).__name__} of {array.dtype}"
        )
    return torch.from_numpy(np.array(array))
