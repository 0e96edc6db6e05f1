"""Which detector finds memorized captions: FLIPD with and without the prompt, CFG norm, all others.

The bundled text-to-image pipeline knows captions by heart verbatim and as templates; prompts are
labelled by what it draws. For every prompt images are drawn, and at each of them LID_theta(x) and
LID_theta(x | c) are measured by FLIPD, |eps_c - eps_0| over the steps, and every other detector of
memfold, by `memfold.audit.bench`. Histograms as in the paper, and AUROC and true-positive rate at
1 % false positives with intervals over families of prompts.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from experiments.detection.data import Scores, read_scores, sample
from experiments.detection.figure import histograms, ranking, strip
from experiments.kit import Run, interval, main
from memfold.audit.bench import bench
from memfold.audit.labelled import Labelled, read_labelled
from memfold.audit.scoring import Scoring
from memfold.memorization.evaluate import auroc
from memfold.memorization.prompt_verdict import VERDICT

ASSETS = Path("assets/text_to_image")
MARGIN = 0.01  # of AUROC: as good as another
WHERE = "Section 5, Stable Diffusion"


def experiment(run: Run) -> None:
    """Score the bundled pipeline's prompts, state the claims, draw the figures."""
    every, ordinary = read_labelled(ASSETS / "prompts.csv", ordinary=ASSETS / "ordinary.txt")
    counts = run.pick(
        quick={"verbatim": 20, "template": 20, "near": 10, "none": 20},
        full={"verbatim": 62, "template": 39, "near": 25, "none": 170},
    )
    labelled = sample(every, counts, run.seed)
    rng = np.random.default_rng(run.seed)
    few = [str(c) for c in rng.permutation(ordinary)[: run.pick(quick=30, full=100)]]
    scoring = Scoring(model=str(ASSETS / "model"), images=2, steps=20, guidance_scale=3.0)
    detect(run, labelled, few, scoring)


def detect(run: Run, labelled: Labelled, ordinary: list[str], scoring: Scoring) -> None:
    """Run the benchmark, which keeps its finished pieces, and report it."""
    out = run.out / "steps" / f"bench-{'quick' if run.quick else 'full'}-{run.seed}"
    if run.overwrite:
        shutil.rmtree(out, ignore_errors=True)
    found = bench(labelled, scoring, out, ordinary=ordinary)
    scores = read_scores(out / "scores.csv")
    run.figure("histograms", histograms(scores))
    run.figure("ranking", ranking(found["rows"]))
    table(run, found)
    claims(run, scores, found["text_only"])
    run.figure("drawn", strip(draw(run, scores, scoring)))


def table(run: Run, found: dict[str, Any]) -> None:
    """Write a row a detector."""
    rows = []
    for row in found["rows"]:
        many = row["all.memorized"]
        kinds = [row.get(f"all.{kind}") for kind in ("verbatim", "template")]
        rows.append([
            row["detector"],
            *(_cell(many[key], many[f"{key}_interval"]) for key in ("auroc", "tpr")),
            *(f"{k['auroc']:.3f} / {k['tpr']:.2f}" if k else "-" for k in kinds),
            f"{row['all.near_called']:.2f}" if "all.near_called" in row else "-",
            "-" if not np.isfinite(row["ms"]) else f"{row['ms']:.0f}",
        ])  # fmt: skip
    run.table("detectors", ["detector", "AUROC", "TPR at 1 % FPR", "verbatim", "template",
                            "near misses called", "ms an image"], rows)  # fmt: skip
    counts = [[kind, n] for kind, n in found["prompts"].items()]
    text = found["text_only"]
    counts.append(["AUROC of the words alone", "-" if text is None else f"{text:.3f}"])
    run.table("prompts", ["prompts", "number"], counts)


def _cell(value: float, ends: tuple[float, float]) -> str:
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def separation(memorized: np.ndarray, others: np.ndarray) -> np.ndarray:
    """AUROC of each column: memorized prompts against others."""
    truth = np.repeat([True, False], [len(memorized), len(others)])
    both = np.concatenate([memorized, others])
    return np.array([auroc(column, truth) for column in both.T])


def claims(run: Run, scores: Scores, text_only: float | None) -> None:
    """State the paper's claims, and those about the verdict."""
    options: dict[str, Any] = {"clusters": scores.clusters(), "seed": run.seed}

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.mean() - b.mean())

    conditional, without = "flipd_conditional", "flipd_unconditional"
    lids = tuple(-part for part in scores.split(conditional))
    run.claim("LID_θ(x | c) is lower at memorized prompts", "FLIPD(x | c), memorized less others",
              interval(lids, apart, **options), below=0.0, source=WHERE)  # fmt: skip
    run.claim("The CFG norm is higher at memorized prompts", "CFG norm, memorized less others",
              interval(scores.split("cfg_norm"), apart, **options), above=0.0, source=WHERE)  # fmt: skip
    run.claim("LID_θ(x) without the prompt separates too", "AUROC of -FLIPD(x)",
              interval(scores.split(without), lambda a, b: separation(a, b)[0], **options),
              above=0.5, source=WHERE)  # fmt: skip
    run.claim("The prompt is part of what is memorized: LID_θ(x | c) separates better than LID_θ(x)",
              "difference of AUROC",
              interval(scores.split(conditional, without),
                       lambda a, b: float(-np.diff(separation(a, b))[0]), **options),
              above=0.0)  # fmt: skip
    if text_only is not None:
        run.claim("FLIPD(x | c) beats the words of the prompts alone",
                  "AUROC of -FLIPD(x | c) less that of a text classifier",
                  interval(scores.split(conditional),
                           lambda a, b: separation(a, b)[0] - text_only, **options),
                  above=0.0)  # fmt: skip
    if VERDICT in scores.by_detector:
        singles = [name for name in scores.by_detector if name != VERDICT]

        def ahead(a: np.ndarray, b: np.ndarray) -> float:
            each = separation(a, b)
            return float(each[0] - each[1:].max())  # the best is chosen anew in each resample

        found = interval(scores.split(VERDICT, *singles), ahead, **options)
        run.claim("The joint verdict is as good as the best single detector",
                  "AUROC of the verdict less that of the best", found, above=-MARGIN)  # fmt: skip


def draw(run: Run, scores: Scores, scoring: Scoring, each: int = 2) -> list[Any]:
    """Draw images of a few prompts of each kind, for the eye."""
    rng, model, picked = np.random.default_rng(run.seed), scoring.load(), []
    for kind in ("verbatim", "template", "memorized", "near", "none"):
        rows = rng.permutation(np.flatnonzero(scores.kinds == kind))[:each]
        picked += [(str(scores.prompts[i]), kind) for i in rows]
    out = []
    for prompt, kind in picked:
        x = model.generate(prompt, list(range(6)), **scoring.options())
        out.append((prompt, kind, model.decode(x).numpy(force=True)))
    return out


if __name__ == "__main__":
    main(experiment, __file__)
