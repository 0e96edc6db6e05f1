"""Run an audit: load, generate where asked, measure, match, judge, write."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import memfold
from memfold.citations import cite
from memfold.datasets.images import Images
from memfold.lid.scale import default_sigmas
from memfold.memorization.complexity import features
from memfold.memorization.mmh import Verdicts, judge
from memfold.memorization.replicate import Matches, nearest_training
from memfold.types import Estimate

from . import summary
from .data_side import data_side
from .inputs import Inputs, Population, embed, generated, points, read_inputs
from .measure import Bench, choose_sigma, curves, draw, model_side
from .plan import Plan
from .store import Columns, Store, write_table, write_text

_BAND = 64  # reference images with a curve
_SHOWN = 300  # flagged subjects with pictures and a curve
_CALIBRATE = 50  # training images by whose mean distance a distance is calibrated
_TOP = 5  # training images shown beside a subject


@dataclass(frozen=True)
class _Side:
    """The measurements of one population."""

    flat: Float[Tensor, "n d"]
    model: Columns
    data: tuple[np.ndarray, np.ndarray]
    complexity: np.ndarray


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
    bench = Bench(plan, _store(plan, inputs), inputs.denoiser, progress)
    with clock("subjects"):
        subjects = inputs.subjects or generated(draw(bench, plan.generate or 0))
        if plan.source == "generated":
            np.savez_compressed(Path(plan.out) / "samples.npz", images=subjects.images.pixels)
    train = points(inputs.denoiser, inputs.train)
    with clock("model side"):
        reference_flat = points(inputs.denoiser, inputs.reference.images)
        grid = default_sigmas(inputs.denoiser)
        band = curves(bench, "band", "Reference curves", reference_flat[:_BAND], grid)
        sigma = plan.sigma or choose_sigma(grid, band["curve"])
        sides = [
            _measure(bench, role, label, flat, population, train, sigma)
            for role, label, flat, population in (
                ("reference", "Reference images", reference_flat, inputs.reference),
                ("subject", "Subjects", points(inputs.denoiser, subjects.images), subjects),
            )
        ]
    reference, subject = sides
    verdicts = _judge(plan, inputs, subjects, reference, subject)
    with clock("evidence"):
        k = min(_CALIBRATE, len(train) - 1)
        matches = nearest_training(
            subject.flat, train, k=k, top=min(_TOP, k), exclude=torch.from_numpy(subjects.row)
        )
        embedded = _embedded(plan, inputs, subjects)
        shown = _flagged(verdicts)
        paths = curves(bench, f"curve-{_digest(shown)}", "Curves", subject.flat[shown], grid)
    facts = _facts(plan, inputs, verdicts, clock, sigma, grid)
    truth = _truth(inputs, subjects)
    if truth is not None:
        facts["ground_truth"] = summary.against_truth(verdicts.kind.tolist(), truth)
    _write(
        plan, inputs, subjects, sides, verdicts, matches, embedded, shown, paths, band, truth, facts
    )
    return facts


def _embedded(plan: Plan, inputs: Inputs, subjects: Population) -> Columns:
    """Find the nearest training image in the user's own embedding, where one is given."""
    if plan.embedding is None:
        return {}
    query, train = (
        embed(Path(plan.embedding), images) for images in (subjects.images, inputs.train)
    )
    k = min(_CALIBRATE, len(train) - 1)
    found = nearest_training(query, train, k=k, top=1, exclude=torch.from_numpy(subjects.row))
    return {
        "embedding_nearest_id": [inputs.train.ids[i] for i in found.index[:, 0].tolist()],
        "embedding_distance": found.calibrated[:, 0].tolist(),
    }


def _store(plan: Plan, inputs: Inputs) -> Store:
    fingerprint = {**plan.settings(), "hashes": inputs.hashes, "memfold": memfold.__version__}
    return Store(plan.out, fingerprint, overwrite=plan.overwrite)


def _measure(
    bench: Bench,
    role: str,
    label: str,
    flat: Tensor,
    population: Population,
    train: Tensor,
    sigma: float,
) -> _Side:
    model = model_side(bench, role, label, flat, sigma)
    data = data_side(bench.plan, train, flat, population.row, sigma)
    z = features(bench.points(flat).float(), sigma).double().cpu().numpy()
    return _Side(flat, model, data, z)


def _judge(
    plan: Plan, inputs: Inputs, subjects: Population, reference: _Side, subject: _Side
) -> Verdicts:
    index = None
    if plan.holdout is None and plan.source == "train":
        place = {int(row): i for i, row in enumerate(inputs.reference.row)}
        index = np.array([place.get(int(row), -1) for row in subjects.row])
    return judge(
        _estimate(subject.model["lid"], subject.model["stderr"]),
        _estimate(*subject.data),
        reference_model=_estimate(reference.model["lid"], reference.model["stderr"]),
        reference_data=_estimate(*reference.data),
        complexity=subject.complexity,
        reference_complexity=reference.complexity,
        misfit=np.array(subject.model["misfit"]),
        reference_misfit=np.array(reference.model["misfit"]),
        reference_index=index,
        alpha=plan.alpha,
    )


def _estimate(lid: Any, stderr: Any) -> Estimate:
    as_tensor = lambda v: torch.as_tensor(np.asarray(v), dtype=torch.float64)  # noqa: E731
    return Estimate(as_tensor(lid), as_tensor(stderr), float("nan"), "")


def _flagged(verdicts: Verdicts) -> list[int]:
    """Memorized subjects first by effect, then those that could not be told."""
    order = np.argsort(-verdicts.missing_dof, kind="stable")
    memorized = [int(i) for i in order if verdicts.kind[i] in ("overfitting", "data")]
    rest = [int(i) for i in order if verdicts.kind[i] == "undetermined"]
    return (memorized + rest)[:_SHOWN]


def _truth(inputs: Inputs, subjects: Population) -> list[str] | None:
    if inputs.truth is None or (subjects.row < 0).any():
        return None
    return [inputs.truth.get(int(row), "none") for row in subjects.row]


def _facts(
    plan: Plan,
    inputs: Inputs,
    verdicts: Verdicts,
    clock: _Clock,
    sigma: float,
    grid: list[float],
) -> dict[str, Any]:
    kinds = verdicts.kind.tolist()
    counts, rates = summary.counts_and_rates(kinds)
    source = "train" if plan.holdout is None else "holdout"
    failed = [kind for kind in plan.fail_on if counts[kind]]
    return {
        "memfold": memfold.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": plan.title or f"Memorization audit of {plan.model}",
        "subjects": {"source": plan.source, "n": len(kinds), "description": _described(plan)},
        "command": plan.command(),
        "arguments": plan.arguments(),
        "versions": summary.versions(),
        "hashes": inputs.hashes,
        "sigma": sigma,
        "estimator": plan.estimator,
        "data_estimator": plan.data_estimator,
        "space": inputs.denoiser.space,
        "alpha": plan.alpha,
        "image_range": [0, 1],
        "reference": {"source": source, "n": len(inputs.reference), "note": _note(source)},
        "counts": counts,
        "rates": rates,
        "warnings": [
            *inputs.warnings,
            *_warnings(plan, source),
            *_power(plan, len(kinds), len(inputs.reference)),
        ],
        "curve_sigmas": grid,
        "ground_truth": None,
        "citations": [c.__dict__ for c in cite(*_cited(plan))],
        "methods": summary.methods(
            sigma,
            plan.sigma is None,
            plan.estimator,
            plan.data_estimator,
            len(inputs.reference),
            source,
            plan.alpha,
            plan.noises,
        ),
        "seconds": clock.seconds,
        "exit": {"fail_on": list(plan.fail_on), "failed": bool(failed)},
    }


def _described(plan: Plan) -> str:
    return {
        "train": "distinct training images",
        "generated": "images generated by the model",
        "images": f"images of {plan.samples}",
    }[plan.source]


def _note(source: str) -> str:
    if source == "holdout":
        return "Held-out real images: the model cannot have memorized them."
    return (
        "No held-out images were given. The reference is a sample of distinct training images: "
        "memorized ones among them can only raise p-values, so that false calls stay controlled, "
        "but the audit now asks what is memorized more than the typical training image; it loses "
        "power, and it cannot see a model that memorized all of them alike."
    )


def _warnings(plan: Plan, source: str) -> Iterator[str]:
    if source == "train":
        yield _note(source)
    if plan.source == "generated":
        yield (
            "Generated images are compared with real ones. Where the model's images differ from "
            "real ones (smoother, with artefacts), their LID differs for that reason too: read the "
            "nearest training images beside each verdict."
        )


def _power(plan: Plan, m: int, n: int) -> Iterator[str]:
    """Say how many memorized subjects it takes before any of them can be called.

    The smallest p-value is 1 / (n + 1); Benjamini-Hochberg calls k of m subjects that have it if
    m / (k (n + 1)) <= alpha.
    """
    needed = math.ceil(m / (plan.alpha * (n + 1)))
    if needed > 1:
        yield (
            f"With {n} reference images and {m} subjects, at least {needed} subjects must be "
            f"memorized before any can be called at a false-discovery rate of {plan.alpha:g}; "
            f"{math.ceil(m / plan.alpha) - 1} reference images would do for a single one."
        )


def _cited(plan: Plan) -> list[str]:
    model = {
        "dsm": ["yeats2025dsm"],
        "flipd": ["kamkari2024flipd", "epperly2024xtrace", "hutchinson1989trace"],
        "spectral": ["osada2026lhsd", "ubaru2017slq"],
    }[plan.estimator]
    data = {
        "empirical": ["kamkari2024flipd"],
        "mle": ["levina2004mle", "mackay2005mle"],
        "lpca": ["fukunaga1971pca"],
        "twonn": ["facco2017twonn"],
    }[plan.data_estimator]
    rest = [
        "ross2025memorization",
        *model,
        *data,
        "carlini2023extracting",
        "vovk2005conformal",
        "bates2023conformal",
        "benjamini1995fdr",
    ]
    return list(dict.fromkeys(rest))


def _write(
    plan: Plan,
    inputs: Inputs,
    subjects: Population,
    sides: list[_Side],
    verdicts: Verdicts,
    matches: Matches,
    embedded: Columns,
    shown: list[int],
    paths: Columns,
    band: Columns,
    truth: list[str] | None,
    facts: dict[str, Any],
) -> None:
    out = Path(plan.out)
    reference, subject = sides
    write_table(
        out / "results.parquet",
        _results(inputs, subjects, subject, verdicts, matches, shown, paths, truth) | embedded,
    )
    n = len(inputs.reference)
    write_table(
        out / "reference.parquet",
        {
            "id": list(inputs.reference.ids),
            **_measured(reference),
            "curve": [*band["curve"], *[None] * (n - len(band["curve"]))],
        },
    )
    write_table(out / "pictures.parquet", _pictures(inputs, subjects, matches, shown))
    write_text(out / "audit.json", json.dumps(facts, indent=1, allow_nan=False))


def _measured(side: _Side) -> Columns:
    return {
        "lid_model": side.model["lid"],
        "lid_model_stderr": side.model["stderr"],
        "lid_data": side.data[0].tolist(),
        "lid_data_stderr": side.data[1].tolist(),
        "misfit": side.model["misfit"],
        "complexity": side.complexity[:, 0].tolist(),
    }


def _results(
    inputs: Inputs,
    subjects: Population,
    side: _Side,
    verdicts: Verdicts,
    matches: Matches,
    shown: list[int],
    paths: Columns,
    truth: list[str] | None,
) -> Columns:
    m, place = len(subjects), {i: k for k, i in enumerate(shown)}
    names = np.array(inputs.train.ids, dtype=object)
    index = matches.index.numpy()

    def curve(name: str) -> list[list[float] | None]:
        return [paths[name][place[i]] if i in place else None for i in range(m)]

    return {
        "id": list(subjects.ids),
        "verdict": verdicts.kind.tolist(),
        "p_value": verdicts.p_value.tolist(),
        "q_value": verdicts.q_value.tolist(),
        **_measured(side),
        "expected_lid": verdicts.expected_lid.tolist(),
        "missing_dof": verdicts.missing_dof.tolist(),
        "missing_dof_stderr": verdicts.missing_dof_stderr.tolist(),
        "p_data": verdicts.p_data.tolist(),
        "trusted": verdicts.trusted.tolist(),
        "reason": list(verdicts.reason),
        "copies_in_data": subjects.copies.tolist(),
        "nearest_id": names[index[:, 0]].tolist(),
        "nearest_distance": matches.calibrated[:, 0].tolist(),
        "nearest_l2": matches.distance[:, 0].tolist(),
        "near_duplicates": matches.n_near_duplicates.tolist(),
        "neighbors": names[index].tolist(),
        "neighbor_distances": matches.calibrated.tolist(),
        "curve": curve("curve"),
        "curve_stderr": curve("curve_stderr"),
        "truth": [None] * m if truth is None else truth,
    }


def _pictures(inputs: Inputs, subjects: Population, matches: Matches, shown: list[int]) -> Columns:
    rows = sorted({int(r) for i in shown for r in matches.index[i]})
    ids = [f"subject:{subjects.ids[i]}" for i in shown] + [
        f"train:{inputs.train.ids[r]}" for r in rows
    ]
    png = [_png(subjects.images, i) for i in shown] + [_png(inputs.train, r) for r in rows]
    return {"id": ids, "png": png}


def _png(images: Images, i: int) -> bytes:
    pixels = (images.batch(i, i + 1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _digest(shown: list[int]) -> str:
    import hashlib

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
