"""Tables as CSV: no cell that a spreadsheet runs, and every number as it was."""

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfold.files import csv_text


def read(text):
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize(
    "cell",
    ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1",
     "--1"],
)  # fmt: skip
def test_what_a_spreadsheet_would_run_becomes_text(cell):
    rows = read(csv_text([["id", cell], [cell, "end"]]))
    assert rows == [["id", "'" + cell], ["'" + cell, "end"]]


@pytest.mark.parametrize("cell", ["a=1", "image -1.png", "", "'=1", "3", "-1", "-1.5e-3", "+2"])
def test_harmless_texts_stay(cell):
    assert read(csv_text([[cell, "x"]])) == [[cell, "x"]]


@given(st.lists(st.floats(allow_nan=False) | st.integers(), min_size=1))
def test_numbers_stay_numbers(values):
    (row,) = read(csv_text([values]))
    assert [float(cell) for cell in row] == [float(value) for value in values]


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=2))
def test_no_cell_begins_as_a_formula_and_no_text_is_lost(values):
    (row,) = read(csv_text([values]))
    for cell, value in zip(row, values, strict=True):
        assert cell in (value, "'" + value)
        number = cell and cell[0] in "+-" and not math.isnan(_number(cell, default=0.0))
        assert cell.lstrip()[:1] not in ("=", "@", *"+-") or number


def _number(text, default):
    try:
        return float(text)
    except ValueError:
        return math.nan
