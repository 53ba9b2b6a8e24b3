"""The page of `ssgrl-fast app`: what it shows (always), and how it looks in headless Chromium (where there is one)."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssgrl_fast import cli
from ssgrl_fast.data.digits import CLASS_NAMES, MEAN, STD, draw_canvases
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.inference.app.explorer import Explorer, read_thresholds
from ssgrl_fast.inference.app.html import (
    attention_scale,
    contribution_bars,
    decisions,
    facts_line,
    removal_curves_chart,
)
from ssgrl_fast.inference.explain import NeighbourContributions, neighbour_contributions, removal_curves
from ssgrl_fast.inference.figures import overlay
from ssgrl_fast.inference.placement import Placement
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, build_backbone, from_pretrained

SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bundles for ten digits, untrained, and two canvases."""
    folder = tmp_path_factory.mktemp("app")
    torch.manual_seed(3)
    graph = torch.rand(10, 10) * (torch.rand(10, 10) > 0.6)

    def backbone() -> torch.nn.Module:
        return build_backbone("small-cnn", width=4, mean=MEAN, std=STD)

    for name, options in {"ssgrl": {}, "alone": {"interaction": False}}.items():
        model = SSGRL(backbone(), torch.randn(10, 5), graph, class_names=CLASS_NAMES, joint_dim=8, **options)
        model.preprocessing = {"image_size": SIZE, "resize": SIZE}
        model.save_pretrained(folder / name)
    plain = GlobalPoolingClassifier(backbone(), 10, class_names=CLASS_NAMES)
    plain.preprocessing = {"image_size": SIZE, "resize": SIZE}
    plain.save_pretrained(folder / "pooling")
    canvases, _ = draw_canvases("test", 2, SIZE, 0)
    for number, canvas in enumerate(canvases):
        Image.fromarray(canvas.permute(1, 2, 0).numpy()).save(folder / f"canvas_{number}.png")
    return folder


@pytest.fixture(scope="module")
def explorer(folder: Path) -> Explorer:
    return Explorer(Predictor.load(folder / "ssgrl"), neighbours=3)


def test_an_analysis_is_the_models_own_answer(explorer: Explorer, folder: Path) -> None:
    analysis = explorer.analyse(folder / "canvas_1.png")
    pixels = np.asarray(Image.open(folder / "canvas_1.png"))
    assert np.array_equal(analysis.image, pixels)
    model = from_pretrained(folder / "ssgrl")
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    image = (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        logits, attention = model(image[None], return_attention=True)
    expected = dict(zip(CLASS_NAMES, torch.sigmoid(logits[0]).tolist(), strict=True))
    assert analysis.probabilities == pytest.approx(expected, abs=1e-6)
    order = list(analysis.probabilities.values())
    assert order == sorted(order, reverse=True)
    assert np.allclose(analysis.attention, attention[0].numpy(), atol=1e-6)
    assert np.array_equal(
        explorer.attention(analysis, "seven"),
        overlay(pixels, analysis.attention[7], explorer.predictor.placement(pixels.shape)),
    )


def test_the_neighbours_are_those_of_the_library(explorer: Explorer, folder: Path) -> None:
    analysis = explorer.analyse(folder / "canvas_0.png")
    found = explorer.neighbours(analysis, "three")
    assert found is not None and found.class_index == 3
    assert found == neighbour_contributions(explorer.model.head, analysis.features, 3, limit=3)
    probability = 1 / (1 + np.exp(-found.logit))
    assert probability == pytest.approx(analysis.probabilities["three"], abs=1e-6)


def test_the_curves_are_those_of_the_library(explorer: Explorer, folder: Path) -> None:
    analysis = explorer.analyse(folder / "canvas_0.png")
    curves = explorer.removal(analysis, "seven")
    assert curves == removal_curves(explorer.predictor.network.head, analysis.features, [7])[0]
    chart = removal_curves_chart(curves, "<seven>")
    assert "&lt;seven&gt;" in chart and chart.count("<polyline") == 3
    top = max(*curves.deletion, *curves.insertion, *curves.random)
    ends = [
        f'points="{300 * (1 - curves.kept[0]):.1f},{120 - 110 * curve[0] / top:.1f} ' in chart
        for curve in (curves.deletion, curves.insertion, curves.random)
    ]
    assert all(ends) and f"{curves.areas()['deletion']:.1%}" in chart and removal_curves_chart(None, "seven") == ""


def test_what_the_page_cannot_show_is_said(explorer: Explorer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GlobalPoolingClassifier, which has neither attention nor a graph"):
        Explorer(Predictor.load(folder / "pooling"))
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        Explorer(Predictor.load(folder / "ssgrl"), neighbours=0)
    alone = Explorer(Predictor.load(folder / "alone"))
    analysis = alone.analyse(folder / "canvas_0.png")
    assert alone.neighbours(analysis, "one") is None
    assert "no graph" in contribution_bars(None, CLASS_NAMES)
    with pytest.raises(ValueError, match="'eleven' is none of the 10 classes"):
        explorer.attention(analysis, "eleven")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BrokenImage, match=r"broken\.png"):
        explorer.analyse(tmp_path / "broken.png")


def test_bars_have_the_side_and_length_of_their_values() -> None:
    found = NeighbourContributions(0, 2.0, 0.5, (2, 1), (1.0, -0.25), (3, 4))
    text = contribution_bars(found, ["a", "<b>", "c", "d", "e"])
    assert "logit <b>+2.00</b>" in text and "without its edges <b>+0.50</b>" in text
    rows = re.findall(r'<span>(.*?)</span>.*?class="(up|down)" style="(.*?)".*?value">(.*?)<', text)
    assert rows == [
        ("c", "up", "left:50%;width:50.0%", "+1.000"),
        ("&lt;b&gt;", "down", "right:50%;width:12.5%", "-0.250"),
    ]
    assert "2 neighbours with lighter edges were not computed" in text
    none = contribution_bars(NeighbourContributions(1, 1.25, 1.25, (), (), ()), ["a", "<b>"])
    assert "&lt;b&gt;" in none and "no neighbour" in none


def test_decisions_name_thresholds_and_the_nearest_label_below() -> None:
    text = decisions({"<a>": 0.9, "b": 0.5, "c": 0.1}, dict.fromkeys(["<a>", "b", "c"], 0.5))
    assert "Predicted (above 50.0%): <b>&lt;a&gt;</b> 90.0%. Nearest below: <b>b</b> 50.0%." in text
    own = decisions({"a": 0.9, "b": 0.5, "c": 0.1}, {"a": 0.95, "b": 0.2, "c": 0.05})
    assert "above the threshold of its class): <b>b</b> 50.0% (&gt; 20.0%), <b>c</b> 10.0% (&gt; 5.0%)." in own
    assert "Nearest below: <b>a</b> 90.0% (≤ 95.0%)" in own
    assert "no label." in decisions({"a": 0.1}, {"a": 0.5}) and "Nearest" not in decisions({"a": 0.9}, {"a": 0.5})


def test_thresholds_are_a_number_or_those_of_an_evaluation(tmp_path: Path) -> None:
    names = ["a", "b"]
    assert read_thresholds("0.25", names) == {"a": 0.25, "b": 0.25}
    report = tmp_path / "evaluation.json"
    report.write_text(json.dumps({"thresholds": {"probability": {"b": 0.75, "a": 0.5}}}))
    assert read_thresholds(str(report), names) == {"a": 0.5, "b": 0.75}
    for given, wanted in (("1.5", names), ("nan", names), (str(report), ["a", "c"])):
        with pytest.raises(ValueError, match="threshold"):
            read_thresholds(given, wanted)
    for content in ('{"thresholds": null}', "[]", "{"):
        report.write_text(content)
        with pytest.raises(ValueError, match="evaluation.json is neither a probability nor the evaluation.json of"):
            read_thresholds(str(report), names)
    with pytest.raises(ValueError, match="--threshold .*nowhere is neither a probability"):
        read_thresholds(str(tmp_path / "nowhere"), names)


def test_an_even_map_is_called_even_and_drawn_dim() -> None:
    even, peak = np.full((3, 3), 1 / 9), np.zeros((3, 3))
    peak[1, 1] = 1
    text = attention_scale(even)
    assert "an even map has 11.11% in each, this one at most 11.11%. It is nearly even" in text
    assert "<span>33.33%</span>" in text and "<span>100.00%</span>" in attention_scale(peak)
    assert "nearly even" not in attention_scale(peak)
    colors = re.findall("#[0-9a-f]{6}", text)
    grey = np.full((9, 9, 3), 128, np.uint8)
    middles = np.array([1.0, 4.0, 7.0])
    flat, bright = (overlay(grey, each, Placement(middles, middles, (0, 0, 9, 9))) for each in (even, peak))
    assert (flat == flat[0, 0]).all() and flat.sum() < 0.6 * bright[4, 4].sum() * 81
    assert len(colors) == 9 and f"#{bright[4, 4, 0]:02x}{bright[4, 4, 1]:02x}{bright[4, 4, 2]:02x}" == colors[-1]


def test_the_line_about_the_model(explorer: Explorer, folder: Path) -> None:
    line = facts_line(explorer.predictor.facts(), 10)
    for part in (str(folder / "ssgrl"), "10 classes", "mode paper", "float32", "64×64 pixels"):
        assert part in line


def test_the_verb_refuses_in_a_sentence(folder: Path, monkeypatch, capsys) -> None:
    assert cli.main(["app"]) == 2
    assert "--model" in capsys.readouterr().err
    assert cli.main(["app", "--model", "nowhere", "--port", "99999"]) == 1
    assert "--port must be from 1 to 65535, got 99999" in capsys.readouterr().err
    pytest.importorskip("gradio", reason="the page needs gradio")
    assert cli.main(["app", "--model", str(folder / "pooling")]) == 1
    assert "neither attention nor a graph" in capsys.readouterr().err
    assert cli.main(["app", "--model", str(folder / "ssgrl"), "--examples", str(folder / "none")]) == 1
    assert "none: no such file" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "ssgrl_fast.inference.app.page", raising=False)
    monkeypatch.delattr("ssgrl_fast.inference.app.page", raising=False)
    assert cli.main(["app", "--model", str(folder / "ssgrl")]) == 1
    assert "pip install 'ssgrl_fast[app]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(explorer: Explorer, folder: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="the page needs gradio")
    from ssgrl_fast.inference.app import page

    running = page.serve(explorer, examples=[folder / "canvas_1.png"], block=False)
    yield running.local_url
    running.close()


def upload(client: Any, content: bytes, name: str = "photo.png") -> str:
    """The path that the page gives a file."""
    response = client.post("/gradio_api/upload", files={"files": (name, content)})
    assert response.status_code == 200, response.text
    return str(response.json()[0])


def ask(client: Any, path: str, name: str = "photo.png") -> list[Any]:
    """What `show` gives for an uploaded file, without what the page keeps: sentence, scores, decisions, …; or the
    status and the sentence of a refusal."""
    given = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    response = client.post("/gradio_api/call/show", json={"data": [given]})
    if response.status_code != 200:
        return [response.status_code, response.json()["detail"]]
    stream = client.get(f"/gradio_api/call/show/{response.json()['event_id']}").text
    event, data = stream.rstrip().split("\n")[-2:]
    assert event == "event: complete", stream
    answer: list[Any] = json.loads(data.removeprefix("data: "))
    return answer[-8:]


@pytest.mark.thorough
def test_fifty_uploads_at_once_are_all_answered(address: str, explorer: Explorer, tmp_path: Path) -> None:
    httpx = pytest.importorskip("httpx")
    canvases, _ = draw_canvases("test", 50, SIZE, 1)
    files = [tmp_path / f"{number}.png" for number in range(50)]
    for file, canvas in zip(files, canvases, strict=True):
        Image.fromarray(canvas.permute(1, 2, 0).numpy()).save(file)
    together = threading.Barrier(50)

    def visitor(file: Path) -> list[Any]:
        with httpx.Client(base_url=address, timeout=120) as client:
            together.wait()
            return ask(client, upload(client, file.read_bytes()))

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(visitor, files))
    for file, (sentence, scores, decided, *_) in zip(files, answers, strict=True):
        expected = explorer.analyse(file).probabilities
        found = {entry["label"]: entry["confidence"] for entry in scores["confidences"]}
        assert sentence == "" and found == pytest.approx(expected, abs=1e-6)
        assert decided == decisions(expected, explorer.thresholds)


@pytest.mark.thorough
def test_beyond_the_queue_a_request_is_turned_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("gradio", reason="the page needs gradio")
    from ssgrl_fast.inference.app import page

    slow, go, begun = Explorer(Predictor.load(folder / "ssgrl")), threading.Event(), threading.Event()
    analyse = slow.analyse
    monkeypatch.setattr(slow, "analyse", lambda path: (begun.set(), go.wait(60), analyse(path))[-1])
    with pytest.raises(ValueError, match="queue must be at least 1, got 0"):
        page.serve(slow, queue=0, block=False)
    running = page.serve(slow, queue=2, block=False)
    try:
        with httpx.Client(base_url=running.local_url, timeout=60) as client, ThreadPoolExecutor(3) as pool:
            path = upload(client, (folder / "canvas_0.png").read_bytes())
            waiting = [pool.submit(ask, client, path)]
            assert begun.wait(60)
            waiting += [pool.submit(ask, client, path) for _ in range(2)]
            deadline = time.monotonic() + 60
            while len(running._queue) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert ask(client, path) == [503, "Queue is full. Max size is 2 and size is 2."]
            go.set()
            assert [answer.result()[0] for answer in waiting] == ["", "", ""]
            assert ask(client, path)[0] == ""
    finally:
        go.set()
        running.close()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("notes.png", b"no picture", "notes.png: cannot identify image file"),
        ("<b>.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "b.svg: cannot identify image file"),
        ("empty.jpg", b"", "empty.jpg: "),
        ("cut.png", None, "cut.png: "),
    ],
)
def test_a_file_that_is_no_image_is_one_sentence(
    name: str, content: bytes | None, sentence: str, address: str, folder: Path
) -> None:
    httpx = pytest.importorskip("httpx")
    cut = (folder / "canvas_0.png").read_bytes()[:2000]
    with httpx.Client(base_url=address, timeout=60) as client:
        said, scores, decided, _, seen, scale, *shown = ask(
            client, upload(client, cut if content is None else content, name), name
        )
    assert said.startswith('<p class="ssgrl-problem" role="alert">') and sentence in said and "/tmp" not in said
    assert (scores, decided, seen, scale, shown) == ({}, "", None, "", ["", ""])


@pytest.mark.long
def test_the_page_in_chromium(address: str, explorer: Explorer, folder: Path, tmp_path: Path) -> None:
    """A photograph is dropped, every label has its bar, and a click shows attention and neighbours of that label."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    browser_path = os.environ.get("SSGRL_TEST_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no browser: install chromium, or name one in SSGRL_TEST_BROWSER")
    analysis = explorer.analyse(folder / "canvas_0.png")
    name = list(analysis.probabilities)[4]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 860})
        elsewhere: list[str] = []
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((address, "data:", "blob:")) else elsewhere.append(request.url)
            ),
        )
        page.goto(address)
        page.set_input_files("input[type=file]", str(folder / "canvas_0.png"))
        page.wait_for_selector("#scores .confidence-set")
        shown = page.locator("#scores .confidence-set").all_inner_texts()
        assert len(shown) == 10
        for line, (label, probability) in zip(shown, analysis.probabilities.items(), strict=True):
            assert label in line and f"{100 * probability:.0f}%" in line
        page.locator("#scores .confidence-set").nth(4).click()
        page.wait_for_function(
            "name => document.querySelector('#neighbours').innerText.includes(name + ': logit')", arg=name
        )
        found = explorer.neighbours(analysis, name)
        assert found is not None
        text = page.locator("#neighbours").inner_text()
        for index, value in zip(found.neighbours, found.contributions, strict=True):
            assert CLASS_NAMES[index] in text and f"{value:+.3f}" in text
        assert page.locator("#removed polyline").count() == 3
        assert page.locator("#chosen input").input_value() == name
        picture = page.locator("#seen img")
        picture.wait_for()
        response = page.request.get(picture.get_attribute("src"))
        (tmp_path / "seen").write_bytes(response.body())
        seen = np.asarray(Image.open(tmp_path / "seen").convert("RGB")).astype(int)
        expected = explorer.attention(analysis, name).astype(int)
        assert seen.shape == expected.shape and np.abs(seen - expected).mean() < 8  # sent as lossy WebP
        (tmp_path / "cut.png").write_bytes((folder / "canvas_0.png").read_bytes()[:2000])
        page.reload()
        page.wait_for_selector("input[type=file]", state="attached")
        page.set_input_files("input[type=file]", str(tmp_path / "cut.png"))
        said = page.get_by_text(re.compile(r"cut\.png: .*truncated"))
        said.wait_for()
        assert str(tmp_path) not in said.inner_text() and "/" not in said.inner_text()
        browser.close()
    assert elsewhere == []
