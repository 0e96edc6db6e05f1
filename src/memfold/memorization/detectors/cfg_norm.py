"""CFG norm (Wen et al. 2024, "Detecting, Explaining, and Mitigating Memorization", ICLR)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation

from .base import column


def cfg_norm(
    generation: Generation,
    *,
    generator: torch.Generator | None = None,
    steps: int | None = None,
) -> Float[Tensor, " b"]:
    """Average |eps_c - eps_0| over the steps of the running generation; no extra pass.

    A prompt that the model knows by heart drives every noise to the same image, and so far from
    what the model would do without it. Published for Stable Diffusion 1.4 with one image: AUROC
    .976 and TPR .896 at 1 % FPR at the first step, .991/.932 over 5, .983/.948 over 50.

    Args:
        generation: a run with guidance.
        generator: not used; nothing is random.
        steps: how many steps from the first; all where None.

    Returns:
        One score an image, shape (b,).
    """
    return column(generation, "cfg_norm", steps)


def cfg_norm_first(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Take the CFG norm of the first step alone."""
    return cfg_norm(generation, steps=1)


def cfg_norm_last(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Average the CFG norm over the last half of the steps."""
    scores = generation.scores["cfg_norm"]
    return scores[:, scores.shape[1] // 2 :].mean(1)
