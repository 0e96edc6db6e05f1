"""The table of families in the docs is what its command prints."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from benchmarks.families import CHECKS, FAMILIES, row
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
_PAGE = Path(__file__).parents[2] / "docs" / "text-to-image.md"
_FAST = ("sd1 (eps)", "qwen-image")


def table():
    """The rows of the page, by family."""
    text = _PAGE.read_text(encoding="utf-8")
    lines = text.split("<!-- families -->")[1].split("<!-- /families -->")[0].strip().splitlines()
    assert lines[0] == f"| family | {' | '.join(CHECKS)} |"
    return {line.split(" | ")[0].lstrip("| "): line for line in lines[2:]}


def test_the_table_holds_every_family():
    assert list(table()) == list(FAMILIES)


@pytest.mark.parametrize(
    "family", [f if f in _FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_a_row_is_what_the_command_prints(family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert row(family) == table()[family]
