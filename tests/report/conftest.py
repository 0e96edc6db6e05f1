"""A synthetic audit directory: plausible numbers, pictures of random blobs, no model."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

SIGMAS = np.geomspace(0.03, 2.0, 14)
SIGMA = 0.18
MakeAudit = Callable[..., Path]


def png(rng: np.random.Generator, size: int = 16) -> bytes:
    """A picture of three soft blobs."""
    axis = np.arange(size)
    picture = np.zeros((size, size))
    for a, b, width in zip(*rng.uniform(2, size - 2, (2, 3)), rng.uniform(1, 4, 3), strict=True):
        picture += np.exp(-((axis[:, None] - a) ** 2 + (axis[None] - b) ** 2) / (2 * width**2))
    file = io.BytesIO()
    Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def curve(lid: float, rng: np.random.Generator) -> list[float]:
    """LID over sigma: the ambient dimension at small noise, `lid` at SIGMA, falling beyond."""
    fall = np.minimum(256.0, lid * (SIGMAS / SIGMA) ** -0.75)
    return (fall * rng.lognormal(0, 0.03, len(SIGMAS))).tolist()


def rate(count: int, n: int, name: str = "rate") -> dict[str, float]:
    """A share with its Clopper-Pearson interval."""
    low = stats.beta.ppf(0.025, count, n - count + 1) if count else 0.0
    high = stats.beta.ppf(0.975, count + 1, n - count) if count < n else 1.0
    return {"count": count, "n": n, name: count / n, "low": low, "high": high}


def subject(i: int, truth: str, rng: np.random.Generator) -> dict[str, Any]:
    """One row of results.parquet."""
    memorized, by_data = truth != "none", truth == "data"
    expected = rng.normal(45, 6)
    lid = rng.gamma(8, 0.8) if memorized else max(expected + rng.normal(0, 5), 12)
    trusted = memorized or i % 97 != 5
    p = 1 / 401 if memorized else rng.uniform(0.003, 1)
    return {
        "id": f"image {i:04d}.png",
        "verdict": truth if trusted else "undetermined",
        "p_value": p,
        "q_value": 0.0021 if memorized else min(1.0, 1.4 * p + 0.2),
        "lid_model": lid,
        "lid_model_stderr": 0.1 * lid,
        "expected_lid": expected,
        "missing_dof": expected - lid,
        "missing_dof_stderr": 0.1 * lid + 0.4,
        "lid_data": rng.gamma(6, 0.7) if by_data else max(rng.normal(38, 7), 9),
        "lid_data_stderr": rng.uniform(0.3, 3),
        "p_data": 1 / 401 if by_data else rng.uniform(0.1, 1),
        "complexity": rng.uniform(0.2, 0.9),
        "trusted": trusted,
        "reason": "" if trusted else "denoised worse than 99 % of the held-out",
        "nearest_id": f"row {3 * i}",
        "nearest_distance": rng.uniform(0.02, 0.2) if memorized else rng.uniform(0.7, 1.1),
        "nearest_l2": rng.uniform(0.1, 4),
        "near_duplicates": 75 if by_data else 0,
        "neighbors": [f"row {3 * i + k}" for k in range(3)],
        "neighbor_distances": sorted(rng.uniform(0.05, 1, 3).tolist()),
        "curve": curve(lid, rng),
        "curve_stderr": [0.15 * v for v in curve(lid, rng)],
        "truth": truth,
    }


def reference(rng: np.random.Generator, n: int) -> list[dict[str, Any]]:
    """Rows of reference.parquet."""
    lid = rng.normal(45, 8, n)
    return [
        {
            "id": f"held-out {i}",
            "lid_model": lid[i],
            "lid_model_stderr": 3.0,
            "lid_data": max(rng.normal(38, 7), 8),
            "lid_data_stderr": 2.0,
            "complexity": rng.uniform(0.2, 0.9),
            "curve": curve(lid[i], rng),
        }
        for i in range(n)
    ]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The audit.json of such rows."""
    n = len(rows)
    counts = dict.fromkeys(("overfitting", "data", "none", "undetermined"), 0)
    counts |= Counter(row["verdict"] for row in rows)
    kinds = {**counts, "memorized": counts["overfitting"] + counts["data"]}
    pairs = Counter((row["truth"], row["verdict"]) for row in rows)
    labels = sorted({row["truth"] for row in rows if row["truth"]})
    return {
        "memfold": "0.1.0",
        "created": "2025-11-24T04:13:00+00:00",
        "title": "Audit of a small diffusion model",
        "subjects": {"source": "train", "n": n, "description": "Fashion-MNIST at 16 × 16"},
        "arguments": {"model": "model/", "data": "train/", "holdout": "test/", "noises": 8},
        "versions": {"memfold": "0.1.0", "torch": "2.9.0", "python": "3.11.9"},
        "hashes": {"model": "3f9a" * 16, "data": "77c1" * 16, "holdout": None},
        "sigma": SIGMA,
        "estimator": "FLIPD at noised points, 8 noises, 4 probes",
        "data_estimator": "FLIPD of the data's own closed-form denoiser",
        "alpha": 0.05,
        "image_range": [-1, 1],
        "reference": {"source": "holdout", "n": 400, "note": "400 held-out images were compared."},
        "counts": counts,
        "rates": {kind: rate(count, n) for kind, count in kinds.items()},
        "warnings": ["The held-out set is small: no q-value can fall below 0.0021."],
        "curve_sigmas": SIGMAS.tolist(),
        "regions": {"model_threshold": 28.0, "data_threshold": 18.0},
        "ground_truth": {
            "labels": labels,
            "confusion": {t: {v: pairs[t, v] for v in counts} for t in labels},
            "precision": {v: rate(counts[v], max(counts[v], 1), "value") for v in labels},
            "recall": {v: rate(pairs[v, v], max(counts[v], 1), "value") for v in labels},
        },
        "citations": [
            {
                "key": "ross2024geometric",
                "text": "Ross et al. A Geometric Framework for Understanding Memorization. 2025.",
                "bibtex": "@inproceedings{ross2025geometric,\n  year = {2025}\n}",
                "url": "https://arxiv.org/abs/2411.00113",
            }
        ],
        "methods": ["Each image was noised eight times at σ = 0.18 and denoised by the model."],
        "seconds": {"model": 41.2, "data": 9.5},
        "power": {"sentence": "2 copies or more would be found among these images."},
        "doubt": {"reason": "", "remedy": ""},
        "exit": {
            "fail_on": ["overfitting"],
            "failed": counts["overfitting"] > 0,
            "outcome": "found" if counts["overfitting"] else "passed",
        },
    }


def write_audit(
    directory: Path,
    *,
    overfitting: int = 30,
    data: int = 20,
    n: int = 400,
    edit: Callable[[dict[str, Any], list[dict[str, Any]]], None] | None = None,
) -> Path:
    """Write an audit directory; `edit` may change audit.json and the rows beforehand."""
    rng = np.random.default_rng(0)
    truths = ["overfitting"] * overfitting + ["data"] * data
    truths += ["none"] * (n - len(truths))
    rows = [subject(i, truth, rng) for i, truth in enumerate(rng.permutation(truths).tolist())]
    audit = summary(rows)
    if edit:
        edit(audit, rows)
    flagged = [row for row in rows if row["verdict"] != "none"]
    keys = [f"subject:{row['id']}" for row in flagged]
    keys += [f"train:{name}" for row in flagged for name in row["neighbors"] or ()]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "audit.json").write_text(json.dumps(audit), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), directory / "results.parquet")
    pq.write_table(pa.Table.from_pylist(reference(rng, n)), directory / "reference.parquet")
    pictures = [{"id": key, "png": png(rng)} for key in keys]
    schema = pa.schema([("id", pa.string()), ("png", pa.binary())])
    pq.write_table(pa.Table.from_pylist(pictures, schema), directory / "pictures.parquet")
    return directory


@pytest.fixture(scope="session")
def make_audit() -> MakeAudit:
    """The function that writes a synthetic audit directory."""
    return write_audit


@pytest.fixture(scope="session")
def audit_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of 400 images, 30 memorized by overfitting, 20 by the data. Do not change it."""
    return write_audit(tmp_path_factory.mktemp("audit"))
