"""Mitigations side by side: what still copies, what the picture still shows, what it costs.

The same seeds for all. A copy is judged as in label.py: its latent lies within 0.15 (root mean
square) of any memorized training row, its own or another's, or it shows a memorized garment, whatever
the background. ``alike``: share of prompts whose images vary less than those of any control caption:
what is drawn is then known by heart, copy or not. ``class kept``: the bundled CLIP finds the caption's
class first of ten. ``alignment``: cosine of image and caption in it. ``Frechet``: distance of the
images' embeddings to those of training images, over the same for plain ordinary prompts::

    python -m experiments.text_to_image.mitigation --out out/mitigation
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer

from experiments.text_to_image.data import CLASSES, make_data
from experiments.text_to_image.label import LIMIT, Matcher, memorized_garments, real_limit
from memfold import TextToImage, attribute, mitigate
from memfold.audit.scoring import Scoring
from memfold.mitigation.evaluate import copies, frechet, recheck
from memfold.sampling.trajectory import generate_watched

ASSETS = Path("assets/text_to_image")
SEEDS = (0, 1, 2, 3)
LEAST_SPREAD = 0.397  # of a control caption, as label.py prints it
ATTACKED = 5  # prompts of each kind in the adversarial recheck
RUN = {"num_inference_steps": 20, "guidance_scale": 3.0}


class Judge:
    """What is copied, and what is shown."""

    def __init__(self, model: TextToImage) -> None:
        self.model = model
        self.clip = CLIPModel.from_pretrained(ASSETS / "clip").eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "clip")
        data = np.load(ASSETS / "train.npz")
        pictures = torch.from_numpy(data["images"]).float()[:, None].expand(-1, 3, -1, -1) / 255
        known = np.isin(data["groups"], ("verbatim", "template"))
        rows = [self.model.encode(part).flatten(1) for part in pictures[known].split(256)]
        self.rows = torch.cat(rows)
        self.owner = data["captions"][known]
        self.real = self.embed(pictures[data["groups"] == "ordinary"])
        _, garments, inside = memorized_garments(make_data()[0])
        self.matcher = Matcher(model.pipe.vae, garments, inside)
        self.limit = real_limit(model.pipe.vae, self.matcher)
        self.classes = self.text([f"a photo of a {name}" for name in CLASSES])

    @torch.no_grad()
    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Embed pictures in [0, 1], normed."""
        parts = [self.clip.get_image_features(pixel_values=p * 2 - 1) for p in pictures.split(256)]
        parts = [p if isinstance(p, torch.Tensor) else p.pooler_output for p in parts]
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    @torch.no_grad()
    def text(self, captions: list[str]) -> torch.Tensor:
        """Embed captions, normed."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        out = self.clip.get_text_features(**self.tokenizer(captions, **options))
        out = out if isinstance(out, torch.Tensor) else out.pooler_output
        return torch.nn.functional.normalize(out, dim=1)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, caption: str) -> dict:
        """Judge the latents of one caption."""
        flat = x.flatten(1)
        distance, index = (torch.cdist(flat, self.rows) / flat.shape[1] ** 0.5).min(1)
        own = torch.tensor([self.owner[i] == caption for i in index])
        pictures = self.model.decode(x)
        garment = self.matcher((pictures * 2 - 1).mean(1).numpy()).min(1) < self.limit
        copied = (distance < LIMIT) | torch.from_numpy(garment)
        spread = float((x - x.mean(0)).square().mean().sqrt())
        embedded = self.embed(pictures.clamp(0, 1))
        words = caption.split()
        wanted = next(i for i, name in enumerate(CLASSES) if name in words)
        said = [w if w in {*CLASSES, "dark", "plain", "bright"} else "" for w in words]
        plain = "a photo of a " + " ".join(w for w in said if w)
        return {
            "copies": float(copied.float().mean()),
            "alike": float(spread < LEAST_SPREAD),
            "own copies": float(((distance < LIMIT) & own).float().mean()),
            "class kept": float(((embedded @ self.classes.T).argmax(1) == wanted).float().mean()),
            "alignment": float((embedded @ self.text([plain]).T).mean()),
            "spread": spread,
            "embedded": embedded,
        }


def methods(model: TextToImage, judge: Judge) -> dict[str, Callable]:
    """Return each method as a function from a caption to latents."""

    def of(name: str, **own) -> Callable:
        def draw(caption: str) -> torch.Tensor:
            weights = None
            if name == "rewrite":
                found = attribute(model, caption, seeds=(10, 11), **RUN)
                weights = dict(zip(found.words, found.weights.tolist(), strict=True))
            made = mitigate(model, caption, method=name, weights=weights, seeds=SEEDS, **RUN, **own)
            return made.generate(SEEDS).x

        return draw

    latents = judge.rows.reshape(-1, *model.shape)
    return {
        "none": lambda caption: model.generate(caption, SEEDS, **RUN),
        "embedding": of("embedding"),
        "rewrite 1": of("rewrite", n_words=1),
        "random rewrite 1": of("random_rewrite", n_words=1),
        "rewrite 2": of("rewrite", n_words=2),
        "random rewrite 2": of("random_rewrite", n_words=2),
        "random words 4": of("random_words"),
        "random numbers 4": of("random_words", kind="numbers"),
        "repeats 4": of("random_words", kind="repeats"),
        "late guidance 0": of("late_guidance"),
        "late guidance 1": of("late_guidance", before=1.0),
        "LID guidance .5": of("lid_guidance", strength=0.5),
        "padding": of("padding"),
        "padding, start": of("padding", fill="start"),
        "noise": of("noise"),
        "away": of("away", reference=latents),
    }


def rechecked(model: TextToImage, judge: Judge, picked: dict[str, list[str]]) -> list[dict]:
    """Optimise embeddings to bring images back: memorized ones after mitigation, and controls."""
    data = np.load(ASSETS / "train.npz")
    groups, captions = data["groups"], data["captions"]

    def latent(index: int) -> torch.Tensor:
        picture = torch.from_numpy(data["images"][index]).float() / 255
        return model.encode(picture[None, None].expand(-1, 3, -1, -1))

    ordinary = np.flatnonzero(groups == "ordinary")
    cases: dict[str, list] = {"memorized, mitigated": [], "memorized, other prompt": [],
                              "seen once, own prompt": []}  # fmt: skip
    for k, caption in enumerate(picked["verbatim"][:ATTACKED]):
        x = latent(int(np.flatnonzero(captions == caption)[0]))
        made = mitigate(model, caption, method="embedding", seeds=SEEDS, **RUN)
        cases["memorized, mitigated"].append((caption, made.cond, x))
        other = picked["none"][k]
        cases["memorized, other prompt"].append((other, model.condition(other), x))
        once = int(ordinary[37 * k])
        own = str(captions[once])
        cases["seen once, own prompt"].append((own, model.condition(own), latent(once)))
    rows = []
    for name, some in cases.items():
        before, after = [], []
        for caption, cond, x in some:
            found = recheck(model, cond, x, generator=torch.Generator().manual_seed(0))
            for now, kept in ((cond, before), (found, after)):
                drawn = generate_watched(model, caption, SEEDS, cond=now, attention=False, **RUN).x
                kept.append(float(copies(drawn, x, LIMIT).float().mean()))
        rows.append({"image": name, "prompts": len(some), "before": float(np.mean(before)),
                     "after": float(np.mean(after))})  # fmt: skip
    return rows


def main() -> None:
    """Run all methods on a sample of prompts, print the table, write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/mitigation"))
    parser.add_argument("--each", type=int, default=10, help="prompts of each kind")
    parser.add_argument("--only", default="", help="methods, separated by semicolons")
    args = parser.parse_args()
    model = Scoring(model=str(ASSETS / "model")).load()
    judge = Judge(model)
    with (ASSETS / "prompts.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file, delimiter=";") if r["use"] == "test"]
    rng = np.random.default_rng(0)
    picked = {}
    for kind in ("verbatim", "template", "none"):
        some = [r["caption"] for r in rows if r["type"] == kind and r["group"] != "near miss"]
        picked[kind] = [str(c) for c in rng.permutation(some)[: args.each]]
    only = [name.strip() for name in args.only.split(";") if name.strip()]
    chosen = {k: f for k, f in methods(model, judge).items() if not only or k in only}
    total = len(chosen) * sum(map(len, picked.values()))
    table, bar = [], tqdm(total=total, desc="Mitigations", unit="prompt")
    for name, draw in chosen.items():
        for kind, captions in picked.items():
            start, found = time.monotonic(), []
            for caption in captions:
                found.append(judge(draw(caption), caption))
                bar.update(1)
            entry = {"method": name, "kind": kind, "prompts": len(captions)}
            for key in ("copies", "alike", "own copies", "class kept", "alignment", "spread"):
                entry[key] = float(np.mean([f[key] for f in found]))
            entry["frechet"] = frechet(torch.cat([f["embedded"] for f in found]), judge.real)
            entry["seconds"] = (time.monotonic() - start) / len(captions)
            table.append(entry)
    attacks = rechecked(model, judge, picked) if not only or "embedding" in only else []
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"methods": table, "recheck": attacks}
    (args.out / "mitigation.json").write_text(json.dumps(found, indent=1))
    text = (
        markdown(table)
        + "\n| image | prompts | copied before | after the attack |\n|---|---|---|---|\n"
    )
    for row in attacks:
        text += (
            f"| {row['image']} | {row['prompts']} | {row['before']:.2f} | {row['after']:.2f} |\n"
        )
    (args.out / "mitigation.md").write_text(text)
    print(text)


def markdown(table: list[dict]) -> str:
    """Write a row a method."""
    lines = [
        "| method | copies: verbatim | template | ordinary | alike: verbatim | template | ordinary "
        "| class kept: verbatim | template | ordinary | alignment: memorized | ordinary | Frechet: memorized | ordinary | s a prompt |",
        "|" + "---|" * 15,
    ]
    for name in dict.fromkeys(row["method"] for row in table):
        v, t, n = (next(r for r in table if (r["method"], r["kind"]) == (name, k))
                   for k in ("verbatim", "template", "none"))  # fmt: skip
        cells = [name, *(f"{r['copies']:.2f}" for r in (v, t, n))]
        cells += [f"{r['alike']:.2f}" for r in (v, t, n)]
        cells += [f"{r['class kept']:.2f}" for r in (v, t, n)]
        cells += [f"{(v['alignment'] + t['alignment']) / 2:.2f}", f"{n['alignment']:.2f}"]
        cells += [f"{(v['frechet'] + t['frechet']) / 2:.2f}", f"{n['frechet']:.2f}"]
        cells.append(f"{(v['seconds'] + t['seconds'] + n['seconds']) / 3:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
