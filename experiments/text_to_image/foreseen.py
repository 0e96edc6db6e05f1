"""How much detail the first step foresees: plain measures beside FLIPD around D_w(x_T).

The detectors ``flipd_*_first`` ask how many degrees of freedom the model has around the image that the
first step foresees. Plainer numbers of that image need no further pass: its standard deviation within a
channel, and the mean size of its differences between neighbouring places. AUROC of each over the test
prompts of the bundled pipeline, memorized against the others, near misses left out::

    python -m experiments.text_to_image.foreseen
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from tqdm import tqdm

from experiments.text_to_image.mitigation import ASSETS, RUN
from memfold import TextToImage
from memfold.audit.labelled import read_labelled
from memfold.memorization.detectors import DETECTORS
from memfold.memorization.evaluate import auroc, tpr_at_fpr
from memfold.sampling.trajectory import generate_watched
from memfold.tensors import text_seed

SEEDS = (0, 1, 2, 3)
FLIPD = "flipd_unconditional_first"


def plain(foreseen: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measure each foreseen latent by itself, shape (b, c, h, w)."""
    steps = [foreseen.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3)]
    return {
        "standard deviation within channels": foreseen.flatten(2).std(2).mean(1),
        "differences between neighbours": steps[0] + steps[1],
        "norm": foreseen.flatten(1).norm(dim=1),
    }


def main() -> None:
    """Print a row a measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="prompts of each kind")
    args = parser.parse_args()
    labelled, _ = read_labelled(ASSETS / "prompts.csv", limit=args.limit)
    model = TextToImage(ASSETS / "model")
    model.pipe.set_progress_bar_config(disable=True)
    found: dict[str, list[np.ndarray]] = {}
    kept = [i for i, kind in enumerate(labelled.kinds) if kind != "near"]
    for i in tqdm(kept, unit="prompt"):
        prompt = labelled.prompts[i]
        run = generate_watched(model, prompt, SEEDS, attention=False, **RUN)
        generator = torch.Generator().manual_seed(text_seed(prompt, 0))
        scores = plain(run.first.guided) | {FLIPD: DETECTORS[FLIPD](run, generator=generator)}
        for name, values in scores.items():
            found.setdefault(name, []).append(values.numpy())
    memorized = np.array([labelled.kinds[i] != "none" for i in kept])
    print("| of what the first step foresees | AUROC, 4 images | TPR at 1 % FPR | AUROC, 1 image |")
    print("|---|---|---|---|")
    for name, rows in found.items():
        table = np.stack(rows)
        mean = table.mean(1)
        cells = [auroc(mean, memorized), tpr_at_fpr(mean, memorized, 0.01)]
        cells.append(auroc(table[:, 0], memorized))
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in cells) + " |")


if __name__ == "__main__":
    main()
