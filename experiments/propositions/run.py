"""The propositions about what moves a LID: copies, conditions, guidance, training, data.

(a) Rows that are repeated in the data have LID_* = 0, and the LID_theta of a network trained on
them falls with the number of copies. (b) LID(x | c) <= LID(x), for supports: a prompt takes freedom
away. (c) Guidance takes more, the larger its scale w. (d) LID_theta at training rows falls as
training goes on, and rises with the number of training rows at fixed compute. (a) and (d) on 8 x 8
digits, (b) and (c) on the bundled text-to-image pipeline and on a class-conditional law in closed form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.kit import Run, difference, interval, main, proportion
from experiments.propositions import exact, learned, prompts
from experiments.propositions.figure import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    conditioning_figure,
    duplicates_figure,
    guidance_figure,
    training_figure,
)

COUNTS = (1, 2, 5, 10, 20, 50, 100)
ESTIMATORS = {"flipd": "FLIPD", "loss": "denoising loss"}
WHY_FLIPD = (
    "an ordinary prompt says little of its image beyond the image itself, so that both LIDs are "
    "nearly one, and the Jacobian of a trained network is no exact posterior covariance"
)
WHY_LOSS = "the denoising loss counts what does not fit as freedom, with a prompt as without one"
SIGMAS = (0.15, prompts.SIGMA, 0.6)


def experiment(run: Run) -> None:
    """Test the propositions one after the other."""
    check_duplicates(run)
    check_conditioning(run)
    check_guidance(run)
    check_training(run)


def check_duplicates(run: Run) -> None:
    """(a) Copies drive LID_* to 0, and LID_theta after it."""
    size = run.pick(
        quick={"each": 6, "singles": 500, "n_steps": 600},
        full={"each": 8, "singles": 1000, "n_steps": 2000},
    )
    found = [
        run.arrays(f"duplicates-{s}", learned.duplicates, seed=s + 1000 * run.seed, counts=COUNTS, **size)
        for s in tqdm(range(run.pick(quick=3, full=4)), desc="copies", unit="seed")
    ]  # fmt: skip
    names = {
        "star_mle": "LID_*, MLE (20 neighbours)", "star_lpca": "LID_*, local PCA (50 neighbours)",
        "star_empirical": "LID_*, empirical denoiser", "theta": "LID_θ, FLIPD",
        "loss": "LID_θ, denoising loss",
    }  # fmt: skip
    table = {
        name: np.array([[f[name][f["copies"] == m].mean() for m in COUNTS] for f in found])
        for name in names
    }
    where = "Section 4, duplicated data"
    often = table["star_mle"][:, -2:].max(1)
    run.claim("Copies make LID_* 0", "LID_* at rows that stand 50 or 100 times, MLE",
              interval(often), below=0.5, source=where)  # fmt: skip
    for name, text in (
        ("star_empirical", "Copies lower the LID_* of a perfect denoiser"),
        ("theta", "Copies lower the LID_θ of a trained network"),
    ):
        fall = table[name][:, -1] - table[name][:, 0]
        run.claim(text, f"{names[name]}: 100 copies less 1", interval(fall), below=0, source=where)
    rows = [[text, *(cell(interval(c)) for c in table[name].T)] for name, text in names.items()]
    run.table("duplicates", ["estimate at rows that stand", *(f"{m} ×" for m in COUNTS)], rows)
    first = [np.flatnonzero(found[0]["copies"] == m)[0] for m in COUNTS]
    run.figure("duplicates", duplicates_figure(COUNTS, table, found[0]["x"][first]))


def check_conditioning(run: Run) -> None:
    """(b) LID(x | c) <= LID(x): for supports, and on average over c for exact traces."""
    law = run.arrays("exact-conditioning", exact.conditioning, seed=run.seed, n=20, points=8)
    gap, where = law["without"] - law["with"], "Section 4, conditioning"
    run.claim("A class takes freedom away: exact law", "LID(x) − LID(x | c), mean over classes",
              interval(gap), above=0, source=where)  # fmt: skip
    memorized, ordinary = run.pick(quick=(6, 9), full=(36, 48))
    texts, known = prompts.choose(memorized, ordinary, run.seed)
    made = run.arrays("conditioning", prompts.conditioning, prompts=texts, images=2, sigmas=SIGMAS,
                      seed=run.seed)  # fmt: skip
    _conditioning_claims(run, made, known, where)
    _conditioning_table(run, law, made, known)
    groups = {"memorized": (known, ORANGE), "ordinary": (~known, BLUE)}
    sides = [{name: (made[f"flipd_{side}"][own], colour) for name, (own, colour) in groups.items()}
             for side in ("without", "with")]  # fmt: skip
    run.figure("conditioning", conditioning_figure(SIGMAS, *sides))


def _conditioning_claims(run: Run, made: Any, known: np.ndarray, where: str) -> None:
    middle = SIGMAS.index(prompts.SIGMA)
    for estimator, name in ESTIMATORS.items():
        gap = (made[f"{estimator}_without"] - made[f"{estimator}_with"])[:, middle]
        for own, text in ((known, "memorized"), (~known, "ordinary")):
            run.claim(f"A prompt takes freedom away: {text} prompts",
                      f"LID(x) − LID(x | c), {name}, mean over prompts",
                      interval(gap[own]), above=0, source=where,
                      reason="" if text == "memorized" or estimator == "loss" else WHY_FLIPD)  # fmt: skip
        negative = int((gap < 0).sum())
        run.claim("It never adds any", f"share of prompts with LID(x) < LID(x | c), {name}",
                  proportion(negative, len(gap)), below=0.05, source=where,
                  reason=WHY_LOSS if estimator == "loss" else WHY_FLIPD)  # fmt: skip


def _conditioning_table(run: Run, law: Any, made: Any, known: np.ndarray) -> None:
    rows = []
    for kind, own in (("ordinary", ~law["memorized"]), ("point masses", law["memorized"])):
        rows.append(_pair(f"exact law, {kind}", "FLIPD", exact.SIGMA, law["without"][own],
                          law["with"][own]))  # fmt: skip
    for estimator, name in ESTIMATORS.items():
        for i, sigma in enumerate(SIGMAS):
            for kind, own in (("memorized", known), ("ordinary", ~known)):
                pair = (made[f"{estimator}_{side}"][own, i] for side in ("without", "with"))
                rows.append(_pair(f"pipeline, {kind}", name, sigma, *pair))
    header = ["model, conditions", "estimate", "σ", "LID(x)", "LID(x | c)", "difference", "negative"]  # fmt: skip
    run.table("conditioning", header, rows)


def _pair(kind: str, name: str, sigma: float, without: np.ndarray, with_: np.ndarray) -> list[str]:
    gap = without - with_
    return [kind, name, f"{sigma:g}", f"{without.mean():.2f}", f"{with_.mean():.2f}",
            cell(interval(gap)), f"{(gap < 0).sum()} of {len(gap)}"]  # fmt: skip


def check_guidance(run: Run) -> None:
    """(c) Guidance lowers the LID of the guided model, at the images that it draws."""
    scales = run.pick(quick=(1, 3, 7.5), full=(0, 1, 2, 3, 5, 7.5))
    law = run.arrays("exact-guidance", exact.guidance, seed=run.seed, n=run.pick(quick=3, full=8),
                     points=8, scales=scales)  # fmt: skip
    texts, known = prompts.choose(*run.pick(quick=(3, 3), full=(8, 8)), run.seed + 1)
    made = run.arrays("guidance", prompts.guidance, prompts=texts, images=2, scales=scales,
                      seed=run.seed)  # fmt: skip
    one, where = scales.index(1), "Section 4, guidance"
    groups = (
        ("exact law", law["guided"], slice(None), ""),
        ("memorized prompts", made["guided"], known, ""),
        ("ordinary prompts", made["guided"], ~known,
         "tr J_w = tr J_0 + w (tr J_c − tr J_0): where the prompt takes little away, w multiplies "
         "little, and the images themselves become other ones"),
    )  # fmt: skip
    for kind, table, own, reason in groups:
        change = interval((table[:, -1] - table[:, one])[own])
        run.claim(f"Guidance lowers the LID: {kind}",
                  f"FLIPD of D_w at its own images, w = {scales[-1]:g} less w = 1",
                  change, below=0, source=where, reason=reason if change[2] >= 0 else "")  # fmt: skip
    for name, text in (("guided", "FLIPD at noised points"), ("published", "FLIPD as published")):
        last = made[name][:, -1]
        run.claim(f"Under strong guidance memorized prompts stand lower: {text}",
                  f"LID of D_w at w = {scales[-1]:g}, memorized less ordinary",
                  difference(last[known], last[~known]), below=0,
                  reason="" if name == "guided" else "|eps_w|² grows as w², most where the prompt "
                  "moves the model most")  # fmt: skip
    _guidance_outputs(run, scales, law, made, texts, known)


def _guidance_outputs(
    run: Run, scales: tuple[float, ...], law: Any, made: Any, texts: list[str], known: np.ndarray
) -> None:
    names = {"guided": "D_w: FLIPD", "published": "D_w: FLIPD as published", "loss": "D_w: denoising loss",
             "conditional": "D_c: FLIPD", "unconditional": "D_0: FLIPD"}  # fmt: skip
    rows = []
    for kind, own in (("ordinary", ~law["memorized"]), ("point masses", law["memorized"])):
        for name in ("guided", "conditional"):
            rows.append([f"exact law, {kind}", names[name],
                         *(f"{v:.1f}" for v in law[name][own].mean(0))])  # fmt: skip
    for kind, own in (("memorized", known), ("ordinary", ~known)):
        for name, text in names.items():
            rows.append([f"pipeline, {kind}", text, *(cell(interval(c), 1) for c in made[name][own].T)])  # fmt: skip
    run.table("guidance", ["images", "LID of", *(f"w = {w:g}" for w in scales)], rows)
    both = {"memorized": (known, ORANGE), "ordinary": (~known, BLUE)}
    panels: Any = {
        title: {kind: (made[name][own], colour) for kind, (own, colour) in both.items()}
        for title, name in (("guided model, FLIPD", "guided"), ("prompt alone, FLIPD", "conditional"),
                            ("guided model, denoising loss", "loss"))
    }  # fmt: skip
    panels["exact guided law, FLIPD"] = {
        "point masses": (law["guided"][law["memorized"]], PURPLE),
        "ordinary classes": (law["guided"][~law["memorized"]], GREEN),
    }
    shown = [*np.flatnonzero(known)[:2], *np.flatnonzero(~known)[:2]]
    pictures = [(texts[i].replace(" by ", "\nby ").replace("a photo of ", "a photo of\n"), made["image"][i])
                for i in shown]  # fmt: skip
    run.figure("guidance", guidance_figure(scales, panels, pictures))


def check_training(run: Run) -> None:
    """(d) LID_theta falls over training and rises with the number of rows."""
    checkpoints = run.pick(quick=(50, 200, 800), full=(50, 100, 250, 500, 1000, 2000))
    sizes, seeds = run.pick(quick=((50, 800), 3), full=((50, 200, 800), 4))
    tables: dict[str, dict[int, np.ndarray]] = {"theta": {}, "loss": {}}
    for n in sizes:
        found = [
            run.arrays(f"training-{n}-{s}", learned.over_training, seed=s + 1000 * run.seed, n=n,
                       checkpoints=checkpoints, points=40)
            for s in tqdm(range(seeds), desc=f"{n} digits", unit="seed")
        ]  # fmt: skip
        for name in tables:
            tables[name][n] = np.array([f[name] for f in found])
    theta, where = tables["theta"], "Section 4, training and data"
    first, last = (theta[sizes[0]][:, i] for i in (0, -1))
    run.claim("LID_θ falls as training goes on",
              f"at {sizes[0]} training rows, last checkpoint less first",
              interval(last[:, 0] - first[:, 0]), below=0, source=where)  # fmt: skip
    run.claim("It falls further at training rows than at held-out ones",
              f"held-out less training rows, {sizes[0]} rows, last checkpoint",
              interval(last[:, 1] - last[:, 0]), above=0, source=where)  # fmt: skip
    run.claim("LID_θ rises with the data, at the same compute",
              f"at training rows, {sizes[-1]} rows less {sizes[0]}",
              interval(theta[sizes[-1]][:, -1, 0] - last[:, 0]), above=0, source=where)  # fmt: skip
    rows = [
        [str(n), kind, text, *(cell(interval(c), 1) for c in tables[name][n][:, :, j].T)]
        for name, text in (("theta", "FLIPD"), ("loss", "denoising loss"))
        for n in sizes
        for j, kind in enumerate(("training", "held out"))
    ]
    header = ["training rows", "measured at", "estimate", *(f"{c} steps" for c in checkpoints)]
    run.table("training", header, rows)
    run.figure("training", training_figure(checkpoints, theta))


def cell(found: tuple[float, float, float], digits: int = 2) -> str:
    """Write a value with its interval."""
    value, low, high = (f"{v:.{digits}f}" for v in found)
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    main(experiment, __file__)
