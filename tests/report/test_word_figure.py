"""Shaded words: any characters, the order of the weights, a document that stands alone."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from memfold.report.word_figure import shaded_words

SVG = "{http://www.w3.org/2000/svg}"


def drawn(words, weights):
    return ElementTree.fromstring(shaded_words(words, weights))


def texts(root):
    return [t.text for t in root.iter(f"{SVG}text")]


def grounds(root):
    return [float(r.get("fill-opacity")) for r in root.iter(f"{SVG}rect") if r.get("fill-opacity")]


@pytest.mark.parametrize(
    "word", ["<script>alert(1)</script>", "\"&'", "]]>", "é😀", "\u202edog", "</text>"]
)
def test_hostile_words_are_text_and_nothing_else(word):
    root = drawn([word, "dog"], [1.0, 2.0])
    assert texts(root) == [word, "dog"]
    assert {e.tag.removeprefix(SVG) for e in root.iter()} == {"svg", "g", "title", "rect", "text"}


def test_control_characters_are_replaced():
    assert texts(drawn(["a\x1b[31m\x00\ud800"], [1.0])) == ["a\ufffd[31m\ufffd\ufffd"]


def test_the_ground_is_the_share_of_the_largest_weight():
    assert grounds(drawn(["a", "b", "c"], [1.0, 4.0, 0.0])) == [0.25, 1.0, 0.0]


@pytest.mark.parametrize("weights", [[0.0, 0.0], [float("nan"), 0.0]])
def test_no_weight_is_no_shade(weights):
    assert grounds(drawn(["a", "b"], weights)) == [0.0, 0.0]


def test_words_stay_inside_and_do_not_overlap():
    root = drawn([f"word{i}" * (1 + i % 3) for i in range(59)] + ["\U0001f600" * 90], [1.0] * 60)
    _, _, width, height = map(float, root.get("viewBox").split())
    boxes = [r for r in root.iter(f"{SVG}rect") if r.get("fill-opacity")]
    places = [tuple(float(r.get(k)) for k in ("x", "y", "width", "height")) for r in boxes]
    assert all(x >= 0 and x + w <= width and y + h <= height for x, y, w, h in places)
    for (x, y, w, _), (x2, y2, _, _) in pairwise(places):
        assert y2 > y or x2 >= x + w


def test_a_very_long_prompt_is_cut_and_says_so():
    root = drawn(["x" * 1000] + ["dog"] * 999, [1.0] * 1000)
    shown = texts(root)
    assert len(shown) == 201
    assert shown[0].endswith("…")
    assert shown[-1] == "…"


def test_each_word_needs_a_weight():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        shaded_words(["a", "b"], [1.0])
