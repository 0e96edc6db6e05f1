"""Training images beside a generation, in every space that images are compared in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.datasets.images import Images, load_images, to_model
from memfold.denoisers.adapters.text_to_image import TextToImage

_BATCH = 64


@dataclass(frozen=True)
class TrainingRows:
    """Training images as rows of numbers.

    Attributes:
        spaces: rows by the name of their space: "latents", "pixels" and, with an embedding,
            "embedding"; each of shape (n, d).
        embed: the embedding, from images (b, c, h, w) in [0, 1] to (b, e); None for none.
    """

    spaces: dict[str, Float[Tensor, "n _"]]
    embed: Callable[[Tensor], Tensor] | None = None

    @staticmethod
    @torch.no_grad()
    def of(
        model: TextToImage, images: Images, embed: Callable[[Tensor], Tensor] | None = None
    ) -> TrainingRows:
        """Bring training images into every space.

        Args:
            model: the pipeline, whose latents are one of them.
            images: the images, of the pipeline's size.
            embed: a further space; None for none.

        Returns:
            The rows.
        """
        empty = TrainingRows({}, embed)
        parts = [empty.features(b, model.encode(b)) for b in images.batches(_BATCH)]
        return TrainingRows({k: torch.cat([part[k] for part in parts]) for k in parts[0]}, embed)

    def features(
        self, images: Float[Tensor, "b c h w"], latents: Float[Tensor, "b *d"]
    ) -> dict[str, Tensor]:
        """Give images as rows of numbers: latents, pixels, and the embedding if there is one."""
        found = {"latents": latents.flatten(1), "pixels": images.flatten(1)}
        if self.embed is not None:
            found["embedding"] = self.embed(images)
        return {k: v.detach().cpu().float() for k, v in found.items()}


def training_images(source: str, model: TextToImage) -> Images:
    """Read training images, in the size that the pipeline draws.

    Args:
        source: what `load_images` reads.
        model: the pipeline.

    Returns:
        The images.

    Raises:
        InputError: they cannot be read.
    """
    blank = model.decode(torch.zeros(1, *model.shape, device=model.device))
    _, channels, height, width = blank.shape
    return to_model(load_images(source), (channels, height, width), resize=True)
