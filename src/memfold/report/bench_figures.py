"""The figure of a benchmark: a row a detector, its AUROC and TPR with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memfold.report import figures

_STYLE = (
    "<style>text{font:12px sans-serif;fill:#3a4048}.head{font-weight:600}"
    ".grid{stroke:#e3e1db}.bar{stroke:#bf4a14;stroke-width:2}.dot{fill:#bf4a14}"
    ".one{fill:none;stroke:#0a66a8;stroke-width:1.5}</style>"
)
_ROW, _LEFT, _WIDTH, _GAP = 20.0, 170.0, 210.0, 40.0


def bench_figure(rows: Sequence[Mapping[str, Any]], images: int) -> str:
    """Draw each detector's AUROC and TPR at 1 % FPR: a dot for all images, a ring for one.

    Args:
        rows: as in bench.json, drawn in their order.
        images: images a prompt.

    Returns:
        SVG that needs no style sheet.
    """
    height = 46.0 + _ROW * len(rows)
    panels = (("AUROC", "auroc", 0.4, _LEFT), ("TPR at 1 % FPR", "tpr", 0.0, _LEFT + _WIDTH + _GAP))
    parts = [_STYLE]
    for title, key, low, left in panels:
        parts.append(f'<text class="head" x="{left:.0f}" y="14">{figures.escape(title)}</text>')
        for tick in (low, (low + 1) / 2, 1.0):
            x = _place(tick, low, left)
            parts.append(f'<path class="grid" d="M{x:.1f} 24V{height - 18:.1f}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{height - 4:.1f}" text-anchor="middle">{tick:g}</text>'
            )
        for i, row in enumerate(rows):
            parts += _row(row, key, low, left, 36.0 + _ROW * i)
    for i, row in enumerate(rows):
        name = figures.escape(str(row["detector"]))
        parts.append(
            f'<text x="{_LEFT - 12:.0f}" y="{40 + _ROW * i:.1f}" text-anchor="end">{name}</text>'
        )
    width = _LEFT + 2 * _WIDTH + _GAP + 16
    label = f"Detectors: AUROC and true-positive rate with 95 % intervals, {images} images and one"
    return figures.svg(round(width), round(height), parts, label)


def _row(row: Mapping[str, Any], key: str, low: float, left: float, y: float) -> list[str]:
    many, one = row["all.memorized"], row["one.memorized"]
    a, b = (_place(v, low, left) for v in many[f"{key}_interval"])
    x, ring = _place(many[key], low, left), _place(one[key], low, left)
    said = f"{row['detector']}: {many[key]:.3f}; one image: {one[key]:.3f}"
    return [
        f'<path class="bar" d="M{a:.1f} {y:.1f}H{b:.1f}"/>',
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4">'
        f"<title>{figures.escape(said)}</title></circle>",
    ] + ([] if row.get("many") else [f'<circle class="one" cx="{ring:.1f}" cy="{y:.1f}" r="5.5"/>'])


def _place(value: float, low: float, left: float) -> float:
    return left + (max(value, low) - low) / (1 - low) * _WIDTH
