"""Rewrite the words that a memorized caption hangs on: attribution by three scores against random.

Words of memorized captions are drawn with probability softmax(attribution / (T max attribution)),
T = 0.1, and give way to neighbours in the text encoder's embedding table, 1, 2, 3, 4, 6 or 8 of them.
Attribution is the gradient of the CFG norm, of the guided score norm, of -FLIPD, or of minus the
denoising loss, with respect to the tokens' embeddings; the control draws as many words evenly. What
is drawn is compared with the memorized image (copies) and with the caption (alignment in CLIP).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.kit import Run, interval, main
from experiments.mitigation.figure import curves, pictures
from experiments.mitigation.measure import METHODS, captions, measured

WHERE = "Section 5, mitigation"
SHORT = 4  # words: below the length of every caption
PAPER = ("cfg_norm", "guided_score_norm", "-flipd")


def experiment(run: Run) -> None:
    """Measure all methods on all captions, state the claims, draw the figures."""
    counts = run.pick(quick={"verbatim": 3, "template": 1}, full={"verbatim": 12, "template": 8})
    words = run.pick(quick=[1, 2, 4], full=[1, 2, 3, 4, 6, 8])
    chosen = captions(counts, run.seed)
    each = [
        run.arrays("caption", measured, caption=caption, words=words, rewrites=2, seeds=[0, 1])
        for caption in tqdm(chosen, desc="rewriting", unit="caption")
    ]
    found = {key: np.stack([made[key] for made in each]) for key in each[0]}
    few = [0, *(1 + i for i, n in enumerate(words) if n <= SHORT)]
    claims(run, found, few)
    tables(run, found, words, list(chosen))
    run.figure("tradeoff", curves(found, words, list(METHODS.values())))
    run.figure("pictures", pictures(found, words, list(chosen), list(METHODS.values())))


def mean_over_rewrites(table: np.ndarray) -> np.ndarray:
    """(captions, methods, words)."""
    return table.mean(3)


def claims(run: Run, found: dict[str, Any], few: list[int]) -> None:
    """State that each attribution beats random words, by copies and at equal alignment."""
    copies = mean_over_rewrites(found["copies"])[:, :, few]
    for name in (*PAPER, "-denoising_loss"):
        i = list(METHODS).index(name)
        source = WHERE if name in PAPER else ""
        fewer = (copies[:, 0, 1:] - copies[:, i, 1:]).mean(1)
        run.claim(f"Words chosen by {METHODS[name]} leave fewer copies than random words",
                  "share of copies, random less attributed, mean over 1 to 4 words",
                  interval(fewer, seed=run.seed), above=0.0, source=source)  # fmt: skip
    for name in (*PAPER, "-denoising_loss"):
        i = list(METHODS).index(name)
        source = WHERE if name in PAPER else ""
        pairs = np.stack([mean_over_rewrites(found[k])[:, [0, i]][:, :, few]
                          for k in ("similarity", "alignment")], 1)  # fmt: skip
        run.claim(f"{METHODS[name]} beats random words at equal text alignment",
                  "copy similarity at equal alignment, random less attributed",
                  interval(pairs, gap, seed=run.seed), above=0.0, source=source)  # fmt: skip


def gap(pairs: np.ndarray) -> float:
    """Mean vertical distance of two curves of similarity over alignment, where both exist.

    Args:
        pairs: (captions, (similarity, alignment), (random, attributed), words); curves are means
            over captions, points from n = 0 on.
    """
    similarity, alignment = pairs.mean(0)
    low = max(a.min() for a in alignment)
    high = min(a.max() for a in alignment)
    grid = np.linspace(low, high, 50)
    random, attributed = (_curve(a, s)(grid) for a, s in zip(alignment, similarity, strict=True))
    return float(np.mean(random - attributed))


def _curve(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    order = np.argsort(x)
    return lambda grid: np.interp(grid, x[order], y[order])


def tables(run: Run, found: dict[str, Any], words: list[int], chosen: list[str]) -> None:
    """Write copies and alignment by method and number of words, and the paired differences."""
    for key in ("copies", "similarity", "alignment"):
        values = mean_over_rewrites(found[key])
        rows = [
            [
                name,
                *(_cell(interval(values[:, i, j], seed=run.seed)) for j in range(1 + len(words))),
            ]
            for i, name in enumerate(METHODS.values())
        ]
        run.table(key, ["words chosen by", *(str(n) for n in [0, *words])], rows)
    copies = mean_over_rewrites(found["copies"])
    rows = [
        [name, *(_cell(interval(copies[:, 0, j] - copies[:, i, j], seed=run.seed))
                 for j in range(1, 1 + len(words)))]
        for i, name in enumerate(METHODS.values()) if i
    ]  # fmt: skip
    run.table("fewer", ["fewer copies than random words, by", *(str(n) for n in words)], rows)
    lengths = np.array([len(c.split()) for c in chosen])
    reached = [[n, f"{(lengths <= n).sum()} of {len(lengths)}"] for n in words]
    run.table("lengths", ["words rewritten", "captions of no more words"], reached)


def _cell(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


if __name__ == "__main__":
    main(experiment, __file__)
