"""What bounds each model-side estimator: shares of its time, by a profile.

    OMP_NUM_THREADS=1 python benchmarks/shares_model.py

On the bundled networks: estimators of a denoiser on the diffusion model (assets/demo, 256
dimensions), estimators of a decoder on the GAN (assets/gan, 32 latents), all at their defaults; and
the regressions over scales on a closed-form density, whose time counts as the network's. A
profiler slows plain Python down, so that the shares of the network are lower bounds. The output is
Markdown.
"""

import argparse
import cProfile
import pstats
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from torch.distributions import LowRankMultivariateNormal

import memfold
from memfold.datasets.images import load_images
from memfold.lid.decoder_rank import decoder_lpca, decoder_rank, decoder_slope
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.fpregress import fpregress
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.lidl import lidl
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.spectral import spectral_lid, transition_mass

ROOT = Path(__file__).parents[1]
FORWARD = (
    ("unet_2d.py", "forward"),
    ("decoders/base.py", "__call__"),
    ("shares_model.py", "log_prob"),
)
BACKWARD = (("autograd/__init__.py", "grad"),)
RANDOM = (("memfold/tensors.py", "normal_like"), ("memfold/tensors.py", "rademacher_like"))
ALGEBRA = tuple(
    f"memfold/linalg/{name}.py"
    for name in ("trace", "nystrom", "definite", "spectrum", "subspace", "rank", "gram")
)  # the modules that compute on vectors; jacobian.py and products.py call the network
SLOW = ("`jacobian_rank`", "`normal_bundle`")  # at two points
SIGMA = 0.1
SCALES = (0.09, 0.1, 0.11)


def log_prob(x, sigma, basis):
    noise = torch.full(x.shape[1:], sigma**2)
    return LowRankMultivariateNormal(torch.zeros(x.shape[1]), basis, noise).log_prob(x)


def jobs(n):
    """Every estimator by name: a call without arguments."""
    sys.path.append(str(ROOT))
    from experiments.images import gan

    model = memfold.load(ROOT / "assets" / "demo" / "model")
    x = model.encode(load_images(ROOT / "assets" / "demo" / "train.npz").batch(0, n))
    decoder = gan.load(ROOT / "assets" / "gan" / "generator.safetensors")
    z = torch.randn(n, 32, generator=generator(1))
    basis = torch.linalg.qr(torch.randn(256, 20, generator=generator(2))).Q
    y = torch.randn(n, 20, generator=generator(3)) @ basis.mT

    def of_model(f, x=x, **options):
        return lambda: f(model, x, SIGMA, generator=generator(0), **options)

    def of_decoder(f, **options):
        return lambda: f(decoder, z, SIGMA, **options)

    densities = {s: partial(log_prob, sigma=s, basis=basis) for s in SCALES}
    return {
        "`dsm_lid`": of_model(dsm_lid),
        "`flipd`": of_model(flipd),
        '`flipd(at="x")`': of_model(flipd, at="x"),
        "`spectral_lid`": of_model(spectral_lid),
        '`spectral_lid(count="lhsd")`': of_model(spectral_lid, count="lhsd"),
        "`transition_mass`": of_model(transition_mass),
        "`jacobian_rank`": of_model(jacobian_rank, x=x[:2]),
        "`normal_bundle`": of_model(normal_bundle, x=x[:2]),
        "`decoder_rank`": of_decoder(decoder_rank),
        "`decoder_lpca`": of_decoder(decoder_lpca, generator=generator(0)),
        "`decoder_slope`": of_decoder(decoder_slope, generator=generator(0)),
        "`fpregress`": lambda: fpregress(lambda v, s: log_prob(v, s, basis), y, SCALES),
        "`lidl`": lambda: lidl(densities, y),
    }


def generator(seed):
    return torch.Generator().manual_seed(seed)


def is_in(key, names):
    """Tell whether a profile's key (file, line, function) is one of (end of file, function)."""
    return any(key[0].endswith(file) and key[2] == function for file, function in names)


def shares(stats):
    """Seconds in all, and in passes forward, backward, random numbers and linear algebra."""
    total = sum(own for _, _, own, _, _ in stats.values())
    parts = [
        sum(row[3] for key, row in stats.items() if is_in(key, names))
        for names in (FORWARD, BACKWARD, RANDOM)
    ]
    algebra = 0.0
    for key, (_, _, own, _, callers) in stats.items():
        if key[0].endswith(ALGEBRA) or "torch._C._linalg." in key[2]:
            algebra += own
        elif not (is_in(key, BACKWARD + RANDOM) or "memfold/" in key[0]):
            algebra += sum(row[3] for caller, row in callers.items() if caller[0].endswith(ALGEBRA))
    return total, [*parts, algebra]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=16, help="points; for slow ones, 2")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(
        "| estimator | ms a point | forward | backward | random numbers | linear algebra ", end=""
    )
    print("| the rest |\n|---|---|---|---|---|---|---|")
    for name, job in jobs(args.points).items():
        job()  # what torch loads when first asked
        start = time.process_time()
        job()
        seconds = time.process_time() - start
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(job)
        total, parts = shares(pstats.Stats(profiler).stats)
        n = 2 if name in SLOW else args.points
        cells = [f"{100 * t / total:.0f} %" for t in (*parts, total - sum(parts))]
        print(f"| {name} | {1000 * seconds / n:,.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
