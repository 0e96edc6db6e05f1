"""The law of scikit-learn's estimators, by its own checks, for every data-side estimator."""

import inspect

import pytest
from sklearn.base import BaseEstimator
from sklearn.utils.estimator_checks import check_estimator

import memfold
from tests.oracles import unchecked

CLASSES = [
    name
    for name in memfold.__all__
    if inspect.isclass(kind := getattr(memfold, name)) and issubclass(kind, BaseEstimator)
]


def test_the_family_is_whole():
    assert {"EmpiricalLID", "MLE", "LPCA", "TwoNN"} <= set(CLASSES)


@pytest.mark.filterwarnings("ignore")  # the checks fit few points, and copies of them
@pytest.mark.parametrize("name", CLASSES)
def test_scikit_learns_own_checks(name):
    with unchecked():  # they pass lists and strings, as no type checker would
        results = check_estimator(getattr(memfold, name)(), on_fail=None, on_skip=None)
    failed = [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")]
    assert len(results) > 30
    assert failed == []
