"""The page of `ssgrl-fast app`: what it shows (always), and how it looks in headless Chromium (where there is one)."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssgrl_fast import cli
from ssgrl_fast.data.digits import CLASS_NAMES, MEAN, STD, draw_canvases
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.inference.app.explorer import Explorer
from ssgrl_fast.inference.app.html import contribution_bars, facts_line
from ssgrl_fast.inference.explain import NeighbourContributions, neighbour_contributions
from ssgrl_fast.inference.figures import overlay
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
        overlay(pixels, analysis.attention[7], explorer.predictor.placement(pixels)),
    )


def test_the_neighbours_are_those_of_the_library(explorer: Explorer, folder: Path) -> None:
    analysis = explorer.analyse(folder / "canvas_0.png")
    found = explorer.neighbours(analysis, "three")
    assert found is not None and found.class_index == 3
    assert found == neighbour_contributions(explorer.model.head, analysis.features, 3, limit=3)
    probability = 1 / (1 + np.exp(-found.logit))
    assert probability == pytest.approx(analysis.probabilities["three"], abs=1e-6)


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


def test_the_line_about_the_model(explorer: Explorer, folder: Path) -> None:
    line = facts_line(explorer.predictor.facts(), 10)
    for part in (str(folder / "ssgrl"), "10 classes", "mode paper", "float32", "64×64 pixels"):
        assert part in line


def test_the_verb_refuses_in_a_sentence(folder: Path, monkeypatch, capsys) -> None:
    assert cli.main(["app"]) == 2
    assert "--model" in capsys.readouterr().err
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
