"""A small style-based GAN of 16 x 16 grey images: its two networks, its training and its file.

After StyleGAN2 (Karras et al. 2020), cut down: a mapping network z -> w, a synthesis network whose
channels w scales and shifts at each layer, a residual-free convolutional critic; the non-saturating
loss with a penalty on the critic's gradient at real images (R1: Mescheder et al. 2018), and averaged
weights. There is no per-pixel noise: an image is a function of z alone, so that the rank of dG/dz is
its LID_theta.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from memfold.decoders.base import Decoder, FunctionDecoder
from memfold.types import InputError

LATENT, STYLE = 32, 128
SLOPE = 0.2
BATCH, LEARNING_RATE, BETAS = 64, 2e-3, (0.0, 0.99)
R1, R1_EVERY = 0.05, 8
EMA_DECAY = 0.998


class Styled(nn.Module):
    """A convolution whose normalized output channels are scaled and shifted by w."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm = nn.GroupNorm(1, outer, affine=False)
        self.style = nn.Linear(STYLE, 2 * outer)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map features (b, inner, h, w) and styles (b, STYLE)."""
        scale, shift = self.style(w)[:, :, None, None].chunk(2, 1)
        return F.leaky_relu(self.norm(self.conv(x)) * (1 + scale) + shift, SLOPE)


class Generator(nn.Module):
    """z (b, 32), standard normal -> images (b, 1, 16, 16) in (-1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (LATENT, STYLE, STYLE, STYLE)
        layers = [(nn.Linear(a, b), nn.LeakyReLU(SLOPE)) for a, b in pairwise(sizes)]
        self.mapping = nn.Sequential(*(part for layer in layers for part in layer))
        self.start = nn.Linear(STYLE, 64 * 16)
        self.low, self.middle, self.high = Styled(64, 64), Styled(64, 48), Styled(48, 24)
        self.grey = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Generate images."""
        z = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
        w = self.mapping(z)
        x = F.leaky_relu(self.start(w), SLOPE).reshape(-1, 64, 4, 4)
        x = self.low(x, w)
        x = self.middle(F.interpolate(x, scale_factor=2.0), w)
        x = self.high(F.interpolate(x, scale_factor=2.0), w)
        return torch.tanh(self.grey(x))


class Critic(nn.Module):
    """Images (b, 1, 16, 16) -> one number each, large where they look real."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.LeakyReLU(SLOPE),
            nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE),
            nn.Conv2d(64, 96, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE),
            nn.Flatten(),
        )  # fmt: skip
        self.hidden, self.last = nn.Linear(96 * 16 + 1, 256), nn.Linear(256, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Score images; the spread within the batch enters, so that lost modes are seen."""
        h = self.features(x)
        spread = h.var(0, unbiased=False).add(1e-8).sqrt().mean().expand(len(h), 1)
        return self.last(F.leaky_relu(self.hidden(torch.cat([h, spread], 1)), SLOPE))[:, 0]


def train_gan(images: Tensor, weights: Tensor, *, steps: int, seed: int) -> Generator:
    """Train on rows drawn with given weights; return the generator with averaged weights.

    Args:
        images: rows (n, 1, 16, 16) in [-1, 1].
        weights: how often the training loop draws each, up to a factor, (n,).
        steps: optimizer steps.
        seed: of the initial weights, the batches and the latents.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made, critic, average = Generator(), Critic(), Generator()
    average.load_state_dict(made.state_dict())
    average.requires_grad_(False)
    source = torch.Generator().manual_seed(seed)
    of_made = torch.optim.Adam(made.parameters(), LEARNING_RATE, BETAS)
    of_critic = torch.optim.Adam(critic.parameters(), LEARNING_RATE, BETAS)
    for step in tqdm(range(steps), desc="training the GAN", unit="step"):
        factor = min(1.0, 4 * (1 - step / steps))  # the last quarter falls to 0
        for group in (*of_made.param_groups, *of_critic.param_groups):
            group["lr"] = LEARNING_RATE * factor
        real = images[torch.multinomial(weights, BATCH, replacement=True, generator=source)]
        with torch.no_grad():
            fake = made(torch.randn(BATCH, LATENT, generator=source))
        _step(of_critic, _critic_loss(critic, real, fake, penalize=step % R1_EVERY == 0))
        fake = made(torch.randn(BATCH, LATENT, generator=source))
        _step(of_made, F.softplus(-critic(fake)).mean())
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([*average.parameters()], [*made.parameters()], 1 - decay)
    return average.eval()


def _critic_loss(critic: Critic, real: Tensor, fake: Tensor, *, penalize: bool) -> Tensor:
    real = real.requires_grad_(penalize)
    score = critic(real)
    loss = F.softplus(-score).mean() + F.softplus(critic(fake)).mean()
    if penalize:
        (gradient,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        loss = loss + R1 / 2 * R1_EVERY * gradient.square().flatten(1).sum(1).mean()
    return loss


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def save(generator: Generator, path: Path) -> None:
    """Write the weights as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(generator.state_dict(), path)


def load(path: Path) -> Generator:
    """Read a generator.

    Raises:
        InputError: the file is missing.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: run `python -m experiments.images.train_gan`")
    generator = Generator()
    generator.load_state_dict(load_file(path))
    return generator.eval().requires_grad_(False)


def as_gan(generator: nn.Module) -> Decoder:
    """Take a generator as a Decoder, with the shape of its latents."""
    return FunctionDecoder(generator, latent_shape=(LATENT,))
