"""Find the private images that a LoRA memorized, without its training set: LID_base - LID_theta.

Not in the paper: a LoRA is trained on 20 private images of a population on which the base was trained
too, until it begins to draw them. Of 200 images
and captions of that population the 20 are to be found. LID_base(x | c) - LID_theta(x | c), the degrees
of freedom that the fine-tune took away, is compared with LID_theta(x | c) alone, as the fine-tune goes
on; at the images, and at what the fine-tune draws where only captions are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from experiments.finetune.audit import compare, copied, draw, lids
from experiments.finetune.data import Candidates, candidates, public
from experiments.finetune.figure import found_figure, pictures
from experiments.finetune.lora import add_lora, base_pipeline, train_lora, weights_at
from experiments.kit import Run, interval, main
from memfold import TextToImage
from memfold.memorization.evaluate import auroc, bootstrap, tpr_at_fpr

PRIVATE, STEPS = (8, 20), (150, 400)  # quick, full
PUBLIC = 500
SCORES = {"difference": "LID_base - LID_θ", "alone": "-LID_θ alone"}


def experiment(run: Run) -> None:
    """Fine-tune, measure at several steps, and compare the two scores."""
    total, n, steps = (run.pick(quick=a, full=b) for a, b in ((80, 200), PRIVATE, STEPS))
    marks = [steps // 16, steps // 8, steps // 4, steps // 2, steps]
    every = candidates(total, run.seed)
    mine = every.part(slice(0, n))
    weights = run.arrays("lora", trained, images=mine.images, captions=mine.captions, steps=steps,
                         keep=marks, seed=run.seed)  # fmt: skip
    common = {"images": every.images, "captions": every.captions, "n": n, "seed": run.seed}
    base = run.arrays("base", measured, weights={}, **common)
    found = {
        step: run.arrays(f"step-{step}", measured, weights=weights_at(weights, step), **common)
        for step in marks
    }
    last = run.arrays("last", without_images, weights=weights_at(weights, steps), **common)
    report(run, every, n, base, found, last)


def trained(
    images: torch.Tensor, captions: list[str], steps: int, keep: list[int], seed: int
) -> dict[str, Any]:
    """Train the LoRA; its weights after each of `keep` steps."""
    return train_lora(Candidates(images, captions), public(PUBLIC, seed), steps, keep, seed)


def tuned(weights: dict[str, Any]) -> TextToImage:
    """Put the LoRA in place, beside the model without it."""
    return TextToImage(add_lora(base_pipeline(), weights), base="adapter off")


def measured(
    weights: dict[str, Any], images: torch.Tensor, captions: list[str], n: int, seed: int
) -> dict[str, Any]:
    """LID at every candidate under its caption, and what is drawn for the n private captions."""
    model = tuned(weights) if weights else TextToImage(base_pipeline())
    x, drawn = model.encode(images), draw(model, captions[:n])
    return {"lid": lids(model, x, captions, seed=seed), "copied": copied(drawn, x[:n]),
            "drawn": model.decode(drawn[:, 0])}  # fmt: skip


def without_images(
    weights: dict[str, Any], images: torch.Tensor, captions: list[str], n: int, seed: int
) -> dict[str, Any]:
    """Compare where only captions are known (at what the fine-tune draws), or only images."""
    model = tuned(weights)
    x, drawn = model.encode(images), draw(model, captions)
    at_drawn = compare(model, drawn, captions, seed=seed)
    no_words = compare(model, x, [None] * len(x), seed=seed)
    near = torch.cdist(drawn.flatten(2).flatten(0, 1), x[:n].flatten(1))
    near = near.amin(1).unflatten(0, drawn.shape[:2]) / x[0].numel() ** 0.5
    return {"drawn_tuned": at_drawn.tuned, "drawn_base": at_drawn.base, "image_tuned": no_words.tuned,
            "image_base": no_words.base, "near": near}  # fmt: skip


def scores(base: np.ndarray, lid: np.ndarray) -> dict[str, np.ndarray]:
    """The two scores, large where memorization is likely."""
    return {"difference": base - lid, "alone": -lid}


def report(
    run: Run, every: Candidates, n: int, base: dict[str, Any], found: dict[int, dict[str, Any]],
    last: dict[str, Any],
) -> None:  # fmt: skip
    """State the claims, write the tables, draw the figures."""
    private = np.arange(len(every)) < n
    by_step = {step: scores(base["lid"], made["lid"]) for step, made in found.items()}
    final = max(by_step)
    known = {
        "image and caption": by_step[final],
        "caption": scores(last["drawn_base"], last["drawn_tuned"]),
        "image": scores(last["image_base"], last["image_tuned"]),
    }
    memory(run, found[final]["copied"], last["near"][n:])
    for name, both in known.items():
        detection(run, f"Knowing {name}, the difference finds the private images", both, private)
    both = known["image and caption"]
    run.claim("It beats the fine-tune alone at the end", "difference of AUROC, images with captions",
              ahead([both], private, run.seed), above=0.0, reason=ceiling(both, private))  # fmt: skip
    run.claim("It beats the fine-tune alone while the memory forms",
              "difference of AUROC, mean over the steps of the figure",
              ahead(list(by_step.values()), private, run.seed), above=0.0)  # fmt: skip
    run.claim("It beats the fine-tune alone where only captions are known", "difference of AUROC",
              ahead([known["caption"]], private, run.seed), above=0.0,
              reason=ceiling(known["caption"], private))  # fmt: skip
    tables(run, known, by_step, found, private)
    run.figure("found", found_figure(base["lid"], found, by_step, private))
    run.figure(
        "pictures", pictures(every, base["drawn"], found[final]["drawn"], both["difference"])
    )


def memory(run: Run, own: np.ndarray, near: np.ndarray) -> None:
    """State that the fine-tune draws the private images, for their captions only."""
    run.claim("The fine-tune draws its private images", "share of images drawn for their captions",
              interval(own.astype(float)), above=0.5)  # fmt: skip
    run.claim("It does not draw them for other captions", "share of images that copy a private one",
              interval((near < 0.15).astype(float)), below=0.05)  # fmt: skip


def detection(run: Run, text: str, both: dict[str, np.ndarray], private: np.ndarray) -> None:
    """State that the difference separates private candidates from the others."""
    a, b = (both["difference"][part] for part in (private, ~private))
    run.claim(text, "AUROC of LID_base - LID_θ", interval((a, b), separation, seed=run.seed),
              above=0.5)  # fmt: skip


def separation(a: np.ndarray, b: np.ndarray) -> float:
    """AUROC of a against b."""
    return auroc(np.concatenate([a, b]), np.repeat([True, False], [len(a), len(b)]))


def ahead(
    several: list[dict[str, np.ndarray]], private: np.ndarray, seed: int
) -> tuple[float, float, float]:
    """AUROC of the difference less that of the fine-tune alone, mean over steps; paired."""
    table = np.stack([np.stack([s["difference"], s["alone"]], 1) for s in several], 1)

    def gain(a: np.ndarray, b: np.ndarray) -> float:
        pairs = [[separation(a[:, i, j], b[:, i, j]) for j in (0, 1)] for i in range(a.shape[1])]
        return float(np.mean([p[0] - p[1] for p in pairs]))

    return interval((table[private], table[~private]), gain, seed=seed)


def ceiling(both: dict[str, np.ndarray], private: np.ndarray) -> str:
    """Say where the control leaves no room."""
    alone = separation(both["alone"][private], both["alone"][~private])
    return f"the control is at {alone:.3f} already" if alone > 0.95 else ""


def tables(
    run: Run, known: dict[str, dict[str, np.ndarray]], by_step: dict[int, dict[str, np.ndarray]],
    found: dict[int, dict[str, Any]], private: np.ndarray,
) -> None:  # fmt: skip
    """Write what finds how much, at the end and over the steps."""
    rows = []
    for name, both in known.items():
        for key, title in SCORES.items():
            cells = []
            for statistic in (auroc, tpr_at_fpr):
                low, high = bootstrap(statistic, both[key], private, generator=run.generator(1))
                cells.append(f"{statistic(both[key], private):.3f} [{low:.3f}, {high:.3f}]")
            rows.append([name, title, *cells])
    run.table("found", ["known", "score", "AUROC", "TPR at 1 % FPR"], rows)
    steps = [
        [step, f"{found[step]['copied'].mean():.2f}",
         *(f"{separation(both[k][private], both[k][~private]):.3f}" for k in SCORES),
         *(f"{both['difference'][part].mean():.1f}" for part in (private, ~private))]
        for step, both in by_step.items()
    ]  # fmt: skip
    run.table("steps", ["steps", "drawn images that are copies", "AUROC of the difference",
                        "AUROC of LID_θ alone", "freedom taken from private images",
                        "from the others"], steps)  # fmt: skip


if __name__ == "__main__":
    main(experiment, __file__)
