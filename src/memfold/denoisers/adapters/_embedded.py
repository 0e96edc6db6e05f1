"""A condition as a function of its tokens' embeddings: the pipeline's run up to its network."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from memfold.types import InputError

from ._calls import Condition, part
from ._look import Layout
from ._runs import Runs
from ._state import frozen


@dataclass(frozen=True)
class Leaf:
    """The embeddings of a prompt's tokens in one text encoder.

    Attributes:
        encoder: name of the component, such as "text_encoder_2".
        ids: the tokens, shape (1, tokens).
        embeddings: their embeddings, a leaf of the graph, shape (1, tokens, width).
    """

    encoder: str
    ids: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Embedded:
    """A condition as a function of its tokens' embeddings.

    Attributes:
        cond: the condition; its tensors hang on the leaves.
        leaves: one for each text encoder that was called.
    """

    cond: Condition
    leaves: tuple[Leaf, ...]


def embedded(runs: Runs, layout: Layout, prompt: str, options: dict[str, Any]) -> Embedded:
    """Record the condition of a prompt with a leaf at each text encoder's embedding table.

    Args:
        runs: the pipeline.
        layout: how it calls its network.
        prompt: the words.
        options: further arguments of the pipeline.

    Returns:
        The condition, whose tensors hang on the leaves.

    Raises:
        InputError: no text encoder with an embedding table was called.
    """
    leaves: list[Leaf] = []
    with ExitStack() as stack:
        for name, part_ in runs.pipe.components.items():
            if name.startswith("text_encoder") and hasattr(part_, "get_input_embeddings"):
                hook = _leaf_hook(name, leaves)
                for table in tables(part_):
                    handle = table.register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
                stack.enter_context(frozen(part_))
        stack.enter_context(torch.enable_grad())
        arguments = layout.plain | options
        call = runs.record(prompt, 1, 1, arguments, gradients=True).calls[0]
    cond = part(call, layout.batched, 0, 1, prompt)
    given = [leaf for leaf in tree_flatten((cond.args, cond.kwargs))[0] if isinstance(leaf, Tensor)]
    if not leaves or not any(leaf.requires_grad for leaf in given):
        raise InputError(
            f"{runs.name}: the condition does not hang on a text encoder's embedding table "
            "(looked for text_encoder* with get_input_embeddings); take wrt='prompt'"
        )
    return Embedded(cond, tuple(leaves))


def tables(encoder: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the embedding tables of a text encoder (T5 holds its table under two names)."""
    named: Any = encoder
    size = named.get_input_embeddings().weight.shape
    found = (m for m in encoder.modules() if isinstance(m, torch.nn.Embedding))
    return [m for m in found if m.weight.shape == size]


def _leaf_hook(name: str, leaves: list[Leaf]) -> Any:
    def hook(table: Any, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        leaf = output.detach().clone().requires_grad_()
        leaves.append(Leaf(name, args[0] if args else kwargs["input"], leaf))
        return leaf

    return hook
