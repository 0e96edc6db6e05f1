"""Figures: well-formed, in proportion, and deaf to hostile names."""

import dataclasses
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from memfold.report import axes, figures, load
from memfold.report.model import VERDICTS, Reference, Subject

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title></svg><script>alert(1)</script>&\"'\x00\x1b\ud800 $\u202e"


@pytest.fixture(scope="module")
def report(audit_directory):
    return load(audit_directory)


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def titles(svg: str) -> list[str]:
    return [element.text for element in parse(svg).iter(f"{SVG}title")]


def marks(svg: str, verdict: str) -> int:
    return sum(e.get("class") == f"v-{verdict} mark" for e in parse(svg).iter())


def places(svg: str) -> np.ndarray:
    """All numbers that stand in x, y, cx, cy."""
    found = re.findall(r' c?([xy])="([-\d.]+)"', svg)
    return np.array([float(number) for _, number in found])


def test_every_image_stands_once_in_the_scatter(report):
    svg = figures.scatter(report.subjects, report.reference, report.regions)
    assert {v: marks(svg, v) for v in VERDICTS} == report.counts
    assert sum(e.get("class") == "reference" for e in parse(svg).iter()) == 400
    assert sum(title.startswith(report.subjects[0].id) for title in titles(svg)) == 1
    names = [e.text for e in parse(svg).iter(f"{SVG}text")]
    assert {"Data", "Overfitting", "Not memorized"} <= set(names)


def test_everything_lies_within_the_scatter(report):
    svg = figures.scatter(report.subjects, report.reference, report.regions)
    assert places(svg).min() >= 0
    assert places(svg).max() <= 640


def test_regions_without_the_audits_own(report):
    _, model = figures.region_limits(report.reference, {})
    assert model == pytest.approx(np.quantile(report.reference.lid_model, 0.05))
    assert figures.region_limits(report.reference, {"data_threshold": 3.0})[0] == 3.0
    assert figures.region_limits(Reference((), (), (), "holdout", ""), {}) is None


def test_bar_is_in_proportion(report):
    bars = parse(figures.counts_bar(report.counts)).iter(f"{SVG}rect")
    widths = [float(bar.get("width")) for bar in bars]
    assert widths == pytest.approx([75, 50, 865, 10])


def test_histogram_heights_are_counts(report):
    svg = figures.p_values(report.subjects)
    heights = [float(e.get("height")) for e in parse(svg).iter(f"{SVG}rect")]
    counts = [int(title.split(": ")[1]) for title in titles(svg)]
    assert sum(counts) == 400
    share = np.array(heights) / np.array(counts)
    assert share == pytest.approx(share[0], rel=0.1)


def test_lanes_hold_every_image(report):
    svg = figures.missing(report.subjects)
    assert {v: marks(svg, v) for v in VERDICTS} == report.counts


def test_band_is_the_quantiles_of_the_reference():
    curves = tuple((float(i), 2.0 * i) for i in range(101))
    band = figures.reference_band(Reference((), (), curves, "holdout", ""))
    assert band.low == pytest.approx((5, 10))
    assert band.median == pytest.approx((50, 100))
    assert band.high == pytest.approx((95, 190))
    assert figures.reference_band(Reference((), (), (), "holdout", "")) is None


def test_curve_breaks_where_it_is_unknown():
    line = figures.Line("x", "data", (4.0, math.nan, 3.0, 2.0), (0.1, math.nan, 0.1, 0.1))
    svg = figures.curves((0.1, 0.2, 0.4, 0.8), [line], None, sigma=0.2)
    (path,) = (e.get("d") for e in parse(svg).iter() if e.get("class") == "v-data line")
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_nothing_to_draw_is_no_error():
    nothing = Reference((), (), (), "holdout", "")
    for svg in (
        figures.scatter([], nothing, {}),
        figures.missing([]),
        figures.p_values([]),
        figures.counts_bar(dict.fromkeys(VERDICTS, 0)),
        figures.curves((0.1,), [], None, sigma=0.1),
    ):
        parse(svg)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_hostile_names_stay_text(report, verdict):
    subject = dataclasses.replace(report.subjects[0], id=HOSTILE, verdict=verdict)
    line = figures.Line(HOSTILE, verdict, subject.curve, subject.curve_stderr)
    for svg in (
        figures.scatter([subject], report.reference, {}),
        figures.missing([subject]),
        figures.curves(report.curve_sigmas, [line], None, sigma=0.2),
    ):
        assert not list(parse(svg).iter(f"{SVG}script"))
        assert any("<script>alert(1)</script>&\"'" in title for title in titles(svg))


def test_extreme_values_stay_on_the_page():
    subjects = [
        Subject("a", "none", v, lid_data=w) for v, w in ((-50.0, 0.0), (16384.0, 1e-3), (0.0, 9e5))
    ]
    svg = figures.scatter(subjects, Reference((), (), (), "holdout", ""), {})
    assert places(svg).min() >= 0
    assert places(svg).max() <= 640


@pytest.mark.parametrize("make", [axes.linear, axes.root, axes.log])
@pytest.mark.parametrize(
    "values",
    [[3.0], [0.03, 2.0], [1.0, 16384.0], [-20.0, 40.0], [0.0], [], [math.nan, 5.0], [1e-9, 1e9]],
)
def test_axes_are_monotone_and_their_ticks_within(make, values):
    axis = make(values, 10.0, 300.0)
    finite = [v for v in values if math.isfinite(v) and (v > 0 or make is not axes.log)]
    at = [axis(v) for v in sorted(finite)]
    assert at == sorted(at)
    assert all(9.99 <= place <= 300.01 for place in at)
    assert len(axis.ticks) >= 2 or make is axes.log
    assert all(9.99 <= axis(tick) <= 300.01 for tick in axis.ticks)


def test_root_axis_is_a_square_root():
    axis = axes.root([100.0], 0.0, math.sqrt(108))
    assert axis(49.0) - axis(0.0) == pytest.approx(7)
