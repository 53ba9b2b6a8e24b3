"""Words and a graph of one's own: from a label matrix, from a table, from a text file of vectors.

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
    parser.add_argument("folder", type=Path, help="where the files of this example go")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)

    # Words: any text file "word number number ..."; "dining table" is the mean of its words.
    (folder / "vectors.txt").write_text(VECTORS, encoding="utf-8")
    words = sf.words.load(folder / "vectors.txt", NAMES)  # [4, 3]

    # Graph, counted: six images, 1 present, -1 absent, 0 only difficult objects (not counted by default).
    labels = torch.tensor(
        [[1, 1, 1, -1], [1, 1, 1, -1], [1, -1, 1, 0], [-1, 1, -1, -1], [-1, -1, 1, 1], [-1, -1, -1, 1]]
    )
    counted = sf.graph.cooccurrence(labels)  # row c: P(c' | c)
    print("P(knife | fork) =", counted[0, 1].item())
    sf.graph.save(folder / "counted.safetensors", counted, NAMES)
    assert torch.equal(sf.graph.load(folder / "counted.safetensors", NAMES), counted)

    # Graph, by hand: knowledge that no label matrix holds. Any finite matrix will do; row c is what c is told.
    by_hand = torch.zeros(4, 4)
    by_hand[0, 1] = by_hand[1, 0] = 0.9  # fork and knife keep company
    by_hand[0, 2] = by_hand[1, 2] = 0.7  # where there is cutlery there is a table; not the other way round

    features = torch.rand(1, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    for title, graph in (("counted", counted), ("by hand", by_hand)):
        torch.manual_seed(0)
        head = sf.SSGRLHead(32, words, graph, joint_dim=16)
        print(title, [round(value, 3) for value in head(features)[0].tolist()])
    return counted


if __name__ == "__main__":
    main()
