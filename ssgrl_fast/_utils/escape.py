"""Names of classes and files as text of the place that they go to: a terminal, a Markdown page, an HTML page.

Such names come from files of others. Each function leaves a name readable and takes away what it could do there.
"""

from __future__ import annotations

import html
import re

__all__ = ["for_html", "for_json", "for_markdown", "for_table", "for_terminal"]

_CODES = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # control codes: a terminal obeys them
    r"\u2028\u2029\u202a-\u202e\u2066-\u2069"  # line ends, and marks that turn the order of the letters around
    r"\ud800-\udfff"  # bytes of a file's name that are not UTF-8: no stream prints them
)
_OF_LINES, _OF_A_LINE = re.compile(f"[{_CODES}]"), re.compile(f"[{_CODES}\t\n]")
_MARKDOWN = re.compile(
    r"[\\`*\[\]<&|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # between letters and digits, "_" has no effect
    r"|(?<=\w):(?=//)|(?<=www)\."  # addresses become links by themselves
)


def for_terminal(text: object, *, lines: bool = False) -> str:
    """Text without control codes; they are written as Python does, ``\\x1b``.

    Args:
        text: a name, or a whole message.
        lines: it is a message, whose line ends and tabs stay.
    """
    pattern = _OF_LINES if lines else _OF_A_LINE
    return pattern.sub(lambda found: found.group().encode("unicode_escape").decode(), str(text))


def for_json(text: str) -> str:
    """JSON text with the same content, whose strings hold no control codes, so that a terminal can show it."""
    return _OF_LINES.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def for_table(name: str) -> str:
    """A file's name as text in UTF-8: bytes that are not become ``\\udc80`` … ``\\udcff``, as Python and JSON write
    them."""
    return name.encode(errors="backslashreplace").decode()


def for_html(text: object) -> str:
    """Text for the content of an HTML element, or for an attribute in quotation marks."""
    return html.escape(for_terminal(text))


def for_markdown(text: object) -> str:
    """Text for a cell of a Markdown table, or for the middle of a line: none of its characters is markup. A line end
    becomes a blank; a floating-point number has six digits at most."""
    shown = f"{text:g}" if isinstance(text, float) else for_terminal(re.sub(r"\s*[\r\n]\s*", " ", str(text)))
    return _MARKDOWN.sub(r"\\\g<0>", shown)
