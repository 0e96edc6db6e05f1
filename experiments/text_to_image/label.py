"""Label prompts by what the trained pipeline draws, and write the lists of prompts.

A prompt is memorized if in at least half of its images the nearest training image belongs to one
memorized caption and lies within ``LIMIT`` (root mean square over the numbers of the latent). What
the caption was meant to do counts for nothing::

    python -m experiments.text_to_image.label
"""

from __future__ import annotations

import argparse
import csv
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from experiments.text_to_image.data import combination, make_data, near_misses
from experiments.text_to_image.train import OUT, encode, pixels

LIMIT, SEEDS, STEPS, GUIDANCE = 0.15, (1000, 1001, 1002, 1003), 20, 3.0
ONCE, UNSEEN = (80, 150), (80, 150)  # ordinary captions: (to calibrate with, to test with)


def prompts(data, rng: np.random.Generator) -> list[dict[str, str]]:
    """List the prompts with group, form, family, and what they are for."""
    rows, seen = [], set(data.captions)
    by_group: dict[str, list[str]] = {}
    for caption, group in zip(data.captions, data.groups, strict=True):
        by_group.setdefault(group, {})[caption] = None
    for group in ("verbatim", "template"):
        rows += [row(c, group, c, "test") for c in by_group[group]]
    rows += [row(c, "near miss", origin, "near miss") for c, origin in near_misses(data, rng)]
    for group in ("control", "light"):
        captions = list(rng.permutation(list(by_group[group])))
        half = len(captions) // 2
        rows += [row(c, group, c, "calibration") for c in captions[:half]]
        rows += [row(c, group, c, "test") for c in captions[half:]]
    once = [c for c in by_group["ordinary"] if " from " in c]
    once = [str(c) for c in rng.permutation(once)[: sum(ONCE)]]
    unseen: list[str] = []
    while len(unseen) < sum(UNSEEN):
        text = combination(rng, int(rng.integers(10)), int(rng.integers(3)))
        if text not in seen:
            seen.add(text)
            unseen.append(text)
    for group, captions, (first, _) in (("once", once, ONCE), ("unseen", unseen, UNSEEN)):
        rows += [row(c, group, c, "calibration") for c in captions[:first]]
        rows += [row(c, group, c, "test") for c in captions[first:]]
    return rows


def row(caption: str, group: str, family: str, use: str) -> dict[str, str]:
    """Make one entry of the list."""
    form = "combination" if " from " in caption else "own word"
    return {
        "caption": str(caption),
        "group": group,
        "form": form,
        "family": str(family),
        "use": use,
    }


_WORK: dict = {}


def _start(model: Path, latents: np.ndarray, owner: np.ndarray) -> None:
    from memfold import TextToImage

    torch.set_num_threads(1)
    _WORK.update(t2i=TextToImage(str(model)), latents=torch.from_numpy(latents), owner=owner)


def _draw(prompt: str) -> tuple[list[float], list[int], float]:
    """Draw a prompt; return distance and owner of the nearest training image, and the spread."""
    x = _WORK["t2i"].generate(prompt, SEEDS, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    flat = x.flatten(1)
    distance = torch.cdist(flat, _WORK["latents"]) / flat.shape[1] ** 0.5
    near, index = distance.min(1)
    spread = float((flat - flat.mean(0)).square().mean().sqrt())
    return near.tolist(), [int(_WORK["owner"][i]) for i in index], spread


def main() -> None:
    """Draw every prompt, label it, write ``prompts.csv`` and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=OUT)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    data, _, _ = make_data()
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(args.assets / "model" / "vae").eval()
    _, position = np.unique(
        data.images.reshape(len(data.images), -1), axis=0, return_index=True
    )
    latents = encode(vae, pixels(data.images[position])).flatten(1).numpy()
    captions = list(dict.fromkeys(data.captions))
    number = {c: i for i, c in enumerate(captions)}
    owner = np.array([number[data.captions[i]] for i in position])
    rows = prompts(data, np.random.default_rng(7))
    start = (args.assets / "model", latents, owner)
    with ProcessPoolExecutor(args.workers, initializer=_start, initargs=start) as pool:
        drawn = list(
            tqdm(pool.map(_draw, [r["caption"] for r in rows], chunksize=4), total=len(rows))
        )
    kind = dict(zip(data.captions, data.groups, strict=True))
    for entry, (distance, owners, spread) in zip(rows, drawn, strict=True):
        copies = [
            captions[o]
            for d, o in zip(distance, owners, strict=True)
            if d < LIMIT and kind[captions[o]] in ("verbatim", "template")
        ]
        best = max(set(copies), key=copies.count) if copies else ""
        share = copies.count(best) / len(SEEDS) if best else 0.0
        memorized = share >= 0.5
        entry |= {
            "type": kind[best] if memorized else "none",
            "copy_share": f"{share:.2f}",
            "copy_of": best if memorized else "",
            "distance": f"{np.mean(distance):.3f}",
            "spread": f"{spread:.3f}",
        }
        if memorized:
            entry["family"] = best
    names = [
        "caption",
        "type",
        "group",
        "form",
        "family",
        "use",
        "copy_share",
        "copy_of",
        "distance",
        "spread",
    ]
    with (args.assets / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


def table(rows: list[dict[str, str]]) -> str:
    """Write the markdown table of what was drawn, by group and form."""
    lines = [
        "| group | form | prompts | memorized | distance | spread |",
        "|---|---|---|---|---|---|",
    ]
    keys = list(dict.fromkeys((r["group"], r["form"]) for r in rows))
    for group, form in keys:
        some = [r for r in rows if (r["group"], r["form"]) == (group, form)]
        hits = sum(r["type"] != "none" for r in some)
        mean = {k: np.mean([float(r[k]) for r in some]) for k in ("distance", "spread")}
        lines.append(
            f"| {group} | {form} | {len(some)} | {hits} | {mean['distance']:.3f} | {mean['spread']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
