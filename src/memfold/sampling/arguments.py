"""Read a pipeline's arguments as it will read them itself, defaults included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.guidance import Rule


def argument_of(model: TextToImage, name: str, given: Mapping[str, Any]) -> Any:
    """Return the value that a call of the pipeline takes for an argument.

    Args:
        model: the pipeline.
        name: of the argument.
        given: the arguments of the call.

    Returns:
        What was given, else what the TextToImage holds, else the pipeline's default; None where it
        takes no such argument.
    """
    return model.argument(name, given)


def guidance_name(model: TextToImage) -> str | None:
    """Return the argument that scales classifier-free guidance; None where there is none."""
    if not model.has_unconditional:
        return None
    return next((name for name in model.layout.guided if name.endswith("_scale")), None)


def rule_of(model: TextToImage, given: Mapping[str, Any]) -> Rule | None:
    """Return what a call of the pipeline makes of both halves of guidance; None without two."""
    return model.rule(**given)


def guidance_of(model: TextToImage, given: Mapping[str, Any]) -> float | None:
    """Return w of D_0 + w (D_c - D_0) in a call; None where the pipeline has no guidance."""
    name = guidance_name(model)
    value = None if name is None else argument_of(model, name, given)
    return None if value is None else float(value)
