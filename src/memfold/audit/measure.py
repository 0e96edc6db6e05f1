"""The measurements of an audit, in pieces that are kept as they are made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from memfold.denoisers.base import Denoiser
from memfold.lid.dsm import denoising_residuals
from memfold.lid.noised import mean_over_noises
from memfold.lid.scale import ESTIMATORS, knee
from memfold.sampling.generate import generate
from memfold.tensors import is_out_of_memory
from memfold.types import Curve, Estimate

from .plan import Plan
from .store import Columns, Store, concat

PIECE = 64  # images in a piece: what a killed run loses at most
BAND = 64  # reference images with a curve
CURVE_NOISES = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """What every measurement needs.

    Attributes:
        plan: the plan.
        store: where pieces are kept.
        denoiser: the model.
        progress: show progress bars.
    """

    plan: Plan
    store: Store
    denoiser: Denoiser
    progress: bool

    def pieces(
        self, stage: str, label: str, n: int, compute: Callable[[int, int], Columns]
    ) -> Columns:
        """Run over n items piece by piece, with a progress bar; pieces that exist are read.

        Args:
            stage: the program's own name of the stage.
            label: what the progress bar says.
            n: number of items.
            compute: makes the columns of the items from start to stop.

        Returns:
            The columns of all items.
        """
        done: list[Columns] = []
        with tqdm(total=n, desc=label, unit="image", disable=not self.progress) as bar:
            for start in range(0, n, PIECE):
                stop = min(n, start + PIECE)
                cached = self.store.has(stage, start)
                done.append(self.store.piece(stage, start, lambda a=start, b=stop: compute(a, b)))  # type: ignore[misc]
                if cached and self.progress:
                    bar.initial += stop - start  # the time estimate counts new work alone
                bar.update(stop - start)
        return concat(done)

    def points(self, flat: Tensor) -> Tensor:
        """Give flat points the model's shape, on its device."""
        shape = self.denoiser.shape or flat.shape[1:]
        return flat.reshape(-1, *shape).to(self.denoiser.device, self.denoiser.point_dtype)


def model_side(
    bench: Bench, stage: str, label: str, flat: Float[Tensor, "n d"], sigma: float
) -> Columns:
    """Measure LID, standard error and misfit of every image.

    Args:
        bench: plan, store and model.
        stage: name of the stage.
        label: for the progress bar.
        flat: the images as points.
        sigma: the scale.

    Returns:
        Columns lid, stderr, misfit.
    """
    plan = bench.plan

    def compute(start: int, stop: int) -> Columns:
        x = bench.points(flat[start:stop])
        loss, gap = with_less_memory(
            plan.batch_size,
            lambda size: denoising_residuals(
                bench.denoiser,
                x,
                sigma,
                n_noises=plan.noises,
                generator=_generator(plan.seed),
                batch_size=size,
            ),
        )
        estimate = mean_over_noises(loss.flatten(), len(x), sigma, "")
        if plan.estimator != "dsm":
            estimate = _by_products(bench, x, sigma)
        return {
            "lid": estimate.lid.tolist(),
            "stderr": estimate.stderr.tolist(),
            "misfit": gap.mean(1).tolist(),
        }

    return bench.pieces(stage, label, len(flat), compute)


def curves(
    bench: Bench, stage: str, label: str, flat: Float[Tensor, "n d"], sigmas: list[float]
) -> Columns:
    """Measure the denoising-loss LID of every image over a grid of scales.

    Args:
        bench: plan, store and model.
        stage: name of the stage.
        label: for the progress bar.
        flat: the images as points.
        sigmas: the grid.

    Returns:
        Columns curve and curve_stderr, a list over the grid for each image.
    """
    plan = bench.plan

    def compute(start: int, stop: int) -> Columns:
        x = bench.points(flat[start:stop])
        lid, stderr = [], []
        for sigma in sigmas:
            loss, _ = with_less_memory(
                plan.batch_size,
                lambda size, s=sigma: denoising_residuals(  # type: ignore[misc]
                    bench.denoiser,
                    x,
                    s,
                    n_noises=CURVE_NOISES,
                    generator=_generator(plan.seed + 1),
                    batch_size=size,
                ),
            )
            estimate = mean_over_noises(loss.flatten(), len(x), sigma, "")
            lid.append(estimate.lid)
            stderr.append(estimate.stderr)
        return {
            "curve": torch.stack(lid, 1).tolist(),
            "curve_stderr": torch.stack(stderr, 1).tolist(),
        }

    return bench.pieces(stage, label, len(flat), compute)


def choose_sigma(grid: list[float], table: list[list[float]]) -> float:
    """Choose the scale at the knee of the reference population's mean curve.

    Only the reference enters: no subject and no known answer. Kneedle is FLIPD's own rule for the
    scale (Kamkari et al. 2024); one scale for all images keeps them comparable.

    Args:
        grid: ascending sigmas.
        table: LID of reference images, one list over the grid for each.

    Returns:
        A sigma of the grid.
    """
    mean = torch.tensor(table, dtype=torch.float64).nanmean(0, keepdim=True)
    curve = Curve(torch.tensor(grid, dtype=torch.float64), mean, torch.zeros_like(mean), "mean")
    return grid[int(knee(curve)[0])]


def draw(bench: Bench, n: int) -> np.ndarray:
    """Draw n images from the model, each by its own seed, as 8-bit images.

    Args:
        bench: plan, store and model.
        n: how many.

    Returns:
        Images of type uint8, shape (n, c, h, w).
    """
    plan = bench.plan

    def compute(start: int, stop: int) -> Columns:
        seeds = [plan.seed * 1_000_003 + i for i in range(start, stop)]

        def run(size: int) -> Tensor:
            parts = [seeds[i : i + size] for i in range(0, len(seeds), size)]
            return torch.cat([generate(bench.denoiser, part) for part in parts])

        x = with_less_memory(plan.batch_size, run)
        images = bench.denoiser.decode(x).float().clamp(0, 1).mul(255).round().to(torch.uint8)
        rows = images.cpu().numpy()
        return {"pixels": [r.tobytes() for r in rows], "shape": [list(r.shape) for r in rows]}

    found = bench.pieces("draw", "Generating", n, compute)
    return np.stack(
        [
            np.frombuffer(pixels, np.uint8).reshape(shape)
            for pixels, shape in zip(found["pixels"], found["shape"], strict=True)
        ]
    )


def with_less_memory(size: int, run: Callable[[int], T]) -> T:
    """Run with a batch size that is halved for as long as memory runs out.

    Args:
        size: the batch size to start with.
        run: the work, given the batch size.

    Returns:
        What it returns.

    Raises:
        RuntimeError: memory does not suffice for a batch of one.
        MemoryError: likewise.
        OSError: likewise.
    """
    try:
        return run(size)
    except (RuntimeError, MemoryError, OSError) as error:
        if size == 1 or not is_out_of_memory(error):
            raise
    tqdm.write(f"memfold: out of memory at batch size {size}; halving it", file=sys.stderr)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return with_less_memory(size // 2, run)


def _by_products(bench: Bench, x: Tensor, sigma: float) -> Estimate:
    plan = bench.plan
    options: dict[str, Any] = {"n_noises": plan.noises}
    if plan.estimator == "flipd":
        options["n_probes"] = plan.probes
    return ESTIMATORS[plan.estimator](
        bench.denoiser, x, sigma, generator=_generator(plan.seed), **options
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
