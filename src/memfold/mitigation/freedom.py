"""How free a model is at what it draws: its denoising loss with a prompt over that without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters._calls import Condition
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.guidance import guide
from memfold.memorization.band import Band
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.sampling.view import StepView
from memfold.tensors import expand, per_sample

DRAWN = 2  # images at which it is judged
SIGMAS = (0.6, 1.2, 2.5)  # noise standard deviations in latent units


def drawn_apart(
    model: TextToImage, prompt: str, cond: Condition | None, first: int, options: Mapping[str, Any]
) -> Generation:
    """Draw the images at which a prompt is judged, from seeds of their own.

    Args:
        model: the pipeline.
        prompt: the words.
        cond: stands for the prompt's own condition; None for its own.
        first: the first seed.
        options: arguments of the pipeline.

    Returns:
        The generation.
    """
    seeds = list(range(first, first + DRAWN))
    return generate_watched(model, prompt, seeds, cond=cond, attention=False, **options)


def ratios(
    drawn: Generation,
    cond: Condition,
    sigmas: Sequence[float],
    generator: torch.Generator | None,
) -> Float[Tensor, "sigmas b"]:
    """Return E |D_c(x + sigma n) - x|^2 over the same without a prompt, at what was drawn.

    Near 1 the prompt leaves the model as free as it is without one; near 0 it knows the images.

    Args:
        drawn: the images x; the pipeline has an unconditional half.
        cond: the condition c; gradients flow into it.
        sigmas: noise standard deviations.
        generator: source of the noises, one for each sigma and image.

    Returns:
        The ratios, shape (sigmas, b).
    """
    x, model = drawn.x, drawn.model.model
    many = x.repeat(len(sigmas), *[1] * (x.ndim - 1))
    sigma = torch.tensor(sigmas).to(x).repeat_interleave(len(x))
    noise = torch.cat([torch.randn(x.shape, generator=generator) for _ in sigmas]).to(x)
    noised = many + expand(sigma, many) * noise
    with torch.no_grad():
        without = per_sample((model(noised, sigma, drawn.uncond) - many) ** 2)
    under = per_sample((model(noised, sigma, cond) - many) ** 2)
    return (under / without.clamp_min(1e-12)).reshape(len(sigmas), len(x))


def relative(
    view: StepView, conditional: Tensor, band: Band, drawn: Generation
) -> Float[Tensor, " b"]:
    """Return the scores of a step over the band's limits, of each image the largest.

    Args:
        view: the step.
        conditional: D_c there, perhaps of another condition.
        band: the limits.
        drawn: the run.

    Returns:
        The largest share of a limit; above 1 the image leaves the band.
    """
    without = conditional if view.unconditional is None else view.unconditional
    pull = conditional - without
    w = 1.0 if drawn.guidance_scale is None else drawn.guidance_scale
    guided = guide(drawn.network, conditional, without, w, view.x, view.sigma) - view.x
    values = {
        "cfg_norm": pull.flatten(1).norm(dim=1) / view.sigma,
        "guided_score_norm": guided.flatten(1).norm(dim=1) / view.sigma**2,
    }
    found = [values[n] / band.limit(view.sigma, n) for n in band.scores if n in values]
    return torch.stack(found).amax(0)


def out_of_band(drawn: Generation, band: Band) -> bool:
    """Tell whether any image of a run leaves the band at any step."""
    # What is NaN is not within.
    return not all(bool((relative(v, v.conditional, band, drawn) <= 1).all()) for v in drawn.views)


@dataclass(frozen=True)
class Freedom:
    """Draws texts, and measures how free the model is under each, with the same noises for all.

    Attributes:
        model: the pipeline; it needs an unconditional half.
        options: arguments of the pipeline.
        sigmas: noise standard deviations.
        seed: keys the noises.
        first: the first seed of the images.
        band: of ordinary prompts; None for none.
    """

    model: TextToImage
    options: Mapping[str, Any]
    sigmas: Sequence[float]
    seed: int
    first: int
    band: Band | None = None

    def drawn(self, text: str) -> Generation:
        """Draw a text."""
        return drawn_apart(self.model, text, None, self.first, self.options)

    @torch.no_grad()
    def at(self, drawn: Generation, text: str | None = None) -> float:
        """Return the ratio at what was drawn, of the least free image; of another text if given."""
        cond = drawn.cond if text is None else self.model.condition(text)
        generator = torch.Generator().manual_seed(self.seed)
        return float(ratios(drawn, cond, self.sigmas, generator).mean(0).min())

    def free(self, drawn: Generation, target: float) -> tuple[bool, float]:
        """Tell whether the model is free at what was drawn, and how much."""
        freedom = self.at(drawn)
        inside = self.band is None or not out_of_band(drawn, self.band)
        return freedom >= target and inside, freedom


def without_each(words: Sequence[str]) -> list[str]:
    """Return the texts that lack one word, in the order of the words."""
    return [" ".join([*words[:i], *words[i + 1 :]]) for i in range(len(words))]
