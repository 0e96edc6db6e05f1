"""Whether a floating-point type resolves noise of size sigma at the points that it is added to."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.base import HALF
from memfold.types import InputError

_WARN, _REFUSE = 0.5, 2.0  # eps |x| / sigma: 0.02 and 0.4 degrees of freedom
_COARSE, _LOST = 0.1, 1.0  # standard deviation of the network's rounding, over sigma


class ResolutionWarning(UserWarning):
    """Rounding adds dimensions that can be seen: sigma is close to what the numbers resolve."""


def check_resolution(x: Float[Tensor, "b *d"], sigma: float, network: torch.dtype) -> None:
    """Compare sigma with the rounding of the points, and with that of the network's input.

    A number is rounded by up to eps |x_i| / 2, eps |x_i| / 21^(1/2) in root mean square over
    mantissas. What is rounded in D is noise that no model removes: eps^2 |x|^2 / (21 sigma^2)
    degrees of freedom for each rounding, |x| the norm of the whole point, and a sum has two or
    three. A network in half precision is handed a rounded point, and D belongs to that (see
    `Denoiser.seen`); but where its rounding, eps rms(x) / 12^(1/2) a coordinate, is as large as the
    noise, the point is none at this noise level.

    Args:
        x: the clean points, shape (b, *d).
        sigma: noise standard deviation.
        network: what the network computes in.

    Raises:
        InputError: sigma below eps |x| / 2, or below the rounding of the network's input; it says
            the smallest sigma that is allowed.
    """
    size = float(x.detach().flatten(1).norm(dim=1).max())
    eps = torch.finfo(x.dtype).eps
    ratio = eps * size / sigma
    if ratio > _REFUSE:
        remedy = f"take sigma >= {eps * size / _REFUSE:.2g}"
        if x.dtype == torch.float32:
            remedy += ", center the points, or pass x.double() if the model computes in it"
        raise InputError(
            f"sigma = {sigma:.4g} is below what {_name(x.dtype)} resolves at |x| = {size:.4g}; "
            + remedy
        )
    if ratio > _WARN:
        _warn(
            f"sigma = {sigma:.4g} is close to what {_name(x.dtype)} resolves at |x| = {size:.4g}: "
            f"rounding adds about {ratio**2 / 10:.2g} dimensions; take sigma >= "
            f"{eps * size / _WARN:.2g}"
        )
    if network not in HALF:
        return
    rounding = torch.finfo(network).eps * size / x[0].numel() ** 0.5 / 12**0.5
    if rounding > _LOST * sigma:
        raise InputError(
            f"sigma = {sigma:.4g} drowns in the rounding of the network's input to "
            f"{_name(network)}, {rounding:.2g} a coordinate; take sigma >= {rounding / _LOST:.2g}, "
            "or compute in float32"
        )
    if rounding > _COARSE * sigma:
        _warn(
            f"sigma = {sigma:.4g} is close to the rounding of the network's input to "
            f"{_name(network)}, {rounding:.2g} a coordinate, which adds to the noise; take sigma "
            f">= {rounding / _COARSE:.2g}, or compute in float32"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _warn(message: str) -> None:
    warnings.warn(message, ResolutionWarning, stacklevel=5)
