"""Borrow a user's objects: a copy of a pipeline that runs beside it, flags, adapters."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from memfold.types import InputError

from .scope import ORIGIN, Scope, hooked, is_compiled, is_pipeline, spies_of, stand_in
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
def frozen(module: torch.nn.Module, *given: Any) -> Iterator[None]:
    """Leave the parameters out of the graph inside the block.

    Alone, their flags are turned off and restored. Beside other threads, which may train them, the
    flags stay: in this thread's operations a parameter counts as a constant.

    Args:
        module: whose parameters.
        given: tensors to keep in the graph, should they be parameters.

    Yields:
        Nothing.
    """
    if not torch.is_grad_enabled():
        yield
        return
    if threading.active_count() > 1:
        with _Constants({id(tensor) for tensor in given}):
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


class _Constants(TorchFunctionMode):
    """Takes parameters for constants, in the thread that entered it."""

    def __init__(self, given: set[int]) -> None:
        super().__init__()
        self.given = given

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of several tensors with each parameter detached.

        What takes a parameter alone may give back the parameter itself, as `.to` does, or a part of
        it, which is detached.
        """
        args, kwargs = tuple(args), kwargs or {}
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        if len(given) < 2:
            out = func(*args, **kwargs)
            part = given and self._is_constant(given[0]) and isinstance(out, torch.Tensor)
            return out.detach() if part and type(out) is not torch.nn.Parameter else out
        args, kwargs = tree_map(self._constant, (args, kwargs))
        return func(*args, **kwargs)

    def _is_constant(self, value: Any) -> bool:
        return type(value) is torch.nn.Parameter and id(value) not in self.given

    def _constant(self, value: Any) -> Any:
        return value.detach() if self._is_constant(value) else value


def adapters(pipe: Any) -> list[Any]:
    """Return the layers of a pipeline that hold an adapter: peft's mark on them is their switch."""
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [m for part in parts for m in part.modules() if hasattr(m, "_disable_adapters")]


@contextmanager
def adapters_off(pipe: Any) -> Iterator[None]:
    """Take each layer's answer without its adapter inside the block, in this context alone.

    The switches of peft are the layers' own: another thread's draw would lose its adapter.

    Raises:
        InputError: an adapter is fused with the weights, or the network is compiled, so that no
            layer in it can be asked alone.
    """
    layers = adapters(pipe)
    if any(getattr(layer, "merged", False) for layer in layers):
        raise InputError(
            f"base = 'adapter off', but {type(pipe).__name__}'s adapter is fused with the weights; "
            "call .unfuse_lora() on it first, or pass the base pipeline"
        )
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module) and any(map(is_compiled, part.modules())):
            raise InputError(
                f"base = 'adapter off', but a part of {type(pipe).__name__} is compiled; pass the "
                "base pipeline"
            )
    with ExitStack() as stack:
        scope = stack.enter_context(Scope(pipe).opened())
        for layer in layers:
            bare = getattr(layer, "base_layer", None) or getattr(layer, "original_module", None)
            if bare is not None:
                stack.enter_context(hooked(layer, after=partial(_bare, scope, bare)))
        yield


def _bare(scope: Scope, bare: Any, args: tuple, kwargs: dict, output: Any) -> Any:
    """Answer as a layer does whose adapter is switched off."""
    if not scope.is_open():
        return None
    return bare(*args, **{k: v for k, v in kwargs.items() if k != "adapter_names"})
