"""Reading an audit directory: what it finds, what it does without, what it refuses."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memfold.report import load
from memfold.report.model import picture_size
from memfold.types import InputError

FILES = ("audit.json", "results.parquet", "reference.parquet", "pictures.parquet")


def small(make_audit, directory: Path, **options) -> Path:
    return make_audit(directory, n=8, overfitting=2, data=1, **options)


def test_reads_what_was_written(audit_directory):
    report = load(audit_directory)
    assert report.counts == {"overfitting": 30, "data": 20, "none": 346, "undetermined": 4}
    assert report.sigma == 0.18
    assert report.failed
    assert report.fail_on == ("overfitting",)
    assert report.rates["memorized"].count == 50
    assert report.ground_truth.confusion["none"]["undetermined"] == 4
    assert len(report.reference.curves) == 400
    flagged = next(s for s in report.subjects if s.verdict == "data")
    assert picture_size(report.pictures[f"subject:{flagged.id}"]) == (16, 16)
    assert len(flagged.curve) == len(report.curve_sigmas)
    assert flagged.near_duplicates == 75


def test_absent_settings_are_left_out(audit_directory):
    settings = load(audit_directory).settings
    assert "holdout" not in dict(settings["SHA-256 and other hashes"])
    assert dict(settings["Arguments"])["noises"] == "8"


def test_only_id_verdict_and_lid_are_needed(make_audit, tmp_path):
    directory = small(make_audit, tmp_path)
    for name, columns in (
        ("results", ["id", "verdict", "lid_model"]),
        ("reference", ["lid_model"]),
    ):
        path = directory / f"{name}.parquet"
        pq.write_table(pq.read_table(path).select(columns), path)
    (directory / "audit.json").write_text('{"sigma": 0.2}', encoding="utf-8")
    report = load(directory)
    assert len(report.subjects) == 8
    assert math.isnan(report.subjects[0].q_value)
    assert report.subjects[0].neighbors == ()
    assert report.ground_truth is None


def test_nulls_are_absent(make_audit, tmp_path):
    def edit(audit, rows):
        for row in rows:
            for name in row.keys() - {"id", "verdict", "lid_model"}:
                row[name] = None
        audit["ground_truth"] = None

    report = load(small(make_audit, tmp_path, edit=edit))
    assert math.isnan(report.subjects[0].lid_data)
    assert report.subjects[0].curve == ()


@pytest.mark.parametrize("name", FILES)
def test_missing_file(make_audit, tmp_path, name):
    directory = small(make_audit, tmp_path)
    (directory / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing; .*run the audit again"):
        load(directory)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense", b"[1, 2]", b"\xff\xfe{", b"[" * 10**5])
def test_broken_file(make_audit, tmp_path, name, content):
    directory = small(make_audit, tmp_path)
    (directory / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} .*run the audit again"):
        load(directory)


def test_no_directory(tmp_path):
    with pytest.raises(InputError, match="nowhere is not a directory"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sigma", None, "sigma is 'None', a finite number is needed"),
        ("sigma", "small", "sigma is 'small'"),
        ("title", 3, "title is '3', str is needed"),
        ("rates", {"data": {"rate": "x"}}, r"rates\.data\.rate is 'x'"),
        ("curve_sigmas", ["a"], "curve_sigmas .* a list of numbers is needed"),
        ("curve_sigmas", [0.1, 0.2], "has 14 points, curve_sigmas of audit.json has 2"),
        ("citations", ["x"], "a list of objects is needed"),
        ("counts", {"data": 7}, "counts 7 images as data, results.parquet holds 1"),
    ],
)
def test_refuses_bad_values(make_audit, tmp_path, key, value, message):
    def edit(audit, rows):
        audit[key] = value

    with pytest.raises(InputError, match=message):
        load(small(make_audit, tmp_path, edit=edit))


def test_refuses_unknown_verdict(make_audit, tmp_path):
    def edit(audit, rows):
        rows[3]["verdict"] = "guilty"

    with pytest.raises(InputError, match=r"results\.parquet: row 3, verdict is 'guilty'"):
        load(small(make_audit, tmp_path, edit=edit))


def test_refuses_missing_column(make_audit, tmp_path):
    directory = small(make_audit, tmp_path)
    table = pq.read_table(directory / "results.parquet").drop_columns(["verdict"])
    pq.write_table(table, directory / "results.parquet")
    with pytest.raises(InputError, match=r"results\.parquet has no column verdict"):
        load(directory)


def test_refuses_what_is_no_png(make_audit, tmp_path):
    directory = small(make_audit, tmp_path)
    table = pa.table({"id": ["subject:x"], "png": [b"<svg onload=alert(1)>"]})
    pq.write_table(table, directory / "pictures.parquet")
    with pytest.raises(InputError, match="'subject:x', a PNG file is needed"):
        load(directory)


def test_numbers_as_text_are_refused(make_audit, tmp_path):
    directory = small(make_audit, tmp_path)
    path = directory / "results.parquet"
    rows = [{**row, "p_value": "low"} for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(InputError, match="p_value is 'low', a number is needed"):
        load(directory)


def test_audit_json_is_plain(audit_directory):
    json.loads((audit_directory / "audit.json").read_text(encoding="utf-8"))
