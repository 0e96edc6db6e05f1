"""The plan of an audit: every argument, checked before any work is done."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from memfold.lid.scale import ESTIMATORS
from memfold.types import InputError

DATA_ESTIMATORS = ("mle", "lpca", "twonn", "empirical")
_PATHS = ("model", "data", "out", "holdout", "samples", "truth", "embedding")
KINDS = ("overfitting", "data", "undetermined")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to audit, and how.

    Attributes:
        model: a diffusers pipeline directory or hub id.
        data: the images that the model was trained on.
        out: directory of the results.
        holdout: real images that the model has not seen: the reference population.
        samples: images to judge.
        generate: number of images to draw from the model and judge.
        train_points: judge the training images themselves.
        limit: judge at most so many subjects, chosen by the seed.
        truth: JSON file with known answers, for comparison only.
        embedding: image embedding, for evidence beside the pixels: a TorchScript file, or a
            transformers vision model (`memfold.load_embedding`).
        estimator: model-side LID: "dsm", "flipd" or "spectral".
        data_estimator: data-side LID: "mle", "lpca", "twonn" or "empirical".
        sigma: the scale; chosen on the reference population where None.
        noises: noises for each image.
        probes: products for each noise, where the estimator takes any.
        neighbors: nearest training images that the data side looks at.
        alpha: wanted false-discovery rate.
        max_reference: at most so many reference images, chosen by the seed; all where None.
        seed: keys all randomness.
        batch_size: rows in one pass of the network; halved when memory runs out.
        device: where to compute.
        half: compute in half precision; points stay float32.
        class_label: the class that a class-conditional model is fixed to.
        guidance_scale: classifier-free guidance with that class.
        allow_pickle: also read weights from pickles.
        allow_code: also read an embedding in TorchScript, which runs code of its own.
        record_paths: write whole paths into audit.json and the report, not last names.
        resize: bring images of another size to the model's.
        fail_on: verdicts whose presence makes the exit code 1. Without any it is 0, or 3 where
            `copies` copies could not have been called: inconclusive.
        copies: the smallest number of copies that a gate must not miss.
        overwrite: discard another audit's results in `out`.
        title: heading of the report.
    """

    model: str
    data: str
    out: str
    holdout: str | None = None
    samples: str | None = None
    generate: int | None = None
    train_points: bool = False
    limit: int | None = None
    truth: str | None = None
    embedding: str | None = None
    estimator: str = "dsm"
    data_estimator: str = "mle"
    sigma: float | None = None
    noises: int = 16
    probes: int = 4
    neighbors: int = 20
    alpha: float = 0.05
    max_reference: int | None = None
    seed: int = 0
    batch_size: int = 128
    device: str = "cpu"
    half: bool = False
    class_label: int | None = None
    guidance_scale: float | None = None
    allow_pickle: bool = False
    allow_code: bool = False
    record_paths: bool = False
    resize: bool = False
    fail_on: tuple[str, ...] = ()
    copies: int = 1
    overwrite: bool = False
    title: str = ""

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be used, each in one line with its remedy."""
        chosen = [self.samples is not None, self.generate is not None, self.train_points]
        if sum(chosen) != 1:
            raise InputError(
                f"{sum(chosen)} kinds of subjects are given; choose one of --samples IMAGES, "
                "--generate N and --train-points"
            )
        _one_of("--estimator", self.estimator, tuple(ESTIMATORS))
        _one_of("--data-estimator", self.data_estimator, DATA_ESTIMATORS)
        for kind in self.fail_on:
            _one_of("--fail-on", kind, KINDS)
        least = {"copies": 1, "generate": 1, "limit": 1, "noises": 2, "probes": 2, "neighbors": 3}
        for name, low in {**least, "max_reference": 10, "batch_size": 1}.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"--{name.replace('_', '-')} = {value}; take {low} or more")
        if not 0 < self.alpha < 1:
            raise InputError(f"--alpha = {self.alpha}; choose a rate between 0 and 1, such as 0.05")
        if self.sigma is not None and not 0 < self.sigma < float("inf"):
            raise InputError(f"--sigma = {self.sigma}; choose a noise level above 0")
        if not 0 <= self.seed < 2**62:
            raise InputError(f"--seed = {self.seed}; choose a whole number from 0 to 2^62")
        check_out(self.out)

    @property
    def source(self) -> str:
        """What the subjects are: "train", "generated" or "images"."""
        if self.train_points:
            return "train"
        return "generated" if self.generate is not None else "images"

    @property
    def described(self) -> str:
        """What the subjects are, in words."""
        return {
            "train": "distinct training images",
            "generated": "images generated by the model",
            "images": f"images of {self.samples}",
        }[self.source]

    def recorded(self) -> Plan:
        """Give the plan as results show it: of paths the last name alone, unless all is wanted."""
        shown = copy(self)
        for name in _PATHS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(shown, name, recorded(value, whole=self.record_paths))
        return shown

    def arguments(self) -> dict[str, Any]:
        """Give every argument, for the record."""
        return asdict(self) | {"fail_on": list(self.fail_on)}

    def command(self) -> str:
        """Write the command line that repeats this audit; defaults are left out."""
        words = ["memfold", "audit", self.model]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "model" or value == field.default:
                continue
            words.append(f"--{field.name.replace('_', '-')}")
            if isinstance(value, tuple):
                value = ",".join(value)
            if value is not True:
                words.append(str(value))
        return shlex.join(words)

    def settings(self) -> dict[str, Any]:
        """Give the arguments on which the numbers depend; paths enter by their contents."""
        leave = {
            "model",
            "data",
            "holdout",
            "samples",
            "truth",
            "embedding",
            "out",
            "fail_on",
            "copies",
            "overwrite",
        }
        leave |= {"title", "batch_size", "alpha", "device", "allow_code", "record_paths"}
        return {k: v for k, v in asdict(self).items() if k not in leave}


def recorded(source: str, *, whole: bool) -> str:
    """Give a path as results show it, which say nothing of the machine that they were made on.

    Args:
        source: a path, or a hub id.
        whole: the user wants to see whole paths.

    Returns:
        The path or id; of a path that is absolute, or leads upwards, the last name alone.
    """
    path = Path(source)
    if whole or not (path.is_absolute() or {"..", "~"} & set(path.parts)):
        return source
    return path.name if path.name not in ("", "..") else path.resolve().name or source


def check_out(out: str) -> None:
    """Refuse a directory of results that cannot be written.

    Args:
        out: the directory.

    Raises:
        InputError: it is a file, or may not be written.
    """
    if Path(out).is_file():
        raise InputError(f"--out {out} is a file; choose a directory")
    parent = Path(out).absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise InputError(f"--out {out} cannot be written; choose another directory")


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} {value!r} is unknown; choose from {', '.join(choices)}")
