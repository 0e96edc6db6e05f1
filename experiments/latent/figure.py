"""Both LIDs of all images, and what was judged."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from memfold.memorization.mmh import Verdicts

COLOURS = {"held out": "#BBBBBB", "ordinary": "#56B4E9", "control": "#009E73",
           "template": "#E69F00", "verbatim": "#0072B2", "private": "#D55E00"}  # fmt: skip
MARKS = {"held out": ".", "ordinary": "x", "control": "+", "template": "^", "verbatim": "o",
         "private": "D"}  # fmt: skip
NAMES = {"private": "private (LoRA)"}


def map_figure(real: dict[str, Any], generated: dict[str, Any], tuned: dict[str, Any]) -> Figure:
    """Draw LID_theta(x | c) against LID_*: training images, generated ones, and the LoRA's."""
    fig = Figure(figsize=(8, 3.4), layout="constrained")
    axes = fig.subplots(1, 3, sharey=True)
    for ax, found, title in zip(
        axes, (real, generated, tuned), ("training images", "generated images", "after the LoRA"),
        strict=True,
    ):  # fmt: skip
        for group, colour in COLOURS.items():
            mine = found["groups"] == group
            if mine.any():
                ax.plot(found["star"][mine], found["theta_c"][mine], MARKS[group], color=colour,
                        markersize=4, label=NAMES.get(group, group))  # fmt: skip
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("LID_*(x) in latents, MLE")
    axes[0].set_ylabel("LID_θ(x | c), denoising loss")
    handles = {}
    for ax in axes:
        found_handles, labels = ax.get_legend_handles_labels()
        handles |= dict(zip(labels, found_handles, strict=True))
    fig.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False)
    return fig


def pictures(generated: dict[str, Any], verdict: Verdicts) -> Figure:
    """Show generated images of each group with their verdict."""
    names = generated["groups"]
    count, groups = 8, [g for g in reversed(COLOURS) if g in names and g != "held out"]
    fig = Figure(figsize=(8, 1.25 * len(groups)), layout="constrained")
    axes = fig.subplots(len(groups), count)
    judged = np.flatnonzero(~np.isin(names, ("held out", "new caption")))
    for line, group in zip(axes, groups, strict=True):
        rows = [(i, j) for i, j in enumerate(judged) if names[j] == group][:count]
        for ax, (i, j) in zip(line, rows, strict=False):
            ax.imshow(generated["images"][j], cmap="gray", vmin=0, vmax=1)
            ax.set_xlabel(str(verdict.kind[i]), fontsize=8)
        for ax in line:
            ax.set_xticks([])
            ax.set_yticks([])
        line[0].set_ylabel(group, rotation=0, ha="right", va="center", fontsize=9)
    return fig
