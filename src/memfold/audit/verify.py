"""Verify what an audit wrote: every hash, the plan, the tables by the parts, the report by both."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memfold.files import file_hash
from memfold.report.html import draw
from memfold.types import InputError

from .judging import Judge
from .seal import RECORDS, Columns, digest_of, read_part, read_record
from .store import PART, PLAN, concat, read_table
from .summary import counts_and_rates

_SIDE = {"lid": "lid_model", "stderr": "lid_model_stderr", "misfit": "misfit"}


def verify(directory: str | Path) -> list[str]:
    """Say what differs in an audit's directory from what the audit wrote there.

    The summary (audit.json, or that of a benchmark) holds the SHA-256 of every file and of itself.
    Beyond these, parts must belong to the plan, the tables must follow from the parts, the counts
    from the tables, and report.html, where there is one, must be what the tables draw. Damage and
    mixed-up files are found; a forger who writes every hash anew is not.

    Args:
        directory: what `memfold audit` or `memfold bench` wrote to --out.

    Returns:
        A line for each thing that differs; none where all is as it was written.

    Raises:
        InputError: it is no directory of a finished audit or benchmark.
    """
    root = Path(directory)
    record = next((root / name for name in RECORDS if (root / name).is_file()), None)
    if record is None:
        raise InputError(
            f"{directory} holds no finished audit or benchmark (none of {', '.join(RECORDS)}); "
            "pass what memfold audit or memfold bench wrote to --out"
        )
    facts, differs = read_record(record)
    if not facts:
        return differs
    parts = _Parts(root, facts)
    differs += parts.wrong
    if record.name == RECORDS[0]:
        if not differs:
            check = _prompts if facts.get("kind") == "prompts" else _images
            try:
                differs += check(root, facts, parts)
            except (KeyError, ValueError, TypeError, IndexError, InputError) as error:
                differs.append(f"the tables cannot be compared with the parts: {error!r:.200}")
        differs += _report(root, facts)
    return [" ".join(line.split()) for line in differs]


class _Parts:
    """The parts of a run, by stage; `wrong` says what is the matter with them."""

    def __init__(self, root: Path, facts: dict[str, Any]) -> None:
        self.wrong: list[str] = []
        self._stages: dict[str, list[Columns]] = {}
        try:
            digest = digest_of(json.loads((root / PLAN).read_text("utf-8")))
        except (OSError, ValueError, RecursionError):
            return  # its own hash says so
        for path in sorted((root / "parts").glob("*")):
            name = f"parts/{path.name}"
            if name not in facts["files"] and PART.fullmatch(path.name):
                self.wrong.append(f"{name} is not of this run")
            elif name in facts["files"] and file_hash(path) == facts["files"][name]:
                columns, wrong = read_part(path, f"{digest}:{path.stem}")
                self.wrong += [f"{name} {wrong}"] if wrong else []
                self._stages.setdefault(path.stem.rpartition("-")[0], []).append(columns)

    def __getitem__(self, stage: str) -> Columns:
        return concat(self._stages.get(stage, []))

    def starting(self, prefix: str) -> Iterator[Columns]:
        """The stages whose names begin so."""
        for stage in sorted(self._stages):
            if stage.startswith(prefix):
                yield self[stage]


def _images(root: Path, facts: dict[str, Any], parts: _Parts) -> list[str]:
    results, reference = (read_table(root / f"{n}.parquet") for n in ("results", "reference"))
    found = []
    for stage, table, name in (("subject", results, "results"), ("reference", reference, "")):
        for column, shown in _SIDE.items():
            if not _same(parts[stage].get(column, []), table[shown]):
                found.append(f"{name or stage}.parquet: {shown} is not that of the parts")
    if not _same(parts["band"]["curve"], [c for c in reference["curve"] if c is not None]):
        found.append("reference.parquet: curve is not that of the parts")
    for column in ("curve", "curve_stderr"):
        drew = [c for c in results[column] if c is not None]
        kept = [sorted(map(repr, p.get(column, []))) for p in parts.starting("curve-")]
        if sorted(map(repr, drew)) not in [*kept, *([] if drew else [[]])]:
            found.append(f"results.parquet: {column} is not that of the parts")
    drawn = parts["draw"]
    if drawn and (root / "samples.npz").is_file():
        with np.load(io.BytesIO((root / "samples.npz").read_bytes())) as file:
            if [image.tobytes() for image in file["images"]] != drawn["pixels"]:
                found.append("samples.npz: the images are not those of the parts")
    counts, rates = counts_and_rates(results["verdict"])
    for name, value in (("counts", counts), ("rates", rates)):
        if not _same(facts[name], value):
            found.append(f"audit.json: {name} are not those of results.parquet")
    return found


def _prompts(root: Path, facts: dict[str, Any], parts: _Parts) -> list[str]:
    plan = json.loads((root / PLAN).read_text("utf-8"))
    prompts, ordinary = plan["prompts"], plan["ordinary"]
    table, found = read_table(root / "results.parquet"), []
    scores = parts["prompts"]
    judge = Judge.of(
        scores, parts["ordinary"], len(prompts), len(ordinary), list(facts["signals"])
    )  # fmt: skip
    judged = {k: v.tolist() for k, v in judge.judge(scores, len(prompts)).items()}
    called = [p <= facts["alpha"] for p in judged["p_value"]]
    wanted = {"prompt": prompts, "verdict": ["memorized" if c else "none" for c in called]}
    wanted |= judged | _steps(scores, len(prompts))
    for name, values in wanted.items():
        if name in table and not _same(values, table[name]):
            found.append(f"results.parquet: {name} does not follow from the parts")
    if facts["memorized"]["count"] != sum(called):
        found.append("audit.json: the count of memorized prompts does not follow from the parts")
    kept = {row["prompt"]: repr(row) for row in _rows(parts["flagged"])}
    flagged = _rows(read_table(root / "flagged.parquet"))
    if any(kept.get(row["prompt"]) != repr(row) for row in flagged):
        found.append("flagged.parquet: a row is not that of the parts")
    return found


def _steps(scores: Columns, n: int) -> Columns:
    """Each prompt's mean of a score over its images, step by step."""
    found = {}
    for name in (k for k in scores if k.startswith("steps.")):
        values = np.asarray(scores[name], dtype=float)
        found[name] = values.reshape(n, -1, values.shape[-1]).mean(1).tolist()
    return found


def _rows(table: Columns) -> list[dict[str, Any]]:
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _report(root: Path, facts: dict[str, Any]) -> list[str]:
    path = root / "report.html"
    if not path.exists():
        return []
    try:
        drawn = draw(root).encode()
    except Exception as error:  # damaged tables can break any step of the drawing
        return [f"report.html cannot be compared: {error!s:.200}"]
    if path.is_file() and path.read_bytes() == drawn:
        return []
    return ["report.html is not what the tables draw; memfold report DIR draws it again"]


def _same(a: Any, b: Sequence[Any] | dict[str, Any]) -> bool:
    """Compare values, NaN equal to NaN."""
    return repr(a) == repr(b)
