"""Watch what a diffusers pipeline hands to its denoising network, and hand it over again.

A pipeline encodes its prompt in its own way; memfold does not repeat that code. It runs the
pipeline itself with hooks on the network and on the scheduler's step, and records the arguments.
Nothing of the pipeline is changed: every hook is taken away again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from memfold.types import InputError

from .scope import Scope, own_calls

Axis = int | tuple[Any, ...] | None
_SAMPLE = ("sample", "hidden_states", "x", "latents")
_TIME = ("timestep", "timesteps", "t")


class Stop(Exception):
    """Ends a pipeline's run once enough calls are recorded."""


@dataclass(frozen=True)
class Call:
    """One call of the network.

    Attributes:
        args: positional arguments.
        kwargs: keyword arguments.
        output: what the network returned, a tensor; None if the run ended before that.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor | None = None

    @property
    def where(self) -> tuple[int | str, int | str]:
        """Places of the latent and of the time among the arguments."""
        return _place(self, 0, _SAMPLE, "latent"), _place(self, 1, _TIME, "time")

    def get(self, place: int | str) -> Any:
        """Return the argument at a place."""
        return self.args[place] if isinstance(place, int) else self.kwargs[place]

    @property
    def latent(self) -> Tensor:
        """The latent that the network was called with."""
        return batch(self.get(self.where[0]))

    @property
    def time(self) -> Tensor:
        """The time that the network was called with, as a tensor."""
        return torch.as_tensor(self.get(self.where[1]))


@dataclass(frozen=True)
class Step:
    """One call of the scheduler's step.

    Attributes:
        prediction: what the pipeline made of the network's output.
        time: the scheduler's own time.
        sample: the latent, in the scheduler's coordinates.
        sigma: the noise that the scheduler itself counts with at this step; NaN where it has no
            list of them.
    """

    prediction: Tensor
    time: float
    sample: Tensor
    sigma: float = float("nan")


@dataclass
class Record:
    """Calls and steps in their order; `steps[i]` follows `calls[: seen[i]]`."""

    calls: list[Call] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)


@contextmanager
def recorded(network: torch.nn.Module, pipe: Any, stop_after: int | None) -> Iterator[Record]:
    """Record the calls of a network and its scheduler that one pipeline makes inside the block.

    Args:
        network: the denoising network.
        pipe: the pipeline object that runs inside the block, as memfold's own.
        stop_after: how many calls to record before `Stop` is raised, before the last one
            computes; None for a whole run.

    Yields:
        The record, filled while the block runs.
    """
    record, scope = Record(), Scope(pipe, own=True)

    def before(run: Any, args: tuple, kwargs: dict) -> None:
        if stop_after is not None and len(record.calls) + 1 >= stop_after:
            record.calls.append(Call(args, dict(kwargs)))
            raise Stop

    def after(run: Any, args: tuple, kwargs: dict, output: Any) -> None:
        record.calls.append(Call(args, dict(kwargs), first_tensor(output)))

    def spy(run: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        names = dict(zip(("model_output", "timestep", "sample"), args, strict=False)) | kwargs
        record.seen.append(len(record.calls))
        out = step(*args, **kwargs)
        sigma, time = _own_sigma(pipe.scheduler), float(names["timestep"])
        record.steps.append(Step(names["model_output"], time, names["sample"], sigma))
        return out

    with (
        scope.opened(),
        scope.hooked(network, before=before, after=after),
        scope.spied(pipe.scheduler, spy),
        own_calls(),
    ):
        yield record


def _own_sigma(scheduler: Any) -> float:
    """Read the sigma of the step that a scheduler has just made."""
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if not isinstance(sigmas, Tensor) or index is None or not 0 < index <= len(sigmas):
        return float("nan")
    return float(sigmas[index - 1])


def batch(latents: Any) -> Any:
    """Make one tensor of a list of latents, one an image and of one frame (Z-Image)."""
    if not _is_ragged(latents):
        return latents
    return torch.stack(latents).squeeze(2)


def unbatch(latents: Tensor, like: Any) -> Any:
    """Bring latents to the form that a network was given them in: a tensor, or such a list."""
    return list(latents.unsqueeze(2).unbind()) if _is_ragged(like) else latents


def _is_ragged(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Tensor) for v in value)


def flatten(arguments: Any) -> tuple[list[Any], Any]:
    """Flatten a network's arguments; a list of tensors, one an image, stays one leaf."""
    return tree_flatten(arguments, is_leaf=_is_ragged)


def first_tensor(output: Any) -> Tensor:
    """Return the prediction out of a network's output: a tensor, a tuple, or a diffusers output."""
    found = output if isinstance(output, Tensor) else output[0]
    found = batch(found)
    if not isinstance(found, Tensor):
        raise InputError(
            f"the network returned a {type(output).__name__} that holds no tensor; "
            "memfold knows networks that take and return their latents as one tensor"
        )
    return found


@dataclass(frozen=True)
class Condition:
    """What a pipeline hands its network for one prompt, beside latent and time.

    A batch takes one condition; its tensors have batch 1 where they have a batch at all.

    Attributes:
        prompt: the words, for reports.
        args: positional arguments; None stands at the places of latent and time.
        kwargs: keyword arguments; None stands for latent and time.
        axes: for each leaf of (args, kwargs), which axis is the batch; None for none. A list of
            tensors is one leaf: with 0, of one tensor an image; with an axis for each tensor else.
    """

    prompt: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    axes: tuple[Axis, ...]

    def expanded(self, n: int) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments for a batch of n."""
        leaves, tree = flatten((self.args, self.kwargs))
        full = [repeated(leaf, n, axis) for leaf, axis in zip(leaves, self.axes, strict=True)]
        args, kwargs = tree_unflatten(full, tree)
        return list(args), dict(kwargs)

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Condition:
        """Return a copy whose floating-point keyword tensors went through `change(name, leaf)`."""
        kwargs = {
            k: change(k, v) if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in self.kwargs.items()
        }
        return replace(self, kwargs=kwargs)


def strip(call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, without the latent and the time."""
    sample, time = call.where
    args = tuple(None if i in (sample, time) else a for i, a in enumerate(call.args))
    kwargs = {k: None if k in (sample, time) else v for k, v in call.kwargs.items()}
    return args, kwargs


def repeated(leaf: Any, n: int, axis: Axis) -> Any:
    """Repeat a leaf of one image for n; a leaf without a batch stays as it is."""
    if axis is None:
        return leaf
    if isinstance(axis, tuple):
        return [repeated(one, n, own) for one, own in zip(leaf, axis, strict=True)]
    if isinstance(leaf, list):
        return leaf * n
    size = [n if i == axis else k for i, k in enumerate(leaf.shape)]
    return leaf.expand(size).contiguous()


def batch_axes(one: Call, two: Call) -> tuple[Axis, ...]:
    """Find the axis of each leaf that grew with the number of images, from 1 to 2.

    Raises:
        InputError: a leaf changed in another way.
    """
    a, b = (flatten(strip(call))[0] for call in (one, two))
    if len(a) != len(b):
        raise InputError(
            "the pipeline calls its network with other arguments for two images than for one; "
            "memfold cannot repeat that"
        )
    return tuple(_batch_axis(x, y) for x, y in zip(a, b, strict=True))


def _batch_axis(x: Any, y: Any) -> Axis:
    if _is_ragged(x) and _is_ragged(y) and len(x) == len(y):  # such as one a picture
        each = tuple(_batch_axis(a, b) for a, b in zip(x, y, strict=True))
        return None if all(axis is None for axis in each) else each
    if _is_ragged(x) and _is_ragged(y) and len(y) == 2 * len(x):  # one an image
        return 0
    if not isinstance(x, Tensor) or (isinstance(y, Tensor) and x.shape == y.shape):
        return None
    if isinstance(y, Tensor) and x.ndim == y.ndim:
        grown = [i for i, (m, n) in enumerate(zip(x.shape, y.shape, strict=True)) if m != n]
        if len(grown) == 1 and y.shape[grown[0]] == 2 * x.shape[grown[0]]:
            return grown[0]
    other = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    raise InputError(
        f"the pipeline gives its network an argument of shape {tuple(x.shape)} for one image and "
        f"{other} for two; memfold expects one axis that doubles"
    )


def pieces(leaf: Any, of: int, axis: Any) -> list[Any]:
    """Part a leaf's batch into equal parts, and take the first image of each."""
    if isinstance(axis, tuple):
        each = [
            [one] * of if own is None else pieces(one, of, own)
            for one, own in zip(leaf, axis, strict=True)
        ]
        return [list(parts) for parts in zip(*each, strict=True)]
    if isinstance(leaf, list):
        return [[leaf[i * len(leaf) // of]] for i in range(of)]
    return [piece.narrow(axis, 0, 1) for piece in leaf.chunk(of, dim=axis)]


def part(call: Call, axes: tuple[Axis, ...], index: int, of: int, prompt: str) -> Condition:
    """Take one of the equal parts of a call's batch (a half of guidance) as a condition."""
    leaves, tree = flatten(strip(call))
    if len(leaves) != len(axes):
        raise InputError(
            f"the pipeline gives its network {len(leaves)} arguments under guidance and "
            f"{len(axes)} without; memfold cannot tell which belong to the prompt"
        )
    own = [
        leaf if axis is None else pieces(leaf, of, axis)[index]
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    args, kwargs = tree_unflatten(own, tree)
    return Condition(prompt, args, kwargs, axes)


def same(one: Condition, other: Condition) -> float:
    """Return the largest difference between two conditions; infinity if their shapes differ."""
    a, b = (tree_flatten((c.args, c.kwargs))[0] for c in (one, other))
    if len(a) != len(b):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor) != isinstance(y, Tensor):
            return float("inf")
        if isinstance(x, Tensor):
            if x.shape != y.shape:
                return float("inf")
            worst = max(worst, float((_wide(x) - _wide(y)).abs().max()) if x.numel() else 0.0)
    return worst


def _wide(x: Tensor) -> Tensor:
    return x if x.is_complex() else x.float()


def _place(call: Call, index: int, names: tuple[str, ...], what: str) -> int | str:
    for name in names:
        if name in call.kwargs:
            return name
    if len(call.args) > index:
        return index
    known = ", ".join(names)
    raise InputError(
        f"no {what} was found among the network's arguments ({_words(call.kwargs)}); looked for "
        f"positional ones and {known}"
    )


def _words(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none by name"
