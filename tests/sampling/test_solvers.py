import pytest
import torch
from diffusers import DDIMScheduler

from memfold.denoisers.adapters.diffusers import read_schedule
from memfold.denoisers.base import FunctionDenoiser
from memfold.denoisers.exact import EmpiricalDenoiser
from memfold.denoisers.parameterizations import EpsDenoiser
from memfold.sampling.generate import generate
from memfold.sampling.grids import karras_sigmas
from memfold.sampling.solvers import euler, heun
from memfold.types import InputError
from tests.oracles import gaussian, rotation, seeded, tiny_unet


def gaussian_flow(x, start, end, mean, variances, basis):
    """Solve dx/dsigma = (x - D) / sigma in closed form for one Gaussian."""
    y = x - mean
    z = y @ basis
    off = y - z @ basis.mT
    factor = ((variances + end**2) / (variances + start**2)).sqrt()
    return mean + (z * factor) @ basis.mT + off * end / start


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)])
def test_measured_order_is_the_declared_one(solver, order):
    model, *parts = gaussian()
    start, end = 5.0, 0.2
    x = parts[0] + start * torch.randn(4, 12, generator=seeded(), dtype=torch.float64)
    truth = gaussian_flow(x, start, end, *parts)
    errors = []
    for n in (40, 80, 160, 320):
        ramp = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        sigmas = (start ** (1 - ramp) * end**ramp).tolist()
        *_, before_last, _ = solver(model, x, sigmas)
        assert before_last.sigma == pytest.approx(end)
        errors.append(float((before_last.x - truth).norm()))
    orders = (torch.tensor(errors[:-1]) / torch.tensor(errors[1:])).log2().tolist()
    assert orders == pytest.approx([order] * 3, abs=0.15)
    assert orders[-1] == pytest.approx(order, abs=0.04)


@pytest.mark.parametrize("solver", [euler, heun])
def test_last_step_goes_to_the_denoised_point(solver):
    model, *_ = gaussian()
    x = torch.randn(2, 12, generator=seeded(), dtype=torch.float64)
    steps = list(solver(model, x, [3.0, 1.0, 0.5]))
    assert [s.sigma for s in steps] == [1.0, 0.5, 0.0]
    torch.testing.assert_close(steps[0].denoised, model(x, 3.0))
    torch.testing.assert_close(steps[2].denoised, model(steps[1].x, 0.5))
    torch.testing.assert_close(steps[2].x, steps[2].denoised)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_euler_is_ddim_step_by_step(prediction):
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False)
    scheduler.set_timesteps(10)
    net = tiny_unet().double()
    schedule, kind = read_schedule(scheduler)
    model = kind(lambda z, t, cond: net(z, t).sample, schedule, shape=(2, 8, 8))
    a = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    z = torch.randn(2, 2, 8, 8, generator=seeded(), dtype=torch.float64)
    theirs, mine = z, z / a[0].sqrt()
    sigmas = ((1 - a) / a).sqrt().tolist()
    after = [*a[1:].tolist(), 1.0]  # set_alpha_to_one
    for t, b, step in zip(scheduler.timesteps, after, euler(model, mine, sigmas), strict=True):
        with torch.no_grad():
            theirs = scheduler.step(net(theirs, t).sample, t, theirs).prev_sample
        # their table of float32 enters by its rounding, 6e-8 a step and more at sigma = 157
        torch.testing.assert_close(step.x * b**0.5, theirs, rtol=1e-4, atol=1e-4)


def test_grid_of_karras():
    sigmas = karras_sigmas(0.002, 80.0, 18)
    assert float(sigmas[0]) == pytest.approx(80)
    assert float(sigmas[-1]) == pytest.approx(0.002)
    roots = sigmas ** (1 / 7)  # Equation 5: even in sigma^(1/rho)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(17))
    assert bool((sigmas.diff() < 0).all())


@pytest.mark.parametrize(("low", "high", "n"), [(0.0, 1.0, 5), (1.0, 0.5, 5), (0.1, 1.0, 1)])
def test_grid_without_room_is_refused(low, high, n):
    with pytest.raises(InputError, match="take 2 or more, and 0 < min < max"):
        karras_sigmas(low, high, n)


@pytest.mark.parametrize("solver", [euler, heun])
def test_caller_stops_and_keeps_its_gradients(solver):
    model, *_ = gaussian()
    x = torch.randn(2, 12, generator=seeded(), dtype=torch.float64)
    before = x.clone()
    for step in solver(model, x, [3.0, 1.0, 0.5]):
        assert torch.is_grad_enabled()  # between steps the caller's own mode holds
        assert not step.x.requires_grad
        if step.sigma == 1.0:
            break
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def ranged(function, shape, sigma_max=20.0):
    return FunctionDenoiser(function, shape=shape, sigma_range=(0.01, sigma_max))


def test_each_seed_has_its_own_sample():
    net = tiny_unet()
    scheduler = DDIMScheduler()
    schedule, _ = read_schedule(scheduler)
    model = EpsDenoiser(lambda z, t, cond: net(z, t).sample, schedule, shape=(2, 8, 8))
    whole = generate(model, [3, 1, 4], n_steps=5)
    for i, seed in enumerate([3, 1, 4]):
        alone = generate(model, [seed], n_steps=5)[0]
        torch.testing.assert_close(whole[i], alone, rtol=1e-4, atol=1e-4)
    assert float((whole[0] - whole[1]).abs().max()) > 0.1


def test_samples_of_a_gaussian_have_its_moments():
    model, mean, variances, basis = gaussian(6, 3)
    far = 2000.0  # pure noise forgets the mean up to |mean| / sigma_max
    exact = ranged(lambda x, s: model.denoise(x, s, None), (6,), far)
    x = generate(exact, range(2000), n_steps=30)
    y = x.double() - mean
    z = (y @ basis) / variances.sqrt()
    assert float(z.mean(0).abs().max()) < 4 / 2000**0.5 + 8 / far
    # 30 steps of Heun: a few percent of bias, and sqrt(2 / n) of chance
    torch.testing.assert_close(z.var(0), torch.ones(3).double(), rtol=0.05 + 4 * 0.032, atol=0)
    assert float((y - (y @ basis) @ basis.mT).abs().max()) < 0.01  # nothing off the subspace


def test_samples_of_a_memorizer_are_its_points():
    points = 3 * rotation(8, 4, 0).mT
    exact = EmpiricalDenoiser(points)
    x = generate(ranged(lambda x, s: exact.denoise(x, s, None), (8,)), range(10))
    nearest = (x.double()[:, None] - points).norm(dim=2).amin(1)
    assert float(nearest.max()) < 1e-4


def test_generation_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    generate(ranged(lambda x, s: x / (1 + s**2), (3,)), [0], n_steps=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_generation_passes_the_condition():
    model = ranged(lambda x, s, cond: cond.expand_as(x), (3,))
    x = generate(model, [0, 1], n_steps=3, cond=torch.tensor([[1.0], [2.0]]))
    torch.testing.assert_close(x, torch.tensor([[1.0] * 3, [2.0] * 3]))


def test_generation_refuses():
    with pytest.raises(InputError, match="knows no shape or no largest sigma"):
        generate(gaussian()[0], [0])
    with pytest.raises(InputError, match="seeds is empty"):
        generate(ranged(lambda x, s: x, (3,)), [])
