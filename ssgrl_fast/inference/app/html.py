"""HTML of the page: decisions, the scale of the attention, bars of the neighbours' contributions, facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssgrl_fast._utils.escape import for_html
from ssgrl_fast.inference.explain import NeighbourContributions, RemovalCurves
from ssgrl_fast.inference.figures import brightest, scale_colors
from ssgrl_fast.inference.removal import CURVES

RAISED, LOWERED = "#1f5a94", "#c62828"
STYLE = f"""
#scores {{ max-height: 36rem; overflow-y: auto !important; }}
#photo img, #seen img {{ width: 100%; height: 100%; object-fit: contain; }}
.ssgrl-rows {{ display: grid; grid-template-columns: max-content 1fr max-content; gap: .3rem .7rem;
  align-items: center; font-size: .92rem; }}
.ssgrl-rows .bar {{ position: relative; height: 1rem; background: linear-gradient(90deg, transparent calc(50% - .5px),
  var(--border-color-primary) calc(50% - .5px) calc(50% + .5px), transparent calc(50% + .5px)); }}
.ssgrl-rows .bar i {{ position: absolute; top: 0; bottom: 0; border-radius: 2px; }}
.ssgrl-rows .up {{ background: {RAISED}; }}
.ssgrl-rows .down {{ background: {LOWERED}; }}
.ssgrl-rows .value {{ font-variant-numeric: tabular-nums; text-align: right; }}
.ssgrl-note {{ color: var(--body-text-color); opacity: .75; font-size: .85rem; line-height: 1.45; margin: .7rem 0 0; }}
.ssgrl-scale {{ display: flex; gap: .5rem; align-items: center; font-size: .85rem; }}
.ssgrl-scale i {{ flex: 1; height: .7rem; border-radius: 2px; }}
.ssgrl-curves {{ width: 100%; height: auto; margin-top: 1rem; }}
.ssgrl-problem {{ color: {LOWERED}; margin: 0; line-height: 1.5; }}
.ssgrl-lead {{ margin: 0 0 .8rem; line-height: 1.5; }}
"""


def problem(text: str) -> str:
    """A sentence about what went wrong."""
    return f'<p class="ssgrl-problem" role="alert">{for_html(text)}</p>'


def decisions(probabilities: Mapping[str, float], thresholds: Mapping[str, float]) -> str:
    """Which labels are predicted, each with its probability and threshold, and the next one below its own."""
    same = len(set(thresholds.values())) == 1

    def shown(name: str) -> str:
        return f"<b>{for_html(name)}</b> {probabilities[name]:.1%}" + (
            "" if same else f" (&gt; {thresholds[name]:.1%})"
        )

    above = [name for name, value in probabilities.items() if value > thresholds[name]]
    below = [name for name in probabilities if name not in above]
    rule = f"above {next(iter(thresholds.values())):.1%}" if same else "above the threshold of its class"
    text = f"Predicted ({rule}): {', '.join(map(shown, above)) or 'no label'}."
    if below:
        nearest = max(below, key=lambda name: probabilities[name] - thresholds[name])
        text += f" Nearest below: {shown(nearest).replace('&gt;', '≤')}."
    return f'<p class="ssgrl-note">{text}</p>'


def attention_scale(attention: NDArray[np.floating[Any]]) -> str:
    """What the colours over the photograph mean for a map [h, w] that sums to 1."""
    even, top = 1 / attention.size, brightest(attention)
    text = f"Share of the attention in one of {attention.size} cells; an even map has {even:.2%} in each"
    text += f", this one at most {attention.max():.2%}."
    if attention.max() < 1.5 * even:
        text += " It is nearly even: the network looked at no place in particular."
    return (
        f'<div class="ssgrl-scale" role="img" aria-label="colours from 0 to {top:.2%}"><span>0</span>'
        f'<i style="background:linear-gradient(90deg,{",".join(scale_colors())})"></i><span>{top:.2%}</span></div>'
        f'<p class="ssgrl-note">{text}</p>'
    )


def contribution_bars(contributions: NeighbourContributions | None, class_names: Sequence[str]) -> str:
    """Bars to the left (lowered) and right (raised) of a middle line, scaled to the largest, and an explanation."""
    if contributions is None:
        return '<p class="ssgrl-lead">This model has no graph (interaction=False): no neighbour adds to a score.</p>'
    name = for_html(class_names[contributions.class_index])
    if not contributions.neighbours:
        return (
            f'<p class="ssgrl-lead"><b>{name}</b> has no neighbour in the graph; '
            f"its logit is {contributions.logit:.2f}.</p>"
        )
    lead = (
        f'<p class="ssgrl-lead"><b>{name}</b>: logit <b>{contributions.logit:+.2f}</b>, '
        f"without its edges <b>{contributions.alone:+.2f}</b></p>"
    )
    largest = max(max(map(abs, contributions.contributions)), 1e-30)
    rows = "".join(
        _row(for_html(class_names[index]), value, value / largest)
        for index, value in zip(contributions.neighbours, contributions.contributions, strict=True)
    )
    note = (
        "A bar is what the logit loses when the edge between the two classes is removed from the graph, everything "
        "else unchanged. The network is not linear: the bars need not add up."
    )
    if contributions.left_out:
        note += f" {len(contributions.left_out)} neighbours with lighter edges were not computed."
    return f'{lead}<div class="ssgrl-rows">{rows}</div><p class="ssgrl-note">{note}</p>'


def removal_curves_chart(curves: RemovalCurves | None, name: str) -> str:
    """Lines of a class's probability over the share of cells that are removed, and their means in words."""
    if curves is None:
        return ""
    lines = {each: getattr(curves, each) for each in CURVES}
    top = max(max(map(max, lines.values())), 1e-30)
    drawn = "".join(
        f'<polyline fill="none" stroke="{CURVES[each][1]}" stroke-width="2" points="'
        + " ".join(
            f"{300 * (1 - kept):.1f},{120 - 110 * value / top:.1f}"
            for kept, value in zip(curves.kept, line, strict=True)
        )
        + '"/>'
        for each, line in lines.items()
    )
    areas = curves.areas()
    means = "; ".join(
        f'<b style="color:{color}">{title}</b> {areas[each]:.1%}' for each, (title, color) in CURVES.items()
    )
    label = f"Probability of {for_html(name)} from all cells (left) to one (right), highest value {top:.1%}"
    return (
        f'<svg class="ssgrl-curves" viewBox="0 0 300 121" role="img" aria-label="{label}">'
        f'<path d="M0 0V120H300" fill="none" stroke="currentColor" opacity=".4"/>{drawn}</svg>'
        f'<p class="ssgrl-note">{label}, while cells of the map are removed. Mean probability: {means}. If the score '
        "rests on the attended cells, the first line falls before the second.</p>"
    )


def _row(name: str, value: float, share: float) -> str:
    side = f"left:50%;width:{50 * share:.1f}%" if value >= 0 else f"right:50%;width:{-50 * share:.1f}%"
    kind = "up" if value >= 0 else "down"
    return (
        f'<span>{name}</span><span class="bar"><i class="{kind}" style="{side}"></i></span>'
        f'<span class="value">{value:+.3f}</span>'
    )


def facts_line(facts: dict[str, Any], classes: int) -> str:
    """A line that names the model, its backend, device and dtype."""
    parts = [
        for_html(facts["model"]),
        f"{classes} classes",
        f"mode {for_html(facts['mode'])}",
        f"backend {for_html(facts['backend'])}",
        f"{for_html(facts['device'])} {for_html(facts['dtype'])}",
        f"{facts['image_size']}×{facts['image_size']} pixels",
    ]
    return f'<p class="ssgrl-note">{" · ".join(parts)}</p>'
