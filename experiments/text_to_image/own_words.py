"""How often `memfold.attribute` ranks first what a caption's memorized image hangs on.

All captions with an own word ("a photo of the sorzesha tshirt"), and those of which a combination of
ordinary words is memorized, as labelled in ``prompts.csv``; controls are as frequent, and not
memorized. Intervals are exact binomial ones (95 %). The 12 captions with which the default weight was
chosen (attribution.py) are counted apart. About four minutes on one core::

    python -m experiments.text_to_image.own_words --out out/own_words
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from tqdm import tqdm

from experiments.text_to_image.attribution import ASSETS, RUN, captions_of
from memfold import TextToImage, attribute
from memfold.sampling.trajectory import generate_watched

OWN = 4  # place of the own word
SMALL = frozenset({"a", "photo", "of", "the", "by", "from"})
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "cfg_norm, first step": {"score": "cfg_norm", "steps": (0,)},
    "cfg_norm, late steps": {"score": "cfg_norm"},
    "default, wrt=prompt": {"wrt": "prompt"},
}


def captions(group: str, form: str) -> list[str]:
    """Captions of a group that came out as what the group is."""
    kind = "none" if group == "control" else group
    with (ASSETS / "prompts.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter=";"))
    wanted = (group, form, kind)
    return [r["caption"] for r in rows if (r["group"], r["form"], r["type"]) == wanted]


def weigh(
    model: TextToImage, caption: str, seeds: tuple[int, ...], ways: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Attribute in each way, on one generation."""
    run = generate_watched(model, caption, seeds, attention=False, **RUN)
    found = {}
    for name, way in ways.items():
        a = attribute(
            model, caption, generation=run, generator=torch.Generator().manual_seed(0), **way
        )
        order = a.weights.argsort(descending=True).tolist()
        content = [i for i, word in enumerate(a.words) if word not in SMALL]
        found[name] = {
            "own first": order[0] == OWN,
            "own share": float(a.weights[OWN] / a.weights.sum()),
            "content first": float(np.mean([i in content for i in order[: len(content)]])),
        }
    return found


def line(name: str, way: str, found: list[dict[str, Any]], *, own: bool) -> str:
    """Write one row."""
    mine = [f[way] for f in found]
    if not own:
        return f"| {name} | {way} | {np.mean([f['content first'] for f in mine]):.2f} | |"
    hits, n = sum(f["own first"] for f in mine), len(mine)
    low, high = binomtest(hits, n).proportion_ci()
    share = np.mean([f["own share"] for f in mine])
    return f"| {name} | {way} | {hits} of {n} ({low:.2f} to {high:.2f}) | {share:.2f} |"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    began, model = time.time(), TextToImage(ASSETS / "model")
    used = set(captions_of(ASSETS / "prompts.csv", 12))
    kept: dict[str, Any] = {}
    lines = ["| captions | weight | own word, or content, first | share |", "|---|---|---|---|"]
    for form in ("own word", "combination"):
        ways = WAYS if form == "own word" else {"default": {}}
        for group in ("verbatim", "template", "control"):
            texts = captions(group, form)
            found = [
                weigh(model, text, tuple(range(args.seeds)), ways)
                for text in tqdm(texts, desc=f"{group}, {form}", unit="caption")
            ]
            kept |= dict(zip(texts, found, strict=True))
            lines += [line(f"{group}, {form}", w, found, own=form == "own word") for w in ways]
            fresh = [f for text, f in zip(texts, found, strict=True) if text not in used]
            if len(fresh) < len(found):
                lines.append(line(f"{group}, not used to choose", "default", fresh, own=True))
    text = "\n".join(lines) + f"\n\n{args.seeds} seeds, {time.time() - began:.0f} s\n"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "own_words.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    (args.out / "own_words.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
