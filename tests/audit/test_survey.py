"""`memfold lid`, `memfold data-lid`, `memfold report` and the help, as a user runs them."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from memfold import cli


def call(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Run the command line; give its exit code and what it printed."""
    monkeypatch.setattr("sys.argv", ["memfold", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0), capsys.readouterr().out


def test_lid_prints_numbers_and_writes_files(
    pipeline: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """JSON, CSV and a figure of the same run agree; hostile names stay text in all three."""
    table, figure = tmp_path / "lid.csv", tmp_path / "lid.svg"
    argv = ["lid", str(pipeline), str(data / "samples"), "--noises", "4", "--sigma", "0.3"]
    code, out = call(
        [*argv, "--json", "--out", str(table), "--figure", str(figure)], monkeypatch, capsys
    )
    assert code == 0
    printed = json.loads(out)
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == len(printed["rows"]["id"]) == 6
    assert [float(r["lid"]) for r in rows] == pytest.approx(printed["rows"]["lid"])
    assert all(s > 0 for s in printed["rows"]["stderr"])
    assert "sigma = 0.3" in printed["title"]
    ET.fromstring(figure.read_text())
    assert "<script" not in figure.read_text()
    again = json.loads(call([*argv, "--json"], monkeypatch, capsys)[1])
    assert again == printed
    grid = printed["sigmas"]
    assert grid == sorted(grid)
    assert printed["rows"]["sigmas"] == [grid] * 6
    low, own, high = (printed["rows"][k] for k in ("knee_low", "knee", "knee_high"))
    assert all(a <= b <= c for a, b, c in zip(low, own, high, strict=True))
    assert {*low, *own, *high} <= set(grid)
    for name in ("curve", "curve_stderr"):
        assert [len(c) for c in printed["rows"][name]] == [len(grid)] * 6
    assert [json.loads(r["sigmas"]) for r in rows] == [grid] * 6
    code, out = call([*argv, "--limit", "2"], monkeypatch, capsys)
    assert code == 0
    assert "stderr" in out
    assert all(f"{s:.4g}" in out for s in grid)


def test_data_lid_puts_the_duplicated_image_first(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """11 rows of one image are one row of the table, with LID 0."""
    out = tmp_path / "risk.parquet"
    argv = ["data-lid", str(data / "train.npz"), "--neighbors", "10", "--out", str(out)]
    code, printed = call([*argv, "--limit", "3"], monkeypatch, capsys)
    assert code == 0
    found = pq.read_table(out).to_pydict()
    assert (found["id"][0], found["copies"][0], found["lid"][0]) == ("0", 11, 0.0)
    assert len(found["id"]) == 40
    assert found["lid"] == sorted(found["lid"])
    assert "1 stand there more than once" in printed
    assert "37 more" in printed


@pytest.mark.parametrize("argv", [[], ["audit"], ["lid"], ["data-lid"], ["report"]])
def test_help_teaches(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command explains itself and its options."""
    monkeypatch.setenv("COLUMNS", "120")
    code, out = call([*argv, "--help"], monkeypatch, capsys)
    out = re.sub(r"\x1b\[[0-9;]*m", "", out)  # colours, where the terminal is told to have them
    assert code == 0
    assert "Usage" in out
    for name in {"audit": ["--holdout", "--fail-on"], "": ["audit", "data-lid"]}.get(
        argv[0] if argv else "", []
    ):
        assert name in out


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`memfold --version` prints it."""
    import memfold

    code, out = call(["--version"], monkeypatch, capsys)
    assert (code, out.strip()) == (0, f"memfold {memfold.__version__}")
