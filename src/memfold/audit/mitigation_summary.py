"""From the images of a benchmark of mitigations to its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from memfold.memorization.conformal import share_interval
from memfold.mitigation.evaluate import frechet

from .store import Columns

QUANTILE = 0.01  # of ordinary images, below which one counts as a copy
_OWN = {"distance", "nearest", "spread", "embedding_distance", "alignment", "clip", "seed",
        "seconds", "drawn", "description"}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Below what an image is a copy, and a prompt's images are alike.

    Attributes:
        copy: root mean square distance to the nearest reference latent.
        alike: spread of a prompt's images.
        embedding: distance in the embedding; None without one.
    """

    copy: float
    alike: float
    embedding: float | None = None


def limits_of(
    ordinary: Sequence[Columns], copy: float | None = None, alike: float | None = None
) -> Limits:
    """Calibrate the limits on what ordinary prompts draw.

    The 1 % quantile, never interpolated: the floor(0.01 n) + 1 -th smallest of n, so that at most
    1 % of the ordinary images lie below; of fewer than 100 that is the smallest of them.

    Args:
        ordinary: the measures of each prompt.
        copy: a limit that is given; likewise `alike`.
        alike: see `copy`.

    Returns:
        The limits.
    """

    def low(name: str, first: bool = False) -> float:
        values = [v for row in ordinary for v in (row[name][:1] if first else row[name])]
        return float(np.sort(values)[int(QUANTILE * len(values))])

    has = bool(ordinary) and "embedding_distance" in ordinary[0]
    return Limits(
        low("distance") if copy is None else copy,
        low("spread", first=True) if alike is None else alike,
        low("embedding_distance") if has else None,
    )


def summary_rows(
    table: Sequence[tuple[str, str, str, Columns]],
    limits: Limits,
    quality: Float[Tensor, "m e"] | None,
) -> list[dict[str, Any]]:
    """Average the images of each method and kind.

    Args:
        table: (method, kind, prompt, columns with an entry an image) of each prompt.
        limits: what a copy is.
        quality: CLIP embeddings of images as they should be; None without.

    Returns:
        A row a method and kind: `copies` (share of images), `copied` (share of prompts with a copy
        in at least half of their images) with its 95 % Clopper-Pearson interval, `alike`,
        `spread`, `seconds`, and where they can be had `embedding_copies`, `alignment`, `frechet`.
    """
    rows = []
    for method in dict.fromkeys(entry[0] for entry in table):
        for kind in dict.fromkeys(entry[1] for entry in table):
            some = [row for m, k, _, row in table if (m, k) == (method, kind)]
            rows.append({"method": method, "kind": kind} | _row(some, limits, quality))
    return rows


def _row(some: Sequence[Columns], limits: Limits, quality: Tensor | None) -> dict[str, Any]:
    copied = [np.array(row["distance"]) < limits.copy for row in some]
    hits = int(sum(one.mean() >= 0.5 for one in copied))
    found: dict[str, Any] = {
        "prompts": len(some),
        "copies": float(np.mean(copied)),
        "copied": hits / len(some),
        "copied_interval": list(share_interval(hits, len(some))),
        "alike": float(np.mean([row["spread"][0] < limits.alike for row in some])),
        "spread": float(np.mean([row["spread"][0] for row in some])),
        "seconds": float(np.mean([row["seconds"][0] for row in some])),
    }
    if limits.embedding is not None:
        near = [np.array(row["embedding_distance"]) < limits.embedding for row in some]
        found["embedding_copies"] = float(np.mean(near))
    if "clip" in some[0]:
        found["alignment"] = float(np.mean([row["alignment"] for row in some]))
        drawn = torch.tensor([v for row in some for v in row["clip"]])
        if quality is not None and len(quality) > 1:
            found["frechet"] = frechet(drawn, quality)
    more = [k for k in some[0] if k not in _OWN]
    return found | {k: float(np.mean([row[k] for row in some])) for k in more}
