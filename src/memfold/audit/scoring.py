"""How prompts are scored: the settings, the detectors that a pipeline allows, and their cost."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from memfold.denoisers.adapters._calls import first_tensor
from memfold.denoisers.adapters.scope import Scope, hooked
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.detectors import DETECTORS, Detector
from memfold.memorization.detectors.base import NEEDS
from memfold.memorization.embedding import Embedding, load_embedding
from memfold.sampling.training import TrainingRows, training_images
from memfold.sampling.trajectory import has_cross_attention
from memfold.types import InputError

from .checks import check
from .digest import conditions, model_digest


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How prompts are scored.

    Attributes:
        model: pipeline directory or hub id.
        images: images a prompt.
        steps: denoising steps; the pipeline's default where None.
        guidance_scale: w; the pipeline's default where None.
        detectors: names in the registry; all that the pipeline allows where empty.
        seed: the images' seeds are seed, seed + 1, ...; they are the same for every prompt.
        device: where to compute.
        half: compute in half precision (float16 on a GPU).
        allow_pickle: also read weights from pickles.
        allow_code: also read an embedding in TorchScript, which runs code of its own.
        height: pixels; the pipeline's default where None.
        width: pixels.
        data: training images, for the detectors that look for the nearest; None for none.
        embedding: an embedding to look in too; None for none.
    """

    model: str
    images: int = 4
    steps: int | None = None
    guidance_scale: float | None = None
    detectors: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"
    half: bool = False
    allow_pickle: bool = False
    allow_code: bool = False
    height: int | None = None
    width: int | None = None
    data: str | None = None
    embedding: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be used."""
        for name in self.detectors:
            if name not in DETECTORS:
                raise InputError(
                    f"--detectors: {name!r} is unknown; choose from {', '.join(DETECTORS)}"
                )
        check(asdict(self))

    def settings(self) -> dict[str, Any]:
        """Give what the numbers depend on, without the places of files."""
        leave = {"model", "device", "allow_pickle", "allow_code", "data", "embedding"}
        return {k: v for k, v in asdict(self).items() if k not in leave}

    def options(self) -> dict[str, Any]:
        """Give the pipeline's arguments."""
        named = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        return {k: v for k, v in named.items() if v is not None}

    @property
    def seeds(self) -> list[int]:
        """The seeds of a prompt's images."""
        return list(range(self.seed, self.seed + self.images))

    def load(self) -> TextToImage:
        """Load the pipeline.

        Raises:
            InputError: it cannot be loaded, or is no text-to-image pipeline.
        """
        from memfold.denoisers.adapters._pipeline import quiet_libraries, read_pipeline
        from memfold.denoisers.adapters.diffusers import is_text_to_image

        pipe = read_pipeline(self.model, allow_pickle=self.allow_pickle, revision=None)
        if not is_text_to_image(pipe):
            raise InputError(
                f"{self.model} is a {type(pipe).__name__}, which takes no prompt (looked for a "
                "text encoder or a tokenizer); audit its images: memfold audit MODEL --data IMAGES"
            )
        with quiet_libraries():
            pipe.to(self.device)
            if self.half:
                pipe.to(torch.float16)
        size: dict[str, Any] = {"height": self.height, "width": self.width}
        return TextToImage(pipe, **{k: v for k, v in size.items() if v is not None})

    @property
    def spaces(self) -> tuple[str, ...]:
        """In which spaces training images can be compared."""
        if self.data is None:
            return ()
        return ("pixels", "latents") + (() if self.embedding is None else ("embedding",))

    def fingerprint(self) -> dict[str, Any]:
        """Give what numbers depend on: settings, model, device, versions; after the loading."""
        return {
            **self.settings(), "model": model_digest(self.model), **conditions(self.device),
        }  # fmt: skip

    def read_embedding(self, source: str) -> Embedding:
        """Load an image embedding as these settings allow.

        Raises:
            InputError: it cannot be read, or is not allowed.
        """
        return load_embedding(
            source, allow_pickle=self.allow_pickle, allow_code=self.allow_code, device=self.device
        )

    def training(self, model: TextToImage) -> TrainingRows | None:
        """Read the training images, in the size that the pipeline draws; None where none are given.

        Args:
            model: the pipeline.

        Returns:
            Their rows in every space.

        Raises:
            InputError: they, or the embedding, cannot be read.
        """
        if self.data is None:
            return None
        embed = None
        if self.embedding is not None:
            embed = self.read_embedding(self.embedding)
        return TrainingRows.of(model, training_images(self.data, model), embed)


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: wall time.
        passes: rows that went through the network.
        products: rows that went back through it.
    """

    seconds: float = 0.0
    passes: int = 0
    products: int = 0


@contextmanager
def counted(model: TextToImage) -> Iterator[Cost]:
    """Count the rows through the network, forward and back, inside the block, those of this thread.

    Args:
        model: the pipeline.

    Yields:
        The cost, complete after the block.
    """
    cost, place = Cost(), model.places[0]

    def back(gradient: torch.Tensor) -> None:
        cost.products += len(gradient)

    def after(args: tuple, kwargs: dict, output: Any) -> None:
        if not scope.is_open():
            return
        cost.passes += len(args[place] if isinstance(place, int) else kwargs[place])
        out = first_tensor(output)
        if out.requires_grad:
            out.register_hook(back)

    start = time.monotonic()
    try:
        with Scope(model.pipe).opened() as scope, hooked(model.network, after=after):
            yield cost
    finally:
        cost.seconds = time.monotonic() - start


def usable(
    model: TextToImage, names: Sequence[str], images: int, spaces: Collection[str] = ()
) -> tuple[list[Detector], list[str]]:
    """Choose the detectors that a pipeline allows.

    Args:
        model: the pipeline.
        names: wanted ones; all where empty.
        images: images a prompt.
        spaces: in which training images are known: "pixels", "latents", "embedding".

    Returns:
        The detectors, and a line for each that was left out.

    Raises:
        InputError: a detector was asked for by name that the pipeline does not allow.
    """
    found, left = [], []
    for detector in DETECTORS.values():
        if names and detector.name not in names:
            continue
        reason = ""
        if detector.guidance and not model.has_unconditional:
            reason = f"{model.name} has no unconditional half"
        elif detector.attention and not has_cross_attention(model):
            reason = f"{model.name}'s network has no cross-attention layers"
        elif detector.many and images < 2:
            reason = "it needs two or more images a prompt"
        elif detector.training and detector.training not in spaces:
            reason = f"it needs {NEEDS[detector.training]}"
        if reason and names:
            raise InputError(f"--detectors: {detector.name} cannot run: {reason}")
        if reason:
            left.append(f"{detector.name}: {reason}")
        else:
            found.append(detector)
    return found, left
