"""Train the bundled GAN on the training rows of the demo model.

    python -m experiments.images.train_gan

writes assets/gan/: generator.safetensors and README.md, with what it memorized. No package is needed:
the rows stand in assets/demo/train.npz. A GAN of this size copies little at the weights with which the
diffusion model was trained; repeated and rare images are drawn FACTOR times as often, both alike.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import torch

from experiments.images.data import GAN, ORIGINS, SINGLE, Images, load_demo
from experiments.images.gan import LATENT, Generator, save, train_gan
from experiments.images.label import LABELS, label, limits, nearness

STEPS, SEED, FACTOR, SAMPLES = 3500, 0, 5.0, 1000

README = """\
# A small GAN that memorizes

- `generator.safetensors`: averaged weights of a style-based generator of 16 x 16 grey images,
  {parameters:,} parameters, float32; z of {latent} standard normal numbers -> pixels in (-1, 1).
  `experiments.images.gan.load(path)` reads it.

Trained on `assets/demo/train.npz`, each rare image drawn as often as an average repeated one
(`assets/demo/README.md`), and both kinds {factor:g} times as often as in the training of the demo model:
at that model's weights this GAN copies little. The images are Fashion-MNIST's: `assets/demo/LICENSE-fashion-mnist.txt`.

What it draws: of {samples} images with a seed of their own, by the rule in `experiments/images/label.py`
(thresholds from the bundled held-out images), images and, in brackets, different training images:

| label | of images seen once | of repeated ones | of rare ones |
|---|---|---|---|
{table}

Made by

```
python -m experiments.images.train_gan --steps {steps} --seed {seed} --factor {factor:g} --threads {threads}
```

SHA-256 of generator.safetensors: `{digest}`
"""


def drawn(generator: Generator, images: Images, *, samples: int = SAMPLES) -> str:
    """Label what a generator draws; rows of a Markdown table."""
    z = torch.randn(samples, LATENT, generator=torch.Generator().manual_seed(samples))
    with torch.no_grad():
        x = generator(z)
    labels, row = label(nearness(x, images.train), limits(nearness(images.fresh, images.train)))
    lines = []
    for value, name in enumerate(LABELS):
        cells = []
        for origin in range(len(ORIGINS)):
            rows = row[(labels == value) & (images.origin[row] == origin)]
            cells.append(f"{len(rows)} ({len(np.unique(rows))})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_readme(generator: Generator, images: Images, args: argparse.Namespace) -> str:
    """Write and return the README beside the weights."""
    text = README.format(
        parameters=sum(p.numel() for p in generator.parameters()), latent=LATENT, samples=SAMPLES,
        table=drawn(generator, images), steps=args.steps, seed=args.seed,
        factor=args.factor, threads=args.threads,
        digest=hashlib.sha256(args.out.read_bytes()).hexdigest(),
    )  # fmt: skip
    args.out.with_name("README.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    """Train, write, and say what was memorized."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=GAN, help="file of the weights")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the training")
    parser.add_argument("--factor", type=float, default=FACTOR, help="see above")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    images, start = load_demo(whole=False), time.monotonic()
    weights = images.weights.clone()
    weights[torch.from_numpy(images.origin != SINGLE)] *= args.factor
    generator = train_gan(images.train, weights, steps=args.steps, seed=args.seed)
    save(generator, args.out)
    text = write_readme(generator, images, args)
    print(f"wrote {args.out} after {(time.monotonic() - start) / 60:.1f} minutes\n\n{text}")


if __name__ == "__main__":
    main()
