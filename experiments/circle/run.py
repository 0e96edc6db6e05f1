"""A circle with a point mass: overfitting-driven and data-driven memorization side by side.

The ground truth is a von Mises law on the unit circle (LID_* = 1), mixed with a point mass at the
origin (LID_* = 0). A small network is trained on a few rows of it, of which one stands alone on the
thin side of the circle, until it overfits. LID_theta falls to 0 at two places: at the isolated row,
where LID_* = 1 (overfitting: OD-Mem), and at the origin, where LID_* = 0 (the data: DD-Mem). Six
exact models in the plane show all cases of LID_theta against LID_*.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from experiments.circle.data import Rows, copies, law, reference, scale, training_rows
from experiments.circle.figure import EDGE, circle_figure, six_panels
from experiments.circle.panels import LEFT, cases, draw, measure
from experiments.kit import Run, interval, main, proportion
from experiments.mlp import MLP, as_points, seeded, train
from memfold.denoisers.base import Denoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.empirical import EmpiricalLID
from memfold.lid.flipd import flipd
from memfold.lid.lpca import LPCA
from memfold.lid.mle import MLE
from memfold.lid.twonn import TwoNN
from memfold.memorization.mmh import judge
from memfold.sampling.generate import generate
from memfold.types import Estimate

ROWS = 80
NOISES = 32


def experiment(run: Run) -> None:
    """Train on several training sets, measure both LIDs at each, and draw the six cases."""
    settings = run.pick(
        quick={"n_truth": 5000, "n_samples": 500}, full={"n_truth": 20_000, "n_samples": 2000}
    )
    found = []
    for seed in tqdm(range(run.pick(quick=6, full=12)), desc="training seeds", unit="seed"):
        generator = run.generator(seed)
        rows = training_rows(ROWS, generator)
        net = run.module(
            f"network-{seed}", build, train, x=rows.x, n=run.pick(quick=1200, full=3000),
            seed=int(torch.randint(2**31, (), generator=generator)),
        )  # fmt: skip
        made = run.arrays(
            f"measured-{seed}", measured, net=net, rows=rows.x, n_origin=rows.n_origin,
            seed=seed + 1000 * run.seed, n_map=0 if seed else run.pick(quick=31, full=61), **settings,
        )  # fmt: skip
        found.append(made)
    report(run, found)
    show_cases(run)


def build() -> MLP:
    """Build the network; sines of the coordinates let it bend between neighbouring rows."""
    return seeded(2, 0, width=128, waves=4)


def measured(
    net: MLP, rows: torch.Tensor, n_origin: int, seed: int, n_truth: int, n_samples: int, n_map: int
) -> dict[str, Any]:
    """Measure LID_theta and LID_* at every training row, judge them, and draw samples and maps."""
    source = torch.Generator().manual_seed(seed)
    train_set, model = Rows(rows, n_origin), as_points(net)
    sigma, places = scale(train_set), train_set.places
    truth = law(n_truth, source)
    theta = flipd(model, places, sigma, n_noises=NOISES, generator=source)
    loss = dsm_lid(model, places, sigma, n_noises=8 * NOISES, generator=source)
    held = reference(train_set, 3000, sigma, source)
    held_theta = flipd(model, held, sigma, n_noises=NOISES, generator=source)
    samples = generate(model, range(seed * 10_000, seed * 10_000 + n_samples), n_steps=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # point masses and scales: what is to be shown
        star = {name: _star(e, truth, places) for name, e in estimators(sigma).items()}
        held_star = _star(MLE(), truth, held)
        maps = _maps(model, truth, sigma, n_map, source) if n_map else {}
    verdict = judge(theta, star["mle"], reference_model=held_theta, reference_data=held_star)
    own, copied = copies(samples, train_set)
    fresh, fresh_copied = copies(law(50_000, source), train_set)
    return {
        "sigma": sigma, "places": places, "truth": truth[:2000], "samples": samples,
        "theta": theta.lid, "loss": loss.lid, "held": held_theta.lid, "verdict": verdict.kind,
        "reason": np.array(verdict.reason), "own": [own, copied], "fresh": [fresh, fresh_copied],
        **maps, **{f"star_{k}": v.lid for k, v in star.items()},
    }  # fmt: skip


def estimators(sigma: float) -> dict[str, Any]:
    """The data-side estimators, with their defaults; `empirical` at the model's own scale."""
    empirical = EmpiricalLID(sigma, random_state=0)
    return {"mle": MLE(), "lpca": LPCA(), "twonn": TwoNN(), "empirical": empirical}


def _star(estimator: Any, truth: torch.Tensor, x: torch.Tensor) -> Estimate:
    lid, stderr = estimator.fit(truth.numpy()).predict_with_stderr(x.numpy())
    return Estimate(torch.from_numpy(lid), torch.from_numpy(stderr), float("nan"), "data")


def _maps(
    model: Denoiser, truth: torch.Tensor, sigma: float, n: int, source: torch.Generator
) -> dict[str, Any]:
    line = torch.linspace(-EDGE, EDGE, n)
    grid = torch.cartesian_prod(line, line).flip(1)  # rows of the picture are the second axis
    theta = flipd(model, grid, sigma, n_noises=NOISES, generator=source).lid
    exact = EmpiricalLID(sigma, n_noises=NOISES, random_state=0)
    star = exact.fit(truth[:2000].numpy()).predict(grid.numpy())
    return {"map_theta": theta.reshape(n, n), "map_star": star.reshape(n, n)}


def summarize(found: list[dict[str, np.ndarray]], name: str) -> dict[str, np.ndarray]:
    """Gather one LID by group: the isolated row, the origin, the mean over the rest; (seeds,)."""
    table = [made[name] for made in found]
    return {
        "isolated": np.array([t[0] for t in table]),
        "origin": np.array([t[1] for t in table]),
        "rest": np.array([t[2:].mean() for t in table]),
    }


def report(run: Run, found: list[dict[str, np.ndarray]]) -> None:
    """State the claims, write the table and the figure."""
    names = {
        "theta": "LID_θ, FLIPD at noised points", "loss": "LID_θ, denoising loss",
        "star_mle": "LID_*, MLE", "star_lpca": "LID_*, local PCA", "star_twonn": "LID_*, TwoNN",
        "star_empirical": "LID_*, empirical denoiser",
    }  # fmt: skip
    groups = {name: summarize(found, name) for name in names}
    _claims(run, groups, found)
    rows = [
        [text, *(_cell(interval(groups[name][g])) for g in ("isolated", "origin", "rest"))]
        for name, text in names.items()
    ]
    run.table("lid", ["estimate", "isolated row", "origin", "rest of the circle"], rows)
    _verdict_table(run, [made["verdict"] for made in found])
    values = {f"{s}_{g}": groups[n][g] for s, n in (("theta", "theta"), ("star", "star_mle"))
              for g in groups["theta"]}  # fmt: skip
    run.figure("circle", circle_figure(found, values))


def _verdict_table(run: Run, kinds: list[np.ndarray]) -> None:
    names = ("overfitting", "data", "none", "undetermined")
    groups = {"isolated row": [k[:1] for k in kinds], "origin": [k[1:2] for k in kinds],
              "rest of the circle": [k[2:] for k in kinds]}  # fmt: skip
    rows = [
        [group, *(str((np.concatenate(part) == name).sum()) for name in names)]
        for group, part in groups.items()
    ]
    run.table("verdicts", ["training rows of all seeds", *names], rows)


def _cell(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def _claims(run: Run, groups: dict[str, Any], found: list[dict[str, np.ndarray]]) -> None:
    theta, star, where = groups["theta"], groups["star_mle"], "Section 5, on synthetic data"
    low, one = {"below": 0.5, "source": where}, {"above": 0.5, "below": 1.5, "source": where}
    run.claim("The model has no freedom left at the isolated row", "LID_θ, mean over training seeds",
              interval(theta["isolated"]), **low)  # fmt: skip
    run.claim("Nor at the point mass", "LID_θ at the origin", interval(theta["origin"]), **low)
    run.claim("Elsewhere it has learned a line", "LID_θ at the other rows of the circle",
              interval(theta["rest"]), **one)  # fmt: skip
    run.claim("The ground truth is a line at the isolated row", "LID_* there, MLE",
              interval(star["isolated"]), **one)  # fmt: skip
    run.claim("It is a point at the origin", "LID_* there, MLE", interval(star["origin"]), **low)
    kinds = [made["verdict"] for made in found]
    why = {
        str(m["reason"][0]) or "nothing found" for m in found if m["verdict"][0] != "overfitting"
    }
    for i, kind, text in (
        (0, "overfitting", "The verdict at the isolated row is overfitting"),
        (1, "data", "The verdict at the origin is the data"),
    ):
        hits = sum(str(k[i]) == kind for k in kinds)
        run.claim(text, "share of training seeds", proportion(hits, len(kinds)), above=0.5,
                  reason="" if i or not why else "otherwise: " + "; ".join(sorted(why)))  # fmt: skip
    called = [np.isin(k[2:], ("overfitting", "data")).mean() for k in kinds]
    run.claim("The verdict spares the other rows", "share of them that is called",
              interval(called), below=0.05)  # fmt: skip
    gained = [m["own"][1] / max(1, m["own"][0]) - m["fresh"][1] / m["fresh"][0] for m in found]
    run.claim("The model reproduces the isolated row",
              "near copies among what it generates around that row, less their share in the truth",
              interval(gained), above=0.0, source=where)  # fmt: skip


def show_cases(run: Run) -> None:
    """Draw the six cases and check that the framework names each."""
    drawn, rows, right = [], [], 0
    for i, case in enumerate(made := cases()):
        source = run.generator(100 + i)
        got: dict[str, Any] = measure(case, source)
        got |= {"truth": draw(case.truth, 1500, source), "model": draw(case.model, 400, source)}
        got["rows"] = torch.cat([LEFT, got["truth"][got["truth"][:, 0] > 0][:8]])
        drawn.append(got)
        right += got["verdict"] == case.expected
        rows.append([case.title, got["theta"], got["star"], got["gap"], got["verdict"]])
    header = ["case", "LID_θ", "LID_*", "misfit ⟨eps, eps − n⟩", "verdict"]
    run.table("cases", header, rows)
    run.figure("six_panels", six_panels(made, drawn))
    share = right / len(made)
    run.claim("The six cases are told apart", "share of exact models named as they were built",
              (share, share, share), above=0.99, source="Figure 1")  # fmt: skip


if __name__ == "__main__":
    main(experiment, __file__)
