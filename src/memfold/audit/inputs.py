"""What an audit works on: the model, the images of each population, and their fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memfold.datasets.images import Images, load_images, to_model
from memfold.denoisers.adapters.diffusers import load
from memfold.denoisers.base import Denoiser
from memfold.types import InputError

from .digest import model_digest
from .plan import Plan, recorded

_BATCH = 256


@dataclass(frozen=True)
class Population:
    """Images of one role, as the model takes them.

    Attributes:
        images: the images.
        ids: a name for each.
        row: row of each in the training data; -1 for one that does not stand there.
        copies: how often each stands in the training data, exactly.
    """

    images: Images
    ids: tuple[str, ...]
    row: Int[np.ndarray, " n"]
    copies: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)


@dataclass(frozen=True)
class Inputs:
    """Everything that an audit reads.

    Attributes:
        denoiser: the model.
        train: all rows of the training data.
        reference: held-out images, or distinct training images where there are none.
        subjects: the images to judge; None where they are yet to be generated.
        hashes: SHA-256 of model (weights and configuration) and data.
        truth: known kind of each training row, or None.
        warnings: what the reader of the report must know.
    """

    denoiser: Denoiser
    train: Images
    reference: Population
    subjects: Population | None
    hashes: dict[str, str]
    truth: dict[int, str] | None
    warnings: tuple[str, ...]


def read_inputs(plan: Plan) -> Inputs:
    """Load the model and all images, and refuse what does not fit together.

    Args:
        plan: the plan.

    Returns:
        The inputs.

    Raises:
        InputError: with the value and the remedy.
    """
    denoiser = load_images_model(
        plan.model,
        class_label=plan.class_label,
        guidance_scale=plan.guidance_scale,
        allow_pickle=plan.allow_pickle,
        device=plan.device,
        dtype=torch.float16 if plan.half else torch.float32,
    )
    if plan.sigma is not None and not denoiser.sigma_min <= plan.sigma <= denoiser.sigma_max:
        raise InputError(
            f"--sigma = {plan.sigma} lies outside the model's range; choose one from "
            f"{denoiser.sigma_min:.4g} to {denoiser.sigma_max:.4g}"
        )
    train = _read(plan.data, "--data", denoiser, plan.resize)
    if len(train) <= plan.neighbors:
        raise InputError(
            f"--data {plan.data} holds {len(train)} images, fewer than --neighbors "
            f"{plan.neighbors} needs; give the whole training set, or lower it"
        )
    distinct = _distinct(train)
    hashes = {"model": _whole_hash(denoiser, plan.model), "data": train.digest}
    name = recorded(plan.data, whole=plan.record_paths)
    warnings = [f"{name}: {note}." for note in train.notes]
    if plan.holdout is not None:
        holdout = _read(plan.holdout, "--holdout", denoiser, plan.resize)
        _refuse_overlap(train, holdout, plan.holdout)
        hashes["holdout"] = holdout.digest
        reference = _population(holdout, _subset(len(holdout), plan.max_reference, plan.seed))
    else:
        reference = _take(distinct, _subset(len(distinct), plan.max_reference, plan.seed))
    subjects = None
    if plan.train_points:
        subjects = _take(distinct, _subset(len(distinct), plan.limit, plan.seed + 1))
    elif plan.samples is not None:
        samples = _read(plan.samples, "--samples", denoiser, plan.resize)
        hashes["samples"] = samples.digest
        subjects = _population(samples, _subset(len(samples), plan.limit, plan.seed + 1))
    m = plan.generate or 0 if subjects is None else len(subjects)
    if plan.copies > m:
        raise InputError(f"--copies {plan.copies} of {m} subjects; choose {m} or fewer")
    truth = None if plan.truth is None else read_truth(Path(plan.truth), len(train))
    return Inputs(denoiser, train, reference, subjects, hashes, truth, tuple(warnings))


def reference_rows(plan: Plan, inputs: Inputs, subjects: Population) -> np.ndarray | None:
    """Find each subject in the reference, where both are training images.

    Args:
        plan: the plan.
        inputs: what was read.
        subjects: the subjects.

    Returns:
        Its row there, -1 for one that is not in it; None where none can be.
    """
    if plan.holdout is not None or plan.source != "train":
        return None
    place = {int(row): i for i, row in enumerate(inputs.reference.row)}
    return np.array([place.get(int(row), -1) for row in subjects.row])


def load_images_model(model: str, **options: Any) -> Denoiser:
    """Load a model that needs no prompt.

    Args:
        model: a diffusers pipeline directory or hub id.
        options: of `load`.

    Returns:
        The model.

    Raises:
        InputError: it cannot be loaded, or takes a prompt.
    """
    found = load(model, **options)
    if not isinstance(found, Denoiser):
        raise InputError(
            f"{model} is a text-to-image pipeline ({found.name}): its images belong to prompts; "
            f"run memfold audit {model} --prompts FILE"
        )
    return found


def points(denoiser: Denoiser, images: Images) -> Float[Tensor, "n d"]:
    """Encode images to flat points of the model's own space.

    Args:
        denoiser: the model.
        images: n images.

    Returns:
        Points on the CPU, shape (n, d), float32.
    """
    return torch.cat([denoiser.encode(b).flatten(1).float().cpu() for b in images.batches(_BATCH)])


def generated(pixels: np.ndarray) -> Population:
    """Make a population of generated images.

    Args:
        pixels: uint8, shape (n, c, h, w).

    Returns:
        The population; ids are the numbers of their seeds.
    """
    ids = tuple(f"sample {i}" for i in range(len(pixels)))
    return _population(Images(pixels, ids, "generated"), np.arange(len(pixels)))


def model_hash(denoiser: Denoiser) -> str:
    """Hash the network's parameters and buffers, by name, shape and value.

    Args:
        denoiser: the model.

    Returns:
        "sha256:..." of the network as it was measured, wherever it came from.
    """
    total = hashlib.sha256()
    state = denoiser.module.state_dict() if denoiser.module is not None else {}
    for name, value in sorted(state.items()):
        total.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        total.update(
            value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        )
    return f"sha256:{total.hexdigest()}"


def _whole_hash(denoiser: Denoiser, model: str) -> str:
    """Hash the network as it was measured, and the files it came from: scheduler, VAE and all."""
    both = f"{model_hash(denoiser)} {denoiser.dtype} {model_digest(model)}"
    return f"sha256:{hashlib.sha256(both.encode()).hexdigest()}"


def read_truth(path: Path, n: int) -> dict[int, str]:
    """Read known answers: {"duplicated": [[rows], ...], "rare": [rows]}, rows of the data.

    Args:
        path: the JSON file.
        n: rows in the training data.

    Returns:
        Row to "data" or "overfitting"; rows that are not named are not memorized.

    Raises:
        InputError: the file is missing, damaged or names rows that do not exist.
    """
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        truth = {_row(row): "data" for group in found["duplicated"] for row in group}
        truth |= {_row(row): "overfitting" for row in found["rare"]}
    except OSError as error:
        raise InputError(f"--truth {path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f'--truth {path} is not of the form {{"duplicated": [[rows], ...], "rare": [rows]}} '
            f"({' '.join(str(error).split())[:100]}); write it so"
        ) from error
    wrong = [row for row in truth if not 0 <= row < n]
    if wrong:
        raise InputError(
            f"--truth {path} names row {wrong[0]}, but the data have {n} rows, 0 to {n - 1}"
        )
    return truth


def _row(value: Any) -> int:
    """Take a whole number; 1.7 and true are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"row {value!r} is no whole number")
    return value


def read_for(denoiser: Denoiser, source: str, resize: bool) -> Images:
    """Read images as the model takes them.

    Args:
        denoiser: the model.
        source: where the images are.
        resize: bring images of another size to the model's.

    Returns:
        The images.

    Raises:
        InputError: they cannot be read, or do not fit.
    """
    if denoiser.space != "latent" and denoiser.shape is not None:
        c, h, w = denoiser.shape
        fit = (c, h, w) if resize else None
        return to_model(load_images(source, fit=fit), (c, h, w))
    images = load_images(source)
    _check_latent(denoiser, images)
    return images


def _read(source: str, option: str, denoiser: Denoiser, resize: bool) -> Images:
    try:
        return read_for(denoiser, source, resize)
    except InputError as error:
        raise InputError(f"{option} {error}") from error


def _check_latent(denoiser: Denoiser, images: Images) -> None:
    got = tuple(denoiser.encode(images.batch(0, 1)).shape[1:])
    if denoiser.shape is not None and got != denoiser.shape:
        raise InputError(
            f"{images.source}: the images encode to latents {got}, but the model takes "
            f"{denoiser.shape}; give images of the size that it was trained on"
        )


def _distinct(train: Images) -> Population:
    """Keep one row of each exact image, the first, and count its copies."""
    flat = train.pixels.reshape(len(train), -1)
    keys = np.array([hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in flat])
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    order = np.argsort(first)
    rows = first[order]
    images = train.select(rows.tolist())
    return Population(images, images.ids, rows, counts[order])


def _population(images: Images, index: np.ndarray) -> Population:
    chosen = images.select(index.tolist())
    nowhere = np.full(len(chosen), -1)
    return Population(chosen, chosen.ids, nowhere, np.zeros(len(chosen), dtype=np.int64))


def _take(population: Population, index: np.ndarray) -> Population:
    images = population.images.select(index.tolist())
    return Population(images, images.ids, population.row[index], population.copies[index])


def _subset(n: int, limit: int | None, seed: int) -> np.ndarray:
    if limit is None or limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:limit])


def _refuse_overlap(train: Images, holdout: Images, source: str) -> None:
    known = {image.tobytes() for image in train.pixels}
    seen = [
        name
        for name, image in zip(holdout.ids, holdout.pixels, strict=True)
        if image.tobytes() in known
    ]
    if seen:
        raise InputError(
            f"--holdout {source}: {len(seen)} of {len(holdout)} images stand in the training data "
            f"too (the first is {seen[0]}); held-out images must be unseen: remove them"
        )
