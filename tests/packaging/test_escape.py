"""Names of classes and files as weapons: in a terminal, a Markdown page and an HTML page they do nothing."""

from __future__ import annotations

import ast
import json
import logging
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hostile_names import AWKWARD, names
from hypothesis import given
from small_bundles import make_model

from ssgrl_fast import cli
from ssgrl_fast._utils.escape import for_html, for_json, for_markdown, for_terminal
from ssgrl_fast.inference.app.html import contribution_bars, decisions, facts_line
from ssgrl_fast.inference.explain import NeighbourContributions
from ssgrl_fast.labels import graph
from ssgrl_fast.metrics import class_table, evaluate, table_1

PACKAGE = Path(cli.__file__).resolve().parents[1]
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](http://evil.example)",
    "![shot](http://evil.example/x.png)",
    "http://evil.example/a",
    "www.evil.example",
    "<http://evil.example>",
    "a | b || c",
    "**bold** _slanted_ __init__ `code` ~~gone~~ $x^2$",
    "\\| \\",
    "&lt;b&gt; &amp; &#60;",
    "<!-- written by -->",
    '" onmouseover="alert(1)',
    "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "\x9b31m",
    "back\b\b\b\rover",
    "up\u202egpj.exe",
    "line\u2028end\x85next\x0bfeed",
    "not\udcffUTF-8",
    "two\nlines\t tab",
]
CODES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
CLASSES = [name for name in HOSTILE if "\udcff" not in name]  # names of classes are UTF-8, names of files may not be
EVERY = [*HOSTILE, *AWKWARD]


# ---- the functions ---------------------------------------------------------------------------------------------------


def shown(page: str) -> list[tuple[str, str]]:
    """What a renderer finds in a Markdown page, block by block: (kind, text), texts beside each other as one."""
    renderer = pytest.importorskip("markdown_it", reason="needs markdown-it-py, which rich brings").MarkdownIt
    parts: list[tuple[str, str]] = []
    for block in renderer("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(page):
        own = [(block.type, block.content)] if block.type in ("html_block", "code_block") else []
        for child in block.children or ():
            kind = "text" if child.type == "text_special" else child.type
            if own and own[-1][0] == kind == "text":
                own[-1] = (kind, own[-1][1] + child.content)
            else:
                own.append((kind, child.content))
        parts += own
    return parts


@pytest.mark.parametrize("name", EVERY)
def test_markdown_shows_a_name_as_it_is_and_nothing_more(name: str) -> None:
    expected = for_terminal(re.sub(r"\s*[\r\n]\s*", " ", name))
    cell = shown(f"| a | b |\n|---|---|\n| {for_markdown(name)} | end |\n")
    assert [text for text in cell if text[1]] == [
        ("text", "a"),
        ("text", "b"),
        ("text", expected.strip(" ")),
        ("text", "end"),
    ]
    line = shown(f"Classes: {for_markdown(name)}.")
    assert line == [("text", f"Classes: {expected}.")]


@given(names())
def test_markdown_shows_any_name(name: str) -> None:
    page = f"| {for_markdown(name)} | x |\n|---|---|\n"
    assert [kind for kind, text in shown(page) if text] == ["text", "text"] and shown(page)[0][1] == for_terminal(name)


def test_addresses_do_not_become_links_where_pages_make_them() -> None:
    assert for_markdown("http://a.b www.a.b") == r"http\://a.b www\.a.b"
    assert for_markdown("ap_definition T-shirt a.jpg 0.5") == "ap_definition T-shirt a.jpg 0.5"  # as readable as before
    assert for_markdown(0.123456789) == "0.123457"


class Page(HTMLParser):
    """Tags, attributes and text of an HTML page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags += [tag, *(f"{name}={value}" for name, value in attrs)]

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("name", EVERY)
def test_html_shows_a_name_as_it_is_in_text_and_attributes(name: str) -> None:
    page = Page(f'<p title="{for_html(name)}">{for_html(name)}</p>')
    assert page.tags == ["p", f"title={for_terminal(name)}"] and "".join(page.texts) == for_terminal(name)


@pytest.mark.parametrize("name", EVERY)
def test_terminals_get_no_control_codes(name: str) -> None:
    for text in (for_terminal(name), for_terminal(name, lines=True).replace("\n", "").replace("\t", "")):
        assert not CODES.search(text) and "\n" not in text
        text.encode()
    if not CODES.search(name.replace("\n", "\t")):
        assert for_terminal(name) == name  # Hebrew, emoji and accents stay
    assert json.loads(for_json(json.dumps([name], ensure_ascii=False))) == [name]
    assert not CODES.search(for_json(json.dumps([name], ensure_ascii=False)))


# ---- the places that write names -------------------------------------------------------------------------------------


def report(**details: str) -> Any:
    count = len(CLASSES)
    labels = torch.where(torch.eye(count, dtype=torch.bool), 1, -1).to(torch.int8)
    labels[0, 0] = -1  # the first class has no positives and is named once more
    scores = torch.rand(count, count, generator=torch.Generator().manual_seed(0))
    return evaluate(scores, labels, CLASSES, details=details)


def plain(page: str) -> None:
    """The page holds no markup but that of its author."""
    assert {kind for kind, _ in shown(page)} <= {"text", "softbreak"} and not CODES.search(page)


def test_reports_and_tables_are_plain() -> None:
    one = report(**{name: name for name in HOSTILE})
    plain(one.to_markdown())
    plain(table_1({HOSTILE[0]: one, HOSTILE[2]: one}))
    plain(class_table(one, one))
    assert sum(text == "[click](http://evil.example)" for _, text in shown(one.to_markdown())) == 3


def test_model_cards_are_plain(tmp_path: Path) -> None:
    count = len(CLASSES)
    model = make_model()
    bad = type(model)(model.backbone, torch.randn(count, 5), torch.rand(count, count), joint_dim=7, class_names=CLASSES)
    bad.origin = {"words": {"how": HOSTILE[0], "sha256": "x" * 64}, "graph": {"how": HOSTILE[3], "sha256": "y" * 64}}
    bad.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    body = card.split("---\n", 2)[2].replace("<!-- written by ssgrl_fast; remove this line", "", 1)
    kinds = {kind for kind, _ in shown(body)}
    assert kinds <= {"text", "softbreak"} and not CODES.search(card)
    assert json.loads((tmp_path / "config.json").read_text())["class_names"] == CLASSES


def test_the_page_of_the_app_is_plain() -> None:
    count = len(HOSTILE)
    order, values = tuple(range(1, count)), tuple(float(value) for value in range(1, count))
    page = Page(contribution_bars(NeighbourContributions(0, 1.0, 0.0, order, values, ()), HOSTILE))
    assert {tag for tag in page.tags if "=" not in tag} == {"p", "b", "div", "span", "i"}
    for name in HOSTILE:
        assert for_terminal(name) in "".join(page.texts)
    shares = {name: 1 - place / 40 for place, name in enumerate(HOSTILE)}
    said = Page(decisions(shares, dict.fromkeys(HOSTILE, 0.7)))
    assert {tag for tag in said.tags if "=" not in tag} == {"p", "b"} and for_terminal(HOSTILE[0]) in said.texts
    facts = dict.fromkeys(("model", "mode", "backend", "device", "dtype", "image_size"), HOSTILE[0])
    assert Page(facts_line({**facts, "image_size": 64}, 3)).tags == ["p", "class=ssgrl-note"]


@pytest.mark.thorough
def test_an_upload_with_a_hostile_name_is_text_in_the_apps_error() -> None:
    pytest.importorskip("gradio", reason="needs the extra app")
    from ssgrl_fast.data.errors import BrokenImage
    from ssgrl_fast.inference.app import page

    def analyse(path: str) -> None:
        raise BrokenImage(f"{path}: cannot identify image file")

    facts = dict.fromkeys(("model", "mode", "backend", "device", "dtype", "image_size"), "x")
    predictor = SimpleNamespace(facts=lambda: facts)
    built = page.build(SimpleNamespace(class_names=["a", "b"], predictor=predictor, analyse=analyse))  # type: ignore[arg-type]
    show = next(each.fn for each in built.fns.values() if each.fn is not None and each.fn.__name__ == "show")
    said = Page(show("/tmp/gradio/<img src=x onerror=alert(1)>.png")[1])
    assert said.tags == ["p", "class=ssgrl-problem", "role=alert"]
    assert "".join(said.texts) == "<img src=x onerror=alert(1)>.png: cannot identify image file"


def test_the_commands_print_no_control_codes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(CLASSES)
    graph.save(tmp_path / "g.npz", torch.rand(count, count), CLASSES, {"source": "\x1b[2J"})
    (tmp_path / "names.json").write_text(json.dumps(["cat", "dog", "\x1b[2Jcat"]))
    model = make_model(class_names=["\x1b[31mred", "\u202egpj", "two\nlines"])
    model.preprocessing = {"image_size": 32, "resize": 32}
    model.save_pretrained(tmp_path / "bundle")
    photos = tmp_path / "pho\x1b[2Jtos"
    photos.mkdir()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(photos / "a\x9b31m.png")
    Image.new("RGB", (8, 8)).save(photos / "b\udcff.png")
    (photos / "c\x1b].png").write_bytes(b"")
    (photos / "d\x1b]\u202e.txt").write_bytes(b"")
    predict = ["predict", str(photos), f"--model={tmp_path / 'bundle'}", "--no-progress"]
    figure = ["plot-attention", str(photos), f"--model={tmp_path / 'bundle'}", f"--out={tmp_path / 'a.svg'}"]
    for command, status in (
        (["graph", "--inspect", str(tmp_path / "g.npz")], 0),
        (["words", "glove-6b-50d", "--class-names", str(tmp_path / "names.json")], None),
        ([*predict, "--skip-broken"], 0),
        (predict, 1),
        (figure, 1),
        (["--traceback", *predict], 1),
    ):
        got = cli.main(command)
        printed = "".join(capfd.readouterr())
        assert status in (got, None) and printed and not CODES.search(printed), command
    assert "\\x1b" in printed
    # JSON on standard output is whole all the same
    assert cli.main([*predict, "--skip-broken"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [Path(row["file"]).name for row in rows["files"]] == ["a\x9b31m.png", "b\udcff.png"]
    assert set(rows["class_names"]) == {"\x1b[31mred", "\u202egpj", "two\nlines"}


def test_warnings_of_a_command_are_printable_and_those_of_others_as_they_were(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(argv: list[str]) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            print(warnings.formatwarning("\x1b[2J", UserWarning, "x.py", 1))
            record = logging.LogRecord("ssgrl_fast.data", logging.WARNING, "x.py", 1, "%s", ("\x1b[2K",), None)
            print(logging.lastResort.format(record))  # what prints where no handler was set up
        return 0

    monkeypatch.setattr("ssgrl_fast.cli.recipes.main", main)
    before = warnings.formatwarning
    assert cli.main(["recipes"]) == 0
    printed = capfd.readouterr().out
    assert "\\x1b[2J" in printed and "\n\\x1b[2K\n" in printed
    assert warnings.formatwarning is before and logging.lastResort.formatter is None


def test_figures_draw_control_codes_as_text(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    import numpy as np

    from ssgrl_fast.inference.figures import Sample, ap_chart, attention_sheet, save_figure
    from ssgrl_fast.inference.placement import Placement

    names = ["\x1b[2Ja", "b\x00\u202e"]
    where = Placement(np.array([1.5, 5.5]), np.array([1.5, 5.5]), (0, 0, 8, 8))
    sample = Sample(np.zeros((8, 8, 3), np.uint8), np.array([0.9, 0.1]), np.ones((2, 2, 2)), where, None, "x\x1b.png")
    for figure in (ap_chart(names, [0.5, float("nan")]), attention_sheet([sample], names)):
        path = save_figure(figure, tmp_path / "a.svg")
        ElementTree.parse(path)  # XML holds no control codes
        assert "x1b" in path.read_text() and not CODES.search(path.read_text())


def test_no_place_goes_past_the_functions() -> None:
    """Commands print by `say`; nothing but the functions' file knows how to escape."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "print" not in calls or path.parent != PACKAGE / "cli" or path.name == "_sentences.py", path
        assert path.name == "escape.py" or not re.search(r"from html import|import html\b|html\.escape", text), path
        for cell in re.findall(r"f\"\| \{([^}]*)\}", text):  # the first cell of a row of a table
            known = ("for_markdown(", "' | '.join", "title", "_LABELS", "self.report.top_k")
            assert cell.startswith(known), (path, cell)
