"""What a mitigation is: a change of a condition, of words, of arguments or of steps; no edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from memfold.denoisers.adapters._calls import Condition
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.guidance import CFG
from memfold.sampling.arguments import guidance_of, rule_of
from memfold.sampling.steering import Change, conditioned, steered
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.sampling.view import StepView


@runtime_checkable
class Weighted(Protocol):
    """Words of a prompt in their order, each with its weight: an Attribution."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words."""

    @property
    def weights(self) -> Tensor:
        """One weight a word."""


Weights = Mapping[str, float] | Sequence[tuple[str, float]] | Weighted


@dataclass(frozen=True)
class Mitigation:
    """How a prompt is drawn so that it does not repeat what the model knows by heart.

    Attributes:
        model: the pipeline.
        method: name of the method.
        original: the prompt as it was given.
        prompt: the prompt that is drawn; another one if it was rewritten.
        description: what was done, in a sentence for reports.
        cond: stands for the prompt's own condition; None for its own.
        steering: makes a fresh change of the steps for each run; None for none.
        options: arguments of the pipeline.
        start: makes the initial latents for seeds, as the pipeline's `latents`; None for its own.
    """

    model: TextToImage
    method: str
    original: str
    prompt: str
    description: str
    cond: Condition | None = None
    steering: Callable[[], Change] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    start: Callable[[Sequence[int]], Tensor] | None = None

    def enter(self, stack: ExitStack) -> None:
        """Put the change in force until the stack is closed; for a run by the caller's own hand.

        A Monitor that was entered before still sees what the network itself says.
        """
        if self.cond is not None:
            stack.enter_context(conditioned(self.model, self.cond))
        if self.steering is not None:
            stack.enter_context(steered(self.model, self.steering()))

    def generate(self, seeds: Sequence[int]) -> Generation:
        """Draw images under the mitigation, watched; the same seeds as without it compare.

        Args:
            seeds: one an image.

        Returns:
            The generation.
        """
        start: dict[str, Any] = {} if self.start is None else {"latents": self.start(seeds)}
        return generate_watched(
            self.model, self.prompt, seeds, cond=self.cond, attention=False,
            change=None if self.steering is None else self.steering(), **self.options, **start,
        )  # fmt: skip


def guidance(model: TextToImage, options: Mapping[str, Any]) -> float:
    """Return the guidance of a run: what was asked for, or what the pipeline takes by itself."""
    found = options.get("guidance_scale")  # as `generate_watched` takes it, whatever it is called
    found = guidance_of(model, options) if found is None else float(found)
    return 1.0 if found is None else found


def guided(model: TextToImage, view: StepView, options: Mapping[str, Any]) -> Tensor:
    """Return D_w of a step by the pipeline's own rule, or D_c where the run has no guidance."""
    if view.unconditional is None:
        return view.conditional
    rule = rule_of(model, options) or CFG
    w = guidance(model, options)
    return rule.denoised(view.conditional, view.unconditional, w, view.x, view.sigma)
