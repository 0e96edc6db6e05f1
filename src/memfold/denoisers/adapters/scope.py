"""Which run a hook belongs to: one pipeline object's, in the context that set the hook.

Modules and schedulers are shared: by pipelines, and by the threads of a server. A hook on one of
them is called by all. A `Scope` lets through what was asked inside its block, by the run of its
own pipeline object. The block is a context in the sense of `contextvars`: a thread, or what copies
its context (`asyncio.to_thread`); a worker of a pool has a context of its own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from types import FrameType
from typing import Any

import torch

Before = Callable[[Any, tuple, dict[str, Any]], tuple[tuple, dict[str, Any]] | None]
After = Callable[[Any, tuple, dict[str, Any], Any], Any]

ORIGIN = "_memfold_origin"  # on a borrowed pipeline: the user's own object
_OPEN: ContextVar[frozenset[Scope]] = ContextVar("memfold_open_scopes", default=frozenset())
_OWN = ContextVar("memfold_own_call", default=False)
_LOCK = threading.RLock()  # torch counts its hooks without one


@contextmanager
def own_calls() -> Iterator[None]:
    """Mark the network's calls inside the block as memfold's own, no part of the user's run."""
    token = _OWN.set(True)
    try:
        yield
    finally:
        _OWN.reset(token)


def is_own_call() -> bool:
    """Tell whether memfold itself asks the network; whoever watches a run looks away then."""
    return _OWN.get()


class Scope:
    """The runs of one pipeline object inside one block of one context.

    Args:
        pipe: the pipeline object; runs of its borrowed copies count as its own.
        own: whether the runs are memfold's own; if not, those are left out.
    """

    def __init__(self, pipe: Any, *, own: bool = False) -> None:
        self.pipe, self.own = pipe, own

    @contextmanager
    def opened(self) -> Iterator[Scope]:
        """Let calls through inside the block."""
        _OPEN.set(_OPEN.get() | {self})
        try:
            yield self
        finally:
            _OPEN.set(_OPEN.get() - {self})

    def is_open(self) -> bool:
        """Tell whether the present call is made inside the block, whoever runs."""
        return self in _OPEN.get()

    def run(self) -> Any:
        """Return the pipeline object whose run the present call belongs to; None for no such run.

        It is the scope's own object, or a copy of it that memfold borrowed.
        """
        if not self.is_open() or self.own != is_own_call():
            return None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            # Of frames by other names no locals are read: in Python 3.11 that would keep them.
            if code.co_name in ("__call__", "encode_prompt") and code.co_argcount:
                owner = frame.f_locals.get(code.co_varnames[0])
                if owner is self.pipe or _origin(owner) is self.pipe:
                    return owner
                if is_pipeline(owner) and not _is_part(owner, self.pipe):
                    return None  # another pipeline's run, be it inside one of ours
            frame = frame.f_back
        return None

    @contextmanager
    def hooked(
        self, module: torch.nn.Module, *, before: Before | None = None, after: After | None = None
    ) -> Iterator[None]:
        """Look at a module's calls, or change them, where they belong to the scope.

        Args:
            module: may be shared and compiled.
            before: `before(run, args, kwargs)` returns other arguments, or None.
            after: `after(run, args, kwargs, output)` returns another output, or None.

        Yields:
            Nothing.
        """
        first, then = (hook and partial(self._seen, hook) for hook in (before, after))
        with hooked(module, first, then):
            yield

    @contextmanager
    def spied(
        self, scheduler: Any, spy: Callable[..., Any], *, changes: bool = False
    ) -> Iterator[None]:
        """Call `spy(run, step, *args, **kwargs)` in place of the scheduler's step in the scope.

        Args:
            scheduler: may be shared by other pipelines.
            spy: calls `step`, and returns what it returned.
            changes: see `replaced`.

        Yields:
            Nothing.
        """

        def scoped(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            run = self.run()
            return step(*args, **kwargs) if run is None else spy(run, step, *args, **kwargs)

        with replaced(scheduler, "step", scoped, changes=changes):
            yield

    def _seen(self, hook: Callable[..., Any], *given: Any) -> Any:
        run = self.run()
        return None if run is None else hook(run, *given)


def is_pipeline(thing: Any) -> bool:
    """Tell whether an object is a diffusers pipeline, by what it has."""
    return hasattr(type(thing), "components") and hasattr(thing, "scheduler")


def is_compiled(module: torch.nn.Module) -> bool:
    """Tell whether torch.compile stands before a module's own code."""
    return vars(module).get("_compiled_call_impl") is not None or "_orig_mod" in module._modules


def _origin(owner: Any) -> Any:
    return getattr(owner, "__dict__", {}).get(ORIGIN)


def _is_part(inner: Any, pipe: Any) -> bool:
    """Tell whether a pipeline is one of those that another one combines."""
    whole = _origin(inner) or inner
    return any(part is inner or part is whole for part in vars(pipe).values())


@contextmanager
def hooked(
    module: torch.nn.Module,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Call `before(args, kwargs)` and `after(args, kwargs, output)` around every call of a module.

    Another thread's call may find a hook whose removal, or whose entry, is only half done; torch
    leaves out the keyword arguments then. Such a call was not made inside the block.
    """
    if vars(module).get("_compiled_call_impl") is not None:
        # torch.compile looks for hooks only when it compiles: stand around what it made
        with replaced(module, "_compiled_call_impl", partial(_around, before, after)):
            yield
        return

    def first(module: Any, args: tuple, *rest: Any) -> Any:
        return before(args, *rest) if before is not None and len(rest) == 1 else None

    def then(module: Any, args: tuple, *rest: Any) -> Any:
        return after(args, *rest) if after is not None and len(rest) == 2 else None

    with ExitStack() as stack:
        with _LOCK:
            handles = []
            if before is not None:
                handles.append(module.register_forward_pre_hook(first, with_kwargs=True))
            if after is not None:
                handles.append(module.register_forward_hook(then, with_kwargs=True))

        def remove() -> None:
            with _LOCK:
                for handle in handles:
                    handle.remove()

        stack.callback(remove)
        yield


def _around(before: Any, after: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    changed = before(args, kwargs) if before is not None else None
    args, kwargs = (args, kwargs) if changed is None else changed
    output = call(*args, **kwargs)
    changed = after(args, kwargs, output) if after is not None else None
    return output if changed is None else changed


@contextmanager
def replaced(
    thing: Any, name: str, spy: Callable[..., Any], *, changes: bool = False
) -> Iterator[None]:
    """Call `spy(method, *args, **kwargs)` in place of an object's method inside the block.

    The stand-in shows the method's own signature: pipelines read that of a scheduler's step to see
    whether it takes a generator and eta. It stays until the last of several spies is gone, which
    may be another thread's.

    Args:
        thing: the object; its attribute is put back.
        name: of the method.
        spy: calls the method that it is given, and returns what that returned.
        changes: whether it changes the arguments; such a spy goes before all that only watch,
            whichever came first, so that those see what the method is given.

    Yields:
        Nothing.
    """
    entry = (changes, spy)
    with _LOCK:
        spies = spies_of(thing, name)
        if spies is None:
            spies = []
            setattr(thing, name, stand_in(getattr(thing, name), spies, vars(thing).get(name)))
        spies.insert(0 if changes else sum(first for first, _ in spies), entry)
    try:
        yield
    finally:
        with _LOCK:
            spies.remove(entry)
            if not spies and spies_of(thing, name) is spies:
                own = vars(thing)[name].memfold_own
                if own is None:
                    delattr(thing, name)  # the instance's attribute: the class's is there again
                else:
                    setattr(thing, name, own)


def spies_of(thing: Any, name: str) -> list[tuple[bool, Callable[..., Any]]] | None:
    """Return the spies in an object's method; None where there is no stand-in."""
    return getattr(vars(thing).get(name), "memfold_spies", None)


def stand_in(
    method: Callable[..., Any], spies: list[tuple[bool, Callable[..., Any]]], own: Any = None
) -> Callable[..., Any]:
    """Make a method that goes through the spies, the first one outermost."""

    @wraps(method)
    def through(*args: Any, **kwargs: Any) -> Any:
        call = method
        for _, spy in reversed(tuple(spies)):
            call = partial(spy, call)
        return call(*args, **kwargs)

    vars(through).update(memfold_spies=spies, memfold_own=own)
    return through
