"""SVG files that are written outside a page: each carries its own style, and can be read."""

from __future__ import annotations

import re
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from memfold.report.bench_figures import bench_figure
from memfold.report.curve_figure import curve_figure
from memfold.report.figures import Line
from memfold.report.mitigation_figures import mitigation_figure
from memfold.report.word_figure import shaded_words

SIGMAS = np.geomspace(0.02, 5, 12).tolist()
HOSTILE = "<script>alert(1)</script>&\"' \x1b[31m"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def lines(n):
    fall = 60 / (1 + np.array(SIGMAS))
    return [Line(f"{i} {HOSTILE}", "none", (fall + i).tolist(), [1.0] * 12) for i in range(n)]


def curves(n=3):
    return curve_figure(SIGMAS, lines(n), sigma=0.2, title=f"LID at sigma = 0.2 {HOSTILE}")


def bench():
    cell = {"auroc": 0.9, "auroc_interval": [0.8, 0.95], "tpr": 0.5, "tpr_interval": [0.3, 0.7]}
    return bench_figure([{"detector": "x", "all.memorized": cell, "one.memorized": cell}], 4)


def mitigation():
    cell = {"copies": 0.1, "alike": 0.2, "alignment": 0.3, "frechet": 2.0}
    return mitigation_figure([{"method": "m", "kind": k} | cell for k in ("verbatim", "none")])


FIGURES = {
    "lid": curves,
    "lid, many": lambda: curves(20),
    "bench": bench,
    "mitigation": mitigation,
    "words": lambda: shaded_words(["a", "memorized", "word"], [0.1, 1.0, 0.4]),
}


def rules(style):
    """Classes that a style sheet sets, each with what it sets."""
    return {m[1]: m[2] for m in re.finditer(r"\.([\w-]+)\{([^}]*)\}", style)}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_left_to_a_page(name):
    """Each shape has a fill or a stroke of its own, by attribute or by the file's own style."""
    root = ElementTree.fromstring(FIGURES[name]())
    style = "".join(e.text or "" for e in root.iter() if e.tag.endswith("style"))
    known = rules(style)
    for element in root.iter():
        if not element.tag.endswith(("path", "circle", "rect")):
            continue
        said = ";".join(known.get(c, "") for c in element.get("class", "").split())
        said += "".join(f"{a}:" for a in element.attrib)
        assert "fill" in said or "stroke" in said, ElementTree.tostring(element)
        line = element.tag.endswith("path") and "Z" not in element.get("d", "").upper()
        if line and re.search("[LHVhv]", element.get("d", "")):
            assert "stroke" in said  # no blob: a line that is filled has no width
    assert "var(--" not in style + ElementTree.tostring(root, "unicode")


@pytest.mark.parametrize("n", [1, 3, 20])
def test_the_curves_have_a_title_axes_and_a_legend(n):
    root = ElementTree.fromstring(curves(n))
    texts = [e.text or "" for e in root.iter() if e.tag.endswith("text")]
    for wanted in ("LID at sigma = 0.2", "noise level σ", "degrees of freedom", "σ = 0.2, where"):
        assert any(wanted in text for text in texts)
    assert any("each of 20 images" in t for t in texts) == (n == 20)
    assert sum(t.startswith(tuple("012")) and "<script>" in t for t in texts) == (n < 20) * n
    assert "<script" not in curves(n)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_viewer_shows_curves_and_no_blob(tmp_path):
    """Drawn by a browser: mostly white, next to nothing black, each curve's colour is there."""
    (tmp_path / "curves.svg").write_text(curves(), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=800,420",
        f"--screenshot={tmp_path / 'shot.png'}", f"file://{tmp_path / 'curves.svg'}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).reshape(-1, 3).astype(int)
    assert (pixels.min(1) > 250).mean() > 0.8
    assert (pixels.max(1) < 40).mean() < 0.01
    for color in ((0x0A, 0x66, 0xA8), (0xBF, 0x4A, 0x14), (0x3C, 0x7F, 0x70)):
        assert (abs(pixels - color).max(1) < 30).sum() > 200
