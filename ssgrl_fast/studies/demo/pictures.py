"""The demonstration's two pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ssgrl_fast.inference.figures import Sample, ap_chart, attention_sheet, save_figure
from ssgrl_fast.inference.placement import place
from ssgrl_fast.studies.demo.training import Pair

_ROWS = 5
_CLASSES = 3  # canvases with at least as many classes
_ENLARGED = 6  # a canvas of 64 pixels is shown at 384


def draw(pair: Pair, out: Path) -> dict[str, Path]:
    """Write ap.png and attention.png; returns what is where."""
    mine, other = (pair.reports[kind] for kind in ("ssgrl", "pooling"))
    note = f"digit canvases, {mine.images} for testing; AP definition {mine.ap_definition}"
    labels = ("SSGRL", "global pooling + linear")
    chart = ap_chart(mine.class_names, mine.ap, baseline=other.ap, labels=labels, note=note)
    title = f"The first {_ROWS} test canvases with {_CLASSES} or more classes: what SSGRL sees, and where"
    sheet = attention_sheet(_samples(pair), mine.class_names, title=title)
    return {
        "AP of every class": save_figure(chart, out / "ap.png"),
        "attention sheet": save_figure(sheet, out / "attention.png"),
    }


@torch.inference_mode()
def _samples(pair: Pair) -> list[Sample]:
    test = pair.data.test_dataset
    assert test is not None
    rows = torch.nonzero((test.labels == 1).sum(1) >= _CLASSES).flatten()[:_ROWS].tolist()
    images = torch.stack([test[row]["image"] for row in rows])
    logits, maps = pair.ssgrl.model(images, return_attention=True)
    body = pair.ssgrl.model.backbone
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (body.mean, body.std))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    enlarged = np.repeat(np.repeat(pixels, _ENLARGED, axis=1), _ENLARGED, axis=2)
    (height, width), (tall, wide) = images.shape[2:], enlarged.shape[1:3]
    placement = place(pair.ssgrl.model.attention_grid(height, width), (tall, wide), size=height, resize=height)
    probabilities, targets = logits.sigmoid().numpy(), test.labels.numpy()
    return [
        Sample(enlarged[i], probabilities[i], maps[i].numpy(), placement, targets[row], f"canvas {row}")
        for i, row in enumerate(rows)
    ]
