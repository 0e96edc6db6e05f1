"""How much a score falls without a word: left out of the text, or masked in its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters._embedded import tables
from memfold.denoisers.adapters.scope import Scope
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.adapters.weights import weight_of

from .gradients import Owner, words_of_leaves
from .states import States
from .tokens import words_of


@torch.no_grad()
def fall(states: States, conditions: Iterable[Any]) -> Float[Tensor, " w"]:
    """Measure how far the score falls under each of some conditions, at the same states.

    Args:
        states: where the score is taken.
        conditions: one a word; None for a word that did not reach an encoder.

    Returns:
        Score of the prompt itself minus that under the condition, mean over states and seeds.
    """
    full = _mean(states, states.generation.cond)
    falls = [full - (full if c is None else _mean(states, c)) for c in conditions]
    return torch.stack(falls).float().cpu()


def without(model: TextToImage, prompt: str) -> Iterator[Any]:
    """Yield the condition of the prompt without each of its words; None for those cut off."""
    words = words_of(prompt)
    last = _last(words_of_leaves(model, prompt, model.embedded(prompt, gradients=False).leaves))
    for i, word in enumerate(words):
        shorter = " ".join((prompt[: word.start] + prompt[word.end :]).split())
        yield model.condition(shorter) if i <= last else None


def masks(model: TextToImage, prompt: str) -> Iterator[Any]:
    """Yield the condition with the mean of the embedding table in place of each word's tokens."""
    owners = words_of_leaves(model, prompt, model.embedded(prompt, gradients=False).leaves)
    last = _last(owners)
    for word in range(len(words_of(prompt))):
        yield _masked(model, prompt, owners, word) if word <= last else None


def _last(owners: list[Owner]) -> int:
    """Find the last word that reached an encoder: what stands behind it was cut off."""
    return max((word for owner in owners for word in owner if word is not None), default=-1)


def _masked(model: TextToImage, prompt: str, owners: list[Owner], word: int) -> Any:
    calls = iter(owners)  # the tables are asked in the order of the leaves

    def mask(table: Any, run: Any, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        owner = torch.tensor([own == word for own in next(calls)], device=output.device)
        mean = weight_of(table).mean(0).to(output)
        return torch.where(owner[None, :, None], mean, output)

    with Scope(model.pipe, own=True).opened() as scope, ExitStack() as stack:
        for name, encoder in model.pipe.components.items():
            if name.startswith("text_encoder") and hasattr(encoder, "get_input_embeddings"):
                for table in tables(encoder):
                    stack.enter_context(scope.hooked(table, after=partial(mask, table)))
        return model.embedded(prompt, gradients=False).cond


def _mean(states: States, cond: Any) -> Tensor:
    return torch.stack(list(states.scores(cond))).double().mean()
