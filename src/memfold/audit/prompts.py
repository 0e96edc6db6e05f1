"""Audit a text-to-image pipeline by prompts: score, judge, show, explain, try a mitigation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from tqdm import tqdm

import memfold
from memfold.citations import cite
from memfold.datasets.images import Images, load_images, to_model
from memfold.datasets.prompts import read_prompts
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.conformal import share_interval
from memfold.memorization.detectors import DETECTORS
from memfold.memorization.prompt_verdict import SIGNALS, combine, p_values, standards
from memfold.memorization.replicate import nearest_training
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.types import InputError

from . import summary
from .explained import png_bytes
from .prompt_plan import METHODS_OFF, PromptPlan
from .scoring import model_digest, score_prompts, usable
from .store import Columns, Store, concat, write_table, write_text

WATCHED = "cfg_norm"  # the score over steps that the report draws
_CALIBRATE = 50


def run_prompts(plan: PromptPlan, *, progress: bool = True) -> dict[str, Any]:
    """Audit prompts and write the results to `plan.out`; a killed run resumes where it was.

    Writes `results.parquet` (a row a prompt), `flagged.parquet` (pictures, words and mitigation
    of the flagged prompts), `reference.parquet` (the reference's scores) and `audit.json`.

    Args:
        plan: what to audit, and how.
        progress: show progress bars.

    Returns:
        What audit.json holds.

    Raises:
        InputError: with the value and the remedy; nothing already computed is lost.
    """
    subjects = list(dict.fromkeys(read_prompts(plan.prompts).prompts))[: plan.limit]
    ordinary = (
        [] if plan.ordinary is None else list(dict.fromkeys(read_prompts(plan.ordinary).prompts))
    )
    ordinary = [p for p in ordinary if p not in set(subjects)]
    model = plan.scoring.load()
    data = None if plan.data is None else _data(plan.data, model)
    names = tuple(d.name for d in usable(model, (), plan.images)[0] if d.name in SIGNALS)
    scoring = replace(plan.scoring, detectors=names)
    store = Store(plan.out, _fingerprint(plan, subjects, ordinary, data), overwrite=plan.overwrite)
    options: dict[str, Any] = {"workers": plan.workers, "progress": progress, "model": model}
    reference = (
        score_prompts(ordinary, scoring, store, stage="ordinary", **options) if ordinary else {}
    )
    found = score_prompts(subjects, scoring, store, stage="prompts", **options)
    judged = _judge(found, reference, len(subjects), len(ordinary), names)
    called = judged["p_value"] <= plan.alpha
    order = np.argsort(-judged["score"], kind="stable")
    flagged = [int(i) for i in order if called[i]]
    shown = _show(plan, model, subjects, flagged[: plan.shown], store, data, progress)
    write_table(Path(plan.out) / "results.parquet", _results(subjects, judged, called, found))
    write_table(Path(plan.out) / "flagged.parquet", shown or {"prompt": []})
    write_table(
        Path(plan.out) / "reference.parquet", _reference(reference, found, called, ordinary)
    )
    facts = _facts(plan, model, subjects, ordinary, judged, called, names, data)
    write_text(Path(plan.out) / "audit.json", json.dumps(facts, indent=1, allow_nan=False))
    return facts


def _fingerprint(
    plan: PromptPlan, subjects: list[str], ordinary: list[str], data: Images | None
) -> dict[str, Any]:
    return {
        **plan.scoring.settings(),
        "kind": "prompts",
        "model": model_digest(plan.model),
        "data": None if data is None else data.digest,
        "prompts": subjects,
        "ordinary": ordinary,
        "explain": plan.explain,
        "mitigate": plan.mitigate,
        "memfold": memfold.__version__,
    }


def _data(path: str, model: TextToImage) -> Images:
    """Read the training images, in the size that the pipeline draws."""
    blank = model.decode(torch.zeros(1, *model.shape, device=model.device))
    _, channels, height, width = blank.shape
    return to_model(load_images(path), (channels, height, width), resize=True)


def _judge(
    found: Columns, reference: Columns, n: int, m: int, names: Sequence[str]
) -> dict[str, ndarray]:
    """Combine the signals, and rank each prompt among the reference."""
    scores = {k: np.asarray(found[f"score.{k}"], dtype=float).reshape(n, -1) for k in names}
    if m:
        base = {k: np.asarray(reference[f"score.{k}"], dtype=float).reshape(m, -1) for k in names}
        standard = standards(base)
        score, ordinary = combine(scores, standard).mean(1), combine(base, standard).mean(1)
        p = p_values(score, ordinary)
    else:
        standard = standards(scores)
        score = combine(scores, standard).mean(1)
        p = p_values(score, score) * (n + 1) / n - 1 / n  # itself is among them, once
        p = np.clip(p, 1 / n, 1.0)
    signals = {f"signal.{k}": scores[k].mean(1) for k in names}
    return {"score": score, "p_value": p} | signals


def _results(
    subjects: list[str], judged: dict[str, ndarray], called: ndarray, found: Columns
) -> Columns:
    n = len(subjects)
    table: Columns = {"prompt": subjects, "kind": ["memorized" if c else "none" for c in called]}
    table |= {k: v.tolist() for k, v in judged.items()}
    for name in (k for k in found if k.startswith("steps.")):
        values = np.asarray(found[name], dtype=float)
        table[name] = values.reshape(n, -1, values.shape[-1]).mean(1).tolist()
    table["sigmas"] = [found["sigmas"][i * (len(found["sigmas"]) // n)] for i in range(n)]
    return table


def _reference(reference: Columns, found: Columns, called: ndarray, ordinary: list[str]) -> Columns:
    """Keep the watched score of the reference over steps, for the band of the figures."""
    name = f"steps.{WATCHED}"
    if ordinary and name in reference:
        values = np.asarray(reference[name], dtype=float)
        mean = values.reshape(len(ordinary), -1, values.shape[-1]).mean(1)
    elif name in found:
        values = np.asarray(found[name], dtype=float)
        mean = values.reshape(len(called), -1, values.shape[-1]).mean(1)[~called]
    else:
        return {"steps": []}
    return {"steps": mean.tolist()}


def _show(
    plan: PromptPlan,
    model: TextToImage,
    subjects: list[str],
    flagged: list[int],
    store: Store,
    data: Images | None,
    progress: bool,
) -> Columns:
    """Draw the flagged prompts again, explain them, and try the mitigation; kept one by one."""
    missing = any(not store.has("flagged", i) for i in flagged)
    latents = None
    if data is not None and missing:
        latents = torch.cat([model.encode(b).flatten(1).cpu() for b in data.batches(64)])
    pieces = []
    for i in tqdm(flagged, desc="Flagged", unit="prompt", disable=not progress or not flagged):
        compute = partial(_evidence, plan, model, subjects[i], i, data, latents)
        pieces.append(store.piece("flagged", i, compute))
    return concat(pieces)


def _evidence(
    plan: PromptPlan,
    model: TextToImage,
    prompt: str,
    index: int,
    data: Images | None,
    latents: Tensor | None,
) -> Columns:
    seeds = plan.scoring.seeds
    generation = generate_watched(model, prompt, seeds, attention=False, **plan.scoring.options())
    row: dict[str, Any] = {
        "prompt": prompt,
        "index": index,
        "images": [png_bytes(image) for image in generation.images],
        "nearest": [],
        "nearest_id": [],
        "nearest_calibrated": [],
    }
    if data is not None and latents is not None:
        k = min(_CALIBRATE, len(latents) - 1)
        matches = nearest_training(generation.x.flatten(1).cpu().float(), latents, k=k, top=1)
        best = int(matches.calibrated[:, 0].argmin())
        place = int(matches.index[best, 0])
        row["nearest"] = [png_bytes(data.batch(place, place + 1)[0])]
        row["nearest_id"] = [data.ids[place]]
        row["nearest_calibrated"] = [float(v) for v in matches.calibrated[:, 0]]
    row |= _explained(plan, model, prompt, generation)
    row |= _mitigated(plan, model, prompt, row)
    return {k: [v] for k, v in row.items()}


def _explained(
    plan: PromptPlan, model: TextToImage, prompt: str, generation: Generation
) -> dict[str, Any]:
    """Attribute the score to the words, where that is wanted and possible."""
    empty: dict[str, Any] = {"words": [], "weights": [], "weight_stderr": [], "explain_note": ""}
    if not plan.explain:
        return empty
    from memfold.explain.attribution import attribute

    try:
        found = attribute(model, prompt, seeds=plan.scoring.seeds, generation=generation)
    except InputError as error:
        return empty | {"explain_note": str(error)}
    return {
        "words": list(found.words),
        "weights": [float(w) for w in found.weights],
        "weight_stderr": [float(w) for w in found.stderr],
        "explain_note": "; ".join(found.warnings),
    }


def _mitigated(
    plan: PromptPlan, model: TextToImage, prompt: str, row: dict[str, Any]
) -> dict[str, Any]:
    """Try the mitigation on a flagged prompt with the same seeds."""
    empty: dict[str, Any] = {"mitigated": [], "mitigated_note": "", "mitigated_score": []}
    if plan.mitigate == METHODS_OFF:
        return empty
    from memfold.mitigation import mitigate

    try:
        weights = dict(zip(row["words"], row["weights"], strict=True)) or None
        found = mitigate(
            model, prompt, method=plan.mitigate, seeds=plan.scoring.seeds, weights=weights,
            **plan.scoring.options(),
        )  # fmt: skip
        generation = found.generate(plan.scoring.seeds)
    except InputError as error:
        return empty | {"mitigated_note": str(error)}
    score = generation.scores.get(WATCHED)
    return {
        "mitigated": [png_bytes(image) for image in generation.images],
        "mitigated_note": found.description,
        "mitigated_score": [] if score is None else score.mean(0).tolist(),
    }


def _facts(
    plan: PromptPlan,
    model: TextToImage,
    subjects: list[str],
    ordinary: list[str],
    judged: dict[str, ndarray],
    called: ndarray,
    names: Sequence[str],
    data: Images | None,
) -> dict[str, Any]:
    count, n = int(called.sum()), len(subjects)
    low, high = share_interval(count, n)
    m = len(ordinary) or n
    # The expected share of ordinary prompts that are called: floor(alpha (m + 1)) / (m + 1).
    rank = int(np.floor(plan.alpha * (m + 1) + 1e-9))
    return {
        "kind": "prompts",
        "memfold": memfold.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": plan.title or f"Memorization audit of {plan.model}",
        "pipeline": model.name,
        "command": plan.command(),
        "arguments": plan.arguments(),
        "versions": summary.versions(),
        "hashes": {"model": model_digest(plan.model)}
        | ({} if data is None else {"data": data.digest}),
        "alpha": plan.alpha,
        "reference": {
            "n": m,
            "source": "ordinary" if ordinary else "prompts",
            "expected_rate": rank / (m + 1),
            "interval": list(_rate_interval(rank, m)),
        },
        "prompts": n,
        "memorized": {"count": count, "rate": count / n, "low": low, "high": high},
        "signals": {name: DETECTORS[name].title for name in names},
        "warnings": _warnings(plan, model, ordinary, names, rank, m),
        "citations": [
            c.__dict__
            for c in cite(
                "ross2025memorization", *(DETECTORS[k].source for k in names), "vovk2005conformal"
            )
        ],
        "shown": min(count, plan.shown),
        "exit": {"fail_on": list(plan.fail_on), "failed": bool(count and plan.fail_on)},
    }


def _rate_interval(rank: int, m: int) -> tuple[float, float]:
    """Range of the false-positive rate over reference samples: Beta(rank, m + 1 - rank), 95 %."""
    from scipy.stats import beta

    if rank == 0:
        return 0.0, 0.0
    law = beta(rank, m + 1 - rank)
    return float(law.ppf(0.025)), float(law.ppf(0.975))


def _warnings(
    plan: PromptPlan,
    model: TextToImage,
    ordinary: list[str],
    names: Sequence[str],
    rank: int,
    m: int,
) -> list[str]:
    notes = []
    if not ordinary:
        notes.append(
            "No ordinary prompts were given (--ordinary). The judged prompts are their own "
            "reference: at most a share alpha of them can be called, the highest ones, memorized "
            "or not. Give a list of prompts in the same style that are surely not memorized."
        )
    if rank == 0:
        need = int(np.ceil(1 / plan.alpha)) - 1
        notes.append(
            f"{m} reference prompts cannot call anything at a rate of {plan.alpha:g}: the smallest "
            f"p-value is {1 / (m + 1):.3g}. Give {need} or more, or a larger --alpha."
        )
    missing = [name for name in SIGNALS if name not in names]
    if missing:
        notes.append(
            f"{model.name} does not allow the signals {', '.join(missing)}; the verdict rests on "
            f"{', '.join(names)}."
        )
    notes.append(
        "The rate holds for prompts that are exchangeable with the ordinary ones. Prompts of "
        "another style, length or subject may be called more often."
    )
    return notes


__all__ = ["PromptPlan", "run_prompts"]
