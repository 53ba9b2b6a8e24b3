"""Train SSGRL on the embedded digit canvases with a plain PyTorch training loop, without Lightning.

    python examples/train_digits.py --steps 300 --out bundle

The command line does the same from a recipe: `ssgrl-fast fit --config configs/digits.yaml`.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

import ssgrl_fast as sf
from ssgrl_fast.data.digits import MEAN, STD, DigitCanvases
from ssgrl_fast.metrics import average_precision
from ssgrl_fast.models import build_backbone


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (300: about a minute on one core)")
    parser.add_argument("--train", type=int, default=2000, help="training canvases")
    parser.add_argument("--test", type=int, default=500, help="test canvases")
    parser.add_argument(
        "--words", default="glove-6b-50d", help="word vectors: the name of an installed package, or a file"
    )
    parser.add_argument("--out", help="folder to save the trained model (bundle) in")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    train, test = DigitCanvases("train", options.train), DigitCanvases("test", options.test)
    words = sf.words.load(options.words, train.class_names)  # [10, S]
    graph = sf.graph.cooccurrence(train.labels)  # [10, 10], counted on the training labels alone
    backbone = build_backbone("small-cnn", mean=MEAN, std=STD)  # 64x64 pixels to an 8x8 map
    model = sf.SSGRL(backbone, words, graph, class_names=train.class_names, joint_dim=128)
    model.preprocessing = {"image_size": 64, "resize": 64}  # stored in the bundle, for `predict` and `app`

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=options.steps)
    loader = DataLoader(train, batch_size=32, shuffle=True)
    step = 0
    while step < options.steps:
        for batch in loader:
            loss = binary_cross_entropy_with_logits(model(batch["image"]), (batch["target"] == 1).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if step % 50 == 0 or step == options.steps:
                print(f"step {step}: loss {loss.item():.4f}")
            if step == options.steps:
                break

    model.eval()
    with torch.inference_mode():
        scores = torch.cat([model(batch["image"]) for batch in DataLoader(test, batch_size=100)])
    ap = average_precision(scores, test.labels)  # [10]
    print(f"mAP on {len(test)} test canvases: {100 * ap.mean().item():.2f} %")
    if options.out:
        model.save_pretrained(options.out)
        print(f"bundle in {options.out}: try `ssgrl-fast app --model {options.out}`")
    return ap.mean().item()


if __name__ == "__main__":
    main()
