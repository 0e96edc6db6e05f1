"""LID of images over noise levels, as an SVG file that stands alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from memfold.report import axes, figures
from memfold.report.figures import Line

_COLORS = (
    "#0a66a8", "#bf4a14", "#3c7f70", "#8a5a00", "#7b4aa0", "#b3264d", "#4f7a1f", "#5b6470",
)  # fmt: skip
_STYLE = (
    "<style>text{font:12px sans-serif;fill:#3a4048}.head{font-size:15px;font-weight:600}"
    ".end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#e3e1db;fill:none}"
    ".axis{stroke:#b9b7b0;fill:none}.line{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".thin{fill:none;stroke:#0a66a8;stroke-width:1;opacity:.25}.error{opacity:.18}"
    ".here{fill:none;stroke:#1d2126;stroke-dasharray:3 3}</style>"
)
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP = 800, 420, 56.0, 560.0, 78.0
_LONGEST = 30  # characters of a name in the legend


def curve_figure(
    sigmas: Sequence[float], lines: Sequence[Line], *, sigma: float, title: str
) -> str:
    """Draw each image's LID over sigma with its standard error; of many, all and their mean.

    Args:
        sigmas: noise standard deviations, ascending; drawn on a logarithmic axis.
        lines: a curve an image, each as long as sigmas.
        sigma: the scale of the table; marked.
        title: heading, in words.

    Returns:
        SVG with its own style, title, axes and legend.
    """
    many = len(lines) > len(_COLORS)
    named = [_mean(lines)] if many else list(lines)
    ends = [v + e for line in named for v, e in zip(line.lid, _errors(line), strict=True)]
    values = [v for line in lines for v in line.lid] + ends
    x = axes.log([*sigmas, sigma], _LEFT, _RIGHT)
    y = axes.root([v for v in values if math.isfinite(v)], _HEIGHT - 46.0, _TOP, gap=24.0)
    parts = [
        _STYLE,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text class="head" x="16" y="26">{figures.escape(_short(title, 90))}</text>',
        figures.frame(
            x, y, "noise level σ (standard deviation)", "LID: degrees of freedom, square-root scale"
        ),
    ]
    if many:
        parts += [f'<path class="thin" d="{_path(sigmas, line.lid, x, y)}"/>' for line in lines]
    for i, line in enumerate(named):
        parts += _drawn(sigmas, line, _COLORS[i], x, y)
    at = f"{x(sigma):.1f}"
    parts.append(f'<path class="here" d="M{at} {y.start:.1f}V{y.end:.1f}"/>')
    parts += _legend([line.name for line in named], len(lines) if many else 0, sigma)
    return figures.svg(_WIDTH, _HEIGHT, parts, title)


def _mean(lines: Sequence[Line]) -> Line:
    """The mean of all curves; its standard error is that of a mean over images."""
    lid = np.array([line.lid for line in lines], dtype=float)
    error = lid.std(0, ddof=1) / np.sqrt(len(lines))
    return Line(f"mean of {len(lines):,} images", "none", lid.mean(0).tolist(), error.tolist())


def _errors(line: Line) -> Sequence[float]:
    return line.stderr or [0.0] * len(line.lid)


def _path(sigmas: Sequence[float], lid: Sequence[float], x: axes.Axis, y: axes.Axis) -> str:
    path, pen = [], "M"
    for s, v in zip(sigmas, lid, strict=True):
        if math.isfinite(v):
            path.append(f"{pen}{x(s):.1f} {y(v):.1f}")
        pen = "L" if math.isfinite(v) else "M"
    return "".join(path)


def _drawn(
    sigmas: Sequence[float], line: Line, color: str, x: axes.Axis, y: axes.Axis
) -> list[str]:
    low, high = (
        [v + sign * e for v, e in zip(line.lid, _errors(line), strict=True)] for sign in (-1, 1)
    )
    kept = [i for i in range(len(sigmas)) if math.isfinite(low[i]) and math.isfinite(high[i])]
    there = [f"{x(sigmas[i]):.1f} {y.clamp(high[i]):.1f}" for i in kept]
    back = [f"{x(sigmas[i]):.1f} {y.clamp(low[i]):.1f}" for i in reversed(kept)]
    area = f"M{'L'.join([*there, *back])}Z" if kept else ""
    name = figures.escape(line.name)
    return [
        f'<path class="error" fill="{color}" d="{area}"/>',
        f'<path class="line" stroke="{color}" d="{_path(sigmas, line.lid, x, y)}">'
        f"<title>{name}</title></path>",
    ]


def _legend(names: Sequence[str], many: int, sigma: float) -> list[str]:
    rows = [
        (f'class="line" stroke="{_COLORS[i]}"', _short(n, _LONGEST)) for i, n in enumerate(names)
    ]
    if many:
        rows.append(('class="thin"', f"each of {many:,} images"))
    rows.append(('class="here"', f"σ = {sigma:.3g}, where the table is"))
    left, parts = _RIGHT + 24, []
    for i, (style, text) in enumerate(rows):
        y = _TOP + 8 + 22 * i
        parts.append(f'<path {style} d="M{left:.0f} {y:.0f}h24"/>')
        parts.append(f'<text x="{left + 32:.0f}" y="{y + 4:.0f}">{figures.escape(text)}</text>')
    note = "shaded: one standard error"
    parts.append(f'<text x="{left:.0f}" y="{_TOP + 12 + 22 * len(rows):.0f}">{note}</text>')
    return parts


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
