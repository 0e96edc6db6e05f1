"""Detectors against known answers: which prompts are memorized, who finds them, at what cost."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

import memfold
from memfold.datasets.prompts import read_prompts
from memfold.memorization.detectors import DETECTORS
from memfold.memorization.evaluate import auroc, bootstrap, tpr_at_fpr
from memfold.memorization.prompt_verdict import SIGNALS, VERDICT, combine, standards
from memfold.report.bench_figures import bench_figure
from memfold.types import InputError

from .scoring import Scoring, model_digest, score_prompts, usable
from .store import Columns, Store, write_text

FPR = 0.01


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


def bench(
    labelled: Labelled,
    scoring: Scoring,
    out: str | Path,
    *,
    ordinary: Sequence[str] = (),
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Score every prompt by every detector and compare with the known answers; resumable.

    Args:
        labelled: the prompts and their answers.
        scoring: how they are scored.
        out: directory of the results: `bench.json`, `scores.csv` (a row an image), `bench.md`.
        ordinary: further prompts that are not memorized, for the scale of the joint verdict; none
            of them may be among the labelled. Without them there is no verdict.
        workers: processes.
        overwrite: discard what another run left in `out`.
        progress: show a bar.

    Returns:
        What bench.json holds.

    Raises:
        InputError: the lists or the pipeline cannot be used.
    """
    shared = set(labelled.prompts) & set(ordinary)
    if shared:
        raise InputError(
            f"{len(shared)} ordinary prompts stand in the labelled list too, such as "
            f"{min(shared)[:60]!r}: the verdict's scale must come from others"
        )
    model = scoring.load()
    detectors, left = usable(model, scoring.detectors, scoring.images)
    fingerprint = {
        **scoring.settings(),
        "model": model_digest(scoring.model),
        "prompts": list(labelled.prompts),
        "ordinary": list(ordinary),
        "memfold": memfold.__version__,
    }
    store = Store(out, fingerprint, overwrite=overwrite)
    options: dict[str, Any] = {"workers": workers, "progress": progress, "model": model}
    test = score_prompts(labelled.prompts, scoring, store, stage="test", **options)
    scores = _table(test, len(labelled.prompts), [d.name for d in detectors])
    if ordinary:
        wanted = tuple(d.name for d in detectors if d.name in SIGNALS)
        few = replace(scoring, detectors=wanted)
        base = score_prompts(ordinary, few, store, stage="ordinary", **options)
        reference = _table(base, len(ordinary), wanted)
        scores[VERDICT] = combine(scores, standards(reference))
    rows = _rows(scores, labelled, scoring, test)
    found = {
        "memfold": memfold.__version__,
        "model": scoring.model,
        "pipeline": model.name,
        "settings": scoring.settings(),
        "prompts": _counts(labelled) | {"ordinary": len(ordinary)},
        "fpr": FPR,
        "text_only": text_only(labelled),
        "left_out": left,
        "rows": rows,
    }
    write_text(Path(out) / "bench.json", json.dumps(_finite(found), indent=1))
    write_text(Path(out) / "scores.csv", _csv(scores, labelled, scoring.seeds))
    write_text(Path(out) / "bench.md", markdown(found))
    write_text(Path(out) / "bench.svg", bench_figure(rows, scoring.images))
    return found


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
        limit: the first so many of each kind.

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
        if row[0] not in kept and (limit is None or seen.get(row[1], 0) < limit):
            kept[row[0]] = row
            seen[row[1]] = seen.get(row[1], 0) + 1
    texts, kinds, families = (tuple(c) for c in zip(*kept.values(), strict=True))
    base = [text for text in dict.fromkeys(base) if text not in kept]
    return Labelled(texts, kinds, families), base[:limit] if limit else base


def _table(columns: Columns, n: int, names: Sequence[str]) -> dict[str, ndarray]:
    """Bring each detector's scores to (prompts, images)."""
    return {
        name: np.asarray(columns[f"score.{name}"], dtype=float).reshape(n, -1) for name in names
    }


def _rows(
    scores: dict[str, ndarray], labelled: Labelled, scoring: Scoring, columns: Columns
) -> list[dict[str, Any]]:
    """Compute the figures of each detector, for one image and for all, by kind."""
    kinds, family = np.array(labelled.kinds), np.array(labelled.families)
    rows = []
    for name, table in scores.items():
        # A score of one image that looks at the other seeds is no score of one image.
        many = name == VERDICT or DETECTORS[name].many
        entry: dict[str, Any] = {"detector": name, "many": many} | _cost(name, columns, scoring)
        for label, values in (("one", table[:, 0]), ("all", table.mean(1))):
            for group in ("memorized", "verbatim", "template"):
                positive = _positive(kinds) if group == "memorized" else kinds == group
                keep = positive | (kinds == "none")
                if positive.any():
                    entry[f"{label}.{group}"] = _figures(
                        values[keep], positive[keep], family[keep], intervals=group == "memorized"
                    )
            if (kinds == "near").any():
                entry[f"{label}.near_called"] = _called(values, kinds)
        rows.append(entry)
    return sorted(rows, key=lambda r: (-r["all.memorized"]["tpr"], -r["all.memorized"]["auroc"]))


def _positive(kinds: ndarray) -> ndarray:
    return ~np.isin(kinds, ("none", "near"))


def _called(values: ndarray, kinds: ndarray) -> float:
    """Share of near misses above the lowest threshold with at most 1 % of the others above it."""
    others = np.sort(values[kinds == "none"])
    allowed = int(FPR * len(others))
    threshold = others[len(others) - 1 - allowed]
    return float((values[kinds == "near"] > threshold).mean())


def _figures(
    score: ndarray, positive: ndarray, family: ndarray, *, intervals: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "auroc": auroc(score, positive),
        "tpr": tpr_at_fpr(score, positive, FPR),
    }
    if intervals:
        # A family with both answers (a near miss beside its original) is two for the bootstrap.
        own = np.array([f"{f}|{p}" for f, p in zip(family, positive, strict=True)])
        for key, statistic in (("auroc", auroc), ("tpr", tpr_at_fpr)):
            found[f"{key}_interval"] = bootstrap(
                statistic, score, positive, own, resamples=500,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
    return found


def _cost(name: str, columns: Columns, scoring: Scoring) -> dict[str, Any]:
    """Extra passes and milliseconds an image, beside the generation itself."""
    if name == VERDICT:
        return {"when": "all", "passes": float("nan"), "products": float("nan"), "ms": float("nan")}
    mean = {k: float(np.mean(columns[f"{k}.{name}"])) for k in ("passes", "products", "seconds")}
    return {
        "when": DETECTORS[name].when,
        "passes": mean["passes"],
        "products": mean["products"],
        "ms": 1000 * mean["seconds"],
    }


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
    positive = _positive(kinds[kinds != "near"])
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


def _counts(labelled: Labelled) -> dict[str, int]:
    kinds = list(labelled.kinds)
    return {k: kinds.count(k) for k in dict.fromkeys(sorted(kinds))} | {
        "families": len(set(labelled.families))
    }


def markdown(found: dict[str, Any]) -> str:
    """Write the table of a benchmark as markdown.

    Args:
        found: what `bench` returned.

    Returns:
        The text.
    """
    images = found["settings"]["images"]
    head = (
        f"| detector | AUROC, {images} images | TPR at 1 % FPR | verbatim | template "
        "| near called | AUROC, 1 image | TPR at 1 % FPR "
        "| extra passes | products | ms an image |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in found["rows"]:
        many, one = row["all.memorized"], row["one.memorized"]
        kinds = [row.get(f"all.{k}") for k in ("verbatim", "template")]
        cells = [
            row["detector"],
            _with(many["auroc"], many["auroc_interval"]),
            _with(many["tpr"], many["tpr_interval"]),
            *(f"{k['auroc']:.3f} / {k['tpr']:.2f}" if k else "-" for k in kinds),
            f"{row['all.near_called']:.2f}" if "all.near_called" in row else "-",
            "-" if row["many"] else f"{one['auroc']:.3f}",
            "-" if row["many"] else f"{one['tpr']:.2f}",
            *(_number(row[k]) for k in ("passes", "products", "ms")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    text = found["text_only"]
    counts = ", ".join(f"{n} {k}" for k, n in found["prompts"].items())
    tail = "too few families to say" if text is None else f"AUROC {text:.3f}"
    lines += ["", f"Prompts: {counts}. A classifier of the text alone: {tail}."]
    return "\n".join(lines) + "\n"


def _with(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _number(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _csv(scores: dict[str, ndarray], labelled: Labelled, seeds: Sequence[int]) -> str:
    """Write a row an image: its prompt, answer, family, seed and scores."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["prompt", "type", "family", "seed", *scores])
    for i, prompt in enumerate(labelled.prompts):
        for j, seed in enumerate(seeds):
            values = [f"{table[i, j]:.6g}" for table in scores.values()]
            writer.writerow([prompt, labelled.kinds[i], labelled.families[i], seed, *values])
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    """Replace NaN by null, which JSON knows."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
