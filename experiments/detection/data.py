"""The prompts of the detection experiment, and the scores that the benchmark wrote."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memfold.audit.labelled import Labelled
from memfold.memorization.detectors import DETECTORS
from memfold.memorization.prompt_verdict import VERDICT


def sample(labelled: Labelled, counts: dict[str, int], seed: int) -> Labelled:
    """Draw so many prompts of each kind, or all where there are fewer; other kinds are left out."""
    rng = np.random.default_rng(seed)
    kinds = np.array(labelled.kinds)
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(kinds == kind))[:n] for kind, n in counts.items()]
    )
    rows = np.sort(rows)
    return Labelled(*(tuple(part[i] for i in rows) for part in (labelled.prompts, labelled.kinds,
                                                                labelled.families)))  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """Scores of prompts, means over their images.

    Attributes:
        prompts: the words.
        kinds: verbatim, template, memorized, near or none.
        families: near-duplicates share a label.
        by_detector: name -> (prompts,), large where memorization is likely.
    """

    prompts: NDArray[np.str_]
    kinds: NDArray[np.str_]
    families: NDArray[np.str_]
    by_detector: dict[str, NDArray[np.float64]]

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Which prompts are memorized."""
        return ~np.isin(self.kinds, ("none", "near"))

    @property
    def negative(self) -> NDArray[np.bool_]:
        """Which are not; near misses are neither."""
        return self.kinds == "none"

    def lid(self, name: str) -> NDArray[np.float64]:
        """The LID whose negative a detector scores by."""
        return -self.by_detector[name]

    def clusters(self) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
        """Families of the memorized prompts, and of the others."""
        return self.families[self.positive], self.families[self.negative]

    def split(self, *names: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores by detector as columns: of the memorized prompts, and of the others."""
        table = np.stack([self.by_detector[name] for name in names], 1)
        return table[self.positive], table[self.negative]


def read_scores(path: Path) -> Scores:
    """Read scores.csv of `memfold.audit.bench`: a row an image."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first: dict[str, int] = {}
    which = np.array([first.setdefault(row["prompt"], len(first)) for row in rows])
    heads = [rows[int(np.flatnonzero(which == i)[0])] for i in range(len(first))]
    counts = np.bincount(which)
    names = [name for name in rows[0] if name in DETECTORS or name == VERDICT]
    means = {
        name: np.bincount(which, weights=[float(row[name]) for row in rows]) / counts
        for name in names
    }
    columns = (np.array([row[key] for row in heads]) for key in ("prompt", "type", "family"))
    return Scores(*columns, means)
