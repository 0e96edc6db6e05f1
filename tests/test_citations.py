"""The bibliography: complete, well formed, and forgiving about names."""

import importlib
import inspect
import pkgutil
import re

import pytest

import memfold.lid
from memfold.citations import CITATIONS, SOURCES, bibliography, cite
from memfold.lid._neighbors_base import NeighborsLID
from memfold.lid.noised import mean_over_noises
from memfold.memorization.detectors import DETECTORS
from memfold.mitigation import METHODS
from memfold.types import InputError


def balanced(text):
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return False
    return depth == 0


@pytest.mark.parametrize("key", CITATIONS)
def test_an_entry_is_well_formed(key):
    (entry,) = cite(key)
    assert entry.key == key
    assert re.match(rf"@(article|book|inproceedings|misc)\{{{key},\n", entry.bibtex)
    assert balanced(entry.bibtex)
    assert re.search(r"\n  year = \{(19|20)\d\d\},\n", entry.bibtex)
    year = re.search(r"year = \{(\d+)\}", entry.bibtex)[1]
    assert year in key
    assert entry.text.endswith(f"{year}.")
    assert entry.url.startswith(("https://", "http://"))
    assert f"url = {{{entry.url}}}" in entry.bibtex
    arxiv = re.search(r"eprint = \{(\d{4}\.\d{5})\}", entry.bibtex)
    if arxiv and "arxiv.org" in entry.url:
        assert entry.url == f"https://arxiv.org/abs/{arxiv[1]}"


@pytest.mark.parametrize("key", CITATIONS)
def test_the_line_of_text_has_no_tex_left(key):
    assert not re.search(r"[{}\\`]|--", CITATIONS[key].text)


def test_order_is_kept_and_repeats_are_dropped():
    keys = ("ho2020ddpm", "kamkari2024flipd", "ho2020ddpm")
    assert [c.key for c in cite(*keys)] == ["ho2020ddpm", "kamkari2024flipd"]
    assert cite() == ()


def test_names_are_written_in_reading_order():
    text = cite("stanczuk2024normalbundle")[0].text
    assert text.startswith(
        "Jan Pawel Stanczuk, Georgios Batzolis, Teo Deveney and Carola-Bibiane Schönlieb. "
    )


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(InputError, match=r"unknown citation 'kamkari2024'.*kamkari2024flipd"):
        cite("ho2020ddpm", "kamkari2024")


def test_an_utterly_unknown_key_lists_all():
    with pytest.raises(InputError, match=r"benjamini1995fdr.*yeats2025dsm"):
        cite("zzzz")


def test_the_bibliography_has_each_entry_once():
    text = bibliography()
    assert [text.count(f"{{{key},") for key in CITATIONS] == [1] * len(CITATIONS)
    assert bibliography("ho2020ddpm") == cite("ho2020ddpm")[0].bibtex + "\n"


def public(package, keep):
    """Yield what the modules of a package define under a public name."""
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, thing in vars(module).items():
            own = getattr(thing, "__module__", None) == module.__name__
            if own and not name.startswith("_") and keep(thing):
                yield name


def is_estimator(thing):
    if inspect.isclass(thing):
        return issubclass(thing, NeighborsLID) and thing is not NeighborsLID
    returns = inspect.signature(thing).return_annotation if inspect.isfunction(thing) else ""
    return returns == "Estimate" and thing is not mean_over_noises


def test_every_estimator_has_a_source():
    names = set(public(memfold.lid, is_estimator))
    assert {"flipd", "dsm_lid", "jacobian_rank", "decoder_slope", "lidl", "ESS", "MLE"} <= names
    assert names - set(SOURCES) == set()


def test_every_mitigation_and_every_detector_has_a_source():
    assert set(METHODS) - set(SOURCES) == set()
    assert {d.source for d in DETECTORS.values()} - set(CITATIONS) == set()
    assert len(DETECTORS) > 9


def test_sources_are_in_the_bibliography_and_name_what_exists():
    assert {key for keys in SOURCES.values() for key in keys} - set(CITATIONS) == set()
    made = set(public(memfold.lid, callable)) | set(METHODS)
    assert set(SOURCES) - made == set()
