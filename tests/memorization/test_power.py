"""The power of an audit: against whole audits with copies planted in them, and at its borders."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from memfold.memorization.mmh import judge
from memfold.memorization.power import COPY_LID, WANTED, power
from memfold.types import InputError
from tests.memorization.worlds import estimate, world

SURE = 1e-4  # a test fails by chance this often at most
SIDES = ("data", "reference_data")


def given(w, **changes):
    """The arguments of power: those of judge without the data side."""
    return {k: v for k, v in w.arguments(**changes).items() if k not in SIDES}


def fair(seed, m, n, low=2.0):
    """A world without memorized subjects whose simplest images have an LID as low as a copy's."""
    return world(seed, m=m, n=n, simplest=low)


def whole_audit(w, seed, k, own=False):
    """Share of k copies that `judge` calls in one audit: new LIDs at the subjects' complexity."""
    rng, m = np.random.default_rng(seed), len(w.model)
    place, lid = rng.permutation(m)[:k], rng.uniform(*COPY_LID, size=k)
    if own:  # the subjects are the first m rows of the reference
        model = w.reference_model.copy()
        model[place] = lid
        sides = {"model": estimate(model[:m]), "reference_model": estimate(model)}
        v = judge(**own_reference(w, m) | sides)
    else:
        model = w.complexity[:, 0] * (0.5 + 0.3 * rng.gamma(6, 1 / 6, m))  # the law of `world`
        model[place] = lid
        v = judge(**given(w, model=estimate(model)))
    return v.memorized[place].mean()


def own_reference(w, m):
    """The arguments of power where the subjects are the first m rows of the reference."""
    return {
        "model": estimate(w.reference_model[:m]),
        "reference_model": estimate(w.reference_model),
        "complexity": w.reference_complexity[:m],
        "reference_complexity": w.reference_complexity,
        "reference_index": np.arange(m),
    }


@pytest.mark.parametrize(
    ("m", "n", "k", "own"),
    [
        (8, 200, 1, False),
        (40, 150, 7, False),
        pytest.param(5, 120, 2, True, marks=pytest.mark.slow),
    ],
)
def test_the_simulation_agrees_with_whole_audits(m, n, k, own):
    """In each of three worlds 100 audits are judged whole; the mean difference is in 4 errors."""
    gap, error, shares = [], [], []
    for seed in range(3):
        w = fair(seed, m, n)
        audits = np.array([whole_audit(w, s, k, own) for s in range(100)])
        found = power(**(own_reference(w, m) if own else given(w)), copies=k)
        gap.append(audits.mean() - found.share)
        error.append(audits.var(ddof=1) / len(audits) + found.stderr**2)
        shares.append(audits.mean())
    assert 0.1 < np.mean(shares) < 0.995  # neither end: the comparison means something
    assert abs(np.sum(gap)) < 4 * np.sqrt(np.sum(error))


def test_the_standard_error_is_that_of_the_seeds():
    """Over seeds the share scatters as much as it says, within the chi-squared range."""
    w = fair(0, 20, 150)
    found = [power(**given(w), copies=4, seed=s) for s in range(20)]
    said = np.mean([f.stderr**2 for f in found])
    measured = np.var([f.share for f in found], ddof=1)
    assert chi2.ppf(SURE, 19) / 19 < measured / said < chi2.isf(SURE, 19) / 19


def test_benjamini_hochberg_bounds_it():
    """Below m / (alpha (n + 1)) copies none can be called; where all stand out that is enough."""
    r = power(**given(world(0, m=40, n=150)))
    assert (r.share, r.suffices) == (0.0, False)
    assert r.smallest == np.ceil(40 / (0.05 * 151)) == 6
    assert r.reference_needed == 40 / 0.05 - 1
    assert r.subjects_allowed == 7
    assert power(**given(world(0, m=7, n=150))).suffices
    assert not power(**given(world(0, m=8, n=150))).suffices
    assert power(**given(world(0, m=40, n=799))).suffices
    assert power(**given(world(0, m=40, n=150)), copies=6).suffices


def test_the_smallest_number_has_the_power_and_one_less_has_not():
    w = fair(3, 60, 200)
    r = power(**given(w))
    assert r.smallest is not None
    assert power(**given(w), copies=r.smallest).share >= WANTED
    assert power(**given(w), copies=r.smallest - 1).share < WANTED


@pytest.mark.parametrize(("m", "n"), [(1, 18), (1, 10), (10, 12)])
def test_a_small_reference_calls_nothing(m, n):
    """1 / (n + 1) > alpha: no number of copies is found."""
    r = power(**given(world(0, m=m, n=n, simplest=30)))
    assert (r.smallest, r.share, r.suffices) == (None, 0.0, False)


def test_one_subject_against_nineteen():
    """1 / 20 is alpha itself."""
    assert power(**given(world(0, m=1, n=19, simplest=30))).smallest == 1


def test_no_subject_and_no_reference():
    none = power(**given(world(0, m=0, n=50)))
    assert (none.smallest, none.share, none.subjects) == (None, 0.0, 0)
    for n in (0, 1):
        assert power(**given(world(0, m=5, n=n))).smallest is None
    with pytest.raises(InputError, match="6 copies among 5 subjects"):
        power(**given(world(0, m=5, n=100)), copies=6)


def test_a_subject_that_could_not_be_measured_hides_its_copy():
    """Half of 4 subjects are NaN: half of the copies are lost; all of them: nothing is found."""
    w = world(0, m=4, n=400)
    lid = w.model.copy()
    lid[:2] = np.nan
    half = power(**given(w, model=estimate(lid)))
    assert half.subjects == 2
    assert abs(half.share - 0.5) < 4 * half.stderr
    nothing = power(**given(w, model=estimate(np.full(4, np.nan))))
    assert (nothing.smallest, nothing.share) == (None, 0.0)


def test_a_subject_where_the_model_does_not_fit_hides_its_copy():
    w = world(0, m=10, n=400)
    misfit = np.r_[np.full(10, 9.0), np.random.default_rng(0).uniform(size=400)]
    r = power(**given(w, misfit=misfit[:10], reference_misfit=misfit[10:]))
    assert (r.share, r.smallest) == (0.0, None)


def test_all_of_the_reference_judged_against_itself_finds_nothing():
    r = power(**own_reference(fair(0, 5, 100), 100))
    assert (r.own, r.smallest, r.subjects_allowed) == (True, None, 5)


def test_a_few_subjects_of_the_reference_change_little():
    """One of 40 subjects stands in the reference too: the share moves within its errors."""
    w = fair(0, 40, 150)
    model, z, index = w.model.copy(), w.complexity.copy(), np.full(40, -1)
    model[0], z[0], index[0] = w.reference_model[0], w.reference_complexity[0], 0
    apart = power(**given(w, model=estimate(model), complexity=z), copies=9)
    mixed = power(**given(w, model=estimate(model), complexity=z, reference_index=index), copies=9)
    assert not mixed.own
    assert abs(apart.share - mixed.share) < 4 * np.hypot(apart.stderr, mixed.stderr) + 1 / 40
