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
from .scope import Scope


@dataclass(frozen=True)
class Leaf:
    """The embeddings of a prompt's tokens in one text encoder.

    Attributes:
        encoder: name of the component, such as "text_encoder_2".
        ids: the tokens, shape (1, tokens).
        embeddings: their embeddings, a leaf of the graph if gradients are wanted, shape
            (1, tokens, width).
    """

    encoder: str
    ids: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Embedded:
    """A condition as a function of its tokens' embeddings.

    Attributes:
        cond: the condition; its tensors hang on the leaves, if gradients are wanted.
        leaves: one for each text encoder that was called.
    """

    cond: Condition
    leaves: tuple[Leaf, ...]


def embedded(
    runs: Runs, layout: Layout, prompt: str, options: dict[str, Any], *, gradients: bool = True
) -> Embedded:
    """Record the condition of a prompt, and the tokens at each text encoder's embedding table.

    Args:
        runs: the pipeline.
        layout: how it calls its network.
        prompt: the words.
        options: further arguments of the pipeline.
        gradients: make the tables' output leaves that the condition hangs on.

    Returns:
        The condition and the leaves.

    Raises:
        InputError: no text encoder with an embedding table was called, or, with gradients, the
            condition does not hang on it.
    """
    leaves: list[Leaf] = []
    with ExitStack() as stack:
        scope = stack.enter_context(Scope(runs.pipe, own=True).opened())
        for name, part_ in runs.pipe.components.items():
            if name.startswith("text_encoder") and hasattr(part_, "get_input_embeddings"):
                hook = _leaf_hook(name, leaves, gradients)
                for table in tables(part_):
                    stack.enter_context(scope.hooked(table, after=hook))
                if gradients:
                    stack.enter_context(frozen(part_))
        if gradients:
            stack.enter_context(torch.enable_grad())
        arguments = layout.plain | options
        call = runs.record(prompt, 1, 1, arguments, gradients=gradients).calls[0]
    cond = part(call, layout.axes, 0, 1, prompt)
    if not leaves:
        raise InputError(
            f"{runs.name}: no text encoder's embedding table was asked (looked for text_encoder* "
            "with get_input_embeddings); words cannot be told from tokens"
        )
    given = [leaf for leaf in tree_flatten((cond.args, cond.kwargs))[0] if isinstance(leaf, Tensor)]
    if gradients and not any(leaf.requires_grad for leaf in given):
        raise InputError(
            f"{runs.name}: the condition does not hang on its text encoder's embedding table (the "
            "encoder cuts the gradient); take wrt='prompt'"
        )
    return Embedded(cond, tuple(leaves))


def tables(encoder: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the embedding tables of a text encoder (T5 holds its table under two names)."""
    named: Any = encoder
    size = named.get_input_embeddings().weight.shape
    found = (m for m in encoder.modules() if isinstance(m, torch.nn.Embedding))
    return [m for m in found if m.weight.shape == size]


def _leaf_hook(name: str, leaves: list[Leaf], gradients: bool) -> Any:
    def hook(run: Any, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        leaf = output.detach().clone().requires_grad_() if gradients else output
        leaves.append(Leaf(name, args[0] if args else kwargs["input"], leaf))
        return leaf if gradients else None

    return hook
