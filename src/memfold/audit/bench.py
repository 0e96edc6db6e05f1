"""Detectors against known answers: which prompts are memorized, who finds them, at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

import memfold
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.detectors import DETECTORS
from memfold.memorization.evaluate import auroc, bootstrap, tpr_at_fpr
from memfold.memorization.prompt_verdict import LEAST, SIGNALS, VERDICT, combine, standards
from memfold.report.bench_figures import bench_figure
from memfold.sampling.training import training_images
from memfold.types import InputError

from .bench_tables import finite, markdown, score_rows
from .digest import model_digest
from .labelled import Labelled, counts, is_memorized, text_only
from .plan import recorded
from .scored import score_prompts
from .scoring import Scoring, usable
from .store import Columns, Store, write_text

FPR = 0.01
OUTPUTS = ("scores.csv", "bench.md", "bench.svg")
_ORDINARY = 100  # ordinary prompts that set the verdict's scale, at most


def bench(
    labelled: Labelled,
    scoring: Scoring,
    out: str | Path,
    *,
    ordinary: Sequence[str] = (),
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    record_paths: bool = False,
) -> dict[str, Any]:
    """Score every prompt by every detector and compare with the known answers; resumable.

    Args:
        labelled: the prompts and their answers.
        scoring: how they are scored.
        out: directory of the results: `bench.json`, `scores.csv` (a row an image), `bench.md`.
        ordinary: further prompts that are not memorized, for the scale of the joint verdict, of
            which the first 100 are taken; none of them may be among the labelled. Without them
            there is no verdict.
        workers: processes.
        overwrite: discard what another run left in `out`.
        progress: show a bar.
        record_paths: write whole paths into the results, not last names.

    Returns:
        What bench.json holds.

    Raises:
        InputError: the lists or the pipeline cannot be used.
    """
    shared = set(labelled.prompts) & set(ordinary)
    if shared:
        raise InputError(
            f"{len(shared)} ordinary prompts stand in the labelled list too, such as "
            f"{min(shared)[:60]!r}: the verdict's scale must come from others"
        )
    ordinary = ordinary[:_ORDINARY]
    if 0 < len(ordinary) < LEAST:
        raise InputError(
            f"{len(ordinary)} ordinary prompts are too few for the verdict's scale; pass "
            f"{LEAST} or more, or none"
        )
    model = scoring.load()
    detectors, left = usable(model, scoring.detectors, scoring.images, scoring.spaces)
    fingerprint = {
        **scoring.fingerprint(),
        "prompts": list(labelled.prompts),
        "ordinary": list(ordinary),
        "training": _digests(scoring, model),
    }
    options: dict[str, Any] = {"workers": workers, "progress": progress, "model": model}
    with Store(out, fingerprint, overwrite=overwrite) as store:
        test = score_prompts(labelled.prompts, scoring, store, stage="test", **options)
        scores = _table(test, len(labelled.prompts), [d.name for d in detectors])
        if ordinary:
            wanted = tuple(d.name for d in detectors if d.name in SIGNALS)
            few = replace(scoring, detectors=wanted)
            base = score_prompts(ordinary, few, store, stage="ordinary", **options)
            reference = _table(base, len(ordinary), wanted)
            scores[VERDICT] = combine(scores, standards(reference))
        rows = _rows(scores, labelled, scoring, test)
        found = {
            "memfold": memfold.__version__,
            "model": recorded(scoring.model, whole=record_paths),
            "pipeline": model.name,
            "settings": scoring.settings(),
            "prompts": counts(labelled) | {"ordinary": len(ordinary)},
            "fpr": FPR,
            "text_only": text_only(labelled),
            "left_out": left,
            "rows": rows,
        }
        write_text(Path(out) / "scores.csv", score_rows(scores, labelled, scoring.seeds))
        write_text(Path(out) / "bench.md", markdown(found))
        write_text(Path(out) / "bench.svg", bench_figure(rows, scoring.images))
        return store.finish("bench.json", finite(found), OUTPUTS)


def _digests(scoring: Scoring, model: TextToImage) -> list[str]:
    """Digest the training images and the embedding; errors in them come before the work."""
    found = []
    if scoring.data is not None:
        found.append(training_images(scoring.data, model).digest)
    if scoring.embedding is not None:
        scoring.read_embedding(scoring.embedding)
        found.append(model_digest(scoring.embedding))
    return found


def _table(columns: Columns, n: int, names: Sequence[str]) -> dict[str, ndarray]:
    """Bring each detector's scores to (prompts, images)."""
    return {
        name: np.asarray(columns[f"score.{name}"], dtype=float).reshape(n, -1) for name in names
    }


def _rows(
    scores: dict[str, ndarray], labelled: Labelled, scoring: Scoring, columns: Columns
) -> list[dict[str, Any]]:
    """Compute the figures of each detector, for one image and for all, by kind."""
    kinds, family = np.array(labelled.kinds), np.array(labelled.families)
    rows = []
    for name, table in scores.items():
        # A score of one image that looks at the other seeds is no score of one image.
        many = name == VERDICT or DETECTORS[name].many
        entry: dict[str, Any] = {"detector": name, "many": many} | _cost(name, columns, scoring)
        for label, values in (("one", table[:, 0]), ("all", table.mean(1))):
            for group in ("memorized", "verbatim", "template"):
                positive = is_memorized(kinds) if group == "memorized" else kinds == group
                keep = positive | (kinds == "none")
                if positive.any():
                    entry[f"{label}.{group}"] = _figures(
                        values[keep], positive[keep], family[keep], intervals=group == "memorized"
                    )
            if (kinds == "near").any():
                entry[f"{label}.near_called"] = _called(values, kinds)
        rows.append(entry)
    return sorted(rows, key=lambda r: (-r["all.memorized"]["tpr"], -r["all.memorized"]["auroc"]))


def _called(values: ndarray, kinds: ndarray) -> float:
    """Share of near misses above the lowest threshold with at most 1 % of the others above it."""
    others = np.sort(values[kinds == "none"])
    allowed = int(FPR * len(others))
    threshold = others[len(others) - 1 - allowed]
    return float((values[kinds == "near"] > threshold).mean())


def _figures(
    score: ndarray, positive: ndarray, family: ndarray, *, intervals: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "auroc": auroc(score, positive),
        "tpr": tpr_at_fpr(score, positive, FPR),
    }
    if intervals:
        # A family with both answers (a near miss beside its original) is two for the bootstrap.
        own = np.array([f"{f}|{p}" for f, p in zip(family, positive, strict=True)])
        for key, statistic in (("auroc", auroc), ("tpr", tpr_at_fpr)):
            found[f"{key}_interval"] = bootstrap(
                statistic, score, positive, own, resamples=500,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
    return found


def _cost(name: str, columns: Columns, scoring: Scoring) -> dict[str, Any]:
    """Extra passes and milliseconds an image, beside the generation itself."""
    if name == VERDICT:
        return {"when": "all", "passes": float("nan"), "products": float("nan"), "ms": float("nan")}
    mean = {k: float(np.mean(columns[f"{k}.{name}"])) for k in ("passes", "products", "seconds")}
    return {
        "when": DETECTORS[name].when,
        "passes": mean["passes"],
        "products": mean["products"],
        "ms": 1000 * mean["seconds"],
    }
