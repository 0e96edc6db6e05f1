"""What stands in audit.json: the audit in numbers and words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import memfold
from memfold.citations import cite

from . import summary
from .inputs import Inputs
from .plan import Plan


def facts(
    plan: Plan,
    inputs: Inputs,
    kinds: list[str],
    told: dict[str, Any],
    truth: list[str] | None,
    sigma: float,
    grid: list[float],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Summarize an audit.

    Args:
        plan: the plan.
        inputs: what was read.
        kinds: the verdict on each subject.
        told: what the audit can find, and what its gate says (`gate.tell`).
        truth: the known kind of each subject, where it is known.
        sigma: the scale.
        grid: the scales of the curves.
        seconds: time spent in each stage of this run.

    Returns:
        Plain data for audit.json.
    """
    plan = plan.recorded()
    counts, rates = summary.counts_and_rates(kinds)
    source = "train" if plan.holdout is None else "holdout"
    notes = [*inputs.warnings, *_warnings(plan, source)]
    return {
        "memfold": memfold.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": plan.title or f"Memorization audit of {plan.model}",
        "subjects": {"source": plan.source, "n": len(kinds), "description": plan.described},
        "command": plan.command(),
        "arguments": plan.arguments(),
        "versions": summary.versions(),
        "hashes": inputs.hashes,
        "sigma": sigma,
        "estimator": plan.estimator,
        "data_estimator": plan.data_estimator,
        "space": inputs.denoiser.space,
        "alpha": plan.alpha,
        "image_range": list(inputs.denoiser.range or ()),
        "reference": {"source": source, "n": len(inputs.reference), "note": _note(source)},
        "counts": counts,
        "rates": rates,
        "warnings": [*notes, *_power(plan, len(kinds), len(inputs.reference))],
        "curve_sigmas": grid,
        "ground_truth": None if truth is None else summary.against_truth(kinds, truth),
        "citations": [c.__dict__ for c in cite(*_cited(plan))],
        "methods": summary.methods(
            sigma,
            plan.sigma is None,
            plan.estimator,
            plan.data_estimator,
            len(inputs.reference),
            source,
            plan.alpha,
            plan.noises,
        ),
        "seconds": seconds,
        **told,
    }


def _note(source: str) -> str:
    if source == "holdout":
        return "Held-out real images: the model cannot have memorized them."
    return (
        "No held-out images were given. The reference is a sample of distinct training images: "
        "memorized ones among them can only raise p-values, so that false calls stay controlled, "
        "but the audit now asks what is memorized more than the typical training image; it loses "
        "power, and it cannot see a model that memorized all of them alike."
    )


def _warnings(plan: Plan, source: str) -> Iterator[str]:
    if source == "train":
        yield _note(source)
    if plan.source == "train" and source == "holdout":
        yield (
            "A model often fits all of its training images a little closer than held-out ones. "
            "That is no copy, but it makes some of them calls: look at how much of the expected "
            "LID is missing, which is nearly all of it for a copy."
        )
    if plan.source == "generated":
        yield (
            "Generated images are compared with real ones. Where the model's images differ from "
            "real ones (smoother, with artefacts), their LID differs for that reason too: read the "
            "nearest training images beside each verdict."
        )


def _power(plan: Plan, m: int, n: int) -> Iterator[str]:
    """Say how many memorized subjects it takes before any of them can be called.

    The smallest p-value is 1 / (n + 1); Benjamini-Hochberg calls k of m subjects that have it if
    m / (k (n + 1)) <= alpha.
    """
    needed = math.ceil(m / (plan.alpha * (n + 1)))
    if needed > 1:
        yield (
            f"With {n} reference images and {m} subjects, at least {needed} subjects must be "
            f"memorized before any can be called at a false-discovery rate of {plan.alpha:g}; "
            f"{math.ceil(m / plan.alpha) - 1} reference images would do for a single one."
        )


def _cited(plan: Plan) -> list[str]:
    model = {
        "dsm": ["yeats2025dsm"],
        "flipd": ["kamkari2024flipd", "epperly2024xtrace", "hutchinson1989trace"],
        "spectral": ["osada2026lhsd", "ubaru2017slq"],
    }[plan.estimator]
    data = {
        "empirical": ["kamkari2024flipd"],
        "mle": ["levina2004mle", "mackay2005mle"],
        "lpca": ["fukunaga1971pca"],
        "twonn": ["facco2017twonn"],
    }[plan.data_estimator]
    rest = [
        "ross2025memorization",
        *model,
        *data,
        "carlini2023extracting",
        "vovk2005conformal",
        "bates2023conformal",
        "benjamini1995fdr",
    ]
    return list(dict.fromkeys(rest))
