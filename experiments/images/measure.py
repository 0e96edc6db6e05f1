"""LID_theta and LID_* at images, and their complexity; the same functions for every model.

One scale sigma serves all: the knee of the diffusion model's mean curve over held-out images, the
library's rule, which looks at no generated image and at no answer. The rank of the GAN's Jacobian is
counted at that sigma too: singular values of dG/dz above it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from memfold.audit.measure import choose_sigma
from memfold.decoders.base import Decoder
from memfold.decoders.search import find_latents
from memfold.denoisers.base import Denoiser
from memfold.lid.decoder_rank import singular_values
from memfold.lid.dsm import denoising_residuals
from memfold.lid.empirical import EmpiricalLID
from memfold.lid.flipd import flipd
from memfold.lid.lpca import LPCA
from memfold.lid.mle import MLE
from memfold.lid.noised import mean_over_noises
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.scale import default_sigmas, lid_curve
from memfold.memorization.complexity import features, png_size
from memfold.sampling.generate import generate

NOISES = 16  # of the denoising loss
FLIPD_NOISES = 4
PIECE = 100  # images a step of a progress bar
NEAR = 20  # neighbours of the data-side estimators, as in an audit


def pieces(n: int, label: str, size: int = PIECE) -> Iterator[slice]:
    """Walk over n items with a progress bar."""
    with tqdm(total=n, desc=label, unit="image") as bar:
        for start in range(0, n, size):
            yield slice(start, min(n, start + size))
            bar.update(min(n, start + size) - start)


def source(seed: int) -> torch.Generator:
    """Return a generator with this seed; noises are keyed by image, so each piece may have it."""
    return torch.Generator().manual_seed(seed)


def scale(model: Denoiser, holdout: Tensor, *, seed: int) -> float:
    """Choose sigma at the knee of the mean LID curve over held-out images."""
    grid = default_sigmas(model)
    x = holdout.to(model.device)
    curve = lid_curve(model, x, grid, n_noises=4, generator=source(seed), progress=True)
    return choose_sigma(grid, curve.lid.tolist())


def draw(model: Denoiser, n: int, *, n_steps: int, seed: int) -> Tensor:
    """Generate n images; an image depends on its own seed alone."""
    first = 1_000_003 * seed
    parts = [
        generate(model, range(first + part.start, first + part.stop), n_steps=n_steps)
        for part in pieces(n, "generating")
    ]
    return torch.cat(parts).clamp(-1, 1).cpu()


def diffusion_lid(
    model: Denoiser, x: Tensor, sigma: float, *, seed: int, products: bool
) -> dict[str, Any]:
    """LID_theta of a diffusion model.

    Args:
        model: the denoiser.
        x: images (m, c, h, w).
        sigma: the scale.
        seed: of the noises and probes.
        products: FLIPD as well, which needs products with the Jacobian.

    Returns:
        dsm and its standard error, misfit <eps, eps - n>, and flipd if asked for; (m,) each.
    """
    columns: dict[str, list[Tensor]] = {"dsm": [], "dsm_stderr": [], "misfit": [], "flipd": []}
    for part in pieces(len(x), "LID_theta"):
        some = x[part].to(model.device)
        loss, gap = denoising_residuals(model, some, sigma, n_noises=NOISES, generator=source(seed))
        found = mean_over_noises(loss.flatten(), len(gap), sigma, "")
        columns["dsm"].append(found.lid)
        columns["dsm_stderr"].append(found.stderr)
        columns["misfit"].append(gap.mean(1))
        if products:
            traced = flipd(
                model, some, sigma, n_noises=FLIPD_NOISES, trace="hutchinson",
                generator=source(seed),
            )  # fmt: skip
            columns["flipd"].append(traced.lid)
    return {name: torch.cat(parts).cpu() for name, parts in columns.items() if parts}


def bundle_lid(model: Denoiser, x: Tensor, sigma: float, *, seed: int) -> dict[str, Any]:
    """LID_theta of a diffusion model by the normal bundle, 4 D residuals an image, (m,) each.

    Normals are counted before the largest drop of the singular values ("gap", the library's default),
    and by its threshold.
    """
    made: dict[str, list[Tensor]] = {"gap": [], "threshold": []}
    for part in pieces(len(x), "normal bundle", 4):
        some = x[part].to(model.device)
        for rule, found in made.items():
            estimate = normal_bundle(model, some, sigma, rule=rule, generator=source(seed))
            found.append(estimate.lid)
    return {name: torch.cat(found).cpu() for name, found in made.items()}


def decoder_lid(decoder: Decoder, z: Tensor, sigma: float) -> dict[str, Any]:
    """LID_theta of a GAN at G(z): rank of dG/dz at scale sigma, and the images.

    As `memfold.decoder_rank` has it with the rules "threshold" and "soft", of one Jacobian: how many
    singular values s exceed sigma, and the sum of s^2 / (s^2 + sigma^2).
    """
    columns: dict[str, list[Tensor]] = {"x": [], "rank": [], "soft": []}
    for part in pieces(len(z), "rank of dG/dz"):
        with torch.no_grad():
            columns["x"].append(decoder(some := z[part].to(decoder.device)))
        s = singular_values(decoder, some)
        columns["rank"].append((s > sigma).sum(1).to(s))
        columns["soft"].append((s**2 / (s**2 + sigma**2)).sum(1))
    return {name: torch.cat(parts).cpu() for name, parts in columns.items()}


def projected(decoder: Decoder, x: Tensor, *, seed: int) -> dict[str, Any]:
    """The latents whose images come nearest to x, and the error left, root mean square."""
    options: dict[str, Any] = {"n_starts": 2, "n_steps": 100, "n_refine": 0, "generator": source(seed)}  # fmt: skip
    found = [
        find_latents(decoder, x[part].to(decoder.device), **options)
        for part in pieces(len(x), "projecting")
    ]
    return {"z": torch.cat([f.z for f in found]), "error": torch.cat([f.error for f in found])}


def data_lid(train: Tensor, sigma: float, *, seed: int) -> dict[str, Any]:
    """LID_* at every training row, by all others: MLE, local PCA, the empirical denoiser; (n,).

    A copy of a training row stands on that row, so LID_* of a generated image is read there.
    """
    flat = train.flatten(1).double().numpy()
    estimators = {"mle": MLE(NEAR), "lpca": LPCA(NEAR),
                  "empirical": EmpiricalLID(sigma, at="x", random_state=seed)}  # fmt: skip
    made: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # point masses and single rows: what is to be shown
        for name, estimator in tqdm(estimators.items(), desc="LID_*", unit="estimator"):
            made[name], made[f"{name}_stderr"] = estimator.fit_predict_with_stderr(flat)
    return made


def complexity(x: Tensor, sigma: float) -> dict[str, np.ndarray]:
    """PNG size in bytes, (m,), and the library's covariates at this scale, (m, 3)."""
    return {"png": png_size(x.clamp(-1, 1)).numpy(), "features": features(x, sigma).numpy()}
