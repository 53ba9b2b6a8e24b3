"""What the values of class columns mean: data sets use 1, 0, -1 and empty cells for opposite things.

=============  =========  ==========================  =======  =======
coding         ``1``      ``0``                       ``-1``   empty
=============  =========  ==========================  =======  =======
zero-one       present    absent                      refused  absent
voc            present    only difficult objects      absent   refused
chexpert       present    absent                      unknown  unknown
openimages     present    absent                      refused  unknown
partial        present    unknown                     absent   unknown
=============  =========  ==========================  =======  =======

"voc" is PASCAL VOC's ``ImageSets/Main``; "chexpert" the labels of CheXpert (-1: uncertain; empty: not mentioned);
"openimages" verified labels alone; "partial" the ternary matrices of work on partial labels. Any other coding is
written out: ``"1=present,0=absent,-1=unknown,empty=absent"``. True, yes, 1.0 stand for 1; False, no, 0.0 for 0; NaN,
NA, null for an empty cell, in any letters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.labels.matrix import ABSENT, DIFFICULT, PRESENT, UNKNOWN

__all__ = ["CODINGS", "Coding", "coding_for", "read_coding", "sign_of"]

SIGNS = ("1", "0", "-1", "empty")
MEANINGS = {"present": PRESENT, "absent": ABSENT, "difficult": DIFFICULT, "unknown": UNKNOWN}

_NUMBER = re.compile(r"([+-]?)0*([01])(?:\.0*)?")
_WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y"), "1"),
    **dict.fromkeys(("false", "f", "no", "n"), "0"),
    **dict.fromkeys(("", "nan", "na", "n/a", "null", "none"), "empty"),
}


@dataclass(frozen=True)
class Coding:
    """A coding by name.

    Attributes:
        name: as the option gives it.
        codes: code of a label matrix (:mod:`ssgrl_fast.labels.matrix`) by sign, "1", "0", "-1" or "empty"; a sign that
            is missing here is refused.
    """

    name: str
    codes: Mapping[str, int]

    def __str__(self) -> str:
        words = {code: word for word, code in MEANINGS.items()} | {DIFFICULT: "only difficult objects"}
        return f"{self.name} ({', '.join(f'{sign} {words[self.codes[sign]]}' for sign in SIGNS if sign in self.codes)})"


CODINGS = {
    name: Coding(name, codes)
    for name, codes in {
        "zero-one": {"1": PRESENT, "0": ABSENT, "empty": ABSENT},
        "voc": {"1": PRESENT, "0": DIFFICULT, "-1": ABSENT},
        "chexpert": {"1": PRESENT, "0": ABSENT, "-1": UNKNOWN, "empty": UNKNOWN},
        "openimages": {"1": PRESENT, "0": ABSENT, "empty": UNKNOWN},
        "partial": {"1": PRESENT, "0": UNKNOWN, "-1": ABSENT, "empty": UNKNOWN},
    }.items()
}


def sign_of(text: str) -> str | None:
    """The sign that a cell stands for, "1", "0", "-1" or "empty"; None: no label value."""
    word = text.strip().casefold()
    if word in _WORDS:
        return _WORDS[word]
    number = _NUMBER.fullmatch(word)
    if number is None:
        return None
    sign, digit = number.groups()
    return "-1" if sign == "-" and digit == "1" else digit


def read_coding(text: str) -> Coding:
    """A coding by its name or written out, ``"1=present,0=absent,-1=unknown,empty=absent"``.

    Raises:
        ValueError: no such name, sign or meaning.
    """
    if "=" not in text:
        check_choice("coding", "coding", text, tuple(CODINGS))
        return CODINGS[text]
    codes = {}
    for part in text.split(","):
        sign, _, meaning = (piece.strip() for piece in part.partition("="))
        if sign not in SIGNS or meaning not in MEANINGS or sign in codes:
            raise ValueError(
                f"coding must be one of {', '.join(CODINGS)}, or like '1=present,0=absent,-1=unknown,empty=absent' "
                f"with signs {', '.join(SIGNS)}, each once at most, and meanings {', '.join(MEANINGS)}, got {text!r}"
            )
        codes[sign] = MEANINGS[meaning]
    return Coding(text, codes)


def coding_for(signs: Collection[str], place: str) -> Coding:
    """The coding of a table that names none: "zero-one" where its signs have one reading.

    Args:
        signs: those that occur.
        place: opens the message: the table, and where the sign in doubt is.

    Raises:
        ValueError: a -1, or empty cells beside zeros: both readings are shown.
    """
    if "-1" in signs:
        readings = [coding for coding in CODINGS.values() if "-1" in coding.codes]
        doubt = "-1 means opposite things in different data sets"
    elif {"0", "empty"} <= set(signs):
        readings = [CODINGS["zero-one"], CODINGS["openimages"]]
        doubt = "beside cells with 0, an empty cell may mean absent or unknown"
    else:
        return CODINGS["zero-one"]
    listed = "; or ".join(map(str, readings))
    raise ValueError(
        f"{place}: {doubt}; name the coding with --data.coding (graph: --coding): {listed}; or one of your own such as "
        "'1=present,0=absent,-1=unknown,empty=absent'"
    )
