"""Errors of the model-side estimators, on exact denoisers and on trained networks apart.

    python benchmarks/accuracy_model.py exact
    python benchmarks/accuracy_model.py trained

`exact` takes the closed-form denoiser of a mixture of Gaussians on affine subspaces of 2 to 200
dimensions, turned at random, off the origin, in 1,000. `trained` trains small networks (DDPM) on
manifolds, two seeds each, and asks every estimator about the same network at points that were
held out. One scale is chosen for all estimators, at the plateau of the mean curve of the denoising
loss over the default grid, which knows no truth; two more rows give FLIPD the knee and the plateau
of each point's own curve. The output is Markdown; the score of every point goes to --scores, and
trained networks are kept in --cache.
"""

import argparse
import csv
import warnings
from pathlib import Path

import numpy as np
import torch
from networks import Counted, Net, as_denoiser, linear_table, train
from torch.distributions import LowRankMultivariateNormal

from memfold.datasets import manifolds
from memfold.denoisers.exact import MixtureDenoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.fpregress import fpregress
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.scale import knee, lid_curve, plateau
from memfold.lid.spectral import spectral_lid, transition_mass
from memfold.types import Curve, Estimate

FLIPD = "FLIPD at x (as published)"


def estimators(d):
    """Every estimator by name: (denoiser, x, sigma, generator) -> Estimate."""
    small = d <= 64

    def call(f, **options):
        return lambda model, x, s, g: f(model, x, s, generator=g, **options)

    return {
        FLIPD: call(flipd, at="x", max_probes=256, **({"trace": "exact"} if small else {})),
        "FLIPD at x + sigma n": call(flipd, n_noises=8, max_probes=256),
        "denoising loss": call(dsm_lid, n_noises=256),
        "spectral count": call(spectral_lid, n_noises=256),
        "LHSD": call(spectral_lid, count="lhsd", n_noises=16),
        "Jacobian rank": call(jacobian_rank),
        "normal bundle": call(normal_bundle),
    }


def own_scale(rule):
    """FLIPD at x with each point at the scale that `rule` finds on the point's own FLIPD curve."""

    def run(model, x, sigma, g):
        curve = lid_curve(model, x, estimator="flipd", at="x", trace="exact", generator=g)
        index = rule(curve)[:, None]
        lid, stderr = (t.gather(1, index)[:, 0] for t in (curve.lid, curve.stderr))
        return Estimate(lid, stderr, sigma, "FLIPD at x")

    return run


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def choose_sigma(model, x):
    """Plateau and knee of the mean curve of the denoising loss; the truth plays no part."""
    curve = lid_curve(model, x, n_noises=8, generator=generator(7))
    mean = Curve(curve.sigmas, curve.lid.mean(0, keepdim=True), curve.stderr[:1], curve.method)
    return [float(curve.sigmas[rule(mean)[0]]) for rule in (plateau, knee)]


def concordance(lid, truth):
    """Share of the pairs of different truth that stand in the right order; ties count half."""
    i, j = np.nonzero(truth[:, None] < truth)
    if not len(i):
        return np.nan
    return float(((lid[i] < lid[j]) + 0.5 * (lid[i] == lid[j])).mean())


def mean_and_error(values):
    """The mean and its standard error."""
    return np.mean(values), np.std(values, ddof=1) / len(values) ** 0.5


def exact(args):
    dims, d = (2, 10, 50, 200), 1000
    g = generator()
    means = [torch.randn(d, generator=g, dtype=torch.float64) for _ in dims]
    bases = [torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64)).Q for k in dims]
    model = MixtureDenoiser(means, [torch.ones(k, dtype=torch.float64) for k in dims], bases)
    x = torch.cat(
        [
            m + torch.randn(args.points, b.shape[1], generator=g, dtype=torch.float64) @ b.mT
            for m, b in zip(means, bases, strict=True)
        ]
    )
    truth = np.repeat(dims, args.points)

    def log_prob(y, sigma):
        noise = torch.full((d,), sigma**2, dtype=torch.float64)
        parts = [
            LowRankMultivariateNormal(m, b, noise).log_prob(y)
            for m, b in zip(means, bases, strict=True)
        ]
        return torch.stack(parts).logsumexp(0)

    sigma = choose_sigma(model, x)[0]
    print(f"Mixture of {dims}-dimensional Gaussians in {d}: {args.points} points a component,")
    print(f"sigma = {sigma:.3g} by the plateau.\n")
    header = [f"bias at LID {k}" for k in dims]
    print(f"| estimator | {' | '.join(header)} | MAE | worst stderr given | concordance |", end="")
    print(" passes a point | products a point |")
    print("|---" * (6 + len(dims)) + "|")
    found = {"FPRegress": None, **estimators(d)}
    rows = []
    for name, estimate in found.items():
        counted = Counted(model)
        if estimate is None:
            result = fpregress(log_prob, x, [sigma * f for f in (0.9, 1.0, 1.1)])
        else:
            result = estimate(counted, x, sigma, generator(1))
        lid = result.lid.numpy()
        cells = []
        for k in dims:
            mean, error = mean_and_error((lid - truth)[truth == k])
            cells.append(f"{mean:.2f} ± {error:.2f}")
        mae = np.abs(lid - truth).mean()
        cells += [f"{mae:.2f}", f"{float(result.stderr.max()):.2f}"]
        cells += [f"{concordance(lid, truth):.3f}"]
        cells += [f"{n / len(x):.0f}" for n in (counted.forward, counted.backward)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
        rows += [
            ["exact", name, sigma, *row]
            for row in zip(truth.tolist(), lid.tolist(), result.stderr.tolist(), strict=True)
        ]
    write(args.scores, "exact", rows)


def worlds(n, g):
    """Manifolds with their truth, each scaled as a whole to unit variance a coordinate."""
    made = {
        "sphere 5 in 32": manifolds.sphere(5, 32, n, generator=g),
        "swiss roll 2 in 32": manifolds.swiss_roll(n, ambient=32, generator=g),
        "subspaces 2/5/10 in 32": manifolds.subspaces((2, 5, 10), 32, n, spread=1.0, generator=g),
        "subspaces 2/5/10 in 64": manifolds.subspaces((2, 5, 10), 64, n, spread=1.0, generator=g),
    }
    if hasattr(manifolds, "squiggly"):
        made["squiggly 2/5/10 in 32"] = manifolds.squiggly((2, 5, 10), 32, n, generator=g)
    scaled = {}
    for name, s in made.items():
        x = s.x - s.x.mean(0)
        rms = x.std(0).square().sum().sqrt() / float(s.lid.mean()) ** 0.5
        scaled[name] = (x / rms, s.lid)
    return scaled


def network(cache, name, x, steps, seed):
    """Train a network, or read it where it was trained before."""
    path = Path(cache, f"{name.replace(' ', '-').replace('/', '_')}-{steps}-{seed}.pt")
    table = linear_table()
    if not path.exists():
        net, seconds = train(x, steps=steps, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weights": net.state_dict(), "seconds": seconds, "x": x[:1]}, path)
    kept = torch.load(path, weights_only=True)
    net = Net(x.shape[1], ((1 - table) / table).sqrt())
    net.load_state_dict(kept["weights"])
    return as_denoiser(net.eval().requires_grad_(False), table, x.shape[1]), kept["seconds"]


def trained(args):
    held = args.points * 4
    table, seconds, rows, choices = {}, [], [], []
    for seed in range(args.seeds):
        for name, (x, lid) in worlds(20_000, generator(100 + seed)).items():
            model, spent = network(args.cache, name, x[held:], args.steps, seed)
            seconds.append(spent)
            y, truth = x[:held], lid[:held].numpy()
            sigma, bend = choose_sigma(model, y)
            choices.append((name, seed, sigma, bend))
            others = {f"{FLIPD}, own knee": own_scale(knee)}
            others[f"{FLIPD}, own plateau"] = own_scale(plateau)
            for label, estimate in (estimators(x.shape[1]) | others).items():
                result = estimate(model, y, sigma, generator(1))
                table.setdefault(name, {}).setdefault(label, []).append((result.lid, truth))
                rows += [
                    [f"{name}, seed {seed}", label, sigma, *row]
                    for row in zip(
                        truth.tolist(), result.lid.tolist(), result.stderr.tolist(), strict=True
                    )
                ]
    write(args.scores, "trained", rows)
    print(f"{len(seconds)} networks of {args.steps:,} steps, {np.mean(seconds):.0f} s each on one")
    print(f"core; {held} held-out points a network; sigmas chosen:")
    print(", ".join(sorted({f"{s:.2g}" for _, _, s, _ in choices})) + ".\n")
    report(table)


def cutoffs(args):
    """Choose LHSD's c where the transition mass is flat, on some exact mixtures; report others."""
    grid = [0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.5]

    def world(dims, d, seed):
        g = generator(seed)
        means = [torch.randn(d, generator=g, dtype=torch.float64) for _ in dims]
        bases = [
            torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64)).Q for k in dims
        ]
        spread = [0.5 + torch.rand(k, generator=g, dtype=torch.float64) for k in dims]
        model = MixtureDenoiser(means, spread, bases)
        drawn = zip(means, spread, bases, strict=True)
        x = [m + (torch.randn(2, len(v), generator=g) * v.sqrt()) @ b.mT for m, v, b in drawn]
        return model, torch.cat(x), np.repeat(dims, 2)

    def table(title, worlds):
        print(
            f"\n{title}\n\n| dimensions | sigma | of | "
            + " | ".join(f"c = {c}" for c in grid)
            + " |"
        )
        print("|---" * (3 + len(grid)) + "|")
        for dims, d, seed, sigma in worlds:
            model, x, truth = world(dims, d, seed)
            masses, errors = [], []
            for c in grid:
                options = {"count": "lhsd", "c": c, "n_noises": 4, "n_probes": 2}
                masses.append(
                    float(
                        transition_mass(model, x, sigma, generator=generator(1), **options)[
                            0
                        ].mean()
                    )
                )
                lid = spectral_lid(model, x, sigma, generator=generator(1), **options).lid.numpy()
                errors.append(np.abs(lid - truth).mean())
            name = f"{'/'.join(map(str, dims))} in {d} | {sigma}"
            print(f"| {name} | transition mass | " + " | ".join(f"{m:.2f}" for m in masses) + " |")
            print(
                f"| {name} | mean error of LID | " + " | ".join(f"{e:.2f}" for e in errors) + " |",
                flush=True,
            )

    table(
        "Chosen on:", [((1, 5, 40), 256, 50, 0.1), ((3, 30), 600, 51, 0.1), ((3, 30), 600, 51, 0.3)]
    )
    table(
        "Reported on:",
        [
            ((2, 10, 50, 200), 1000, 60, 0.03),
            ((10, 80, 200), 3072, 61, 0.03),
            ((10, 80, 200), 3072, 61, 0.2),
        ],
    )


def report(table):
    names = list(table)
    print("| estimator | " + " | ".join(names) + " | mean MAE | of FLIPD's | concordance |")
    print("|---" * (len(names) + 4) + "|")
    plain = None
    for label in table[names[0]]:
        each, order = [], []
        for name in names:
            errors = [np.abs(lid.numpy() - t).mean() for lid, t in table[name][label]]
            each.append(mean_and_error(errors) if len(errors) > 1 else (errors[0], np.nan))
            order += [concordance(lid.numpy(), t) for lid, t in table[name][label]]
        mean = np.mean([m for m, _ in each])
        plain = mean if label == FLIPD else plain
        cells = [f"{m:.2f} ± {e:.2f}" for m, e in each]
        cells += [f"{mean:.2f}", f"{mean / plain:.2f}", f"{np.nanmean(order):.3f}"]
        print(f"| {label} | {' | '.join(cells)} |")


def write(path, part, rows):
    file = Path(path, f"{part}.csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["set", "estimator", "sigma", "truth", "lid", "stderr"])
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["exact", "lhsd", "trained"])
    parser.add_argument(
        "--points", type=int, default=6, help="points a component; 4 times a network"
    )
    parser.add_argument("--seeds", type=int, default=2, help="networks a manifold")
    parser.add_argument("--steps", type=int, default=3000, help="training steps")
    parser.add_argument("--scores", default="out/accuracy-model", help="folder of scores")
    parser.add_argument("--cache", default="out/accuracy-model/networks", help="folder of networks")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    {"exact": exact, "lhsd": cutoffs, "trained": trained}[args.part](args)


if __name__ == "__main__":
    main()
