"""The same on Stable Diffusion, for those with a GPU, on the prompt lists that the field uses.

    python -m experiments.detection.stable_diffusion --model stable-diffusion-v1-5/stable-diffusion-v1-5 \
        --memorized memorized_laion_prompts.csv --other unmemorized_laion_prompts.csv \
        --ordinary ordinary.txt --device cuda --half --out out/detection-sd15

Lists are `;`-separated CSV, JSON lines, text or Parquet. Without --ordinary there is no joint verdict.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from experiments.detection.run import detect
from experiments.kit import Run
from memfold.audit.labelled import read_labelled
from memfold.audit.scoring import Scoring
from memfold.types import InputError


def start() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--model", required=True, help="pipeline directory or hub id")
    parser.add_argument("--memorized", required=True, help="list of memorized prompts")
    parser.add_argument("--other", required=True, help="list of prompts that are not")
    parser.add_argument("--ordinary", help="further prompts that are not, to calibrate with")
    parser.add_argument("--limit", type=int, help="the first so many prompts of each kind")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run, began = Run("detection", args.out, seed=args.seed), time.monotonic()
    scoring = Scoring(
        model=args.model, images=args.images, steps=args.steps, seed=args.seed,
        guidance_scale=args.guidance_scale, device=args.device, half=args.half,
    )  # fmt: skip
    try:
        labelled, ordinary = read_labelled(
            None, args.memorized, args.other, args.ordinary, limit=args.limit
        )
        detect(run, labelled, ordinary, scoring)
    except InputError as error:
        sys.exit(f"detection: {error}")
    run.finish(time.monotonic() - began)


if __name__ == "__main__":
    import matplotlib as mpl

    mpl.use("Agg")
    start()
