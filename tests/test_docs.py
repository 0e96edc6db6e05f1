"""What the pages say stands in the repository: names, links, and figures that are quoted."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import memfold

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PARTS = set(DOCS.glob("gallery/*/*.md"))  # tables that the pages of the gallery include
TEXTS = [ROOT / "README.md", *(page for page in PAGES if page not in PARTS)]
# What documents the commands, which are no Python names.
COMMANDS = "api/cli.md"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def nav() -> set[str]:
    """Pages in the navigation, relative to docs/."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    return set(re.findall(r"^ +- (?:.*: )?([\w/.-]+\.md)$", text, re.MULTILINE))


def documented() -> set[str]:
    """Modules that a page of the reference shows, with all below them."""
    found: set[str] = set()
    for page in (DOCS / "api").glob("*.md"):
        found |= set(re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE))
    return found


def shown(module: str) -> bool:
    """Whether a module is on a page of the reference: below a shown one, by public names alone."""
    parts = module.split(".")
    above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return bool(above & documented()) and not any(part.startswith("_") for part in parts)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in heads}


@pytest.mark.parametrize("name", sorted(memfold.__all__))
def test_a_public_name_stands_in_the_reference(name):
    """It has a docstring, and its module is on a page."""
    thing = getattr(memfold, name)
    assert inspect.getdoc(thing)
    assert shown(thing.__module__), f"{thing.__module__} is on no page under docs/api"


def test_every_room_has_a_page_and_every_shown_module_exists():
    """A new folder of the library, or one that went, is noticed."""
    rooms = {p.stem for p in (ROOT / "src" / "memfold").iterdir() if not p.name.startswith("_")}
    rooms -= {"py", "cli"}
    missing = {room for room in rooms if not shown(f"memfold.{room}")}
    assert not missing
    for module in documented():
        importlib.import_module(module)
    assert (DOCS / COMMANDS).exists()


def test_the_navigation_lists_every_page():
    """And nothing else: parts that a page includes are no pages."""
    pages = {str(page.relative_to(DOCS)) for page in PAGES if page not in PARTS}
    assert nav() == pages


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_relative_links_lead_somewhere(page):
    """To a file, and where they name a heading, to one that is there."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(#[^)\s]+)?\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        aim = (page.parent / target).resolve() if target else page
        assert aim.exists(), f"{page.name}: {target}"
        if anchor and aim.suffix == ".md" and aim.parent != DOCS / "api":
            assert anchor[1:] in anchors(aim), f"{page.name}: {target}{anchor}"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=name_of)
def test_no_page_names_a_place_of_this_machine(page):
    """Absolute paths are nobody else's."""
    text = page.read_text("utf-8")
    assert str(ROOT) not in text
    assert not re.findall(r"(?<![\w.:/])/(?:home|root|tmp|work|Users)/\S+", text)


def test_figures_that_the_page_on_limits_quotes_stand_on_the_page_it_names():
    """A figure that was measured anew somewhere else is changed here too."""
    text = (DOCS / "limits.md").read_text("utf-8")
    quoted = 0
    for item in re.split(r"\n(?=- |\n|#)", text):
        pages = {DOCS / target for target in re.findall(r"\]\(([\w/-]+\.md)", item)}
        sources = "".join(page.read_text("utf-8") for page in pages)
        known = {float(n) for n in re.findall(r"-?(?<![\w])\d*\.?\d+", sources)}
        words = re.sub(r"\]\([^)]*\)|Stable Diffusion [\d.]+", "", item)
        for number in re.findall(r"-?(?<![\w.])\d*\.\d+", words):
            assert float(number) in known, (
                f"{number} stands on none of {sorted(p.name for p in pages)}"
            )
            quoted += 1
    assert quoted > 10


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_commands_of_the_pages_have_the_options_that_they_are_given(page):
    """Every `memfold ...` in a fence names a command and options that it has."""
    from typer.main import get_command

    from memfold.cli import app

    commands = get_command(app).commands
    fences = re.findall(r"^```(?:bash|console).*?\n(.*?)^```", page.read_text("utf-8"),
                        re.MULTILINE | re.DOTALL)  # fmt: skip
    for line in "\n".join(fences).replace("\\\n", " ").splitlines():
        words = re.match(r"^(?:\$ )?(?:- run: )?memfold ([\w-]+)(.*)$", line.split(" #")[0])
        if words is None:
            continue
        assert words[1] in commands, line
        known = {o for p in commands[words[1]].params for o in (*p.opts, *p.secondary_opts)}
        for option in re.findall(r"(?<=\s)--[\w-]+", words[2]):
            assert option in known or option == "--help", f"{line}: {option}"
