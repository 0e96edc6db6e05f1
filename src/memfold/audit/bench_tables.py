"""The results of a benchmark of detectors as text: markdown, and a row an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from memfold.files import csv_text

from .labelled import Labelled


def markdown(found: dict[str, Any]) -> str:
    """Write the table of a benchmark as markdown.

    Args:
        found: what `bench` returned.

    Returns:
        The text.
    """
    images = found["settings"]["images"]
    head = (
        f"| detector | AUROC, {images} images | TPR at 1 % FPR | verbatim | template "
        "| near called | AUROC, 1 image | TPR at 1 % FPR "
        "| extra passes | products | ms an image |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in found["rows"]:
        many, one = row["all.memorized"], row["one.memorized"]
        kinds = [row.get(f"all.{k}") for k in ("verbatim", "template")]
        cells = [
            row["detector"],
            _with(many["auroc"], many["auroc_interval"]),
            _with(many["tpr"], many["tpr_interval"]),
            *(f"{k['auroc']:.3f} / {k['tpr']:.2f}" if k else "-" for k in kinds),
            f"{row['all.near_called']:.2f}" if "all.near_called" in row else "-",
            "-" if row["many"] else f"{one['auroc']:.3f}",
            "-" if row["many"] else f"{one['tpr']:.2f}",
            *(_number(row[k]) for k in ("passes", "products", "ms")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    text = found["text_only"]
    counts = ", ".join(f"{n} {k}" for k, n in found["prompts"].items())
    tail = "too few families to say" if text is None else f"AUROC {text:.3f}"
    lines += ["", f"Prompts: {counts}. A classifier of the text alone: {tail}."]
    return "\n".join(lines) + "\n"


def _with(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _number(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def score_rows(scores: dict[str, ndarray], labelled: Labelled, seeds: Sequence[int]) -> str:
    """Write a row an image: its prompt, answer, family, seed and scores."""
    rows: list[list[Any]] = [["prompt", "type", "family", "seed", *scores]]
    for i, prompt in enumerate(labelled.prompts):
        for j, seed in enumerate(seeds):
            values = [f"{table[i, j]:.6g}" for table in scores.values()]
            rows.append([prompt, labelled.kinds[i], labelled.families[i], seed, *values])
    return csv_text(rows)


def finite(value: Any) -> Any:
    """Replace NaN by null, which JSON knows."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
