"""Change what a running pipeline's network predicts or is conditioned on, by hooks alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from memfold.denoisers.adapters._calls import (
    Condition,
    first_tensor,
    flatten,
    repeated,
    unbatch,
)
from memfold.denoisers.adapters.scope import Scope
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.tensors import expand
from memfold.types import InputError

from .view import StepView, view_of

_STEP = ("model_output", "timestep", "sample")  # how a scheduler's step begins
Change = Callable[[StepView], Tensor | None]


@contextmanager
def steered(model: TextToImage, change: Change) -> Iterator[None]:
    """Replace the guided prediction of each step that this pipeline makes inside the block.

    `change` sees D_c and D_0 at each network call and returns the D that the pipeline shall step
    with, or None to leave the step alone. Both halves of guidance are set to it, so that any
    guidance scale gives it; where a pipeline computes them in two calls, its scheduler is given it.
    A step that is left alone is the pipeline's own, bit for bit; so is every step of another
    pipeline, or in another thread, that shares the network.

    Args:
        model: the pipeline.
        change: from a view of the step (its `guided` is D_c) to the wanted D, shape (b, *d).

    Yields:
        Nothing.

    Raises:
        InputError: the change returns another shape.
    """
    with _two_calls(model, change) if model.layout.calls == 2 else _one_call(model, change):
        yield


@contextmanager
def _one_call(model: TextToImage, change: Change) -> Iterator[None]:
    """Steer by what the network returns."""
    state = {"index": 0}

    def after(run: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        z, t = model.asked(args, kwargs)
        prediction = model.layout.prediction(output)
        both = guided_run(model, z, run)
        n = len(z) // 2 if both else len(z)
        half = prediction.chunk(2)[model.layout.conditional or 0] if both else prediction
        index = state["index"]
        sigma = model.sigma_seen(t, run)
        view = view_of(model, [(z, t, prediction)], half, n, index, sigma=sigma)
        state["index"] += 1
        raw = _wanted(model, change, view, prediction)
        if raw is None:
            return None
        return _rewritten(model, output, torch.cat([raw, raw]) if both else raw)

    with Scope(model.pipe).opened() as scope, scope.hooked(model.network, after=after):
        yield


@contextmanager
def _two_calls(model: TextToImage, change: Change) -> Iterator[None]:
    """Steer by what the scheduler is given: the first call has returned before the second."""
    outputs, state = [], {"index": 0}

    def after(run: Any, args: tuple, kwargs: dict, output: Any) -> None:
        z, t = model.asked(args, kwargs)
        outputs.append((z, t, model.layout.prediction(output)))

    def spy(run: Any, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        named = dict(zip(_STEP, args, strict=False)) | kwargs
        n, sigma = len(named["sample"]), model.sigma_at(float(named["timestep"]), run)
        half = outputs[min(model.layout.conditional or 0, len(outputs) - 1)][2]
        view = view_of(model, outputs, half, n, state["index"], sigma=sigma)
        outputs.clear()
        state["index"] += 1
        raw = _wanted(model, change, view, named["model_output"])
        if raw is None:
            return step(*args, **kwargs)
        named["model_output"] = raw
        return step(*(named.pop(k) for k in _STEP[: len(args)]), *args[len(_STEP) :], **named)

    with (
        Scope(model.pipe).opened() as scope,
        scope.hooked(model.network, after=after),
        scope.spied(model.pipe.scheduler, spy, changes=True),
    ):
        yield


def _wanted(model: TextToImage, change: Change, view: StepView, like: Tensor) -> Tensor | None:
    """Ask for the change and bring it to the network's prediction; None where there is none."""
    wanted = change(view)
    if wanted is None:
        return None
    if wanted.shape != view.x.shape:
        raise InputError(
            f"the change returned shape {tuple(wanted.shape)} for latents of shape "
            f"{tuple(view.x.shape)}; return a denoised latent of the same shape, or None"
        )
    return prediction_of(model, wanted, view).to(like.dtype)


@contextmanager
def conditioned(model: TextToImage, cond: Condition) -> Iterator[None]:
    """Give the network another condition in place of the prompt's in this pipeline's runs.

    The unconditional half stays what the pipeline made it. Works for every family, whether its
    pipeline takes prompt embeddings or not.

    Args:
        model: the pipeline.
        cond: what stands for the prompt; from `model.condition`, changed.

    Yields:
        Nothing.

    Raises:
        InputError: the condition does not fit the pipeline's calls.
    """
    if model.layout.calls == 2 and model.layout.conditional == 1:
        raise InputError(f"{model.name} asks without the prompt first; memfold cannot replace it")
    last: list[Tensor] = []

    def before(run: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        z, t = model.asked(args, kwargs)
        both, half = guided_run(model, z, run), model.layout.conditional or 0
        if model.layout.calls == 2:
            now = [z, t]
            again = bool(last) and all(map(torch.equal, now, last))
            last[:] = [] if again else now
            if again:  # the same latent and time once more: the half without the prompt
                return None
        old, tree = flatten((args, dict(kwargs)))
        new = flatten((cond.args, cond.kwargs))[0]
        if len(old) != len(new):
            raise InputError("the condition was recorded from another kind of call; record it anew")
        n = len(z) // 2 if both else len(z)
        leaves = []
        for have, want, axis in zip(old, new, cond.axes, strict=True):
            if want is None or axis is None:
                leaves.append(have)
                continue
            leaves.append(_exchanged(have, want, axis, n, half if both else None))
        return tree_unflatten(leaves, tree)

    with Scope(model.pipe).opened() as scope, scope.hooked(model.network, before=before):
        yield


def _exchanged(have: Any, want: Any, axis: Any, n: int, half: int | None) -> Any:
    """Put one image's `want` in the place of n images' `have`, or of one half of it."""
    if isinstance(axis, tuple):
        many = zip(have, want, axis, strict=True)
        return [h if a is None else _exchanged(h, w, a, n, half) for h, w, a in many]
    if isinstance(have, list):
        rows, start = [w.detach().to(have[0]) for w in want] * n, n * (half or 0)
        return [*have[:start], *rows, *have[start + n :]]
    parts = [have] if half is None else list(have.chunk(2, dim=axis))
    parts[half or 0] = repeated(want.detach().to(have), n, axis)
    return torch.cat(parts, dim=axis)


def guided_run(model: TextToImage, z: Tensor, run: Any) -> bool:
    """Tell whether a call holds both halves of guidance: its latents come twice."""
    if model.layout.calls != 1 or model.layout.conditional is None or len(z) % 2:
        return False
    says = getattr(run, "do_classifier_free_guidance", None)
    return bool(torch.equal(*z.chunk(2))) if says is None else bool(says)


def prediction_of(model: TextToImage, denoised: Tensor, view: StepView) -> Tensor:
    """Return the network's prediction F that means D; every D is a x + b F."""
    sigma = expand(view.sigma, view.x)
    zero = torch.zeros_like(view.x)
    none = model.predictor(zero).denoise(view.x, sigma, None)
    unit = model.predictor(zero + 1).denoise(zero, sigma, None)  # b: nothing cancels at x = 0
    return (denoised - none) / unit


def _rewritten(model: TextToImage, output: Any, prediction: Tensor) -> Any:
    """Put a prediction into the network's own output."""
    raw, kind = first_tensor(output), model.layout.output
    if "negative" in kind:
        prediction = -prediction
    if "half" in kind:
        prediction = torch.cat([prediction, raw.chunk(2, dim=1)[1]], dim=1)
    if not isinstance(output, Tensor):
        prediction = unbatch(prediction, output[0])
    if isinstance(output, Tensor):
        return prediction
    if isinstance(output, tuple):
        return (prediction, *output[1:])
    output = type(output)(**output)
    output[next(iter(output))] = prediction
    return output
