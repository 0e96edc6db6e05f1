"""What an audit of prompts will take, and whether it could call one; nothing is written."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.power import Power
from memfold.memorization.prompt_verdict import SIGNALS

from .gate import tell_prompts
from .prompt_plan import PromptPlan
from .prompts import read_lists
from .scored import score_prompt
from .scoring import usable

_STEPS = 2  # of the prompt that is timed
_DEFAULT_STEPS = 50  # where the pipeline does not say


def forecast_prompts(plan: PromptPlan) -> dict[str, Any]:
    """Score one prompt in two steps, and scale what it took; nothing is written.

    Args:
        plan: what would be audited.

    Returns:
        `prompts`, `reference`, `images`, `steps`, `passes` (rows through the network),
        `seconds_per_row` and `seconds` (estimates for one process, without what is shown of
        flagged prompts), `power` and `doubt` as in audit.json. The power is that of a prompt that
        scores above all ordinary ones; the run simulates it.

    Raises:
        InputError: as `run_prompts`.
    """
    subjects, ordinary = read_lists(plan)
    model = plan.scoring.load()
    detectors = [d for d in usable(model, (), plan.images)[0] if d.name in SIGNALS]
    images = min(2, plan.images)
    scoring = replace(
        plan.scoring, images=images, steps=_STEPS, detectors=tuple(d.name for d in detectors)
    )
    for _ in range(2):  # the first pass is slower
        columns, _run = score_prompt(model, subjects[0], scoring, detectors)
    drawn = sum(columns["passes.generation"]) / images / _STEPS
    extra = sum(sum(columns[f"passes.{d.name}"]) for d in detectors) / images
    spent = sum(sum(v) for k, v in columns.items() if k.startswith("seconds."))
    per_row = spent / max((drawn * _STEPS + extra) * images, 1)
    steps = plan.steps or _steps_of(model)
    prompts, n = len(subjects) + len(ordinary), len(ordinary) or len(subjects)
    passes = prompts * plan.images * (steps * drawn + extra)
    # One prompt above all others: p = 1 / (n + 1), or 1 / n where it is one of them.
    callable_ = plan.alpha * (n + bool(ordinary)) >= 1 - 1e-9
    able = Power(
        copies=plan.copies, share=float(callable_), stderr=0.0, smallest=1 if callable_ else None,
        subjects=len(subjects), reference=n, alpha=plan.alpha, own=not ordinary,
    )  # fmt: skip
    told = tell_prompts(plan, 0, able)
    named = "a memorized prompt that scores above all of them"
    said = f"{named} {'would' if callable_ else 'could not'} be called"
    told["power"]["sentence"] = f"Among {n:,} ordinary prompts {said}."
    return {
        "prompts": len(subjects),
        "reference": {"n": n, "source": "ordinary" if ordinary else "prompts"},
        "images": prompts * plan.images,
        "steps": steps,
        "passes": round(passes),
        "seconds_per_row": per_row,
        "seconds": passes * per_row,
        "power": told["power"],
        "doubt": told["doubt"],
    }


def _steps_of(model: TextToImage) -> int:
    """The pipeline's own number of steps."""
    found = inspect.signature(type(model.pipe).__call__).parameters.get("num_inference_steps")
    value = None if found is None else found.default
    return value if isinstance(value, int) else _DEFAULT_STEPS
