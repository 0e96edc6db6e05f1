"""What an audit of images will take, and what it could find, before it runs; nothing is written."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from memfold.lid.dsm import dsm_lid
from memfold.lid.scale import ESTIMATORS, default_sigmas
from memfold.linalg.neighbors import nearest
from memfold.memorization.complexity import features
from memfold.memorization.power import Power, power
from memfold.types import Estimate

from .gate import doubt, power_facts
from .inputs import Inputs, points, read_inputs, reference_rows
from .measure import BAND, CURVE_NOISES, choose_sigma, with_less_memory
from .plan import Plan

_PILOT = 32  # reference images that are measured
_PILOT_NOISES = 8
_SCALE = 8  # of these, images with a curve, where sigma is to be chosen
_CALLS = 60  # of the network for each generated image


def forecast(plan: Plan) -> dict[str, Any]:
    """Measure a few network passes and simulate the audit's power; nothing is written.

    A pilot of up to 32 reference images gives the LID that is expected at each complexity and its
    spread; the whole reference is drawn from that. The pilot sees no tail: the run, which measures
    every image, says the power anew.

    Args:
        plan: what would be audited.

    Returns:
        `subjects`, `reference`, `sigma`, `rows` through the network by stage, `batch_size`,
        `seconds_per_row` and `seconds` (estimates), `power` and `doubt` as in audit.json.

    Raises:
        InputError: as `run`.
    """
    inputs = read_inputs(plan)
    n = len(inputs.reference)
    m = plan.generate or 0 if inputs.subjects is None else len(inputs.subjects)
    random = np.random.default_rng(plan.seed)
    reference = points(inputs.denoiser, inputs.reference.images)
    place = random.permutation(n)[:_PILOT]
    grid = default_sigmas(inputs.denoiser)
    sigma = plan.sigma or _choose(plan, inputs, reference[place], grid)
    lid, per_row, per_noise = _pilot(plan, inputs, reference[place], sigma)
    able = _power(plan, inputs, (reference, place), lid, sigma, m, random)
    rows = {
        "curves": min(BAND, n) * len(grid) * CURVE_NOISES,
        "reference": n * plan.noises,
        "subjects": m * plan.noises,
        "generated": (plan.generate or 0) * _CALLS,
    }
    products = (n + m) * plan.noises * per_noise
    seconds = sum(rows.values()) * per_row + products + _searches(plan, inputs, reference, m)
    things, source = plan.recorded().described, "train" if plan.holdout is None else "holdout"
    others = "training images" if source == "train" else "held-out images"
    reason, remedy = doubt(able, things)
    return {
        "subjects": {"n": m, "description": things},
        "reference": {"n": n, "source": source},
        "sigma": sigma,
        "pilot": len(place),
        "rows": rows,
        "batch_size": plan.batch_size,
        "seconds_per_row": per_row,
        "seconds": seconds,
        "power": power_facts(able, things, others),
        "doubt": {"reason": reason, "remedy": remedy},
        "warnings": list(inputs.warnings),
    }


def _choose(plan: Plan, inputs: Inputs, flat: Tensor, grid: list[float]) -> float:
    x = _shaped(inputs, flat[:_SCALE])
    table = [_dsm(plan, inputs, x, s, 2).lid for s in grid]
    return choose_sigma(grid, torch.stack(table, 1).tolist())


def _pilot(plan: Plan, inputs: Inputs, flat: Tensor, sigma: float) -> tuple[Estimate, float, float]:
    """LID of the pilot, seconds a row, and seconds a noise of an estimator by products."""
    x = _shaped(inputs, flat)
    _dsm(plan, inputs, x[:2], sigma, 2)  # the first pass is slower
    start = time.perf_counter()
    lid = _dsm(plan, inputs, x, sigma, _PILOT_NOISES)
    per_row = (time.perf_counter() - start) / (len(x) * _PILOT_NOISES)
    if plan.estimator == "dsm":
        return lid, per_row, 0.0
    options: dict[str, Any] = {"n_probes": plan.probes} if plan.estimator == "flipd" else {}
    start = time.perf_counter()
    ESTIMATORS[plan.estimator](
        inputs.denoiser, x[:2], sigma, n_noises=2, generator=_generator(plan.seed), **options
    )
    return lid, per_row, (time.perf_counter() - start) / 4


def _dsm(plan: Plan, inputs: Inputs, x: Tensor, sigma: float, noises: int) -> Estimate:
    return with_less_memory(
        plan.batch_size,
        lambda size: dsm_lid(
            inputs.denoiser, x, sigma, n_noises=noises, generator=_generator(plan.seed),
            batch_size=size,
        ),
    )  # fmt: skip


def _power(
    plan: Plan,
    inputs: Inputs,
    measured: tuple[Tensor, ndarray],
    pilot: Estimate,
    sigma: float,
    m: int,
    random: np.random.Generator,
) -> Power:
    """Simulate on a reference that is drawn from the pilot, at everybody's own complexity."""
    reference, place = measured
    z = _complexity(inputs, reference, sigma)
    if inputs.subjects is None:
        own, subject_z = None, z[random.integers(len(z), size=m)]
    else:
        own = reference_rows(plan, inputs, inputs.subjects)
        subject_z = _complexity(inputs, points(inputs.denoiser, inputs.subjects.images), sigma)
    lid = _drawn(z, place, np.asarray(pilot.lid, dtype=float), random)
    error = float(pilot.stderr.median()) * np.sqrt(_PILOT_NOISES / plan.noises)
    here = np.full(m, lid.mean())
    if own is not None:
        here = np.where(own >= 0, lid[own], here)
    return power(
        _estimate(here, error),
        reference_model=_estimate(lid, error),
        complexity=subject_z,
        reference_complexity=z,
        reference_index=own,
        alpha=plan.alpha,
        copies=plan.copies,
        seed=plan.seed,
    )


def _drawn(z: ndarray, place: ndarray, lid: ndarray, random: np.random.Generator) -> ndarray:
    """LID of all from that of a few: least squares in complexity, and the ratios to it."""
    unit = np.where(z.std(0) > 0, z.std(0), 1)
    rows = np.column_stack([np.ones(len(z)), (z - z.mean(0)) / unit])
    if len(place) < 3 * rows.shape[1]:
        rows = rows[:, :1]
    fit = rows @ np.linalg.lstsq(rows[place], lid, rcond=None)[0]
    fit = np.maximum(fit, max(lid.min() / 2, 1e-3))
    ratio = np.log(np.maximum(lid / fit[place], 0.05))
    width = 1.06 * ratio.std() * len(place) ** -0.2  # Silverman's rule: a smooth bootstrap
    drawn = random.choice(ratio, size=len(z)) + width * random.normal(size=len(z))
    shrunk = ratio.mean() + (drawn - ratio.mean()) / np.sqrt(1 + width**2 / max(ratio.var(), 1e-12))
    return fit * np.exp(shrunk)


def _searches(plan: Plan, inputs: Inputs, reference: Tensor, m: int) -> float:
    """Seconds of the searches among the training images."""
    train = points(inputs.denoiser, inputs.train)
    some = reference[:_PILOT]
    start = time.perf_counter()
    nearest(some, train, min(plan.neighbors, len(train)))
    each = (time.perf_counter() - start) / len(some)
    return each * (len(reference) + 3 * m + len(train))


def _complexity(inputs: Inputs, flat: Tensor, sigma: float) -> ndarray:
    return features(_shaped(inputs, flat).float(), sigma).double().cpu().numpy()


def _shaped(inputs: Inputs, flat: Tensor) -> Tensor:
    denoiser = inputs.denoiser
    shape = denoiser.shape or flat.shape[1:]
    return flat.reshape(-1, *shape).to(denoiser.device, denoiser.dtype)


def _estimate(lid: ndarray, stderr: float) -> Estimate:
    value = torch.from_numpy(lid)
    return Estimate(value, torch.full_like(value, stderr), float("nan"), "")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
