"""The plain data of a report, and its reader: an audit directory in, frozen dataclasses out."""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfold.report.fields import REMEDY, Fields, read_json, read_rows
from memfold.types import InputError

VERDICTS = ("overfitting", "data", "none", "undetermined")
MEMORIZED = ("overfitting", "data")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Subject:
    """One audited image; numbers that the audit did not have are NaN, texts empty.

    Attributes:
        id: the name of the image.
        verdict: one of `VERDICTS`.
        lid_model: degrees of freedom of the model here, with `lid_model_stderr`.
        lid_data: degrees of freedom of the training data here, with `lid_data_stderr`.
        expected_lid: what an image of this complexity has when it is not memorized.
        missing_dof: expected_lid - lid_model, with `missing_dof_stderr`.
        p_value: of the model's LID, `q_value` after correction for many tests.
        p_data: p-value of the data's LID.
        trusted: False where the measurement cannot be relied on, for the given `reason`.
        neighbors: ids of the nearest training images, at `neighbor_distances` (calibrated).
        curve: LID over the audit's `curve_sigmas`, with `curve_stderr`; may be empty.
        truth: the known label, None where unknown.
    """

    id: str
    verdict: str
    lid_model: float
    lid_model_stderr: float = math.nan
    expected_lid: float = math.nan
    missing_dof: float = math.nan
    missing_dof_stderr: float = math.nan
    p_value: float = math.nan
    q_value: float = math.nan
    lid_data: float = math.nan
    lid_data_stderr: float = math.nan
    p_data: float = math.nan
    complexity: float = math.nan
    trusted: bool = True
    reason: str = ""
    nearest_id: str = ""
    nearest_distance: float = math.nan
    nearest_l2: float = math.nan
    near_duplicates: int | None = None
    neighbors: tuple[str, ...] = ()
    neighbor_distances: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    curve_stderr: tuple[float, ...] = ()
    truth: str | None = None


@dataclass(frozen=True)
class Reference:
    """The images that show what is normal; `curves` holds only those that have one."""

    lid_model: tuple[float, ...]
    lid_data: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    source: str
    note: str


@dataclass(frozen=True)
class Rate:
    """A share with its 95 % interval."""

    count: int
    n: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class GroundTruth:
    """The verdicts against known labels; `confusion[true][called]` counts images."""

    labels: tuple[str, ...]
    confusion: Mapping[str, Mapping[str, int]]
    precision: Mapping[str, Rate]
    recall: Mapping[str, Rate]


@dataclass(frozen=True)
class Citation:
    """A work that a result rests on."""

    key: str
    text: str
    bibtex: str
    url: str


@dataclass(frozen=True)
class Report:
    """Everything a report shows.

    Attributes:
        source: what was audited: "train", "generated" or "images".
        settings: groups of (name, value) pairs, as text, in the order to be shown.
        pictures: PNG files under "subject:" + id and "train:" + id.
        regions: limits of the verdict's regions, "model_threshold" and "data_threshold".
        fail_on: what `--fail-on` names; empty where there was no gate.
        outcome: what the gate said: "found", "passed" or "inconclusive"; empty without one.
        power: how many copies the audit would have found, in a sentence; empty where an older
            audit did not say.
        doubt: why "none found" would not mean "none there"; empty where it does.
        remedy: what helps against that.
    """

    title: str
    version: str
    created: str
    source: str
    description: str
    command: str
    sigma: float
    estimator: str
    data_estimator: str
    alpha: float
    curve_sigmas: tuple[float, ...]
    regions: Mapping[str, float]
    rates: Mapping[str, Rate]
    warnings: tuple[str, ...]
    methods: tuple[str, ...]
    citations: tuple[Citation, ...]
    settings: Mapping[str, tuple[tuple[str, str], ...]]
    ground_truth: GroundTruth | None
    fail_on: tuple[str, ...]
    outcome: str
    power: str
    doubt: str
    remedy: str
    subjects: tuple[Subject, ...]
    reference: Reference
    pictures: Mapping[str, bytes]

    @property
    def failed(self) -> bool:
        """Whether the gate found what it names."""
        return self.outcome == "found"

    @property
    def counts(self) -> dict[str, int]:
        """Images a verdict."""
        found = Counter(subject.verdict for subject in self.subjects)
        return {verdict: found[verdict] for verdict in VERDICTS}


def load(directory: str | os.PathLike[str]) -> Report:
    """Read the report's data from an audit directory; needs neither the model nor the images.

    Raises:
        InputError: a file is missing, broken, or of another audit than its neighbours.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a directory; {REMEDY}")
    audit = Fields(read_json(folder / "audit.json"), folder / "audit.json")
    subjects = _subjects(folder / "results.parquet")
    curve_sigmas = audit.numbers("curve_sigmas")
    _check_counts(audit, subjects, folder)
    _check_curves(subjects, curve_sigmas, folder / "results.parquet")
    about = audit.fields("subjects")
    done = audit.fields("exit")
    return Report(
        title=audit.text("title"),
        version=audit.text("memfold"),
        created=audit.text("created"),
        source=about.text("source", "images"),
        description=about.text("description"),
        command=audit.text("command"),
        sigma=audit.number("sigma", required=True),
        estimator=audit.text("estimator"),
        data_estimator=audit.text("data_estimator"),
        alpha=audit.number("alpha"),
        curve_sigmas=curve_sigmas,
        regions=_regions(audit.fields("regions")),
        rates=_rates(audit.fields("rates"), "rate"),
        warnings=audit.texts("warnings"),
        methods=audit.texts("methods"),
        citations=citations(audit),
        settings=_settings(audit),
        ground_truth=_ground_truth(audit),
        fail_on=done.texts("fail_on"),
        outcome=done.text("outcome", "found" if done.get("failed", bool, False) else ""),
        power=audit.fields("power").text("sentence"),
        doubt=audit.fields("doubt").text("reason"),
        remedy=audit.fields("doubt").text("remedy"),
        subjects=subjects,
        reference=_reference(folder / "reference.parquet", audit, len(curve_sigmas)),
        pictures=_pictures(folder / "pictures.parquet"),
    )


def _subjects(path: Path) -> tuple[Subject, ...]:
    return tuple(_subject(row) for row in read_rows(path, ("id", "verdict", "lid_model")))


_NUMBERS = (
    "lid_model",
    "lid_model_stderr",
    "expected_lid",
    "missing_dof",
    "missing_dof_stderr",
    "p_value",
    "q_value",
    "lid_data",
    "lid_data_stderr",
    "p_data",
    "complexity",
    "nearest_distance",
    "nearest_l2",
)


def _subject(row: Fields) -> Subject:
    verdict = row.text("verdict", required=True)
    if verdict not in VERDICTS:
        raise row.fail("verdict", verdict, f"one of {', '.join(VERDICTS)}")
    numbers: dict[str, Any] = {name: row.number(name) for name in _NUMBERS}
    return Subject(
        id=row.text("id", required=True),
        verdict=verdict,
        trusted=bool(row.get("trusted", bool, True)),
        reason=row.text("reason"),
        nearest_id=row.text("nearest_id"),
        near_duplicates=row.count("near_duplicates"),
        neighbors=row.texts("neighbors"),
        neighbor_distances=row.numbers("neighbor_distances"),
        curve=row.numbers("curve"),
        curve_stderr=row.numbers("curve_stderr"),
        truth=row.get("truth", str, None),
        **numbers,
    )


def _reference(path: Path, audit: Fields, points: int) -> Reference:
    rows = read_rows(path, ("lid_model",))
    curves = (row.numbers("curve") for row in rows)
    about = audit.fields("reference")
    return Reference(
        lid_model=tuple(row.number("lid_model") for row in rows),
        lid_data=tuple(row.number("lid_data") for row in rows),
        curves=tuple(curve for curve in curves if points and len(curve) == points),
        source=about.text("source", "holdout"),
        note=about.text("note"),
    )


def _pictures(path: Path) -> dict[str, bytes]:
    pictures = {}
    for row in read_rows(path, ("id", "png")):
        png = row.get("png", bytes, b"")
        if not png.startswith(_PNG) or len(png) < 24:
            raise row.fail("png", row.text("id"), "a PNG file")
        pictures[row.text("id", required=True)] = png
    return pictures


def picture_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels that a PNG file declares."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _check_counts(audit: Fields, subjects: tuple[Subject, ...], folder: Path) -> None:
    found = Counter(subject.verdict for subject in subjects)
    said = audit.fields("counts")
    for verdict in VERDICTS:
        count = said.count(verdict)
        if count is not None and count != found[verdict]:
            raise InputError(
                f"{folder}: audit.json counts {count} images as {verdict}, results.parquet holds "
                f"{found[verdict]}: the files are of different audits; {REMEDY}"
            )


def _check_curves(subjects: Iterable[Subject], sigmas: tuple[float, ...], path: Path) -> None:
    for subject in subjects:
        for curve in (subject.curve, subject.curve_stderr):
            if curve and len(curve) != len(sigmas):
                raise InputError(
                    f"{path}: the curve of {subject.id[:80]!r} has {len(curve)} points, "
                    f"curve_sigmas of audit.json has {len(sigmas)}; {REMEDY}"
                )


def _regions(fields: Fields) -> dict[str, float]:
    names = ("model_threshold", "data_threshold")
    limits = {name: fields.number(name) for name in names}
    return {name: limit for name, limit in limits.items() if math.isfinite(limit)}


def _rates(fields: Fields, value: str) -> dict[str, Rate]:
    return {kind: _rate(fields.fields(kind), value) for kind in fields.values}


def _rate(fields: Fields, value: str) -> Rate:
    numbers = {name: fields.number(name) for name in ("low", "high")}
    count, n = fields.count("count") or 0, fields.count("n") or 0
    return Rate(count=count, n=n, rate=fields.number(value), **numbers)


def citations(audit: Fields) -> tuple[Citation, ...]:
    """The works that an audit rests on."""
    given = audit.get("citations", list, [])
    if not all(isinstance(item, dict) for item in given):
        raise audit.fail("citations", given, "a list of objects")
    fields = [Fields(item, audit.file, f"citations[{i}].") for i, item in enumerate(given)]
    names = ("key", "text", "bibtex", "url")
    return tuple(Citation(*(item.text(name) for name in names)) for item in fields)


def _ground_truth(audit: Fields) -> GroundTruth | None:
    fields = audit.fields("ground_truth")
    if not fields.values:
        return None
    confusion = fields.fields("confusion")
    table = {
        true: {called: row.count(called) or 0 for called in row.values}
        for true, row in ((true, confusion.fields(true)) for true in confusion.values)
    }
    return GroundTruth(
        labels=fields.texts("labels"),
        confusion=table,
        precision=_rates(fields.fields("precision"), "value"),
        recall=_rates(fields.fields("recall"), "value"),
    )


def _settings(audit: Fields) -> dict[str, tuple[tuple[str, str], ...]]:
    groups = {
        "Arguments": "arguments",
        "Versions": "versions",
        "SHA-256 and other hashes": "hashes",
        "Seconds": "seconds",
    }
    settings = {title: _flat(audit.fields(key).values) for title, key in groups.items()}
    return {title: pairs for title, pairs in settings.items() if pairs}


def _flat(values: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, dict):
            pairs.extend(_flat(value, f"{prefix}{name}."))
        else:
            pairs.append((f"{prefix}{name}", _shown(value)))
    return tuple(pairs)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
