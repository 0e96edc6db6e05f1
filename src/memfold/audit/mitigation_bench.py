"""Mitigations side by side: what still copies, what the picture still shows, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import memfold
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.files import csv_text
from memfold.report.mitigation_figures import mitigation_figure, mitigation_table
from memfold.sampling.training import training_images
from memfold.types import InputError

from .digest import model_digest
from .labelled import Labelled
from .mitigation_judge import (
    Reference,
    reference_of_drawn,
    reference_of_images,
)
from .mitigation_specs import NONE, Spec, read_specs
from .mitigation_summary import Limits, limits_of, summary_rows
from .mitigation_work import APART, CASES, Job, Setting, Spaces, load_spaces, run_jobs
from .plan import recorded
from .scoring import Scoring
from .store import Columns, Store, write_text

OUTPUTS = ("mitigation.md", "mitigation.svg", "samples.csv")
_ORDINARY = 50  # ordinary prompts that the limits are calibrated on, at most


def bench_mitigations(
    labelled: Labelled,
    scoring: Scoring,
    out: str | Path,
    *,
    methods: Sequence[str] = (),
    spaces: Spaces | None = None,
    ordinary: Sequence[str] = (),
    attacked: int = 5,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
    record_paths: bool = False,
    extra: Callable[[TextToImage], Callable[[Tensor, Tensor, str], dict[str, list[float]]]]
    | None = None,
) -> dict[str, Any]:
    """Draw memorized and other prompts under every mitigation, with the same seeds; resumable.

    Args:
        labelled: the prompts and their answers.
        scoring: the pipeline, seeds and steps.
        out: directory of the results: `mitigation.json`, `mitigation.md`, `mitigation.svg`, and
            `samples.csv` (a row an image).
        methods: names with options, as `read_specs` takes them; all if empty.
        spaces: what the images are judged by.
        ordinary: further prompts that are not memorized: the limits are calibrated on them, at most
            50; on the others of the list if empty.
        attacked: prompts of each kind in the adversarial recheck; 0 for none.
        workers: processes.
        overwrite: discard what another run left in `out`.
        progress: show a bar.
        record_paths: write whole paths into the results, not last names.
        extra: makes a function of (latents, pictures, prompt) that gives further columns, from the
            pipeline; importable by its name, if there are several workers.

    Returns:
        What mitigation.json holds.

    Raises:
        InputError: the lists, the pipeline, a method or a space cannot be used.
    """
    if attacked < 0 or workers < 1 or scoring.images < 2:
        raise InputError(
            f"--attacked {attacked}, --workers {workers}, --images {scoring.images}; take 0, 1 and "
            "2 or more: a mitigation is judged by how much its images vary"
        )
    spaces = spaces or Spaces()
    specs = read_specs(methods)
    model = scoring.load()
    images = None if spaces.data is None else training_images(spaces.data, model)
    _check(specs, model, bool(methods), images is not None)
    specs, left = _usable(specs, images is not None)
    base = list(dict.fromkeys(p for p in ordinary if p not in labelled.prompts))[:_ORDINARY]
    load_spaces(scoring, spaces)  # what is wrong with them must come before the work
    fingerprint = {
        **scoring.fingerprint(), "kind": "mitigation",
        "prompts": list(labelled.prompts), "types": list(labelled.kinds), "ordinary": base,
        "methods": [spec.name for spec in specs],
        "data": None if images is None else images.digest,
        "embedding": spaces.embedding and model_digest(spaces.embedding),
        "clip": spaces.clip and model_digest(spaces.clip),
    }  # fmt: skip
    with Store(out, fingerprint, overwrite=overwrite) as store:
        known = [p for p, k in _typed(labelled) if k not in ("none", "near")]
        others = [p for p, k in _typed(labelled) if k == "none"]
        make = partial(_reference, scoring, spaces, model, images, known, base or others)
        reference = Reference.of(store.piece("reference", 0, lambda: make().columns()))
        state = Setting(scoring, spaces, store.path("reference", 0), extra)
        run = partial(run_jobs, state, store, model, workers=workers, progress=progress)
        calibration = [Job("ordinary", i, specs[0], text) for i, text in enumerate(base)]
        jobs = [
            Job(f"method{m:02d}", i, spec, text)
            for m, spec in enumerate(specs)
            for i, text in enumerate(labelled.prompts)
        ]
        drawn = run([*calibration, *jobs])
        null = drawn[: len(base)] or [
            row for job, row in zip(jobs, drawn, strict=True)
            if job.spec.method == NONE and job.prompt in set(others)
        ]  # fmt: skip
        limits = limits_of(null, spaces.copy_limit, spaces.alike_limit)
        table = [
            (job.spec.name, labelled.kinds[job.index], job.prompt, row)
            for job, row in zip(jobs, drawn[len(base) :], strict=True)
        ]
        rows = summary_rows(table, limits, reference.quality)
        attacks = _attacks(specs, known, others, attacked, limits)
        found = {
            "memfold": memfold.__version__,
            "model": recorded(scoring.model, whole=record_paths),
            "pipeline": model.name,
            "settings": scoring.settings(),
            "spaces": {
                k: recorded(v, whole=record_paths) if isinstance(v, str) else v
                for k, v in vars(spaces).items()
            },
            "limits": vars(limits),
            "calibrated_on": len(null),
            "left_out": left + _not_measured(spaces),
            "rows": rows,
            "recheck": _rechecked(attacks, run(attacks)),
        }
        write_text(Path(out) / "mitigation.md", mitigation_table(found))
        write_text(Path(out) / "mitigation.svg", mitigation_figure(rows))
        write_text(Path(out) / "samples.csv", _csv(table, limits, scoring.seeds))
        return store.finish("mitigation.json", found, OUTPUTS)


def thinned(labelled: Labelled, limit: int | None) -> Labelled:
    """Keep so many prompts of each kind, evenly spaced over the list, and no near misses.

    Args:
        labelled: the prompts.
        limit: how many of each kind; all if None.

    Returns:
        The prompts that are drawn under every mitigation.

    Raises:
        InputError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}; take 1 or more")
    kept: list[int] = []
    for kind in dict.fromkeys(k for k in labelled.kinds if k != "near"):
        some = [i for i, k in enumerate(labelled.kinds) if k == kind]
        n = len(some) if limit is None else min(limit, len(some))
        kept += [some[j * len(some) // n] for j in range(n)]
    parts = (labelled.prompts, labelled.kinds, labelled.families)
    return Labelled(*(tuple(part[i] for i in kept) for part in parts))


def _typed(labelled: Labelled) -> Iterable[tuple[str, str]]:
    return zip(labelled.prompts, labelled.kinds, strict=True)


def _check(specs: Sequence[Spec], model: TextToImage, asked: bool, data: bool) -> None:
    """Refuse a method that was asked for by name and cannot run."""
    if asked and not data and any(spec.method == "away" for spec in specs):
        raise InputError("--methods: away needs the training images; pass --data")


def _usable(specs: Sequence[Spec], data: bool) -> tuple[list[Spec], list[str]]:
    left = [] if data else [s.name for s in specs if s.method == "away"]
    kept = [spec for spec in specs if spec.name not in left]
    return kept, [f"{name}: it needs the training images (--data)" for name in left]


def _not_measured(spaces: Spaces) -> list[str]:
    """Say what was left out for want of an argument, and what stood in."""
    notes = []
    if spaces.data is None:
        notes.append(
            "copies of training images: no --data; copies are of what the memorized prompts draw "
            "by themselves at other seeds"
        )
    if spaces.clip is None:
        notes.append("alignment and Frechet distance: no --clip")
    return notes


def _reference(
    scoring: Scoring,
    spaces: Spaces,
    model: TextToImage,
    images: Any,
    known: Sequence[str],
    others: Sequence[str],
) -> Reference:
    embedding, clip = load_spaces(scoring, spaces)
    if images is not None:
        return reference_of_images(images, model, embedding, clip)
    seeds = [s + APART for s in scoring.seeds]
    drawn = [
        torch.cat([model.generate(p, seeds, **scoring.options()).cpu().float() for p in some])
        for some in (known, others)
    ]
    return reference_of_drawn(drawn[0], drawn[1], model, embedding, clip)


def _attacks(
    specs: Sequence[Spec],
    known: Sequence[str],
    others: Sequence[str],
    attacked: int,
    limits: Limits,
) -> list[Job]:
    """List the attacks: on what is mitigated, and two controls."""
    spec = next((s for s in specs if s.method not in (NONE, "random_rewrite")), specs[0])
    n = min(attacked, len(known), len(others))
    jobs = []
    for k in range(n):
        for c, (case, prompt, other) in enumerate(
            ((CASES[0], known[k], known[k]), (CASES[1], others[k], known[k]),
             (CASES[2], others[k], others[k]))
        ):  # fmt: skip
            jobs.append(
                Job(f"attack{c}", k, spec, prompt, attack=case, other=other, limit=limits.copy)
            )
    return jobs


def _rechecked(jobs: Sequence[Job], rows: Sequence[Columns]) -> dict[str, Any]:
    found = []
    for case in dict.fromkeys(job.attack for job in jobs):
        some = [row for job, row in zip(jobs, rows, strict=True) if job.attack == case]
        means = {k: float(np.mean([row[k][0] for row in some])) for k in ("before", "after")}
        found.append({"case": case, "prompts": len(some)} | means)
    return {"method": jobs[0].spec.name if jobs else None, "rows": found}


def _csv(
    table: Sequence[tuple[str, str, str, Columns]], limits: Limits, seeds: Sequence[int]
) -> str:
    """Write a row an image."""
    skip = {"clip", "seed"}
    names = list(dict.fromkeys(k for *_, row in table for k in row if k not in skip))
    rows: list[list[Any]] = [["method", "type", "prompt", "seed", "copy", *names]]
    for method, kind, prompt, row in table:
        for j, seed in enumerate(seeds):
            values = [_short(row[k][j]) if k in row else "" for k in names]
            copy = int(row["distance"][j] < limits.copy)
            rows.append([method, kind, prompt, seed, copy, *values])
    return csv_text(rows)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


__all__ = ["Spaces", "bench_mitigations", "thinned"]
