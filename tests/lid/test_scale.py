import math
from itertools import pairwise

import pytest
import torch

from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.scale import (
    ESTIMATORS,
    default_sigmas,
    knee,
    knee_interval,
    lid_curve,
    plateau,
)
from memfold.lid.spectral import spectral_lid
from memfold.types import Curve, InputError
from tests.oracles import gaussian, gaussian_points, seeded


def curve(sigmas, *lids):
    lid = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in lids])
    return Curve(torch.as_tensor(sigmas, dtype=torch.float64), lid, torch.zeros_like(lid), "")


SIGMAS = torch.logspace(-3, 1, 41, dtype=torch.float64)


def soft(dimension, spread):
    """LID of an isotropic Gaussian in `dimension` dimensions: d l / (l + s^2)."""
    return dimension * spread**2 / (spread**2 + SIGMAS**2)


def test_knee_is_the_start_of_the_lower_plateau():
    # 100 dimensions of width .01 fade, 5 of width 30 remain
    values = soft(100, 0.01) + soft(5, 30.0)
    index = knee(curve(SIGMAS, values))
    # the curve has fallen to within a few dimensions of 5, and soon after had not
    assert 5 < float(values[index]) < 15
    assert float(values[index - 8]) > 30


def test_knee_of_two_straight_lines_is_their_corner():
    u = SIGMAS.log10()
    values = torch.where(u < -1, 100 - 40 * (u + 3), 20 - 2 * (u + 1))
    assert float(u[knee(curve(SIGMAS, values))]) == pytest.approx(-1)


def test_knee_of_a_flat_curve_is_the_smallest_scale():
    assert knee(curve(SIGMAS, torch.full((41,), 7.0), torch.zeros(41))).tolist() == [0, 0]


def test_knee_is_free_of_units():
    values = soft(100, 0.01) + soft(5, 30.0)
    both = curve(SIGMAS, values, 3 * values + 11)
    index = knee(both)
    assert index[0] == index[1]
    assert knee(curve(100 * SIGMAS, values)) == index[0]


@pytest.mark.parametrize("noise", [0.5, 3.0])
@pytest.mark.parametrize("told", [True, False])
def test_interval_of_the_knee_holds_it(noise, told):
    # errors that the standard error tells of, and errors that no noise of its own averages out
    values = soft(100, 0.01) + soft(5, 30.0)
    truth = int(knee(curve(SIGMAS, values)))
    lid = values + noise * torch.randn(400, 41, generator=seeded(), dtype=torch.float64)
    stderr = torch.full_like(lid, noise if told else 0.0)
    many = Curve(SIGMAS, lid, stderr, "")
    low, high = knee_interval(many)
    inside = ((low <= truth) & (truth <= high)).double().mean()
    assert float(inside) > 0.95 - 2 * (0.05 / 400) ** 0.5
    assert bool(((low <= knee(many)) & (knee(many) <= high)).all())
    if noise < 1:  # and says where it is not: an error of 1 % of the range is no excuse for more
        assert float((high - low).double().mean()) < 41 / 2


def test_interval_of_a_sure_knee_is_a_step_each_way_and_of_no_knee_everything():
    u = SIGMAS.log10()
    values = torch.where(u < -1, 100 - 40 * (u + 3), 20 - 2 * (u + 1))
    index = int(knee(curve(SIGMAS, values)))
    assert [int(i) for i in knee_interval(curve(SIGMAS, values))] == [index - 1, index + 1]
    flat = curve(SIGMAS, torch.full((41,), 7.0) + torch.randn(41, generator=seeded()))
    low, high = knee_interval(Curve(SIGMAS, flat.lid, torch.ones_like(flat.lid), ""))
    assert int(high - low) > 20
    with pytest.raises(InputError, match="a curve of 2 scales has no knee"):
        knee_interval(curve([0.1, 0.2], [3, 2]))


def test_plateau_at_both_scales():
    values = soft(100, 0.01) + soft(5, 30.0)
    low = plateau(curve(SIGMAS, values))
    assert float(values[low]) == pytest.approx(5, rel=0.02)
    # without the second one's room, the plateau is the first
    part = slice(0, 21)
    high = plateau(curve(SIGMAS[part], values[part]))
    assert float(values[part][high]) == pytest.approx(105, rel=0.02)


def test_plateau_of_a_memorized_curve_is_zero():
    values = torch.where(SIGMAS < 0.1, 0.01 * SIGMAS, 30 * SIGMAS)
    assert float(values[plateau(curve(SIGMAS, values))]) < 1


def test_peak_is_no_plateau():
    # rises and falls by a factor of 2, and is flat from index 6 on
    values = [1.0, 10, 20, 10, 5, 3, 2.5, 2.5, 2.4]
    index = plateau(curve(torch.logspace(0, 8, 9), values))
    assert index.tolist() == [7]


def test_plateau_window():
    flat = curve(SIGMAS, torch.full((41,), 9.0))
    assert plateau(flat, width=5).tolist() == [2]
    for width in (2, 1, 43):
        with pytest.raises(InputError, match=f"width = {width}; take an odd one from 3 to 41"):
            plateau(flat, width=width)


def test_knee_needs_three_scales():
    with pytest.raises(InputError, match="a curve of 2 scales has no knee; give 3 or more"):
        knee(curve([0.1, 0.2], [3, 2]))


@pytest.mark.parametrize("name", ["dsm", "flipd", "spectral"])
def test_curve_equals_single_calls(name):
    model, mean, variances, basis = gaussian(20, 4)
    x, grid = gaussian_points(mean, variances, basis, 3), [0.05, 0.3, 2.0]
    generator = seeded(5)
    result = lid_curve(model, x, grid, estimator=name, n_noises=4, generator=generator)
    single = {"dsm": dsm_lid, "flipd": flipd, "spectral": spectral_lid}[name]
    for i, sigma in enumerate(grid):
        one = single(model, x, sigma, n_noises=4, generator=seeded(5))
        torch.testing.assert_close(result.lid[:, i], one.lid, rtol=0, atol=0)
        torch.testing.assert_close(result.stderr[:, i], one.stderr, rtol=0, atol=0)
        assert result.method == one.method
    assert result.sigmas.tolist() == grid
    # the generator moved on as after one call: the next curve has other noises
    after = seeded(5)
    single(model, x, 0.3, n_noises=4, generator=after)
    assert torch.equal(generator.get_state(), after.get_state())


def test_curve_follows_the_closed_form():
    model, mean, variances, basis = gaussian(40, 6)
    x = gaussian_points(mean, variances, basis, 2)
    result = lid_curve(model, x, estimator="flipd", trace="exact", generator=seeded())
    truth = (variances / (variances + result.sigmas[:, None] ** 2)).sum(1)
    torch.testing.assert_close(result.lid, truth.expand(2, -1))


def test_curve_without_generator_differs_between_calls():
    model, mean, variances, basis = gaussian(20, 4)
    x = gaussian_points(mean, variances, basis, 2)
    one, two = lid_curve(model, x, [0.1, 0.2]), lid_curve(model, x, [0.1, 0.2])
    assert bool((one.lid != two.lid).all())


def test_default_grid_stays_within_the_model():
    model, *_ = gaussian()
    assert default_sigmas(model)[0] == pytest.approx(0.02)
    assert default_sigmas(model)[-1] == pytest.approx(2)
    model.sigma_min, model.sigma_max = 0.0291901713, 1.5
    grid = default_sigmas(model)
    steps = [math.log(b / a) for a, b in pairwise(grid)]
    assert steps == pytest.approx([math.log(1.5 / 0.0291901713) / 11] * 11)
    for sigma in grid:
        model.check(torch.zeros(1, 12), sigma)
    model.sigma_min, model.sigma_max = 5.0, 80.0
    with pytest.raises(InputError, match="5 to 80, do not meet the default grid"):
        default_sigmas(model)


@pytest.mark.parametrize("grid", [[], [0.2, 0.1], [0.1, 0.1]])
def test_grid_must_ascend(grid):
    model, mean, variances, basis = gaussian()
    with pytest.raises(InputError, match="must ascend and hold at least one number"):
        lid_curve(model, gaussian_points(mean, variances, basis, 1), grid)


def test_unknown_estimator_and_keyword():
    model, mean, variances, basis = gaussian()
    x = gaussian_points(mean, variances, basis, 1)
    with pytest.raises(InputError, match="estimator 'mle' is unknown; choose from dsm, flipd, spe"):
        lid_curve(model, x, [0.1], estimator="mle")
    with pytest.raises(TypeError, match="n_noise"):
        lid_curve(model, x, [0.1], n_noise=3)
    assert set(ESTIMATORS) == {"dsm", "flipd", "spectral"}
