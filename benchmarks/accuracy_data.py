"""Mean absolute error of the data-side estimators, ours and the peers', on the same points.

    python benchmarks/accuracy_data.py --peer-python PEERS/bin/python

PEERS is an environment with scikit-dimension and, if wanted, DADApy; without it only memfold's
errors are printed, on memfold's own manifolds. The output is Markdown.
"""

import argparse
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from memfold import ESS, LPCA, MLE, MOM, TLE, CorrInt, TwoNN
from memfold.datasets import manifolds, warped

PEERS = Path(__file__).with_name("peers_data.py")
LOCAL = {
    "MLE": lambda: MLE(20),
    "MLE uncorrected": lambda: MLE(20, bias_correction=False),
    "MOM": lambda: MOM(20),
    "TLE": lambda: TLE(20),
    "ESS": lambda: ESS(50),
    "ESS b": lambda: ESS(50, version="b"),
    "LPCA": lambda: LPCA(100),
    "LPCA fan": lambda: LPCA(100, version="fan"),
    "LPCA ratio": lambda: LPCA(100, version="ratio"),
    "LPCA participation": lambda: LPCA(100, version="participation"),
    "LPCA minka": lambda: LPCA(100, version="minka"),
    "TwoNN": lambda: TwoNN(20),
    "CorrInt": lambda: CorrInt(20),
}
WHOLE = {
    "MLE": lambda: MLE(20),
    "TwoNN": lambda: TwoNN(),
    "MLE (fastwonn)": lambda: MLE(20, bias_correction=False, pooling="mean"),
    "TwoNN (fastwonn)": lambda: TwoNN(),
    "TwoNN (DADApy)": lambda: TwoNN(),
    "CorrInt": lambda: CorrInt(20, inner=10),
}


def ours(n):
    """memfold's manifolds, the truth with each point."""
    g = torch.Generator().manual_seed(0)
    made = {
        "sphere 2 in 20": manifolds.sphere(2, 20, n, generator=g),
        "sphere 10 in 50": manifolds.sphere(10, 50, n, generator=g),
        "torus 2 in 10": manifolds.torus(n, ambient=10, generator=g),
        "swiss roll 2 in 10": manifolds.swiss_roll(n, ambient=10, generator=g),
        "subspaces 10/25/50 in 100": manifolds.subspaces((10, 25, 50), 100, n, generator=g),
        "subspaces 3/17/60 in 500": manifolds.subspaces((3, 17, 60), 500, n, generator=g),
        "lollipop 0/1/2 in 2": manifolds.lollipop(n, generator=g),
    }
    return arrays(made)


def bent(n):
    """Mixtures bent by a diffeomorphism, which keeps LID."""
    g = torch.Generator().manual_seed(1)
    made = {}
    for dims, ambient in (((10, 25, 50), 100), ((10, 80, 200), 800), ((10, 80, 200), 3072)):
        name = f"{'/'.join(map(str, dims))} in {ambient}"
        made[f"squiggly {name}"] = warped.squiggly(dims, ambient, n, generator=g)
        made[f"flow-warped {name}"] = warped.flow_warped(dims, ambient, n, generator=g)
    return arrays(made)


def arrays(made):
    return {name: (s.x.double().numpy(), s.lid.double().numpy()) for name, s in made.items()}


def concordance(lid, truth):
    """Share of the pairs of different truth that stand in the right order; ties count half."""
    i, j = np.nonzero(truth[:, None] < truth)
    if not len(i):
        return np.nan
    return float(((lid[i] < lid[j]) + 0.5 * (lid[i] == lid[j])).mean())


def number(value):
    return "–" if value is None or np.isnan(value) else f"{value:.2f}"


def error(lids, truths):
    """Mean over sets of the mean absolute error, and how many answers are no numbers."""
    failed = sum(int((~np.isfinite(lid)).sum()) for lid in lids)
    each = [np.abs(lid - t)[np.isfinite(lid)] for lid, t in zip(lids, truths, strict=True)]
    return np.mean([e.mean() for e in each if len(e)]), failed


def local_table(title, sets, peers, points):
    print(f"\n### {title}\n")
    print("| estimator | memfold | scikit-dimension | ratio | concordance | theirs | no number |")
    print("|---|---|---|---|---|---|---|")
    truths = [truth[:points] for _, truth in sets.values()]
    for name, make in LOCAL.items():
        lids = [make().fit_predict(x)[:points] for x, _ in sets.values()]
        mine, _ = error(lids, truths)
        order = [concordance(lid, t) for lid, t in zip(lids, truths, strict=True)]
        theirs, failed, their_order = None, None, np.nan
        if f"local/{next(iter(sets))}/{name}" in peers:
            other = [peers[f"local/{s}/{name}"] for s in sets]
            theirs, failed = error(other, truths)
            their_order = nanmean([concordance(o, t) for o, t in zip(other, truths, strict=True)])
        ratio = None if theirs is None else mine / theirs
        cells = [number(v) for v in (mine, theirs, ratio, nanmean(order), their_order)]
        print(f"| {name} | {' | '.join(cells)} | {'–' if failed is None else failed} |")


def whole_table(title, sets, peers):
    print(f"\n### {title}\n")
    print("| estimator | memfold | peer | ratio |")
    print("|---|---|---|---|")
    for name, make in WHOLE.items():
        truth = np.array([t.mean() for _, t in sets.values()])
        mine = np.abs([make().fit(x).dimension_ for x, _ in sets.values()] - truth)
        other = np.array([peers.get(f"whole/{s}/{name}", np.nan) for s in sets], dtype=float)
        if np.isnan(other).all():
            continue
        theirs = np.nanmean(np.abs(other - truth))
        cells = [number(v) for v in (mine.mean(), theirs, mine.mean() / theirs)]
        print(f"| {name} | {' | '.join(cells)} |")


def nanmean(values):
    values = np.array(values, dtype=float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="Python that has scikit-dimension and DADApy")
    parser.add_argument("--n", type=int, default=1000, help="points a manifold")
    parser.add_argument("--points", type=int, default=40, help="points at which LID is compared")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    own, curved, independent, peers = ours(args.n), bent(args.n), {}, {}
    if args.peer_python:
        with tempfile.TemporaryDirectory() as folder:
            sets, out = Path(folder, "sets.npz"), Path(folder, "out.npz")
            run = [args.peer_python, str(PEERS)]
            subprocess.run([*run, "manifolds", str(sets), str(args.n)], check=True)
            with np.load(sets) as file:
                names = [name for name in file if not name.endswith("/truth")]
                independent = {name: (file[name], file[f"{name}/truth"]) for name in names}
            np.savez(sets, **{name: x for name, (x, _) in {**own, **curved, **independent}.items()})
            subprocess.run([*run, "lid", str(sets), str(out), str(args.points)], check=True)
            with np.load(out) as file:
                peers = dict(file)
    print(f"{args.n} points a set, LID at {args.points} of them; distances k = 20, LPCA k = 100,")
    print("ESS k = 50. Ratios below 1 are better than the peer.")
    local_table(f"memfold.datasets, {len(own)} sets: mean absolute error", own, peers, args.points)
    title = f"memfold.datasets, {len(curved)} bent mixtures: mean absolute error"
    local_table(title, curved, peers, args.points)
    if independent:
        title = f"BenchmarkManifolds, {len(independent)} sets"
        local_table(f"{title}: mean absolute error", independent, peers, args.points)
        whole_table(f"{title}: error of `dimension_`", independent, peers)


if __name__ == "__main__":
    main()
