"""Label prompts by what the trained pipeline draws, and write the lists of prompts.

A drawn image is a copy of a memorized caption's if its latent lies within ``LIMIT`` (root mean
square) of one of the caption's training rows, or if it matches the garment's own pixels (its
silhouette and a rim of two pixels) better than any real garment of the test set matches any
memorized one: backgrounds do not count there, since they vary within a template. A prompt is
``verbatim`` or ``template`` if at least half of its images are copies for one caption. Of the
others, a prompt whose images vary less than those of any control caption is ``near``: it draws a
blend or a variation of something known by heart, and is neither a copy nor an ordinary prompt. What
a caption was meant to do counts for nothing::

    python -m experiments.text_to_image.label
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from scipy.ndimage import binary_dilation, binary_fill_holes
from tqdm import tqdm

from experiments.text_to_image.data import (
    Captioned,
    combination,
    compose,
    make_data,
    near_misses,
    read_idx,
)
from experiments.text_to_image.train import OUT, encode, pixels

LIMIT, SEEDS, STEPS, GUIDANCE, RIM = 0.15, (1000, 1001, 1002, 1003), 20, 3.0, 2
ONCE, UNSEEN = (80, 150), (80, 150)  # ordinary captions: (to calibrate with, to test with)


def prompts(data, rng: np.random.Generator) -> list[dict[str, str]]:
    """List the prompts with group, form, family, and what they are for."""
    rows, seen = [], set(data.captions)
    by_group: dict[str, list[str]] = {}
    for caption, group in zip(data.captions, data.groups, strict=True):
        by_group.setdefault(group, {})[caption] = None
    for group in ("verbatim", "template"):
        rows += [row(c, group, c, "test") for c in by_group[group]]
    rows += [row(c, "near miss", origin, "test") for c, origin in near_misses(data, rng)]
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


def memorized_latents(
    data: Captioned, vae: AutoencoderKL, names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the latents of all rows of memorized captions, and the number of their caption."""
    number = {caption: i for i, caption in enumerate(names)}
    rows = [i for i, caption in enumerate(data.captions) if caption in number]
    latents = encode(vae, pixels(data.images[rows])).flatten(1).numpy()
    return latents, np.array([number[data.captions[i]] for i in rows])


def memorized_garments(data: Captioned) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the captions of the memorized garments, the garments, and where they are.

    Returns:
        Captions; images of 32 x 32 on black, uint8; silhouettes with a rim, bool.
    """
    garments = read_idx("train-images-idx3-ubyte.gz")
    first = {
        c: i
        for i, (c, g) in reversed(list(enumerate(zip(data.captions, data.groups, strict=True))))
        if g in ("verbatim", "template")
    }
    padded = np.pad(garments[data.garment[list(first.values())]], ((0, 0), (2, 2), (2, 2)))
    inside = np.stack([binary_fill_holes(image > 8) for image in padded])
    return list(first), padded, inside


def rim(inside: np.ndarray) -> np.ndarray:
    """Return the ring of background around each silhouette."""
    return np.stack([binary_dilation(m, iterations=RIM) for m in inside]) & ~inside


class Matcher:
    """Distance of pictures to memorized garments, whatever background they stand on.

    The garment's own pixels must agree; in the rim around it, the picture must be its own
    background there: the distance is to the picture's median in the rim.
    """

    def __init__(self, vae: AutoencoderKL, garments: np.ndarray, inside: np.ndarray) -> None:
        # Seen through the autoencoder, as the pipeline's pictures are.
        on_grey = np.where(inside, garments, 64).astype(np.uint8)
        with torch.no_grad():
            seen = vae.decode(encode(vae, pixels(on_grey))).sample.mean(1)
        self.garments, self.inside = seen.numpy(), inside
        self.rim = rim(inside)

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Return root mean square distances, ``(pictures, garments)``, pixels in [-1, 1]."""
        out = np.empty((len(pictures), len(self.garments)))
        for j, (garment, inside, ring) in enumerate(
            zip(self.garments, self.inside, self.rim, strict=True)
        ):
            error = ((pictures - garment) ** 2)[:, inside].sum(1)
            around = pictures[:, ring]
            error += ((around - np.median(around, 1, keepdims=True)) ** 2).sum(1)
            out[:, j] = np.sqrt(error / (inside.sum() + ring.sum()))
        return out


_WORK: dict = {}


def _start(assets: Path, garments: np.ndarray, inside: np.ndarray, latents: tuple) -> None:
    from memfold import TextToImage

    torch.set_num_threads(1)
    t2i = TextToImage(str(assets / "model"))
    rows, owner = (torch.from_numpy(part) for part in latents)
    _WORK.update(t2i=t2i, matcher=Matcher(t2i.pipe.vae, garments, inside), rows=rows, owner=owner)


def _draw(prompt: str) -> dict[str, list]:
    """Draw a prompt; return the nearest garments and rows, and the spread."""
    t2i = _WORK["t2i"]
    x = t2i.generate(prompt, SEEDS, num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    with torch.no_grad():
        pictures = (t2i.decode(x) * 2 - 1).mean(1).numpy()
    garment = _WORK["matcher"](pictures)
    flat = x.flatten(1)
    row, index = (torch.cdist(flat, _WORK["rows"]) / flat.shape[1] ** 0.5).min(1)
    return {
        "garment": garment.min(1).tolist(),
        "garment_of": garment.argmin(1).tolist(),
        "row": row.tolist(),
        "row_of": _WORK["owner"][index].tolist(),
        "spread": float((x - x.mean(0)).square().mean().sqrt()),
    }


def real_limit(vae: AutoencoderKL, matcher: Matcher) -> float:
    """Return the smallest distance of 5,000 real test garments to any memorized one."""
    garments = read_idx("t10k-images-idx3-ubyte.gz")[:5000]
    pictures = compose(garments, np.random.default_rng(3))
    with torch.no_grad():
        seen = [
            vae.decode(encode(vae, pixels(part))).sample.mean(1) for part in np.split(pictures, 20)
        ]
    return float(matcher(torch.cat(seen).numpy()).min())


def main() -> None:
    """Draw every prompt, label it, write ``prompts.csv`` and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=OUT)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    data, _, _ = make_data()
    names, garments, inside = memorized_garments(data)
    vae = AutoencoderKL.from_pretrained(args.assets / "model" / "vae").eval()
    limit = real_limit(vae, Matcher(vae, garments, inside))
    print(f"limit, the nearest of 5,000 real garments: {limit:.3f}")
    rows = prompts(data, np.random.default_rng(7))
    start = (args.assets, garments, inside, memorized_latents(data, vae, names))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, initializer=_start, initargs=start) as pool:
        captions = [r["caption"] for r in rows]
        drawn = list(tqdm(pool.map(_draw, captions, chunksize=4), total=len(rows)))
    kind = dict(zip(data.captions, data.groups, strict=True))
    least = min(d["spread"] for r, d in zip(rows, drawn, strict=True) if r["group"] == "control")
    print(f"least spread of a control caption: {least:.3f}")
    for entry, found in zip(rows, drawn, strict=True):
        label(entry, found, limit, least, names, kind)
    write(rows, args.assets / "prompts.csv")
    write_lists(rows, args.assets)
    print(table(rows))


def label(
    entry: dict[str, str], found: dict, limit: float, least: float, names: list[str], kind: dict
) -> None:
    """Fill in what was drawn, and what follows."""
    copies = [
        {names[i] for d, i, far in ((garment, a, limit), (row, b, LIMIT)) if d < far}
        for garment, a, row, b in zip(
            found["garment"], found["garment_of"], found["row"], found["row_of"], strict=True
        )
    ]
    all_of = [name for some in copies for name in some]
    best = max(sorted(set(all_of)), key=all_of.count) if all_of else ""
    share = all_of.count(best) / len(SEEDS) if best else 0.0
    memorized = share >= 0.5
    other = "near" if found["spread"] < least else "none"
    entry |= {
        "type": kind[best] if memorized else other,
        "copy_share": f"{share:.2f}",
        "copy_of": best if memorized else "",
        "garment_distance": f"{np.mean(found['garment']):.3f}",
        "latent_distance": f"{np.mean(found['row']):.3f}",
        "spread": f"{found['spread']:.3f}",
    }
    if memorized:
        entry["family"] = best


def write(rows: list[dict[str, str]], path: Path) -> None:
    """Write the list."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


def write_lists(rows: list[dict[str, str]], assets: Path) -> None:
    """Write ``ordinary.txt`` to calibrate with, and ``suspects.txt`` for the demo's audit."""
    ordinary = [r["caption"] for r in rows if (r["use"], r["type"]) == ("calibration", "none")]
    (assets / "ordinary.txt").write_text("\n".join(ordinary) + "\n", encoding="utf-8")
    rng, suspects = np.random.default_rng(5), []
    for kind, count in (("verbatim", 8), ("template", 4), ("none", 28)):
        some = [r["caption"] for r in rows if (r["use"], r["type"]) == ("test", kind)]
        suspects += [str(c) for c in rng.permutation(some)[:count]]
    text = "\n".join(str(c) for c in rng.permutation(suspects)) + "\n"
    (assets / "suspects.txt").write_text(text, encoding="utf-8")


def table(rows: list[dict[str, str]]) -> str:
    """Write the markdown table of what was drawn, by group and form."""
    lines = [
        "| group | form | prompts | verbatim | template | near | garment distance | spread |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, form in dict.fromkeys((r["group"], r["form"]) for r in rows):
        some = [r for r in rows if (r["group"], r["form"]) == (group, form)]
        counts = [sum(r["type"] == k for r in some) for k in ("verbatim", "template", "near")]
        means = [np.mean([float(r[k]) for r in some]) for k in ("garment_distance", "spread")]
        cells = [group, form, len(some), *counts, *(f"{m:.3f}" for m in means)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
