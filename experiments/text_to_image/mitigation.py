r"""Mitigations of the bundled pipeline, judged by what only its data tell.

``memfold bench --mitigation`` does the work; this adds what needs the garments and the classes.
``copies``: the latent lies within 0.15 (root mean square) of any training image, as in label.py.
``copies, garment too``: or it shows a memorized garment, whatever the background. ``alike``: the
images vary less than those of any control caption: what is drawn is then known by heart, copy or not.
``class kept``: the bundled CLIP finds the caption's class first of ten. ``alignment, plain``: the
cosine of image and caption without the invented words, which CLIP does not know::

    python -m experiments.text_to_image.mitigation --out out/mitigation

``--besides 10`` draws other prompts than those of ``--each 10``, on which methods were tried out::

    python -m experiments.text_to_image.mitigation --out out/fresh --each 25 --besides 10 \
        --methods reword,embedding --attacked 0
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from experiments.text_to_image.data import CLASSES, make_data
from experiments.text_to_image.label import LIMIT, Matcher, memorized_garments, real_limit
from memfold import TextToImage
from memfold.audit.labelled import Labelled, read_labelled
from memfold.audit.mitigation_bench import Spaces, bench_mitigations, thinned
from memfold.audit.mitigation_judge import Clip, nearest_row
from memfold.audit.scoring import Scoring

ASSETS = Path("assets/text_to_image")
LEAST_SPREAD = 0.397  # of a control caption, as label.py prints it
RUN = {"num_inference_steps": 20, "guidance_scale": 3.0}
SAID = {*CLASSES, "dark", "plain", "bright"}


class Judge:
    """What is copied, and what is shown.

    Attributes:
        rows: latents of all training rows of memorized captions.
        owner: their captions.
    """

    def __init__(self, model: TextToImage) -> None:
        self.model = model
        self.clip = Clip(str(ASSETS / "clip"), allow_pickle=False, device="cpu")
        data = np.load(ASSETS / "train.npz")
        known = np.isin(data["groups"], ("verbatim", "template"))
        pictures = torch.from_numpy(data["images"][known]).float()[:, None] / 255
        parts = pictures.expand(-1, 3, -1, -1).split(256)
        self.rows = torch.cat([model.encode(part).flatten(1) for part in parts])
        self.owner = data["captions"][known]
        _, garments, inside = memorized_garments(make_data()[0])
        self.matcher = Matcher(model.pipe.vae, garments, inside)
        self.limit = real_limit(model.pipe.vae, self.matcher)
        self.classes = self.clip.text([f"a photo of a {name}" for name in CLASSES])

    @torch.no_grad()
    def columns(self, x: torch.Tensor, pictures: torch.Tensor, caption: str) -> dict[str, list]:
        """Judge the latents of one caption, a number an image in each column."""
        distance, _ = nearest_row(x.flatten(1), self.rows)
        garment = self.matcher((self.model.decode(x) * 2 - 1).mean(1).numpy()).min(1) < self.limit
        copied = (distance.numpy() / self.rows.shape[1] ** 0.5 < LIMIT) | garment
        embedded, words = self.clip.images(pictures), caption.split()
        wanted = next(i for i, name in enumerate(CLASSES) if name in words)
        plain = "a photo of a " + " ".join(w for w in words if w in SAID)
        return {
            "copies, garment too": copied.astype(float).tolist(),
            "class kept": ((embedded @ self.classes.T).argmax(1) == wanted).float().tolist(),
            "alignment, plain": (embedded @ self.clip.text([plain])[0]).tolist(),
        }

    def __call__(self, x: torch.Tensor, caption: str) -> dict[str, float]:
        """Return the means over the images: copies, class kept, alignment, spread."""
        with torch.no_grad():
            pictures = self.model.decode(x).clamp(0, 1)
        found = {k: float(np.mean(v)) for k, v in self.columns(x, pictures, caption).items()}
        return {
            "copies": found["copies, garment too"],
            "class kept": found["class kept"],
            "alignment": found["alignment, plain"],
            "spread": float((x - x.mean(0)).square().mean().sqrt()),
        }


def columns(model: TextToImage) -> Callable:
    """Return the judge's columns, for the benchmark."""
    return Judge(model).columns


def without(labelled: Labelled, taken: Sequence[str]) -> Labelled:
    """Leave prompts out: those that a method was settled on tell nothing of others."""
    rest = [i for i, prompt in enumerate(labelled.prompts) if prompt not in set(taken)]
    parts = (labelled.prompts, labelled.kinds, labelled.families)
    return Labelled(*(tuple(part[i] for i in rest) for part in parts))


def main() -> None:
    """Run the benchmark with the extra judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/mitigation"))
    parser.add_argument("--each", type=int, default=10, help="prompts of each kind")
    parser.add_argument(
        "--besides", type=int, help="none of the prompts that --each so many would take"
    )
    parser.add_argument("--methods", default="", help="as for memfold bench, separated by commas")
    parser.add_argument("--attacked", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    labelled, ordinary = read_labelled(ASSETS / "prompts.csv")
    if args.besides:
        labelled = without(labelled, thinned(labelled, args.besides).prompts)
    scoring = Scoring(
        model=str(ASSETS / "model"),
        images=4,
        steps=RUN["num_inference_steps"],
        guidance_scale=RUN["guidance_scale"],
    )
    spaces = Spaces(
        data=str(ASSETS / "train.npz"), clip=str(ASSETS / "clip"), copy_limit=LIMIT,
        alike_limit=LEAST_SPREAD,
    )  # fmt: skip
    bench_mitigations(
        thinned(labelled, args.each), scoring, args.out, ordinary=ordinary, spaces=spaces,
        methods=[name for name in args.methods.split(",") if name], attacked=args.attacked,
        workers=args.workers, extra=columns,
    )  # fmt: skip
    print((args.out / "mitigation.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
