"""What the guard costs on prompts that do not fire: the same images, timed with and without it.

    OMP_NUM_THREADS=1 python benchmarks/guard.py

The two are interleaved in one run, in alternating order, and timed in seconds of the processor, so
that other work on the machine does not count; the ratio is that of the medians, with the quartiles
of the pairwise ratios. The output is Markdown.
"""

import argparse
import time

import numpy as np
import torch

from memfold import Guard, TextToImage
from memfold.memorization.band import Band
from memfold.memorization.calibrate import weights_digest

PROMPTS = ("a photo of a plain coat", "a photo of a dark boot", "a photo of a bright bag")


def main():
    """Time the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default="assets/text_to_image/model")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    model = TextToImage(args.pipeline)
    model.pipe.set_progress_bar_config(disable=True)
    names = ("cfg_norm", "guided_score_norm")
    band = Band(
        names, (1e-6, 1e9), dict.fromkeys(names, (0.0, 0.0)), dict.fromkeys(names, (1.0, 1.0)),
        float("inf"), 0.01, 99, args.images, {"digest": weights_digest(model.network)},
    )  # fmt: skip
    guarded = Guard(model, band)

    def run(pipe, k):
        g = torch.Generator().manual_seed(k)
        start = time.process_time()
        out = pipe(
            PROMPTS[k % len(PROMPTS)], num_images_per_prompt=args.images, generator=g,
            num_inference_steps=args.steps, output_type="latent",
        ).images  # fmt: skip
        return time.process_time() - start, out

    run(model.pipe, 0), run(guarded, 0)
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
    ratios = np.array(watched) / np.array(bare)
    low, high = np.quantile(ratios, (0.25, 0.75))
    print(
        "| bare pipeline, CPU ms | guarded, CPU ms | ratio of medians | quartiles of the ratios |"
    )
    print("|---|---|---|---|")
    one, two = np.median(bare), np.median(watched)
    print(f"| {1e3 * one:.1f} | {1e3 * two:.1f} | {two / one:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    main()
