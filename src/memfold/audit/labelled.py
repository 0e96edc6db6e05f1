"""Prompts with known answers, and what their words alone give away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from memfold.datasets.prompts import read_prompts
from memfold.memorization.evaluate import auroc
from memfold.memorization.prompt_verdict import LEAST
from memfold.types import InputError

_NOT = ("none", "near")


@dataclass(frozen=True)
class Labelled:
    """Prompts with known answers.

    Attributes:
        prompts: the words.
        kinds: "verbatim", "template", "memorized" (kind unknown), "none", or "near": a prompt
            that draws a variation of something memorized, but no copy; counted apart from both.
        families: near-duplicates share a label.
    """

    prompts: tuple[str, ...]
    kinds: tuple[str, ...]
    families: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a list without both answers, and a prompt with two."""
        positive = [k not in ("none", "near") for k in self.kinds]
        if "none" not in self.kinds or not any(positive):
            raise InputError(
                f"of {len(positive)} prompts {sum(positive)} are memorized and "
                f"{self.kinds.count('none')} are not: a benchmark needs both; pass "
                "--memorized FILE and --other FILE, or a list with a column `type`"
            )
        answers: dict[str, bool] = {}
        for prompt, answer in zip(self.prompts, positive, strict=True):
            if answers.setdefault(prompt, answer) != answer:
                raise InputError(
                    f"the prompt {prompt[:60]!r} stands in both lists; take it out of one"
                )


def read_labelled(
    prompts: str | Path | None,
    memorized: str | Path | None = None,
    other: str | Path | None = None,
    ordinary: str | Path | None = None,
    *,
    limit: int | None = None,
) -> tuple[Labelled, list[str]]:
    """Read prompts with known answers, from one labelled list or from two.

    Args:
        prompts: a list with a column `type` (verbatim, template, memorized, near or none). Where
            it has a column `use`, rows of "calibration" that are not memorized are the ordinary
            prompts.
        memorized: a list of memorized prompts; their kind is read where the list has it.
        other: a list of prompts that are not memorized.
        ordinary: further prompts that are not memorized.
        limit: the first so many of each kind, but as many ordinary ones as a scale needs.

    Returns:
        The labelled prompts and the ordinary ones.

    Raises:
        InputError: the lists cannot be read, or are not enough.
    """
    if (prompts is None) == (memorized is None) or (memorized is None) != (other is None):
        raise InputError("pass either --prompts FILE, or both --memorized FILE and --other FILE")
    base = [] if ordinary is None else list(read_prompts(ordinary).prompts)
    rows: list[tuple[str, str, str]] = []
    if prompts is not None:
        found = read_prompts(prompts)
        uses = found.columns.get("use") or ["test"] * len(found.prompts)
        for text, kind, family, use in zip(
            found.prompts, found.kinds, found.families, uses, strict=True
        ):
            kind = kind or "none"
            if use == "calibration":
                base += [text] if kind == "none" and ordinary is None else []
            else:
                rows.append((text, kind, family))
    else:
        for path, kind in ((memorized or "", "memorized"), (other or "", "none")):
            found = read_prompts(path)
            rows += [
                (text, (own or kind) if kind == "memorized" else kind, family)
                for text, own, family in zip(
                    found.prompts, found.kinds, found.families, strict=True
                )
            ]
    kept: dict[str, tuple[str, str, str]] = {}
    seen: dict[str, int] = {}
    for row in rows:
        both = (row[1] in _NOT, kept.get(row[0], row)[1] in _NOT)
        if both[0] != both[1]:
            raise InputError(f"the prompt {row[0][:60]!r} stands in both lists; take it out of one")
        if row[0] not in kept and (limit is None or seen.get(row[1], 0) < limit):
            kept[row[0]] = row
            seen[row[1]] = seen.get(row[1], 0) + 1
    texts, kinds, families = (tuple(c) for c in zip(*kept.values(), strict=True))
    base = [text for text in dict.fromkeys(base) if text not in kept]
    return Labelled(texts, kinds, families), base[: max(limit, LEAST)] if limit else base


def text_only(labelled: Labelled) -> float | None:
    """AUROC of a classifier that sees the words alone, out of fold by families.

    What it can tell, the prompts themselves give away: a detector must beat it. Bags of words and
    of characters, logistic regression, five folds; None where there are too few families.

    Args:
        labelled: the prompts.

    Returns:
        The AUROC.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline, make_union

    kinds = np.array(labelled.kinds)
    prompts = np.array(labelled.prompts, dtype=object)[kinds != "near"]
    families = np.array(labelled.families)[kinds != "near"]
    positive = is_memorized(kinds[kinds != "near"])
    if min(len(set(families[positive])), len(set(families[~positive]))) < 5:
        return None
    model = make_pipeline(
        make_union(
            TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2)),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)),
        ),
        LogisticRegression(max_iter=1000, class_weight="balanced"),
    )
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    p = cross_val_predict(
        model, list(prompts), positive, groups=families, cv=folds, method="predict_proba"
    )
    return auroc(p[:, 1], positive)


def is_memorized(kinds: ndarray) -> ndarray:
    """Say which kinds are memorized; a near miss is not."""
    return ~np.isin(kinds, ("none", "near"))


def counts(labelled: Labelled) -> dict[str, int]:
    """Count the prompts of each kind, and the families."""
    kinds = list(labelled.kinds)
    return {k: kinds.count(k) for k in dict.fromkeys(sorted(kinds))} | {
        "families": len(set(labelled.families))
    }
