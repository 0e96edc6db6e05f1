"""Cost of the model-side estimators: network products, growth, memory, and the audit's own share.

    python benchmarks/speed_model.py products
    OMP_NUM_THREADS=1 python benchmarks/speed_model.py growth
    OMP_NUM_THREADS=1 python benchmarks/speed_model.py audit

`products` compares FLIPD with what public code does, Gaussian probes on the divergence of the
score, at equal standard error, in passes forward and vector-Jacobian products through the network.
The standard errors are spreads over independent repetitions. `growth` fits exponents of time and
measures peak memory on a denoiser that costs next to nothing, so that what is seen is memfold's
own. `audit` measures which share of two audits is spent in the network. The output is Markdown.
"""

import argparse
import cProfile
import ctypes
import multiprocessing
import resource
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from networks import Counted

import memfold
from memfold.audit.plan import Plan
from memfold.audit.prompt_plan import PromptPlan
from memfold.audit.prompts import run_prompts
from memfold.audit.run import run as run_images
from memfold.datasets.images import load_images
from memfold.denoisers.exact import MixtureDenoiser
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.lid.jacobian_rank import jacobian_rank
from memfold.lid.normal_bundle import normal_bundle
from memfold.lid.spectral import spectral_lid
from memfold.report.html import write as write_report
from memfold.tensors import per_sample


def generator(seed):
    return torch.Generator().manual_seed(seed)


def gaussian_probes(model, x, sigma, k, g):
    """FLIPD at x as public code has it: D + sigma^2 (mean of v^T ds/dx v + |s|^2), v normal."""
    with torch.enable_grad():
        y = x.detach().requires_grad_(True)
        score = (model(y, sigma) - y) / sigma**2
    total = torch.zeros(len(x), dtype=x.dtype)
    for _ in range(k):
        v = torch.randn(x.shape, generator=g, dtype=x.dtype)
        (product,) = torch.autograd.grad(score, y, v, retain_graph=True)
        total += per_sample(v * product)
    return x[0].numel() + sigma**2 * (total / k + per_sample(score.detach() ** 2))


def spread(estimate, repeats):
    """Standard deviation over repetitions at one point, pooled over the points of the batch."""
    values = torch.stack([estimate(generator(1000 + i)) for i in range(repeats)])
    return float(values.var(0).mean().sqrt())


# ---------------------------------------------------------------------------------------- products


def exact_model(dim, d):
    """A far mixture of `dim`-dimensional subspaces, off the origin, and points of the first."""
    g = generator(0)
    bases = [torch.linalg.qr(torch.randn(d, dim, generator=g)).Q for _ in range(2)]
    means = [torch.randn(d, generator=g) for _ in range(2)]
    model = MixtureDenoiser(means, [torch.ones(dim)] * 2, bases)
    return model, means[0] + torch.randn(4, dim, generator=g) @ bases[0].mT


def products_exact(d=1000, sigma=0.1):
    print(f"### Exact denoisers, {d:,} dimensions\n")
    print("| LID | wanted stderr | FLIPD: passes, products | spread measured ", end="")
    print("| Gaussian: spread of one probe | probes for that stderr | Gaussian / memfold |")
    print("|---|---|---|---|---|---|---|")
    for dim in (2, 10, 50, 200):
        model, x = exact_model(dim, d)
        one = spread(lambda g: gaussian_probes(model, x, sigma, 1, g), 100)  # noqa: B023
        for wanted in (0.5, 2.0):
            counted = Counted(model)
            options = {"at": "x", "tol": wanted, "max_probes": 512}
            own = spread(lambda g: flipd(counted, x, sigma, generator=g, **options).lid, 10)  # noqa: B023
            passes, taken = (n / len(x) / 10 for n in (counted.forward, counted.backward))
            need = (one / wanted) ** 2
            ratio = (1 + need) / (passes + taken)
            print(
                f"| {dim} | {wanted} | {passes:.0f}, {taken:.0f} | {own:.2g} | {one:.1f} ", end=""
            )
            print(f"| {need:,.0f} | {ratio:.1f} |", flush=True)


def products_trained(assets="assets/demo"):
    """The bundled network: no symmetric J, no low rank, so that only the kind of probe differs."""
    model = memfold.load(Path(assets, "model"))
    images = load_images(Path(assets, "train.npz"))
    x = model.encode(images.batch(0, 4))
    print("\n### The bundled network (256 dimensions), 4 images\n")
    print("| sigma | at | trace by | FLIPD: passes, products | its spread ", end="")
    print("| Gaussian: spread of one probe | products for equal spread, Gaussian / memfold |")
    print("|---|---|---|---|---|---|---|")
    for sigma in (0.1, 0.2, 0.4):
        noise = torch.randn(x.shape, generator=generator(3))
        for at, y in (("x", x), ("x + sigma n", x + sigma * noise)):
            counted = Counted(model)
            options = {"at": "x", "n_probes": 8}
            own = spread(lambda g: flipd(counted, y, sigma, generator=g, **options).lid, 15)  # noqa: B023
            passes, taken = (n / len(x) / 15 for n in (counted.forward, counted.backward))
            method = flipd(model, y, sigma, generator=generator(0), **options).method
            one = spread(lambda g: gaussian_probes(model, y, sigma, 1, g), 60)  # noqa: B023
            kind = method.split("trace by ")[1].rsplit(",", 1)[0]
            ratio = (one / own) ** 2 / taken
            print(f"| {sigma} | {at} | {kind} | {passes:.0f}, {taken:.0f} | {own:.2f} ", end="")
            print(f"| {one:.2f} | {ratio:.1f} |", flush=True)


def products(args):
    products_exact()
    products_trained()


# ------------------------------------------------------------------------------------------ growth

M_MMAP_THRESHOLD = -3  # of mallopt(3)
ESTIMATORS = {
    "FLIPD at x": (flipd, {"at": "x", "trace": "hutchinson", "n_probes": 8}),
    "FLIPD at x, auto": (flipd, {"at": "x"}),
    "FLIPD at x + sigma n": (flipd, {"n_noises": 8, "trace": "hutchinson"}),
    "denoising loss": (dsm_lid, {"n_noises": 16}),
    "spectral count": (spectral_lid, {"n_noises": 4}),
    "Jacobian rank": (jacobian_rank, {"n_noises": 2}),
    "normal bundle": (normal_bundle, {}),
}


def cheap(d, dim=10):
    """D of a Gaussian that is flat but for its first `dim` axes: one product a number."""
    gain = (torch.arange(d) < dim).float()

    def model(x, sigma):
        return x * gain / (1 + sigma**2)

    return model


def measured(job, warm):
    """Seconds of a job, and by how many MiB it raises the peak of resident memory.

    Each in a fresh child, after a small job, so that what torch loads when first asked is not
    counted. The child that measures memory gives what is freed back at once (glibc would keep
    blocks for later, more of them the longer it runs); that costs time.
    """
    return in_child(partial(seconds_of, job), warm), in_child(partial(growth_of, job), warm)


def seconds_of(job):
    start = time.process_time()
    job()
    return time.process_time() - start


def growth_of(job):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def in_child(measure, warm):
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)

    def child():
        torch.set_num_threads(1)
        if measure.func is growth_of:
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
        warm()
        theirs.send(measure())

    process = context.Process(target=child)
    process.start()
    result = mine.recv()
    process.join()
    return result


def exponent(sizes, values):
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-6)), 1)[0])


def run(name, n, d, **more):
    f, options = ESTIMATORS[name]

    def job(n=n, d=d):
        x = torch.randn(n, d, generator=generator(0)) * (torch.arange(d) < 10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            f(cheap(d), x, 0.1, generator=generator(1), **(options | more))

    return measured(job, lambda: job(2, 64))


def growth(args):
    print("| estimator | points | seconds over points | | peak MiB | dimensions ", end="")
    print("| seconds over dimensions | | peak MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in ESTIMATORS:
        slow = name == "normal bundle"
        counts = (8, 32, 128) if slow else (128, 512, 2048)
        sizes = (64, 256, 1024) if slow else (1024, 4096, 16384)
        cells = []
        for symbol, values, job in (
            ("n", counts, lambda n: run(name, n, 64 if slow else 1024)),  # noqa: B023
            ("D", sizes, lambda d: run(name, 2 if slow else 64, d)),  # noqa: B023
        ):
            found = [job(value) for value in values]
            cells.append("/".join(f"{value:,}" for value in values))
            cells.append("/".join(f"{t:.2f}" for t, _ in found))
            cells.append(f"{symbol}^{exponent(values, [t for t, _ in found]):.1f}")
            cells.append("/".join(f"{m:.0f}" for _, m in found))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    knobs()


def knobs():
    print("\n| what grows | values | seconds | exponent | peak MiB |")
    print("|---|---|---|---|---|")
    cases = [
        ("probes, FLIPD at x by Hutchinson", "FLIPD at x", "n_probes", (8, 32, 128), 64),
        ("noises, denoising loss", "denoising loss", "n_noises", (16, 64, 256), 64),
        ("noises, FLIPD", "FLIPD at x + sigma n", "n_noises", (4, 16, 64), 64),
        ("Lanczos steps, spectral count", "spectral count", "n_steps", (4, 8, 16), 64),
        ("memory budget, FLIPD", "FLIPD at x + sigma n", "memory_budget", (2**20, 2**24, 2**28), 256),
        ("batch, denoising loss", "denoising loss", "batch_size", (16, 256, 4096), 256),
    ]  # fmt: skip
    for label, name, knob, values, n in cases:
        found = [run(name, n, 1024, **{knob: v}) for v in values]
        seconds = "/".join(f"{t:.2f}" for t, _ in found)
        power = exponent(values, [t for t, _ in found])
        memory = "/".join(f"{m:.0f}" for _, m in found)
        shown = "/".join(f"{v:,}" for v in values)
        print(f"| {label} | {shown} | {seconds} | {power:.1f} | {memory} |", flush=True)


# ------------------------------------------------------------------------------------------- audit


class NetworkClock:
    """Seconds in forward passes of networks of some classes, and in autograd's backward passes."""

    def __init__(self, names):
        self.names, self.depth = names, 0
        self.seconds = {"forward": 0.0, "backward": 0.0}

    def __enter__(self):
        hooks = torch.nn.modules.module
        self.handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        self.grad = torch.autograd.grad

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return self.grad(*args, **kwargs)
            finally:
                self.seconds["backward"] += time.perf_counter() - start

        torch.autograd.grad = timed
        return self

    def __exit__(self, *_):
        torch.autograd.grad = self.grad
        for handle in self.handles:
            handle.remove()

    def _enter(self, module, _):
        if type(module).__name__ in self.names:
            self.depth += 1
            self.start = time.perf_counter()

    def _leave(self, module, *_):
        if type(module).__name__ in self.names:
            self.depth -= 1
            self.seconds["forward"] += time.perf_counter() - self.start


NETWORKS = (
    "UNet2DModel", "UNet2DConditionModel", "CLIPTextModel", "Encoder", "Decoder",
)  # fmt: skip


def audits(args, folder):
    """The two audits by name: calls without arguments."""
    demo, t2i = "assets/demo", "assets/text_to_image"
    images = Plan(
        model=f"{demo}/model", data=f"{demo}/train.npz", holdout=f"{demo}/holdout.npz",
        train_points=True, limit=args.limit, noises=8, out=folder,
    )  # fmt: skip
    prompts = PromptPlan(
        model=f"{t2i}/model", prompts=f"{t2i}/suspects.txt", data=f"{t2i}/train.npz",
        ordinary=f"{t2i}/ordinary.txt", steps=20, guidance_scale=3.0, limit=args.prompts,
        out=folder,
    )  # fmt: skip
    return {
        f"{args.limit} images": lambda: run_images(images, progress=False),
        f"{args.prompts} prompts": lambda: run_prompts(prompts, progress=False),
    }


def audit(args):
    print("| audit | seconds | forward | backward | network's share | of it all, with report |")
    print("|---|---|---|---|---|---|")
    for label in audits(args, "."):
        if args.only and args.only not in label:
            continue
        profile = cProfile.Profile() if args.profile else None
        with tempfile.TemporaryDirectory() as folder, NetworkClock(NETWORKS) as clock:
            job = audits(args, folder)[label]
            start = time.perf_counter()
            if profile:
                profile.runcall(job)
                profile.dump_stats(args.profile)
            else:
                job()
            total = time.perf_counter() - start
            write_report(Path(folder))
            whole = time.perf_counter() - start
        forward, backward = clock.seconds["forward"], clock.seconds["backward"]
        inside = forward + backward
        print(f"| {label} | {total:.1f} | {forward:.1f} | {backward:.1f} ", end="")
        print(f"| {inside / total:.0%} | {inside / whole:.0%} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["products", "growth", "audit"])
    parser.add_argument("--limit", type=int, default=1000, help="images audited")
    parser.add_argument("--prompts", type=int, default=40, help="prompts audited")
    parser.add_argument("--only", help="images or prompts")
    parser.add_argument("--profile", help="file for the statistics of cProfile")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    {"products": products, "growth": growth, "audit": audit}[args.part](args)


if __name__ == "__main__":
    main()
