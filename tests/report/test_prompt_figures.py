"""The page of an explanation: what it shows, and that a prompt cannot write into it."""

import base64
import re
from html.parser import HTMLParser

import pytest

from memfold.report.prompt_figures import explanation_page, lid_figure

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SIGMAS = [0.1, 0.3, 1.0]
CURVES = {
    "with the prompt": {"sigmas": SIGMAS, "lid": [30.0, 12.0, 2.0]},
    "without a prompt": {"sigmas": SIGMAS, "lid": [40.0, 31.0, 18.0]},
}


def facts(words=("a", "dog"), **changes):
    n = len(words)
    return {
        "words": list(words), "weights": [float(i) for i in range(n)], "stderr": [0.5] * n,
        "left_out": None, "rank_correlation": None, "masked": None, "masked_correlation": None,
        "score": "cfg_norm", "wrt": "tokens", "where": "steps 1, 2 of 4", "seeds": [0, 1],
        "curves": CURVES, "warnings": [],
    } | changes  # fmt: skip


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.cells, self._cell = [], [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "td":
            self._cell = ""

    def handle_endtag(self, tag):
        if tag == "td":
            self.cells.append(self._cell)
            self._cell = None

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data


def test_every_word_has_its_row_and_its_shade():
    page = explanation_page(facts(("a", "red", "dog")), [PNG])
    assert Seen(page).cells == ["a", "0", "0.5", "red", "1", "0.5", "dog", "2", "0.5"]
    assert re.findall(r"--w: ([0-9.]+)", page) == ["0.000", "0.500", "1.000"]


def test_what_was_left_out_stands_in_its_own_column():
    given = {"left_out": [0.25, -3.0], "masked": [0.125, 7.0]}
    page = explanation_page(facts(**given, rank_correlation=0.51, masked_correlation=-0.42), [PNG])
    assert Seen(page).cells == ["a", "0", "0.5", "0.25", "0.125", "dog", "1", "0.5", "-3", "7"]
    assert "leaving words out: 0.51" in page
    assert "masking them in place: -0.42" in page


def test_a_correlation_that_is_not_defined_is_not_shown():
    page = explanation_page(facts(left_out=[1.0, 2.0], masked=[1.0, 2.0]), [PNG])
    assert "orrelation" not in page
    assert "masking" not in page


HOSTILE = [
    "<script>alert(1)</script>", '"onmouseover="x', "{{7*7}}", "&lt;", "'><img src=x onerror=y>",
    "</style>", "\x1b[31m", "\u202edog", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("word", HOSTILE)
def test_a_word_cannot_write_into_the_page(word):
    plain = Seen(explanation_page(facts(("word", "dog"), warnings=["word"]), [PNG]))
    page = explanation_page(facts((word, "dog"), warnings=[word]), [PNG])
    found = Seen(page)
    assert found.tags == plain.tags
    assert "script" not in found.tags
    names = [(tag, name) for tag, name, _ in found.attributes]
    assert names == [(tag, name) for tag, name, _ in plain.attributes]
    shown = re.sub("[\x1b\ud800]", "\ufffd", word)
    assert found.cells[0] == shown
    page.encode("utf-8")


def test_the_page_stands_alone():
    found = Seen(explanation_page(facts(), [PNG, PNG, PNG]))
    sources = [v for _, name, v in found.attributes if name in ("src", "href", "data", "action")]
    assert len(sources) == 3
    assert {base64.b64decode(s.removeprefix("data:image/png;base64,")) for s in sources} == {PNG}


def test_no_curve_and_no_spread_are_no_error():
    assert lid_figure({}) == ""
    page = explanation_page(facts(curves={}, stderr=[None, None]), [])
    assert Seen(page).cells == ["a", "0", "", "dog", "1", ""]


def test_both_curves_are_drawn_and_named():
    svg = lid_figure(CURVES)
    assert "with the prompt" in svg
    assert "without a prompt" in svg
    assert lid_figure({"with the prompt": CURVES["with the prompt"]}).count("without") == 0
