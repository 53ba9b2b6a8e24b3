"""Your own word vectors, from a text file, and your own graph, counted on a label matrix or written by hand.

python examples/custom_graph_and_words.py FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import ssgrl_fast as sf

NAMES = ["fork", "knife", "dining table", "cat"]
VECTORS = """fork 0.9 0.1 0.0
knife 0.8 0.2 0.1
dining 0.5 0.6 0.0
table 0.3 0.8 0.2
cat 0.0 0.1 0.9
"""


def main(arguments: list[str] | None = None) -> torch.Tensor:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the files that this example writes")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)

    # Words: any text file with lines "word number number ..."; "dining table" gets the mean of its two words' vectors.
    (folder / "vectors.txt").write_text(VECTORS, encoding="utf-8")
    words = sf.words.load(folder / "vectors.txt", NAMES)  # [4, 3]

    # Graph, counted on six images. 1: present, -1: absent, 0: only objects marked difficult (not counted by default).
    labels = torch.tensor(
        [[1, 1, 1, -1], [1, 1, 1, -1], [1, -1, 1, 0], [-1, 1, -1, -1], [-1, -1, 1, 1], [-1, -1, -1, 1]]
    )
    counted = sf.graph.cooccurrence(labels)  # row c: P(c' | c)
    print("P(knife | fork) =", counted[0, 1].item())
    sf.graph.save(folder / "counted.safetensors", counted, NAMES)
    assert torch.equal(sf.graph.load(folder / "counted.safetensors", NAMES), counted)

    # Graph, by hand: any finite matrix. Entry [c, c'] is the weight with which class c receives the state of class c'.
    by_hand = torch.zeros(4, 4)
    by_hand[0, 1] = by_hand[1, 0] = 0.9  # fork and knife occur together
    by_hand[0, 2] = by_hand[1, 2] = 0.7  # cutlery implies a table, but a table does not imply cutlery

    features = torch.rand(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    for title, graph in (("counted", counted), ("by hand", by_hand)):
        torch.manual_seed(0)
        head = sf.SSGRLHead(32, words, graph, joint_dim=16)
        print(title, [round(value, 3) for value in head(features)[0].tolist()])
    return counted


if __name__ == "__main__":
    main()
