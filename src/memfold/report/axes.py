"""Axes of the figures: from values to places, and the ticks between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A monotone map from values in [low, high] to places in [start, end].

    Attributes:
        warp: the scale: identity, the logarithm, or the signed square root.
        ticks: the values to be marked, all within [low, high].
    """

    low: float
    high: float
    start: float
    end: float
    warp: Callable[[float], float]
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high = self.warp(self.low), self.warp(self.high)
        share = (self.warp(value) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def clamp(self, value: float) -> float:
        """The place of a value, or of the nearer end where it lies outside."""
        return self(min(max(value, self.low), self.high))


def linear(values: Iterable[float], start: float, end: float, *, count: int = 5) -> Axis:
    """An even axis over the values and 0."""
    low, high = _extent(values)
    step = _step((high - low) / count)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    ticks = tuple(low + i * step for i in range(round((high - low) / step) + 1))
    return Axis(low, high, start, end, float, ticks)


def root(values: Iterable[float], start: float, end: float, *, gap: float = 34.0) -> Axis:
    """A square-root axis over the values and 0: room for the small, all of the large.

    Args:
        values: what must fit; negative ones get the mirrored scale.
        start: place of the lower end.
        end: place of the upper end.
        gap: the least distance between two ticks.
    """
    low, high = _extent(values)
    low, high = low * 1.08, high * 1.08
    empty = Axis(low, high, start, end, _signed_root, ())
    wanted = sorted(_round_numbers(low, high), key=lambda tick: (tick != 0, -abs(tick)))
    return Axis(low, high, start, end, _signed_root, _spaced(wanted, empty, gap))


def log(values: Iterable[float], start: float, end: float, *, gap: float = 40.0) -> Axis:
    """A logarithmic axis over positive values, ticks at 1, 2 and 5 times powers of ten."""
    positive = [value for value in values if math.isfinite(value) and value > 0] or [0.1, 1.0]
    low, high = min(positive), max(positive)
    if low == high:
        low, high = low / 2, high * 2
    low, high = low / 1.06, high * 1.06
    empty = Axis(low, high, start, end, math.log10, ())
    return Axis(low, high, start, end, math.log10, _spaced(_decades(low, high), empty, gap))


def label(value: float) -> str:
    """A tick's text."""
    return f"{value:,.10g}".replace("-", "−")


def _extent(values: Iterable[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    return (low, high) if high > low else (0.0, 1.0)


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)


def _signed_root(value: float) -> float:
    return math.copysign(math.sqrt(abs(value)), value)


def _decades(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{m}e{power}") for power in powers for m in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _round_numbers(low: float, high: float) -> list[float]:
    largest = max(-low, high)
    decades = _decades(largest / 60, largest)
    return [0.0, *(t for t in decades if t <= high), *(-t for t in decades if -t >= low)]


def _spaced(ticks: list[float], axis: Axis, gap: float) -> tuple[float, ...]:
    kept: list[float] = []
    for tick in ticks:
        if all(abs(axis(tick) - axis(other)) >= gap for other in kept):
            kept.append(tick)
    return tuple(sorted(kept))
