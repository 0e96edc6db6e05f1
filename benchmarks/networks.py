"""What the benchmarks of model-side estimators share: small networks, and a count of their passes."""

import time

import torch
from torch import nn

from memfold.denoisers.base import Wrapper
from memfold.denoisers.parameterizations import EpsDenoiser
from memfold.denoisers.schedules import vp_schedule


class Counted(Wrapper):
    """A denoiser that counts points passed forward, and products passed backward, through it.

    A product by forward-mode differentiation is a pass forward.
    """

    def __init__(self, inner):
        super().__init__(inner)
        self.reset()

    def reset(self):
        self.forward, self.backward = 0, 0

    def denoise(self, x, sigma, cond):
        self.forward += len(x)
        return _Tick.apply(self.inner.denoise(x, sigma, cond), self)


class _Tick(torch.autograd.Function):
    """The identity, which counts the rows of every gradient that passes back through it."""

    @staticmethod
    def forward(ctx, y, counter):
        ctx.counter = counter
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        # rows that are zero belong to other points of the batch, which asked for no product
        ctx.counter.backward += int((grad.flatten(1) != 0).any(1).sum())
        return grad, None

    @staticmethod
    def jvp(ctx, tangent, _):
        return tangent.view_as(tangent)


class Net(nn.Module):
    """Residual perceptron eps(z, t): Fourier features of log sigma, a shift in every block."""

    def __init__(self, d, table, *, width=256, blocks=3):
        super().__init__()
        self.register_buffer("log_sigma", table.log().float())
        self.register_buffer("frequencies", 2.0 ** torch.arange(-2, 4))
        self.time = nn.Sequential(nn.Linear(13, width), nn.SiLU())
        self.first, self.last = nn.Linear(d, width), nn.Linear(width, d)
        self.shifts = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
                for _ in range(blocks)
            ]
        )
        self.outs = nn.ModuleList([nn.Linear(width, width) for _ in range(blocks)])

    def forward(self, z, t):
        low = t.long().clamp(0, len(self.log_sigma) - 2)
        part = t.to(self.log_sigma) - low
        u = torch.lerp(self.log_sigma[low], self.log_sigma[low + 1], part)[:, None]
        waves = u * self.frequencies
        time_ = self.time(torch.cat([u, waves.sin(), waves.cos()], 1))
        h = self.first(z)
        for shift, block, out in zip(self.shifts, self.blocks, self.outs, strict=True):
            h = h + out(block(h + shift(time_)))
        return self.last(h)


def linear_table(n=1000, first=1e-4, last=0.02):
    """The alphas_cumprod of DDPM (Ho et al. 2020)."""
    return torch.cumprod(1 - torch.linspace(first, last, n, dtype=torch.float64), 0)


def train(x, *, steps, seed, batch=256, width=256, blocks=3):
    """Train a DDPM by the unweighted loss of Ho et al. (2020); return the network and its seconds."""
    alphas = linear_table()
    table = ((1 - alphas) / alphas).sqrt()
    start = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net(x.shape[1], table, width=width, blocks=blocks)
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        average = torch.optim.swa_utils.AveragedModel(
            net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
        )
        a = alphas.float()
        for _ in range(steps):
            x0 = x[torch.randint(len(x), (batch,))]
            t, n = torch.randint(len(a), (batch,)), torch.randn_like(x0)
            z = a[t, None].sqrt() * x0 + (1 - a[t, None]).sqrt() * n
            loss = ((net(z, t) - n) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(net)
    return average.module, time.process_time() - start


def as_denoiser(net, alphas, d):
    """Wrap a network as the denoiser that it was trained to be."""
    model = EpsDenoiser(lambda z, t, cond: net(z, t), vp_schedule(alphas), shape=(d,))
    model.module = net
    return model
