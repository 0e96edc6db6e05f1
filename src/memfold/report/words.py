"""Numbers and verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

from memfold.report.model import MEMORIZED, Rate, Reference, Report, Subject

NAMES = {
    "overfitting": "Overfitting",
    "data": "Data",
    "none": "Not memorized",
    "undetermined": "Undetermined",
}
MEANINGS = {
    "overfitting": "The model lost directions that the data still has. "
    "Earlier stopping, regularization or more varied training can reduce it.",
    "data": "The data itself repeats or pins the image, and the model learned that faithfully. "
    "Deduplication is the remedy; a better fit is not.",
    "none": "The model is about as free here as it is at images that it never memorized.",
    "undetermined": "The measurement cannot be relied on here; the reason stands with each image.",
}
OUTCOMES = {"found": "Failed", "passed": "Passed", "inconclusive": "Inconclusive"}
_NOUNS = {"train": "training image", "generated": "generated image"}


def noun(source: str, count: int) -> str:
    """What was audited, singular or plural."""
    word = _NOUNS.get(source, "image")
    return word if count == 1 else f"{word}s"


def number(value: float) -> str:
    """Degrees of freedom: one decimal below 100, none above, a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.1f}" if abs(value) < 99.95 else f"{value:,.0f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def plus_minus(value: float, stderr: float) -> str:
    """A number with its standard error, where it has one."""
    if not (math.isfinite(value) and math.isfinite(stderr)):
        return number(value)
    return f"{number(value)}\u00a0±\u00a0{number(stderr)}"


def probability(symbol: str, value: float) -> str:
    """A p- or q-value, "q = 0.002" or "q < 0.0001"; empty where there is none."""
    if not math.isfinite(value):
        return ""
    if value < 1e-4:
        return f"{symbol}\u00a0<\u00a00.0001"
    digits = 2 if value >= 0.1 else 3 if value >= 0.001 else 4
    return f"{symbol}\u00a0=\u00a0{value:.{digits}f}"


def percent(share: float) -> str:
    """A share in percent, one decimal."""
    return f"{100 * share:.1f}\u00a0%" if math.isfinite(share) else "–"


def interval(rate: Rate) -> str:
    """The 95 % interval of a share."""
    if not (math.isfinite(rate.low) and math.isfinite(rate.high)):
        return ""
    return f"{100 * rate.low:.1f} to {100 * rate.high:.1f}\u00a0%"


def headline(report: Report) -> str:
    """The verdict on the whole, in one sentence."""
    counts, n = report.counts, len(report.subjects)
    memorized = sum(counts[kind] for kind in MEMORIZED)
    things = noun(report.source, n)
    if n and counts["undetermined"] == n:
        return f"None of the {n:,} {things} could be judged."
    if not memorized and report.doubt:
        return f"Inconclusive: {report.doubt}."
    if not memorized and not report.power:
        return (
            f"None of the {n:,} {things} was called memorized; this audit does not say what it "
            "could have found."
        )
    if not memorized:
        return f"No memorization was found in {n:,} {things}."
    verb = "is" if memorized == 1 else "are"
    return f"{memorized:,} of {n:,} {things} {verb} memorized: {_parts(counts)}."


def _parts(counts: Mapping[str, int]) -> str:
    kinds = {"overfitting": "by overfitting", "data": "by the data"}
    found = {kind: words for kind, words in kinds.items() if counts[kind]}
    if len(found) == 1:
        (kind,) = found
        return ("all " if counts[kind] > 1 else "") + found[kind]
    return ", ".join(f"{counts[kind]:,} {words}" for kind, words in found.items())


def reference_noun(reference: Reference) -> str:
    """What the audit compared with."""
    return "other training images" if reference.source == "train" else "held-out images"


def evidence(subject: Subject, reference: Reference) -> str:
    """Why the verdict on one image is what it is."""
    sentences = [_model_side(subject, reference), _data_side(subject), _duplicates(subject)]
    return " ".join(sentence for sentence in sentences if sentence)


def _model_side(subject: Subject, reference: Reference) -> str:
    own = plus_minus(subject.lid_model, subject.lid_model_stderr)
    text = f"The model has {own} degrees of freedom here"
    if math.isfinite(subject.expected_lid):
        normal = number(subject.expected_lid)
        text += f"; {reference_noun(reference)} of this complexity have {normal}"
    if math.isfinite(subject.missing_dof):
        q = probability("q", subject.q_value)
        text += f": {_missing(subject.missing_dof)}{f' ({q})' if q else ''}"
    return f"{text}."


def _missing(dof: float) -> str:
    whole = f"{abs(dof):,.0f}" if abs(dof) >= 9.95 else f"{abs(dof):.1f}"
    if dof < 0:
        return f"{whole} more than expected"
    return f"{whole} {'is' if whole == '1.0' else 'are'} missing"


def _data_side(subject: Subject) -> str:
    conclusion = {
        "overfitting": ", so the model lost them by itself: overfitting",
        "data": ", as few as the model has, so the data itself pins the image: data",
    }.get(subject.verdict, "")
    if not math.isfinite(subject.lid_data):
        return ""
    p = probability("p", subject.p_data)
    own = plus_minus(subject.lid_data, subject.lid_data_stderr)
    return f"The data around it has {own}{f' ({p})' if p else ''}{conclusion}."


def _duplicates(subject: Subject) -> str:
    count = subject.near_duplicates
    if count is None:
        return ""
    if count == 0:
        return "No other training image nearly repeats it."
    rows = "row nearly repeats" if count == 1 else "rows nearly repeat"
    return f"{count:,} other training {rows} it."
