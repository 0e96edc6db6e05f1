"""The figures of the propositions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.kit import interval

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#888888",
)  # fmt: skip
THETA, STAR = r"$\mathrm{LID}_\theta$", r"$\mathrm{LID}_*$"
Groups = dict[str, tuple[np.ndarray, str]]  # name -> rows, colour


def duplicates_figure(counts: Sequence[int], table: dict[str, np.ndarray], x: np.ndarray) -> Any:
    """Draw LIDs against copies, (seeds, counts) each, over one digit of each count."""
    fig = plt.figure(figsize=(8, 5.6), layout="constrained")
    grid = fig.add_gridspec(2, len(counts), height_ratios=(1, 5))
    for i, (m, digit) in enumerate(zip(counts, x, strict=True)):
        ax = fig.add_subplot(grid[0, i])
        ax.imshow(digit.reshape(8, 8), cmap="gray_r")
        ax.set_title(f"{m} ×", fontsize=10)
        ax.set(xticks=[], yticks=[])
    ax = fig.add_subplot(grid[1, :])
    styles = {
        "star_mle": (f"{STAR}: MLE, 20 neighbours", BLUE, "s-"),
        "star_lpca": (f"{STAR}: local PCA, 50 neighbours", GREEN, "^-"),
        "star_empirical": (f"{STAR}: denoiser of the training set", PURPLE, "D-"),
        "theta": (f"{THETA}: FLIPD of the network", RED, "o--"),
        "loss": (f"{THETA}: denoising loss", ORANGE, "v--"),
    }
    for name, (label, colour, mark) in styles.items():
        _band(ax, np.array(counts), table[name], colour, mark, label)
    ax.set(xscale="log", xlabel="copies of the row in the training set")
    ax.set(ylabel="degrees of freedom at the row (of 64)")
    ax.set_xticks(counts, [str(m) for m in counts])
    ax.minorticks_off()
    ax.legend(fontsize=8)
    return fig


def conditioning_figure(sigmas: Sequence[float], without: Groups, with_: Groups) -> Any:
    """Draw LID(x | c) against LID(x), a point a prompt, and their difference over scales."""
    fig, (ax, lower) = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    middle = len(sigmas) // 2
    for name, (table, colour) in without.items():
        ax.scatter(
            table[:, middle], with_[name][0][:, middle], s=18, color=colour, alpha=0.7, label=name
        )
        gap = table - with_[name][0]
        for i, s in enumerate(sigmas):
            spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(gap))
            place = i + (-0.18 if colour == ORANGE else 0.18)
            lower.scatter(place + spread, gap[:, i], s=12, color=colour, alpha=0.6)
            lower.set_xticks(range(len(sigmas)), [f"{s:g}" for s in sigmas])
    top = max(t[:, middle].max() for t, _ in without.values())
    ax.plot([0, top], [0, top], color=GREY, lw=1, label="no change")
    ax.set(xlabel="LID(x): without the prompt", ylabel="LID(x | c): with the prompt")
    ax.set_title(f"Images of {sum(len(t) for t, _ in without.values())} prompts, σ = "
                 f"{sigmas[middle]:g}", fontsize=10)  # fmt: skip
    ax.legend(fontsize=8)
    lower.axhline(0, color=GREY, lw=1)
    lower.set_yscale("symlog", linthresh=1)
    lower.set(xlabel="σ", ylabel="LID(x) − LID(x | c)")
    lower.set_title("What the prompt takes away (symmetric log scale)", fontsize=10)
    return fig


def guidance_figure(
    scales: Sequence[float],
    panels: dict[str, Groups],
    rows: Sequence[tuple[str, np.ndarray]],
) -> Any:
    """Draw LIDs against w, and what is drawn at each w.

    Args:
        scales: the values of w.
        panels: title -> groups of tables (prompts, scales).
        rows: captions with their images, (scales, 3, h, w).
    """
    fig = plt.figure(figsize=(11, 4.1 + 1.15 * len(rows)), layout="constrained")
    upper, lower = fig.subfigures(2, 1, height_ratios=(3.6, 1.15 * len(rows)))
    for ax, (title, groups) in zip(upper.subplots(1, len(panels)), panels.items(), strict=True):
        for name, (table, colour) in groups.items():
            _band(ax, np.array(scales), table, colour, "o-", name)
        if min(table.min() for table, _ in groups.values()) > 0:
            ax.set_yscale("log")
        else:
            ax.axhline(0, color=GREY, lw=1)
        ax.set(xlabel="guidance scale w", ylabel="degrees of freedom")
        ax.set_title(title, fontsize=9)
        ax.legend(fontsize=7)
    axes = lower.subplots(len(rows), len(scales))
    for k, (line, (caption, images)) in enumerate(zip(axes, rows, strict=True)):
        for ax, w, image in zip(line, scales, images, strict=True):
            ax.imshow(image.transpose(1, 2, 0).astype(np.float32))
            ax.set(xticks=[], yticks=[])
            if k == 0:
                ax.set_title(f"w = {w:g}", fontsize=9)
        line[0].set_ylabel(caption, fontsize=7, rotation=0, ha="right", va="center")
    return fig


def training_figure(checkpoints: Sequence[int], tables: dict[int, np.ndarray]) -> Any:
    """Draw LID_theta over training for each size; tables are (seeds, checkpoints, 2)."""
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained")
    colours = (RED, ORANGE, GREEN, BLUE)
    steps = np.array(checkpoints)
    for colour, (n, table) in zip(colours, tables.items(), strict=False):
        _band(axes[0], steps, table[:, :, 0], colour, "o-", f"{n} digits, training rows")
        _band(axes[0], steps, table[:, :, 1], colour, "x:", f"{n} digits, held-out rows")
    axes[0].set(xscale="log", xlabel="training steps", ylabel=f"{THETA} (of 64)")
    axes[0].set_title("It falls as training goes on", fontsize=10)
    axes[0].legend(fontsize=7)
    sizes = np.array(list(tables))
    for j, mark, kind in ((0, "o-", "training rows"), (1, "x:", "held-out rows")):
        last = np.stack([table[:, -1, j] for table in tables.values()], 1)
        _band(axes[1], sizes, last, BLUE if j else RED, mark, kind)
    axes[1].set(xscale="log", xlabel="training rows", ylabel=f"{THETA} after the last step")
    axes[1].set_xticks(sizes, [str(n) for n in sizes])
    axes[1].minorticks_off()
    axes[1].set_title("It rises with the data, at the same compute", fontsize=10)
    axes[1].legend(fontsize=8)
    return fig


def _band(ax: Any, x: np.ndarray, table: np.ndarray, colour: str, mark: str, label: str) -> None:
    """Draw the mean over rows with its 95 % interval."""
    middle, low, high = np.array([interval(column) for column in table.T]).T
    ax.plot(x, middle, mark, color=colour, label=label, ms=4)
    ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
