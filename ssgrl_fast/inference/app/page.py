"""The page in Gradio; its content comes from :class:`~ssgrl_fast.inference.app.explorer.Explorer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.escape import for_html
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.inference.app.explorer import Analysis, Explorer
from ssgrl_fast.inference.app.html import STYLE, contribution_bars, facts_line

if TYPE_CHECKING:
    import gradio
else:
    gradio = need("gradio", "app", "ssgrl-fast app")

_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]  # the browser's own: no font is downloaded


def build(explorer: Explorer, examples: Sequence[Path] = ()) -> Any:
    """The page as a ``gradio.Blocks``, which :func:`serve` launches.

    Args:
        explorer: the model.
        examples: image files to choose from.
    """
    names = explorer.class_names

    def show(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return None, None, gradio.Dropdown(value=None), None, ""
        try:
            analysis = explorer.analyse(path)
        except (BrokenImage, FileNotFoundError, ValueError) as error:
            message = str(error).replace(path, Path(path).name)  # the upload lies in a folder of Gradio
            raise gradio.Error(for_html(message), print_exception=False) from error
        first = next(iter(analysis.probabilities))
        return analysis, analysis.probabilities, gradio.Dropdown(value=first), *look(analysis, first)

    def look(analysis: Analysis | None, name: str | None) -> tuple[Any, str]:
        if analysis is None or name is None:
            return None, ""
        return explorer.attention(analysis, name), contribution_bars(explorer.neighbours(analysis, name), names)

    def clicked(event: gradio.SelectData, analysis: Analysis | None) -> tuple[Any, ...]:
        return gradio.Dropdown(value=event.value), *look(analysis, event.value)

    with gradio.Blocks(title="ssgrl_fast", analytics_enabled=False) as page:
        kept = gradio.State(None)
        gradio.Markdown("## Labels of a photograph, where the network looked, and which labels raised them")
        with gradio.Row():
            with gradio.Column(scale=4, min_width=260):
                gradio.Markdown("#### Photograph")
                photo = gradio.Image(
                    type="filepath",
                    image_mode=None,  # the file as uploaded: the predictor reads it
                    sources=["upload", "clipboard"],
                    show_label=False,
                    height=330,
                    elem_id="photo",
                )
                if examples:
                    gradio.Examples([[str(path)] for path in examples], photo, label="Examples", examples_per_page=12)
            with gradio.Column(scale=4, min_width=260):
                gradio.Markdown("#### Label distribution: click a label")
                scores = gradio.Label(show_label=False, show_heading=False, elem_id="scores")
            with gradio.Column(scale=4, min_width=260):
                gradio.Markdown("#### Where the network looked for it")
                chosen = gradio.Dropdown(names, value=None, show_label=False, container=False, elem_id="chosen")
                seen = gradio.Image(
                    show_label=False, interactive=False, height=282, buttons=["download", "fullscreen"], elem_id="seen"
                )
            with gradio.Column(scale=4, min_width=260):
                gradio.Markdown("#### Neighbours for and against it")
                raised = gradio.HTML(elem_id="neighbours")
        gradio.HTML(facts_line(explorer.predictor.facts(), len(names)))
        photo.change(show, photo, [kept, scores, chosen, seen, raised])
        scores.select(clicked, kept, [chosen, seen, raised])
        chosen.input(look, [kept, chosen], [seen, raised])
    return page


def serve(
    explorer: Explorer,
    *,
    examples: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int | None = None,
    block: bool = True,
) -> Any:
    """Launch the page.

    Args:
        explorer: the model.
        examples: image files to choose from; these alone are served to everyone who opens the page.
        host, port: where to listen; port None takes the first free one from 7860.
        block: False returns at once with the running page (``close()`` ends it, ``local_url`` is its address).
    """
    page = build(explorer, examples)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not block,
        share=False,
        quiet=not block,
        footer_links=[],
        theme=gradio.themes.Soft(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
        css=STYLE,
        allowed_paths=[str(path.resolve()) for path in examples],
    )
    return page
