"""Names that users give classes and files, of the kinds that trip readers; and damage of one byte to a file.

Drawn by hypothesis. What a format cannot hold (``/`` in file names, control characters in XML) is left out by the
argument ``without``.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from hypothesis import strategies as st

AWKWARD = (
    "yes", "no", "on", "null", "None", "true", "nan", "1e3", "-0", "007", "~", "NA",
    "Ba$$in", "$1 off", "$5 and $10", "a_b^c", r"\frac{a}{b}", "{x}", "%s", "%2F", "#1", "@home", "*bold*", "`tick`",
    "hot dog (food)", "trafficLight", "person's hand", "building, edifice", "bow_(decorative_ribbons)", "T-shirt",
    "rock & roll", "<b>", "]]>", "&amp;", "&#233;", '"quoted"', "'single'", 'half"', "semi;colon", "pipe|d", "=1+1",
    "vélo", "ve\u0301lo", "猫", "кот и пёс", "😀", "👩‍👩‍👧", "עברית", "İstanbul", "ß", "\u200bzero",
    "non\u00a0breaking",     "line\u2028end", "next\u0085line", "a  b", "person", "Person", "PERSON",
    "person ", " person", "C:\\x", "a/b", "..",
    "x_train", "x_val_test", "train", "test", "image", "object", "name", "annotations", "id",
)  # fmt: skip
"""Names from reports and their neighbours."""

_ALPHABET = "ab01 _-.,;|:'\"$^\\(){}[]<>&#%éß猫кΩ😀\u0301\u00a0"


def names(*, without: str = "", stripped: bool = True, longest: int = 12) -> st.SearchStrategy[str]:
    """One non-empty name without line breaks.

    Args:
        without: characters that it must not hold.
        stripped: it begins and ends with no white space.
        longest: characters of the drawn ones; those of AWKWARD are as they are.
    """
    drawn = st.text(st.sampled_from(_ALPHABET), min_size=1, max_size=longest)
    every = st.one_of(st.sampled_from(AWKWARD), drawn)
    fits = every.map(str.strip) if stripped else every
    return fits.filter(lambda name: bool(name.strip()) and not set(name) & set(without))


def distinct_names(least: int, most: int, *, without: str = "", stripped: bool = True) -> st.SearchStrategy[list[str]]:
    """Several names, no two the same."""
    return st.lists(names(without=without, stripped=stripped), min_size=least, max_size=most, unique=True)


class Damage(NamedTuple):
    """One byte of a file lost (``flip`` is 0) or changed by exclusive or with ``flip``; ``place`` is 0 … 1."""

    place: float
    flip: int

    def of(self, content: bytes) -> bytes:
        """The content after the damage."""
        at = min(int(self.place * len(content)), len(content) - 1)
        changed = bytes([content[at] ^ self.flip]) if self.flip else b""
        return content[:at] + changed + content[at + 1 :]


def damages() -> st.SearchStrategy[Damage]:
    """Any damage; half of them lose the byte, and most flips are of one bit, as discs and networks make them."""
    flips = st.one_of(st.just(0), st.sampled_from([1 << bit for bit in range(8)]), st.integers(1, 255))
    return st.builds(Damage, st.floats(0, 1), flips)


Entries = dict[tuple[str, str], int]
"""(image, class) to label, without the absent ones."""


def confined(before: Entries, after: Entries, images: Collection[str], now: Collection[str]) -> bool:
    """Whether two label matrices differ in what one damaged name or value can be: the entries of one image, of one
    class, or of one image or class that is called otherwise now.

    Args:
        before, after: the entries.
        images, now: the images of each.
    """
    lost, won = set(images) - set(now), set(now) - set(images)
    if len(lost) > 1 or len(lost) != len(won):
        return False
    changed = [entry for entry in before.keys() | after.keys() if before.get(entry) != after.get(entry)]
    rows = {image for image, _ in changed}
    gone = {name for image, name in changed if (image, name) in before}
    come = {name for image, name in changed if (image, name) in after}
    return len(rows) <= 1 or rows <= lost | won or (len(gone) <= 1 and len(come) <= 1)
