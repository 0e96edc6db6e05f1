"""Guided noise norm: the guided score norm times sigma (Ross et al. 2025, arXiv 2411.00113)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.sampling.trajectory import Generation


def guided_noise_norm(
    generation: Generation, *, generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Average |eps_w| = sigma |s_w| over the steps of the running generation; no extra pass.

    The score of a manifold of low dimension is large along its many normal directions, and guided
    scores are larger still. |s_w| itself grows like 1 / sigma, so that its mean over steps would
    be that of the last one; in units of the noise all steps count alike.

    Args:
        generation: a run of the pipeline.
        generator: not used; nothing is random.

    Returns:
        One score an image, shape (b,).
    """
    sigmas = torch.tensor([view.sigma for view in generation.views])
    return (generation.scores["guided_score_norm"] * sigmas).mean(1)
