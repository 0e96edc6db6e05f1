"""Run an audit: load, generate where asked, measure, match, judge, write."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memfold.lid.scale import default_sigmas
from memfold.memorization.complexity import features
from memfold.memorization.embedding import Embedding, load_embedding
from memfold.memorization.mmh import Verdicts, judge
from memfold.memorization.power import power
from memfold.memorization.replicate import near_duplicates, nearest_training
from memfold.types import Estimate

from .data_side import data_side
from .digest import conditions
from .facts import facts
from .gate import tell
from .inputs import Inputs, Population, generated, points, read_inputs, reference_rows
from .measure import BAND, Bench, choose_sigma, curves, draw, model_side
from .plan import Plan
from .store import Columns, Store
from .tables import TABLES, Evidence, Side, write_samples, write_tables

_SHOWN = 300  # flagged subjects with pictures and a curve
_EMBED = 256
_CALIBRATE = 50  # training images by whose mean distance a distance is calibrated
_TOP = 5  # training images shown beside a subject


def run(plan: Plan, *, progress: bool = True) -> dict[str, Any]:
    """Audit a model and write the results to `plan.out`; a killed run resumes where it was.

    Args:
        plan: what to audit, and how.
        progress: show progress bars.

    Returns:
        What audit.json holds.

    Raises:
        InputError: with the value and the remedy; nothing already computed is lost.
    """
    clock = _Clock()
    with clock("loading"):
        inputs = read_inputs(plan)
        embedding = _embedding(plan)
    with _store(plan, inputs) as store:
        return _run(Bench(plan, store, inputs.denoiser, progress), inputs, embedding, clock)


def _run(
    bench: Bench, inputs: Inputs, embedding: Embedding | None, clock: _Clock
) -> dict[str, Any]:
    """Audit within a directory that is this run's alone."""
    plan, outputs = bench.plan, [*TABLES]
    with clock("subjects"):
        subjects = inputs.subjects or generated(draw(bench, plan.generate or 0))
        if plan.source == "generated":
            outputs.append("samples.npz")
            write_samples(Path(plan.out), subjects)
    train = points(inputs.denoiser, inputs.train)
    with clock("model side"):
        reference_flat = points(inputs.denoiser, inputs.reference.images)
        grid = default_sigmas(inputs.denoiser)
        band = curves(bench, "band", "Reference curves", reference_flat[:BAND], grid)
        sigma = plan.sigma or choose_sigma(grid, band["curve"])
        reference, subject = (
            _measure(bench, role, label, flat, population, train, sigma)
            for role, label, flat, population in (
                ("reference", "Reference images", reference_flat, inputs.reference),
                ("subject", "Subjects", points(inputs.denoiser, subjects.images), subjects),
            )
        )
    compared = _compared(plan, inputs, subjects, reference, subject)
    verdicts = judge(data=_estimate(*subject.data), reference_data=_estimate(*reference.data),
                     **compared)  # fmt: skip
    with clock("power"):
        able = power(**compared, copies=plan.copies, seed=plan.seed)
    with clock("evidence"):
        k = min(_CALIBRATE, len(train) - 1)
        own = torch.from_numpy(subjects.row)
        matches = nearest_training(subject.flat, train, k=k, top=min(_TOP, k), exclude=own)
        copies = near_duplicates(subject.flat, train, exclude=own).tolist()
        embedded = _embedded(embedding, inputs, subjects)
        shown = _flagged(verdicts)
        paths = curves(bench, f"curve-{_digest(shown)}", "Curves", subject.flat[shown], grid)
        evidence = Evidence(matches, copies, embedded, shown, paths, _truth(inputs, subjects))
    write_tables(
        Path(plan.out), inputs.train, inputs.reference, subjects, (reference, subject), band,
        verdicts, evidence,
    )  # fmt: skip
    told = tell(plan, verdicts, compared["model"], able)
    found = facts(
        plan, inputs, verdicts.kind.tolist(), told, evidence.truth, sigma, grid, clock.seconds
    )
    return bench.store.finish("audit.json", found, outputs)


def _embedding(plan: Plan) -> Embedding | None:
    if plan.embedding is None:
        return None
    return load_embedding(
        plan.embedding, allow_pickle=plan.allow_pickle, allow_code=plan.allow_code,
        device=plan.device,
    )  # fmt: skip


def _embedded(embedding: Embedding | None, inputs: Inputs, subjects: Population) -> Columns:
    """Find the nearest training image in the user's own embedding, where one is given."""
    if embedding is None:
        return {}
    query, train = (
        torch.cat([embedding(b) for b in images.batches(_EMBED)])
        for images in (subjects.images, inputs.train)
    )
    k = min(_CALIBRATE, len(train) - 1)
    found = nearest_training(query, train, k=k, top=1, exclude=torch.from_numpy(subjects.row))
    return {
        "embedding_nearest_id": [inputs.train.ids[i] for i in found.index[:, 0].tolist()],
        "embedding_distance": found.calibrated[:, 0].tolist(),
    }


def _store(plan: Plan, inputs: Inputs) -> Store:
    fingerprint = {**plan.settings(), "hashes": inputs.hashes, **conditions(plan.device)}
    return Store(plan.out, fingerprint, overwrite=plan.overwrite)


def _measure(
    bench: Bench,
    role: str,
    label: str,
    flat: Tensor,
    population: Population,
    train: Tensor,
    sigma: float,
) -> Side:
    model = model_side(bench, role, label, flat, sigma)
    data = data_side(bench.plan, train, flat, population.row, sigma)
    z = features(bench.points(flat).float(), sigma).double().cpu().numpy()
    return Side(flat, model, data, z)


def _compared(
    plan: Plan, inputs: Inputs, subjects: Population, reference: Side, subject: Side
) -> dict[str, Any]:
    """Give what `judge` and `power` compare."""
    return {
        "model": _estimate(subject.model["lid"], subject.model["stderr"]),
        "reference_model": _estimate(reference.model["lid"], reference.model["stderr"]),
        "complexity": subject.complexity,
        "reference_complexity": reference.complexity,
        "misfit": np.array(subject.model["misfit"]),
        "reference_misfit": np.array(reference.model["misfit"]),
        "reference_index": reference_rows(plan, inputs, subjects),
        "alpha": plan.alpha,
    }


def _estimate(lid: Any, stderr: Any) -> Estimate:
    as_tensor = lambda v: torch.as_tensor(np.asarray(v), dtype=torch.float64)  # noqa: E731
    return Estimate(as_tensor(lid), as_tensor(stderr), float("nan"), "")


def _flagged(verdicts: Verdicts) -> list[int]:
    """What gets pictures: undetermined subjects first, then memorized ones, each by effect."""
    order = np.argsort(-np.nan_to_num(verdicts.missing_dof, nan=np.inf), kind="stable")
    unclear = [int(i) for i in order if verdicts.kind[i] == "undetermined"]
    memorized = [int(i) for i in order if verdicts.kind[i] in ("overfitting", "data")]
    room = max(_SHOWN // 2, _SHOWN - len(memorized))
    unclear = unclear[:room]
    return unclear + memorized[: _SHOWN - len(unclear)]


def _truth(inputs: Inputs, subjects: Population) -> list[str] | None:
    if inputs.truth is None or (subjects.row < 0).any():
        return None
    return [inputs.truth.get(int(row), "none") for row in subjects.row]


def _digest(shown: list[int]) -> str:
    return hashlib.blake2b(json.dumps(shown).encode(), digest_size=6).hexdigest()


class _Clock:
    """Seconds spent in each stage of this run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage.

        Args:
            stage: its name.

        Yields:
            Nothing.
        """
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 2)
