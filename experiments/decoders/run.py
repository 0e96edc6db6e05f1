"""LID of a small GAN, VAE and flow trained on handwritten digits, some of them repeated.

    python experiments/decoders/run.py

600 digits (8 x 8, scikit-learn) stand once in the training set and 10 stand 60 times each; 100
are held out. Each model is trained for less than two minutes on one core. For every group and
model the table gives the error of the reconstruction G(z) of an image, which says whether the LID
is about that image at all, and LID_theta at G(z) by the rank of dG/dz (its soft count), by local
PCA of perturbed latents, and by the slope of the smoothed density; mean over images and its
standard error.
"""

from __future__ import annotations

import argparse
import time
import warnings
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from memfold.decoders.base import Decoder, FunctionDecoder
from memfold.decoders.search import find_latents
from memfold.lid.decoder_rank import decoder_lpca, decoder_rank, decoder_slope
from memfold.linalg.rank import RankWarning

SIGMA = 0.15  # scale of the LID; images have values in [-1, 1]
SLOPE = SIGMA / 5  # scale of the slope, whose samples must stay where the model is nearly straight
LATENT = 16  # of GAN and VAE
GROUPS = ("repeated", "once", "held out")


def data(n_once: int = 600, n_repeated: int = 10, copies: int = 60, n_held_out: int = 100):
    """Return the training rows and, for each group, its distinct images."""
    x = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    once, repeated, held_out, _ = x.split(
        [n_once, n_repeated, n_held_out, len(x) - n_once - n_repeated - n_held_out]
    )
    train = torch.cat([once, repeated.repeat(copies, 1)])
    return train, dict(zip(GROUPS, (repeated, once[:n_held_out], held_out), strict=True))


def mlp(*sizes: int, act: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def batches(train: Tensor, steps: int, size: int = 128):
    for _ in range(steps):
        yield train[torch.randint(len(train), (size,))]


def train_vae(train: Tensor, steps: int) -> Decoder:
    """Train a VAE whose likelihood is a normal of standard deviation SIGMA."""
    encoder, decoder = mlp(64, 256, 256, 2 * LATENT), mlp(LATENT, 256, 256, 64)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for x in batches(train, steps):
        mean, log_var = encoder(x).chunk(2, 1)
        z = mean + (log_var / 2).exp() * torch.randn_like(mean)
        loss = ((decoder(z) - x) ** 2).sum(1).mean() / (2 * SIGMA**2)
        loss = loss + (mean**2 + log_var.exp() - log_var - 1).sum(1).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return FunctionDecoder(
        decoder.eval(), encode=lambda x: encoder(x)[:, :LATENT], latent_shape=(LATENT,)
    )


def train_gan(train: Tensor, steps: int) -> Decoder:
    """Train a GAN with the non-saturating loss and a gradient penalty at real images (R1)."""
    generator, critic = mlp(LATENT, 256, 256, 64), mlp(64, 256, 256, 1, act=nn.LeakyReLU)
    options = {"lr": 5e-4, "betas": (0.0, 0.99)}
    of_g = torch.optim.Adam(generator.parameters(), **options)
    of_c = torch.optim.Adam(critic.parameters(), **options)
    average = torch.optim.swa_utils.AveragedModel(
        generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    for x in batches(train, steps):
        z = torch.randn(len(x), LATENT)
        real = x.clone().requires_grad_(True)
        score = critic(real)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        loss = nn.functional.softplus(-score).mean() + 0.1 * (slope**2).sum(1).mean()
        loss = loss + nn.functional.softplus(critic(generator(z).detach())).mean()
        of_c.zero_grad()
        loss.backward()
        of_c.step()
        loss = nn.functional.softplus(-critic(generator(z))).mean()
        of_g.zero_grad()
        loss.backward()
        of_g.step()
        average.update_parameters(generator)
    return FunctionDecoder(average.module.eval(), latent_shape=(LATENT,))


class Flow(nn.Module):
    """RealNVP: affine couplings of alternating halves of randomly permuted coordinates."""

    def __init__(self, d: int = 64, n_layers: int = 8) -> None:
        super().__init__()
        self.nets = nn.ModuleList([mlp(d // 2, 128, 128, d) for _ in range(n_layers)])
        for net in self.nets:
            nn.init.zeros_(net[-1].weight)
            nn.init.zeros_(net[-1].bias)
        orders = torch.stack([torch.randperm(d) for _ in range(n_layers)])
        self.register_buffer("orders", orders)

    def coupling(self, i: int, a: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = self.nets[i](a).chunk(2, 1)
        return 3 * torch.tanh(scale / 3), shift

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and log |det dz/dx|."""
        total = x.new_zeros(len(x))
        for i in range(len(self.nets)):
            a, b = x[:, self.orders[i]].chunk(2, 1)
            scale, shift = self.coupling(i, a)
            x, total = torch.cat([a, (b - shift) * (-scale).exp()], 1), total - scale.sum(1)
        return x, total

    def forward(self, z: Tensor) -> Tensor:
        """Return x."""
        for i in reversed(range(len(self.nets))):
            a, b = z.chunk(2, 1)
            scale, shift = self.coupling(i, a)
            z = torch.cat([a, b * scale.exp() + shift], 1)[:, self.orders[i].argsort()]
        return z


def train_flow(train: Tensor, steps: int) -> Decoder:
    """Train a flow by maximum likelihood, with noise that keeps the density finite."""
    flow = Flow()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for x in batches(train, steps):
        z, log_det = flow.encode(x + 0.03 * torch.randn_like(x))
        loss = ((z**2).sum(1) / 2 - log_det).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    return FunctionDecoder(flow.eval(), encode=lambda x: flow.encode(x)[0], latent_shape=(64,))


MODELS = {"VAE": (train_vae, 6000), "GAN": (train_gan, 8000), "flow": (train_flow, 2000)}


def measure(decoder: Decoder, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Return reconstruction errors and LIDs of some images."""
    generator = torch.Generator().manual_seed(seed)
    starts = {"n_starts": 0, "n_steps": 0, "n_refine": 0} if decoder.has_encoder else {}
    found = find_latents(decoder, x, generator=generator, **starts)
    local = {"spread": 0.02, "n_samples": 10 * found.z.shape[1], "rule": "soft"}
    slopes, settled = [], []
    for row in found.z.split(1):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            slope = decoder_slope(decoder, row, SLOPE, n_samples=512, generator=generator)
        slopes.append(slope.lid)
        settled.append(not any(issubclass(w.category, RankWarning) for w in caught))
    return {
        "error": found.error,
        "rank": decoder_rank(decoder, found.z, SIGMA, rule="soft").lid,
        "lpca": decoder_lpca(decoder, found.z, SIGMA, generator=generator, **local).lid,
        "rank at the slope's scale": decoder_rank(decoder, found.z, SLOPE, rule="soft").lid,
        "slope": torch.cat(slopes)[torch.tensor(settled)],
    }


def cell(values: Tensor) -> str:
    """Write a mean and its standard error, where there are enough values."""
    if len(values) < 3:
        return "–"
    return f"{float(values.mean()):.3g} ± {float(values.std() / np.sqrt(len(values))):.2g}"


def main(argv: list[str] | None = None) -> dict[tuple[str, str], dict[str, Tensor]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--speedup", type=float, default=1.0, help="divide the training steps")
    parser.add_argument("--images", type=int, default=50, help="most images measured a group")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    train, groups = data()
    results, trained = {}, []
    print(f"sigma = {SIGMA} (slope: {SLOPE:.2g}); mean ± standard error over images\n")
    print("| model | images | error | rank (soft) | local PCA (soft) ", end="")
    print(f"| rank at {SLOPE:.2g} | smoothed slope | bends |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        fit, steps = MODELS[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            start = time.process_time()
            decoder = fit(train, max(1, int(steps / args.speedup)))
            spent = time.process_time() - start
        for group, x in groups.items():
            values = measure(decoder, x[: args.images], args.seed)
            results[name, group] = values
            cells = [cell(v) for v in values.values()]
            bends = len(values["rank"]) - len(values["slope"])
            print(f"| {name} | {group} | {' | '.join(cells)} | {bends} |", flush=True)
        trained.append(f"{name} {spent:.0f} s")
    print(f"\nTraining: {', '.join(trained)}.")
    return results


if __name__ == "__main__":
    main()
