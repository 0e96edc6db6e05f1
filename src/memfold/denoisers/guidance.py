"""Classifier-free guidance, once: what is made of the model under a condition and without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from memfold.tensors import expand
from memfold.types import InputError

from .base import Denoiser, Wrapper

Mix = Callable[[Tensor, Tensor, float], Tensor]
_ROUNDINGS = 64  # roundings of the numbers' type that a rebuilt prediction may be off by
_APART = 4.0  # a rule is told from the next one if that is so many times further away


@dataclass(frozen=True)
class Rule:
    """What a pipeline makes of its network's predictions under the prompt and without one.

    Attributes:
        name: its formula, of c (under the prompt), u (without) and w (the guidance scale).
        mix: from c, u and w to what is stepped with, in the network's predictions.
        extra: where the rule is u + (w + extra) (c - u), which then holds for D as well; None for
            a rule that is no such line.
        off: the w at which the prompt alone is left.
        predictor: the Denoiser whose network answers a prediction, to carry `mix` over to D.
        refusal: why nothing can be guided by it, for an InputError; "" where it can.
    """

    name: str
    mix: Mix
    extra: float | None = None
    off: float = 1.0
    predictor: Callable[[Tensor], Denoiser] | None = None
    refusal: str = ""

    def check(self) -> None:
        """Refuse a rule that is not known.

        Raises:
            InputError: it is not.
        """
        if self.refusal:
            raise InputError(self.refusal)

    def denoised(self, c: Tensor, u: Tensor, w: float, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Apply the rule to D_c and D_0.

        Args:
            c: D_c(x), shape (b, *d).
            u: D_0(x), shape (b, *d).
            w: the guidance scale.
            x: the points, in VE coordinates, shape (b, *d).
            sigma: noise standard deviation, one number or one a point.

        Returns:
            D_w(x), shape (b, *d).

        Raises:
            InputError: the rule is not known.
        """
        self.check()
        if self.extra is not None or self.predictor is None:
            return u + (w + (self.extra or 0.0)) * (c - u)
        levels, zero = expand(sigma, x), torch.zeros_like(x)
        none = self.predictor(zero).denoise(x, levels, None)
        unit = self.predictor(zero + 1).denoise(zero, levels, None)
        return none + unit * self.mix((c - none) / unit, (u - none) / unit, w)


def _line(c: Tensor, u: Tensor, w: float) -> Tensor:
    return u + w * (c - u)


def _renormed(c: Tensor, u: Tensor, w: float) -> Tensor:
    made = _line(c, u, w)
    return made * (c.norm(dim=-1, keepdim=True) / made.norm(dim=-1, keepdim=True))


def _three(c: Tensor, u: Tensor, w: float) -> Tensor:
    return torch.cat([_line(c, u, w)[:, :3], c[:, 3:]], 1)


CFG = Rule("u + w (c - u)", _line, extra=0.0)
_PLAIN_RULES = (
    CFG,
    Rule("c + w (c - u)", lambda c, u, w: c + w * (c - u), extra=1.0, off=0.0),
    Rule("u + w (c - u), at the norm that c has along the last axis", _renormed),
    Rule("u + w (c - u) in the first three channels, c in the others", _three),
)


def rescaled(share: float) -> Rule:
    """Return guidance whose standard deviation is brought to that of c, by a share.

    Lin et al. (2024), Section 3.4: diffusers' `guidance_rescale`.
    """

    def mix(c: Tensor, u: Tensor, w: float) -> Tensor:
        made = _line(c, u, w)
        axes = list(range(1, c.ndim))
        ratio = c.std(dim=axes, keepdim=True) / made.std(dim=axes, keepdim=True)
        return share * (made * ratio) + (1 - share) * made

    return Rule(f"u + w (c - u), by {share:g} at the standard deviation of c", mix)


def capped(most: float) -> Rule:
    """Return c + w (c - u) whose norm is at most `most` times that of c (Z-Image)."""

    def mix(c: Tensor, u: Tensor, w: float) -> Tensor:
        made = c + w * (c - u)
        norms = [t.flatten(1).norm(dim=1) for t in (c, made)]
        share = (most * norms[0] / norms[1]).clamp_max(1)
        return made * expand(share, made)

    return Rule(f"c + w (c - u), at most {most:g} times as long as c", mix, off=0.0)


def rules(*, rescale: float = 0.0, cap: float = 0.0) -> list[Rule]:
    """Return the rules that memfold knows.

    Args:
        rescale: the run's `guidance_rescale`.
        cap: the run's `cfg_normalization`, where that is a number.

    Returns:
        The rules.
    """
    more = [rescaled(rescale)] if rescale else []
    return [*_PLAIN_RULES, *more, *([capped(cap)] if cap else [])]


def read_rule(c: Tensor, u: Tensor, made: Tensor, w: float, known: Sequence[Rule]) -> Rule | None:
    """Find the rule that makes `made` of c and u.

    Args:
        c: the network's prediction under the prompt, shape (b, *d).
        u: its prediction without one.
        made: what the scheduler was given.
        w: the guidance scale of the run.
        known: rules to choose from.

    Returns:
        The rule; None where none fits, or more than one does.
    """
    pull = float((c.float() - u.float()).abs().max())
    if made.shape != c.shape or not pull > 0:
        return None
    largest = max(float(t.float().abs().max()) for t in (made, c, u))
    coarse = max((c.dtype, made.dtype), key=lambda d: torch.finfo(d).eps)
    room = _ROUNDINGS * torch.finfo(coarse).eps * max(largest, w * pull)
    exact = made.to(torch.promote_types(made.dtype, torch.float32))
    wide = [t.to(exact.dtype) for t in (c, u)]
    found: list[tuple[float, Rule, Tensor]] = []
    for rule in known:
        mixed = rule.mix(wide[0], wide[1], w)
        rounded = rule.mix(c, u, w).to(exact)  # as a pipeline in half precision computes it
        off = min(float((m - exact).abs().max()) for m in (mixed, rounded))
        if not any(torch.equal(mixed, other) for _, _, other in found):  # the same rule here
            found.append((off, rule, mixed))
    best, *others = sorted(found, key=lambda entry: entry[0])
    floor = max(_APART * best[0], room / _ROUNDINGS) if best[0] else 0.0  # 0: the very numbers
    if best[0] > room or any(other[0] <= floor for other in others):
        return None
    return best[1]


def unknown(refusal: str) -> Rule:
    """Return the rule that refuses: a pipeline's own, which could not be read."""
    return Rule("unknown", _line, refusal=refusal)


def guide(
    model: Denoiser, c: Tensor, u: Tensor, w: float, x: Tensor, sigma: float | Tensor
) -> Tensor:
    """Return D_w of D_c and D_0 by the model's own rule: u + w (c - u), unless it says otherwise.

    Args:
        model: the Denoiser, whose `rule` holds.
        c: D_c(x), shape (b, *d).
        u: D_0(x), shape (b, *d).
        w: the guidance scale.
        x: the points, in VE coordinates, shape (b, *d).
        sigma: noise standard deviation, one number or one a point.

    Returns:
        D_w(x), shape (b, *d).
    """
    rule: Rule = getattr(model, "rule", None) or CFG
    return rule.denoised(c, u, w, x, sigma)


def with_rule(model: Denoiser, rule: Rule) -> Denoiser:
    """Return the same Denoiser, guided by another rule."""
    if model.rule is rule:
        return model
    changed = copy(model)
    changed.rule = rule
    return changed


def bound(rule: Rule, predictor: Callable[[Tensor], Denoiser]) -> Rule:
    """Return a rule that knows how the predictions of its network become D."""
    return replace(rule, predictor=predictor)


class Guided(Wrapper):
    """Classifier-free guidance (Ho and Salimans 2022): D_w = D_0 + w (D_c - D_0).

    A model that was made for another rule (`model.rule`) is guided by that one. Both halves depend
    on x, so the Jacobian of the whole holds both. Under the usual rule w = 0 is the model without
    the condition, w = 1 the one with it.

    Args:
        inner: the model; called twice at each point.
        scale: the guidance scale w.
        uncond: the condition that stands for none (null class, empty prompt).
    """

    def __init__(self, inner: Denoiser, scale: float, *, uncond: Any = None) -> None:
        super().__init__(inner)
        self.scale = scale
        self.uncond = uncond

    def denoise(self, x: Tensor, sigma: Tensor, cond: Any) -> Tensor:
        """Return D_w."""
        without = self.inner.denoise(x, sigma, self.uncond)
        return guide(
            self.inner, self.inner.denoise(x, sigma, cond), without, self.scale, x, sigma.flatten()
        )
