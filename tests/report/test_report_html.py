"""The page: its facts, its closedness, its deafness to hostile text."""

import ast
import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

import memfold.report
from memfold.report import html as html_module
from memfold.report import load, render, words, write
from memfold.report.model import Reference, Subject

VOID = {"meta", "img", "input", "br", "link", "hr"}
HOSTILE = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>\"'&{{7*7}}"


class Page(HTMLParser):
    """The elements and texts of a page; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"attribute twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        shown = (text for tag, text in self.texts if tag not in ("script", "style"))
        return re.sub(r"\s+", " ", " ".join(shown))

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rows_of(html: str) -> dict:
    block = re.search(r'<script type="application/json" id="rows">(.*?)</script>', html)[1]
    assert "<" not in block
    return json.loads(block)


@pytest.fixture(scope="module")
def html(audit_directory) -> str:
    return render(load(audit_directory))


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def hostile_edit(audit, rows):
    """Put the payload into every text and every key that is free."""

    def poison(value):
        if isinstance(value, str):
            return value + HOSTILE
        if isinstance(value, list):
            return [poison(item) for item in value]
        if isinstance(value, dict):
            return {poison(key): poison(item) for key, item in value.items()}
        return value

    for key, value in audit.items():
        if key in ("arguments", "versions", "hashes", "ground_truth"):
            audit[key] = (
                {k: poison(v) for k, v in value.items()} if key == "ground_truth" else poison(value)
            )
        elif key == "citations":
            audit[key] = [{k: poison(v) for k, v in item.items()} for item in value]
            audit[key].append({"text": "x", "url": "javascript:alert(1)"})
        elif key in ("reference", "subjects", "exit"):
            audit[key] = {k: poison(v) for k, v in value.items()}
        elif isinstance(value, str | list):
            audit[key] = poison(value)
    for row in rows:
        for key in ("id", "reason", "nearest_id", "truth", "neighbors"):
            row[key] = poison(row[key])


@pytest.fixture(scope="module")
def hostile(make_audit, tmp_path_factory) -> str:
    directory = make_audit(
        tmp_path_factory.mktemp("hostile"), n=12, overfitting=3, data=2, edit=hostile_edit
    )
    return render(load(directory))


def test_headline_and_intervals(page):
    assert (
        "50 of 400 training images are memorized: 30 by overfitting, 20 by the data." in page.text
    )
    assert "That is 12.5 % of them; the 95 % interval is 9.4 to 16.1 %." in page.text
    assert "95 %: 5.1 to 10.5 %" in page.text


def test_golden_facts(page):
    for fact in (
        "Audit of a small diffusion model",
        "24 November 2025, 04:13 UTC",
        "no q-value can fall below 0.0021",
        "Failed. The audit was told to fail on: overfitting.",
        "346 of 346; 98.9 to 100.0 %",
        "denoised worse than 99 % of the held-out 4 images",
        "Each image was noised eight times",
        "FLIPD at noised points, 8 noises, 4 probes",
        "@inproceedings{ross2025geometric,",
        "3f9a3f9a",
        "This file is complete in itself",
    ):
        assert fact in re.sub(r" ([.,;:])", r"\1", page.text).replace("Failed .", "Failed."), fact


def test_every_flagged_image_has_a_card(page):
    cards = page.find("article")
    verdicts = ["undetermined"] * 4 + ["overfitting"] * 30 + ["data"] * 20
    assert [card["data-verdict"] for card in cards] == verdicts
    assert sum("later" in card["class"] for card in cards) == 50 - html_module.PAGE
    assert len(page.find("img")) == len(verdicts) * 4


def test_all_images_stand_in_the_rows(html, audit_directory):
    data = rows_of(html)
    at = {key: i for i, key in enumerate(data["keys"])}
    subjects = {s.id: s for s in load(audit_directory).subjects}
    assert len(data["rows"]) == 400
    for row in data["rows"]:
        subject = subjects[row[at["id"]]]
        assert row[at["verdict"]] == subject.verdict
        assert row[at["model"]] == pytest.approx(subject.lid_model, rel=1e-5)
        assert bool(row[at["anchor"]]) == (subject.verdict != "none")


def test_anchors_of_the_rows_exist_once(html, page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = {row[0] for row in rows_of(html)["rows"] if row[0]}
    links = {a["href"][1:] for a in page.find("a") if a["href"].startswith("#")}
    assert anchors | links <= set(ids)


def test_figures_are_well_formed(html):
    svgs = re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)
    assert len(svgs) > 50
    for svg in svgs:
        ElementTree.fromstring(svg)


def test_same_data_same_bytes(make_audit, tmp_path):
    first, second = (
        make_audit(tmp_path / name, n=20, overfitting=3, data=2) for name in ("first", "second")
    )
    assert write(first).read_bytes() == write(second).read_bytes()


def assert_closed(page: Page) -> None:
    """Nothing is loaded: no source but data, no link element, no url() and no import."""
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "data", "action", "poster", "background", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:image/png;base64,") or (
                name not in attributes
            )
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        if "href" in attributes:
            assert tag == "a"
            assert attributes["href"].startswith(("#", "https://", "http://"))
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "base", "form"}
    style = " ".join(text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    assert "@font-face" not in style


def test_page_is_closed(page):
    assert_closed(page)
    links = [a["href"] for a in page.find("a") if a["href"].startswith("http")]
    assert links == ["https://arxiv.org/abs/2411.00113"]


def test_policy_allows_our_script_alone(html, page):
    (policy,) = (m["content"] for m in page.find("meta") if "http-equiv" in m)
    script = re.search(r"<script>(.*?)</script>", html, flags=re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'; img-src data:" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert html.index("Content-Security-Policy") < html.index("<style>")


def test_script_writes_text_only():
    script = (Path(html_module.__file__).parent / "templates" / "report.js").read_text("utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "fetch("):
        assert word not in script


def test_hostile_text_stays_text(hostile, html, page):
    bad = Page(hostile)
    assert_closed(bad)
    assert len(bad.find("script")) == 2
    assert len(bad.find("img")) == (5 + 1) * 4  # memorized, and one that is undetermined
    assert {tag for tag, _ in bad.tags} <= {tag for tag, _ in page.tags}
    assert bad.text.count("document.title='hacked'") > 60
    assert "{{7*7}}" in hostile
    assert "49</" not in hostile
    assert "<script>document" not in hostile
    assert all(HOSTILE in row[1] for row in rows_of(hostile)["rows"])


def test_links_to_scripts_are_not_links(hostile):
    assert "javascript:alert(1)" in Page(hostile).text
    assert not any("javascript" in a["href"] for a in Page(hostile).find("a"))


def test_control_characters_do_not_reach_the_page(make_audit, tmp_path):
    def edit(audit, rows):
        audit["title"] = "a\x00b\ud800c\x1bd"
        rows[0]["id"] = "x\x00y\x08"

    directory = make_audit(tmp_path, n=4, overfitting=4, data=0, edit=edit)
    text = write(directory).read_text(encoding="utf-8")
    assert "a\ufffdb\ufffdc\ufffdd" in text
    assert "x\ufffdy\ufffd" in text
    assert "\x00" not in text


def test_no_path_is_built_from_a_name(make_audit, tmp_path):
    def edit(audit, rows):
        rows[0]["id"] = rows[0]["nearest_id"] = "../../outside/\\..\\x.png"

    directory = make_audit(tmp_path / "deep" / "audit", n=3, overfitting=3, data=0, edit=edit)
    before = sorted(tmp_path.rglob("*"))
    write(directory)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, directory / "report.html"])


def test_failed_write_leaves_the_old_report(make_audit, tmp_path, monkeypatch):
    directory = make_audit(tmp_path, n=3, overfitting=1, data=0)
    (directory / "report.html").write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(directory)
    assert (directory / "report.html").read_text() == "old"
    assert not list(directory.glob("*.tmp"))


def test_write_replaces(make_audit, tmp_path):
    directory = make_audit(tmp_path, n=3, overfitting=1, data=0)
    (directory / "report.html").write_text("old")
    assert write(directory).read_bytes() == render(load(directory)).encode()


def test_bare_audit_can_be_drawn(make_audit, tmp_path):
    def edit(audit, rows):
        for row in rows:
            for name in row.keys() - {"id", "verdict", "lid_model"}:
                row[name] = None
        audit.clear()
        audit["sigma"] = 1.0

    page = Page(render(load(make_audit(tmp_path, n=5, overfitting=2, data=0, edit=edit))))
    assert "2 of 5 images are memorized: all by overfitting." in page.text
    assert len(page.find("article")) == 2


def test_page_is_small(html):
    assert len(html) < 700_000


def test_templates_lie_in_the_package():
    templates = Path(memfold.report.__file__).parent / "templates"
    names = {"report.html", "prompts.html", "explanation.html", "report.css", "report.js"}
    assert {path.name for path in templates.iterdir()} == names


def test_room_imports_only_types():
    allowed = ("memfold.types", "memfold.files", "memfold.report")
    for path in Path(memfold.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(n.startswith(allowed) for n in names if n.startswith("memfold")), path


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (["none"] * 3, "No memorization was found in 3 images."),
        (["undetermined"] * 3, "None of the 3 images could be judged."),
        (["data", "none"], "1 of 2 images is memorized: by the data."),
        (["data", "data"], "2 of 2 images are memorized: all by the data."),
        (["data", "overfitting", "none"],
         "2 of 3 images are memorized: 1 by overfitting, 1 by the data."),
    ],
)  # fmt: skip
def test_headlines(make_audit, tmp_path, verdicts, sentence):
    def edit(audit, rows):
        for row, verdict in zip(rows, verdicts, strict=True):
            row["verdict"] = verdict
        audit["counts"] = {}
        audit["subjects"]["source"] = "images"

    directory = make_audit(tmp_path, n=len(verdicts), overfitting=0, data=0, edit=edit)
    assert words.headline(load(directory)) == sentence


def test_nothing_found_without_the_power_to_find_is_inconclusive(make_audit, tmp_path):
    """The headline says so with its reason, and what to do; never that there is none."""

    def weak(audit, rows):
        audit["doubt"] = {"reason": "a single copy could not have been called", "remedy": "give 9"}
        audit["exit"] |= {"outcome": "inconclusive"}

    page = render(load(make_audit(tmp_path / "weak", n=6, overfitting=0, data=0, edit=weak)))
    text = re.sub("<[^>]*>", " ", page)
    assert "Inconclusive: a single copy could not have been called." in text
    assert "What to do: give 9." in text
    assert "No memorization was found" not in page
    assert "Passed" not in text

    def older(audit, rows):
        del audit["power"], audit["doubt"]

    old = load(make_audit(tmp_path / "old", n=6, overfitting=0, data=0, edit=older))
    assert "does not say what it could have found" in words.headline(old)


def test_undetermined_images_come_first_with_pictures(page, audit_directory):
    """Each has a card with its picture and its reason, before the first memorized one."""
    raw = render(load(audit_directory))
    assert raw.index('id="undetermined"') < raw.index('id="memorized"')
    section = raw[raw.index('<section id="undetermined"') : raw.index('<section id="memorized"')]
    assert section.count("<article") == 4
    assert section.count("Reservation: denoised worse than 99 % of the held-out") == 4
    assert section.count("data:image/png") >= 4


def test_evidence_in_words():
    held_out = Reference((), (), (), "holdout", "")
    subject = Subject(
        "x", "data", 5.23, 0.6, expected_lid=45.1, missing_dof=39.9, q_value=0.0021,
        lid_data=4.8, lid_data_stderr=0.5, p_data=0.00004, near_duplicates=75,
    )  # fmt: skip
    assert words.evidence(subject, held_out).replace("\u00a0", " ") == (
        "The model has 5.2 ± 0.6 degrees of freedom here; held-out images of this complexity have "
        "45.1: 40 are missing (q = 0.002). The data around it has 4.8 ± 0.5 (p < 0.0001), as few "
        "as the model has, so the data itself pins the image: data. 75 other training rows nearly "
        "repeat it."
    )
    assert words.evidence(Subject("x", "overfitting", 3.0), held_out) == (
        "The model has 3.0 degrees of freedom here."
    )


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        ("https://arxiv.org/abs/2411.00113", True),
        ("http://a.b/c?d=e#f", True),
        ("HTTPS://a.b", True),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)//http://a.b", False),
        (" javascript:alert(1)", False),
        ("java\nscript:alert(1)", False),
        ("data:text/html,<script>", False),
        ("vbscript:x", False),
        ("file:///etc/passwd", False),
        ("//a.b", False),
        ("https://a.b/\"onclick=alert(1)", False),
        ("https://a.b\njavascript:alert(1)", False),
        ("", False),
        (None, False),
    ],
)  # fmt: skip
def test_only_addresses_of_the_web_become_links(url, linked):
    assert html_module.web_link(url) is linked


def test_every_template_asks_before_it_links():
    """Each href and src of ours is an anchor, a picture of ours, or an address that was checked."""
    folder = Path(memfold.report.__file__).parent / "templates"
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        for name, value in re.findall(r'\b(href|src|action|formaction)="([^"]*)"', text):
            if name == "href" and value == "{{ item.url }}":
                asked = text[: text.index(f'href="{value}"')].rpartition("{%")[2]
                assert "is web_link" in asked, path
            else:
                assert value.startswith(("#", "data:image/", "{{ ")), (path, value)
                assert value.startswith("#") or "uri" in value, (path, value)
