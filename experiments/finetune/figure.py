"""What the fine-tune draws, and how far both scores tell its private images from others."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.finetune.data import Candidates
from memfold.memorization.evaluate import auroc

PRIVATE, OTHER = "#D55E00", "#999999"


def found_figure(
    base: np.ndarray, found: dict[int, dict[str, Any]], by_step: dict[int, dict[str, np.ndarray]],
    private: np.ndarray,
) -> Figure:  # fmt: skip
    """Draw LID_theta against LID_base at the end, and AUROC over the steps."""
    fig = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2)
    final = max(found)
    lid = found[final]["lid"]
    edge = [min(base.min(), lid.min()) - 3, max(base.max(), lid.max()) + 3]
    left.plot(edge, edge, color="#56B4E9", linewidth=1, zorder=0)
    for mine, colour, name in (
        (~private, OTHER, "other images"),
        (private, PRIVATE, "private images"),
    ):
        left.plot(base[mine], lid[mine], "o", color=colour, markersize=4, label=name)
    left.set_xlabel("LID_base(x | c), degrees of freedom")
    left.set_ylabel("LID_θ(x | c), degrees of freedom")
    left.set_title(f"before and after {final} steps", fontsize=10)
    left.legend(frameon=False)
    steps = list(by_step)
    for key, colour, name, style in (
        ("difference", "#0072B2", "LID_base - LID_θ", "o-"),
        ("alone", "#E69F00", "LID_θ alone", "s-"),
    ):
        right.plot(steps, [auroc(by_step[s][key], private) for s in steps], style, color=colour,
                   label=f"AUROC of {name}")  # fmt: skip
    right.plot(steps, [found[s]["copied"].mean() for s in steps], "^:", color=PRIVATE,
               label="drawn images that are copies")  # fmt: skip
    right.set_xscale("log", base=2)
    right.set_xticks(steps, [str(s) for s in steps])
    right.set_ylim(-0.03, 1.03)
    right.set_xlabel("steps of the fine-tune")
    right.set_title("finding the private images", fontsize=10)
    right.legend(frameon=False, fontsize=8)
    return fig


def pictures(every: Candidates, base: np.ndarray, tuned: np.ndarray, score: np.ndarray) -> Figure:
    """Show private images, what base and fine-tune draw, and the candidates of highest score."""
    count = min(10, len(base))
    top = every.images.numpy()[np.argsort(-score)[:count]]
    rows = (
        ("private image", every.images.numpy()[:count]),
        ("base draws\nits caption", base[:count]),
        ("LoRA draws\nits caption", tuned[:count]),
        ("candidates of\nhighest score", top),
    )
    fig = Figure(figsize=(8, 3.3), layout="constrained")
    axes = fig.subplots(len(rows), count)
    for line, (name, images) in zip(axes, rows, strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for ax, i in zip(axes[-1], np.argsort(-score)[:count], strict=True):
        if i < len(base):
            for side in ax.spines.values():
                side.set(color=PRIVATE, linewidth=3)
    return fig
