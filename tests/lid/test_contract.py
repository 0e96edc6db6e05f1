"""What holds for every model-side estimator: one signature, one way to refuse, no traces left."""

import inspect

import numpy as np
import pytest
import torch

from memfold.denoisers.base import FunctionDenoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.noised import check_points
from memfold.lid.spectral import spectral_lid
from memfold.types import Estimate, InputError
from tests.oracles import gaussian, gaussian_points, mixture, rotation, seeded, tiny_unet, unchecked

FAMILY = [flipd, dsm_lid, spectral_lid]
PUBLISHED = [(f, {}) for f in FAMILY] + [(flipd, {"at": "x"})]
BUDGET = {flipd: "memory_budget", dsm_lid: "batch_size", spectral_lid: "memory_budget"}


@pytest.fixture(params=FAMILY, ids=lambda f: f.__name__)
def estimator(request):
    return request.param


def example(n=5):
    model, points = mixture((2, 9), 40, dtype=torch.float64)
    return model, torch.cat([points(0, n // 2), points(1, n - n // 2)])


def test_signature(estimator):
    parameters = inspect.signature(estimator).parameters
    assert list(parameters)[:3] == ["denoiser", "x", "sigma"]
    rest = [p for name, p in parameters.items() if name not in ("denoiser", "x", "sigma")]
    assert all(p.kind is p.KEYWORD_ONLY for p in rest)
    assert {"cond", "n_noises", "generator", BUDGET[estimator]} <= {p.name for p in rest}


def test_result(estimator):
    model, x = example()
    result = estimator(model, x, 0.1, generator=seeded())
    assert isinstance(result, Estimate)
    assert result.lid.shape == result.stderr.shape == (5,)
    assert result.lid.dtype == x.dtype
    assert result.scale == 0.1
    assert bool((result.stderr >= 0).all())
    assert not result.lid.requires_grad
    assert result.method.endswith("points")


def test_plain_callable(estimator):
    model, x = example()
    a = estimator(model, x, 0.1, generator=seeded())
    b = estimator(lambda y, s: model.denoise(y, s, None), x, 0.1, generator=seeded())
    torch.testing.assert_close(a.lid, b.lid)


def test_numpy_numbers_are_numbers(estimator):
    model, x = example()
    with unchecked():  # beartype tells int from float
        for sigma in (np.float64(0.1), np.float32(0.5), 1):
            assert estimator(model, x, sigma, generator=seeded()).scale == sigma


# --- refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_row_is_named(estimator, value):
    model, x = example()
    x[3, 7] = value
    with pytest.raises(InputError, match=r"x\[3\] holds NaN or infinity"):
        estimator(model, x, 0.1)


def test_wrong_shape(estimator):
    model, x = example()
    with pytest.raises(InputError, match=r"x has shape .* the model takes \(batch, 40\)"):
        estimator(model, x[:, :39], 0.1)


def test_empty_batch(estimator):
    model, x = example()
    with pytest.raises(InputError, match=r"x has shape \(0, 40\); pass a batch of points"):
        estimator(model, x[:0], 0.1)


def test_one_point_without_batch(estimator):
    model, x = example()
    with pytest.raises(InputError, match=r"x has shape \(40,\); pass a batch of points"):
        estimator(model, x[0], 0.1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_refused(estimator, dtype):
    model, x = example()
    with unchecked(), pytest.raises(InputError, match="pass floating-point points"):
        estimator(model, x.to(dtype), 0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_points_are_refused(estimator, dtype):
    model, x = example()
    with pytest.raises(InputError, match=r"rounds small noises away; pass x\.float\(\)"):
        estimator(model, x.to(dtype), 0.1)


@pytest.mark.parametrize("sigma", [0.01, 9.0, -1.0, 0.0, float("nan")])
def test_sigma_out_of_range(estimator, sigma):
    _, x = example()
    model = FunctionDenoiser(lambda y, s: y / (1 + s**2), sigma_range=(0.02, 5.0))
    with pytest.raises(InputError, match=r"choose one from 0\.02 to 5"):
        estimator(model, x, sigma)


@pytest.mark.parametrize("sigma", [[0.1], torch.tensor(0.1), "0.1"])
def test_sigma_is_one_number(estimator, sigma):
    model, x = example()
    with unchecked(), pytest.raises(InputError, match="sigma must be one number, not"):
        estimator(model, x, sigma)


@pytest.mark.parametrize("n", [1, 0, -3])
def test_one_noise_has_no_standard_error(estimator, n):
    model, x = example()
    with pytest.raises(InputError, match=f"n_noises = {n} gives no standard error; take 2 or more"):
        estimator(model, x, 0.1, n_noises=n)


def test_unknown_keyword(estimator):
    model, x = example()
    with pytest.raises(TypeError, match="n_noise"):
        estimator(model, x, 0.1, n_noise=4)


def test_no_denoiser(estimator):
    _, x = example()
    with unchecked(), pytest.raises(InputError, match="str is no denoiser"):
        estimator("model", x, 0.1)


def test_model_that_returns_nan_names_the_point(estimator):
    _, x = example()

    def broken(y, s):
        return torch.where(y[:, :1] > 1e5, torch.nan, 0.5) * y

    x[2, 0] = 2e5
    with pytest.raises(InputError, match=r"the model returned NaN or infinity at x\[2\]"):
        estimator(broken, x, 0.1, generator=seeded())


def test_check_points_says_what_it_refuses():
    model, x = example()
    check_points(model, x, 0.1)
    with pytest.raises(InputError, match=r"x has dtype torch\.int64"):
        check_points(model, x.long(), 0.1)


# --- invariance


@pytest.mark.parametrize(("f", "options"), PUBLISHED)
def test_batch_is_the_sum_of_its_samples(f, options):
    model, x = example()
    whole = f(model, x, 0.1, generator=seeded(), **options)
    for i in range(len(x)):
        one = f(model, x[i : i + 1], 0.1, generator=seeded(), **options)
        torch.testing.assert_close(one.lid[0], whole.lid[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.stderr[0], whole.stderr[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("f", "options"), PUBLISHED)
def test_order_changes_nothing(f, options):
    model, x = example()
    order = torch.tensor([3, 0, 4, 1, 2])
    whole = f(model, x, 0.1, generator=seeded(), **options)
    mixed = f(model, x[order], 0.1, generator=seeded(), **options)
    torch.testing.assert_close(mixed.lid, whole.lid[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(("f", "options"), PUBLISHED)
def test_odd_chunks_change_nothing(f, options, rows, monkeypatch):
    model, x = example()
    whole = f(model, x, 0.1, generator=seeded(), **options)
    sizes = []
    inner = model.denoise

    def spy(y, s, cond):
        sizes.append(len(y))
        return inner(y, s, cond)

    monkeypatch.setattr(model, "denoise", spy)
    if f is dsm_lid:
        parts = f(model, x, 0.1, generator=seeded(), batch_size=rows)
    else:
        monkeypatch.setattr(
            f"memfold.lid.{f.__module__.split('.')[-1]}.rows_that_fit", lambda *_: rows
        )
        parts = f(model, x, 0.1, generator=seeded(), **options)
    assert max(sizes) == min(rows, 5 if options else 40)
    assert parts.lid.shape == (5,)  # not one a chunk and sample
    torch.testing.assert_close(parts.lid, whole.lid, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.stderr, whole.stderr, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("f", [flipd, spectral_lid])
@pytest.mark.parametrize("budget", [0, 100_000])
def test_memory_budget_changes_nothing(f, budget):
    model, x = example()
    whole = f(model, x, 0.1, generator=seeded())
    small = f(model, x, 0.1, generator=seeded(), memory_budget=budget)
    torch.testing.assert_close(small.lid, whole.lid, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [3])
def test_conditions_of_samples_survive_chunks(estimator, rows, monkeypatch):
    d = 36
    q = rotation(d, d, 1)

    def model(y, s, cond):  # the condition says how many directions are free
        free = (torch.arange(d) < cond["k"][:, None]).to(y)
        return (y @ q * free + cond["shift"]) @ q.mT

    cond = {"k": torch.tensor([1, 5, 9, 30]), "shift": 0.0}
    x = torch.randn(4, d, generator=seeded(), dtype=torch.float64)
    x = (x @ q * (torch.arange(d) < cond["k"][:, None])) @ q.mT
    options = {"cond": cond, "generator": seeded(), "n_noises": 16}
    if estimator is dsm_lid:
        options["batch_size"] = rows
    else:
        monkeypatch.setattr(f"{estimator.__module__}.rows_that_fit", lambda *_: rows)
    result = estimator(model, x, 0.1, **options)
    error = (result.lid - cond["k"]).abs()
    assert bool((error <= 4.5 * result.stderr + 0.5).all())


@pytest.mark.parametrize(("f", "options"), PUBLISHED)
def test_nothing_is_left_changed(f, options):
    model, x = example()
    before, cond = x.clone(), torch.ones(5)
    rng, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    f(lambda y, s, c: model.denoise(y, s, None), x, 0.1, cond=cond, generator=seeded(), **options)
    f(model, x, 0.1, **options)  # and without a generator
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert cond.tolist() == [1] * 5
    assert not x.requires_grad
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize(("f", "options"), PUBLISHED)
def test_callers_gradients_play_no_part(f, options):
    model, x = example()
    plain = f(model, x, 0.1, generator=seeded(), **options)
    with torch.no_grad():
        off = f(model, x, 0.1, generator=seeded(), **options)
        assert not torch.is_grad_enabled()
    on = f(model, x.requires_grad_(True), 0.1, generator=seeded(), **options)
    torch.testing.assert_close(off.lid, plain.lid, rtol=0, atol=0)
    torch.testing.assert_close(on.lid, plain.lid, rtol=0, atol=0)
    assert not on.lid.requires_grad
    assert x.grad is None


def test_weights_collect_no_gradients(estimator):
    net = tiny_unet().requires_grad_(True)
    x = torch.randn(1, 2, 8, 8, generator=seeded())
    estimator(lambda y, s: net(y, s.flatten()).sample, x, 0.5, n_noises=2, generator=seeded())
    assert all(p.grad is None for p in net.parameters())


def test_generator_decides_and_moves_on(estimator):
    model, x = example()
    generator = seeded(3)
    one, two = (estimator(model, x, 0.1, generator=generator) for _ in range(2))
    again = estimator(model, x, 0.1, generator=seeded(3))
    torch.testing.assert_close(again.lid, one.lid, rtol=0, atol=0)
    assert bool((one.lid != two.lid).any())


def test_noise_keeps_the_clean_point(estimator):
    # a forward process that drops x0 goes unnoticed at the origin
    seen = []

    def spy(y, s):
        seen.append(y.detach())
        return y

    x = torch.full((1, 2000), 7.0)
    estimator(spy, x, 0.5, generator=seeded())
    y = seen[-1] if estimator is dsm_lid else torch.cat([s for s in seen if len(s) > 1])
    assert float(y.mean()) == pytest.approx(7, abs=4 * 0.5 / y.numel() ** 0.5)
    assert float(y.std()) == pytest.approx(0.5, rel=4 / (2 * y[:8].numel()) ** 0.5)


def test_padding_and_offset_of_the_model_change_nothing(estimator):
    model, mean, variances, basis = gaussian(12, 5)
    x = gaussian_points(mean, variances, basis, 2)
    moved = FunctionDenoiser(lambda y, s: model.denoise(y - 3, s, None) + 3)
    a = estimator(model, x, 0.2, n_noises=200, generator=seeded())
    b = estimator(moved, x + 3, 0.2, n_noises=200, generator=seeded(1))
    error = (a.stderr**2 + b.stderr**2).sqrt() + 1e-9
    assert float(((a.lid - b.lid).abs() / error).max()) < 4
