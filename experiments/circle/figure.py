"""The figures: the circle, what was learned of it, and the six cases."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.circle.panels import LEFT, Case

BLUE, SKY, ORANGE, RED, GREY = "#0072B2", "#9ED3F0", "#E69F00", "#D55E00", "#888888"
EDGE = 1.45
THETA, STAR = r"$\mathrm{LID}_\theta$", r"$\mathrm{LID}_*$"


def circle_figure(seeds: list[dict[str, Any]], summary: dict[str, np.ndarray]) -> Any:
    """Draw the first seed's data, maps and samples, and the LIDs and verdicts of all seeds.

    Args:
        seeds: arrays of each seed.
        summary: (seeds,) arrays `theta` and `star` for each group, and its name.
    """
    fig, axes = plt.subplots(2, 3, figsize=(11.5, 7.6), layout="constrained")
    (data, theta, star, made, dots, called), found = axes.flat, seeds[0]
    _plane(data, "The ground truth and the training rows")
    data.add_patch(plt.Circle((0, 0), 1, fill=False, color=SKY, alpha=0.5))
    data.scatter(*found["truth"].T, s=6, color=SKY, label="ground truth", rasterized=True)
    data.scatter(*found["places"][2:].T, s=26, marker="x", color="k", label="training row")
    _ring(data, found["places"])
    data.legend(loc="upper right", fontsize=7)
    for ax, name, title in (
        (theta, "map_theta", f"{THETA}: what the model leaves free"),
        (star, "map_star", f"{STAR}: what the ground truth leaves free"),
    ):
        _plane(ax, title)
        image = ax.imshow(
            found[name], origin="lower", extent=(-EDGE, EDGE) * 2, vmin=0, vmax=2, cmap="cividis"
        )
        ax.scatter(*found["places"][2:].T, s=12, marker="x", color="w", linewidths=0.8)
        _ring(ax, found["places"])
        fig.colorbar(image, ax=ax, shrink=0.75, label="degrees of freedom")
    _plane(made, "What the model generates")
    made.scatter(*found["samples"].T, s=5, color=RED, alpha=0.35, rasterized=True)
    _ring(made, found["places"], ("isolated row", "origin"))
    _groups(dots, summary)
    _verdicts(called, seeds)
    return fig


def six_panels(cases: list[Case], drawn: list[dict[str, Any]]) -> Any:
    """Draw the six cases: truth in blue, model in red, training rows as crosses."""
    fig, axes = plt.subplots(2, 3, figsize=(10.5, 6.6), layout="constrained")
    for ax, case, got in zip(axes.flat, cases, drawn, strict=True):
        ax.scatter(*got["truth"].T, s=14, color=SKY, label="ground truth", rasterized=True)
        ax.scatter(*got["rows"].T, s=40, marker="x", color="k", label="training row")
        ax.scatter(*got["model"].T, s=8, color=RED, alpha=0.7, label="model", rasterized=True)
        ax.scatter(*LEFT.T, s=190, facecolors="none", edgecolors="k", linewidths=1)
        ax.set(title=case.title, xlim=(-2.3, 2.3), ylim=(-2.1, 1.7), xticks=[], yticks=[])
        text = f"{THETA} = {got['theta']:.2f}, {STAR} = {got['star']:.2f}: {got['verdict']}"
        if got["verdict"] == "undetermined":
            text = f"{STAR} = {got['star']:.2f}; the model does not fit: undetermined"
        ax.text(0, -1.9, text, ha="center", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
    return fig


def _plane(ax: Any, title: str) -> None:
    ax.set_title(title, fontsize=10)
    ax.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), aspect="equal", xticks=[-1, 0, 1])
    ax.set(yticks=[-1, 0, 1], xlabel="x₁", ylabel="x₂")


def _ring(ax: Any, places: np.ndarray, names: tuple[str, str] | None = None) -> None:
    for place, colour, name in zip(places[:2], (ORANGE, BLUE), names or ("", ""), strict=True):
        ax.scatter(*place, s=150, facecolors="none", edgecolors=colour, linewidths=2.4)
        if name:
            ax.annotate(
                name, place, (10, 12), textcoords="offset points", color=colour, weight="bold"
            )


def _groups(ax: Any, summary: dict[str, np.ndarray]) -> None:
    names = ["isolated", "origin", "rest"]
    for i, name in enumerate(names):
        for shift, side, colour, mark in ((-0.12, "theta", RED, "o"), (0.12, "star", BLUE, "s")):
            values = summary[f"{side}_{name}"]
            label = {"theta": THETA, "star": f"{STAR}, MLE"}[side] if i == 0 else None
            jitter = np.linspace(-0.06, 0.06, len(values))
            ax.scatter(i + shift + jitter, values, s=20, color=colour, marker=mark, label=label)
    ax.axhspan(0.5, 1.5, color=GREY, alpha=0.12)
    ax.set_xticks(range(3), ["isolated row", "origin", "rest of\nthe circle"])
    ax.set(ylabel="degrees of freedom", ylim=(-0.15, 1.65), box_aspect=1)
    ax.set_title("Each point a training seed", fontsize=10)
    ax.legend(fontsize=8, loc="center")


def _verdicts(ax: Any, found: list[dict[str, Any]]) -> None:
    _plane(ax, f"The verdict at the training rows of all {len(found)} seeds")
    places, kinds = (np.concatenate([made[key] for made in found]) for key in ("places", "verdict"))
    for kind, colour, mark, size in (
        ("none", GREY, ".", 20),
        ("undetermined", "w", "o", 32),
        ("overfitting", ORANGE, "^", 48),
        ("data", BLUE, "s", 48),
    ):
        own = places[kinds == kind]
        edge = "none" if kind == "none" else "k"
        ax.scatter(*own.T, s=size, color=colour, marker=mark, label=kind, edgecolors=edge, lw=0.8)
    lone = np.array([made["places"][0] for made in found])
    ax.scatter(*lone.T, s=150, facecolors="none", edgecolors=ORANGE, label="isolated row")
    ax.legend(loc="center", bbox_to_anchor=(0.52, 0.34), fontsize=6.5)
