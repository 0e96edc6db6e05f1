"""What of an image is copied, and how well it shows its caption, in the bundled pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from experiments.text_to_image.data import CLASSES, SHADES, make_data
from experiments.text_to_image.label import LIMIT, Matcher, memorized_garments, real_limit
from memfold import TextToImage

ASSETS = Path("assets/text_to_image")


class Judge:
    """Compare latents with the memorized training rows, and pictures with words.

    A copy lies within 0.15 (root mean square) of any memorized training row, or shows a memorized
    garment, whatever its background, as the pipeline's prompts are labelled.
    """

    def __init__(self, model: TextToImage) -> None:
        self.model = model
        self.clip = CLIPModel.from_pretrained(ASSETS / "clip").eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "clip")
        with np.load(ASSETS / "train.npz") as data:
            known = np.isin(data["groups"], ("verbatim", "template"))
            pictures, self.owner = data["images"][known], data["captions"][known]
        grey = torch.from_numpy(pictures).float()[:, None].expand(-1, 3, -1, -1) / 255
        self.rows = torch.cat([model.encode(part).flatten(1) for part in grey.split(256)])
        _, garments, inside = memorized_garments(make_data()[0])
        self.matcher = Matcher(model.pipe.vae, garments, inside)
        self.limit = real_limit(model.pipe.vae, self.matcher)

    @torch.no_grad()
    def __call__(self, x: Tensor, caption: str) -> dict[str, float]:
        """Copy similarity, share of copies and alignment, means over the images of a caption.

        Similarity is the cosine with the nearest of the caption's training latents; alignment that
        of picture and caption in CLIP, without names and invented words, which CLIP does not know.
        """
        flat, pictures = x.flatten(1), self.model.decode(x)
        near = torch.cdist(flat, self.rows).amin(1) / flat.shape[1] ** 0.5 < LIMIT
        garment = self.matcher((pictures * 2 - 1).mean(1).numpy()).min(1) < self.limit
        own = self.rows[torch.from_numpy(self.owner == caption)]
        said = [w for w in caption.split() if w in CLASSES or w in SHADES]
        shown = self.embed(pictures.clamp(0, 1)) @ self.text("a photo of a " + " ".join(said))
        return {
            "similarity": float(similarity(flat, own).mean()),
            "copies": float((near | torch.from_numpy(garment)).float().mean()),
            "alignment": float(shown.mean()),
        }

    def embed(self, pictures: Tensor) -> Tensor:
        """Embed pictures in [0, 1], normed."""
        return unit(self.clip.get_image_features(pixel_values=pictures * 2 - 1))

    def text(self, words: str) -> Tensor:
        """Embed words, normed."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return unit(self.clip.get_text_features(**self.tokenizer([words], **options)))[0]


def similarity(x: Tensor, rows: Tensor) -> Tensor:
    """Cosine of each latent with the nearest of some rows; latents have mean 0 over the data."""
    return (unit(x) @ unit(rows).T).amax(1)


def unit(found: object) -> Tensor:
    """Norm the rows of a tensor, or of what CLIP returns."""
    tensor = found if isinstance(found, Tensor) else found.pooler_output
    return torch.nn.functional.normalize(tensor, dim=1)
