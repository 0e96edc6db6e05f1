"""A tiny pipeline with random weights and small images: enough to run every stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random DDPM of 8 x 8 grey images."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
        )
    path = tmp_path_factory.mktemp("models") / "ddpm"
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(path)
    return path


def smooth(n: int, seed: int) -> np.ndarray:
    """Make n different 8 x 8 images of varying complexity."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(n, 4, 4)).repeat(2, 1).repeat(2, 2)
    fine = rng.normal(size=(n, 8, 8)) * rng.uniform(0, 1, size=(n, 1, 1))
    return np.clip(127 + 50 * (coarse + fine), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write train.npz (40 images, 10 copies of the first), holdout.npz and samples/."""
    root = tmp_path_factory.mktemp("data")
    train = smooth(40, 0)
    np.savez(root / "train.npz", images=np.concatenate([train, train[:1].repeat(10, 0)]))
    np.savez(root / "holdout.npz", images=smooth(40, 1))
    (root / "samples").mkdir()
    for i, image in enumerate(smooth(5, 2)):
        Image.fromarray(image).save(root / "samples" / f"{i}.png")
    Image.fromarray(train[3]).save(root / "samples" / "<script>alert(1)<\\script>.png")
    (root / "truth.json").write_text('{"duplicated": [[0, 40, 41]], "rare": [7]}')
    return root
