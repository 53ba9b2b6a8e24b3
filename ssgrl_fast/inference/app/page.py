"""The page in Gradio; its content comes from :class:`~ssgrl_fast.inference.app.explorer.Explorer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.inference.app.explorer import Analysis, Explorer
from ssgrl_fast.inference.app.html import (
    STYLE,
    attention_scale,
    contribution_bars,
    decisions,
    facts_line,
    problem,
    removal_curves_chart,
)

if TYPE_CHECKING:
    import gradio
else:
    gradio = need("gradio", "app", "ssgrl-fast app")

SESSIONS = 200
"""Visitors whose last photograph is kept in memory, with its features: some MB each."""
_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]  # the browser's own: no font is downloaded


def build(explorer: Explorer, examples: Sequence[Path] = ()) -> Any:
    """The page as a ``gradio.Blocks``, which :func:`serve` launches.

    Args:
        explorer: the model.
        examples: image files to choose from.
    """
    names = explorer.class_names

    def show(path: str | None) -> tuple[Any, ...]:
        nothing = (None, "", gradio.Dropdown(value=None), None, "", "", "")
        if path is None:
            return None, "", *nothing
        try:
            analysis = explorer.analyse(path)
        except (BrokenImage, FileNotFoundError, ValueError) as error:
            return None, problem(str(error).replace(path, Path(path).name)), *nothing  # it lies in a folder of Gradio
        first = next(iter(analysis.probabilities))
        decided = decisions(analysis.probabilities, explorer.thresholds)
        return analysis, "", analysis.probabilities, decided, gradio.Dropdown(value=first), *look(analysis, first)

    def look(analysis: Analysis | None, name: str | None) -> tuple[Any, str, str, str]:
        if name is None:
            return None, "", "", ""
        if analysis is None:  # none yet, or dropped: the page keeps those of SESSIONS visitors
            return None, "", problem("Choose a photograph first, or choose it again."), ""
        picture = gradio.Image(explorer.attention(analysis, name), alt_text=f"Attention of {name} over the photograph")
        bars = contribution_bars(explorer.neighbours(analysis, name), names)
        curves = removal_curves_chart(explorer.removal(analysis, name), name)
        return picture, attention_scale(explorer.map_of(analysis, name)), bars, curves

    def clicked(event: gradio.SelectData, analysis: Analysis | None) -> tuple[Any, ...]:
        return gradio.Dropdown(value=event.value), *look(analysis, event.value)

    with gradio.Blocks(title="ssgrl_fast", analytics_enabled=False) as page:
        kept = gradio.State(None)
        gradio.Markdown("## Labels of a photograph, where the network looked, and which labels raised them")
        with gradio.Row():
            with gradio.Column(scale=4, min_width=260):
                gradio.Markdown("#### Photograph")
                photo: Any = gradio.Image(
                    type="filepath",
                    image_mode=None,  # the file as uploaded: the predictor reads it
                    sources=["upload", "clipboard"],
                    show_label=False,
                    height=330,
                    elem_id="photo",
                    alt_text="The photograph as it was chosen",
                )
                photo.preprocess = lambda data: data and data.path  # no image either: the predictor says what it is
                wrong = gradio.HTML(elem_id="wrong")
                if examples:
                    gradio.Examples([[str(path)] for path in examples], photo, label="Examples", examples_per_page=12)
            with gradio.Column(scale=4, min_width=260):
                gradio.Markdown("#### Label distribution: click a label")
                scores = gradio.Label(show_label=False, show_heading=False, elem_id="scores")
                decided = gradio.HTML(elem_id="decided")
            with gradio.Column(scale=4, min_width=260):
                gradio.Markdown("#### Where the network looked for it")
                chosen = gradio.Dropdown(names, value=None, show_label=False, container=False, elem_id="chosen")
                seen = gradio.Image(
                    show_label=False, interactive=False, height=282, buttons=["download", "fullscreen"], elem_id="seen"
                )
                scale = gradio.HTML(elem_id="scale")
            with gradio.Column(scale=4, min_width=260):
                gradio.Markdown("#### Neighbours for and against it")
                raised = gradio.HTML(elem_id="neighbours")
                gradio.Markdown("#### Without the cells it looked at")
                removed = gradio.HTML(elem_id="removed")
        gradio.HTML(facts_line(explorer.predictor.facts(), len(names)))
        photo.change(show, photo, [kept, wrong, scores, decided, chosen, seen, scale, raised, removed])
        scores.select(clicked, kept, [chosen, seen, scale, raised, removed])
        chosen.input(look, [kept, chosen], [seen, scale, raised, removed])
    return page


def serve(
    explorer: Explorer,
    *,
    examples: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    queue: int = 100,
    block: bool = True,
) -> Any:
    """Launch the page.

    Args:
        explorer: the model.
        examples: image files to choose from; these alone are served to everyone who opens the page.
        host, port: where to listen; port None takes the first free one from 7860.
        queue: requests that may wait while one is computed; a further one is told that the page is busy (status 503).
        block: False returns at once with the running page (``close()`` ends it, ``local_url`` is its address).

    Raises:
        ValueError: queue below 1.
    """
    if queue < 1:
        raise ValueError(f"app: queue must be at least 1, got {queue}")
    page = build(explorer, examples).queue(max_size=queue, default_concurrency_limit=1)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not block,
        share=False,
        quiet=not block,
        footer_links=[],
        theme=gradio.themes.Soft(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
        state_session_capacity=SESSIONS,
        allowed_paths=[str(path.resolve()) for path in examples],
    )
    return page
