"""Sphinx's settings, and what is generated from the code: tables of names, verbs and modules; equations as MathML."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ssgrl_fast  # noqa: E402
from ssgrl_fast import cli  # noqa: E402

project = "ssgrl_fast"
author = "the authors of ssgrl_fast"
copyright = f"{author}, Apache-2.0"
release = version = ssgrl_fast.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence", "substitution", "deflist"]
myst_heading_anchors = 3
suppress_warnings: list[str] = []

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).parent / "static" / "search_scores.js")
smartquotes = False  # messages and options stand as they are typed
html_title = f"ssgrl_fast {release}"
html_math_renderer = "mathml"
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5a94", "color-brand-content": "#1f5a94"},
    "dark_css_variables": {"color-brand-primary": "#8fbbe8", "color-brand-content": "#8fbbe8"},
}

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False

nitpicky = True  # see _find: what is written as a reference must be found, what an annotation names is linked if it is
nitpick_ignore_regex = [(r"py:.*", r"(torch|torchmetrics|numpy|timm|lightning|PIL|collections|abc)\..*")]

_TABLE = "| | |\n|---|---|\n"


_TORCH = {  # pages of its documentation
    "torch.Tensor": "tensors",
    "torch.dtype": "tensor_attributes",
    "torch.device": "tensor_attributes",
    "torch.Generator": "generated/torch.Generator",
    "torch.nn.Module": "generated/torch.nn.Module",
    "torch.optim.Optimizer": "optim",
    "torch.utils.data.Dataset": "data",
    "torch.utils.data.DataLoader": "data",
}
_TORCH |= {name.rpartition(".")[2]: page for name, page in _TORCH.items() if name != "torch.dtype"}


def _notebook(app: Any, error: Exception | None) -> None:
    """Write the tutorial as a notebook beside its page: text as it is, commands as shell cells, Python as code."""
    if error is not None or app.builder.name != "html":
        return
    cells = []
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for part in re.split(r"(^```(?:bash|python)\n.*?^```$)", text, flags=re.DOTALL | re.MULTILINE):
        code = re.fullmatch(r"```(bash|python)\n(.*)\n```", part, flags=re.DOTALL)
        if code is None:
            cells.append({"cell_type": "markdown", "metadata": {}, "source": part.strip()})
            continue
        source = re.sub(r"^", "!", code[2], flags=re.MULTILINE) if code[1] == "bash" else code[2]
        cells.append({"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    book = {"nbformat": 4, "nbformat_minor": 4, "metadata": kernel, "cells": cells}
    (Path(app.outdir) / "tutorial.ipynb").write_text(json.dumps(book, indent=1), encoding="utf-8")


def _names() -> str:
    """One row per public name, linked to where it is documented, with the first paragraph of its docstring."""
    rows = []
    for name in ssgrl_fast.__all__:
        thing = getattr(ssgrl_fast, name)
        if name == "__version__":
            rows.append(f"| `sf.{name}` | the version, a string |\n")
            continue
        home, role = (thing.__name__, "mod") if inspect.ismodule(thing) else (_home(thing), "obj")
        summary = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        summary = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", summary)
        rows.append(f"| {{py:{role}}}`sf.{name} <{home}>` | {summary} |\n")
    return _TABLE + "".join(rows)


def _home(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _verbs() -> str:
    """One section per verb of the command line, with its help text."""
    parts = []
    for verb, text in cli.VERBS.items():
        text = re.sub(r"--\S+( \S+\.yaml)?", r"`\g<0>`", text)
        parts.append(f"### {verb}\n\n{text[0].upper()}{text[1:]}.\n")
        if verb in ("fit", "validate", "test"):  # Lightning's, with hundreds of options: see `--help`
            parts.append(
                "The options are those of the Trainer (`--trainer.…`), {py:class}`~ssgrl_fast.training.task.SSGRLTask`"
            )
            parts.append(
                "(`--model.…`) and {py:class}`~ssgrl_fast.data.datamodule.MultiLabelDataModule` (`--data.…`).\n"
            )
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            cli.main([verb, "--help"])
        parts.append(f"```text\n{printed.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def _modules() -> str:
    """One table per folder of Python files: each file with the first sentence of its docstring."""
    tables = []
    for folder in sorted({path.parent for top in ("ssgrl_fast", "kernels") for path in (ROOT / top).rglob("*.py")}):
        rows = []
        for path in sorted(folder.glob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            sentence = re.split(r"(?<=\.) (?=[A-Z])", " ".join(text.split("\n\n")[0].split()))[0].replace("|", "\\|")
            sentence = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", sentence).replace("``", "`").rstrip(":")
            rows.append(f"| `{path.name}` | {sentence} |\n")
        tables.append(f"### {folder.relative_to(ROOT)}/\n\n{_TABLE}{''.join(rows)}")
    return "\n".join(tables)


def _fill(app: Any, docname: str, source: list[str]) -> None:
    if docname == "api/index":
        source[0] = source[0].replace("<!-- names -->", _names())
    if docname == "cli":
        source[0] = source[0].replace("<!-- verbs -->", _verbs())
    if docname == "house":
        source[0] = source[0].replace("<!-- modules -->", _modules())


def _find(app: Any, env: Any, node: Any, content: Any) -> Any:
    """Resolve a reference that Sphinx did not find to the same object under the name by which it is documented.

    A Python object can have several names, of which autodoc documents one. The type annotations in signatures become
    plain text if nothing documents them; an explicit role (``:func:``, ...) without a target remains an error.
    """
    if node.get("refdomain") != "py":
        return None
    domain, target = env.get_domain("py"), node["reftarget"]
    if (page := _TORCH.get(target)) is not None:
        return nodes.reference("", "", content, refuri=f"https://docs.pytorch.org/docs/stable/{page}.html")
    for name in (target, f"{node.get('py:module')}.{target}"):
        known = _documented(domain).get(_canonical(name))
        if known is not None:
            found = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", known, node, content)
            if found is not None:
                return found
    return None if "refwarn" in node else content


def _canonical(name: str) -> str | None:
    """The module and qualified name under which the object of a dotted name was defined."""
    parts = name.split(".")
    if parts[0] != "ssgrl_fast":
        return None
    for cut in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError):
            thing: Any = importlib.import_module(".".join(parts[:cut]))
            break
    else:
        return None
    for part in parts[cut:]:
        thing = getattr(thing, part, None)
    return _home(thing) if hasattr(thing, "__qualname__") and hasattr(thing, "__module__") else None


_KNOWN: dict[str, str] = {}


def _documented(domain: Any) -> dict[str, str]:
    """A map from the name under which an object was defined to the name under which it is documented."""
    if not _KNOWN:
        pairs = ((_canonical(name), name) for name, entry in domain.objects.items() if entry.objtype != "module")
        _KNOWN.update({home: name for home, name in pairs if home is not None})
    return _KNOWN


def _several_attributes(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Split attributes that a docstring describes together (``width, height: pixels``); Napoleon sees one name."""
    for place in range(len(lines) - 1, -1, -1):
        several = re.match(r"(\s*):ivar ((?:\w+, )+\w+): (.*)", lines[place])
        if several:
            last = place + 1
            while last < len(lines) and lines[last].startswith(f"{several[1]} "):
                last += 1
            rest = lines[place + 1 : last]
            lines[place:last] = [
                line for one in several[2].split(", ") for line in (f"{several[1]}:ivar {one}: {several[3]}", *rest)
            ]


def _literal_blocks(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Show indented blocks in a module's docstring (commands, listings) as literal blocks."""
    if what != "module":
        return
    for place in range(len(lines) - 1, 0, -1):
        begins = lines[place].startswith("    ") and not lines[place - 1].strip()
        before = next((line for line in reversed(lines[:place]) if line.strip()), "")
        if begins and before and not before.startswith((" ", "-", "..")) and not before.endswith("::"):
            lines[place:place] = ["::", ""]


def _markdown_tables(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Convert the Markdown tables of docstrings to list-tables."""
    made: list[str] = []
    rows: list[list[str]] = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if rows:
            made += ["", ".. list-table::", "   :header-rows: 1", ""]
            for row in rows:
                if not all(set(cell) <= set("-:") for cell in row):
                    made += [f"   {'* -' if not index else '  -'} {cell}" for index, cell in enumerate(row)]
            made.append("")
            rows = []
        made.append(line)
    lines[:] = made[:-1]


def _inline(self: Any, node: Any) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _display(self: Any, node: Any) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Called by Sphinx."""
    os.environ["COLUMNS"] = "88"  # the width of the verbs' help
    app.connect("source-read", _fill)
    app.connect("missing-reference", _find)
    app.connect("build-finished", _notebook)
    app.connect("autodoc-process-docstring", _markdown_tables)
    app.connect("autodoc-process-docstring", _literal_blocks)
    app.connect("autodoc-process-docstring", _several_attributes)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_display, None))
