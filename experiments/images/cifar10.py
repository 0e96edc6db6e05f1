"""The same experiment at the paper's scale: CIFAR10, a diffusion checkpoint by its hub id, any GAN.

    python -m experiments.images.cifar10 --device cuda --images 50000

needs a GPU, the network, and `pip install 'memfold[datasets]'`. It takes google/ddpm-cifar10-32 and
the dataset uoft-cs/cifar10 unless told otherwise. CIFAR10's repeated images are not known beforehand:
a training row with near duplicates counts as repeated, every other as standing once.

The paper's GAN, StyleGAN2-ADA, is published as a pickle that brings its own code. memfold reads no
pickles unasked; give a Python file of your own, which this script runs:

    # my_gan.py, beside a checkout of NVlabs/stylegan2-ada-pytorch on PYTHONPATH
    import pickle, torch
    latent_shape = (512,)
    network = pickle.load(open("cifar10.pkl", "rb"))["G_ema"].eval()  # only from those you trust
    def generate(z):  # -> images in [-1, 1]
        label = torch.zeros(len(z), network.c_dim, device=z.device)
        return network(z, label, noise_mode="const", force_fp32=True)

    python -m experiments.images.cifar10 --device cuda --generator my_gan.py
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import torch

from experiments.images.data import REPEATED, SINGLE, Images
from experiments.images.label import limits, nearness
from experiments.images.measure import data_lid
from experiments.images.report import report
from experiments.images.run import decoder_subjects, diffusion_subjects, sigma_of
from experiments.kit import Run
from memfold.datasets.images import load_images
from memfold.decoders.base import Decoder, FunctionDecoder
from memfold.memorization.replicate import duplicate_groups
from memfold.types import InputError

SAME = 0.05  # near duplicates, as a share of the root mean square distance from the mean


def load_all(train: str, holdout: str, *, splits: tuple[str | None, str | None]) -> Images:
    """Load training and unseen images from wherever `load_images` reads them.

    One half of the unseen images fixes the labels' thresholds, the other is the reference.

    Args:
        train: the training images.
        holdout: images that no model was trained on.
        splits: of a dataset that has several.
    """
    rows, unseen = (
        2 * load_images(source, split=split).batch() - 1
        for source, split in zip((train, holdout), splits, strict=True)
    )
    groups = duplicate_groups(rows, SAME).numpy()
    _, which, copies = np.unique(groups, return_inverse=True, return_counts=True)
    origin = np.where(copies[which] > 1, REPEATED, SINGLE)
    half = len(unseen) // 2
    return Images(rows, origin, torch.ones(len(rows)), unseen[:half], unseen[half:])


def load_generator(path: Path, device: str) -> Decoder:
    """Run a Python file that defines `generate` (z -> images in [-1, 1]) and `latent_shape`.

    Raises:
        InputError: there is no such file, or it does not define them.
    """
    spec = importlib.util.spec_from_file_location("user_generator", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"--generator {path} is no Python file: see the head of this script")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "generate", None)) or not hasattr(module, "latent_shape"):
        raise InputError(f"--generator {path} must define generate(z) and latent_shape")
    decoder = FunctionDecoder(module.generate, latent_shape=tuple(module.latent_shape))
    decoder.device = torch.device(device)
    return decoder


def experiment(run: Run, args: argparse.Namespace) -> None:
    """Run the functions of `run.py` on these models and data."""
    images = load_all(args.data, args.holdout or args.data, splits=(args.split, args.holdout_split))
    n = args.images
    size = {"gan": n, "ddpm": n, "reference": args.reference, "projected": 40,
            "bundle": args.bundle, "curve": min(128, args.reference)}  # fmt: skip
    sigma = sigma_of(run, args.model, images.holdout[: size["curve"]], device=args.device)
    limit = limits(nearness(images.fresh, images.train))
    star = run.arrays("data", data_lid, train=images.train, sigma=sigma, seed=run.seed)
    made = [diffusion_subjects(run, args.model, images, size, sigma, limit, star, args.device)]
    if args.generator:
        decoder = load_generator(args.generator, args.device)
        made.append(decoder_subjects(run, decoder, images, size, sigma, limit, star))
    report(run, images, made, limit, sigma)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.images.cifar10", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--model", default="google/ddpm-cifar10-32", help="directory or hub id")
    parser.add_argument("--data", default="uoft-cs/cifar10", help="training images")
    parser.add_argument("--split", help="of the training images; train for a hub's dataset")
    parser.add_argument("--holdout", help="unseen images; --data if left out")
    parser.add_argument("--holdout-split", help="of the unseen images; test for a hub's dataset")
    parser.add_argument("--generator", type=Path, help="Python file with generate and latent_shape")
    parser.add_argument("--images", type=int, default=50_000, help="to generate, a model")
    parser.add_argument("--reference", type=int, default=2000, help="unseen images of the verdict")
    parser.add_argument("--bundle", type=int, default=300, help="images for the normal bundle")
    parser.add_argument("--device", default="cuda", help="where to compute")
    parser.add_argument("--seed", type=int, default=0, help="keys all randomness")
    parser.add_argument("--out", type=Path, default=Path("out/cifar10"), help="results")
    args = parser.parse_args(words)
    if not Path(args.data).exists():
        args.split, args.holdout_split = args.split or "train", args.holdout_split or "test"
    return args


def main(words: list[str] | None = None) -> Run:
    """Run from the command line."""
    import matplotlib as mpl

    mpl.use("Agg")
    args, start = parse(words), time.monotonic()
    run = Run("images", args.out, seed=args.seed)
    try:
        experiment(run, args)
    except InputError as error:
        raise SystemExit(f"cifar10: {error}") from None
    run.finish(time.monotonic() - start)
    return run


if __name__ == "__main__":
    main()
