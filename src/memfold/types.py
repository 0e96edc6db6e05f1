"""The nouns that every room of the library shares: plain, frozen data."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


class InputError(ValueError):
    """What the user passed cannot be used; the message names the value and the remedy.

    The command line prints it as one line and exits with code 2.
    """


@dataclass(frozen=True)
class Estimate:
    """A local intrinsic dimension for each point of a batch.

    Attributes:
        lid: LID in degrees of freedom, shape (b,).
        stderr: its standard error over noises and probes, shape (b,); 0 where nothing is random.
        scale: the noise standard deviation sigma at which it was measured (NaN where none).
        method: what was computed, in words a report can print.
    """

    lid: Float[Tensor, " b"]
    stderr: Float[Tensor, " b"]
    scale: float
    method: str


@dataclass(frozen=True)
class Curve:
    """LID over a grid of scales.

    Attributes:
        sigmas: noise standard deviations, ascending, shape (s,).
        lid: LID in degrees of freedom, shape (b, s).
        stderr: standard errors, shape (b, s).
        method: what was computed.
    """

    sigmas: Float[Tensor, " s"]
    lid: Float[Tensor, "b s"]
    stderr: Float[Tensor, "b s"]
    method: str


@dataclass(frozen=True)
class Samples:
    """Points whose true local intrinsic dimension travels with them.

    Attributes:
        x: points, shape (b, d).
        lid: the true LID of each point, shape (b,).
        component: index of the manifold that each point was drawn from, shape (b,).
    """

    x: Float[Tensor, "b d"]
    lid: Float[Tensor, " b"]
    component: Int[Tensor, " b"]
