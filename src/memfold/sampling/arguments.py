"""Read a pipeline's arguments as it will read them itself, defaults included."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from memfold.denoisers.adapters.text_to_image import TextToImage


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
    for values in (given, model.options):
        if name in values:
            return values[name]
    parameter = inspect.signature(type(model.pipe).__call__).parameters.get(name)
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return None
    return parameter.default


def guidance_name(model: TextToImage) -> str | None:
    """Return the argument that scales classifier-free guidance; None where there is none."""
    if not model.has_unconditional:
        return None
    return next((name for name in model.layout.guided if name.endswith("_scale")), None)


def guidance_of(model: TextToImage, given: Mapping[str, Any]) -> float | None:
    """Return w of D_0 + w (D_c - D_0) in a call; None where the pipeline has no guidance."""
    name = guidance_name(model)
    value = None if name is None else argument_of(model, name, given)
    return None if value is None else float(value)
