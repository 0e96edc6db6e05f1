"""From measurements to what stands in audit.json: counts, rates, comparison with known answers."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

from memfold.memorization.conformal import share_interval

KINDS = ("overfitting", "data", "none", "undetermined")
_PACKAGES = ("memfold", "torch", "diffusers", "numpy", "scipy", "scikit-learn", "pyarrow")


def rate(count: int, n: int) -> dict[str, float | int]:
    """Describe a share with its 95 % Clopper-Pearson interval.

    Args:
        count: hits.
        n: trials.

    Returns:
        count, n, rate (None where nothing was tried), low, high.
    """
    low, high = share_interval(count, n)
    value: Any = count / n if n else None
    return {"count": count, "n": n, "rate": value, "value": value, "low": low, "high": high}


def counts_and_rates(kinds: Sequence[str]) -> tuple[dict[str, int], dict[str, Any]]:
    """Count the verdicts.

    Args:
        kinds: one verdict a subject.

    Returns:
        Counts by kind, and rates by kind; undetermined subjects count into the upper end of the
        share of memorized ones.
    """
    found = Counter(kinds)
    counts = {kind: found.get(kind, 0) for kind in KINDS}
    rates = {kind: rate(count, len(kinds)) for kind, count in counts.items()}
    called = counts["overfitting"] + counts["data"]
    rates["memorized"] = rate(called, len(kinds))
    # What could not be told may be memorized: the share's upper end counts it.
    rates["memorized"]["high"] = rate(called + counts["undetermined"], len(kinds))["high"]
    return counts, rates


def against_truth(kinds: Sequence[str], truth: Sequence[str]) -> dict[str, Any]:
    """Compare verdicts with known answers.

    Args:
        kinds: one verdict a subject.
        truth: one known kind a subject: "overfitting", "data" or "none".

    Returns:
        Labels, confusion (true kind, then called kind), precision and recall with intervals, for
        each kind of memorization, and of being memorized at all.
    """
    labels = ("overfitting", "data", "none")
    pairs = Counter(zip(truth, kinds, strict=True))
    confusion = {t: {k: pairs.get((t, k), 0) for k in KINDS} for t in labels}
    precision, recall = {}, {}
    for kind in ("overfitting", "data"):
        hits = confusion[kind][kind]
        precision[kind] = rate(hits, sum(row[kind] for row in confusion.values()))
        recall[kind] = rate(hits, sum(confusion[kind].values()))
    memorized = ("overfitting", "data")
    hits = sum(confusion[t][k] for t in memorized for k in memorized)
    called = sum(confusion[t][k] for t in labels for k in memorized)
    precision["memorized"] = rate(hits, called)
    recall["memorized"] = rate(hits, sum(sum(confusion[t].values()) for t in memorized))
    return {
        "labels": list(labels),
        "confusion": confusion,
        "precision": precision,
        "recall": recall,
    }


def versions() -> dict[str, str]:
    """List the versions of everything that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def methods(
    sigma: float,
    chosen: bool,
    plan_estimator: str,
    data_estimator: str,
    n: int,
    source: str,
    alpha: float,
    noises: int,
) -> list[str]:
    """Say in plain words what was done.

    Args:
        sigma: the scale.
        chosen: whether it was chosen on the reference population.
        plan_estimator: model-side estimator.
        data_estimator: data-side estimator.
        n: size of the reference population.
        source: "holdout" or "train".
        alpha: wanted false-discovery rate.
        noises: noises an image.

    Returns:
        Paragraphs.
    """
    by = {
        "dsm": "the denoising loss (Yeats et al. 2025): the part of a noise that the model cannot "
        "remove is the part along its manifold",
        "flipd": "FLIPD (Kamkari et al. 2024): the trace of the denoiser's Jacobian at noised "
        "points",
        "spectral": "a soft count of the eigenvalues near 1 of the denoiser's Jacobian, by "
        "stochastic Lanczos quadrature",
    }[plan_estimator]
    data = {
        "empirical": "FLIPD of the training data's own closed-form denoiser at the same scale",
        "mle": "the maximum-likelihood estimate from nearest neighbours (Levina and Bickel 2004)",
        "lpca": "local principal component analysis (Fukunaga and Olsen 1971)",
        "twonn": "TwoNN (Facco et al. 2017)",
    }[data_estimator]
    how = (
        "It is the knee of the reference population's mean curve over scales; no subject and no "
        "known answer enters its choice."
        if chosen
        else "It was given by the user."
    )
    population = (
        f"{n} held-out images that the model has not seen"
        if source == "holdout"
        else f"{n} distinct training images, since no held-out images were given"
    )
    return [
        f"The model's local intrinsic dimension (LID) at an image is the number of directions in "
        f"which the model still varies it. It is measured at noise level sigma = {sigma:.3g} by "
        f"{by}, averaged over {noises} noises. {how}",
        "The data's own LID is measured on the training images around it, itself left out, by "
        f"{data}.",
        f"Both are compared with a reference population of {population}. Simple images have a low "
        "LID without being memorized: the LID that an image of the same complexity has in the "
        "reference population is expected of it, and what is missing from that is the effect.",
        "The p-value is the rank of the subject within the reference population (full conformal "
        "prediction): it holds without assumptions on distributions, as long as a subject that is "
        "not memorized is exchangeable with the reference. "
        f"The Benjamini-Hochberg procedure keeps the share of false calls at most {alpha:.0%}.",
        "An image whose model LID is too low is memorized: by the data where the data's LID is too "
        "low as well (duplicates, degenerate data: a better fit will not help), by overfitting "
        "where it is not (the model lost degrees of freedom that the data have).",
    ]
