"""What a detector of memorized prompts is, and what it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation
from memfold.tensors import check_generator
from memfold.types import InputError

SIGMA = 0.3  # scale of the detectors at clean latents, in units of latents of variance 1
PROBES, NOISES = 2, 4
NEEDS = {
    "pixels": "training images",
    "latents": "training images",
    "embedding": "training images and an embedding",
}
LOSS_NOISES = 8  # a forward pass each


@runtime_checkable
class Function(Protocol):
    """The one signature: a generation of a prompt in, one score an image out."""

    def __call__(
        self, generation: Generation, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, " b"]:
        """Score each image; large where memorization is likely."""


@dataclass(frozen=True)
class Detector:
    """One entry of the registry.

    Attributes:
        name: what the command line calls it.
        function: the score, large where memorization is likely.
        when: "during" (the running generation alone), "before" (extra passes at the first step),
            "after" (extra passes at the finished image) or "images" (no model).
        title: a line for tables.
        source: key in `memfold.citations`.
        guidance: whether it needs an unconditional half.
        attention: whether it needs cross-attention.
        many: whether it needs several images of a prompt.
        training: the space in which it compares with training images; empty for none.
    """

    name: str
    function: Function
    when: str
    title: str
    source: str
    guidance: bool = False
    attention: bool = False
    many: bool = False
    training: str = ""

    def __call__(
        self, generation: Generation, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, " b"]:
        """Score each image.

        Raises:
            InputError: the pipeline or the generation lacks what the detector needs.
        """
        check_generator(generator)
        missing = self.missing(generation)
        if missing:
            raise InputError(f"{self.name} needs {missing}: leave it out for this pipeline")
        return self.function(generation, generator=generator).detach().float().cpu()

    def missing(self, generation: Generation) -> str:
        """Say what the detector needs and does not find; empty where it can run."""
        if self.guidance and generation.first.unconditional is None:
            return "a run with guidance, which has an unconditional half"
        if self.attention and "bright_ending" not in generation.scores:
            return "cross-attention layers"
        if self.many and len(generation.x) < 2:
            return "two or more images of the prompt"
        known = {} if generation.training is None else generation.training.spaces
        if self.training and self.training not in known:
            return NEEDS[self.training]
        return ""


def column(generation: Generation, name: str, steps: int | None) -> Float[Tensor, " b"]:
    """Average one of the monitor's scores over the first steps; over all where None."""
    return generation.scores[name][:, :steps].mean(1)
