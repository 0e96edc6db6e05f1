"""Scores of the cross-attention: Bright Ending (Chen et al. 2025) and entropy (Ren et al. 2024)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation


def bright_ending(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Average the CFG norm, masked by the attention to the end token at the last step.

    Chen et al. (2025): where an image is memorized, the end token is attended to in the last step;
    the map also says where in the image. Here the map of each step weighs its own difference, and
    the last half of the steps counts. Published for Stable Diffusion 1.4: AUROC .986, TPR .950 at
    1 % FPR with one image.

    Args:
        generation: a run with guidance, of a pipeline with cross-attention.
        generator: not used; nothing is random.

    Returns:
        One score an image, shape (b,).
    """
    scores = generation.scores["bright_ending"]
    return scores[:, scores.shape[1] // 2 :].mean(1)


def attention_entropy(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Minus the entropy of the cross-attention over the tokens, mean over steps, layers, places.

    Ren et al. (2024): memorized prompts let the attention rest on few tokens. In nats.

    Args:
        generation: a run of a pipeline with cross-attention.
        generator: not used; nothing is random.

    Returns:
        One score an image, shape (b,).
    """
    return -generation.scores["attention_entropy"].mean(1)
