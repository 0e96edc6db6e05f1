"""How a pipeline calls its denoising network: read off a few of its own calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path

from memfold.denoisers.guidance import Rule
from memfold.denoisers.parameterizations import FlowDenoiser
from memfold.denoisers.schedules import Schedule
from memfold.types import InputError

from ._calls import Axis, Condition, Record, batch_axes, first_tensor, part, same, strip
from ._halves import GUIDED, read_halves, rule_of
from ._runs import NETWORKS, Runs

PROBE = "a photo of a dog"  # any words: only the structure of the calls is read
_DRAWN = 0.3  # square roots of a rounding: more than a batch of two rounds away
_ROUNDING = 0.03  # times that are rounded to whole rows of the table


@dataclass(frozen=True)
class Layout:
    """How a pipeline calls its network.

    Attributes:
        axes: for each leaf of the arguments, which axis is the batch; None for none.
        conditional: index of the conditional half (or call); None if no guidance was seen.
        calls: 1 if both halves come in one batch, 2 if in two calls.
        scale: the network's time is `scale * t + shift`, with the scheduler's own t.
        shift: see there.
        louder: the pipeline's sigma at a time, over that of the scheduler's table (a flow that the
            pipeline shifts by the size of the image without telling the network).
        output: "as it is", "first half" (of doubled channels) or "negative".
        guided: pipeline arguments that switch guidance on.
        plain: pipeline arguments that switch it off; none where no guidance was seen, so that what
            is distilled into the network stays what the pipeline passes.
        rule: what the pipeline makes of both halves; None where there is one alone.
    """

    axes: tuple[Axis, ...]
    conditional: int | None
    calls: int
    scale: float
    shift: float
    louder: float
    output: str
    guided: dict[str, Any]
    plain: dict[str, Any]
    rule: Rule | None = None

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
        like: a latent in the form that the network is given it, if that is no tensor.
        known: latent, time, condition and answer of each part of its first step, to compare with.
    """

    layout: Layout
    shape: tuple[int, ...]
    places: tuple[int | str, int | str]
    dtype: torch.dtype
    time_dtype: torch.dtype
    known: tuple[tuple[Tensor, Tensor, Condition, Tensor], ...] = ()
    like: Any = None


@torch.no_grad()
def look(runs: Runs, kind: type, table: Schedule) -> Look:
    """Run a pipeline three times and read how it calls its network: four passes in all.

    Args:
        runs: the pipeline.
        kind: the Denoiser of its network's parameterisation.
        table: the scheduler's own schedule.

    Returns:
        What was found.

    Raises:
        InputError: it calls its network in a way that memfold does not know.
    """
    guided = _guided(runs)
    both = _first_run(runs, guided)
    plain = _plain(runs, both, guided)
    whole = runs.record(PROBE, 1, 3, plain)
    one = whole.calls[0]
    other = {"generator": torch.Generator().manual_seed(1)} if "generator" in runs.accepts else {}
    two = runs.record(PROBE, 2, 1, plain | other).calls[0]
    if len(two.latent) != 2 * len(one.latent) or len(one.latent) != 1:
        raise InputError(
            f"{runs.name} calls its network with a batch of {len(one.latent)} for one image "
            f"and {len(two.latent)} for two, without guidance; memfold expects 1 and 2"
        )
    axes = batch_axes(one, two)
    _check_shape(runs, whole)
    _check_constant(runs, whole)
    _check_drawn(runs, part(one, axes, 0, 1, PROBE), part(two, axes, 0, 2, PROBE))
    output = _output(whole)

    def read(raw: Any) -> Tensor:
        return _OUTPUTS[output](first_tensor(raw))

    conditional, calls, rule = None, 1, None
    halves = read_halves(runs, both, axes) if guided else None
    if halves is not None:
        conditional, calls = halves.conditional(runs, one, PROBE, read), halves.calls
        parts = halves.predictions(read)
        c, u = parts[conditional], parts[1 - conditional]
        rule = rule_of(runs, c, u, both.steps[0].prediction, guided)
        conds = halves.conditions(PROBE)
    else:
        parts, conds = [read(one.output)], [part(one, axes, 0, 1, PROBE)]
    z, t = one.latent, one.time.flatten()[:1]
    if halves is not None:
        z, t = halves.first[0].latent[:1], halves.first[0].time.flatten()[:1]
    scale, shift = _affine(whole)
    louder = _louder(runs, whole, kind, table)
    layout = Layout(axes, conditional, calls, scale, shift, louder, output, guided, plain, rule)
    shape = tuple(whole.steps[0].sample.shape[1:])
    known = tuple((z, t, cond, answer) for cond, answer in zip(conds, parts, strict=True))
    form = one.get(one.where[0])
    like = None if isinstance(form, Tensor) else form
    dtype, time_dtype = one.latent.dtype, _float(one.time.dtype)
    return Look(layout, shape, one.where, dtype, time_dtype, known, like)


def _first_run(runs: Runs, guided: dict[str, Any]) -> Record:
    """Run with guidance up to the third call: whatever does not run at all fails here."""
    try:
        record = runs.record(PROBE, 1, 3, guided)
    except InputError as error:
        if "image" not in runs.accepts:
            raise
        raise InputError(
            f"{runs.name} needs an image: it is no text-to-image pipeline (looked for a run with a "
            f"prompt alone: {str(error)[:100]}); pass the text-to-image pipeline of the same "
            "weights, as by diffusers.AutoPipelineForText2Image.from_pipe(pipe)"
        ) from error
    if not record.steps:
        raise InputError(
            f"{runs.name} did not call its {'/'.join(NETWORKS)} once or twice and then "
            f"scheduler.step (calls before it: {len(record.calls)} or more); memfold cannot "
            "watch it"
        )
    return record


def _guided(runs: Runs) -> dict[str, Any]:
    """Return the arguments that switch classifier-free guidance on, if any do."""
    if "true_cfg_scale" in runs.accepts:
        return {"true_cfg_scale": GUIDED, "negative_prompt": " "}
    return {"guidance_scale": GUIDED} if "guidance_scale" in runs.accepts else {}


def _plain(runs: Runs, both: Record, guided: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that switch it off: none where it was not seen, nor for no reason.

    Most pipelines guide above a scale of 1, some (Z-Image) above 0.
    """
    name = next(iter(guided), None)
    if name is None or (both.seen and both.seen[0] == 1 and len(both.calls[0].latent) == 1):
        return {"true_cfg_scale": 1.0} if name == "true_cfg_scale" else {}
    for scale in (1.0, 0.0):
        record = runs.record(PROBE, 1, 1, {name: scale})
        if len(record.calls[0].latent) == 1:
            return {name: scale}
    return {name: 1.0}


def _check_shape(runs: Runs, record: Record) -> None:
    """Refuse a network that is given more than the latent that the scheduler steps.

    Raises:
        InputError: it is.
    """
    given, stepped = record.calls[0].latent, record.steps[0].sample
    if given.shape[1:] != stepped.shape[1:]:
        raise InputError(
            f"{runs.name} widens its latents of shape {tuple(stepped.shape[1:])} to "
            f"{tuple(given.shape[1:])} for its network, by an image or a mask (inpainting, "
            "filling, control, super-resolution): memfold knows networks that take the latent "
            "alone; pass the text-to-image pipeline of the same kind"
        )


def _check_drawn(runs: Runs, one: Condition, other: Condition) -> None:
    """Refuse conditions that hang on the seed: one that was recorded is none of another run.

    Raises:
        InputError: the two, of different seeds, differ by more than rounding.
    """
    leaves = [v for v in tree_flatten((one.args, one.kwargs))[0] if isinstance(v, Tensor)]
    largest = max((float(v.abs().max()) for v in leaves if v.numel()), default=0.0)
    off = same(one, other)
    modules = [p for p in runs.pipe.components.values() if isinstance(p, torch.nn.Module)]
    dtypes = [next(m.parameters()).dtype for m in modules if any(True for _ in m.parameters())]
    floats = [v.dtype for v in leaves] + dtypes
    eps = max(torch.finfo(d).eps for d in floats if d.is_floating_point)
    if off > _DRAWN * eps**0.5 * largest:
        raise InputError(
            f"{runs.name} makes its condition of random numbers, another for each seed (by "
            f"{off:.2g}; a prior, as in Kandinsky 2.2, does so), so that none can be recorded for "
            "a prompt; pass the pipeline that draws from given embeddings"
        )


def _check_constant(runs: Runs, record: Record) -> None:
    """Refuse arguments that change from step to step: they would be replayed where they are wrong.

    Residuals of a ControlNet, for one, belong to the latent that they were made at.

    Raises:
        InputError: there is such an argument.
    """
    first, second = (tree_flatten_with_path(strip(c))[0] for c in record.calls[:2])
    if len(record.calls) > 1 and len(first) == len(second):
        for (path, a), (_, b) in zip(first, second, strict=True):
            if isinstance(a, Tensor) and not (a.shape == b.shape and torch.equal(a, b)):
                raise InputError(
                    f"{runs.name} gives its network another {keystr(path[1:])} at each step, made "
                    "of the latent or the time (as a ControlNet's residuals are), which memfold "
                    "cannot replay at other points; pass the pipeline without that part"
                )


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


def louder(scheduler: Any, table: Schedule) -> float | None:
    """Compare a flow's list of sigmas with its table, as `Layout.louder`; None if it says nothing.

    Args:
        scheduler: set up for a run.
        table: sigmas at its times, without a shift by size.
    """
    sigmas, times = getattr(scheduler, "sigmas", None), getattr(scheduler, "timesteps", None)
    if not isinstance(sigmas, Tensor) or not isinstance(times, Tensor):
        return None
    n = min(len(sigmas), len(times))
    s, t = (v[:n].detach().to("cpu", torch.float64) for v in (sigmas, times))
    own, wanted = s / (1 - s), table.sigma(t)
    inside = (s > 0) & (s < 1) & (own > table.sigma_min) & (own < table.sigma_max)
    ratios = (own / wanted)[inside]
    if not len(ratios) or float(ratios.max()) > (1 + _ROUNDING) * float(ratios.min()):
        return None
    found = float(ratios[0])  # the loudest: rounded least
    return 1.0 if abs(found - 1) < _ROUNDING else found


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
    if wanted.shape != step.sample.shape:
        raise InputError(
            f"the pipeline hands its scheduler a prediction of shape {tuple(wanted.shape)} for "
            f"latents of shape {tuple(step.sample.shape)} (a learned variance beside it, as "
            "DeepFloyd IF does), which memfold does not know; take another pipeline"
        )
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
