"""Audit a text-to-image pipeline by prompts: score, judge, show, explain, try a mitigation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from memfold.datasets.images import Images, load_images, to_model
from memfold.datasets.prompts import read_prompts
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.embedding import Embedding
from memfold.memorization.prompt_power import prompt_power
from memfold.memorization.prompt_verdict import LEAST, SIGNALS
from memfold.types import InputError

from .digest import model_digest
from .evidence import WATCHED, Show
from .gate import tell_prompts
from .judging import Judge
from .prompt_facts import prompt_facts
from .prompt_plan import PromptPlan
from .scored import score_prompts
from .scoring import usable
from .seal import digest_of
from .store import Columns, Store, write_table

TABLES = ("results.parquet", "reference.parquet", "flagged.parquet")


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
    subjects, ordinary = read_lists(plan)
    model = plan.scoring.load()
    data = None if plan.data is None else _data(plan.data, model)
    embedding = _embedding(plan)
    names = tuple(d.name for d in usable(model, (), plan.images)[0] if d.name in SIGNALS)
    scoring = replace(plan.scoring, detectors=names)
    fingerprint = _fingerprint(plan, subjects, ordinary, data)
    options: dict[str, Any] = {"workers": plan.workers, "progress": progress, "model": model}
    with Store(plan.out, fingerprint, overwrite=plan.overwrite) as store:
        reference = (
            score_prompts(ordinary, scoring, store, stage="ordinary", **options) if ordinary else {}
        )
        found = score_prompts(subjects, scoring, store, stage="prompts", **options)
        judge = Judge.of(found, reference, len(subjects), len(ordinary), names)
        judged = judge.judge(found, len(subjects))
        called = judged["p_value"] <= plan.alpha
        order = np.argsort(-judged["score"], kind="stable")
        flagged = [int(i) for i in order if called[i]]
        show = Show(plan, model, judge, data, embedding)
        shown = show.flagged(subjects, flagged[: plan.shown], store, progress=progress)
        write_table(Path(plan.out) / "results.parquet", _results(subjects, judged, called, found))
        write_table(Path(plan.out) / "flagged.parquet", shown or {"prompt": []})
        write_table(
            Path(plan.out) / "reference.parquet", _reference(reference, found, called, ordinary)
        )
        able = prompt_power(
            judge.base, subjects=len(subjects), alpha=plan.alpha, own=judge.own,
            copies=plan.copies, seed=plan.seed,
        )  # fmt: skip
        told = tell_prompts(plan, int(called.sum()), able)
        facts = prompt_facts(
            plan, fingerprint["model"], model, subjects, ordinary, called, names, data, told,
        )  # fmt: skip
        return store.finish("audit.json", facts, TABLES)


def read_lists(plan: PromptPlan) -> tuple[list[str], list[str]]:
    """Read the prompts to judge and the ordinary ones, each once, and refuse what is too few.

    Args:
        plan: the plan.

    Returns:
        Both lists; the second is empty where the judged prompts are their own reference.

    Raises:
        InputError: a file cannot be read, or holds too few prompts.
    """
    subjects = list(dict.fromkeys(read_prompts(plan.prompts).prompts))[: plan.limit]
    ordinary = (
        [] if plan.ordinary is None else list(dict.fromkeys(read_prompts(plan.ordinary).prompts))
    )
    ordinary = [p for p in ordinary if p not in set(subjects)]
    _refuse_few(plan, subjects, ordinary)
    if plan.copies > len(subjects):
        raise InputError(f"--copies {plan.copies} of {len(subjects)} prompts; choose fewer")
    return subjects, ordinary


def _refuse_few(plan: PromptPlan, subjects: list[str], ordinary: list[str]) -> None:
    """Refuse a reference that sets no scale, before the work."""
    if plan.ordinary is None and len(subjects) < LEAST:
        raise InputError(
            f"--prompts {plan.prompts} holds {len(subjects)} different prompts, too few to be "
            f"their own reference; give {LEAST} or more, or --ordinary FILE with as many"
        )
    if plan.ordinary is not None and len(ordinary) < LEAST:
        raise InputError(
            f"--ordinary {plan.ordinary} holds {len(ordinary)} different prompts that are not "
            f"judged, too few for a reference; give {LEAST} or more"
        )


def _fingerprint(
    plan: PromptPlan, subjects: list[str], ordinary: list[str], data: Images | None
) -> dict[str, Any]:
    return {
        **plan.scoring.fingerprint(),
        "kind": "prompts",
        "data": None if data is None else [data.digest, digest_of(list(data.ids))],
        "embedding": None if plan.embedding is None else model_digest(plan.embedding),
        "prompts": subjects,
        "ordinary": ordinary,
        "explain": plan.explain,
        "mitigate": plan.mitigate,
    }


def _data(path: str, model: TextToImage) -> Images:
    """Read the training images, in the size that the pipeline draws."""
    blank = model.decode(torch.zeros(1, *model.shape, device=model.device))
    _, channels, height, width = blank.shape
    return to_model(load_images(path), (channels, height, width), resize=True)


def _embedding(plan: PromptPlan) -> Embedding | None:
    """Load the embedding early: a wrong one must not end a run that is nearly done."""
    if plan.embedding is None:
        return None
    return plan.scoring.read_embedding(plan.embedding)


def _results(
    subjects: list[str], judged: dict[str, ndarray], called: ndarray, found: Columns
) -> Columns:
    n = len(subjects)
    verdict = ["memorized" if c else "none" for c in called]
    table: Columns = {"prompt": subjects, "verdict": verdict}
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


__all__ = ["PromptPlan", "run_prompts"]
