"""The gate: found, passed, or inconclusive where a copy could not have been called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from numpy import ndarray

from memfold.memorization.mmh import Verdicts
from memfold.memorization.power import COPY_LID, WANTED, Power
from memfold.types import Estimate

from .plan import Plan
from .prompt_plan import PromptPlan

CODES = {"passed": 0, "found": 1, "inconclusive": 3}
_MEMORIZED = ("overfitting", "data")
_COPIES = ("copy", "copies")
_PROMPTS = ("memorized prompt", "memorized prompts")


def tell(plan: Plan, verdicts: Verdicts, model: Estimate, able: Power) -> dict[str, Any]:
    """Say what an audit of images can find, what is in doubt, and what its gate says.

    Args:
        plan: the plan.
        verdicts: one a subject.
        model: model-side LID of the subjects.
        able: what was simulated.

    Returns:
        `power`, `doubt` and `exit` of audit.json.
    """
    reasons = np.array(verdicts.reason, dtype=object)
    close = reasons[suspects(verdicts, model, plan.alpha)].tolist()
    things = plan.recorded().described
    reason, remedy = doubt(able, things, close)
    counts = Counter(verdicts.kind.tolist())
    unknown = int((verdicts.memorized & (verdicts.kind == "undetermined")).sum())
    others = "training images" if plan.holdout is None else "held-out images"
    return {
        "power": power_facts(able, things, others),
        "doubt": {"reason": reason, "remedy": remedy},
        "exit": outcome(plan.fail_on, counts, unknown, reason, remedy),
    }


def tell_prompts(plan: PromptPlan, called: int, able: Power) -> dict[str, Any]:
    """Say the same of an audit of prompts.

    Args:
        plan: the plan.
        called: how many prompts are called memorized.
        able: what was simulated.

    Returns:
        `power`, `doubt` and `exit` of audit.json.
    """
    least, reason, remedy = ceil(1 / plan.alpha - 1e-9) - 1, "", ""
    more = f"give {least:,} ordinary prompts or more (--ordinary), or a larger --alpha"
    if able.own:
        reason = "the judged prompts are their own reference, of which some are always the highest"
        remedy = more
    elif not able.suffices:
        reason = _weak(able, "prompts", _PROMPTS)
        remedy = "free the ordinary prompts of memorized ones, or take a larger --alpha"
        remedy = more if able.reference < least else remedy
    others = "each other" if able.own else "ordinary prompts"
    return {
        "power": power_facts(able, "prompts", others, _PROMPTS),
        "doubt": {"reason": reason, "remedy": remedy},
        "exit": outcome(plan.fail_on, {"memorized": called}, 0, reason, remedy),
    }


def suspects(verdicts: Verdicts, model: Estimate, alpha: float) -> ndarray:
    """Find the undetermined subjects that could be a copy.

    Their LID is as low as a copy's, or their p-value is at most alpha, or one of both is missing.
    The others are undetermined for a reason that a copy would share at random (`power` counts
    these), but do not look like one.

    Args:
        verdicts: one a subject.
        model: model-side LID of the subjects.
        alpha: false-discovery rate.

    Returns:
        Whether each is one, shape (m,).
    """
    low = np.asarray(model.lid - 2 * model.stderr) <= COPY_LID[1]
    unknown = ~np.isfinite(verdicts.p_value + np.asarray(model.lid + model.stderr))
    return (verdicts.kind == "undetermined") & (low | unknown | (verdicts.p_value <= alpha))


def power_facts(
    power: Power, things: str, others: str, nouns: tuple[str, str] = _COPIES
) -> dict[str, Any]:
    """Say in numbers and one line what an audit can find.

    Args:
        power: what was simulated.
        things: what is judged, as "training images".
        others: what it is compared with, as "held-out images".
        nouns: what is found, one and many.

    Returns:
        Plain data for audit.json.
    """
    against = others if others == "each other" else f"{power.reference:,} {others}"
    among = f"among {power.subjects:,} {things}, against {against}"
    copies = nouns[power.smallest != 1]
    said = (
        f"No number of {nouns[1]} would be found {among}"
        if power.smallest is None
        else f"{power.smallest:,} {copies} or more would be found {among}"
    )
    return {
        "copies": power.copies,
        "share": power.share,
        "stderr": power.stderr,
        "smallest": power.smallest,
        "wanted": WANTED,
        "lid": list(COPY_LID),
        "suffices": power.suffices,
        "sentence": f"{said} (found: {WANTED:.0%} of them called; simulated with an LID of "
        f"{COPY_LID[0]:g} to {COPY_LID[1]:g}).",
    }


def doubt(power: Power, things: str, undetermined: Sequence[str] = ()) -> tuple[str, str]:
    """Say why "none found" would not mean "none there", and what helps.

    Args:
        power: what the audit can find.
        things: what is judged.
        undetermined: the reasons of the undetermined subjects that could be copies; fewer than
            the number that must not be missed are no doubt.

    Returns:
        Reason and remedy; both empty where nothing is in doubt.
    """
    if not power.suffices:
        return _weak(power, things, _COPIES), _stronger(power)
    n = len(undetermined)
    if n >= power.copies:
        reason = Counter(undetermined).most_common(1)[0][0] or "no reason was recorded"
        are = f"{things} are" if n > 1 else f"of the {things} is"
        return (
            f"{n:,} {are} undetermined and could be {'copies' if n > 1 else 'a copy'} ({reason})",
            "look at them in the report, where they come first, and mend the reason that stands "
            "beside each",
        )
    return "", ""


def _weak(power: Power, things: str, nouns: tuple[str, str]) -> str:
    one = power.copies == 1
    what = f"a single {nouns[0]}" if one else f"{power.copies:,} {nouns[1]}"
    if power.share == 0:
        return f"{what} among {power.subjects:,} {things} could not have been called"
    how = f"with a chance of {power.share:.0%}" if one else f"in {power.share:.0%} of the cases"
    return f"{what} among {power.subjects:,} {things} would have been called only {how}"


def _stronger(power: Power) -> str:
    """What makes the audit find so few copies."""
    ways, n, m = [], power.reference_needed, power.subjects_allowed
    if power.own:
        ways.append("give held-out images (--holdout)")
    elif n > power.reference:
        ways.append(f"give {n:,} held-out images or more")
    if 0 < m < power.subjects:
        ways.append(f"judge {m:,} or fewer (--limit {m})")
    if power.smallest is not None and power.smallest > power.copies:
        ways.append(f"ask for no fewer than {power.smallest:,} copies (--copies {power.smallest})")
    if not ways:
        ways.append(
            "copies do not stand out from the reference here: take another --sigma or more "
            "--noises, or free the reference of training images"
        )
    return ", or ".join(ways)


def outcome(
    fail_on: Sequence[str],
    counts: Mapping[str, int],
    unknown: int,
    reason: str,
    remedy: str,
) -> dict[str, Any]:
    """Decide what a gate says: 1 found what it names, 3 could not tell, 0 passed.

    Args:
        fail_on: the verdicts that it names; none where there is no gate.
        counts: subjects by verdict.
        unknown: memorized subjects whose kind is undetermined; they are found where both kinds
            are named.
        reason: why "none found" would not mean "none there"; empty where it does.
        remedy: what helps.

    Returns:
        Plain data for audit.json; `outcome` is None where there is no gate.
    """
    found = sum(counts.get(verdict, 0) for verdict in fail_on)
    if set(_MEMORIZED) <= set(fail_on) and "undetermined" not in fail_on:
        found += unknown
    said = None
    if fail_on:
        said = "found" if found else "inconclusive" if reason else "passed"
    unclear = said == "inconclusive"
    return {
        "fail_on": list(fail_on),
        "failed": bool(found),
        "outcome": said,
        "code": CODES.get(said or "passed"),
        "reason": reason if unclear else "",
        "remedy": remedy if unclear else "",
    }
