"""Where in the image a prompt takes freedom away: the curvature map against the garment's place.

A garment stands on a background whose rows are all alike, so that every pixel that differs from the
picture's top row is the garment's. Verbatim captions fix both; template captions fix the garment
alone; controls fix neither. For each caption the map diag J_0 - diag J_c, summed over channels and
averaged over four seeds, is averaged inside the garment's silhouette and outside it (latent places
weighed by the share that is inside)::

    python -m experiments.text_to_image.where --out out/where
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes
from tqdm import tqdm

from memfold import TextToImage
from memfold.memorization.detectors import curvature_map
from memfold.sampling.trajectory import generate_watched
from memfold.tensors import text_seed

ASSETS = Path("assets/text_to_image")
RUN: dict[str, Any] = {"guidance_scale": 3.0, "num_inference_steps": 20}
SEEDS = (0, 1, 2, 3)


def silhouette(images: np.ndarray) -> np.ndarray:
    """Where the garments stand, on average over pictures of one caption, from 0 to 1."""
    apart = np.abs(images.astype(int) - images[:, :1].astype(int)) > 2
    return np.mean([binary_fill_holes(mask) for mask in apart], axis=0)


def captions(limit: int) -> list[tuple[str, str]]:
    """Captions that draw what they are said to, by group."""
    with (ASSETS / "prompts.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file, delimiter=";") if r["form"] == "own word"]
    kinds = {"verbatim": "verbatim", "template": "template", "control": None}
    found = []
    for group, kind in kinds.items():
        own = [r for r in rows if r["group"] == group and (kind is None or r["type"] == kind)]
        found += [(group, r["caption"]) for r in own[:limit]]
    return found


def measure(model: TextToImage, group: str, caption: str, images: np.ndarray, sigma: float) -> dict:
    """Mean of the map inside and outside the garment."""
    run = generate_watched(model, caption, SEEDS, attention=False, **RUN)
    generator = torch.Generator().manual_seed(text_seed(caption, 0))
    taken = curvature_map(run, generator=generator, sigma=sigma).sum(1).mean(0).double()
    inside = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(silhouette(images))[None], taken.shape
    )[0]
    return {
        "group": group, "caption": caption, "sigma": sigma,
        "inside": float((taken * inside).sum() / inside.sum()),
        "outside": float((taken * (1 - inside)).sum() / (1 - inside).sum()),
        "area": float(inside.mean()),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Means over captions with their standard errors."""
    lines = [
        "| captions | n | σ | inside the garment | outside | inside / outside |",
        "|---|---|---|---|---|---|",
    ]
    for group, sigma in dict.fromkeys((r["group"], r["sigma"]) for r in rows):
        mine = [r for r in rows if (r["group"], r["sigma"]) == (group, sigma)]
        cells = []
        for side in ("inside", "outside"):
            values = np.array([r[side] for r in mine])
            cells.append(f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}")
        ratio = np.mean([r["inside"] for r in mine]) / np.mean([r["outside"] for r in mine])
        lines.append(f"| {group} | {len(mine)} | {sigma:g} | {' | '.join(cells)} | {ratio:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all captions and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=15, help="captions a group")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.3])
    given = parser.parse_args()
    data = np.load(ASSETS / "train.npz")
    model = TextToImage(str(ASSETS / "model"))
    rows = [
        measure(model, group, caption, data["images"][data["captions"] == caption], sigma)
        for group, caption in tqdm(captions(given.limit))
        for sigma in given.sigma
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "where.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
