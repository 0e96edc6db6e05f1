"""The two halves of a pipeline's guidance: which is the prompt's, and what is made of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.guidance import Rule, read_rule, rules, unknown
from memfold.types import InputError

from ._calls import Axis, Call, Condition, Record, part, same
from ._runs import Runs

GUIDED = 5.0  # a guidance scale for looking; any above 1 will do
_APART = 4.0  # one half is told from the other if it is so many times nearer


@dataclass(frozen=True)
class Halves:
    """How a pipeline asks its network with and without the prompt.

    Attributes:
        calls: 1 if both halves come in one batch, 2 if in two calls.
        axes: for each leaf of the arguments, which axis is the batch.
        first: the calls of the first guided step.
    """

    calls: int
    axes: tuple[Axis, ...]
    first: tuple[Call, ...]

    def conditions(self, prompt: str) -> list[Condition]:
        """Return the conditions of both halves, in their order."""
        if self.calls == 2:
            return [part(call, self.axes, 0, 1, prompt) for call in self.first]
        return [part(self.first[0], self.axes, i, 2, prompt) for i in range(2)]

    def predictions(self, read: Callable[[Any], Tensor]) -> list[Tensor]:
        """Return what the network answered to both, in their order."""
        if self.calls == 2:
            return [read(call.output) for call in self.first]
        return list(read(self.first[0].output).chunk(2))

    def conditional(
        self, runs: Runs, plain: Call, prompt: str, read: Callable[[Any], Tensor]
    ) -> int:
        """Return which half is the prompt's: the one that equals a run without guidance.

        Its condition decides, and where a condition says nothing, what the network answers.

        Raises:
            InputError: both are as near, or as far.
        """
        alone = part(plain, self.axes, 0, 1, prompt)
        off = [same(half, alone) for half in self.conditions(prompt)]
        if not _apart(off) and plain.output is not None:
            answer = read(plain.output).float()
            off = [float((p.float() - answer).abs().max()) for p in self.predictions(read)]
        if not _apart(off):
            raise InputError(
                f"{runs.name}: both halves of its guidance are as near to a run without it "
                f"({off[0]:.3g} and {off[1]:.3g}), so that memfold cannot tell which is the "
                "prompt's; give a negative_prompt that is not the prompt, or a pipeline whose "
                "network heeds its prompt"
            )
        return off.index(min(off))


def _apart(off: list[float]) -> bool:
    near, far = sorted(off)
    return near < far and near * _APART <= far


def read_halves(runs: Runs, record: Record, axes: tuple[Axis, ...]) -> Halves | None:
    """Read the two halves off a guided run of one image; None where there is one alone.

    Args:
        runs: the pipeline.
        record: of a run with guidance that was stopped at its third call.
        axes: for each leaf of the arguments, which axis is the batch.

    Raises:
        InputError: it asks its network in another number of parts.
    """
    first, calls = record.calls[0], record.seen[0]
    rows = len(first.latent)
    if rows == 1 and calls == 1:
        return None
    if rows * calls != 2:
        raise InputError(
            f"{runs.name} asks its network in {rows * calls} parts for one image; "
            "memfold knows 1 (no guidance) and 2 (classifier-free guidance)"
        )
    given = [c.latent for c in record.calls[:calls]] if calls == 2 else first.latent.chunk(2)
    if not torch.equal(given[0], given[1]):
        raise InputError(
            f"{runs.name} gives its network different latents with and without the prompt; "
            "memfold expects the same"
        )
    return Halves(calls, axes, tuple(record.calls[:calls]))


def rule_of(runs: Runs, c: Tensor, u: Tensor, made: Tensor, given: Mapping[str, Any]) -> Rule:
    """Read the rule of a guided run; one that refuses where it cannot be read.

    Args:
        runs: the pipeline.
        c: the network's prediction under the prompt.
        u: its prediction without one.
        made: what the scheduler was given.
        given: the arguments of the run.
    """
    shares = [runs.argument(name, given) for name in ("guidance_rescale", "cfg_normalization")]
    rescale, cap = (float(s) if isinstance(s, int | float) else 0.0 for s in shares)
    known = rules(rescale=rescale, cap=cap)
    found = read_rule(c, u, made, GUIDED, known)
    if found is not None:
        return found
    same_answer = "answers the same with and without the prompt, which hides the rule"
    other = f"are mixed in a way that none of these is: {'; '.join(rule.name for rule in known)}"
    what = f"network {same_answer}" if torch.equal(c, u) else f"network's two predictions {other}"
    return unknown(
        f"{runs.name}'s {what}. Nothing can be guided as it does; scores of the prompt alone "
        "still work: leave guidance_scale out and take the conditional detectors"
    )
