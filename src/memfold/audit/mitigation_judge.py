"""What a benchmark of mitigations measures at the images of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from memfold.datasets.images import Images
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.embedding import Embedding, load_embedding, unit
from memfold.types import InputError

from .store import Columns

_QUALITY = 2000  # training images for the Frechet distance, evenly spaced
_BATCH = 64


@dataclass(frozen=True)
class Reference:
    """What drawn images are compared with.

    Attributes:
        latents: of the images that may be copied, shape (n, d).
        embedded: the same images in the embedding, of length 1, shape (n, k); None for none.
        quality: images as they should be, in CLIP, shape (m, e); None without CLIP.
    """

    latents: Float[Tensor, "n d"]
    embedded: Float[Tensor, "n k"] | None = None
    quality: Float[Tensor, "m e"] | None = None

    def columns(self) -> Columns:
        """Give it as a table, to be kept."""
        named = {k: v.float().cpu().numpy() for k, v in vars(self).items() if v is not None}
        return {
            "name": [name for name, rows in named.items() for _ in rows],
            "values": [row.tobytes() for rows in named.values() for row in rows],
        }

    @staticmethod
    def of(columns: Columns) -> Reference:
        """Read it from such a table."""
        rows: dict[str, list[np.ndarray]] = {}
        for name, values in zip(columns["name"], columns["values"], strict=True):
            rows.setdefault(name, []).append(np.frombuffer(values, np.float32))
        return Reference(**{name: torch.from_numpy(np.stack(v)) for name, v in rows.items()})


class Clip:
    """A CLIP-like model: images and texts in one space.

    Args:
        source: directory, or hub id.
        allow_pickle: also read pickled weights.
        device: where to compute.

    Raises:
        InputError: it embeds no texts.
    """

    def __init__(self, source: str, *, allow_pickle: bool, device: str) -> None:
        from transformers import AutoTokenizer

        found = load_embedding(source, allow_pickle=allow_pickle, device=device)
        self.module = getattr(found, "module", None)
        if not hasattr(self.module, "get_text_features"):
            raise InputError(f"--clip {source} embeds no texts; pass a transformers CLIP or SigLIP")
        self.images: Embedding = unit(found)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise InputError(f"--clip {source} has no tokenizer; save it there too") from error

    @torch.no_grad()
    def text(self, texts: Sequence[str]) -> Float[Tensor, "b e"]:
        """Embed texts, cut to the model's longest, to length 1."""
        module: Any = self.module
        longest = min(self.tokenizer.model_max_length, 512)
        given = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=longest,
            return_tensors="pt",
        ).to(module.device)  # fmt: skip
        out = module.get_text_features(**given)
        out = out if isinstance(out, Tensor) else out.pooler_output
        return torch.nn.functional.normalize(out.float().cpu(), dim=1)


@dataclass
class Judge:
    """Measures the images of one prompt.

    Attributes:
        model: the pipeline.
        reference: what they are compared with.
        embedding: a further space for copies; None for none.
        clip: for alignment and quality; None for none.
        extra: further columns from (x, pictures, prompt), a number an image each.
    """

    model: TextToImage
    reference: Reference
    embedding: Embedding | None
    clip: Clip | None
    extra: Callable[[Tensor, Tensor, str], dict[str, list[float]]] | None = None

    @torch.no_grad()
    def __call__(self, x: Tensor, prompt: str) -> dict[str, list[Any]]:
        """Return columns with an entry an image.

        Args:
            x: latents of the images.
            prompt: the words that the user gave, whatever was drawn instead of them.

        Returns:
            `distance` (root mean square, to the nearest reference latent), `nearest` (its row),
            `spread` (of the images among one another), and where they can be had
            `embedding_distance`, `alignment` (cosine of image and words) and `clip`.
        """
        pictures = self.model.decode(x).clamp(0, 1).float().cpu()
        rows = x.flatten(1).float().cpu()
        distance, nearest = nearest_row(rows, self.reference.latents)
        spread = float((rows - rows.mean(0)).square().mean().sqrt())
        found: dict[str, list[Any]] = {
            "distance": (distance / rows.shape[1] ** 0.5).tolist(),
            "nearest": nearest.tolist(),
            "spread": [spread] * len(rows),
        }
        if self.embedding is not None and self.reference.embedded is not None:
            apart, _ = nearest_row(self.embedding(pictures), self.reference.embedded)
            found["embedding_distance"] = apart.tolist()
        if self.clip is not None:
            embedded = self.clip.images(pictures)
            found["alignment"] = (embedded @ self.clip.text([prompt])[0]).tolist()
            found["clip"] = embedded.tolist()
        return found | ({} if self.extra is None else self.extra(x, pictures, prompt))


def nearest_row(rows: Float[Tensor, "b d"], reference: Float[Tensor, "n d"]) -> Any:
    """Return the distance to the nearest reference row, and which it is."""
    mode = "donot_use_mm_for_euclid_dist"  # the other way cancels between near-duplicates
    found = torch.cdist(rows, reference.to(rows), compute_mode=mode).min(1)
    return found.values, found.indices


@torch.no_grad()
def latents_of(images: Images, model: TextToImage) -> Float[Tensor, "n *d"]:
    """Encode images, on the CPU."""
    return torch.cat([model.encode(b).float().cpu() for b in images.batches(_BATCH)])


@torch.no_grad()
def reference_of_images(
    images: Images, model: TextToImage, embedding: Embedding | None, clip: Clip | None
) -> Reference:
    """Encode training images; quality is judged by at most 2,000 of them, evenly spaced."""
    embedded = None
    if embedding is not None:
        embedded = torch.cat([embedding(b) for b in images.batches(_BATCH)])
    quality = None
    if clip is not None:
        some = np.unique(np.linspace(0, len(images) - 1, _QUALITY).round().astype(int))
        quality = torch.cat([clip.images(b) for b in images.select(some.tolist()).batches(_BATCH)])
    return Reference(latents_of(images, model).flatten(1), embedded, quality)


@torch.no_grad()
def reference_of_drawn(
    known: Float[Tensor, "n *d"], ordinary: Float[Tensor, "m *d"], model: TextToImage,
    embedding: Embedding | None, clip: Clip | None,
) -> Reference:  # fmt: skip
    """Take what memorized prompts draw for what may be copied, and ordinary ones for quality."""

    def pictures(x: Tensor) -> Tensor:
        parts = [model.decode(p.to(model.device)) for p in x.split(_BATCH)]
        return torch.cat(parts).clamp(0, 1).float().cpu()

    embedded = None if embedding is None else embedding(pictures(known))
    quality = None if clip is None else clip.images(pictures(ordinary))
    return Reference(known.flatten(1).float().cpu(), embedded, quality)
