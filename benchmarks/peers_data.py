"""What scikit-dimension, DADApy and fastwonn say of the same points, and how long they take.

Runs in the peers' own Python, where memfold and torch need not be:

    PEER_PYTHON benchmarks/peers_data.py manifolds OUT.npz N
    PEER_PYTHON benchmarks/peers_data.py lid IN.npz OUT.npz POINTS
    PEER_PYTHON benchmarks/peers_data.py speed IN.npz OUT.json POINTS REPEATS

fastwonn needs torchsort for its differentiable mode alone, which is not used here; where torchsort
does not build (it asks for CUDA), an empty module stands in for it.
"""

import contextlib
import importlib.metadata
import json
import sys
import time
import types
import warnings

import numpy as np
import skdim
from skdim._commonfuncs import get_nn

PCA = {
    "LPCA": {"ver": "FO"},
    "LPCA fan": {"ver": "Fan"},
    "LPCA ratio": {"ver": "ratio", "alphaRatio": 0.95},
    "LPCA participation": {"ver": "participation_ratio"},
    "LPCA minka": {"ver": "Minka"},
}


def two_nn(x):
    """DADApy's TwoNN; None where it is not installed."""
    try:
        from dadapy import Data
    except ImportError:
        return None
    return float(Data(coordinates=x, maxk=2, verbose=False, n_jobs=1).compute_id_2NN()[0])


def fastwonn():
    """The package, or None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    try:
        import torchsort  # noqa: F401
    except ImportError:
        sys.modules["torchsort"] = types.SimpleNamespace(soft_sort=None)
    try:
        import fastwonn
    except ImportError:
        return None
    return fastwonn


def of_fastwonn(x, name):
    """fastwonn's MLE at k = 20 or its TwoNN, on its torch backend."""
    import torch

    x = torch.from_numpy(x)
    package = fastwonn()
    return float(package.mle_id(x, 20) if name == "MLE" else package.twonn_id(x))


def manifolds(path, n):
    made = skdim.datasets.BenchmarkManifolds(random_state=0)
    sets = {name: np.ascontiguousarray(x) for name, x in made.generate(n=n).items()}
    truth = made.truth["Intrinsic Dimension"]
    np.savez(path, **sets, **{f"{name}/truth": np.full(n, truth[name]) for name in sets})


def local(x, points, k_distance=20, k_pca=100, k_ess=50):
    """LID at the first points by every estimator, NaN where it fails."""
    distance, near = get_nn(x, k_pca)
    few = distance[:points, :k_distance], near[:points, :k_distance]
    rows = range(points)
    out = {
        "MLE": skdim.id.MLE(unbiased=True).fit(x, n_neighbors=k_distance).dimension_pw_[:points],
        "MLE uncorrected": skdim.id.MLE().fit(x, n_neighbors=k_distance).dimension_pw_[:points],
        "MOM": skdim.id.MOM()._mom(few[0]),
        "TLE": [attempt(skdim.id.TLE()._idtle, x[few[1][i]], few[0][[i]]) for i in rows],
    }
    for version in "ab":
        ess = skdim.id.ESS(ver=version, random_state=0)
        name = "ESS" if version == "a" else "ESS b"
        out[name] = [attempt(dimension, ess.fit_once, x[near[i, :k_ess]]) for i in rows]
    for name, options in PCA.items():
        pca = skdim.id.lPCA(**options)
        out[name] = [attempt(dimension, pca.fit, x[near[i]]) for i in rows]
    return {name: np.asarray(value, float) for name, value in out.items()}


def dimension(fit, x):
    return fit(x).dimension_


def attempt(function, *args):
    try:
        return float(function(*args))
    except (ValueError, IndexError, ZeroDivisionError, np.linalg.LinAlgError):
        return np.nan


def whole(x):
    """The dimension of the whole by the global estimators."""
    return {
        "MLE": skdim.id.MLE().fit(x, n_neighbors=20).dimension_,
        "CorrInt": attempt(lambda: skdim.id.CorrInt(k1=10, k2=20).fit(x).dimension_),
        "TwoNN": attempt(lambda: skdim.id.TwoNN().fit(x).dimension_),
        "MLE (fastwonn)": attempt(lambda: of_fastwonn(x, "MLE") if fastwonn() else np.nan),
        "TwoNN (fastwonn)": attempt(lambda: of_fastwonn(x, "TwoNN") if fastwonn() else np.nan),
        "TwoNN (DADApy)": attempt(lambda: np.nan if (d := two_nn(x)) is None else d),
    }


def best(function, repeats):
    """Shortest of some runs, in processor seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def speed(sets, points, repeats):
    """Seconds for LID at all rows; slow ones are timed at some points and scaled up."""
    return {name: speed_of(x, "784" in name, points, repeats) for name, x in sets.items()}


def speed_of(x, wide, points, repeats):
    times = {
        "MLE": best(lambda: skdim.id.MLE().fit(x, n_neighbors=20), repeats),
        "TwoNN": best(lambda: skdim.id.TwoNN().fit(x), repeats),
    }
    if two_nn(x[:50]) is not None:
        times["TwoNN (DADApy)"] = best(lambda: two_nn(x), repeats)
    if fastwonn() is not None:
        for name in ("MLE", "TwoNN"):
            times[f"{name} (fastwonn)"] = best(lambda name=name: of_fastwonn(x, name), repeats)
    if wide:
        search = best(lambda: get_nn(x, 100), repeats)
        near = get_nn(x, 100)[1]
        pca, ess = skdim.id.lPCA(), skdim.id.ESS(random_state=0)
        some, few = near[:points], near[: points // 4]
        each = best(lambda: [pca.fit(x[rows]) for rows in some], repeats) / len(some)
        times["LPCA"] = search + len(x) * each
        each = best(lambda: [ess.fit_once(x[rows]) for rows in few], repeats) / len(few)
        times["ESS"] = search + len(x) * each
    return times


def main():
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    command, path, *rest = sys.argv[1:]
    if command == "manifolds":
        return manifolds(path, int(rest[0]))
    with np.load(path) as file:
        sets = {name: file[name] for name in file if not name.endswith("/truth")}
    if command == "speed":
        result = speed(sets, int(rest[1]), int(rest[2]))
        versions = {p: importlib.metadata.version(p) for p in ("scikit-dimension",)}
        for package in ("dadapy", "fastwonn"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        with open(rest[0], "w") as file:
            json.dump({"times": result, "versions": versions}, file)
        return None
    out = {}
    for name, x in sets.items():
        for key, value in local(x, int(rest[1])).items():
            out[f"local/{name}/{key}"] = value
        for key, value in whole(x).items():
            out[f"whole/{name}/{key}"] = value
    np.savez(rest[0], **out)
    return None


if __name__ == "__main__":
    main()
