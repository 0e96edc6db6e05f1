"""Every scheduler class of the installed diffusers: D as the scheduler has it, or a refusal."""

import copy
import inspect
import itertools
import warnings

import diffusers
import pytest
import torch

from memfold.denoisers.adapters.schedulers import read_schedule
from memfold.types import InputError

STEPS = 28  # 999 / 27 = 37: linearly spaced times fall on rows of the table
CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "timestep_type": ("discrete", "continuous"),
    "interpolation_type": ("linear", "log_linear"),
    "rescale_betas_zero_snr": (False, True),
    "final_sigmas_type": ("zero", "sigma_min"),
    "algorithm_type": ("dpmsolver++", "dpmsolver", "noise_prediction", "data_prediction"),
    "predict_x0": (True, False),
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_beta_sigmas": (False, True),
    "use_lu_lambdas": (False, True),
    "use_flow_sigmas": (False, True),
    "invert_sigmas": (False, True),
    "stochastic_sampling": (False, True),
    "use_dynamic_shifting": (False, True),
    "shift": (1.0, 3.0),
    "flow_shift": (1.0, 3.0),
    "shift_terminal": (None, 0.1),
    "snr_shift_scale": (3.0, 1.0),
    "steps_offset": (0, 1),
    "set_alpha_to_one": (False, True),
    "num_train_timesteps": (1000, 500),
}
PAIRED = ("rescale_betas_zero_snr", "timestep_type", "interpolation_type", "use_flow_sigmas")
PREDICTIONS = ("epsilon", "sample", "original_sample", "v_prediction", "flow_prediction")
MATRIX = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4) + torch.eye(4).double()
POINT = torch.tensor([[0.3, -1.2, 0.7, 2.0]], dtype=torch.float64)


def scheduler_classes():
    found = {}
    for name in dir(diffusers):
        if name.endswith("Scheduler"):
            kind = getattr(diffusers, name)
            if isinstance(kind, type) and not kind.__module__.startswith("diffusers.utils"):
                found[name] = kind  # what stands in for a missing package is left out
    return found


CLASSES = scheduler_classes()


def settings(kind):
    """One setting at a time, and some two at a time, under every type of prediction."""
    known = inspect.signature(kind.__init__).parameters
    singles = [
        {key: value}
        for key, values in CHOICES.items()
        if key in known
        for value in values
        if value != known[key].default
    ]
    pairs = [
        {**one, **two}
        for one, two in itertools.combinations(singles, 2)
        if not set(one) & set(two) and any(key in PAIRED for key in {**one, **two})
    ]
    quiet = {"clip_sample": False, "thresholding": False, "skip_prk_steps": True}
    quiet = {key: value for key, value in quiet.items() if key in known}
    if kind.__name__.startswith("KDPM2"):  # its constructor takes a time for each of these
        quiet |= {"num_train_timesteps": 100}
    predictions = PREDICTIONS if "prediction_type" in known else (None,)
    for prediction, chosen in itertools.product(predictions, [{}, *singles, *pairs]):
        kept = {} if prediction is None else {"prediction_type": prediction}
        yield quiet | kept | chosen


def made(kind, options):
    """A scheduler about to sample; None where it does not accept the settings."""
    try:
        scheduler = kind(**options)
        more = {"mu": 0.5} if options.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(STEPS, **more)
        if kind.__name__ == "ScoreSdeVeScheduler":
            scheduler.set_sigmas(STEPS)
    except (ValueError, NotImplementedError, TypeError, AttributeError, AssertionError, KeyError):
        return None
    return scheduler


def mixed(scheduler, i, t):
    """Factors of the clean point and of the noise at a time, by the scheduler's own mixing."""
    if type(scheduler).__name__ == "ScoreSdeVeScheduler":  # its time is sigma
        return 1.0, float(t)
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # of times that were rounded, too
        return tuple(map(float, scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[i].double())))
    if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
        return None
    one, zero, time = torch.ones(1, 4).double(), torch.zeros(1, 4).double(), t.reshape(1)
    if hasattr(scheduler, "scale_noise"):
        pair = [scheduler.scale_noise(a, time, b) for a, b in ((one, zero), (zero, one))]
    else:
        try:
            pair = [scheduler.add_noise(a, b, time) for a, b in ((one, zero), (zero, one))]
        except NotImplementedError:  # RePaint, whose mixing stands in its step
            a = scheduler.alphas_cumprod[t].double()
            return float(a.sqrt()), float((1 - a).sqrt())
    return tuple(float(value[0, 0]) for value in pair)


def clean(scheduler, out, t, sample, alpha, s):
    """What the scheduler takes for the clean point, by its own conversion or step."""
    name, config = type(scheduler).__name__, scheduler.config
    if name == "ScoreSdeVeScheduler":
        return sample + s**2 * out  # the definition of a score
    if hasattr(scheduler, "convert_model_output"):
        scheduler._init_step_index(t)
        value = scheduler.convert_model_output(out, sample=sample)
        noise = config.get("algorithm_type") in ("dpmsolver", "noise_prediction", "deis")
        noise |= config.get("predict_x0") is False
        return (sample - s * value) / alpha if noise else value
    if name == "RePaintScheduler":
        mask = torch.ones_like(sample)
        return scheduler.step(out, t, sample, mask, mask).pred_original_sample
    if name == "CogVideoXDPMScheduler":
        return scheduler.step(out, None, t, None, sample, return_dict=False)[1]
    step = scheduler.step(out, t, sample)
    if name == "LCMScheduler":
        skip, keep = scheduler.get_scalings_for_boundary_condition_discrete(t)
        return (step.denoised - skip * sample) / keep
    if getattr(step, "pred_original_sample", None) is not None:
        return step.pred_original_sample
    following = scheduler.timesteps[scheduler.timesteps < t]
    if name in ("PNDMScheduler", "TCDScheduler"):
        row = int(t) - config.num_train_timesteps // STEPS
        if name == "TCDScheduler":  # floor((1 - eta) t')
            row = int(0.7 * int(following[0])) if len(following) else 0
        a = scheduler.alphas_cumprod[row] if row >= 0 else scheduler.final_alpha_cumprod
        moved = getattr(step, "pred_noised_sample", step.prev_sample)
        b, c = float(a) ** 0.5, (1 - float(a)) ** 0.5
        return (moved - c / s * sample) / (b - c / s * alpha)
    sigmas = scheduler.sigmas
    i = scheduler.step_index - 1
    velocity = (step.prev_sample - sample) / float(sigmas[i + 1] - sigmas[i])
    return sample - float(sigmas[i]) * velocity


def places(scheduler):
    """Which of the scheduler's times are looked at: the first of a run, and the last."""
    name, last = type(scheduler).__name__, len(scheduler.timesteps) - 1
    if scheduler.config.get("stochastic_sampling") or name == "FlowMatchLCMScheduler":
        return [last]  # before it they add noise
    if name.startswith(("PNDM", "KDPM2")):  # times of second order between, and steps that follow
        return [0]
    return [0, last // 2 // 2 * 2, last]


def known(kind):
    """Tell whether memfold reads the class as it comes."""
    try:
        read_schedule(kind())
    except InputError:
        return False
    return True


def compare(kind, options):
    """Compare D at some of the scheduler's times; count them. Raises what memfold refuses."""
    fresh = scheduler = made(kind, options)
    if scheduler is None:
        return 0
    try:
        schedule, denoiser = read_schedule(scheduler)
    except InputError as error:
        message = str(error)
        named = [key for key in options if f"{key} = {options[key]!r}" in message]
        assert named if known(kind) else kind.__name__ in message, (options, message)
        return 0
    count = 0
    for i in places(scheduler):
        scheduler = copy.deepcopy(fresh)
        t = scheduler.sigmas[i] if "Sde" in kind.__name__ else scheduler.timesteps[i]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(i)
        alpha, s = mixed(scheduler, i, t)
        if not alpha > 2**-11:  # no signal, or 2^-24 of its square in its place
            continue
        if s > 4000:
            continue
        sample = POINT * (alpha**2 + s**2) ** 0.5
        scale = getattr(scheduler, "scale_model_input", lambda z, _: z)
        seen = scale(sample, t)
        try:
            truth = clean(scheduler, seen @ MATRIX + 0.5, t, sample, alpha, s)
        except (ValueError, NotImplementedError):  # a type of prediction that it does not have
            return 0
        asked = []

        def network(z, time, cond, asked=asked):
            asked.append((z, float(time)))
            return z @ MATRIX + 0.5

        x, sigma = sample / alpha, s / alpha
        sigma = min(max(sigma, schedule.sigma_min), schedule.sigma_max)  # float32 at the ends
        assert abs(sigma * alpha / s - 1) < 1e-4, (options, i, sigma, s / alpha)
        got = denoiser(network, schedule)(x, sigma)
        ((z, time),) = asked
        error = float((got - truth).norm() / x.norm())
        assert error < 1e-4, (options, i, error)  # their factors are float32
        assert float((z - seen).norm() / z.norm()) < 1e-4, (options, i)
        rounding = 1.001 if float(t) == int(t) else 0.02
        assert abs(time - float(t)) <= rounding, (options, i, time, float(t))
        count += 1
    return count


@pytest.mark.parametrize("name", CLASSES)
def test_d_is_the_schedulers_own_or_the_setting_is_named(name):
    kind = CLASSES[name]
    required = [
        p
        for p in list(inspect.signature(kind.__init__).parameters.values())[1:]
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if required:  # not made without more: its class alone says that it is unknown
        with pytest.raises(InputError, match=name):
            read_schedule(kind.__new__(kind))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judged = sum(compare(kind, options) for options in settings(kind))
        assert (judged > 0) == known(kind)
