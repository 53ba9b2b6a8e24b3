"""The rivals by name; the letters are those of the table in benchmarks/README.md.

(d) are the backends that the library registers. The products alone (e) are not in this list: they compute no outputs,
see benchmarks.rivals.products.
"""

from __future__ import annotations

from benchmarks.rivals.handwritten import HANDWRITTEN
from benchmarks.rivals.library import LIBRARY
from benchmarks.rivals.programs import Rival
from benchmarks.rivals.published import PUBLISHED

RIVALS: dict[str, Rival] = {rival.name: rival for rival in (*PUBLISHED, *HANDWRITTEN, *LIBRARY)}
