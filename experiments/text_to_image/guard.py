"""The guard on prompts with known answers: who is stopped, what is handed out instead.

Each prompt is drawn with seeds of its own, four images in a call, under a band from ``memfold
calibrate --images 4``. An image is a copy if its latent lies within 0.15 (root mean square) of a
training image of a memorized caption::

    python -m experiments.text_to_image.guard --band band.json
"""

from __future__ import annotations

import argparse
import csv
import time

import numpy as np
import torch

from experiments.text_to_image.label import LIMIT
from experiments.text_to_image.mitigation import ASSETS, RUN
from memfold import Guard, TextToImage
from memfold.mitigation.evaluate import copies
from memfold.mitigation.guard import Refused
from memfold.tensors import text_seed

IMAGES = 4


def known_latents(model: TextToImage) -> torch.Tensor:
    """Encode the training images of memorized captions."""
    data = np.load(ASSETS / "train.npz")
    some = np.isin(data["groups"], ("verbatim", "template"))
    pictures = torch.from_numpy(data["images"][some]).float()[:, None] / 255
    return torch.cat([model.encode(p) for p in pictures.expand(-1, 3, -1, -1).split(256)])


def test_prompts(kind: str, limit: int) -> list[str]:
    """Choose test prompts of a kind, evenly spaced over the list."""
    with (ASSETS / "prompts.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file, delimiter=";") if r["use"] == "test"]
    some = [r["caption"] for r in rows if r["type"] == kind]
    return [some[k * len(some) // limit] for k in range(min(limit, len(some)))]


def called(guarded: Guard, prompt: str, rows: torch.Tensor, seed: int) -> tuple[str, float, float]:
    """Call the guard; return what happened, the share of copies handed out, and the seconds."""
    first = text_seed(prompt, seed) % 2**31
    generators = [torch.Generator().manual_seed(first + k) for k in range(IMAGES)]
    start = time.monotonic()
    try:
        z = guarded(
            prompt, num_images_per_prompt=IMAGES, generator=generators, output_type="latent", **RUN
        ).images
    except Refused:
        return "refused", 0.0, time.monotonic() - start
    seconds = time.monotonic() - start
    return guarded.last, float(copies(z, rows, LIMIT).float().mean()), seconds


def main() -> None:
    """Print a row for each kind of prompt and each way to act."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--band", required=True, help="from memfold calibrate --images 4")
    parser.add_argument("--watched", type=int, default=60, help="prompts of each kind, refusing")
    parser.add_argument("--mitigated", type=int, default=8, help="prompts of each kind, mitigating")
    args = parser.parse_args()
    model = TextToImage(ASSETS / "model")
    model.pipe.set_progress_bar_config(disable=True)
    rows = known_latents(model)
    print("| guard | prompts | passed | mitigated | refused | images handed out that copy | s |")
    print("|---|---|---|---|---|---|---|")
    for action, method, n in (
        ("refuse", "reword", args.watched),
        ("mitigate", "reword", args.mitigated),
        ("mitigate", "embedding", args.mitigated),
    ):
        guarded = Guard(model, args.band, on_memorized=action, method=method)
        kinds = ("verbatim", "template", "none") if action == "refuse" else ("verbatim", "template")
        for kind in kinds:
            prompts = test_prompts(kind, n)
            found = [called(guarded, prompt, rows, 7) for prompt in prompts]
            counts = [sum(f[0] == k for f in found) for k in ("passed", "mitigated", "refused")]
            out = [f[1] for f in found if f[0] != "refused"]
            name = action if action == "refuse" else f"mitigate, {method}"
            cells = [name, f"{len(prompts)} {'ordinary' if kind == 'none' else kind}", *counts]
            cells += [
                f"{np.mean(out):.2f}" if out else "-",
                f"{np.mean([f[2] for f in found]):.1f}",
            ]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
