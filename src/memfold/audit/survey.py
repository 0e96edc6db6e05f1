"""Measurements without a verdict: a model's LID at given images, a data set's own LID."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memfold.datasets.images import Images, load_images
from memfold.files import csv_text, write_table, write_text
from memfold.lid.scale import ESTIMATORS, knee, knee_interval, lid_curve
from memfold.memorization.replicate import duplicate_groups
from memfold.types import Curve, InputError

from .checks import check
from .data_side import neighbor_estimator
from .inputs import load_images_model, read_for

_KNEE = ("knee", "knee_low", "knee_high")


@dataclass(frozen=True)
class Survey:
    """A table, one row an image, and what it is.

    Attributes:
        title: one line in words.
        table: columns of one length.
        sigma: the scale; NaN where there is none.
        curve: LID over scales, where it was measured.
    """

    title: str
    table: dict[str, list[Any]]
    sigma: float = float("nan")
    curve: Curve | None = None


def model_lid(
    model: str,
    images: str,
    *,
    sigma: float | None = None,
    estimator: str = "dsm",
    noises: int = 16,
    limit: int | None = None,
    seed: int = 0,
    class_label: int | None = None,
    device: str = "cpu",
    half: bool = False,
    resize: bool = False,
    allow_pickle: bool = False,
    progress: bool = False,
) -> Survey:
    """Estimate a model's LID at images, at one scale and over a grid of scales.

    Args:
        model: a diffusers pipeline directory or hub id.
        images: where the images are.
        sigma: the scale; the knee of the mean curve where None.
        estimator: "dsm", "flipd" or "spectral".
        noises: noises for each image.
        limit: only the first so many images.
        seed: keys all randomness.
        class_label: class of a class-conditional model.
        device: where to compute.
        half: compute in half precision; points stay float32.
        resize: bring images of another size to the model's.
        allow_pickle: also read weights from pickles.
        progress: show progress bars.

    Returns:
        id, lid, stderr for each image; the knee of its own curve and the scales between which that
        may lie; and the curve over the grid `sigmas`.

    Raises:
        InputError: with the value and the remedy.
    """
    if estimator not in ESTIMATORS:
        raise InputError(f"estimator {estimator!r} is unknown; choose from {', '.join(ESTIMATORS)}")
    check({
        "model": model, "data": images, "sigma": sigma, "noises": noises, "limit": limit,
        "seed": seed, "class_label": class_label, "device": device,
    })  # fmt: skip
    denoiser = load_images_model(
        model,
        class_label=class_label,
        device=device,
        allow_pickle=allow_pickle,
        dtype=torch.float16 if half else torch.float32,
    )
    found = read_for(denoiser, images, resize)
    x = torch.cat([denoiser.encode(found.batch(i, i + 64)) for i in range(0, len(found), 64)])
    x = x[:limit]
    if sigma is not None:
        denoiser.check(x, sigma)
    generator = torch.Generator().manual_seed(seed)
    curve = lid_curve(
        denoiser, x, estimator=estimator, n_noises=noises, generator=generator, progress=progress
    )
    if sigma is None:
        mean = Curve(curve.sigmas, curve.lid.mean(0)[None], curve.stderr.mean(0)[None], "mean")
        sigma = float(curve.sigmas[knee(mean)[0]])
    estimate = ESTIMATORS[estimator](
        denoiser, x, sigma, n_noises=noises, generator=torch.Generator().manual_seed(seed)
    )
    places = (knee(curve), *knee_interval(curve))
    table = {
        "id": list(found.ids[: len(x)]),
        "lid": estimate.lid.tolist(),
        "stderr": estimate.stderr.tolist(),
        **{k: curve.sigmas[i].tolist() for k, i in zip(_KNEE, places, strict=True)},
        "sigmas": [curve.sigmas.tolist()] * len(x),
        "curve": curve.lid.tolist(),
        "curve_stderr": curve.stderr.tolist(),
    }
    return Survey(f"LID at sigma = {sigma:.3g}: {estimate.method}", table, sigma, curve)


def data_risk(
    data: str, *, estimator: str = "mle", neighbors: int = 20, tolerance: float = 0.05
) -> Survey:
    """Estimate a data set's own LID around each image, lowest first, duplicates grouped.

    Args:
        data: where the images are.
        estimator: "mle", "lpca" or "twonn".
        neighbors: images around each.
        tolerance: two images are near-duplicates up to this distance, as a share of the root mean
            square distance of the images from their mean.

    Returns:
        One row a group of near-duplicates: id of its first image, copies, lid, stderr.

    Raises:
        InputError: with the value and the remedy.
    """
    check({"data": data, "neighbors": neighbors, "tolerance": tolerance})
    dimension = neighbor_estimator(estimator, neighbors)
    images = load_images(data)
    if len(images) <= neighbors:
        raise InputError(f"{data} holds {len(images)} images, too few for --neighbors {neighbors}")
    x = _flat(images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # point masses are what is looked for, and reported
        lid, stderr = dimension.fit_predict_with_stderr(x)
    groups = duplicate_groups(torch.from_numpy(x), tolerance).numpy()
    _, first, copies = np.unique(groups, return_index=True, return_counts=True)
    order = np.lexsort((first, -copies, lid[first]))
    rows = first[order]
    table = {
        "id": [images.ids[i] for i in rows],
        "copies": copies[order].tolist(),
        "lid": lid[rows].tolist(),
        "stderr": stderr[rows].tolist(),
    }
    twice = int((copies > 1).sum())
    title = (
        f"{len(images)} images, {len(rows)} distinct; {twice} stand there more than once; "
        f"data-side LID by {estimator}, lowest first"
    )
    return Survey(title, table)


def save(table: dict[str, list[Any]], path: str) -> None:
    """Write a table to a .parquet or .csv file.

    Args:
        table: columns of one length.
        path: where.

    Raises:
        InputError: another suffix, or a place that cannot be written.
    """
    target = Path(path)
    try:
        if target.suffix == ".parquet":
            write_table(target, table)
        elif target.suffix == ".csv":
            write_text(target, csv_text([list(table), *zip(*table.values(), strict=True)]))
        else:
            raise InputError(f"--out {path}: write to a .parquet or .csv file")
    except OSError as error:
        raise InputError(
            f"--out {path} cannot be written ({error.strerror}); make room, or choose another place"
        ) from error


def write_figure(svg: str, path: str) -> None:
    """Write a figure.

    Args:
        svg: the figure.
        path: an .svg file.

    Raises:
        InputError: another suffix, or a place that cannot be written.
    """
    if Path(path).suffix != ".svg":
        raise InputError(f"--figure {path}: write to an .svg file")
    try:
        write_text(Path(path), svg)
    except OSError as error:
        raise InputError(
            f"--figure {path} cannot be written ({error.strerror}); make room, or choose another "
            "place"
        ) from error


def _flat(images: Images) -> np.ndarray:
    return np.concatenate([b.flatten(1).numpy() for b in images.batches(256)])
