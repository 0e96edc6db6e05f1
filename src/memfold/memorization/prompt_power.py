"""How many memorized prompts an audit would have found: its own rule on planted ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from memfold.memorization.power import COPY_LID, WANTED, Power
from memfold.memorization.prompt_verdict import combine, own_p_values, p_values, standards
from memfold.types import InputError

_AUDITS = 40  # simulated audits, at least
_PLANTED = 400  # memorized prompts planted for one number k, at least


def prompt_power(
    reference: Mapping[str, Float[ndarray, "n images"]],
    *,
    subjects: int,
    alpha: float,
    own: bool = False,
    copies: int = 1,
    seed: int = 0,
) -> Power:
    """Simulate how many memorized prompts an audit would call, and the fewest that it would find.

    A memorized prompt is an ordinary one whose images have a conditional LID that is uniform on 1
    to 3: `loss_conditional` is minus that, and `freedom_taken_loss` grows by what the LID lost. Its
    other signals stay those of the ordinary prompt, though memory raises them too: the power is
    not overstated. The rule is that of the audit: p <= alpha among the ordinary prompts.

    Args:
        reference: scores of ordinary prompts by signal, shape (prompts, images).
        subjects: how many prompts are judged.
        alpha: false-positive rate.
        own: whether the judged prompts are their own reference.
        copies: the number k of memorized prompts that must not be missed.
        seed: keys the simulation.

    Returns:
        The share of k memorized prompts that is called, and the smallest k with 80 %.

    Raises:
        InputError: more copies than prompts, or too few ordinary prompts.
    """
    if not 1 <= copies <= subjects:
        raise InputError(f"{copies} copies among {subjects} prompts; choose 1 to {subjects}")
    scores = {k: np.asarray(v, dtype=float) for k, v in reference.items()}
    called = {k: _called(scores, k, alpha, own, seed) for k in {1, copies}}
    share, stderr = called[copies]
    smallest = next((k for k in sorted(called) if called[k][0] >= WANTED), None)
    n = len(next(iter(scores.values())))
    return Power(copies, share, stderr, smallest, subjects, n, alpha, own)


def _called(
    scores: Mapping[str, ndarray], k: int, alpha: float, own: bool, seed: int
) -> tuple[float, float]:
    """Share of k planted prompts that is called, and its standard error."""
    random, n = np.random.default_rng([seed, k]), len(next(iter(scores.values())))
    shares = []
    for _ in range(max(_AUDITS, -(-_PLANTED // k))):
        place = random.permutation(n)[:k] if own else random.integers(n, size=k)
        planted = _plant({name: v[place] for name, v in scores.items()}, random)
        base = scores
        if own:
            base = {name: v.copy() for name, v in scores.items()}
            for name, values in planted.items():
                base[name][place] = values
        standard = standards(base)
        ordinary, score = combine(base, standard).mean(1), combine(planted, standard).mean(1)
        p = own_p_values(score, ordinary) if own else p_values(score, ordinary)
        shares.append((p <= alpha).mean())
    return float(np.mean(shares)), float(np.std(shares, ddof=1) / np.sqrt(len(shares)))


def _plant(scores: dict[str, ndarray], random: np.random.Generator) -> dict[str, ndarray]:
    """Give prompts the conditional LID of a memorized image."""
    if "loss_conditional" not in scores:
        return scores
    old = scores["loss_conditional"]
    new = -np.broadcast_to(random.uniform(*COPY_LID, size=(len(old), 1)), old.shape)
    planted = scores | {"loss_conditional": new}
    if "freedom_taken_loss" in scores:  # LID without the prompt stays what it was
        planted["freedom_taken_loss"] = scores["freedom_taken_loss"] - old + new
    return planted
