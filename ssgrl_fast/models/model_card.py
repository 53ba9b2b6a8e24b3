"""The model card of a bundle: README.md, as the Hugging Face Hub shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.escape import for_markdown
from ssgrl_fast._utils.files import write_text
from ssgrl_fast.labels.origin import card_rows

CARD = "README.md"
_MARK = "<!-- written by ssgrl_fast; remove this line and the card is left as it is -->"


def write_card(folder: Path, config: Mapping[str, Any], *, alone: bool = False) -> None:
    """Write the card of what config.json says; a card without this project's mark is the user's own and stays;
    ``alone``: no other process writes it at the same time.

    Raises:
        OSError: the disc refused.
    """
    path = folder / CARD
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    write_text(path, card(config), alone=alone)


def card(config: Mapping[str, Any]) -> str:
    """The text: what the model is, which classes in which order, how images reach it, how to load it."""
    kind, names, norm = config["kind"], config["class_names"], config["normalisation"]
    backbone = config["backbone"]["name"] or f"a module of the user's own ({config['backbone']['class']})"
    rows = [("model", kind), ("backbone", backbone), ("classes", str(len(names)))]
    rows += [(name, str(value)) for name, value in config.get("head", {}).items() if value is not None]
    rows += [("mean", ", ".join(f"{value:g}" for value in norm["mean"]))]
    rows += [("std", ", ".join(f"{value:g}" for value in norm["std"]))]
    rows += [(name.replace("_", " "), str(value)) for name, value in (config.get("preprocessing") or {}).items()]
    rows += card_rows(config["origin"]) if config.get("origin") else []
    table = "\n".join(f"| {for_markdown(name)} | {for_markdown(value)} |" for name, value in rows)
    own = "" if config["backbone"]["name"] else ", backbone=MODULE"
    return f"""---
library_name: ssgrl_fast
pipeline_tag: image-classification
tags:
- multi-label
- ssgrl
---
{_MARK}

# Multi-label image recognition with {kind}

| | |
|---|---|
{table}

```python
import ssgrl_fast as sf

model = sf.models.from_pretrained("FOLDER_OR_REPOSITORY"{own})
logits = model(images)  # [B, {len(names)}], of images [B, 3, H, W] normalised as above
probabilities = logits.sigmoid()
```

Classes, in the order of the logits: {", ".join(map(for_markdown, names))}.

What it was trained on, and how well it does, is for its author to say here.
"""
