"""Train a second, independent model for the comparison of estimators: scikit-learn's digits.

    python -m experiments.estimators.digits --out out/digits

The recipe is that of the demo model, on other images (8 x 8 pixels, handwritten digits) and another
seed: 10 images repeated 60 times, 15 that stand once but are sampled as often, 1,000 seen once, the
rest held out. About five minutes on a CPU. Nothing of it is shipped; what was concluded on the demo
model must hold here too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from experiments.demo_model.train import DemoData, train, write_data

REPEATED, RARE, ONCE, COPIES = 10, 15, 1000, 60


def make_data(seed: int) -> DemoData:
    """Choose, repeat and shuffle the images.

    Args:
        seed: seed of the choice.

    Returns:
        The data set.
    """
    rng = np.random.default_rng(seed)
    images = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    images = np.unique(images, axis=0)
    images = images[rng.permutation(len(images))]
    repeated, rare, once, holdout = np.split(images, np.cumsum([REPEATED, RARE, ONCE]))
    rows = np.concatenate([np.repeat(repeated, COPIES, axis=0), rare, once])
    shuffle = rng.permutation(len(rows))
    place = np.argsort(shuffle)
    copies = place[: REPEATED * COPIES].reshape(REPEATED, COPIES)
    first = REPEATED * COPIES
    return DemoData(
        train=rows[shuffle],
        holdout=holdout,
        duplicated=np.sort(copies, axis=1).tolist(),
        rare=sorted(place[first : first + RARE].tolist()),
    )


def main() -> None:
    """Make the data, train the model, write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="output directory")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=1, help="seed of data and training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = make_data(args.seed)
    write_data(data, args.out)
    pipeline = train(data, steps=args.steps, seed=args.seed, size=8)
    pipeline.save_pretrained(args.out / "model", safe_serialization=True)


if __name__ == "__main__":
    main()
