"""Where a verdict ends in doubt, and what it says then."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from memfold.memorization.mmh import judge
from memfold.types import Estimate, InputError
from tests.memorization.worlds import estimate, world


def test_reference_too_small_says_how_many():
    """p >= 1 / 51 cannot pass among 100 subjects; with the number asked for they do."""
    v = judge(**world(0, overfitting=3, m=100, n=50, simplest=30).arguments())
    assert (v.kind[:3] == "undetermined").all()
    assert not v.memorized.any()
    lowest = (v.p_value <= 1 / 51 + 1e-9).sum()
    needed = int(np.ceil(100 / (0.05 * lowest))) - 1
    assert v.reason[0] == f"reference too small: at least {needed} images are needed"
    enough = int(np.ceil(100 / (0.05 * 3))) - 1  # for the three that are memorized
    v = judge(**world(0, overfitting=3, m=100, n=enough, simplest=30).arguments())
    assert v.memorized[:3].all()


def test_no_level_is_reached_below_twenty():
    v = judge(**world(0, overfitting=1, m=1, n=18).arguments())
    assert v.reason == ("reference too small: at least 19 images are needed",)
    assert judge(**world(0, overfitting=1, m=1, n=19, simplest=30).arguments()).memorized.all()


def test_model_that_does_not_fit_overrides_a_call():
    w = world(1, overfitting=4, n=1000, simplest=30)
    fit = np.random.default_rng(0).normal(size=1100)
    fit[:2] = 50
    fit[2] = np.nan
    v = judge(**w.arguments(misfit=fit[:100], reference_misfit=fit[100:]))
    assert v.kind[:4].tolist() == 3 * ["undetermined"] + ["overfitting"]
    assert v.reason[0] == "the model does not fit here"
    assert (v.q_value[:4] <= 0.05).all()
    assert not v.memorized[:3].any()
    assert (v.kind[4:] == "undetermined").mean() < 0.1


def test_noisy_estimates_are_not_trusted():
    """A fair image measured with one noise may look memorized or not: neither is said."""
    w = world(2, n=1000, simplest=30)
    stderr = torch.full((100,), 0.5, dtype=torch.float64)
    stderr[:10] = 25.0
    lid = w.model.copy()
    lid[:10] -= 20
    v = judge(
        **w.arguments(model=estimate(lid, stderr), reference_model=estimate(w.reference_model, 0.5))
    )
    assert (v.kind[:10] == "undetermined").all()
    assert "standard error" in v.reason[0]
    assert v.trusted[10:].mean() > 0.95


def test_data_side_missing_or_too_noisy():
    w = world(3, overfitting=5, n=1000, simplest=30)
    none = judge(**w.arguments(data=None, reference_data=None))
    assert (none.kind[:5] == "undetermined").all()
    assert none.memorized[:5].all()
    assert none.trusted[:5].all()
    assert np.isnan(none.p_data).all()
    noisy = judge(**w.arguments(data=estimate(w.data, 10.0)))
    unsure = noisy.p_data[:5] > 0.05
    assert (noisy.kind[:5][unsure] == "undetermined").all()
    assert "standard error" in noisy.reason[int(np.flatnonzero(unsure)[0])]


def test_data_side_near_zero_needs_no_reference():
    """A reference full of duplicates cannot hide that a LID of 0 is a copy."""
    w = world(4, duplicated=5, n=1000, simplest=30)
    reference = np.where(np.arange(1000) < 100, 0, w.reference_data)
    v = judge(**w.arguments(reference_data=estimate(reference)))
    assert (v.p_data[:5] > 0.05).any() or (v.p_data[:5] <= 0.05).all()
    assert (v.kind[:5] == "data").all()


def test_contaminated_reference_is_said():
    """Where a tenth of the reference is memorized too, no subject is cleared."""
    w = world(5, overfitting=5, n=1000, simplest=30)
    reference = w.reference_model.copy()
    reference[:100] = 2
    v = judge(**w.arguments(reference_model=estimate(reference)))
    assert not v.memorized.any()
    assert (v.kind[:5] == "undetermined").all()
    assert "training images" in " ".join(v.reason[:5])
    assert (v.kind[5:] == "none").mean() > 0.8


def test_images_too_simple_to_tell_are_not_cleared():
    """At an expected LID of about 2 with a spread as large, no LID would stand out."""
    rng = np.random.default_rng(6)
    complexity = rng.uniform(2, 60, 1050)
    lid = np.maximum(0, complexity - 2 + 2 * rng.normal(size=1050))
    z = complexity[:, None]
    v = judge(
        estimate(lid[:50]),
        reference_model=estimate(lid[50:]),
        complexity=z[:50],
        reference_complexity=z[50:],
    )
    assert (v.kind[z[:50, 0] < 4] == "undetermined").all()
    assert "simple" in v.reason[int(z[:50, 0].argmin())]
    assert (v.kind[z[:50, 0] > 15] == "none").all()


def test_complexity_outside_the_reference():
    w = world(7, n=1000)
    far = w.complexity.copy()
    far[0] = 200
    v = judge(**w.arguments(complexity=far))
    assert v.kind[0] == "undetermined"
    assert "range" in v.reason[0]


def test_training_set_as_its_own_reference():
    """Few subjects of a population can stand out in it; all of it cannot."""
    w = world(8, m=10, n=1000, simplest=30)
    population = w.reference_model.copy()
    population[:5] = 1
    index = np.arange(10)
    shared = {
        "data": None,
        "reference_data": None,
        "reference_model": estimate(population),
    }
    few = judge(
        **w.arguments(
            model=estimate(population[:10]),
            complexity=w.reference_complexity[:10],
            reference_index=index,
            **shared,
        )
    )
    assert few.memorized.tolist() == 5 * [True] + 5 * [False]
    np.testing.assert_allclose(np.sort(few.p_value[:5]), np.arange(1, 6) / 1000)
    every = judge(
        **w.arguments(
            model=estimate(population),
            complexity=w.reference_complexity,
            reference_index=np.arange(1000),
            **shared,
        )
    )
    assert not every.memorized.any()
    assert (every.kind[:5] == "undetermined").all()


def test_order_of_subjects_and_reference_is_irrelevant():
    w = world(9, overfitting=20, duplicated=10)
    rng = np.random.default_rng(0)
    a, b = rng.permutation(100), rng.permutation(400)
    v = judge(**w.arguments())
    u = judge(
        estimate(w.model[a]),
        estimate(w.data[a]),
        reference_model=estimate(w.reference_model[b]),
        reference_data=estimate(w.reference_data[b]),
        complexity=w.complexity[a],
        reference_complexity=w.reference_complexity[b],
    )
    assert (u.kind == v.kind[a]).all()
    np.testing.assert_allclose(u.q_value, v.q_value[a])
    np.testing.assert_allclose(u.missing_dof_stderr, v.missing_dof_stderr[a])


def test_one_subject_or_many():
    """The p-value and the effect are the subject's own; only q knows of the others."""
    w = world(10, overfitting=20)
    many = judge(**w.arguments())
    one = judge(
        **w.arguments(
            model=estimate(w.model[:1]), data=estimate(w.data[:1]), complexity=w.complexity[:1]
        )
    )
    for name in ("p_value", "p_data", "expected_lid", "missing_dof", "missing_dof_stderr"):
        np.testing.assert_allclose(getattr(one, name)[0], getattr(many, name)[0])
    assert one.q_value[0] == one.p_value[0]


def test_arguments_are_read_only():
    w = world(11, overfitting=5)
    arguments = w.arguments(misfit=w.data, reference_misfit=w.reference_data)
    for f in fields(w):
        getattr(w, f.name).setflags(write=False)
    before = {f.name: getattr(w, f.name).copy() for f in fields(w)}
    judge(**arguments)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(w, name), value)


def test_tensors_of_single_precision_with_gradients():
    w = world(12, overfitting=5)
    z = torch.tensor(w.complexity, dtype=torch.float32, requires_grad=True)
    v = judge(**w.arguments(complexity=z))
    np.testing.assert_allclose(v.p_value, judge(**w.arguments()).p_value, atol=0.01)


def test_estimates_of_half_precision():
    w = world(15, overfitting=5)
    half = torch.tensor(w.model, dtype=torch.bfloat16)
    v = judge(**w.arguments(model=Estimate(half, torch.zeros_like(half), 0.2, "half")))
    same = judge(**w.arguments(model=estimate(half.double())))
    assert (v.kind == same.kind).all()


def test_no_subject():
    w = world(13, m=0)
    assert judge(**w.arguments()).kind.tolist() == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"reference_complexity": None}, "complexity is needed of both"),
        ({"reference_data": None}, "data-side estimates are needed of both"),
        ({"misfit": np.zeros(100)}, "misfit is needed of both"),
        ({"complexity": np.zeros((99, 1))}, "do not fit"),
        ({"complexity": np.zeros(100)}, "do not fit"),
        ({"data": estimate(np.zeros(99))}, "each of 100 images"),
        ({"alpha": 5.0}, "alpha must be between 0 and 1, got 5"),
        ({"reference_index": np.full(100, 400)}, "must lie in -1"),
        ({"reference_index": np.zeros(100)}, "differ"),
        ({"reference_model": estimate(np.full(400, np.nan))}, "more reference images"),
    ],
)
def test_errors_name_the_remedy(changes, match):
    with pytest.raises(InputError, match=match):
        judge(**world(14).arguments(**changes))
