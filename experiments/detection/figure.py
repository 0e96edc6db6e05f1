"""Histograms as in the paper, all detectors in one row each, and what the prompts draw."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.detection.data import Scores
from memfold.memorization.prompt_verdict import VERDICT

COLOURS = {"none": "#999999", "near": "#CC79A7", "template": "#E69F00", "verbatim": "#0072B2",
           "memorized": "#0072B2"}  # fmt: skip
WORDS = {"none": "not memorized", "near": "near miss"}
PANELS = (
    ("flipd_unconditional", "FLIPD without the prompt, LID_θ(x)", "degrees of freedom", -1),
    ("flipd_conditional", "FLIPD under the prompt, LID_θ(x | c)", "degrees of freedom", -1),
    ("cfg_norm", "CFG norm |eps_c - eps_0|", "mean over steps, latent units", 1),
    (VERDICT, "joint verdict", "arsinh of robust standard deviations", 1),
)


def histograms(scores: Scores) -> Figure:
    """Draw the distribution of four scores, memorized prompts against others."""
    shown = [panel for panel in PANELS if panel[0] in scores.by_detector]
    fig = Figure(figsize=(8, 5.4), layout="constrained")
    axes = fig.subplots(2, 2).flatten()
    for ax in axes[len(shown) :]:
        ax.axis("off")
    for ax, (name, title, unit, sign) in zip(axes, shown, strict=False):
        values = sign * scores.by_detector[name]
        edges = np.linspace(values.min(), values.max(), 31)
        for kind in [k for k in COLOURS if (scores.kinds == k).any() and k != "near"]:
            ax.hist(values[scores.kinds == kind], edges, density=True, color=COLOURS[kind],
                    alpha=0.6, label=WORDS.get(kind, kind))  # fmt: skip
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(unit)
        ax.set_yticks([])
    axes[0].set_ylabel("density")
    axes[2].set_ylabel("density")
    axes[0].legend(frameon=False)
    return fig


def ranking(rows: list[dict[str, Any]]) -> Figure:
    """Draw AUROC and true-positive rate of every detector with their intervals."""
    rows = list(reversed(rows))
    fig = Figure(figsize=(8, 0.27 * len(rows) + 1), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    for ax, key, title in (
        (left, "auroc", "AUROC, memorized against others"),
        (right, "tpr", "true-positive rate at 1 % false positives"),
    ):
        values = np.array([row["all.memorized"][key] for row in rows])
        ends = np.array([row["all.memorized"][f"{key}_interval"] for row in rows])
        at = np.arange(len(rows))
        ax.hlines(at, ends[:, 0], ends[:, 1], color="#56B4E9", linewidth=3)
        ax.plot(values, at, "o", color="#0072B2", markersize=4)
        ax.set_title(title, fontsize=10)
        ax.grid(axis="x", alpha=0.3)
    left.axvline(0.5, color="#999999", linestyle=":", linewidth=1)
    left.set_yticks(range(len(rows)), [row["detector"] for row in rows])
    return fig


def strip(drawn: list[tuple[str, str, np.ndarray]]) -> Figure:
    """Show what some prompts of each kind draw, one row a prompt, one column a seed."""
    count = len(drawn[0][2])
    fig = Figure(figsize=(8, 0.75 * len(drawn)))
    axes = fig.subplots(len(drawn), count, squeeze=False)
    fig.subplots_adjust(left=0.44, right=0.995, bottom=0.01, top=0.99, wspace=0.04, hspace=0.04)
    for line, (prompt, kind, images) in zip(axes, drawn, strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
        words = prompt if len(prompt) < 58 else prompt[:55] + "..."
        line[0].set_ylabel(f"{WORDS.get(kind, kind)}\n{words}", rotation=0, ha="right",
                           va="center", fontsize=8, color=COLOURS[kind], parse_math=False)  # fmt: skip
    return fig
