"""One prompt explained: shaded words, LID over sigma with and without it, its images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from memfold.report import figures
from memfold.report.figures import Line
from memfold.report.heat_figure import heat_of

_VERDICTS = {"with the prompt": "overfitting", "without a prompt": "none"}


def explanation_page(facts: Mapping[str, Any], images: Sequence[bytes]) -> str:
    """Draw an explanation as one self-contained HTML page.

    Args:
        facts: as in explanation.json.
        images: PNG of each seed.

    Returns:
        The page.
    """
    from memfold.report.html import environment, style

    top = max((abs(w) for w in facts["weights"]), default=0.0) or 1.0
    errors = [0.0 if e is None else e for e in facts["stderr"]]
    words = [
        {"text": text, "weight": max(w / top, 0.0), "stderr": e / top}
        for text, w, e in zip(facts["words"], facts["weights"], errors, strict=True)
    ]
    page = environment().get_template("explanation.html").render(
        facts=facts,
        words=words,
        style=Markup(style()),
        curve=Markup(lid_figure(facts["curves"])),
        heat=heat_of(images, facts.get("map", []), facts.get("map_shape", [])),
        images=[f"data:image/png;base64,{base64.b64encode(b).decode()}" for b in images],
    )  # fmt: skip
    return figures.printable(page) + "\n"


def lid_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draw LID over sigma, with the prompt and without one; empty where there is no curve."""
    if not curves:
        return ""
    sigmas = next(iter(curves.values()))["sigmas"]
    lines = [Line(n, _VERDICTS.get(n, "data"), list(c["lid"])) for n, c in curves.items()]
    return figures.curves(list(sigmas), lines, None, sigma=float(sigmas[len(sigmas) // 2]))
