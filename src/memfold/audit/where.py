"""Where in an image its prompt takes freedom away."""

from __future__ import annotations

from typing import Any

from memfold.memorization.detectors import DETECTORS, curvature_map
from memfold.sampling.trajectory import Generation
from memfold.tensors import prompt_generator


def where(generation: Generation, seed: int) -> dict[str, Any]:
    """Map where in each image the prompt takes freedom away, summed over channels.

    Args:
        generation: the images.
        seed: of the command; with the prompt it keys the noises.

    Returns:
        `map`, row after row of each seed's map, in degrees of freedom a latent place, and
        `map_shape`; both empty without guidance, and where latents are no pictures.
    """
    needs = DETECTORS["curvature_difference"].missing(generation)
    if needs or generation.x.ndim != 4:
        return {"map": [], "map_shape": []}
    generator = prompt_generator(generation.prompt, seed)
    taken = curvature_map(generation, generator=generator).sum(1).detach().float().cpu()
    return {"map": taken.flatten().tolist(), "map_shape": list(taken.shape[1:])}
