"""Decoders of known rank: linear and smooth, rotated, off the origin."""

import torch

from tests.oracles import rotation, seeded

D, K, RANK = 20, 8, 5


def linear(scales=(3.0, 2.0, 1.5, 1.2, 1.0), k=K, d=D):
    """Return z -> x of rank len(scales) with these singular values, its matrix and its offset."""
    r = len(scales)
    u, v = rotation(d, r, 1), rotation(k, r, 2)
    a = (u * torch.tensor(scales, dtype=torch.float64)) @ v.mT
    b = 3 * torch.randn(d, generator=seeded(5), dtype=torch.float64)
    return (lambda z: z @ a.mT + b), a, b


def smooth(k=K, d=D, r=RANK, bend=1.0):
    """Return a curved z -> x whose image has the dimension r: only r directions of z matter."""
    v, u = rotation(k, r, 2), rotation(d, d, 1)
    w = torch.randn(r, d - r, generator=seeded(6), dtype=torch.float64) / r**0.5

    def decoder(z):
        t = z @ v
        return torch.cat([2 * t, bend * torch.sin(t @ w)], 1) @ u.mT + 4

    return decoder


def latents(n=4, k=K):
    return torch.randn(n, k, generator=seeded(9), dtype=torch.float64)
