"""How a pipeline calls its denoising network: read off a few of its own calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.parameterizations import FlowDenoiser
from memfold.denoisers.schedules import Schedule
from memfold.types import InputError

from ._calls import Condition, Record, batched_leaves, first_tensor, part, same
from ._runs import NETWORKS, Runs

PROBE = "a photo of a dog"  # any words: only the structure of the calls is read
_GUIDED = 5.0
_ROUNDING = 0.03  # times that are rounded to whole rows of the table


@dataclass(frozen=True)
class Layout:
    """How a pipeline calls its network.

    Attributes:
        batched: for each leaf of the arguments, whether its first axis is the batch.
        conditional: index of the conditional half (or call); None if no guidance was seen.
        calls: 1 if both halves come in one batch, 2 if in two calls.
        scale: the network's time is `scale * t + shift`, with the scheduler's own t.
        shift: see there.
        louder: the pipeline's sigma at a time, over that of the scheduler's table (a flow that the
            pipeline shifts by the size of the image without telling the network).
        output: "as it is", "first half" (of doubled channels) or "negative".
        guided: pipeline arguments that switch guidance on.
        plain: pipeline arguments that switch it off.
    """

    batched: tuple[bool, ...]
    conditional: int | None
    calls: int
    scale: float
    shift: float
    louder: float
    output: str
    guided: dict[str, Any]
    plain: dict[str, Any]

    def prediction(self, output: Any) -> Tensor:
        """Bring a network's output to what the pipeline hands its scheduler."""
        return _OUTPUTS[self.output](first_tensor(output))


_OUTPUTS = {
    "as it is": lambda out: out,
    "first half": lambda out: out.chunk(2, dim=1)[0],
    "negative": lambda out: -out,
    "first half, negative": lambda out: -out.chunk(2, dim=1)[0],
}


@dataclass(frozen=True)
class Look:
    """What a look at a pipeline finds.

    Attributes:
        layout: how it calls its network.
        shape: shape of one latent, as its scheduler steps it.
        places: where the latent and the time stand among the network's arguments.
        dtype: of the latent that the network is given.
        time_dtype: of the time.
    """

    layout: Layout
    shape: tuple[int, ...]
    places: tuple[int | str, int | str]
    dtype: torch.dtype
    time_dtype: torch.dtype


def look(runs: Runs, kind: type, table: Schedule) -> Look:
    """Run a pipeline three times and read how it calls its network: three passes in all.

    Args:
        runs: the pipeline.
        kind: the Denoiser of its network's parameterisation.
        table: the scheduler's own schedule.

    Returns:
        What was found.

    Raises:
        InputError: it calls its network in a way that memfold does not know.
    """
    guided, plain = _switches(runs)
    try:
        whole = runs.record(PROBE, 1, 3, plain)
    except InputError as error:
        if "image" not in runs.accepts:
            raise
        raise InputError(
            f"{runs.name} needs an image: it is no text-to-image pipeline (looked for a run with a "
            f"prompt alone: {str(error)[:100]}); pass the text-to-image pipeline of the same "
            "weights, as by diffusers.AutoPipelineForText2Image.from_pipe(pipe)"
        ) from error
    if not whole.calls or not whole.steps:
        raise InputError(
            f"{runs.name} did not call its {'/'.join(NETWORKS)} and scheduler.step; memfold "
            "cannot watch it"
        )
    one = whole.calls[0]
    two = runs.record(PROBE, 2, 1, plain).calls[0]
    batched = batched_leaves(one, two)
    if len(two.latent) != 2 * len(one.latent) or len(one.latent) != 1:
        raise InputError(
            f"{runs.name} calls its network with a batch of {len(one.latent)} for one image "
            f"and {len(two.latent)} for two, without guidance; memfold expects 1 and 2"
        )
    scale, shift = _affine(whole)
    louder = _louder(runs, whole, kind, table)
    conditional, calls = _find_halves(runs, batched, guided, part(one, batched, 0, 1, PROBE))
    output = _output(whole)
    layout = Layout(batched, conditional, calls, scale, shift, louder, output, guided, plain)
    shape = tuple(whole.steps[0].sample.shape[1:])
    return Look(layout, shape, one.where, one.latent.dtype, _float(one.time.dtype))


def _louder(runs: Runs, record: Record, kind: type, table: Schedule) -> float:
    """Compare the scheduler's own sigmas with its table; a flow may be shifted by a factor.

    s' = k s / (1 + (k - 1) s) is sigma' = k sigma in VE coordinates, sigma = s / (1 - s).

    Raises:
        InputError: they differ by more than a factor.
    """
    flow = issubclass(kind, FlowDenoiser)
    ratios = []
    for step in record.steps:
        own = step.sigma / (1 - step.sigma) if flow and step.sigma != 1 else step.sigma
        if table.sigma_min < own < table.sigma_max and step.sigma != 1:
            ratios.append(own / float(table.sigma(torch.tensor([step.time]))))
    if all(abs(r - 1) < _ROUNDING for r in ratios):
        return 1.0
    if not flow or max(ratios) > (1 + _ROUNDING) * min(ratios):
        raise InputError(
            f"{runs.name}'s scheduler counts with other sigmas than its table has at the same "
            f"times (by a factor of {min(ratios):.3g} to {max(ratios):.3g}); memfold cannot "
            "tell which noise the network was trained with: take another scheduler"
        )
    return ratios[-1]


def _switches(runs: Runs) -> tuple[dict[str, Any], dict[str, Any]]:
    if "true_cfg_scale" in runs.accepts:
        return {"true_cfg_scale": _GUIDED, "negative_prompt": " "}, {"true_cfg_scale": 1.0}
    if "guidance_scale" in runs.accepts:
        return {"guidance_scale": _GUIDED}, {"guidance_scale": 1.0}
    return {}, {}


def _find_halves(
    runs: Runs, batched: tuple[bool, ...], guided: dict[str, Any], cond: Condition
) -> tuple[int | None, int]:
    """Find out which half, or call, of guidance belongs to the prompt."""
    if not guided:
        return None, 1
    record = runs.record(PROBE, 1, 2, guided)
    first = record.calls[0]
    if len(first.latent) == 2:
        halves = [part(first, batched, i, 2, PROBE) for i in range(2)]
        calls = 1
    elif (
        len(first.latent) == 1
        and len(record.calls) > 1
        and not record.steps  # two calls before the first step
    ):
        halves = [part(call, batched, 0, 1, PROBE) for call in record.calls[:2]]
        calls = 2
    elif len(first.latent) == 1:
        return None, 1
    else:
        raise InputError(
            f"{runs.name} calls its network with {len(first.latent)} parts for one image; "
            "memfold knows 1 (no guidance) and 2 (classifier-free guidance)"
        )
    return int(same(halves[1], cond) < same(halves[0], cond)), calls


def _affine(record: Record) -> tuple[float, float]:
    """Fit the network's time as scale * (scheduler's time) + shift."""
    pairs = {}
    for step, seen in zip(record.steps, record.seen, strict=True):
        pairs[step.time] = float(record.calls[seen - 1].time.flatten()[0])
    (t0, u0), (t1, u1) = min(pairs.items()), max(pairs.items())
    if t0 == t1:
        return (u0 / t0 if t0 else 1.0), 0.0
    scale = (u1 - u0) / (t1 - t0)
    shift = u0 - scale * t0
    nearest = round(scale, 6)
    if abs(shift) < 1e-3 * max(abs(u0), abs(u1), 1e-9):
        return nearest if nearest else scale, 0.0
    return scale, shift


def _output(record: Record) -> str:
    """Find what the pipeline makes of the network's output before the scheduler's step."""
    call, step = record.calls[record.seen[0] - 1], record.steps[0]
    out, wanted = call.output, step.prediction
    if out is None:
        raise InputError("the pipeline's network returned nothing")
    for name, change in _OUTPUTS.items():
        if "half" in name and out.shape[1] % 2:
            continue
        made = change(out)
        if made.shape == wanted.shape and torch.allclose(
            made.float(), wanted.float(), rtol=1e-3, atol=1e-4
        ):
            return name
    raise InputError(
        f"the pipeline changes its network's output (shape {tuple(out.shape)}) before the "
        f"scheduler's step (shape {tuple(wanted.shape)}) in a way that memfold does not know; "
        f"known: {', '.join(_OUTPUTS)}"
    )


def _float(dtype: torch.dtype) -> torch.dtype:
    """Times between the table's rows need a floating-point type."""
    return dtype if dtype.is_floating_point else torch.float32
