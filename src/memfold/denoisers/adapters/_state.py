"""Borrow a user's objects: a copy of a pipeline that runs beside it, flags, adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .scope import ORIGIN, is_pipeline, spies_of, stand_in
from .tokenizers import own_tokenizer

_OFFLOADING = ("_all_hooks", "_offload_device", "_offload_gpu_id")  # diffusers' own


@contextmanager
def borrowed(pipe: Any) -> Iterator[Any]:
    """Run a pipeline's code beside its user: on a copy with the same networks.

    What a run writes down, in the pipeline (its guidance, its progress bar), in the scheduler
    (timesteps, the history of a solver) and in tokenizers (padding, truncation), stays in the copy.
    A run of the user's may be under way, here or in another thread. A scheduler whose `step`
    someone else has replaced is not copied, since their function is bound to it; it is put back as
    it was.

    Args:
        pipe: the pipeline.

    Yields:
        The copy, which shows no progress bar.
    """
    shadow = _shadow(pipe, {})
    shared = shadow.scheduler is pipe.scheduler
    before = dict(vars(pipe.scheduler)) if shared else {}
    try:
        yield shadow
    finally:
        _return_offloading(shadow)
        if shared:
            for name in set(vars(pipe.scheduler)) - set(before) - {"step"}:
                delattr(pipe.scheduler, name)
            vars(pipe.scheduler).update({k: v for k, v in before.items() if k != "step"})


def _shadow(pipe: Any, schedulers: dict[int, Any]) -> Any:
    """Copy a pipeline, those that it combines, their schedulers and tokenizers, each once."""
    shadow = object.__new__(type(pipe))
    own = vars(shadow)
    own.update(vars(pipe))
    scheduler = pipe.scheduler
    if id(scheduler) not in schedulers:
        schedulers[id(scheduler)] = _scheduler(scheduler)
    own["scheduler"] = schedulers[id(scheduler)]
    for name, part in vars(pipe).items():
        if is_pipeline(part):
            own[name] = _shadow(part, schedulers)
        elif name.startswith("tokenizer") and callable(part):
            own[name] = own_tokenizer(pipe, name)
    bar = dict(own.get("_progress_bar_config") or {})
    own["_progress_bar_config"] = bar | {"disable": True}
    own[ORIGIN] = pipe
    return shadow


def _scheduler(scheduler: Any) -> Any:
    """Copy a scheduler, with whoever watches its steps."""
    spies = spies_of(scheduler, "step")
    step = vars(scheduler).get("step")
    if step is not None and (spies is None or step.memfold_own is not None):
        return scheduler  # somebody else's step
    twin = object.__new__(type(scheduler))
    state = {k: v for k, v in vars(scheduler).items() if k != "step"}
    vars(twin).update(copy.deepcopy(state))
    if spies is not None:
        twin.step = stand_in(twin.step, spies)
    return twin


def _return_offloading(shadow: Any) -> None:
    """Tell the user's pipeline which hooks its parts carry now: a run renews them."""
    for part in vars(shadow).values():
        if is_pipeline(part) and ORIGIN in vars(part):
            _return_offloading(part)
    found = {name: vars(shadow)[name] for name in _OFFLOADING if name in vars(shadow)}
    vars(vars(shadow)[ORIGIN]).update(found)


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
