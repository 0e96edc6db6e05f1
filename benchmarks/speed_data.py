"""Time of the data-side estimators, ours and the peers', on the same points, in one run.

    OMP_NUM_THREADS=1 python benchmarks/speed_data.py --peer-python PEERS/bin/python
    python benchmarks/speed_data.py --memory

PEERS is an environment with scikit-dimension and, if wanted, DADApy and fastwonn. Both sides run on
one thread; processor time is measured, which other work on the machine disturbs least, and the
shortest of some runs counts. The peers' LPCA and ESS are timed at some points and scaled to all. The
output is Markdown.
"""

import argparse
import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

from memfold import ESS, LPCA, MLE, MOM, TLE, CorrInt, EmpiricalLID, TwoNN

PEERS = Path(__file__).with_name("peers_data.py")
OURS = {
    "MLE": lambda x: MLE(20).fit(x).dimension_,
    "TwoNN": lambda x: TwoNN().fit(x).dimension_,
    "LPCA": lambda x: LPCA(100).fit_predict(x),
    "ESS": lambda x: ESS(100).fit_predict(x),
}
GROWTH = {
    "MLE": MLE,
    "TwoNN": TwoNN,
    "MOM": MOM,
    "TLE": TLE,
    "CorrInt": CorrInt,
    "LPCA": LPCA,
    "ESS": ESS,
    "EmpiricalLID": lambda k: EmpiricalLID(1.0, n_neighbors=k, n_noises=2, random_state=0),
}


def points(n, dim, ambient):
    """A Gaussian of few directions and a little noise in all."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, dim)) @ rng.standard_normal((dim, ambient))
    return x + 0.01 * rng.standard_normal((n, ambient))


def best(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def compare(args):
    sets = {
        "2,000 x 784": points(2000, 20, 784),
        "5,000 x 50": points(5000, 10, 50),
        "10,000 x 3": points(10_000, 2, 3),
    }
    times = {}
    if args.peer_python:
        with tempfile.TemporaryDirectory() as folder:
            given, out = Path(folder, "sets.npz"), Path(folder, "out.json")
            np.savez(given, **sets)
            run = [args.peer_python, str(PEERS), "speed", str(given), str(out)]
            one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            subprocess.run(
                [*run, str(args.points), str(args.repeats)], check=True, env=os.environ | one
            )
            result = json.loads(out.read_text())
        times = result["times"]
        print("Peers:", ", ".join(f"{p} {v}" for p, v in result["versions"].items()) + ".")
    print(
        f"The peer's LPCA at {args.points} points and its ESS at {args.points // 4}, scaled up.\n"
    )
    print("| points | estimator | memfold, s | peer, s | peer / memfold |")
    print("|---|---|---|---|---|")
    for name, x in sets.items():
        for key, run in OURS.items():
            if key in ("LPCA", "ESS") and "784" not in name:
                continue
            mine = best(partial(run, x), args.repeats)
            peers = {p: t for p, t in times.get(name, {}).items() if p.split()[0] == key}
            for peer, theirs in peers.items() or [(key, None)]:
                ratio = "–" if theirs is None else f"{theirs / mine:.1f}"
                cell = "–" if theirs is None else f"{theirs:.3f}"
                print(f"| {name} | {peer} | {mine:.3f} | {cell} | {ratio} |")


def exponent(sizes, run, repeats):
    """Slope of log time over log size."""
    times = [best(partial(run, size), repeats) for size in sizes]
    return f"{np.polyfit(np.log(sizes), np.log(times), 1)[0]:.1f}"


def growth(args):
    """Fit the exponents of time over n, d, k and the number of points asked for."""
    base, few = points(4000, 10, 64), points(1000, 10, 256)
    print("\n| estimator | over n | over d | over k | over the batch |")
    print("|---|---|---|---|---|")
    for name, make in GROWTH.items():
        model = make(40).fit(base)
        runs = (
            ("n", (1000, 2000, 4000), lambda n, make=make: make(40).fit_predict(base[:n])),
            ("d", (64, 128, 256), lambda d, make=make: make(40).fit_predict(few[:, :d])),
            ("k", (20, 40, 80), lambda k, make=make: make(k).fit_predict(base[:2000])),
            ("m", (500, 1000, 2000), lambda m, model=model: model.predict(base[:m] + 0.01)),
        )
        cells = [f"{x}^{exponent(sizes, run, args.repeats)}" for x, sizes, run in runs]
        print(f"| {name} | {' | '.join(cells)} |")


def shares():
    """Print what share of each estimator's time its parts take, by a profile."""
    x = points(2000, 20, 784)
    print("\n| 2,000 x 784, k = 100 | " + " | ".join(STAGES) + " | the rest |")
    print("|---" * (len(STAGES) + 2) + "|")
    for name, make in GROWTH.items():
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(make(100).fit_predict, x)
        found = pstats.Stats(profiler).stats
        total = sum(own for _, _, own, _, _ in found.values())
        times = [
            sum(row[3] for key, row in found.items() if is_in(key)) for is_in in STAGES.values()
        ]
        cells = [f"{100 * t / total:.0f} %" for t in [*times, total - sum(times)]]
        print(f"| {name} | {' | '.join(cells)} |")


def function(name, file=""):
    return lambda key: key[2] == name and key[0].endswith(file)


STAGES = {
    "candidates": function("candidates", "_screens.py"),
    "exact distances": function("_exact", "neighbors.py"),
    "products of all places": function("__init__", "gram.py"),
    "gathering products": function("gather", "gram.py"),
    "eigenvalues": function("<built-in method torch._C._linalg.linalg_eigvalsh>"),
}


def memory(args):
    """Peak memory of fit and predict on many rows, each size in a process of its own."""
    print(
        "| rows x columns | float32, GiB | peak before, after fit, after predict, GiB | processor seconds |"
    )
    print("|---|---|---|---|", flush=True)
    grown = []
    for n in args.memory_n:
        run = [sys.executable, __file__, "--memory-one", str(n)]
        queries = ["--memory-queries", str(args.memory_queries)]
        done = subprocess.run([*run, *queries], check=True, capture_output=True, text=True)
        row, kibibytes = done.stdout.strip().split("\n")
        print(row, flush=True)
        grown.append(float(kibibytes))
    if len(grown) > 1:
        slope = np.polyfit(np.log(args.memory_n), np.log(grown), 1)[0]
        print(f"\nPeak memory beyond the rows themselves grows as n^{slope:.2f}.")


def memory_one(n, queries):
    """Print the row of one size, and by how much the peak grew."""
    d = 768
    rng = np.random.default_rng(0)
    axes = rng.standard_normal((20, d), dtype=np.float32)
    x = np.empty((n, d), dtype=np.float32)
    for start in range(0, n, 10_000):
        rows = x[start : start + 10_000]
        rows[:] = rng.standard_normal((len(rows), 20), dtype=np.float32) @ axes
    before = peak()
    start = time.process_time()
    model = MLE(20).fit(x)
    fitted, fit_peak = time.process_time() - start, peak()
    start = time.process_time()
    model.predict(x[:queries])
    predicted, last = time.process_time() - start, peak()
    peaks = f"{before:.2f}, {fit_peak:.2f}, {last:.2f}"
    print(f"| {n:,} x {d} | {x.nbytes / 2**30:.2f} | {peaks} | fit {fitted:.1f}, ", end="")
    print(f"predict at {queries:,} points {predicted:.1f} |")
    print(last - before)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", help="Python that has scikit-dimension and DADApy")
    parser.add_argument(
        "--points", type=int, default=80, help="points that slow peers are timed at"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the shortest counts")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument(
        "--memory-n", type=int, nargs="+", default=[50_000, 100_000, 200_000], help="its rows"
    )
    parser.add_argument("--memory-queries", type=int, default=300, help="its points")
    parser.add_argument("--memory-one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if args.memory_one:
        return memory_one(args.memory_one, args.memory_queries)
    if args.memory:
        return memory(args)
    compare(args)
    growth(args)
    shares()
    return None


if __name__ == "__main__":
    main()
