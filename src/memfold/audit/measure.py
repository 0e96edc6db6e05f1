"""The measurements of an audit, in pieces that are kept as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from memfold.lid.scale import ESTIMATORS, default_sigmas
from memfold.memorization.complexity import features
from memfold.memorization.conformal import calibrate
from memfold.sampling.generate import generate
from memfold.types import Estimate

from .plan import Plan
from .store import Columns, Store, concat

PIECE = 64  # images in a piece: what a killed run loses at most
_CURVE_NOISES = 8
_PILOT = 192  # reference images on which sigma is chosen
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
                if cached:
                    bar.initial += stop - start  # the time estimate counts new work alone
                bar.update(stop - start)
        return concat(done)

    def points(self, flat: Tensor) -> Tensor:
        """Give flat points the model's shape, on its device."""
        shape = self.denoiser.shape or flat.shape[1:]
        return flat.reshape(-1, *shape).to(self.denoiser.device, self.denoiser.dtype)


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
                    n_noises=_CURVE_NOISES,
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


def choose_sigma(
    bench: Bench, flat: Float[Tensor, "n d"]
) -> tuple[float, list[float], list[float]]:
    """Choose the scale at which an exact copy would stand out most from the reference population.

    At each sigma of a grid the denoising-loss LID of reference images is regressed on their
    complexity; an exact copy has LID 0, which lies expected / spread below an ordinary image. The
    sigma with the largest median of that ratio is taken. Only the reference enters: no subject and
    no known answer.

    Args:
        bench: plan, store and model.
        flat: reference images as points.

    Returns:
        The sigma, the grid, and the ratio at each of its sigmas.
    """
    grid = default_sigmas(bench.denoiser)
    part = flat[:_PILOT]
    table = np.array(curves(bench, "pilot", "Choosing the scale", part, grid)["curve"])
    ratios = []
    for column, sigma in zip(table.T, grid, strict=True):
        z = features(bench.points(part).float(), sigma).double().numpy()
        found = calibrate(column, column, features=z, reference_features=z,
                          reference_index=np.arange(len(column)))
        ratios.append(float(np.median(found.expected / found.spread)))
    return grid[int(np.argmax(ratios))], grid, ratios


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
    """
    for smaller in _halves(size):
        try:
            return run(smaller)
        except RuntimeError as error:
            if smaller == 1 or not _out_of_memory(error):
                raise
            tqdm.write(f"memfold: out of memory at batch size {smaller}; halving it")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    raise AssertionError("unreachable: the loop returns or raises")


def _halves(size: int) -> Iterator[int]:
    while size >= 1:
        yield size
        size //= 2


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)


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
