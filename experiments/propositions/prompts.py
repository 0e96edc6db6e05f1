"""The bundled text-to-image pipeline: LID with and without a prompt, and under guidance."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.base import Denoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.memorization.detectors.base import NOISES, PROBES, SIGMA
from memfold.sampling.grids import karras_sigmas
from memfold.sampling.solvers import euler
from memfold.tensors import text_seed

ASSETS = Path(__file__).parents[2] / "assets" / "text_to_image"
STEPS = 20


def choose(memorized: int, ordinary: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Choose prompts that draw a copy and prompts that draw none, by the shipped labels.

    Args:
        memorized: how many of the captions that draw their own training image.
        ordinary: how many of those that do not: controls, seen once, never seen, in equal shares.
        seed: of the choice.

    Returns:
        The prompts and whether each is memorized.
    """
    with (ASSETS / "prompts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    rng = np.random.default_rng(seed)
    known = [r["caption"] for r in rows if r["group"] == r["type"] == "verbatim"]
    picked = rng.choice(known, memorized, replace=False).tolist()
    for group, part in zip(
        ("control", "once", "unseen"), np.array_split(range(ordinary), 3), strict=True
    ):
        own = [r["caption"] for r in rows if r["group"] == group and r["type"] == "none"]
        picked += rng.choice(own, len(part), replace=False).tolist()
    return picked, np.arange(len(picked)) < memorized


def conditioning(
    prompts: Sequence[str], images: int, sigmas: Sequence[float], seed: int
) -> dict[str, Any]:
    """Measure LID(x) and LID(x | c) at images of each prompt, with common noises and probes.

    Args:
        prompts: the conditions c.
        images: images a prompt, drawn under it without guidance.
        sigmas: the scales.
        seed: keys everything random.

    Returns:
        `flipd_without`, `flipd_with`, `loss_without`, `loss_with`: (prompts, sigmas).
    """
    model, table = TextToImage(ASSETS / "model"), []
    plain = model.denoiser()
    for prompt in tqdm(prompts, desc="with and without the prompt", unit="prompt"):
        own, key = model.denoiser(prompt), text_seed(prompt, seed)
        x = draw(model, own, images, key)
        table.append([[_measure(d, x, s, key) for d in (plain, own)] for s in sigmas])
    lids = np.array(table)  # (prompts, sigmas, without or with, estimator)
    names = {"flipd": 0, "loss": 1}
    return {
        f"{name}_{side}": lids[:, :, j, k]
        for name, k in names.items()
        for j, side in enumerate(("without", "with"))
    }


def guidance(
    prompts: Sequence[str], images: int, scales: Sequence[float], seed: int
) -> dict[str, Any]:
    """Measure the LID of the guided model D_w at images that are generated with the same w.

    Args:
        prompts: the conditions.
        images: images a prompt and scale, from the same noise at every scale.
        scales: values of w.
        seed: keys everything random.

    Returns:
        At these images, (prompts, scales): the LID of D_w by FLIPD at noised points (`guided`), by
        FLIPD as published (`published`) and by the denoising loss (`loss`); `conditional` and
        `unconditional`, FLIPD of D_c and D_0; the first `image` of each, in [0, 1].
    """
    model, table, drawn = TextToImage(ASSETS / "model"), [], []
    plain = model.denoiser()
    for prompt in tqdm(prompts, desc="guidance", unit="prompt"):
        own, key, row = model.denoiser(prompt), text_seed(prompt, seed), []
        for w in scales:
            guided = model.denoiser(prompt, guidance_scale=w)
            x = draw(model, plain if w == 0 else own if w == 1 else guided, images, key)
            drawn.append(model.decode(x[:1]).detach().clamp(0, 1)[0])
            lids = [_flipd(d, x, SIGMA, key) for d in (guided, own, plain)]
            row.append([*lids, _flipd(guided, x, SIGMA, key, at="x"), _loss(guided, x, SIGMA, key)])
        table.append(row)
    lids = np.array(table)
    names = ("guided", "conditional", "unconditional", "published", "loss")
    shape = (len(prompts), len(scales))
    pictures = torch.stack(drawn).unflatten(0, shape).to(torch.float16)
    return {name: lids[:, :, k] for k, name in enumerate(names)} | {"image": pictures}


def draw(model: TextToImage, denoiser: Denoiser, n: int, seed: int) -> Tensor:
    """Draw n latents by Euler's method (DDIM) on the grid of Karras et al. (2022)."""
    low, high = model.schedule.sigma_min, model.schedule.sigma_max
    sigmas = karras_sigmas(low, high, STEPS).clamp(low, high).tolist()
    noise = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(seed))
    x = sigmas[0] * noise
    for step in euler(denoiser, x, sigmas):
        x = step.x
    return x


def _measure(denoiser: Denoiser, x: Tensor, sigma: float, seed: int) -> list[float]:
    return [_flipd(denoiser, x, sigma, seed), _loss(denoiser, x, sigma, seed)]


def _flipd(denoiser: Denoiser, x: Tensor, sigma: float, seed: int, at: str = "noised") -> float:
    """FLIPD, mean over images; the generator starts alike for every model."""
    same = torch.Generator().manual_seed(seed)
    options = {"n_noises": NOISES, "trace": "hutchinson", "n_probes": PROBES, "at": at}
    return float(flipd(denoiser, x, sigma, generator=same, **options).lid.mean())


def _loss(denoiser: Denoiser, x: Tensor, sigma: float, seed: int) -> float:
    same = torch.Generator().manual_seed(seed)
    return float(dsm_lid(denoiser, x, sigma, generator=same).lid.mean())
