"""Copy similarity against text alignment, one curve a method, and what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#999999", "#0072B2", "#E69F00", "#D55E00", "#009E73")
MARKS = ("s", "o", "^", "v", "D")


def curves(found: dict[str, Any], words: list[int], names: list[str]) -> Figure:
    """Draw similarity and share of copies against alignment; bars are standard errors."""
    fig = Figure(figsize=(8, 4), layout="constrained")
    axes = fig.subplots(1, 2)
    alignment = found["alignment"].mean(3)
    for ax, key, title in (
        (axes[0], "similarity", "similarity to the memorized image"),
        (axes[1], "copies", "images that are copies"),
    ):
        values = found[key].mean(3)
        for i, name in enumerate(names):
            x, y = alignment[:, i].mean(0), values[:, i].mean(0)
            n = len(values) ** 0.5
            ax.errorbar(x, y, values[:, i].std(0) / n, alignment[:, i].std(0) / n, color=COLOURS[i],
                        marker=MARKS[i], markersize=5, linewidth=1, elinewidth=0.5, label=name)  # fmt: skip
        for j, n_words in enumerate([0, *words]):
            ax.annotate(str(n_words), (alignment[:, 0, j].mean(), values[:, 0, j].mean()),
                        xytext=(3, 5), textcoords="offset points", fontsize=8, color="#555555")  # fmt: skip
        ax.set_xlabel("alignment of image and caption (CLIP cosine)")
        ax.set_ylabel("cosine of latents" if key == "similarity" else "share")
        ax.set_title(title + "; lower is better", fontsize=10)
    axes[0].legend(frameon=False, title="words chosen by", fontsize=8)
    return fig


def pictures(
    found: dict[str, Any], words: list[int], chosen: list[str], names: list[str]
) -> Figure:
    """Show, for a few captions, what is drawn after one and two words were rewritten."""
    count = min(4, len(chosen))
    columns = [j for j in (1, 2) if j <= len(words)]
    fig = Figure(figsize=(8, 1.05 * count * len(columns)), layout="constrained")
    axes = fig.subplots(count * len(columns), 2 + len(names), squeeze=False)
    picked = np.linspace(0, len(chosen) - 1, count).astype(int)
    for row, (i, j) in enumerate((i, j) for i in picked for j in columns):
        shown = [found["original"][i], found["pictures"][i, 0, 0]]
        shown += [found["pictures"][i, m, j] for m in range(len(names))]
        for ax, image in zip(axes[row], shown, strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
        said = chosen[i].removeprefix("a photo of ")
        half = " ".join(said.split()[:3]) + "\n" + " ".join(said.split()[3:])
        axes[row, 0].set_ylabel(f"{half.strip()}\n{words[j - 1]} rewritten", rotation=0, ha="right",
                                va="center", fontsize=8)  # fmt: skip
    for ax, title in zip(axes[0], ["training\nimage", "as given", *names], strict=True):
        ax.set_title(title.replace(" ", "\n"), fontsize=8)
    return fig
