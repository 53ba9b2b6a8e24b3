"""A matplotlib figure that draws every text as it is written: no mathematics between dollar signs, and glyphs that the
default font lacks (Chinese, Japanese, emoji …) taken from another installed font.

The module needs matplotlib; :func:`ssgrl_fast.inference.figures.new_figure` makes such figures.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from ssgrl_fast._utils.text import is_utf8

__all__ = ["PlainFigure"]

_UNUSABLE = (
    "Last Resort",
    "LastResort",
    "Color Emoji",
)  # boxes for every character; bitmaps, which matplotlib cannot draw
_SAID: set[str] = set()  # characters that a warning of this process named


class PlainFigure(Figure):
    """A Figure whose texts are drawn as written, whatever characters they hold.

    A character that no installed font has is drawn as a box; one warning names all of them.
    """

    def draw(self, renderer: Any) -> None:
        texts = [text for text in self.findobj(Text) if isinstance(text, Text)]
        for text in texts:
            if not is_utf8(text.get_text()):  # a file's name, which no font can draw
                text.set_text(text.get_text().encode(errors="backslashreplace").decode())
        families = [*matplotlib.rcParams["font.family"]]
        added, without_font = _further_fonts(frozenset("".join(text.get_text() for text in texts)))
        for text in texts:
            text.set_parse_math(False)
            if added:
                text.set_fontfamily([*families, *added])
        if not _SAID.issuperset(without_font):
            _SAID.update(without_font)
            warnings.warn(
                f"no installed font has {' '.join(without_font)}: boxes are drawn instead; install one that does, for "
                "example Noto Sans CJK for Chinese, Japanese and Korean or Noto Emoji",
                stacklevel=2,
            )
        settings: Any = {"text.parse_math": False, "font.family": [*families, *added]}
        with matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # said above, in one sentence
            super().draw(renderer)


@lru_cache(maxsize=256)
def _further_fonts(characters: frozenset[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The families of installed fonts that have what the default font lacks, and the characters that none has."""
    default = font_manager.findfont(font_manager.FontProperties())
    lacking = {each for each in characters if each.isprintable() and ord(each) not in _characters(default)}
    families: list[str] = []
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.style != "normal", entry.fname)):
        if not lacking:
            break
        if any(name in entry.name for name in _UNUSABLE):
            continue
        if there := {each for each in lacking if ord(each) in _characters(entry.fname)}:
            families.append(entry.name)
            lacking -= there
    return tuple(families), tuple(sorted(lacking))


@lru_cache(maxsize=1024)
def _characters(path: str) -> frozenset[int]:
    """The characters of a font file; none of one that cannot be read."""
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
