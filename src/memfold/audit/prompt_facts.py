"""What audit.json says of an audit of prompts, its warnings among it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy import ndarray

import memfold
from memfold.citations import cite
from memfold.datasets.images import Images
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.conformal import share_interval
from memfold.memorization.detectors import DETECTORS
from memfold.memorization.prompt_verdict import SIGNALS

from . import summary
from .prompt_plan import PromptPlan


def prompt_facts(
    plan: PromptPlan,
    digest: str,
    model: TextToImage,
    subjects: list[str],
    ordinary: list[str],
    called: ndarray,
    names: Sequence[str],
    data: Images | None,
    told: dict[str, Any],
) -> dict[str, Any]:
    """Collect what audit.json holds.

    Args:
        plan: the plan.
        digest: the hash of the pipeline's files.
        model: the pipeline.
        subjects: the judged prompts.
        ordinary: the reference; empty where the judged prompts are their own.
        called: whether each prompt is called memorized.
        names: the signals.
        data: training images, if any.
        told: what the audit can find, and what its gate says (`gate.tell_prompts`).

    Returns:
        Plain data for JSON.
    """
    plan = plan.recorded()
    count, n = int(called.sum()), len(subjects)
    low, high = share_interval(count, n)
    m = len(ordinary) or n
    # The expected share of ordinary prompts that are called: floor(alpha (m + 1)) / (m + 1).
    rank = int(np.floor(plan.alpha * (m + 1) + 1e-9))
    return {
        "kind": "prompts",
        "memfold": memfold.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": plan.title or f"Memorization audit of {plan.model}",
        "pipeline": model.name,
        "command": plan.command(),
        "arguments": plan.arguments(),
        "versions": summary.versions(),
        "hashes": {"model": digest} | ({} if data is None else {"data": data.digest}),
        "alpha": plan.alpha,
        "reference": {
            "n": m,
            "source": "ordinary" if ordinary else "prompts",
            "expected_rate": rank / (m + 1),
            "interval": list(_rate_interval(rank, m)),
        },
        "prompts": n,
        "memorized": {"count": count, "rate": count / n, "low": low, "high": high},
        "signals": {name: DETECTORS[name].title for name in names},
        "warnings": _warnings(plan, model, ordinary, names, rank, m),
        "citations": [
            c.__dict__
            for c in cite(
                "ross2025memorization", *(DETECTORS[k].source for k in names), "vovk2005conformal"
            )
        ],
        "shown": min(count, plan.shown),
        **told,
    }


def _rate_interval(rank: int, m: int) -> tuple[float, float]:
    """Range of the false-positive rate over reference samples: Beta(rank, m + 1 - rank), 95 %."""
    from scipy.stats import beta

    if rank == 0:
        return 0.0, 0.0
    law = beta(rank, m + 1 - rank)
    return float(law.ppf(0.025)), float(law.ppf(0.975))


def _warnings(
    plan: PromptPlan,
    model: TextToImage,
    ordinary: list[str],
    names: Sequence[str],
    rank: int,
    m: int,
) -> list[str]:
    notes = []
    if not ordinary:
        notes.append(
            "No ordinary prompts were given (--ordinary). The judged prompts are their own "
            "reference: at most a share alpha of them can be called, the highest ones, memorized "
            "or not. Give a list of prompts in the same style that are surely not memorized."
        )
    if rank == 0:
        need = int(np.ceil(1 / plan.alpha)) - 1
        notes.append(
            f"{m} reference prompts cannot call anything at a rate of {plan.alpha:g}: the smallest "
            f"p-value is {1 / (m + 1):.3g}. Give {need} or more, or a larger --alpha."
        )
    missing = [name for name in SIGNALS if name not in names]
    if missing:
        notes.append(
            f"{model.name} does not allow the signals {', '.join(missing)}; the verdict rests on "
            f"{', '.join(names)}."
        )
    notes.append(
        "The rate holds for prompts that are exchangeable with the ordinary ones. Prompts of "
        "another style, length or subject may be called more often."
    )
    return notes
