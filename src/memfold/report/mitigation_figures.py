"""The table and the figure of a benchmark of mitigations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memfold.report import figures

_STYLE = (
    "<style>text{font:12px sans-serif;fill:#3a4048}.head{font-weight:600}"
    ".grid{stroke:#e3e1db}.k0{fill:#bf4a14}.k1{fill:#8a5a00}.k2{fill:none;stroke:#0a66a8;"
    "stroke-width:1.5}.k3{fill:#6b7078}</style>"
)
_ROW, _LEFT, _WIDTH, _GAP, _TOP = 20.0, 240.0, 150.0, 34.0, 64.0
_ORDER = ("verbatim", "template", "memorized", "near", "none")
_TITLES = {
    "copies": "copies", "copied": "prompts copied", "embedding_copies": "copies, embedding",
    "alike": "alike", "alignment": "alignment", "frechet": "Frechet distance",
}  # fmt: skip
_PANELS = ("copies", "alike", "alignment", "frechet")
_SHARES = ("copies", "alike")
_PLAIN = {"method", "kind", "prompts", "copied_interval", "spread", "seconds"}


def mitigation_table(found: Mapping[str, Any]) -> str:
    """Write a row a method, the kinds of prompts side by side in each cell.

    Args:
        found: as in mitigation.json.

    Returns:
        Markdown.
    """
    rows, kinds = found["rows"], _kinds(found["rows"])
    names = [k for k in dict.fromkeys(k for row in rows for k in row) if k not in _PLAIN]
    titles = [_TITLES.get(k, k) for k in names]
    heads = [f"{t}: {' / '.join(_named(k) for k in kinds)}" for t in titles[:1]] + titles[1:]
    lines = ["| " + " | ".join(["method", *heads, "s a prompt"]) + " |"]
    lines.append("|" + "---|" * (len(names) + 2))
    for method in dict.fromkeys(row["method"] for row in rows):
        by = {row["kind"]: row for row in rows if row["method"] == method}
        cells = [_cell(method)]
        cells += [" / ".join(_two(by[k].get(name)) for k in kinds) for name in names]
        cells.append(f"{sum(by[k]['seconds'] for k in kinds) / len(kinds):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *_notes(found, kinds), ""]) + _attacked(found["recheck"])


def mitigation_figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw each method's copies, alike, alignment and Frechet distance, a mark for each kind.

    Args:
        rows: as in mitigation.json.

    Returns:
        SVG that needs no style sheet.
    """
    kinds = _kinds(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    panels = [k for k in _PANELS if any(k in row for row in rows)]
    height, parts = _TOP + _ROW * len(methods) + 28, [_STYLE, *_legend(kinds)]
    for i, key in enumerate(panels):
        left = _LEFT + i * (_WIDTH + _GAP)
        parts += _panel(rows, methods, kinds, key, left, height)
    for i, method in enumerate(methods):
        y = _TOP + _ROW * i + 4
        parts.append(
            f'<text x="{_LEFT - 14:.0f}" y="{y:.1f}" text-anchor="end">{figures.escape(method)}'
            "</text>"
        )
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    label = f"Mitigations: {', '.join(_TITLES[k] for k in panels)} of each, by kind of prompt"
    return figures.svg(round(width), round(height), parts, label)


def _panel(
    rows: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    kinds: Sequence[str],
    key: str,
    left: float,
    height: float,
) -> list[str]:
    values = [row[key] for row in rows if key in row]
    low, high = (0.0, 1.0) if key in _SHARES else (min(0.0, *values), max(values) or 1.0)
    parts = [f'<text class="head" x="{left:.0f}" y="{_TOP - 22:.0f}">{_TITLES[key]}</text>']
    for tick in (low, (low + high) / 2, high):
        x = left + (tick - low) / (high - low) * _WIDTH
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP - 12:.1f}V{height - 20:.1f}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{height - 6:.1f}" text-anchor="middle">{tick:.2g}</text>'
        )
    for row in rows:
        if key not in row:
            continue
        x = left + (row[key] - low) / (high - low) * _WIDTH
        y = _TOP + _ROW * methods.index(row["method"])
        said = f"{row['method']}, {_named(row['kind'])}: {row[key]:.3g}"
        parts.append(_mark(kinds.index(row["kind"]), x, y, said))
    return parts


def _mark(kind: int, x: float, y: float, said: str) -> str:
    title = f"<title>{figures.escape(said)}</title>" if said else ""
    if kind == 1:
        return (
            f'<rect class="k1" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7">'
            f"{title}</rect>"
        )
    radius = 5.0 if kind == 2 else 4.0
    return (
        f'<circle class="k{min(kind, 3)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>'
    )


def _legend(kinds: Sequence[str]) -> list[str]:
    parts, x = [], _LEFT
    for i, kind in enumerate(kinds):
        parts.append(_mark(i, x, 14.0, ""))
        parts.append(f'<text x="{x + 10:.0f}" y="18">{_named(kind)} prompts</text>')
        x += 150
    return parts


def _kinds(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    there = {row["kind"] for row in rows}
    return [k for k in _ORDER if k in there]


def _named(kind: str) -> str:
    return "other" if kind == "none" else kind


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(text: str) -> str:
    return figures.printable(text).replace("|", "\\|")


def _notes(found: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    rows, limits = found["rows"], found["limits"]
    first = {row["kind"]: row["prompts"] for row in rows}
    counts = ", ".join(f"{first[k]} {_named(k)}" for k in kinds)
    said = [
        f"{counts} prompts, {found['settings']['images']} images each, the same seeds. A copy lies "
        f"within {limits['copy']:.3g} (root mean square in latents) of a reference image; a prompt "
        f"is copied if half of its images are, alike if they vary by less than "
        f"{limits['alike']:.3g}; both limits: {_origin(found)}."
    ]
    if limits["embedding"] is not None:
        said[0] += f" In the embedding the limit is {limits['embedding']:.3g}."
    return said + [f"Left out: {_cell(note)}." for note in found["left_out"]]


def _origin(found: Mapping[str, Any]) -> str:
    given = [k for k in ("copy", "alike") if found["spaces"].get(f"{k}_limit") is not None]
    base = f"the 1 % quantile of what {found['calibrated_on']} ordinary prompts draw by themselves"
    if len(given) == 2:
        return "given"
    return base if not given else f"that of {given[0]} given, the other {base}"


def _attacked(attacks: Mapping[str, Any]) -> str:
    if not attacks["rows"]:
        return ""
    lines = [
        "",
        f"An embedding optimised to bring the image back (after {_cell(attacks['method'])}):",
        "",
        "| image | prompts | copied before | after the attack |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['case']} | {r['prompts']} | {r['before']:.2f} | {r['after']:.2f} |"
        for r in attacks["rows"]
    ]
    return "\n".join(lines) + "\n"
