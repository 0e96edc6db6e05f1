"""A condition as a function of its tokens' embeddings, and gradients by word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import Leaf, TextToImage
from memfold.denoisers.adapters.tokenizers import own_tokenizer
from memfold.types import InputError

from .tokens import word_of_tokens

Owner = list[int | None]  # the word of each token


@dataclass(frozen=True)
class Embedding:
    """The condition as a function of leaves, and the word of each of their places."""

    cond: Any
    leaves: tuple[Tensor, ...]
    owners: tuple[Owner, ...]


def embeddings(model: TextToImage, prompt: str, wrt: str) -> Embedding:
    """Record a prompt's condition with leaves at its tokens.

    Args:
        model: the pipeline.
        prompt: the words.
        wrt: "tokens": the leaves are the tokens' embeddings; "prompt": the tensors with a place for
            each token that the network is given.

    Returns:
        The condition with its leaves, and the word of each of their places.

    Raises:
        InputError: the network is given no such tensor, or an encoder has no tokenizer.
    """
    found = model.embedded(prompt, gradients=wrt == "tokens")
    owners = words_of_leaves(model, prompt, found.leaves)
    if wrt == "tokens":
        return Embedding(found.cond, tuple(leaf.embeddings for leaf in found.leaves), tuple(owners))
    leaves: list[Tensor] = []
    kept: list[Owner] = []

    def detach(name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        owner = _owner_of(tensor, owners)
        if owner is None:
            return tensor
        tensor = tensor.clone().requires_grad_()
        leaves.append(tensor)
        kept.append(owner)
        return tensor

    cond = found.cond.map(detach)
    if not leaves:
        raise InputError(
            f"{model.name} gives its network no tensor with a place for each token; take "
            "wrt='tokens'"
        )
    return Embedding(cond, tuple(leaves), tuple(kept))


def words_of_leaves(model: TextToImage, prompt: str, leaves: Sequence[Leaf]) -> list[Owner]:
    """Find the word of each token of each leaf.

    Args:
        model: the pipeline.
        prompt: the words.
        leaves: what `model.embedded(prompt)` recorded.

    Returns:
        For each leaf the word of each of its places, or None.

    Raises:
        InputError: an encoder has no tokenizer.
    """
    return [
        word_of_tokens(_tokenizer(model, leaf.encoder), leaf.ids.flatten().tolist(), prompt)
        for leaf in leaves
    ]


def _owner_of(tensor: Tensor, owners: Sequence[Owner]) -> Owner | None:
    """Find the words of a tensor's places: one encoder's, or the first's before the last's."""
    if tensor.ndim != 3 or len(tensor) != 1:
        return None
    for owner in (*owners, owners[0] + owners[-1]):
        if tensor.shape[1] == len(owner):
            return owner
    return None


def gradient_of(value: Tensor, embedded: Embedding, words: int) -> Float[Tensor, " w"]:
    """Add the norms of a score's gradient at each word's tokens."""
    row = torch.zeros(words, dtype=torch.float64)
    gradients = torch.autograd.grad(value, embedded.leaves, retain_graph=True, allow_unused=True)
    for gradient, owner in zip(gradients, embedded.owners, strict=True):
        if gradient is None:
            continue
        for i, norm in enumerate(gradient[0].double().norm(dim=1).tolist()):
            word = owner[i]
            if word is not None:
                row[word] += norm
    return row


def _tokenizer(model: TextToImage, encoder: str) -> Any:
    name = encoder.replace("text_encoder", "tokenizer")
    found = own_tokenizer(model.pipe, name, "tokenizer")
    if found is None:
        raise InputError(f"{model.name} has no {name}; words cannot be told from tokens")
    return found
