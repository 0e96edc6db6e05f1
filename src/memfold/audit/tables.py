"""The tables that an audit writes: results, reference, pictures."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from memfold.datasets.images import Images
from memfold.files import write_bytes, write_table
from memfold.memorization.mmh import Verdicts
from memfold.memorization.replicate import Matches

from .inputs import Population
from .store import Columns

TABLES = ("results.parquet", "reference.parquet", "pictures.parquet")
_THUMBNAIL = 256  # pixels, longest side of a picture in the report


@dataclass(frozen=True)
class Side:
    """The measurements of one population.

    Attributes:
        flat: the images as points.
        model: lid, stderr and misfit of the model side.
        data: LID and standard error of the data side.
        complexity: covariates of each image.
    """

    flat: Float[Tensor, "n d"]
    model: Columns
    data: tuple[np.ndarray, np.ndarray]
    complexity: np.ndarray

    def columns(self) -> Columns:
        """Give what the tables hold of it."""
        return {
            "lid_model": self.model["lid"],
            "lid_model_stderr": self.model["stderr"],
            "lid_data": self.data[0].tolist(),
            "lid_data_stderr": self.data[1].tolist(),
            "misfit": self.model["misfit"],
            "complexity": self.complexity[:, 0].tolist(),
        }


@dataclass(frozen=True)
class Evidence:
    """What stands beside the verdicts.

    Attributes:
        matches: the nearest training images of each subject.
        copies: how many other training rows nearly repeat each subject.
        embedded: columns about the nearest ones in the user's own embedding, if any.
        shown: the subjects that get pictures and a curve.
        curves: columns curve and curve_stderr of these.
        truth: the known kind of each subject, where it is known.
    """

    matches: Matches
    copies: list[int]
    embedded: Columns
    shown: list[int]
    curves: Columns
    truth: list[str] | None


def write_tables(
    out: Path,
    train: Images,
    reference: Population,
    subjects: Population,
    sides: tuple[Side, Side],
    band: Columns,
    verdicts: Verdicts,
    evidence: Evidence,
) -> None:
    """Write results.parquet, reference.parquet and pictures.parquet, each atomically.

    Args:
        out: the audit's directory.
        train: the training images.
        reference: the reference population.
        subjects: the subjects.
        sides: measurements of reference and subjects.
        band: curves of the first reference images.
        verdicts: one a subject.
        evidence: what stands beside them.
    """
    write_table(out / "results.parquet", _results(train, subjects, sides[1], verdicts, evidence))
    missing = [None] * (len(reference) - len(band["curve"]))
    write_table(
        out / "reference.parquet",
        {
            "id": list(reference.ids),
            **sides[0].columns(),
            "curve": [*band["curve"], *missing],
        },
    )
    write_table(out / "pictures.parquet", _pictures(train, subjects, evidence))


def write_samples(out: Path, subjects: Population) -> None:
    """Write generated images to samples.npz, array `images`.

    Args:
        out: the audit's directory.
        subjects: the images.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=subjects.images.pixels)
    write_bytes(out / "samples.npz", buffer.getvalue())


def _results(
    train: Images,
    subjects: Population,
    side: Side,
    verdicts: Verdicts,
    evidence: Evidence,
) -> Columns:
    m, place = len(subjects), {i: k for k, i in enumerate(evidence.shown)}
    matches, paths = evidence.matches, evidence.curves
    names = np.array(train.ids, dtype=object)
    index = matches.index.numpy()

    def curve(name: str) -> list[list[float] | None]:
        return [paths[name][place[i]] if i in place else None for i in range(m)]

    return {
        "id": list(subjects.ids),
        "verdict": verdicts.kind.tolist(),
        "p_value": verdicts.p_value.tolist(),
        "q_value": verdicts.q_value.tolist(),
        **side.columns(),
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
        "near_duplicates": evidence.copies,
        "neighbors": names[index].tolist(),
        "neighbor_distances": matches.calibrated.tolist(),
        "curve": curve("curve"),
        "curve_stderr": curve("curve_stderr"),
        "truth": [None] * m if evidence.truth is None else evidence.truth,
        **evidence.embedded,
    }


def _pictures(train: Images, subjects: Population, evidence: Evidence) -> Columns:
    shown, matches = evidence.shown, evidence.matches
    rows = sorted({int(r) for i in shown for r in matches.index[i]})
    ids = [f"subject:{subjects.ids[i]}" for i in shown] + [f"train:{train.ids[r]}" for r in rows]
    png = [_png(subjects.images, i) for i in shown] + [_png(train, r) for r in rows]
    return {"id": ids, "png": png}


def _png(images: Images, i: int) -> bytes:
    pixels = (images.batch(i, i + 1)[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture.save(buffer, "PNG")
    return buffer.getvalue()
