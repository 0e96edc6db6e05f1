"""What the guard costs on prompts that do not fire: the same images, timed with and without it.

    OMP_NUM_THREADS=1 python benchmarks/guard.py --band band.json

The two are interleaved in one run, in alternating order, and timed in seconds of the processor, so
that other work on the machine does not count. The ratio is the median of the pairwise ratios, with a
95 % confidence interval by the bootstrap over pairs. Without --band the limits are infinite, at the
same cost; with one, from memfold calibrate, the prompts have to stay within it. Every pair must give
the same images, bit for bit. The output is Markdown.
"""

import argparse
import time

import numpy as np
import torch

from memfold import Guard, TextToImage
from memfold.memorization.band import Band
from memfold.memorization.calibrate import weights_digest

PROMPTS = ("a photo of a plain coat", "a photo of a dark boot", "a photo of a bright bag")


def infinite(model, images):
    """Make a band that nothing leaves."""
    names = ("cfg_norm", "guided_score_norm")
    return Band(
        names, (1e-6, 1e9), dict.fromkeys(names, (0.0, 0.0)), dict.fromkeys(names, (1.0, 1.0)),
        float("inf"), 0.01, 99, images, {"digest": weights_digest(model.network)},
    )  # fmt: skip


def interval(ratios, resamples=2000):
    """Return the median and its bootstrap interval over pairs, 95 %."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (resamples, len(ratios))), axis=1)
    return np.median(ratios), *np.quantile(medians, (0.025, 0.975))


def main():
    """Time the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default="assets/text_to_image/model")
    parser.add_argument("--band", help="from memfold calibrate")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    args = parser.parse_args()
    model = TextToImage(args.pipeline)
    model.pipe.set_progress_bar_config(disable=True)
    print("| images | bare pipeline, CPU ms | guarded, CPU ms | ratio, median of pairs | 95 % |")
    print("|---|---|---|---|---|")
    for images in args.images:
        guarded = Guard(model, args.band or infinite(model, images), on_memorized="refuse")
        print(row(model, guarded, images, args), flush=True)


def row(model, guarded, images, args):
    """Time the pairs of one batch size."""

    def run(pipe, k):
        g = torch.Generator().manual_seed(k)
        start = time.process_time()
        out = pipe(
            PROMPTS[k % len(PROMPTS)], num_images_per_prompt=images, generator=g,
            num_inference_steps=args.steps, guidance_scale=args.guidance_scale,
            output_type="latent",
        ).images  # fmt: skip
        return time.process_time() - start, out

    for k in range(3):  # warm
        run(model.pipe, k), run(guarded, k)
    bare, watched = [], []
    for k in range(args.pairs):
        order = ((bare, model.pipe), (watched, guarded))
        outs = []
        for times, pipe in order if k % 2 else order[::-1]:
            seconds, out = run(pipe, k)
            times.append(seconds)
            outs.append(out)
        if not torch.equal(*outs):
            raise SystemExit("the guard changed an image")
    middle, low, high = interval(np.array(watched) / np.array(bare))
    one, two = 1e3 * np.median(bare), 1e3 * np.median(watched)
    return f"| {images} | {one:.1f} | {two:.1f} | {middle:.3f} | {low:.3f} to {high:.3f} |"


if __name__ == "__main__":
    main()
