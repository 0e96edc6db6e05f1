"""The claims on generated images: what is asked, and its statistic with an interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.images.data import ORIGINS
from experiments.images.label import EXACT, LABELS, NOT, RECONSTRUCTED
from experiments.images.subjects import ALPHA, Subjects
from experiments.kit import Run, interval, proportion
from memfold.memorization.evaluate import KINDS, auroc, compare

PAPER = "Section 5, on CIFAR10"
FEW = 3  # different training images below which a group says nothing
ESTIMATORS = {
    "rank": "rank of dG/dz", "soft": "soft rank of dG/dz",
    "flipd": "FLIPD", "dsm": "denoising loss", "gap": "normal bundle, gap", "threshold": "normal bundle, threshold",
}  # fmt: skip
Interval = tuple[float, float, float]


def separation(low: np.ndarray, high: np.ndarray) -> float:
    """Chance that a LID of `low` lies below one of `high`, ties half: AUROC of -LID."""
    positive = np.arange(len(low) + len(high)) < len(low)
    return auroc(-np.concatenate([low, high]), positive)


def partial(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """Correlation of a and b after least squares of both on `given` (n, p) and a constant."""
    design = np.c_[np.ones(len(given)), given]
    rest = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (a, b)]
    return correlation(*rest)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else 0.0


def by_group(
    s: Subjects, name: str, first: np.ndarray, second: np.ndarray, statistic: Callable[..., Any]
) -> Interval:
    """A statistic of the LIDs of two groups; all images of one training image are drawn together."""
    lid = s.theta[name]
    masks = [mask & np.isfinite(lid) for mask in (first, second)]
    values, rows = tuple(lid[m] for m in masks), tuple(s.row[m] for m in masks)
    if any(len(np.unique(r)) < FEW for r in rows):
        return float("nan"), -np.inf, np.inf
    return interval(values, statistic, clusters=rows)


def low_lid(run: Run, s: Subjects) -> None:
    """Memorized groups have lower LID_theta, in the order of the labels."""
    copied, other = s.memorized, s.label == NOT
    for name in s.theta:
        text = ESTIMATORS[name]
        run.claim(f"{s.model}: memorized images have lower LID_θ, by {text}", "AUROC of −LID_θ",
                  by_group(s, name, copied, other, separation), above=0.5, source=PAPER)  # fmt: skip
    for name in s.theta:
        for low, high in ((EXACT, RECONSTRUCTED), (RECONSTRUCTED, NOT)):
            found = by_group(s, name, s.label == high, s.label == low, _gap)
            run.claim(
                f"{s.model}: {LABELS[low]} lies below {LABELS[high]}, by {ESTIMATORS[name]}",
                "difference of mean LID_θ", found, above=0.0, source=PAPER,
                reason="" if np.isfinite(found[0]) else "too few copied images in a group",
            )  # fmt: skip


def _gap(high: np.ndarray, low: np.ndarray) -> float:
    return float(high.mean() - low.mean())


def both_kinds(run: Run, s: Subjects) -> None:
    """Both kinds occur, and the verdict tells them apart."""
    truth = s.truth
    for kind, cause in (("overfitting", "images that stand once"), ("data", "repeated images")):
        run.claim(f"{s.model}: copies of {cause} occur", "share of generated images",
                  proportion(int((truth == kind).sum()), len(truth)), above=0.0, source=PAPER)  # fmt: skip
    found = compare(s.kind, truth)
    none = ""
    if not found.precision["memorized"].trials:
        none = f"no image is called at false-discovery rate {ALPHA}, reference {s.reference} images"
    for kind in ("overfitting", "data"):
        share = found.recall[kind]
        run.claim(f"{s.model}: the verdict names copies by {kind}", "recall, chance 0.5",
                  proportion(share.hits, share.trials), above=0.5, reason=none)  # fmt: skip
    called = np.isin(s.kind, ("overfitting", "data")) & (truth != "none")
    right = int((s.kind == truth)[called].sum())
    run.claim(f"{s.model}: the verdict tells the two kinds apart",
              "right kind among copies that are called, chance 0.5",
              proportion(right, int(called.sum())), above=0.5, source=PAPER, reason=none)  # fmt: skip
    share = found.precision["memorized"]
    run.claim(f"{s.model}: what the verdict calls is a copy", "precision, against the labels",
              proportion(share.hits, share.trials), above=0.5, reason=none)  # fmt: skip


def complexity_table(s: Subjects, name: str) -> dict[str, Interval]:
    """Correlations of memorization and LID_theta, before and after correction for complexity."""
    ok = np.isfinite(s.theta[name])
    columns = np.c_[s.memorized, s.theta[name], s.png, s.features][ok]
    rows = s.row[ok]

    def found(statistic: Callable[[np.ndarray], float], keep: np.ndarray | None = None) -> Interval:
        part = slice(None) if keep is None else keep
        return interval(columns[part], statistic, clusters=rows[part], resamples=1000)

    def raw(t: np.ndarray) -> float:
        return correlation(t[:, 0], t[:, 1])

    def by_png(t: np.ndarray) -> float:
        return partial(t[:, 0], t[:, 1], t[:, 2:3])

    def by_features(t: np.ndarray) -> float:
        return partial(t[:, 0], t[:, 1], t[:, 3:])

    def ratio(t: np.ndarray) -> float:
        return correlation(t[:, 0], t[:, 1] / t[:, 2])

    return {
        "confounded": found(lambda t: correlation(t[:, 1], t[:, 2]), columns[:, 0] == 0),
        "raw": found(raw), "ratio": found(ratio), "png": found(by_png),
        "features": found(by_features),
        "gain png": found(lambda t: raw(t) - by_png(t)),
        "gain features": found(lambda t: raw(t) - by_features(t)),
    }  # fmt: skip


def complexity(run: Run, s: Subjects, name: str) -> dict[str, Interval]:
    """Complexity confounds, and the correction helps."""
    made = complexity_table(s, name)
    text = f"{s.model}, {ESTIMATORS[name]}"
    run.claim(f"{text}: complexity confounds", "correlation of LID_θ with PNG size, not memorized",
              made["confounded"], above=0.0, source=PAPER)  # fmt: skip
    for key, what in (("png", "PNG size"), ("features", "the verdict's covariates")):
        run.claim(f"{text}: correcting for {what} helps",
                  "fall of the correlation of memorized with LID_θ", made[f"gain {key}"],
                  above=0.0, source=PAPER if key == "png" else "")  # fmt: skip
    return made


def cell(found: Interval) -> str:
    """Write a value with its interval."""
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def label_rows(s: Subjects) -> list[list[Any]]:
    """Counts by label and origin of the copied row, with how many different rows these are."""
    made = []
    for value, label in enumerate(LABELS):
        row: list[Any] = [s.model, label]
        for origin in range(len(ORIGINS)):
            mask = (s.label == value) & (s.origin == origin)
            row.append(f"{mask.sum()} ({len(np.unique(s.row[mask]))})")
        made.append(row)
    return made


def lid_rows(s: Subjects) -> list[list[Any]]:
    """Mean of each LID by label."""
    named = {f"LID_θ, {ESTIMATORS[k]}": v for k, v in s.theta.items()}
    named |= {f"LID_*, {k}": v for k, v in s.star.items()}
    made = []
    for name, lid in named.items():
        row = [s.model, name]
        for value in range(len(LABELS)):
            mask = (s.label == value) & np.isfinite(lid)
            some = len(np.unique(s.row[mask])) >= FEW
            row.append(cell(interval(lid[mask], clusters=s.row[mask])) if some else "")
        made.append(row)
    return made


def verdict_rows(s: Subjects) -> list[list[Any]]:
    """Counts of the verdicts by what is known."""
    table = compare(s.kind, s.truth).confusion
    return [[s.model, known, *(str(table[known][kind]) for kind in KINDS)] for known in table]
