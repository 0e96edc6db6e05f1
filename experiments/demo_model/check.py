"""Check that the demo model memorizes what it should, and only that.

Prints the denoising-loss LID of every group of images and the share of generated samples that are
near copies of training images, as markdown::

    python experiments/demo_model/check.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, UNet2DModel
from PIL import Image
from tqdm import tqdm

SIGMAS = (0.08, 0.18, 0.34, 0.7)
NEIGHBOURS = 50
BEGIN, END = "<!-- check: begin -->", "<!-- check: end -->"


def load_groups(assets: Path) -> dict[str, torch.Tensor]:
    """Load the different images of each group, float32 ``(n, 1, 16, 16)`` in [-1, 1].

    Args:
        assets: Directory with ``train.npz``, ``holdout.npz`` and ``ground_truth.json``.

    Returns:
        Groups ``repeated``, ``rare``, ``singles`` and ``held-out``; a repeated image stands once.
    """
    train = np.load(assets / "train.npz")["images"]
    holdout = np.load(assets / "holdout.npz")["images"]
    truth = json.loads((assets / "ground_truth.json").read_text())
    repeated = [rows[0] for rows in truth["duplicated"]]
    memorized = {row for rows in truth["duplicated"] for row in rows} | set(truth["rare"])
    singles = [row for row in range(len(train)) if row not in memorized]
    groups = {
        "repeated": train[repeated],
        "rare": train[truth["rare"]],
        "singles": train[singles],
        "held-out": holdout,
    }
    return {k: torch.from_numpy(v).unsqueeze(1).float() / 127.5 - 1 for k, v in groups.items()}


@torch.no_grad()
def denoising_loss_lid(
    unet: UNet2DModel,
    alphas_cumprod: torch.Tensor,
    images: torch.Tensor,
    sigma: float,
    *,
    noises: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Estimate ``E |n - eps(x + sigma n)|^2`` for each image, in dimensions (at most 256).

    Args:
        unet: The noise-predicting network.
        alphas_cumprod: The table of its schedule.
        images: Images, ``(n, 1, 16, 16)``.
        sigma: Noise level in VE coordinates, ``sigma^2 = 1 / alphas_cumprod - 1``.
        noises: Number of noises an image.
        generator: Source of the noises.

    Returns:
        The mean over the noises for each image, ``(n,)``.
    """
    log_table = 0.5 * np.log(1 / alphas_cumprod.double().numpy() - 1)
    t = float(np.interp(np.log(sigma), log_table, np.arange(len(log_table))))
    total = torch.zeros(len(images))
    for _ in range(noises):
        n = torch.randn(images.shape, generator=generator)
        eps = unet((images + sigma * n) / (1 + sigma**2) ** 0.5, torch.tensor(t)).sample
        total += (n - eps).square().flatten(1).sum(1)
    return total / noises


def copy_ratio(images: torch.Tensor, training: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare the distance to the nearest training image with that to the nearest 50.

    Args:
        images: Images to be judged, ``(n, 1, 16, 16)``.
        training: The different training images, ``(m, 1, 16, 16)``.

    Returns:
        The L2 distance to the nearest training image over the mean of the 50 smallest distances,
        and the index of the nearest training image.
    """
    distances = torch.cdist(
        images.flatten(1), training.flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    nearest, index = distances.topk(NEIGHBOURS, largest=False)
    return nearest[:, 0] / nearest.mean(1), index[:, 0]


def lid_table(pipeline: DDPMPipeline, groups: dict[str, torch.Tensor], noises: int) -> str:
    """Return the markdown table of the denoising-loss LID, mean and spread over the images."""
    generator = torch.Generator().manual_seed(0)
    head = " | ".join(f"{name} ({len(images)})" for name, images in groups.items())
    lines = [
        f"| sigma | {head} | AUROC memorized / held-out | AUROC singles / held-out |",
        "|---|" + "---|" * (len(groups) + 2),
    ]
    for sigma in tqdm(SIGMAS, desc="denoising loss"):
        lid = {
            name: denoising_loss_lid(
                pipeline.unet,
                pipeline.scheduler.alphas_cumprod,
                images,
                sigma,
                noises=noises,
                generator=generator,
            )
            for name, images in groups.items()
        }
        null = lid["held-out"]
        memorized = torch.cat([lid["repeated"], lid["rare"]])
        cells = [f"{v.mean():.1f} ± {v.std():.1f}" for v in lid.values()]
        cells += [f"{(a[:, None] < null).float().mean():.3f}" for a in (memorized, lid["singles"])]
        lines.append(f"| {sigma} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def generate(pipeline: DDPMPipeline, count: int, seed: int) -> torch.Tensor:
    """Generate images with DDIM, 50 steps, ``(count, 1, 16, 16)`` in [-1, 1]."""
    ddim = DDIMPipeline(pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config))
    images = ddim(
        batch_size=count,
        num_inference_steps=50,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def copies_table(samples: torch.Tensor, groups: dict[str, torch.Tensor], limit: float) -> str:
    """Return the markdown table of near copies among samples and, for comparison, held-out images.

    Args:
        samples: Generated images.
        groups: The groups of images.
        limit: An image is a near copy if its `copy_ratio` is below this.

    Returns:
        The table.
    """
    names = ["repeated", "rare", "singles"]
    training = torch.cat([groups[name] for name in names])
    owner = torch.cat([torch.full((len(groups[name]),), i) for i, name in enumerate(names)])
    lines = [
        f"| of | near copies (ratio < {limit:.2f}) of repeated | of rare | of singles | none |",
        "|---|---|---|---|---|",
    ]
    held_out = groups["held-out"]
    for title, images in (
        (f"{len(samples)} samples", samples),
        (f"{len(held_out)} held-out images", held_out),
    ):
        ratio, index = copy_ratio(images, training)
        copied = index[ratio < limit]
        cells = []
        for i, name in enumerate(names):
            hits = copied[owner[copied] == i]
            share, different = len(hits) / len(images), len(hits.unique())
            cells.append(f"{share:.1%} ({different} of {len(groups[name])} images)")
        lines.append(f"| {title} | {' | '.join(cells)} | {1 - len(copied) / len(images):.1%} |")
    return "\n".join(lines)


def save_grid(images: torch.Tensor, path: Path, *, columns: int = 20, zoom: int = 4) -> None:
    """Write images as one PNG, row by row."""
    rows = len(images) // columns
    grid = images[: rows * columns].reshape(rows, columns, 16, 16).transpose(1, 2)
    pixels = ((grid.reshape(rows * 16, columns * 16) + 1) * 127.5).round().clamp(0, 255)
    size = (columns * 16 * zoom, rows * 16 * zoom)
    Image.fromarray(pixels.byte().numpy()).resize(size, Image.Resampling.NEAREST).save(path)


def main() -> None:
    """Measure, print, and write into the README where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path("assets/demo"))
    parser.add_argument("--noises", type=int, default=8, help="noises an image")
    parser.add_argument("--subset", type=int, default=300, help="most images of a group in the LID")
    parser.add_argument("--samples", type=int, default=200, help="generated samples")
    parser.add_argument("--limit", type=float, default=1 / 3, help="near copy below this ratio")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--grid", type=Path, help="write the samples to this PNG")
    parser.add_argument("--write", action="store_true", help="update the README beside this file")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    pipeline = DDPMPipeline.from_pretrained(args.assets / "model")
    pipeline.unet.eval()
    groups = load_groups(args.assets)
    samples = generate(pipeline, args.samples, args.seed)
    if args.grid:
        save_grid(samples, args.grid)
    measured = {name: images[: args.subset] for name, images in groups.items()}  # rows are shuffled
    text = (
        "Denoising-loss LID, mean ± standard deviation over the images:\n\n"
        f"{lid_table(pipeline, measured, args.noises)}\n\n"
        "Near copies, by the L2 distance to the nearest training image over the mean of the "
        f"{NEIGHBOURS} smallest distances:\n\n{copies_table(samples, groups, args.limit)}\n"
    )
    print(text)
    if args.write:
        readme = Path(__file__).with_name("README.md")
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
