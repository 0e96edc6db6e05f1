"""Traces against dense truths: no bias, calibrated errors, exactness, and the choice of `auto`."""

import re

import pytest
import torch

from memfold.linalg.nystrom import xnystrace
from memfold.linalg.trace import trace
from memfold.tensors import sphere_like
from memfold.types import InputError
from tests.oracles import rotation, seeded, z_score

D, RUNS = 60, 3000


def low_rank(d=D, rank=8, seed=0):
    q = rotation(d, rank, seed)
    return (q * (0.3 + torch.rand(rank, generator=seeded(seed), dtype=torch.float64))) @ q.mT


def decaying(d=D):
    q = rotation(d, d, 3)
    return (q * 0.8 ** torch.arange(d, dtype=torch.float64)) @ q.mT


def nonsymmetric(d=D):
    return low_rank(d) + 0.1 * torch.randn(d, d, generator=seeded(5), dtype=torch.float64)


def skewed(d=D):
    """A positive definite symmetric part, so that only the antisymmetric one can give it away."""
    skew = 0.1 * torch.randn(d, d, generator=seeded(6), dtype=torch.float64)
    return decaying(d) + torch.eye(d, dtype=torch.float64) + skew - skew.mT


def indefinite(d=D):
    q = rotation(d, d, 4)
    return (q * torch.linspace(-1, 2, d, dtype=torch.float64)) @ q.mT


OPERATORS = {
    "low rank": low_rank(),
    "decaying": decaying(),
    "nonsymmetric": nonsymmetric(),
    "skewed": skewed(),
    "indefinite": indefinite(),
}


def run(a, runs=RUNS, **options):
    """Estimate the trace of one operator in independent runs: each point keys its own probes."""
    x = torch.randn(runs, len(a), generator=seeded(7), dtype=torch.float64)
    return trace(lambda v, rows: v @ a.mT, x, seed=11, **options)


ALL = [
    ("hutchinson", "low rank", 5),
    ("hutchinson", "nonsymmetric", 2),
    ("hutchinson", "indefinite", 4),
    ("hutch++", "low rank", 12),
    ("hutch++", "decaying", 9),
    ("hutch++", "nonsymmetric", 9),
    ("hutch++", "indefinite", 12),
    ("xnystrace", "low rank", 4),
    ("xnystrace", "decaying", 6),
    ("xnystrace", "decaying", 12),
]


@pytest.mark.parametrize(("method", "operator", "n"), ALL)
def test_estimate_is_unbiased(method, operator, n):
    a = OPERATORS[operator]
    result = run(a, method=method, n_probes=n)
    assert abs(z_score(result.value - a.trace())) < 4
    assert result.products.unique().tolist() == [n]


@pytest.mark.parametrize(("method", "operator", "n"), [c for c in ALL if c[0] != "xnystrace"])
def test_standard_error_is_calibrated(method, operator, n):
    # E stderr^2 is the variance: their difference has mean 0
    a = OPERATORS[operator]
    result = run(a, method=method, n_probes=n)
    assert abs(z_score((result.value - a.trace()) ** 2 - result.stderr**2)) < 4


@pytest.mark.parametrize(("rank", "n"), [(40, 6), (40, 12), (20, 15), (12, 12)])
def test_jackknife_of_xnystrace_is_conservative_but_not_absurdly(rank, n):
    a = low_rank(rank=rank)
    result = run(a, method="xnystrace", n_probes=n)
    actual = (result.value - a.trace()).square().mean().sqrt()
    stated = result.stderr.square().mean().sqrt()
    # Efron and Stein: at most 1; 1.2 holds room for the spread over runs. Near the rank the
    # jackknife may overstate without bound, as the truth goes to 0.
    assert float(actual / stated) < 1.2
    if n <= rank / 2:
        assert float(actual / stated) > 0.5


@pytest.mark.parametrize(("rank", "atol"), [(0, 1e-300), (1, 1e-4), (5, 1e-4), (8, 1e-4), (9, 0.1)])
def test_xnystrace_is_exact_when_probes_outnumber_the_rank(rank, atol):
    a = low_rank(rank=rank) if rank else torch.zeros(D, D, dtype=torch.float64)
    result = run(a, runs=50, method="xnystrace", n_probes=10)
    # the shift of 1e-11 leaves rounding of 1e-16 / 1e-11; with one probe more than the rank, a
    # square random matrix is inverted, whose smallest eigenvalue may be small itself
    torch.testing.assert_close(result.value, a.trace().expand(50), rtol=0, atol=atol)
    if rank < 8:  # the jackknife leaves out two probes of ten
        assert float(result.stderr.max()) < 1e-4


def test_xnystrace_is_exact_in_single_precision():
    d = 8000
    q = rotation(d, 9, 0, torch.float32)
    x = torch.randn(30, d, generator=seeded())
    result = trace(lambda v, rows: (v @ q) @ q.mT, x, method="xnystrace", n_probes=16, seed=1)
    # rounding of 6e-8 in each of 8000 products, relative to vectors of length 3
    torch.testing.assert_close(result.value, torch.full((30,), 9.0), rtol=0, atol=0.02)
    assert abs(float(result.value.mean() - 9)) < 1e-3  # the shift of 3e-3 is taken out again


@pytest.mark.parametrize("operator", OPERATORS)
def test_exact_is_exact(operator):
    a = OPERATORS[operator]
    result = run(a, runs=3, method="exact")
    torch.testing.assert_close(result.value, a.trace().expand(3))
    assert result.stderr.tolist() == [0, 0, 0]
    assert result.products.tolist() == [D] * 3


def test_more_probes_than_dimensions_are_exact():
    result = run(OPERATORS["decaying"], runs=2, method="xnystrace", n_probes=D + 5)
    torch.testing.assert_close(result.value, OPERATORS["decaying"].trace().expand(2))


def test_hutchinson_is_exact_on_a_diagonal():
    a = torch.diag(torch.linspace(-3, 5, D, dtype=torch.float64))
    torch.testing.assert_close(run(a, runs=9, method="hutchinson").value, a.trace().expand(9))


@pytest.mark.parametrize("dimension", [10, 50, 200])
def test_errors_after_twelve_products_in_a_thousand_dimensions(dimension):
    d, n, runs = 1000, 12, 300
    q = rotation(d, dimension, 2, torch.float32)
    x = torch.randn(runs, d, generator=seeded(3))

    def rms(method):
        result = trace(lambda v, rows: (v @ q) @ q.mT, x, method=method, n_probes=n, seed=5)
        return float((result.value - dimension).square().mean().sqrt())

    square, diagonal = dimension, float((q**2).sum(1).square().sum())  # |J|_F^2 of a projection
    theory = (2 * (square - diagonal) / n) ** 0.5
    assert rms("hutchinson") == pytest.approx(theory, rel=4 / (2 * runs) ** 0.5)
    if dimension < n:
        assert rms("xnystrace") < 0.05
    else:  # nothing is gained on a flat spectrum before the rank, and little lost
        assert 0.7 * theory < rms("xnystrace") < 1.6 * theory


# --- auto


@pytest.mark.parametrize(
    ("operator", "products"), [("nonsymmetric", 4), ("skewed", 4), ("indefinite", 8)]
)
def test_auto_takes_hutchinson_where_it_must(operator, products):
    a = OPERATORS[operator]
    result = run(a, n_probes=4)
    assert not result.low_rank.any()
    assert result.products.unique().tolist() == [products]  # 4 more to look at the spectrum
    assert abs(z_score(result.value - a.trace())) < 4
    assert abs(z_score((result.value - a.trace()) ** 2 - result.stderr**2)) < 4


@pytest.mark.parametrize("size", [0.02, 0.05, 0.2])
def test_auto_finds_many_small_negative_eigenvalues(size):
    # what a trained network has off its manifold; the span of four products does not show it
    d, rank = 300, 20
    q = rotation(d, d, 1)
    l = torch.full((d,), -size, dtype=torch.float64)
    l[:rank] = 1
    a = (q * l) @ q.mT
    result = run(a, runs=500, tol=0.1)
    assert not result.low_rank.any()
    if size > 0.02:  # seen at once; at the tolerance itself, seen later and paid twice
        assert result.products.unique().tolist() == [8]
    assert abs(z_score(result.value - a.trace())) < 4


def test_auto_takes_the_low_rank_route_where_it_may():
    a = OPERATORS["low rank"]
    result = run(a, runs=100, tol=1e-4)
    assert result.low_rank.all()
    torch.testing.assert_close(result.value, a.trace().expand(100), rtol=1e-4, atol=1e-4)
    # rank 8: 4 signs and 4 products of the look are its sketch, and 4 directions are left out
    assert result.products.unique().tolist() == [12]


@pytest.mark.parametrize("rank", [3, 6, 30])
def test_auto_keeps_its_tolerance(rank):
    a = low_rank(300, rank)
    result = run(a, runs=500, tol=0.5)
    assert float(result.stderr.max()) <= 0.5
    # a lucky spread of few probes must not end it: no run is 4 tolerances off
    assert float((result.value - a.trace()).abs().max()) < 2.0
    assert abs(float((result.value - a.trace()).mean())) < 0.02


@pytest.mark.parametrize(("rank", "tol"), [(200, 2.0), (200, 3.0), (50, 2.0)])
def test_auto_stops_as_soon_as_the_mean_of_the_products_will_do(rank, tol):
    d, runs = 1000, 200
    q = rotation(d, rank, 2, torch.float32)
    x = torch.randn(runs, d, generator=seeded(3))
    result = trace(lambda v, rows: (v @ q) @ q.mT, x, tol=tol, max_probes=512, seed=5)
    error, taken = result.value - rank, result.products.double()
    assert float(result.stderr.max()) <= tol
    # random signs: 2 (|A|_F^2 - |diag A|^2) / n, at a quarter of a doubling above what it takes
    need = 2 * (rank - float((q**2).sum(1).square().sum())) / tol**2
    assert need < float(taken.mean()) < 1.4 * need + 8
    # stopping early biases by less than a tenth of the error that was asked for
    assert abs(float(error.mean())) < 0.1 * tol + 3 * float(error.std()) / runs**0.5
    covered = float((error.abs() < 2 * result.stderr).double().mean())
    assert covered > 0.954 - 0.02 - 3 * (0.954 * 0.046 / runs) ** 0.5
    stated = float(result.stderr.square().mean().sqrt())
    assert float(error.square().mean().sqrt()) < 1.1 * stated * (1 + 3 / (2 * runs) ** 0.5)


def test_auto_takes_the_smaller_error_where_it_may_take_no_more():
    # flat beyond the sketch: XNysTrace gains nothing there, and errs now more, now less
    d, n = 300, 20
    a, x = low_rank(d, 200), torch.randn(100, d, generator=seeded(7), dtype=torch.float64)
    result = trace(lambda v, rows: v @ a, x, seed=11, tol=0.01, max_probes=4 + n)
    assert result.products.unique().tolist() == [8 + n]
    assert 0.1 < float(result.low_rank.double().mean()) < 0.9
    alone = trace(lambda v, rows: v @ a, x, seed=11, method="xnystrace", n_probes=8 + n)
    assert float(result.stderr.mean()) < float(alone.stderr.mean())


def test_auto_stops_at_max_probes_with_an_honest_error():
    a = low_rank(300, 200)
    result = run(a, runs=200, tol=0.01, max_probes=16)
    assert result.products.unique().tolist() == [20]
    actual = (result.value - a.trace()).square().mean().sqrt()
    assert 0.5 < float(actual / result.stderr.square().mean().sqrt()) < 1.2


def test_auto_decides_for_each_operator_of_a_batch():
    good, bad = low_rank(), nonsymmetric()
    stack = torch.stack([good, bad, good])
    x = torch.randn(3, D, generator=seeded(), dtype=torch.float64)

    def product(v, rows):
        return torch.einsum("rij,rj->ri", stack[rows], v)

    result = trace(product, x, tol=1e-4, seed=1)
    assert result.low_rank.tolist() == [True, False, True]
    torch.testing.assert_close(result.value[::2], good.trace().expand(2), rtol=1e-4, atol=1e-4)
    for i in range(3):  # and alone as in the batch
        one = trace(lambda v, rows, i=i: v @ stack[i].mT, x[i : i + 1], tol=1e-4, seed=1)
        torch.testing.assert_close(one.value[0], result.value[i], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.stderr[0], result.stderr[i], rtol=1e-6, atol=1e-6)
        assert one.products[0] == result.products[i]


def test_auto_stops_each_operator_by_itself():
    d = 300
    bases = [rotation(d, k, k) for k in (6, 60, 120, 200, 290)]
    x = torch.randn(len(bases), d, generator=seeded(), dtype=torch.float64)

    def product(v, rows):
        return torch.stack([(u @ bases[i]) @ bases[i].mT for u, i in zip(v, rows, strict=True)])

    result = trace(product, x, tol=2.0, seed=1)
    assert len(result.products.unique()) >= 3
    assert result.low_rank.unique().tolist() == [False, True]
    for i in range(len(bases)):
        one = trace(
            lambda v, rows, i=i: product(v, torch.full((1,), i)), x[i : i + 1], tol=2.0, seed=1
        )
        torch.testing.assert_close(one.value[0], result.value[i], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(one.stderr[0], result.stderr[i], rtol=1e-6, atol=1e-8)
        assert one.products[0] == result.products[i]
        assert one.low_rank[0] == result.low_rank[i]


def test_products_are_counted():
    calls = []

    def product(v, rows):
        calls.extend(rows.tolist())
        return v @ OPERATORS["low rank"]

    x = torch.randn(4, D, generator=seeded(), dtype=torch.float64)
    result = trace(product, x, seed=1)
    assert result.products.tolist() == [calls.count(i) for i in range(4)]


def test_auto_is_exact_in_few_dimensions():
    a = nonsymmetric(20)
    result = run(a, runs=2)
    torch.testing.assert_close(result.value, a.trace().expand(2))
    assert result.stderr.tolist() == [0, 0]


def test_probes_depend_on_the_seed_and_the_point_alone():
    a, x = OPERATORS["indefinite"], torch.randn(4, D, generator=seeded(), dtype=torch.float64)

    def value(x, seed):
        return trace(lambda v, rows: v @ a, x, method="hutchinson", seed=seed).value

    whole = value(x, 1)
    torch.testing.assert_close(value(x.flip(0), 1).flip(0), whole)
    torch.testing.assert_close(value(x[2:3], 1), whole[2:3])
    assert bool((value(x, 2) != whole).all())
    assert len(whole.unique()) == 4


# --- tangents on few coordinates: exact copies in pixels


def on_axes(d, rank):
    """The posterior covariance of `rank` free pixels."""
    l = torch.zeros(d, dtype=torch.float64)
    l[torch.randperm(d, generator=seeded(rank))[:rank]] = 1
    return torch.diag(l)


def between(d, pixels):
    """That of two images that differ in a few pixels, and are told apart no more."""
    u = torch.zeros(d, dtype=torch.float64)
    u[torch.randperm(d, generator=seeded(pixels))[:pixels]] = (-1.0) ** torch.arange(
        pixels
    ).double()
    return torch.outer(u, u) / pixels


SPARSE = {f"{r} axes": (on_axes, r) for r in (1, 2, 4, 8)} | {
    f"{k} pixels": (between, k) for k in (1, 2, 3)
}
FEW = [("auto", 4), ("xnystrace", 3), ("xnystrace", 5), ("xnystrace", 10), ("hutchinson", 4)]
FEW += [("hutch++", 6), ("hutch++", 12)]


@pytest.mark.parametrize("d", [64, 1000])
@pytest.mark.parametrize("operator", SPARSE)
def test_no_error_of_zero_where_tangents_are_sparse(operator, d):
    make, size = SPARSE[operator]
    a = make(d, size)
    for method, n in FEW:
        result = run(a, runs=400, method=method, n_probes=n)
        sure = result.stderr < 1e-4
        wrong = (result.value - a.trace()).abs() > 1e-3
        assert not bool((sure & wrong).any()), (method, n)
        if method == "auto" or (method == "xnystrace" and n > a.trace() + 2):
            # the rank is exhausted. One probe to spare: where one that is left in is almost at
            # right angles to a tangent, the jackknife says so
            assert float(sure.double().mean()) > 0.9, (method, n)
            assert float((result.value - a.trace()).abs().max()) < 0.01, (method, n)
    if d < 100:
        turned = rotation(d, d, 5)
        result = run(turned @ a @ turned.mT, runs=400)
        assert float((result.value - a.trace()).abs().max()) < 0.01


@pytest.mark.parametrize("pixels", [2, 3])
def test_signs_that_agree_by_chance_are_drawn_anew(pixels):
    a, runs = between(64, pixels), 4000
    result = run(a, runs=runs, method="hutchinson", n_probes=4)
    again = (result.products == 8).double().mean()
    # w^T A w is (sum of `pixels` signs)^2 / pixels: 1/2 and 1/2, or 3/4 and 1/4
    chance = {2: 2 * 0.5**4, 3: 0.75**4 + 0.25**4}[pixels]
    assert float(again) == pytest.approx(chance, abs=4 * (chance * (1 - chance) / runs) ** 0.5)
    assert float(result.stderr.min()) > 0
    assert abs(z_score(result.value - 1)) < 4


def test_signs_agree_on_a_diagonal_for_good():
    result = run(on_axes(64, 4), runs=50, method="hutchinson", n_probes=4)
    assert result.products.unique().tolist() == [5]  # one shows that A is diagonal
    torch.testing.assert_close(result.value, torch.full((50,), 4.0).double())
    assert float(result.stderr.max()) < 1e-12


def test_auto_sees_an_asymmetry_of_two_pixels():
    # A = u v^T: four random signs show no asymmetry in one run of eight
    a = torch.zeros(64, 64, dtype=torch.float64)
    a[3, 40], a[3, 3] = 1, 1
    result = run(a, runs=400)
    assert not bool((result.low_rank & ((result.value - 1).abs() > 1e-3)).any())
    assert float(result.stderr.min()) > 0


def test_a_sketch_may_depend_on_the_operator():
    a, runs = low_rank(rank=8), 2000
    x = torch.randn(runs, D, generator=seeded(7), dtype=torch.float64)
    w = sphere_like(x, 6, 3)
    images = w[:, :2] @ a  # from probes that are thrown away
    sketch = torch.cat([images, torch.ones(runs, 1, D).double()], 1)
    probes = torch.cat([sketch, w[:, 2:]], 1)
    value, stderr = xnystrace(probes, probes @ a, sketch=3)
    assert abs(z_score(value - a.trace())) < 4
    actual = (value - a.trace()).square().mean().sqrt()
    assert 0.5 < float(actual / stderr.square().mean().sqrt()) < 1.2


# --- refusals


def test_xnystrace_refuses_an_indefinite_operator():
    with pytest.raises(InputError, match="operator 0 has negative eigenvalues"):
        run(OPERATORS["indefinite"], runs=2, method="xnystrace", n_probes=20)


def test_unknown_method_is_refused():
    with pytest.raises(InputError, match=r"'hutch' is unknown; choose from auto, exact, hutch"):
        run(OPERATORS["indefinite"], runs=2, method="hutch")


@pytest.mark.parametrize(("method", "least"), [("hutchinson", 2), ("xnystrace", 3), ("hutch++", 6)])
def test_too_few_probes_are_refused(method, least):
    match = re.escape(f"n_probes = {least - 1} gives {method} no standard error; take {least}")
    with pytest.raises(InputError, match=match):
        run(OPERATORS["low rank"], runs=2, method=method, n_probes=least - 1)
    result = run(OPERATORS["low rank"], runs=2, method=method, n_probes=least)
    assert bool(result.stderr.isfinite().all())
