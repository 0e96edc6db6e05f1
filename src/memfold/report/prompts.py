"""The report of an audit of prompts: one self-contained HTML file, a pure function of its data."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from memfold.report import axes, figures, words
from memfold.report.fields import Fields, read_json, read_rows
from memfold.report.figures import Band, Line
from memfold.report.heat_figure import Heat, heat_of
from memfold.report.model import citations

_NAMES = {"cfg_norm": "CFG norm"}
_SPACES = {"latents": "latents", "pixels": "pixels", "embedding": "the embedding"}


@dataclass(frozen=True)
class Word:
    """A word of a prompt with its weight, 1 for the heaviest of the prompt."""

    text: str
    weight: float
    stderr: float


@dataclass(frozen=True)
class Nearest:
    """The nearest training image in one space: as data URI, its name, and words about it."""

    uri: str
    space: str
    id: str
    words: str


@dataclass(frozen=True)
class PromptCard:
    """A flagged prompt with its evidence."""

    anchor: str
    prompt: str
    words: tuple[Word, ...]
    p_value: str
    score: str
    signals: tuple[tuple[str, str], ...]
    images: tuple[str, ...]
    nearest: tuple[Nearest, ...]
    heat: Heat | None
    steps: Markup
    mitigated: tuple[str, ...]
    mitigated_note: str
    again: tuple[tuple[str, str, str], ...]
    explain_note: str


def render_prompts(directory: Path) -> str:
    """Draw the report of a prompts audit from its files.

    Args:
        directory: what `memfold audit --prompts` wrote.

    Returns:
        The page.

    Raises:
        InputError: a file is missing or broken.
    """
    from memfold.report.html import environment, style

    audit = Fields(read_json(directory / "audit.json"), directory / "audit.json")
    rows = read_rows(directory / "results.parquet", ("prompt", "verdict", "score", "p_value"))
    flagged = {r.text("prompt"): r for r in read_rows(directory / "flagged.parquet", ("prompt",))}
    reference = [r.numbers("steps") for r in read_rows(directory / "reference.parquet", ("steps",))]
    titles = {k: str(v) for k, v in audit.fields("signals").values.items()}
    called = sorted(
        (r for r in rows if r.text("verdict") == "memorized"), key=lambda r: -r.number("score")
    )
    others = sorted(
        (r for r in rows if r.text("verdict") != "memorized"), key=lambda r: -r.number("score")
    )
    cards = [
        _card(i, row, flagged[row.text("prompt")], reference, titles)
        for i, row in enumerate(called)
        if row.text("prompt") in flagged
    ]
    page = environment().get_template("prompts.html").render(
        title=audit.text("title", "Memorization audit"),
        style=Markup(style()),
        created=audit.text("created"),
        pipeline=audit.text("pipeline"),
        command=audit.text("command"),
        n=len(rows),
        memorized=audit.fields("memorized").values,
        alpha=audit.number("alpha"),
        reference=audit.fields("reference").values,
        warnings=audit.texts("warnings"),
        exit=_exit(audit.fields("exit")),
        doubt=_doubt(audit),
        power=audit.fields("power").text("sentence"),
        cards=cards,
        hidden=len(called) - len(cards),
        table=[_line_of(row, titles) for row in [*called, *others]],
        titles=titles,
        citations=citations(audit),
        settings=sorted(_flat(audit.fields("arguments").values)),
        words=words,
    )  # fmt: skip
    return figures.printable(page) + "\n"


def _exit(fields: Fields) -> dict[str, Any]:
    """Read what the gate said."""
    texts = {k: fields.text(k) for k in ("outcome", "reason", "remedy")}
    return texts | {"fail_on": fields.texts("fail_on")}


def _doubt(audit: Fields) -> dict[str, str]:
    """Read why "none found" would not mean "none there"; an older audit does not say."""
    if not audit.fields("power").values:
        reason = "this audit does not say what it could have found"
        return {"reason": reason, "remedy": "run it again"}
    return {k: audit.fields("doubt").text(k) for k in ("reason", "remedy")}


def steps_figure(
    sigmas: Sequence[float],
    values: Sequence[float],
    reference: Sequence[Sequence[float]],
    name: str,
) -> str:
    """A score over the steps of a generation against the reference's 5 to 95 % band.

    Args:
        sigmas: noise standard deviations of the steps.
        values: the prompt's score at each.
        reference: scores of reference prompts, each as long; others are left out.
        name: what the score is.

    Returns:
        SVG.
    """
    order = np.argsort(sigmas)
    s = [float(sigmas[i]) for i in order]
    line = Line(name, "overfitting", [float(values[i]) for i in order])
    same = np.array([r for r in reference if len(r) == len(sigmas)], dtype=float)
    band = None
    if len(same):
        low, median, high = np.quantile(same[:, order], (0.05, 0.5, 0.95), axis=0).tolist()
        band = Band(tuple(low), tuple(median), tuple(high))
    width, height = 360, 208
    x = axes.log(s, 40.0, width - 8.0)
    y = axes.linear([*line.lid, *(band.high if band else ())], height - 42.0, 14.0)
    parts = [figures.frame(x, y, "noise level σ (a run goes from right to left)", name)]
    parts += figures.band_of(s, band, x, y) if band else []
    parts.append(figures.line_of(s, line, x, y))
    return figures.svg(width, height, parts, f"{name} over the steps of the generation")


def _card(
    index: int,
    row: Fields,
    shown: Fields,
    reference: Sequence[Sequence[float]],
    titles: dict[str, str],
) -> PromptCard:
    weights = shown.numbers("weights")
    top = max((abs(w) for w in weights if math.isfinite(w)), default=0.0) or 1.0
    errors = shown.numbers("weight_stderr")
    parts = tuple(
        Word(text, max(weight / top, 0.0) if math.isfinite(weight) else 0.0, error / top)
        for text, weight, error in zip(shown.texts("words"), weights, errors, strict=True)
    )
    steps = row.numbers("steps.cfg_norm")
    figure = ""
    if steps:
        figure = steps_figure(row.numbers("sigmas"), steps, reference, _NAMES["cfg_norm"])
    return PromptCard(
        anchor=f"prompt-{index + 1}",
        prompt=row.text("prompt"),
        words=parts,
        p_value=words.probability("p", row.number("p_value")),
        score=words.number(row.number("score")),
        signals=tuple((titles[k], _signal(row.number(f"signal.{k}"))) for k in titles),
        images=tuple(_uri(b) for b in shown.get("images", list, [])),
        nearest=_nearest(shown),
        heat=heat_of(
            shown.get("images", list, []),
            shown.numbers("map"),
            [int(side) for side in shown.numbers("map_shape")],
        ),
        steps=Markup(figure),
        mitigated=tuple(_uri(b) for b in shown.get("mitigated", list, [])),
        mitigated_note=shown.text("mitigated_note"),
        again=_again(row, shown),
        explain_note=shown.text("explain_note"),
    )


def _nearest(shown: Fields) -> tuple[Nearest, ...]:
    """Give the nearest training image of each space; one picture for spaces that agree on it."""
    ids = shown.texts("nearest_id")
    spaces = shown.texts("nearest_space") or ("latents",) * len(ids)
    ranges = _ranges(shown.numbers("nearest_calibrated"), len(spaces))
    found: dict[str, Nearest] = {}
    for space, id_, png, said in zip(
        spaces, ids, shown.get("nearest", list, []), ranges, strict=True
    ):
        name, said = _SPACES.get(space, space), f"{said} in {_SPACES.get(space, space)}"
        if id_ in found:
            name, said = f"{found[id_].space}, {name}", f"{found[id_].words}; {said}"
        found[id_] = Nearest(_uri(png), name, id_, said)
    return tuple(found.values())


def _ranges(values: Sequence[float], spaces: int) -> list[str]:
    """Say from where to where the calibrated distances of the seeds reach, for each space."""
    said = []
    for i in range(spaces):
        each = len(values) // spaces
        own = [v for v in values[i * each : (i + 1) * each] if math.isfinite(v)]
        said.append(f"{min(own):.2f} to {max(own):.2f}" if own else "–")
    return said


def _again(row: Fields, shown: Fields) -> tuple[tuple[str, str, str], ...]:
    """Compare before and after the mitigation: verdict and distances, the same measure twice."""
    after = shown.number("mitigated_verdict")
    if not math.isfinite(after):
        return ()

    def p(value: float) -> str:
        return words.probability("", value).strip("\u00a0 =")

    rows = [
        ("score", words.number(row.number("score")), words.number(after)),
        ("p-value", p(row.number("p_value")), p(shown.number("mitigated_p"))),
    ]
    spaces = shown.texts("nearest_space")
    old, new = (
        _ranges(shown.numbers(f"{name}_calibrated"), len(spaces))
        for name in ("nearest", "mitigated")
    )
    for space, before, now in zip(spaces, old, new, strict=True):
        rows.append((f"distance to the nearest, {_SPACES.get(space, space)}", before, now))
    return tuple(rows)


def _line_of(row: Fields, titles: dict[str, str]) -> list[str]:
    signals = [_signal(row.number(f"signal.{k}")) for k in titles]
    p = words.probability("", row.number("p_value")).strip(" =")
    return [row.text("prompt"), row.text("verdict"), words.number(row.number("score")), p, *signals]


def _signal(value: float) -> str:
    """Signals have units of their own, some far below 1: three digits that count."""
    return f"{value:.3g}".replace("-", "−") if math.isfinite(value) else "–"


def _flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(k, "" if v is None else str(v)) for k, v in values.items()]


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
