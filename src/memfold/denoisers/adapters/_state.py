"""Borrow a user's objects and give them back as they were: flags, attributes, adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

OFFLOADING = frozenset({"_all_hooks", "_offload_device", "_offload_gpu_id"})  # diffusers' own


@contextmanager
def frozen(module: torch.nn.Module) -> Iterator[None]:
    """Leave the parameters out of the graph inside the block; restore their flags after it."""
    if not torch.is_grad_enabled():
        yield
        return
    flags = [p for p in module.parameters() if p.requires_grad]
    for p in flags:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in flags:
            p.requires_grad_(True)


@contextmanager
def kept(thing: Any, *, but: frozenset[str] = frozenset()) -> Iterator[None]:
    """Put an object's own state back after the block: timesteps of a scheduler, guidance of a run.

    A run of the user's may be under way, whose next step reads that state.
    """
    before = {k: v for k, v in vars(thing).items() if k not in but}
    try:
        yield
    finally:
        for name in set(vars(thing)) - set(before) - but:
            delattr(thing, name)
        vars(thing).update(before)


def adapters(pipe: Any) -> list[Any]:
    """Return the layers of a pipeline that hold an adapter: peft's mark on them is their switch."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [m for part in parts for m in part.modules() if hasattr(m, "_disable_adapters")]


@contextmanager
def adapters_off(pipe: Any) -> Iterator[None]:
    """Turn the switches off inside the block; peft's own methods would change requires_grad too."""
    layers = adapters(pipe)
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, off in zip(layers, before, strict=True):
            layer._disable_adapters = off
