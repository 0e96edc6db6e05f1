"""What the experiment says: its claims, tables and figures."""

from __future__ import annotations

import numpy as np

from experiments.images import claims
from experiments.images.data import Images
from experiments.images.figure import SHOWN, histograms, regions
from experiments.images.label import VIEWS
from experiments.images.subjects import Subjects
from experiments.kit import Run
from memfold.memorization.evaluate import KINDS


def report(run: Run, images: Images, made: list[Subjects], limit: np.ndarray, sigma: float) -> None:
    """State the claims, write the tables and draw the figures."""
    for s in made:
        claims.low_lid(run, s)
    for s in made:
        claims.both_kinds(run, s)
    _setting(run, images, made, limit, sigma)
    run.table("labels", ["model", "label", "of images seen once", "of repeated ones", "of rare ones"],
              [row for s in made for row in claims.label_rows(s)])  # fmt: skip
    run.table("lid", ["model", "estimate, mean", "exactly", "reconstructively", "not memorized"],
              [row for s in made for row in claims.lid_rows(s)])  # fmt: skip
    run.table("verdicts", ["model", "known from labels and data", *KINDS],
              [row for s in made for row in claims.verdict_rows(s)])  # fmt: skip
    _complexity(run, made)
    run.figure("regions", regions(made, images.train))
    run.figure("histograms", histograms(made, claims.ESTIMATORS))


def _setting(
    run: Run, images: Images, made: list[Subjects], limit: np.ndarray, sigma: float
) -> None:
    facts = [[f"limit of view {v}", f"{x:.3f}"] for v, x in zip(VIEWS, limit, strict=True)]
    facts += [["unseen real images that fix them", len(images.fresh)], ["σ", f"{sigma:.3f}"]]
    for s in made:
        facts.append([f"reference of the verdict, {s.model}", s.reference])
        if s.misses is not None:
            what = f"{s.model}, root mean square error at held-out images, median"
            facts.append([what, f"{s.misses:.2f}"])
    run.table("setting", ["what", "value"], facts)


def _complexity(run: Run, made: list[Subjects]) -> None:
    rows = []
    for s in made:
        name = SHOWN[s.model]
        found = claims.complexity(run, s, name)
        rows.append([s.model, claims.ESTIMATORS[name], *map(claims.cell, found.values())])
    header = ["model", "estimate", "LID_θ with PNG size, not memorized", "memorized with LID_θ",
              "with LID_θ / PNG size", "given PNG size", "given the verdict's covariates",
              "fall by PNG size", "fall by covariates"]  # fmt: skip
    run.table("complexity", header, rows)
