"""Images: copies among what a GAN and a diffusion model generate, their LID_theta and LID_*.

Two models of Fashion-MNIST, 16 x 16, that memorized known images: 20 that stand 41 to 75 times in the
training data (data-driven: DD-Mem), and 30 that stand once and that the training loops drew as often
(overfitting-driven: OD-Mem). Thousands of images are generated, the nearest training image of each is
retrieved by calibrated l2, and a rule that knows no LID (experiments/images/label.py) calls each
exactly, reconstructively or not memorized. LID_theta: rank of dG/dz for the GAN; FLIPD, denoising
loss and normal bundle for the diffusion model. LID_*: MLE, local PCA and the empirical denoiser of the
training data. With --quick the thresholds of the rule come from bundled images; else from Debian's
package dataset-fashion-mnist. The GAN is bundled (experiments/images/train_gan.py made it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import memfold
from experiments.images.data import DEMO, GAN, Images, load_demo
from experiments.images.gan import as_gan, load
from experiments.images.label import NOT, Nearness, label, limits, nearness
from experiments.images.measure import (
    bundle_lid,
    complexity,
    data_lid,
    decoder_lid,
    diffusion_lid,
    draw,
    projected,
    scale,
    source,
)
from experiments.images.report import report
from experiments.images.subjects import Side, Subjects, verdict
from experiments.kit import Run, main
from memfold.decoders.base import Decoder

FULL = {"gan": 3000, "ddpm": 2000, "reference": 600, "projected": 40, "bundle": 48, "curve": 128}
QUICK = {"gan": 400, "ddpm": 400, "reference": 300, "projected": 20, "bundle": 18, "curve": 48}
N_STEPS = 18  # of the diffusion model's sampler, two passes each


def experiment(run: Run) -> None:
    """Generate, label, measure, judge; state the claims and draw the figures."""
    size = run.pick(quick=QUICK, full=FULL)
    images = load_demo(whole=not run.quick)
    model = str(DEMO / "model")
    sigma = sigma_of(run, model, images.holdout[: size["curve"]])
    unseen = run.arrays("unseen", _near, x=images.fresh, train=images.train)
    limit = limits(Nearness(unseen["calibrated"], unseen["row"]))
    star = run.arrays("data", data_lid, train=images.train, sigma=sigma, seed=run.seed)
    ddpm = diffusion_subjects(run, model, images, size, sigma, limit, star)
    made = [gan_subjects(run, images, size, sigma, limit, star), ddpm]
    report(run, images, made, limit, sigma)


def sigma_of(run: Run, model: str, held: torch.Tensor, *, device: str = "cpu") -> float:
    """Choose the scale on held-out images."""
    found = run.arrays("sigma", _sigma, model=model, x=held, seed=run.seed, device=device)
    return float(found["sigma"])


def gan_subjects(
    run: Run, images: Images, size: dict[str, int], sigma: float, limit: np.ndarray, star: dict
) -> Subjects:
    """Generate by the bundled GAN and judge."""
    net = load(GAN)
    n = size["gan"] + size["reference"]
    cached = run.arrays("gan", _gan, net=net, n=n, x=images.holdout[: size["projected"]],
                        sigma=sigma, seed=run.seed)  # fmt: skip
    return decoder_subjects(run, as_gan(net), images, size, sigma, limit, star, cached)


def decoder_subjects(
    run: Run, decoder: Decoder, images: Images, size: dict[str, int], sigma: float,
    limit: np.ndarray, star: dict, measured: dict[str, np.ndarray] | None = None,
) -> Subjects:  # fmt: skip
    """Generate by a GAN and judge; the reference is more images of it, copies left out.

    Held-out images have no latents: G does not reach them (`Subjects.misses`). So the reference are
    images that G made beside the subjects and that the labels' rule, which knows no LID, does not
    call copies.
    """
    n = size["gan"]
    if measured is None:
        held = images.holdout[: size["projected"]]
        measured = generated(decoder, n + size["reference"], held, sigma, run.seed)
    every = torch.from_numpy(measured["x"])
    labels, row = label(_nearness(run, "gan-near", every, images), limit)
    covariates = complexity(every, sigma)["features"]
    sides = [
        Side(measured["soft"][k], np.zeros(len(k)), star["mle"][row[k]], star["mle_stderr"][row[k]],
             covariates[k])
        for k in (np.arange(n), n + np.flatnonzero(labels[n:] == NOT))
    ]  # fmt: skip
    theta = {name: measured[name][:n].astype(float) for name in ("rank", "soft")}
    return _subjects("GAN", every[:n], labels, row, images, theta, star, sigma,
                     verdict(*sides, sigma), len(sides[1].features),
                     float(np.median(measured["held_error"])))  # fmt: skip


def generated(
    decoder: Decoder, n: int, held: torch.Tensor, sigma: float, seed: int
) -> dict[str, Any]:
    """Images of a GAN with LID_theta at each, and how far it stays from held-out images."""
    z = torch.randn(n, *(decoder.latent_shape or ()), generator=source(seed))
    made = decoder_lid(decoder, z, sigma)
    made["held_error"] = projected(decoder, held, seed=seed)["error"]
    return {name: values.numpy(force=True) for name, values in made.items()}


def diffusion_subjects(
    run: Run, model: str, images: Images, size: dict[str, int], sigma: float, limit: np.ndarray,
    star: dict, device: str = "cpu",
) -> Subjects:  # fmt: skip
    """Generate by the diffusion model and judge against held-out images."""
    found = run.arrays("ddpm", _draw, model=model, n=size["ddpm"], seed=run.seed, device=device)
    x, held = torch.from_numpy(found["x"]), images.holdout[: size["reference"]]
    labels, row = label(_nearness(run, "ddpm-near", torch.cat([x, held]), images), limit)
    lid = run.arrays("ddpm-lid", _diffusion, model=model, x=x, sigma=sigma, products=True,
                     seed=run.seed, device=device)  # fmt: skip
    ref = run.arrays("ddpm-reference", _diffusion, model=model, x=held, sigma=sigma,
                     products=False, seed=run.seed, device=device)  # fmt: skip
    some = spread_over(labels[: len(x)], size["bundle"], run.generator(2))
    slow = run.arrays(
        "ddpm-bundle", _bundle, model=model, x=x[some], sigma=sigma, seed=run.seed, device=device
    )
    sides = [
        Side(t["dsm"], t["dsm_stderr"], star["mle"][r], star["mle_stderr"][r],
             complexity(v, sigma)["features"], t["misfit"])
        for t, r, v in ((lid, row[: len(x)], x), (ref, row[len(x) :], held))
    ]  # fmt: skip
    theta = {name: lid[name].astype(float) for name in ("flipd", "dsm")}
    for rule in ("gap", "threshold"):
        theta[rule] = np.full(len(x), np.nan)
        theta[rule][some] = slow[rule]
    return _subjects("DDPM", x, labels, row, images, theta, star, sigma, verdict(*sides, sigma),
                     len(held))  # fmt: skip


def spread_over(labels: np.ndarray, n: int, generator: torch.Generator) -> np.ndarray:
    """Choose about n images, as many of each label as there are, at random."""
    chosen = []
    for value in np.unique(labels):
        rows = np.flatnonzero(labels == value)
        order = torch.randperm(len(rows), generator=generator).numpy()
        chosen.append(rows[order[: n // len(np.unique(labels))]])
    return np.sort(np.concatenate(chosen))


def _subjects(
    name: str, x: Any, labels: np.ndarray, row: np.ndarray, images: Images, theta: dict,
    star: dict, sigma: float, kind: np.ndarray, reference: int, misses: float | None = None,
) -> Subjects:  # fmt: skip
    row = row[: len(x)]
    stars = {k: star[k][row] for k in ("mle", "lpca", "empirical")}
    facts = complexity(x, sigma)
    return Subjects(name, x, labels[: len(x)], row, images.origin[row], theta, stars,
                    facts["png"], facts["features"], kind, reference, misses)  # fmt: skip


def _nearness(run: Run, name: str, x: torch.Tensor, images: Images) -> Nearness:
    found = run.arrays(name, _near, x=x, train=images.train)
    return Nearness(found["calibrated"], found["row"])


def _near(x: torch.Tensor, train: torch.Tensor) -> dict[str, Any]:
    found = nearness(x, train)
    return {"calibrated": found.calibrated, "row": found.row}


def _sigma(model: str, x: torch.Tensor, seed: int, device: str = "cpu") -> dict[str, Any]:
    return {"sigma": scale(memfold.load(model, device=device), x, seed=seed)}


def _draw(model: str, n: int, seed: int, device: str = "cpu") -> dict[str, Any]:
    return {"x": draw(memfold.load(model, device=device), n, n_steps=N_STEPS, seed=seed)}


def _diffusion(
    model: str, x: torch.Tensor, sigma: float, seed: int, products: bool, device: str = "cpu"
) -> dict[str, Any]:
    return diffusion_lid(memfold.load(model, device=device), x, sigma, seed=seed, products=products)


def _bundle(
    model: str, x: torch.Tensor, sigma: float, seed: int, device: str = "cpu"
) -> dict[str, Any]:
    return bundle_lid(memfold.load(model, device=device), x, sigma, seed=seed)


def _gan(net: torch.nn.Module, n: int, x: torch.Tensor, sigma: float, seed: int) -> dict[str, Any]:
    return generated(as_gan(net), n, x, sigma, seed)


if __name__ == "__main__":
    main(experiment, __file__)
