"""Find what a fine-tune memorized, without its training set: its LID against that of its base.

    model = memfold.TextToImage(pipe, base="adapter off")   # or base=the pipeline before it
    found = compare(model, model.encode(images), captions)
    suspects = found.difference.argsort(descending=True)

LID_base(x | c) - LID_tuned(x | c) counts the degrees of freedom that the fine-tune took away at x. An
image that is simple in itself has a small LID under both, and a difference near 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from memfold import TextToImage, dsm_lid

SIGMA = 0.3  # scale of memfold's detectors at latents of variance 1
BATCH = 16  # captions that are drawn together
RUN = {"num_inference_steps": 20, "guidance_scale": 3.0}


@dataclass(frozen=True)
class Compared:
    """LID of two models at the same points.

    Attributes:
        tuned: LID_tuned(x | c), degrees of freedom, (n,).
        base: LID_base(x | c).
    """

    tuned: Tensor
    base: Tensor

    @property
    def difference(self) -> Tensor:
        """Degrees of freedom that the fine-tune took away."""
        return self.base - self.tuned


def compare(
    model: TextToImage,
    x: Tensor,
    captions: Sequence[str | None],
    *,
    sigma: float = SIGMA,
    seed: int = 0,
) -> Compared:
    """Measure the LID of a fine-tune and of its base at each latent, under its caption.

    Args:
        model: a fine-tune with its base: `TextToImage(pipe, base=...)`.
        x: latents, (n, ...), or (n, seeds, ...) for several images of each caption, whose mean
            is taken.
        captions: one for each; None for the model without a prompt.
        sigma: scale, noise standard deviation in latent units.
        seed: of the noises, which are the same for both models.
    """
    if model.base is None:
        raise ValueError("the model has no base to compare with; pass TextToImage(pipe, base=...)")
    return Compared(lids(model, x, captions, sigma=sigma, seed=seed),
                    lids(model.base, x, captions, sigma=sigma, seed=seed))  # fmt: skip


def lids(
    model: TextToImage,
    x: Tensor,
    captions: Sequence[str | None],
    *,
    sigma: float = SIGMA,
    seed: int = 0,
) -> Tensor:
    """LID by the denoising loss at each latent, under its caption."""
    found = []
    points = x.unflatten(0, (len(captions), -1)) if x.ndim == len(model.shape) + 1 else x
    rows = zip(points, captions, strict=True)
    for point, caption in tqdm(rows, desc="LID", total=len(captions), unit="caption"):
        generator = torch.Generator().manual_seed(seed)
        estimate = dsm_lid(model.denoiser(caption), point, sigma, generator=generator)
        found.append(estimate.lid.mean())
    return torch.stack(found)


def draw(model: TextToImage, captions: Sequence[str], seeds: Sequence[int] = (0, 1)) -> Tensor:
    """Draw images of every caption by the user's own pipeline; latents, (captions, seeds, ...)."""
    drawn = []
    for start in tqdm(range(0, len(captions), BATCH), desc="drawing", unit="batch"):
        some = [c for c in captions[start : start + BATCH] for _ in seeds]
        generators = [
            torch.Generator().manual_seed(seeds[i % len(seeds)]) for i in range(len(some))
        ]
        with model.quiet(), torch.no_grad():
            x = model.run(
                model.pipe, prompt=some, generator=generators, output_type="latent", **RUN
            )
        drawn.append(x.unflatten(0, (-1, len(seeds))))
    return torch.cat(drawn)


def copied(drawn: Tensor, x: Tensor, limit: float = 0.15) -> Tensor:
    """Which of the drawn latents (n, seeds, ...) lie on the latent x (n, ...) of their caption.

    The limit, a root mean square, is that by which the bundled pipeline's prompts are labelled.
    """
    return (drawn - x[:, None]).flatten(2).square().mean(2).sqrt() < limit
