"""One self-contained HTML file from a report's data: no network, no fonts, no model."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from memfold.files import write_text
from memfold.report import figures, words
from memfold.report.fields import read_json
from memfold.report.model import (
    MEMORIZED,
    VERDICTS,
    Rate,
    Report,
    Subject,
    load,
    picture_size,
)

PAGE = 24
_WEB = re.compile(r"https?://[^\s\x00-\x1f\x7f\"'<>\\^`{|}]+", re.IGNORECASE)
_NEIGHBORS = 3
_SMALL = 96
_JSON_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


@dataclass(frozen=True)
class Column:
    """A column of the table of all images; `kind` says how the page shows and sorts it."""

    key: str
    title: str
    kind: str
    hint: str = ""


@dataclass(frozen=True)
class Picture:
    """An image of a card, with the words beneath it; `uri` is empty where the audit kept none."""

    uri: str
    name: str
    caption: str
    small: bool


@dataclass(frozen=True)
class Card:
    """A memorized image with its evidence."""

    anchor: str
    subject: Subject
    picture: Picture
    neighbors: Sequence[Picture]
    evidence: str
    curve: Markup


@dataclass(frozen=True)
class Tile:
    """A verdict's share of the whole."""

    verdict: str
    name: str
    count: int
    share: str
    interval: str
    meaning: str


def write(directory: str | os.PathLike[str]) -> Path:
    """Draw the report of an audit directory into its report.html, and return that path.

    The file appears whole or not at all. Neither the model nor the images are needed.

    Raises:
        InputError: a file of the directory is missing or broken.
    """
    path = Path(directory) / "report.html"
    write_text(path, draw(directory))
    return path


def draw(directory: str | os.PathLike[str]) -> str:
    """The page of either kind of audit, of images or of prompts: the same for the same tables.

    Raises:
        InputError: a file of the directory is missing or broken.
    """
    directory = Path(directory)
    if read_json(directory / "audit.json").get("kind") == "prompts":
        from memfold.report.prompts import render_prompts

        return render_prompts(directory)
    return render(load(directory))


def render(report: Report) -> str:
    """The report as HTML: a pure function of its data, the same bytes for the same report."""
    script = _asset("report.js")
    unclear, cards = _cards(report)
    page = environment().get_template("report.html").render(
        report=report,
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_hash=_script_hash(script),
        headline=words.headline(report),
        things=words.noun(report.source, 2),
        reference_things=words.reference_noun(report.reference),
        created=_created(report.created),
        tiles=_tiles(report),
        cards=cards,
        unclear=unclear,
        unseen=report.counts["undetermined"] - len(unclear),
        page=PAGE,
        columns=_columns(report),
        rows=_rows_block(report, [*unclear, *cards]),
        figures=_figures(report),
        untrusted=_untrusted(report),
        truth=_truth(report),
        names=words.NAMES,
        words=words,
        verdicts=VERDICTS,
        memorized=sum(report.counts[kind] for kind in MEMORIZED),
        markers={v: Markup(figures.marker(v)) for v in VERDICTS},
    )  # fmt: skip
    return figures.printable(page) + "\n"


@cache
def environment() -> Environment:
    """The templates, with everything escaped."""
    made = Environment(
        loader=PackageLoader("memfold.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.tests["web_link"] = web_link
    return made


def web_link(url: object) -> bool:
    """Tell whether a text may be a link: an address of the web; other schemes can run code."""
    return isinstance(url, str) and _WEB.fullmatch(url) is not None


@cache
def _asset(name: str) -> str:
    """A file of our own that goes into the page as it is."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def style() -> str:
    """The style sheet of every page."""
    return _asset("report.css")


def _script_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _created(text: str) -> str:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = f" {time.tzname()}" if time.tzinfo else ""
    return f"{time.day} {time:%B %Y, %H:%M}{zone}"


def _tiles(report: Report) -> list[Tile]:
    counts, n = report.counts, len(report.subjects)
    tiles = []
    for verdict in VERDICTS:
        share = counts[verdict] / n if n else math.nan
        rate = report.rates.get(verdict, Rate(counts[verdict], n, share, math.nan, math.nan))
        tiles.append(
            Tile(
                verdict=verdict,
                name=words.NAMES[verdict],
                count=counts[verdict],
                share=words.percent(share),
                interval=words.interval(rate),
                meaning=words.MEANINGS[verdict],
            )
        )
    return tiles


def _figures(report: Report) -> dict[str, Markup]:
    """The figures of the whole; one that has no data is empty."""
    subjects, reference = report.subjects, report.reference
    drawn = {
        "bar": figures.counts_bar(report.counts),
        "scatter": figures.scatter(subjects, reference, report.regions),
        "missing": _if(_any(s.missing_dof for s in subjects), figures.missing, subjects),
        "p_values": _if(_any(s.p_value for s in subjects), figures.p_values, subjects),
        "curves": _overview(report),
        "reference_marker": figures.reference_marker(),
    }
    return {name: Markup(svg) for name, svg in drawn.items()}


def _any(values: Any) -> bool:
    return any(math.isfinite(value) for value in values)


def _if(condition: bool, draw: Any, *arguments: Any) -> str:
    return draw(*arguments) if condition else ""


def _overview(report: Report) -> str:
    lines = figures.median_lines(report.subjects)
    if not lines:
        return ""
    band = figures.reference_band(report.reference)
    return figures.curves(report.curve_sigmas, lines, band, sigma=report.sigma)


def _severity(subject: Subject) -> tuple[int, float]:
    dof = subject.missing_dof
    return VERDICTS.index(subject.verdict), -dof if math.isfinite(dof) else 0.0


def _cards(report: Report) -> tuple[list[Card], list[Card]]:
    """Cards of the undetermined images, as far as they have pictures, and of the memorized ones."""
    band = figures.reference_band(report.reference)
    unclear = [
        s
        for s in report.subjects
        if s.verdict == "undetermined" and f"subject:{s.id}" in report.pictures
    ]
    unclear.sort(key=lambda s: -s.missing_dof if math.isfinite(s.missing_dof) else -math.inf)
    flagged = sorted((s for s in report.subjects if s.verdict in MEMORIZED), key=_severity)
    cards = [
        Card(
            anchor=f"image-{place}",
            subject=subject,
            picture=_picture(report, f"subject:{subject.id}", subject.id, "this image"),
            neighbors=_neighbors(report, subject),
            evidence=words.evidence(subject, report.reference),
            curve=_curve(report, subject, band),
        )
        for place, subject in enumerate([*unclear, *flagged], start=1)
    ]
    return cards[: len(unclear)], cards[len(unclear) :]


def _curve(report: Report, subject: Subject, band: figures.Band | None) -> Markup:
    if not _any(subject.curve):
        return Markup("")
    line = figures.Line(subject.id, subject.verdict, subject.curve, subject.curve_stderr)
    size = {"width": 460, "height": 190}
    return Markup(figures.curves(report.curve_sigmas, [line], band, sigma=report.sigma, **size))


def _picture(report: Report, key: str, name: str, caption: str) -> Picture:
    png = report.pictures.get(key)
    if png is None:
        return Picture("", name, caption, small=False)
    uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Picture(uri, name, caption, small=max(picture_size(png)) <= _SMALL)


def _neighbors(report: Report, subject: Subject) -> list[Picture]:
    """The nearest training images with their calibrated distances."""
    ids = subject.neighbors or ((subject.nearest_id,) if subject.nearest_id else ())
    distances = subject.neighbor_distances or (subject.nearest_distance,)
    padded = [*distances, *[math.nan] * len(ids)]
    return [
        _picture(report, f"train:{name}", name, f"{distance:.2f}" if _any([distance]) else "–")
        for name, distance in list(zip(ids, padded, strict=False))[:_NEIGHBORS]
    ]


def _columns(report: Report) -> list[Column]:
    columns = [
        Column("id", "Image", "text"),
        Column("verdict", "Verdict", "verdict"),
        Column("model", "Model", "number", "degrees of freedom of the model"),
        Column("expected", "Expected", "number", "what this complexity has when not memorized"),
        Column("missing", "Missing", "number", "expected minus model"),
        Column("q", "q", "probability", "p-value corrected for many tests"),
        Column("data", "Data", "number", "degrees of freedom of the training data"),
        Column("duplicates", "Near-duplicates", "count", "of it in the training set"),
        Column("nearest", "Nearest training image", "text"),
        Column("distance", "Distance", "distance", "calibrated l2; 1 is the usual distance"),
    ]
    if any(s.truth for s in report.subjects):
        columns.append(Column("truth", "Truth", "text"))
    if any(s.reason for s in report.subjects):
        columns.append(Column("note", "Note", "text"))
    return columns


def _rows_block(report: Report, cards: Sequence[Card]) -> Markup:
    """All images as JSON that holds no markup."""
    anchors = {id(card.subject): card.anchor for card in cards}
    rows = [_row(s, anchors.get(id(s), "")) for s in sorted(report.subjects, key=_severity)]
    wanted = ["anchor", *(column.key for column in _columns(report))]
    data = {
        "keys": wanted,
        "kinds": {column.key: column.kind for column in _columns(report)},
        "verdicts": words.NAMES,
        "rows": [[row[key] for key in wanted] for row in rows],
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character, code in _JSON_ESCAPES.items():
        text = text.replace(character, code)
    return Markup(text)


def _row(s: Subject, anchor: str) -> dict[str, Any]:
    return {
        "anchor": anchor,
        "id": s.id,
        "verdict": s.verdict,
        "model": _json_number(s.lid_model),
        "expected": _json_number(s.expected_lid),
        "missing": _json_number(s.missing_dof),
        "q": _json_number(s.q_value),
        "data": _json_number(s.lid_data),
        "duplicates": s.near_duplicates,
        "nearest": s.nearest_id,
        "distance": _json_number(s.nearest_distance),
        "truth": words.NAMES.get(s.truth or "", s.truth or ""),
        "note": s.reason,
    }


def _json_number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _untrusted(report: Report) -> list[tuple[str, list[str]]]:
    """Reasons for distrust with the ids they concern, the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for subject in report.subjects:
        if not subject.trusted:
            reasons.setdefault(subject.reason or "no reason was recorded", []).append(subject.id)
    return sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))


def _truth(report: Report) -> dict[str, Any] | None:
    """The confusion table and its shares, ready to be shown."""
    truth = report.ground_truth
    if truth is None:
        return None
    called = sorted({name for row in truth.confusion.values() for name in row}, key=_order)
    return {
        "called": called,
        "table": [
            (true, [row.get(name, 0) for name in called])
            for true, row in sorted(truth.confusion.items(), key=lambda item: _order(item[0]))
        ],
        "shares": [
            (kind, truth.precision.get(kind), truth.recall.get(kind))
            for kind in sorted({*truth.precision, *truth.recall}, key=_order)
        ],
    }


def _order(name: str) -> tuple[int, str]:
    return (VERDICTS.index(name) if name in VERDICTS else len(VERDICTS)), name
