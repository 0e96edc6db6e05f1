"""Replace what stands at the padding and the end of a prompt (it carries memorized content)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError

from .base import Mitigation


def padding(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Mapping[str, float] | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
) -> Mitigation:
    """Give the end and padding positions the embeddings of the empty prompt.

    In a causal text encoder they have seen the whole prompt, and hold it once more.

    Args:
        model: the pipeline; its embedding has a place for each token.
        prompt: the words.
        seeds: not used.
        weights: not used.
        generator: not used.
        options: arguments of the pipeline.

    Returns:
        The mitigation.

    Raises:
        InputError: the pipeline has no unconditional half or no such embedding.
    """
    tokenizer = getattr(model.pipe, "tokenizer", None)
    if tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer; the prompt's end cannot be found")
    cond, empty = model.condition(prompt), model.unconditional()
    length = len(tokenizer(prompt, add_special_tokens=True).input_ids)
    changed: list[str] = []

    def change(name: str, tensor: Tensor) -> Tensor:
        other = empty.kwargs.get(name)
        if tensor.ndim != 3 or not isinstance(other, Tensor) or other.shape != tensor.shape:
            return tensor
        changed.append(name)
        out = tensor.clone()
        out[:, length - 1 :] = other[:, length - 1 :]
        return out

    new = cond.map(change)
    if not changed:
        raise InputError(f"{model.name} gives its network no embedding with a place for each token")
    return Mitigation(
        model, "padding", prompt, prompt,
        "the end and padding positions were given the empty prompt's embeddings",
        cond=new, options=options,
    )  # fmt: skip
