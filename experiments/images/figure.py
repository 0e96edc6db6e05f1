"""The figures: LID_theta against LID_* with images of each region, and histograms by label."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.images.data import RARE, REPEATED
from experiments.images.label import EXACT, LABELS, NOT, RECONSTRUCTED
from experiments.images.subjects import Subjects

COLOURS = ("#d55e00", "#0072b2", "#999999")  # vermilion, blue, grey: Okabe and Ito
MARKS = ("o", "s", ".")
SHOWN = {"GAN": "soft", "DDPM": "dsm"}  # the estimate that the scatter shows
NAMES = {"soft": "soft rank of dG/dz", "dsm": "denoising loss"}
EXAMPLES = 7


def regions(made: list[Subjects], train: Tensor) -> Figure:
    """Scatter of both LIDs for each model; below, generated images over their nearest ones."""
    fig = plt.figure(figsize=(11, 9.5), layout="constrained")
    upper, lower = fig.subfigures(2, 1, height_ratios=(1, 1.15))
    for ax, s in zip(upper.subplots(1, len(made)), made, strict=True):
        _scatter(ax, s)
    upper.suptitle("Each point: a generated image; LID_* at its nearest training image")
    for part, s in zip(lower.subfigures(1, len(made)), made, strict=True):
        _examples(part, s, train)
    return fig


def _scatter(ax: Axes, s: Subjects) -> None:
    rng = np.random.default_rng(0)
    theta, star = s.theta[SHOWN[s.model]], s.star["mle"]
    for value in (NOT, RECONSTRUCTED, EXACT):
        rows = np.flatnonzero(s.label == value)
        rows = rng.permutation(rows)[:600]  # enough to see, and a small file
        shift = rng.uniform(-0.12, 0.12, len(rows))  # many stand at 0 exactly
        ax.scatter(theta[rows], star[rows] + shift, s=14 if value != NOT else 10, alpha=0.6,
                   c=COLOURS[value], marker=MARKS[value], linewidths=0,
                   label=f"{LABELS[value]} ({(s.label == value).sum()})")  # fmt: skip
    ax.set_xlabel(f"LID_θ, {NAMES[SHOWN[s.model]]}, degrees of freedom")
    ax.set_ylabel("LID_*, MLE, degrees of freedom")
    ax.set_title(s.model)
    low, high = ax.get_ylim()
    ax.text(
        0.02, 0.97, "OD-Mem: LID_θ low, LID_* not", transform=ax.transAxes, va="top", fontsize=9
    )
    ax.text(0.02, 0.1, "DD-Mem: both low", transform=ax.transAxes, fontsize=9)
    ax.set_ylim(low, high + 0.12 * (high - low))
    ax.legend(loc="center right", fontsize=8)


def _examples(part: Any, s: Subjects, train: Tensor) -> None:
    groups = {
        "exactly, of a repeated image (DD-Mem)": (s.label == EXACT) & (s.origin == REPEATED),
        "exactly, of a rare image (OD-Mem)": (s.label == EXACT) & (s.origin == RARE),
        "reconstructively": s.label == RECONSTRUCTED,
        "not memorized": s.label == NOT,
    }
    rows = part.subplots(len(groups), 1)
    for ax, (title, mask) in zip(rows, groups.items(), strict=True):
        ax.set_axis_off()
        ax.set_title(f"{s.model}: {title}", fontsize=9)
        ax.imshow(_strip(s, np.flatnonzero(mask), train), cmap="gray", vmin=-1, vmax=1)
    part.supxlabel("upper row: generated; lower row: the nearest training image", fontsize=9)


def _strip(s: Subjects, rows: np.ndarray, train: Tensor) -> np.ndarray:
    """Generated images above their training images, of different training images where possible."""
    _, first = np.unique(s.row[rows], return_index=True)
    chosen = np.random.default_rng(0).permutation(rows[first])[:EXAMPLES]
    h, w = s.x.shape[-2:]
    strip = np.ones((2 * h + 3, EXAMPLES * (w + 2) - 2))
    for i, row in enumerate(chosen):
        left = slice(i * (w + 2), i * (w + 2) + w)
        strip[:h, left] = s.x[row].mean(0).numpy()
        strip[h + 3 :, left] = train[s.row[row]].mean(0).numpy()
    return strip


def histograms(made: list[Subjects], names: dict[str, str]) -> Figure:
    """Histogram of every LID_theta by label."""
    panels = [(s, name) for s in made for name in s.theta]
    fig, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for ax, (s, name) in zip(axes.flat, panels, strict=False):
        lid = s.theta[name]
        low = np.nanmin(lid)
        edges = np.linspace(low, max(np.nanquantile(lid, 0.995), low + 1), 31)
        for value in (NOT, RECONSTRUCTED, EXACT):
            part = lid[(s.label == value) & np.isfinite(lid)]
            share = np.full(len(part), 1 / max(1, len(part)))
            ax.hist(part, edges, weights=share, color=COLOURS[value], alpha=0.55,
                    label=f"{LABELS[value]} ({len(part)})")  # fmt: skip
        ax.set_title(f"{s.model}: {names[name]}", fontsize=10)
        ax.set_xlabel("LID_θ, degrees of freedom")
        ax.set_ylabel("share of the label's images")
        ax.legend(fontsize=7)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return fig
