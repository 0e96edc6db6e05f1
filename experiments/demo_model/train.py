"""Train the bundled demo model: a small DDPM that memorizes a known part of its training data.

One command makes everything below ``assets/demo``: the data set with its repeated rows, the
held-out images, the ground truth, the licence of the images, and the trained diffusers pipeline::

    python experiments/demo_model/train.py

Fashion-MNIST is read from the Debian package ``dataset-fashion-mnist``. The data do not depend on
``--seed``; the weights do.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from numpy.typing import NDArray
from tqdm import tqdm

Grey = NDArray[np.uint8]

DATA_DIR = Path("/usr/share/datasets/fashion-mnist")
DATA_SEED = 2411
CLASSES = 10
DUPLICATED_PER_CLASS, RARE_PER_CLASS, SINGLES_PER_CLASS, HOLDOUT_PER_CLASS = 2, 3, 300, 250
REPEATS = (40, 75)  # bounds, both included, of the number of rows of one duplicated image
MIN_GAP = 1.5  # smallest L2 distance, pixels in [-1, 1], between any two different images
MIN_GAP_MEMORIZED = 2.0  # the same, from a duplicated or rare image to any other image

STEPS, SEED, THREADS = 6000, 0, 2
BATCH, LEARNING_RATE, WARM_UP, CLIP, EMA_DECAY = 64, 1.5e-3, 200, 1.0, 0.998

LICENSE = """\
The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

NOTE = (
    "Row indices into train.npz. 'duplicated': for each image that is repeated in the data set, "
    "all of its rows (data-driven memorization). 'rare': images that stand once in the data set "
    "but that the training loop sampled as often as the duplicated ones (overfitting-driven "
    "memorization). All other rows are different images, each drawn with the weight of one row. "
    "Duplicated and rare images were chosen at random, the same number from each class."
)

README = """\
# The demo model and its data

A really trained, really memorizing unconditional DDPM of 16 x 16 grey images. It is small enough
to be examined exactly on a CPU.

- `model/`: diffusers `DDPMPipeline` directory, {parameters:,} parameters, float32 safetensors;
  `DDPMPipeline.from_pretrained("assets/demo/model")` loads it.
- `train.npz`: key `images`, uint8 ({train_rows}, 16, 16): every row of the training data, the
  repeated ones included, in shuffled order.
- `holdout.npz`: key `images`, uint8 ({holdout_rows}, 16, 16): real images from the test set,
  never trained on.
- `ground_truth.json`: `duplicated`: {duplicated} lists of row indices, one list for each repeated
  image; `rare`: {rare} row indices; `note`. All other rows are singles.
- `LICENSE-fashion-mnist.txt`: licence of the images (MIT, Zalando SE).

The network saw `images / 127.5 - 1`, one channel.

- **Duplicated**: {duplicated} images stand {low} to {high} times each in `train.npz`. The data are
  the cause of their memorization.
- **Rare**: {rare} images stand once, but the training loop drew each of them as often as an average
  duplicated image. Training is the cause.
- **Singles**: {singles} images stand once and were drawn once an epoch on average.

Duplicated and rare images were drawn at random, {dup_class} and {rare_class} from each of the ten
classes. Any two different images, held-out ones included, are at least {gap} apart (L2, pixels in
[-1, 1]; {gap_memorized} where one of them is duplicated or rare), so there are no accidental near
duplicates.

Source of the images: Fashion-MNIST (Zalando SE), padded from 28 to 32 pixels and averaged over
2 x 2 blocks.

Made by

```
python experiments/demo_model/train.py --steps {steps} --seed {seed} --threads {threads}
```

SHA-256:

```
{sums}
```
"""


@dataclass(frozen=True)
class DemoData:
    """The demo data set.

    Attributes:
        train: All training rows, repeated rows included, uint8 ``(n, 16, 16)``.
        holdout: Held-out images, uint8 ``(m, 16, 16)``.
        duplicated: For each repeated image, its row indices.
        rare: Row indices of the rare singles.
    """

    train: Grey
    holdout: Grey
    duplicated: list[list[int]]
    rare: list[int]

    def weights(self) -> torch.Tensor:
        """Return the training loop's sampling weight of every row.

        A row counts 1, a rare row as much as an average repeated image as a whole.
        """
        weights = torch.ones(len(self.train), dtype=torch.float64)
        weights[self.rare] = sum(map(len, self.duplicated)) / len(self.duplicated)
        return weights


def read_idx(name: str) -> Grey:
    """Read one gzipped idx file of unsigned bytes.

    Args:
        name: File name inside the data directory.

    Returns:
        The array, with the shape that the file's header states.

    Raises:
        SystemExit: If the file is missing.
        ValueError: If the file is not an idx file of unsigned bytes.
    """
    path = DATA_DIR / name
    if not path.is_file():
        raise SystemExit(
            f"{path} is missing: install Debian's package dataset-fashion-mnist "
            "(apt install dataset-fashion-mnist)."
        )
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes: it starts with {raw[:4]!r}")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape.astype(int))


def shrink(images: Grey) -> Grey:
    """Pad 28 x 28 images to 32 x 32 and average over 2 x 2 blocks, rounding half up."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2))).astype(np.uint16)
    return ((padded.reshape(-1, 16, 2, 16, 2).sum((2, 4)) + 2) // 4).astype(np.uint8)


class Selection:
    """Images that were accepted so far, each far enough from all others."""

    def __init__(self, capacity: int) -> None:
        self._images = np.zeros((capacity, 256), np.int32)
        self._gaps = np.zeros(capacity)
        self._count = 0

    def accept(self, image: Grey, gap: float) -> bool:
        """Accept an image unless it lies too near to an accepted one.

        Args:
            image: The candidate, uint8.
            gap: Its smallest allowed L2 distance, pixels in [-1, 1]. For a pair the larger gap
                of the two counts.

        Returns:
            Whether the image was accepted.
        """
        row = image.reshape(-1).astype(np.int32)
        n = self._count
        squared = np.square(self._images[:n] - row).sum(1)  # exact: integers
        if (squared < np.square(127.5 * np.maximum(self._gaps[:n], gap))).any():
            return False
        self._images[n], self._gaps[n] = row, gap
        self._count += 1
        return True


def make_data() -> DemoData:
    """Choose, thin out, repeat and shuffle the images."""
    rng = np.random.default_rng(DATA_SEED)
    train = shrink(read_idx("train-images-idx3-ubyte.gz"))
    train_labels = read_idx("train-labels-idx1-ubyte.gz")
    test = shrink(read_idx("t10k-images-idx3-ubyte.gz"))
    test_labels = read_idx("t10k-labels-idx1-ubyte.gz")

    per_class = DUPLICATED_PER_CLASS + RARE_PER_CLASS + SINGLES_PER_CLASS + HOLDOUT_PER_CLASS
    selection = Selection(CLASSES * per_class)

    def choose(images: Grey, order: list[list[int]], count: int, gap: float) -> Grey:
        chosen = []
        for candidates in order:
            taken = 0
            while taken < count:
                image = images[candidates.pop()]
                if selection.accept(image, gap):
                    chosen.append(image)
                    taken += 1
        return np.stack(chosen)

    def orders(labels: Grey) -> list[list[int]]:
        return [rng.permutation(np.flatnonzero(labels == c)).tolist() for c in range(CLASSES)]

    order = orders(train_labels)
    duplicated = choose(train, order, DUPLICATED_PER_CLASS, MIN_GAP_MEMORIZED)
    rare = choose(train, order, RARE_PER_CLASS, MIN_GAP_MEMORIZED)
    singles = choose(train, order, SINGLES_PER_CLASS, MIN_GAP)
    holdout = choose(test, orders(test_labels), HOLDOUT_PER_CLASS, MIN_GAP)

    repeats = rng.integers(*REPEATS, size=len(duplicated), endpoint=True)
    rows = np.concatenate([np.repeat(duplicated, repeats, axis=0), rare, singles])
    shuffle = rng.permutation(len(rows))
    position = np.argsort(shuffle)  # where each row of `rows` went
    bounds = np.cumsum(repeats)
    return DemoData(
        train=rows[shuffle],
        holdout=holdout[rng.permutation(len(holdout))],
        duplicated=[sorted(p.tolist()) for p in np.split(position[: bounds[-1]], bounds[:-1])],
        rare=sorted(position[bounds[-1] : bounds[-1] + len(rare)].tolist()),
    )


def timestep_cdf(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """Return the cumulative distribution from which the training timesteps are drawn.

    Half of the mass is uniform over the timesteps; half is log-normal in sigma, VE coordinates,
    ``sigma = sqrt(1 / alphas_cumprod - 1)``, where an image takes shape.
    """
    log_sigma = 0.5 * torch.log(1 / alphas_cumprod.double() - 1)
    width = torch.gradient(log_sigma)[0]
    normal = torch.exp(-0.5 * ((log_sigma - math.log(0.4)) / 1.2) ** 2) * width
    return torch.cumsum(0.5 / len(log_sigma) + 0.5 * normal / normal.sum(), 0)


def learning_rate(step: int, steps: int) -> float:
    """Return the learning-rate factor: linear warm-up, then a cosine down to 0."""
    warm_up = min(WARM_UP, steps // 10)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def make_unet(size: int = 16) -> UNet2DModel:
    """Return the untrained network for square images of this size."""
    return UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=32,
    )


def train(data: DemoData, *, steps: int, seed: int, size: int = 16) -> DDPMPipeline:
    """Train the network by denoising score matching.

    Args:
        data: The demo data set.
        steps: Number of optimizer steps.
        seed: Seed of the initial weights, the batches, the timesteps and the noises.
        size: Height and width of the images.

    Returns:
        The pipeline with the averaged weights.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    unet = make_unet(size)
    average = make_unet(size)
    average.load_state_dict(unet.state_dict())
    average.requires_grad_(False)

    images = torch.from_numpy(data.train).unsqueeze(1).float() / 127.5 - 1
    weights = data.weights()
    cdf = timestep_cdf(scheduler.alphas_cumprod)
    optimizer = torch.optim.AdamW(
        unet.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    parameters, averages = list(unet.parameters()), list(average.parameters())
    smooth_loss = 1.0
    bar = tqdm(range(steps), desc="training", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * learning_rate(step, steps)
        x0 = images[torch.multinomial(weights, BATCH, replacement=True, generator=generator)]
        # One draw from each of BATCH equal slices of the distribution: less noisy than free draws.
        u = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator).double()) / BATCH
        t = torch.searchsorted(cdf, u).clamp(max=len(cdf) - 1)
        noise = torch.randn(x0.shape, generator=generator)
        predicted = unet(scheduler.add_noise(x0, noise, t), t).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)

        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - decay)
        smooth_loss += 0.02 * (loss.item() - smooth_loss)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{smooth_loss:.4f}")
    return DDPMPipeline(unet=average.eval(), scheduler=scheduler)


def write_data(data: DemoData, out: Path) -> None:
    """Write the data set, the ground truth and the licence of the images."""
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "train.npz", images=data.train)
    np.savez_compressed(out / "holdout.npz", images=data.holdout)
    truth = {"duplicated": data.duplicated, "rare": data.rare, "note": NOTE}
    (out / "ground_truth.json").write_text(json.dumps(truth) + "\n")
    (out / "LICENSE-fashion-mnist.txt").write_text(LICENSE)


def write_readme(data: DemoData, pipeline: DDPMPipeline, args: argparse.Namespace) -> None:
    """Write the README of the assets, with the check sums of the files that are there."""
    files = sorted(p for p in args.out.rglob("*") if p.is_file() and p.name != "README.md")
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(args.out)}"
        for path in files
    ]
    lengths = [len(rows) for rows in data.duplicated]
    text = README.format(
        parameters=sum(p.numel() for p in pipeline.unet.parameters()),
        train_rows=len(data.train),
        holdout_rows=len(data.holdout),
        duplicated=len(data.duplicated),
        rare=len(data.rare),
        singles=CLASSES * SINGLES_PER_CLASS,
        low=min(lengths),
        high=max(lengths),
        dup_class=DUPLICATED_PER_CLASS,
        rare_class=RARE_PER_CLASS,
        gap=MIN_GAP,
        gap_memorized=MIN_GAP_MEMORIZED,
        steps=args.steps,
        seed=args.seed,
        threads=args.threads,
        sums="\n".join(sums),
    )
    (args.out / "README.md").write_text(text)


def main() -> None:
    """Make the data, train the model, write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/demo"), help="output directory")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the training")
    parser.add_argument("--threads", type=int, default=THREADS, help="threads of PyTorch")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    data = make_data()
    write_data(data, args.out)
    pipeline = train(data, steps=args.steps, seed=args.seed)
    pipeline.save_pretrained(args.out / "model", safe_serialization=True)
    write_readme(data, pipeline, args)
    wall, cpu = (time.monotonic() - start) / 60, time.process_time() / 60
    print(f"wrote {args.out} after {wall:.1f} minutes ({cpu:.1f} minutes of CPU time)")


if __name__ == "__main__":
    main()
