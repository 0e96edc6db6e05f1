"""From a diffusers scheduler to the schedule and the parameterisation of its network."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from memfold.denoisers.parameterizations import (
    EpsDenoiser,
    FlowDenoiser,
    NetworkDenoiser,
    ScoreDenoiser,
    VDenoiser,
    X0Denoiser,
)
from memfold.denoisers.schedules import (
    Schedule,
    edm_schedule,
    flow_schedule,
    ve_schedule,
    vp_schedule,
)
from memfold.types import InputError

_PREDICTIONS: dict[str, type[NetworkDenoiser]] = {
    "epsilon": EpsDenoiser,
    "v_prediction": VDenoiser,
    "sample": X0Denoiser,
}
_TABLE = {  # the network's time is a row of alphas_cumprod
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "UniPCMultistepScheduler",
}
_FLOW = {f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM")}
_VE = {"ScoreSdeVeScheduler"}
_RESPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_MAX_SHIFT = 1.15  # of FLUX, which diffusers' pipelines take where the scheduler names none
_FINE = 16  # rows of a flow's table between two steps of training: its times are continuous


def read_schedule(scheduler: Any) -> tuple[Schedule, type[NetworkDenoiser]]:
    """Read the table and the parameterisation from a diffusers scheduler.

    What a scheduler does about sampling alone (spacing, Karras sigmas, order, clipping) is nothing
    to the network and is not read. A class, or a setting, in which the network's time or
    prediction means something that is not known here is refused.

    Args:
        scheduler: one with `alphas_cumprod`, a flow-matching one, or the score SDE's (VE).

    Returns:
        The schedule and the class of Denoiser that fits the prediction type.

    Raises:
        InputError: an unknown scheduler, setting or prediction type, by name.
    """
    name = type(scheduler).__name__
    family = {base.__name__ for base in type(scheduler).__mro__}
    if not family & (_TABLE | _FLOW | _VE):
        raise InputError(
            f"{name} is a scheduler that memfold does not know: what its times and its network's "
            "prediction mean would be a guess; take one that it knows, of the same training "
            f"(known: {', '.join(sorted(_TABLE | _FLOW | _VE))})"
        )
    config = scheduler.config
    if family & _VE:
        return ve_schedule(config.sigma_min, config.sigma_max), ScoreDenoiser
    prediction = config.get("prediction_type", "epsilon")
    if family & _FLOW or prediction == "flow_prediction":
        return _flow(name, config), FlowDenoiser
    if config.get("use_flow_sigmas"):
        _refuse(name, "use_flow_sigmas", True, f"prediction_type = {prediction!r}")
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise InputError(f"{name} has no table of alphas_cumprod: the scheduler is damaged")
    if prediction not in _PREDICTIONS:
        known = ", ".join([*_PREDICTIONS, "flow_prediction"])
        raise InputError(f"prediction_type = {prediction!r} is unknown; known are {known}")
    schedule = vp_schedule(_without_stand_in(table, config))
    if config.get("timestep_type", "discrete") != "discrete":
        schedule = _continuous(name, config, schedule)
    elif config.get("interpolation_type", "linear") != "linear" and not _respaced(config):
        _refuse(name, "interpolation_type", config.interpolation_type, "these timesteps")
    return schedule, _PREDICTIONS[prediction]


def _flow(name: str, config: Any) -> Schedule:
    """Make the table of a flow: the network's time is s times the steps of training."""
    if config.get("invert_sigmas"):
        _refuse(name, "invert_sigmas", True, "flow matching")
    if config.get("use_flow_sigmas") is False:
        _refuse(name, "use_flow_sigmas", False, "prediction_type = 'flow_prediction'")
    # in the multistep schedulers the other spacings stay in terms of alphas_cumprod; UniPC's
    # Karras sigmas are brought to s
    spaced = _respaced(config) if "use_flow_sigmas" in config else None
    if spaced and not (name == "UniPCMultistepScheduler" and spaced == "use_karras_sigmas"):
        _refuse(name, spaced, True, "use_flow_sigmas = True")
    n = config.num_train_timesteps
    s = torch.arange(_FINE, _FINE * (n - 1) + 1, dtype=torch.float64) / (_FINE * n)
    shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
    if config.get("use_dynamic_shifting"):  # by the size of the image: from none to the largest
        most = float(config.get("max_shift") or _MAX_SHIFT)
        most = most if config.get("time_shift_type") == "linear" else math.exp(most)
        shifted = most * s / (1 + (most - 1) * s)
        s = torch.cat([s, shifted[shifted > s[-1]]])
    else:
        s = shift * s / (1 + (shift - 1) * s)
    return flow_schedule(s, s * n)


def _without_stand_in(table: Tensor, config: Any) -> Tensor:
    """Take out the number that some samplers put for the last row, where no signal is left.

    After `rescale_betas_zero_snr` that row is 0; a small number in its place may exceed the row
    before, which would then have the larger sigma of the two.
    """
    if config.get("rescale_betas_zero_snr") and len(table) > 1 and table[-1] >= table[-2]:
        return torch.cat([table[:-1], torch.zeros_like(table[-1:])])
    return table


def _continuous(name: str, config: Any, table: Schedule) -> Schedule:
    """Make the schedule of a network whose time is ln(sigma) / 4, as diffusers has it for v."""
    kind = config.timestep_type
    if kind != "continuous" or config.prediction_type != "v_prediction":
        at = f"prediction_type = {config.prediction_type!r}"
        _refuse(name, "timestep_type", kind, at)
    ends = config.get("sigma_min"), config.get("sigma_max")
    low, high = (table.sigma_min, table.sigma_max) if None in ends else map(float, ends)
    return edm_schedule(low, high)


def _respaced(config: Any) -> str | None:
    """Return the setting that chooses sigmas of its own, each with the time of its sigma."""
    return next((key for key in _RESPACED if config.get(key)), None)


def _refuse(name: str, setting: str, value: Any, beside: str) -> NoReturn:
    raise InputError(
        f"{name}: {setting} = {value!r} with {beside} gives times that do not belong to the noise "
        "that the network was trained with, or that memfold cannot tell; set it to what the model "
        "was trained with"
    )
