"""The figures, as SVG text: pure functions of plain data.

Colours come from the page's classes (`v-overfitting`, ...), so that a figure follows its page from
light to dark. Every text passes through `escape`; no figure defines an id, so that many may share
one page.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import markupsafe
import numpy as np

from memfold.report import axes
from memfold.report.axes import Axis
from memfold.report.model import VERDICTS, Reference, Subject
from memfold.report.words import NAMES, number, plus_minus, probability

_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_BACK_TO_FRONT = ("none", "undetermined", "data", "overfitting")


@dataclass(frozen=True)
class Band:
    """Quantiles of the reference's curves over sigma."""

    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """A curve to be drawn, in the colour of a verdict."""

    name: str
    verdict: str
    lid: Sequence[float]
    stderr: Sequence[float] = ()


def printable(text: str) -> str:
    """The text with what neither XML nor HTML can hold replaced by U+FFFD."""
    return _NOT_TEXT.sub("\ufffd", text)


def escape(text: str) -> str:
    """The text as SVG character data or attribute value."""
    return str(markupsafe.escape(printable(text)))


def reference_band(reference: Reference) -> Band | None:
    """The 5 %, 50 % and 95 % quantiles of the reference's curves; None where it has none."""
    if not reference.curves:
        return None
    curves = np.asarray(reference.curves, dtype=float)
    if not np.isfinite(curves).any(axis=0).all():
        return None
    low, median, high = np.nanquantile(curves, (0.05, 0.5, 0.95), axis=0).tolist()
    return Band(tuple(low), tuple(median), tuple(high))


def median_lines(subjects: Sequence[Subject]) -> list[Line]:
    """The median curve of each verdict."""
    lines = []
    for verdict in _BACK_TO_FRONT:
        curves = [s.curve for s in subjects if s.verdict == verdict and s.curve]
        if curves and np.isfinite(np.asarray(curves)).any(axis=0).all():
            lid = np.nanmedian(np.asarray(curves), axis=0).tolist()
            lines.append(Line(f"{NAMES[verdict]}, median of {len(curves):,}", verdict, lid))
    return lines


def curves(
    sigmas: Sequence[float],
    lines: Sequence[Line],
    band: Band | None,
    *,
    sigma: float,
    width: int = 360,
    height: int = 238,
) -> str:
    """LID over sigma against the reference's 5 to 95 % band and median.

    Args:
        sigmas: noise standard deviations, ascending; drawn on a logarithmic axis.
        lines: what to draw, each as long as sigmas.
        band: the reference's quantiles.
        sigma: where the audit measured; marked.
        width: of the figure; its texts are 12 units high.
        height: of the figure.
    """
    errors = [e for line in lines for e in _spread(line.lid, line.stderr)]
    values = [v for line in lines for v in line.lid] + [v for pair in errors for v in pair]
    x = axes.log([*sigmas, sigma], 40.0, width - 8.0)
    y = axes.root([*values, *(band.high if band else ())], height - 42.0, 14.0, gap=22.0)
    parts = [frame(x, y, "noise level σ", "degrees of freedom")]
    parts += band_of(sigmas, band, x, y) if band else []
    parts.append(_marker_line(x(sigma), y))
    parts += [line_of(sigmas, line, x, y) for line in lines]
    names = ", ".join(line.name for line in lines)
    return svg(width, height, parts, f"Degrees of freedom over noise level: {names}")


def scatter(subjects: Sequence[Subject], reference: Reference, regions: Mapping[str, float]) -> str:
    """LID of the data against LID of the model, both on square-root axes, with the regions."""
    shown = [s for s in subjects if _finite(s.lid_data, s.lid_model)]
    cloud = [p for p in zip(reference.lid_data, reference.lid_model, strict=True) if _finite(*p)]
    x = axes.root([*(s.lid_data for s in shown), *(p[0] for p in cloud)], 52.0, 624.0)
    y = axes.root([*(s.lid_model for s in shown), *(p[1] for p in cloud)], 402.0, 16.0)
    limits = region_limits(reference, regions)
    parts = _regions(x, y, limits) if limits else []
    parts.append(frame(x, y, "degrees of freedom of the data", "degrees of freedom of the model"))
    parts += [f'<circle class="reference" cx="{_at(x(a))}" cy="{_at(y(b))}" r="2.2"/>'
              for a, b in cloud]  # fmt: skip
    for verdict in _BACK_TO_FRONT:
        parts += [_point(s, x, y) for s in shown if s.verdict == verdict]
    return svg(640, 450, parts, f"Model against data for {len(shown):,} images")


def region_limits(reference: Reference, regions: Mapping[str, float]) -> tuple[float, float] | None:
    """Limits (data, model) of the regions: the audit's own, else the reference's 5 % quantiles."""
    limits = []
    for name, values in (("data", reference.lid_data), ("model", reference.lid_model)):
        finite = [value for value in values if math.isfinite(value)]
        if f"{name}_threshold" in regions:
            limits.append(regions[f"{name}_threshold"])
        elif finite:
            limits.append(float(np.quantile(finite, 0.05)))
    return (limits[0], limits[1]) if len(limits) == 2 else None


def missing(subjects: Sequence[Subject]) -> str:
    """Missing degrees of freedom, a lane of points for each verdict with its median."""
    shown = [s for s in subjects if _finite(s.missing_dof)]
    lanes = [verdict for verdict in VERDICTS if any(s.verdict == verdict for s in shown)]
    height = 54 * max(len(lanes), 1) + 46
    x = axes.linear((s.missing_dof for s in shown), 12.0, 348.0)
    parts = [_vertical_grid(x, 8.0, height - 38.0, "missing degrees of freedom")]
    for place, verdict in enumerate(lanes):
        members = [s for s in shown if s.verdict == verdict]
        parts += _lane(members, verdict, x, 8.0 + 54 * place)
    return svg(360, height, parts, "Missing degrees of freedom of each image by verdict")


def p_values(subjects: Sequence[Subject], *, bins: int = 20) -> str:
    """Histogram of p-values, stacked by verdict, with the level that chance alone would give."""
    shown = [s for s in subjects if _finite(s.p_value)]
    counts = {verdict: [0] * bins for verdict in VERDICTS}
    for s in shown:
        counts[s.verdict][min(max(int(s.p_value * bins), 0), bins - 1)] += 1
    totals = [sum(counts[verdict][i] for verdict in VERDICTS) for i in range(bins)]
    x = axes.linear((0.0, 1.0), 40.0, 352.0)
    y = axes.linear([float(total) for total in totals], 196.0, 14.0)
    parts = [frame(x, y, "p-value", "images")]
    for i in range(bins):
        parts += _stack([(v, counts[v][i]) for v in VERDICTS], x(i / bins), x((i + 1) / bins), y)
    level = _at(y(len(shown) / bins))
    parts.append(f'<path class="chance" d="M40 {level}H352"/>')
    return svg(360, 238, parts, f"Histogram of {len(shown):,} p-values")


def counts_bar(counts: Mapping[str, int]) -> str:
    """One bar of the whole, divided by verdict."""
    total, at, parts = sum(counts.values()), 0.0, []
    for verdict in VERDICTS:
        width = 1000 * counts[verdict] / total if total else 0.0
        if width:
            title = escape(f"{NAMES[verdict]}: {counts[verdict]:,} of {total:,}")
            parts.append(
                f'<rect class="v-{verdict} fill" x="{_at(at)}" y="0" width="{_at(width)}" '
                f'height="14"><title>{title}</title></rect>'
            )
        at += width
    return svg(1000, 14, parts, "Share of each verdict", stretch=True)


def marker(verdict: str) -> str:
    """A verdict's mark, for legends."""
    return svg(16, 16, [_shape(verdict, 8.0, 8.0, 5.0)])


def reference_marker() -> str:
    """The mark of a reference image, for legends."""
    return svg(16, 16, ['<circle class="reference" cx="8" cy="8" r="3.4"/>'])


def svg(
    width: int, height: int, parts: Sequence[str], name: str = "", *, stretch: bool = False
) -> str:
    """The document; a nameless one is decoration, which screen readers skip."""
    ratio = ' preserveAspectRatio="none"' if stretch else ""
    role = f'role="img" aria-label="{escape(name)}"' if name else 'aria-hidden="true"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"{ratio} {role}>'
        f"{''.join(parts)}</svg>"
    )


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def frame(x: Axis, y: Axis, x_name: str, y_name: str) -> str:
    """Grid lines, tick labels and names of two axes."""
    lines = [f'<path class="grid" d="M{_at(x.start)} {_at(y(t))}H{_at(x.end)}"/>'
             f'<text class="tick end" x="{_at(x.start - 7)}" y="{_at(y(t) + 4)}">{axes.label(t)}'
             f'</text>' for t in y.ticks]  # fmt: skip
    name = f'<text class="name" x="{_at(x.start)}" y="{_at(y.end - 4)}">{escape(y_name)}</text>'
    return "".join(lines) + name + _ticks_below(x, y.start, x_name)


def _vertical_grid(x: Axis, top: float, bottom: float, x_name: str) -> str:
    lines = [f'<path class="grid" d="M{_at(x(t))} {_at(top)}V{_at(bottom)}"/>' for t in x.ticks]
    return "".join(lines) + _ticks_below(x, bottom, x_name)


def _ticks_below(x: Axis, bottom: float, x_name: str) -> str:
    ticks = [f'<text class="tick middle" x="{_at(x(t))}" y="{_at(bottom + 17)}">{axes.label(t)}'
             f'</text>' for t in x.ticks]  # fmt: skip
    base = f'<path class="axis" d="M{_at(x.start)} {_at(bottom)}H{_at(x.end)}"/>'
    at = f'x="{_at(x.end)}" y="{_at(bottom + 34)}"'
    return f'{base}{"".join(ticks)}<text class="name end" {at}>{escape(x_name)}</text>'


def _runs(places: Sequence[tuple[float, float]]) -> str:
    """A path through points, broken where one is not finite."""
    path, pen = [], "M"
    for a, b in places:
        if _finite(a, b):
            path.append(f"{pen}{_at(a)} {_at(b)}")
            pen = "L"
        else:
            pen = "M"
    return "".join(path)


def _area(low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]]) -> str:
    places = [p for p in [*low, *reversed(high)] if _finite(*p)]
    return _runs(places) + "Z" if places else ""


def _places(
    sigmas: Sequence[float], lid: Sequence[float], x: Axis, y: Callable[[float], float]
) -> list[tuple[float, float]]:
    return [(x(s), y(v)) for s, v in zip(sigmas, lid, strict=True)]


def band_of(sigmas: Sequence[float], band: Band, x: Axis, y: Axis) -> list[str]:
    """A band and its median."""
    low, high = (_places(sigmas, edge, x, y) for edge in (band.low, band.high))
    median = _runs(_places(sigmas, band.median, x, y))
    title = "Reference: 5 to 95 % of the images, and their median"
    return [
        f'<path class="band" d="{_area(low, high)}"><title>{title}</title></path>',
        f'<path class="median" d="{median}"/>',
    ]


def _spread(lid: Sequence[float], stderr: Sequence[float]) -> list[tuple[float, float]]:
    return [(v - e, v + e) for v, e in zip(lid, stderr, strict=True)] if stderr else []


def line_of(sigmas: Sequence[float], line: Line, x: Axis, y: Axis) -> str:
    """A line with its standard errors."""
    parts, spread = [], _spread(line.lid, line.stderr)
    if spread:
        low, high = (_places(sigmas, edge, x, y) for edge in zip(*spread, strict=True))
        parts.append(f'<path class="v-{line.verdict} error" d="{_area(low, high)}"/>')
    path = _runs(_places(sigmas, line.lid, x, y))
    title = f"<title>{escape(line.name)}</title>"
    parts.append(f'<path class="v-{line.verdict} line" d="{path}">{title}</path>')
    return "".join(parts)


def _marker_line(at: float, y: Axis) -> str:
    return (
        f'<path class="here" d="M{_at(at)} {_at(y.start)}V{_at(y.end)}">'
        f"<title>the σ of this audit</title></path>"
    )


def _regions(x: Axis, y: Axis, limits: tuple[float, float]) -> list[str]:
    left, right, top, bottom = x.start, x.end, y.end, y.start
    across, down = x.clamp(limits[0]), y.clamp(limits[1])
    boxes = {
        "none": (left, right, top, down),
        "data": (left, across, down, bottom),
        "overfitting": (across, right, down, bottom),
    }
    names = {"none": (right - 8, top + 16, "end"), "data": (left + 8, bottom - 9, "start"),
             "overfitting": (right - 8, bottom - 9, "end")}  # fmt: skip
    shades = [
        f'<rect class="v-{v} region" x="{_at(a)}" y="{_at(t)}" width="{_at(b - a)}" '
        f'height="{_at(u - t)}"/>'
        for v, (a, b, t, u) in boxes.items()
    ]
    texts = [
        f'<text class="v-{v} region-name {anchor}" x="{_at(a)}" y="{_at(b)}">{NAMES[v]}</text>'
        for v, (a, b, anchor) in names.items()
    ]
    return shades + texts


def _shape(verdict: str, x: float, y: float, r: float, title: str = "") -> str:
    """Circle, square, triangle or diamond: a verdict is told by its shape too."""
    a, b, inner = _at(x), _at(y), f"<title>{escape(title)}</title>" if title else ""
    if verdict == "none":
        return f'<circle class="v-none mark" cx="{a}" cy="{b}" r="{_at(r * 0.8)}">{inner}</circle>'
    side, wide, tall = _at(1.7 * r), _at(1.15 * r), _at(2 * r)
    outline = {
        "data": f"M{_at(x - 0.85 * r)} {_at(y - 0.85 * r)}h{side}v{side}h-{side}z",
        "overfitting": f"M{_at(x - 1.15 * r)} {_at(y - 0.8 * r)}h{_at(2.3 * r)}l-{wide} {tall}z",
        "undetermined": f"M{a} {_at(y - 1.2 * r)}l{wide} {wide}l-{wide} {wide}l-{wide} -{wide}z",
    }[verdict]
    return f'<path class="v-{verdict} mark" d="{outline}">{inner}</path>'


def _point(s: Subject, x: Axis, y: Axis) -> str:
    title = (
        f"{s.id}\n{NAMES[s.verdict]}\nmodel {plus_minus(s.lid_model, s.lid_model_stderr)}\n"
        f"data {plus_minus(s.lid_data, s.lid_data_stderr)}\n{probability('q', s.q_value)}"
    )
    size = 3.2 if s.verdict == "none" else 4.2
    return _shape(s.verdict, x(s.lid_data), y(s.lid_model), size, title.rstrip())


def _lane(members: Sequence[Subject], verdict: str, x: Axis, top: float) -> list[str]:
    """Points side by side; their height within the lane follows their order, not chance."""
    name = f"{NAMES[verdict]}, {len(members):,}"
    parts = [f'<text class="v-{verdict} lane" x="{_at(x.start)}" y="{_at(top + 12)}">{name}</text>']
    for i, s in enumerate(members):
        height = top + 22 + 24 * ((i * 0.6180339887) % 1)
        title = f"{s.id}: {plus_minus(s.missing_dof, s.missing_dof_stderr)} missing"
        parts.append(_shape(verdict, x(s.missing_dof), height, 3.0, title))
    if len(members) < 3:
        return parts
    middle = float(np.median([s.missing_dof for s in members]))
    parts.append(
        f'<path class="middle-line" d="M{_at(x(middle))} {_at(top + 17)}v34">'
        f"<title>median {number(middle)}</title></path>"
    )
    return parts


def _stack(counts: Sequence[tuple[str, int]], left: float, right: float, y: Axis) -> list[str]:
    parts, done = [], 0
    for verdict, count in counts:
        if count:
            top, bottom = y(float(done + count)), y(float(done))
            parts.append(
                f'<rect class="v-{verdict} fill" x="{_at(left + 0.7)}" y="{_at(top)}" '
                f'width="{_at(right - left - 1.4)}" height="{_at(bottom - top)}">'
                f"<title>{NAMES[verdict]}: {count:,}</title></rect>"
            )
            done += count
    return parts
