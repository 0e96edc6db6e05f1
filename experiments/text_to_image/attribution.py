"""Which weight, at which states, ranks the word first that alone brings a memorized image back.

Captions with an own word ("a photo of the corvane tshirt") that are labelled verbatim or template
in ``prompts.csv``. For each score, place and weight: how often the own word is ranked first, and
Spearman's rank correlation of the words' weights with the fall of the score, at the same noisy
states, when a word is left out, and when its embedding is replaced by the table's mean (which keeps
the places of the others). About two minutes on one core; with ``--all`` also integrated gradients and
further places, six::

    python -m experiments.text_to_image.attribution --out out/attribution
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from memfold import TextToImage
from memfold.explain.tokens import word_of_tokens, words_of
from memfold.memorization.prompt_scores import SCORES
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.tensors import normal_like, rademacher_like

ASSETS = Path("assets/text_to_image")
RUN = {"num_inference_steps": 20, "guidance_scale": 3.0}
PLACES: dict[str, dict[str, tuple[Any, ...]]] = {
    "cfg_norm": {
        "first step": (0,),
        "steps 2, 4, 6": (1, 3, 5),
        "steps 8, 10, 12": (7, 9, 11),
        "steps 12, 14, 16, 18, 20": (11, 13, 15, 17, 19),
        "steps 18, 19, 20": (17, 18, 19),
    },
    "guided_score_norm": {"steps 12, 14, 16, 18, 20": (11, 13, 15, 17, 19)},
    "-denoising_loss": {
        "sigma 0.1, 0.2": (0.1, 0.2),
        "sigma 0.3, 0.6, 1.2": (0.3, 0.6, 1.2),
        "sigma 0.3, 0.6, 1.2, guided": (0.3, 0.6, 1.2),
        "sigma 2, 4": (2.0, 4.0),
    },
    "-flipd": {"sigma 0.3, 0.6, 1.2": (0.3, 0.6, 1.2)},
}
QUICK = {
    ("cfg_norm", "first step"),
    ("cfg_norm", "steps 12, 14, 16, 18, 20"),
    ("-denoising_loss", "sigma 0.3, 0.6, 1.2"),
}
WEIGHTS = ("norm", "times embedding", "times difference", "integrated")
PATH = (0.25, 0.5, 0.75, 1.0)


@contextmanager
def changed(model: TextToImage, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what the embedding table gives inside the block."""
    table = model.pipe.text_encoder.get_input_embeddings()
    handle = table.register_forward_hook(lambda module, args, out: change(out))
    try:
        yield
    finally:
        handle.remove()


class Case:
    """One caption: its states, and its condition as a function of its embeddings."""

    def __init__(self, model: TextToImage, caption: str, seeds: tuple[int, ...]) -> None:
        self.model, self.words = model, words_of(caption)
        self.own = next(i for i, w in enumerate(self.words) if w.text == caption.split()[-2])
        self.run: Generation = generate_watched(model, caption, seeds, attention=False, **RUN)
        self.embedded = model.embedded(caption)
        leaf = self.embedded.leaves[0]
        self.owner = word_of_tokens(model.pipe.tokenizer, leaf.ids.flatten().tolist(), caption)
        self.inside = torch.tensor([i is not None for i in self.owner])
        table = model.pipe.text_encoder.get_input_embeddings().weight.detach()
        self.mean, self.e = table.mean(0), leaf.embeddings.detach()
        self.path = [(a, self.at(lambda e, a=a: self.toward(e, a))) for a in PATH[:-1]]
        self.path.append((1.0, self.embedded))
        self.left = [
            model.condition(" ".join(w.text for j, w in enumerate(self.words) if j != i))
            for i in range(len(self.words))
        ]
        self.masked = [
            self.at(lambda e, i=i: self.without(e, i)).cond for i in range(len(self.words))
        ]

    def at(self, change: Callable[[Tensor], Tensor]) -> Any:
        """Record the condition with changed embeddings, which are its leaves."""
        with changed(self.model, change):
            return self.model.embedded(self.run.prompt)

    def toward(self, e: Tensor, a: float) -> Tensor:
        """Move the prompt's embeddings on the way from the table's mean to their own."""
        moved = self.mean + a * (e - self.mean)
        return torch.where(self.inside[None, :, None], moved, e)

    def without(self, e: Tensor, word: int) -> Tensor:
        """Put the table's mean in a word's place."""
        mine = torch.tensor([o == word for o in self.owner])
        return torch.where(mine[None, :, None], self.mean, e)

    def scores(self, score: str, place: str, cond: Any) -> Iterator[Tensor]:
        """Yield the sum of a score over seeds at each state."""
        g, function, network = self.run, SCORES[score], self.model.model
        for at in PLACES[score][place]:
            if isinstance(at, int):
                v = g.views[at]
                own = {} if score == "cfg_norm" else {"guidance_scale": 3.0}
                yield function(network, v.x, v.sigma, cond, g.uncond, **own).sum()
                continue
            noise = normal_like(g.x, 1, 5)[:, 0]
            w = 3.0 if "guided" in place else None
            random = (
                {"noise": noise}
                if score == "-denoising_loss"
                else {"probes": rademacher_like(g.x, 4, 6)}
            )
            yield function(
                network, g.x + at * noise, at, cond, g.uncond, guidance_scale=w, **random
            ).sum()

    def weights(self, score: str, place: str, *, integrate: bool) -> dict[str, np.ndarray]:
        """Weights of the words in each way; the gradients are those of the sum over seeds."""
        found = {name: torch.zeros(len(self.owner)) for name in WEIGHTS}
        for a, embedded in self.path if integrate else self.path[-1:]:
            for value in self.scores(score, place, embedded.cond):
                leaf = embedded.leaves[0].embeddings
                (g,) = torch.autograd.grad(value, leaf, retain_graph=True)
                along = (g * (self.e - self.mean))[0].sum(1)
                found["integrated"] += along / len(PATH)
                if a == 1.0:
                    found["norm"] += g[0].norm(dim=1)
                    found["times embedding"] += (g * self.e)[0].sum(1).abs()
                    found["times difference"] += along.abs()
        found["integrated"] = found["integrated"].abs()
        if not integrate:
            del found["integrated"]
        return {k: self.to_words(v) for k, v in found.items()}

    def to_words(self, tokens: Tensor) -> np.ndarray:
        """Add up the tokens of each word."""
        total = np.zeros(len(self.words))
        for i, word in enumerate(self.owner):
            if word is not None:
                total[word] += float(tokens[i])
        return total

    @torch.no_grad()
    def drops(self, score: str, place: str, conds: list[Any]) -> np.ndarray:
        """How far the score falls under each of the conditions."""
        total = lambda c: float(sum(self.scores(score, place, c)))  # noqa: E731
        full = total(self.run.cond)
        return np.array([full - total(c) for c in conds])


def first(weights: np.ndarray, own: int) -> float:
    """Whether the own word has the largest weight."""
    return float(weights.argmax() == own)


def measure(
    model: TextToImage, captions: list[str], seeds: tuple[int, ...], *, whole: bool
) -> list[dict[str, Any]]:
    """Measure all scores, places and weights on all captions."""
    rows: list[dict[str, Any]] = []
    for caption in tqdm(captions, desc="Attribution", unit="caption"):
        case = Case(model, caption, seeds)
        for score, places in PLACES.items():
            for place in places:
                if not whole and (score, place) not in QUICK:
                    continue
                left = case.drops(score, place, case.left)
                masked = case.drops(score, place, case.masked)
                ways = case.weights(score, place, integrate=whole and score != "-flipd")
                ways |= {"left out": left, "masked": masked}
                rows += [
                    {
                        "caption": caption,
                        "score": score,
                        "place": place,
                        "weight": name,
                        "first": first(value, case.own),
                        "left out": float(spearmanr(value, left).statistic),
                        "masked": float(spearmanr(value, masked).statistic),
                    }
                    for name, value in ways.items()
                ]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Write the means as a table."""
    lines = [
        "| score | where | weight | own word first | with left out | with masked |",
        "|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((r["score"], r["place"], r["weight"]) for r in rows):
        mine = [r for r in rows if (r["score"], r["place"], r["weight"]) == key]
        share, left, masked = (
            np.mean([r[name] for r in mine]) for name in ("first", "left out", "masked")
        )
        lines.append(f"| {' | '.join(key)} | {share:.2f} | {left:.2f} | {masked:.2f} |")
    return "\n".join(lines)


def captions_of(path: Path, limit: int) -> list[str]:
    """Own-word captions that are memorized, both kinds in turn."""
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter=";"))
    kinds = [
        [r["caption"] for r in rows if r["type"] == kind and r["group"] == kind and r["form"] == "own word"]
        for kind in ("verbatim", "template")
    ]  # fmt: skip
    return [caption for kind in kinds for caption in kind[: (limit + 1) // 2]][:limit]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    began = time.time()
    model = TextToImage(ASSETS / "model")
    captions = captions_of(ASSETS / "prompts.csv", args.limit)
    rows = measure(model, captions, tuple(range(args.seeds)), whole=args.all)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "attribution.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    text = f"{table(rows)}\n\n{len(captions)} captions, {args.seeds} seeds, {time.time() - began:.0f} s\n"
    (args.out / "attribution.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
