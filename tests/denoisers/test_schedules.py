"""Schedules against the tables of diffusers' own schedulers."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
)

from memfold.denoisers.adapters.diffusers import read_schedule
from memfold.denoisers.parameterizations import (
    EpsDenoiser,
    FlowDenoiser,
    ScoreDenoiser,
    VDenoiser,
    X0Denoiser,
)
from memfold.denoisers.schedules import Schedule, edm_schedule, ve_schedule, vp_schedule
from memfold.types import InputError

VP = {
    "linear": DDPMScheduler(beta_schedule="linear"),
    "scaled_linear": DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    ),
    "squaredcos": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "ddim": DDIMScheduler(num_train_timesteps=500),
}


@pytest.mark.parametrize("name", VP)
def test_table_sigmas_give_their_integer_times(name):
    scheduler = VP[name]
    schedule, _ = read_schedule(scheduler)
    a = scheduler.alphas_cumprod.double()
    sigmas = ((1 - a) / a).sqrt()
    times = torch.arange(len(a), dtype=torch.float64)
    torch.testing.assert_close(schedule.t(sigmas), times, rtol=0, atol=1e-9)
    assert schedule.sigma_min == pytest.approx(float(sigmas[0]))
    assert schedule.sigma_max == pytest.approx(float(sigmas[-1]))


@pytest.mark.parametrize("name", VP)
def test_table_sigmas_in_single_precision_give_nearly_integer_times(name):
    schedule, _ = read_schedule(VP[name])
    t = schedule.t(schedule.sigmas.float())
    # a rounding of 6e-8 in log sigma, over the smallest step of the table in log sigma
    step = float(schedule.sigmas.log().diff().min())
    error = (t.double() - schedule.times).abs()
    assert float(error.max()) < 1.2e-7 / step + 1000 * 6e-8


def test_network_and_scheduler_see_the_same_noise():
    # add_noise of the scheduler at t is a x at sigma_t
    scheduler = VP["scaled_linear"]
    schedule, _ = read_schedule(scheduler)
    x0, n = torch.full((1, 3), 2.0), torch.tensor([[1.0, -1.0, 0.5]])
    for t in (0, 123, 999):
        sigma = float(schedule.sigmas[t])
        z = (x0 + sigma * n) / (1 + sigma**2) ** 0.5
        torch.testing.assert_close(scheduler.add_noise(x0, n, torch.tensor([t])), z)


@pytest.mark.parametrize("name", VP)
def test_times_between_are_linear_in_log_sigma(name):
    schedule, _ = read_schedule(VP[name])
    low, high = schedule.sigmas[:-1], schedule.sigmas[1:]
    for share in (0.25, 0.5):
        between = low ** (1 - share) * high**share
        torch.testing.assert_close(schedule.t(between), schedule.times[:-1] + share)


def test_stable_diffusion_begins_where_it_is_known_to():
    schedule, _ = read_schedule(VP["scaled_linear"])
    assert schedule.sigma_min == pytest.approx(0.0292, abs=5e-5)
    assert schedule.sigma_max == pytest.approx(14.61, abs=5e-3)


def test_zero_terminal_signal_is_left_out():
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert float(scheduler.alphas_cumprod[-1]) == 0
    schedule, _ = read_schedule(scheduler)
    assert len(schedule.sigmas) == 999
    a = scheduler.alphas_cumprod[998].double()
    assert schedule.sigma_max == pytest.approx(float(((1 - a) / a).sqrt()))
    assert float(schedule.t(schedule.sigmas[-1:])) == pytest.approx(998)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule, kind = read_schedule(scheduler)
    s, t = scheduler.sigmas.double().flip(0), scheduler.timesteps.double().flip(0)
    assert float(s[-1]) == 1  # pure noise: no finite sigma
    got = schedule.t((s / (1 - s))[:-1])
    torch.testing.assert_close(got, t[:-1], rtol=1e-5, atol=1e-3)  # their table is float32
    rows = schedule.sigmas[::16]  # the steps of training; fifteen between two of them
    torch.testing.assert_close(rows, (s / (1 - s))[:-1], rtol=1e-3, atol=0)
    assert kind is FlowDenoiser


def test_a_flow_is_read_at_any_time():
    schedule, _ = read_schedule(FlowMatchEulerDiscreteScheduler(shift=2.0))
    t = torch.linspace(2, 998, 5003, dtype=torch.float64)
    s = t / 1000
    torch.testing.assert_close(schedule.sigma(t), s / (1 - s), rtol=1e-3, atol=0)


def test_flow_matching_does_not_depend_on_a_sampling_run():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    before, _ = read_schedule(scheduler)
    scheduler.set_timesteps(7)
    after, _ = read_schedule(scheduler)
    torch.testing.assert_close(after.sigmas, before.sigmas)
    torch.testing.assert_close(after.times, before.times)


def test_flow_of_a_multistep_scheduler():
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    schedule, kind = read_schedule(scheduler)
    same, _ = read_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0))
    torch.testing.assert_close(schedule.sigmas, same.sigmas)
    assert kind is FlowDenoiser


def test_score_sde():
    schedule, kind = read_schedule(ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=1348.0))
    sigma = torch.logspace(-2, 3, 77, dtype=torch.float64)
    # linear interpolation of exp between nodes h apart in log sigma: h^2 / 8
    h = torch.tensor(1348 / 0.01).log() / 2047
    torch.testing.assert_close(schedule.t(sigma), sigma, rtol=float(h**2 / 8), atol=0)
    assert (schedule.sigma_min, schedule.sigma_max) == pytest.approx((0.01, 1348.0))
    assert kind is ScoreDenoiser


def test_edm():
    schedule = edm_schedule(0.002, 80.0)
    sigma = torch.tensor([0.002, 0.3, 80.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.t(sigma), sigma.log() / 4)


@pytest.mark.parametrize(
    ("prediction", "kind"),
    [("epsilon", EpsDenoiser), ("v_prediction", VDenoiser), ("sample", X0Denoiser)],
)
def test_prediction_type(prediction, kind):
    assert read_schedule(DDPMScheduler(prediction_type=prediction))[1] is kind


@pytest.mark.parametrize("name", VP)
def test_sigma_beyond_the_table_is_an_error_and_never_clamped(name):
    schedule, kind = read_schedule(VP[name])
    asked = []

    def network(z, t, cond):
        asked.append(t)
        return z

    model = kind(network, schedule)
    x = torch.zeros(1, 3, dtype=torch.float64)
    for sigma in (schedule.sigma_min * 0.99, schedule.sigma_max * 1.01):
        match = f"choose one from {schedule.sigma_min:.4g} to {schedule.sigma_max:.4g}"
        with pytest.raises(InputError, match=match.replace("+", r"\+")):
            model(x, sigma)
    assert asked == []
    model(x, schedule.sigma_min)
    model(x, schedule.sigma_max)
    assert [float(t) for t in asked] == pytest.approx([0, float(schedule.times[-1])])


@pytest.mark.parametrize("sigmas", [[1.0, 0.5], [0.0, 1.0], [1.0, float("nan")], [1.0]])
def test_damaged_table_is_refused(sigmas):
    table = torch.tensor(sigmas, dtype=torch.float64)
    with pytest.raises(InputError, match="not finite, positive and ascending"):
        Schedule(table, table)


def test_rows_without_signal_or_without_noise_are_left_out():
    schedule = vp_schedule(torch.tensor([1.0, 0.5, 0.1, 0.0]))
    assert schedule.times.tolist() == [1, 2]
    assert schedule.sigmas.tolist() == pytest.approx([1.0, 3.0])


def test_time_carries_no_gradient():
    sigma = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    assert not ve_schedule(0.1, 1.0).t(sigma).requires_grad
