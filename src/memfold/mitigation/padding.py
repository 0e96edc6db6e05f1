"""Ends of prompts that say nothing: the end and padding tokens repeat the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.adapters.tokenizers import own_tokenizer
from memfold.types import InputError

from .base import Mitigation, Weights

FILLS = ("empty", "start", "zero")


def padding(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    fill: str = "empty",
    keep_end: bool = False,
) -> Mitigation:
    """Put other embeddings in the places of the end and padding tokens.

    In a causal text encoder these have seen the whole prompt, and hold it once more; much of a
    memorized prompt's attention goes there (Chen et al. 2025).

    Args:
        model: the pipeline; its embedding has a place for each token of its tokenizer.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: not used.
        options: arguments of the pipeline.
        fill: "empty": what the empty prompt has there; "start": the start token's embedding, which
            in a causal encoder has seen no word; "zero".
        keep_end: leave the end token as it is.

    Returns:
        The mitigation.

    Raises:
        InputError: the fill is unknown, the pipeline has no unconditional half, or it is not known
            which places are padding.
    """
    if fill not in FILLS:
        raise InputError(f"fill = {fill!r} is unknown; choose from {', '.join(FILLS)}")
    start = _words(model, prompt) - (0 if keep_end else 1)
    cond = model.condition(prompt)
    empty = model.unconditional() if fill == "empty" else cond
    changed: list[str] = []

    def change(name: str, tensor: Tensor) -> Tensor:
        other = empty.kwargs.get(name)
        if tensor.ndim != 3 or not isinstance(other, Tensor) or other.shape != tensor.shape:
            return tensor
        changed.append(name)
        out = tensor.clone()
        filling = {"empty": other[:, start:], "start": tensor[:, :1], "zero": torch.zeros(())}
        out[:, start:] = filling[fill]
        return out

    new = cond.map(change)
    if not changed:
        raise InputError(f"{model.name} gives its network no embedding with a place for each token")
    return Mitigation(
        model, "padding", prompt, prompt,
        f"the places of the {'' if keep_end else 'end and '}padding tokens were filled ({fill})",
        cond=new, options=options,
    )  # fmt: skip


def _words(model: TextToImage, prompt: str) -> int:
    """Count the places before the padding, the end token included."""
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")
    found = [t for t in (own_tokenizer(model.pipe, n) for n in names) if t is not None]
    if not found or len({type(t) for t in found}) > 1 or found[0].padding_side != "right":
        raise InputError(
            f"{model.name}: memfold cannot tell which places are padding (it needs one kind of "
            "tokenizer, padding on the right); choose another method"
        )
    return min(len(found[0](prompt).input_ids), found[0].model_max_length)
