"""The documentation site builds without a warning, names everything public, and none of its links is broken."""

from __future__ import annotations

import ast
import html
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from packaging_tree import ROOT, project_files

import ssgrl_fast
from ssgrl_fast import cli

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    for package in ("sphinx", "furo", "myst_parser", "sphinx_copybutton", "lightning"):
        pytest.importorskip(package, reason=f"the site needs {package}: pip install 'ssgrl_fast[train,docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "state"), str(DOCS), str(folder / "html")],
        capture_output=True,
        text=True,
        cwd=DOCS.parent,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Page(HTMLParser):
    """The anchors of a page, and what it links to or shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := values.get(name))}
        self.links += [value for name in ("href", "src") if (value := values.get(name))]


def text(path: Path) -> str:
    """What a reader sees of a page, its tags gone."""
    body = re.sub(r"<(script|style|math).*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", body)))


@pytest.mark.thorough
def test_every_public_name_is_listed_and_leads_to_its_documentation(site: Path) -> None:
    source = (site / "api" / "index.html").read_text(encoding="utf-8")
    links = {name: target for target, name in re.findall(r'href="([^"]+)"[^>]*>(?:<[^>]+>)*sf\.(\w+)<', source)}
    missing = sorted(set(ssgrl_fast.__all__) - {"__version__"} - set(links))
    missing += [] if re.search(r"sf\.__version__", source) else ["__version__"]
    assert missing == []
    for name, target in links.items():
        assert re.fullmatch(r"\w+\.html#[\w.-]+", target), (name, target)


@pytest.mark.thorough
def test_every_argument_of_the_operations_is_documented(site: Path) -> None:
    shown = text(site / "api" / "operations.html")
    for name in ("semantic_attention", "graph_propagation", "label_scores", "graph_propagation_blocks", "GateBlocks"):
        assert f"{name}(" in shown
    for argument in ("adjacency", "weight_zr", "reset_gate", "backend"):
        assert argument in shown
    assert "[B, C, L]" in shown and "Raises:" in shown


@pytest.mark.thorough
def test_every_verb_has_its_section_with_its_own_help(site: Path) -> None:
    page = site / "cli.html"
    anchors, shown = Page(page).anchors, text(page)
    assert [verb for verb in cli.VERBS if verb not in anchors] == []
    for verb in set(cli.VERBS) - {"fit", "validate", "test"}:
        command = "python -m benchmarks.run" if verb == "bench" else f"ssgrl-fast {verb}"
        assert f"usage: {command} " in shown, verb
    assert "--neighbours NEIGHBOURS" in shown  # an option of app


@pytest.mark.thorough
def test_no_link_inside_the_site_is_broken(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    assert len(pages) > 12
    broken, inside = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            inside += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{path.name}: {link}")
    assert broken == [] and inside > 500


@pytest.mark.thorough
def test_the_site_asks_nothing_of_the_network(site: Path) -> None:
    fetched = re.compile(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//[^"]+"')
    found = [match[0] for path in site.rglob("*.html") for match in fetched.finditer(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.thorough
def test_equations_are_mathml_and_tables_are_tables(site: Path) -> None:
    kernels = (site / "kernels.html").read_text(encoding="utf-8")
    assert kernels.count("<math") > 30 and "mathjax.js" not in kernels
    assert "<td><p>640 576 512 384 320</p></td>" in (site / "api" / "data.html").read_text(encoding="utf-8")
    assert "|---" not in text(site / "api" / "data.html")


def texts() -> dict[Path, str]:
    """Path from the root to content of each text file. CHANGELOG.md, which names files of its time, is left out."""
    found = {}
    for path in project_files():
        if path.suffix not in (".png", ".csv", ".svg") and path.name != "CHANGELOG.md":
            try:
                found[path] = (ROOT / path).read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a picture or a compiled file
                continue
    return found


def glossary() -> dict[str, str]:
    """Heading to text of every entry of the glossary."""
    entries = re.split(r"^### (.+)$", (DOCS / "glossary.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(entries[1::2], entries[2::2], strict=True))


def test_every_code_in_use_is_explained_in_the_glossary() -> None:
    codes: dict[str, Path] = {}
    identities: dict[str, Path] = {}
    for path, content in texts().items():
        if path != Path("docs/glossary.md"):
            codes.update((code, path) for code in re.findall(r"\bD[1-9]\d?\b", content))
            identities.update((f"Identity {digit}", path) for digit in re.findall(r"\bidentity (\d)\b", content))
    entries = glossary()
    assert len(codes) > 20 and len(identities) > 2
    assert {name: path for name, path in (codes | identities).items() if name not in entries} == {}
    assert [name for name, content in entries.items() if len(content.split()) < 8] == []
    index = re.findall(
        r"\| \[(D\d+)\]\(#(d\d+)\)|(?<=\| )\[(D\d+)\]\(#(d\d+)\)", (DOCS / "glossary.md").read_text("utf-8")
    )
    linked = {first or second for first, _, second, _ in index}
    assert linked == {name for name in entries if re.fullmatch(r"D\d+", name)}


# what commands write, what is generated, placeholders, a file that a test wants to be missing, a page of MessagePack,
# a file of earlier commits (benchmarks --base reads it)
NOT_IN_THE_TREE = {
    *("report.md", "report_test.md", "ablations.md", "report/report.md"),
    *("ssgrl_fast/verdicts.json", "photos/version_1/report_test.md", "runs/photos/version_1/report_test.md"),
    *(
        "docs/_build",
        "docs/_build/index.html",
        "ssgrl_fast/configs",
        "ssgrl_fast/benchmarks",
        "ssgrl_fast/_C",
        "ssgrl_fast/_native",
    ),
    *("configs/NAME.yaml", "configs/nowhere.yaml", "spec.md", "ssgrl_fast/_build.py"),
}


def test_no_file_names_a_page_or_path_that_is_not_in_the_project() -> None:
    page = re.compile(r"(?<![\w./-])[\w./-]*\w\.md\b")
    folders = sorted({path.parts[0] for path in project_files() if len(path.parts) > 1 and path.parts[0][0] != "."})
    inside = re.compile(rf"(?<![\w./<~:-])(?:{'|'.join(folders)})/[\w./-]*\w(?![\w{{*<])")
    missing, seen = [], 0
    for path, content in texts().items():
        for name in [*page.findall(content), *inside.findall(content)]:
            seen += 1
            places = (ROOT / name, (ROOT / path).parent / name, ROOT / "tests" / name, DOCS / name)
            if name not in NOT_IN_THE_TREE and not any(place.exists() for place in places):
                missing.append(f"{path}: {name}")
    assert missing == [] and seen > 300


def test_the_page_on_the_source_tree_shows_every_folder_and_every_file_with_an_equation() -> None:
    page = (DOCS / "house.md").read_text(encoding="utf-8")
    tree = page[page.index("```text") :]
    rooms = {path.parts[1] for path in project_files() if path.parts[0] == "ssgrl_fast" and len(path.parts) > 2}
    rooms |= {path.parts[0] for path in project_files() if len(path.parts) > 1 and path.parts[0][0] != "."}
    assert [room for room in sorted(rooms) if f"{room}/" not in tree] == []
    shown = re.findall(r"^  (\w+)/", tree[: tree.index("\nkernels/")], flags=re.MULTILINE)
    assert [room for room in shown if room not in rooms] == []
    for stem in ("semantic_attention", "graph_propagation", "label_scores"):
        for place in ("ssgrl_fast/reference/{}.py", "csrc/operators/{}.h", "kernels/{}.py", "csrc/cuda/{}/"):
            assert place.format(stem) in page, (stem, place)


@pytest.mark.thorough
def test_the_page_on_the_source_tree_lists_every_module(site: Path) -> None:
    shown = text(site / "house.html")
    modules = [path for path in project_files() if path.parts[0] in ("ssgrl_fast", "kernels") and path.suffix == ".py"]
    assert len(modules) > 80 and [path.name for path in modules if path.name not in shown] == []


def test_python_on_the_pages_is_python() -> None:
    blocks = [
        (path.name, block)
        for path in DOCS.rglob("*.md")
        for block in re.findall(
            r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        )
    ]
    assert len(blocks) >= 4
    for name, block in blocks:
        ast.parse(block, filename=name)


def test_the_pages_quote_benchmarks_as_the_readme_has_them() -> None:
    row = re.compile(r"^\| .*\*\*ssgrl_fast, `cpu`\*\*.*$|^\| as published .*$|^\| products alone .*$", re.MULTILINE)
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert row.findall(page) == row.findall(readme) != []


def test_the_figures_are_what_their_script_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures.py")
    assert spec is not None and spec.loader is not None
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    figures.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "images").glob("*.svg")}
    for name in drawn:  # the words and numbers; outlines may differ between versions of matplotlib
        words = [
            re.findall(r"<text[^>]*>(.*?)</text>", (folder / name).read_text())
            for folder in (tmp_path, DOCS / "images")
        ]
        assert words[0] == words[1] != [], name
    assert figures.published_bytes(80) == 4 * (81 * 80 * 1024 + 81 * 80 * 2048)
    assert figures.products(figures.np.array([80, 500]), 81).tolist() == [29, 20 + 9 * 81 / 500]
