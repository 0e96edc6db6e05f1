"""Optimisation of the prompt embedding (Wen et al. 2024), by a denoising-loss LID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters._calls import Condition
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.sampling.trajectory import Generation
from memfold.types import InputError

from .base import Mitigation, Weights
from .freedom import DRAWN, SIGMAS, drawn_apart, out_of_band, ratios, relative

_STEPS, _MARGIN = 6, 0.8  # steps whose scores are lowered, to so much of the band's limit


def embedding(
    model: TextToImage,
    prompt: str,
    *,
    seeds: Sequence[int],
    weights: Weights | None = None,
    generator: torch.Generator | None = None,
    options: Mapping[str, Any],
    target: float = 0.8,
    sigmas: Sequence[float] = SIGMAS,
    learning_rate: float = 0.02,
    iterations: int = 20,
    rounds: int | None = None,
    proximity: float = 0.3,
    band: Band | None = None,
) -> Mitigation:
    """Move the prompt's embedding until the model is as free under it as it is without it.

    At what the prompt draws, the loss E |D_c(x + sigma n) - x|^2 / sigma^2 of a memorized prompt is
    far below that without a prompt, since it knows x. AdamW raises their ratio to the target at
    several sigmas, and no further than 1, where the prompt would no longer say anything;
    |e - e_0|^2 / |e_0|^2 keeps the embedding near. Wen et al. lower the CFG norm of
    the first step instead, which says little where later steps carry the memory.

    Args:
        model: the pipeline; it needs an unconditional half.
        prompt: the words.
        seeds: images are drawn from seeds of their own, past the largest of these.
        weights: not used.
        generator: source of the noises.
        options: arguments of the pipeline.
        target: wanted ratio of the losses with and without the prompt, below 1.
        sigmas: scales, noise standard deviations in latent units.
        learning_rate: of AdamW.
        iterations: at most, in one round.
        rounds: at most, 2 or with a band 5 if None. After each, images are drawn under the new
            embedding; if these are known by heart too, another round raises the ratio at them as
            well.
        proximity: weight of the distance to the prompt's own embedding.
        band: of ordinary prompts; the scores at the steps where they come nearest to its limit, or
            leave it, are then lowered too, until what is drawn stays in the band.

    Returns:
        The mitigation.

    Raises:
        InputError: the pipeline has no unconditional half, or no embedding to move.
    """
    if not 0 < target < 1 or iterations < 1:
        raise InputError(f"target = {target}, iterations = {iterations}; take 0 < target < 1, >= 1")
    if not model.has_unconditional:
        model.unconditional()
    first = max(seeds, default=0) + 1
    drawn = [drawn_apart(model, prompt, None, first, options)]
    leaves: dict[str, Tensor] = {}

    def lift(name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim != 3:
            return tensor
        leaves[name] = tensor.detach().clone().requires_grad_()
        return leaves[name]

    cond = drawn[0].cond.map(lift)
    if not leaves:
        raise InputError(f"{model.name} gives its network no embedding of the prompt to move")
    start = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    optimizer = torch.optim.AdamW(list(leaves.values()), lr=learning_rate, weight_decay=0.0)
    done = ratio = 0.0
    if rounds is None:
        rounds = 2 if band is None else 5
    for turn in range(rounds):
        steps = [] if band is None else _nearest(drawn[-1], band)
        for _ in range(iterations):
            with torch.enable_grad():
                now = torch.cat([ratios(g, cond, sigmas, generator) for g in drawn], 1)
                missing = torch.relu(target - now).mean() + torch.relu(now - 1.0).mean()
                over = torch.zeros(())
                if band is not None:
                    over = _over(drawn[-1], steps, cond, band)
                low = torch.relu(target - now.detach().mean(0)).max()
                if float(low) == 0 and float(over.detach()) == 0:
                    break
                away = sum(
                    (leaf - start[n]).square().sum() / start[n].square().sum()
                    for n, leaf in leaves.items()
                )
                optimizer.zero_grad()
                (missing + over + proximity * away).backward()
            optimizer.step()
            done += 1
        moved = cond.map(lambda name, tensor: tensor.detach().clone())
        drawn.append(drawn_apart(model, prompt, moved, first + DRAWN * (turn + 1), options))
        with torch.no_grad():
            ratio = float(ratios(drawn[-1], moved, sigmas, generator).mean())
        if ratio >= target and (band is None or not out_of_band(drawn[-1], band)):
            break
    return Mitigation(
        model=model,
        method="embedding",
        original=prompt,
        prompt=prompt,
        description=(
            f"the prompt's embedding was moved in {done:.0f} steps; at what is drawn now, the "
            f"model's denoising loss is {ratio:.0%} of that without a prompt"
            + ("" if ratio >= target else f": the wanted {target:.0%} was NOT reached")
        ),
        cond=cond.map(lambda name, tensor: tensor.detach()),
        options=options,
    )


def _nearest(drawn: Generation, band: Band) -> list[int]:
    """Return the steps at which a score comes nearest to the band's limit."""
    near = [float(relative(v, v.conditional, band, drawn).max()) for v in drawn.views]
    return sorted(range(len(near)), key=lambda i: -near[i])[:_STEPS]


def _over(drawn: Generation, steps: Sequence[int], cond: Condition, band: Band) -> Tensor:
    """How far the scores stand above a share of the band's limits at some steps, on average."""
    views = [drawn.views[i] for i in steps]
    x = torch.cat([view.x for view in views])
    sigma = torch.tensor([view.sigma for view in views]).repeat_interleave(len(views[0].x))
    parts = drawn.model.model(x, sigma.to(x), cond).split(len(views[0].x))
    scores = [relative(v, d, band, drawn) for v, d in zip(views, parts, strict=True)]
    return torch.relu(torch.stack(scores) - _MARGIN).mean()
