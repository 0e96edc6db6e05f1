"""What every reproduced experiment needs: cached steps, claims with intervals, tables, figures.

An experiment is a folder with a `run.py` whose `experiment(run)` takes a `Run`::

    def experiment(run: Run) -> None:
        made = run.arrays("model", train, steps=run.pick(quick=500, full=4000))
        run.claim("LID is 0 at copies", "mean LID", made["lid"], below=1.0, source="Section 3")
        run.table("lid", header, rows)
        run.figure("lid", fig)


    if __name__ == "__main__":
        main(experiment, __file__)

`python -m experiments.NAME.run --quick` and `memfold reproduce NAME --quick` run it. Everything goes
to --out: claims.json, claims.md, tables (.md, .csv), figures (.svg, .png), run.json, and steps/, from
which a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from memfold.memorization.evaluate import Share
from memfold.types import InputError

RESAMPLES = 2000
SECONDS = "__seconds__"  # of a step, beside its arrays
VERSIONS = ("memfold", "torch", "numpy", "diffusers")


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and what was found.

    Attributes:
        text: the statement, in words.
        statistic: what was measured.
        value: its value.
        low: lower end of its 95 % interval.
        high: upper end.
        demand: what the statement asks of the statistic, such as "> 0".
        outcome: "holds" if the whole interval meets the demand, "fails" if none of it does, else
            "open".
        source: where the paper says it.
        reason: why it came out so, where that is known.
    """

    text: str
    statistic: str
    value: float
    low: float
    high: float
    demand: str
    outcome: str
    source: str = ""
    reason: str = ""

    def __str__(self) -> str:
        """One line a claim, as the terminal shows it."""
        found = f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}], wanted {self.demand}"
        why = f" ({self.reason})" if self.reason and self.outcome != "holds" else ""
        return f"{self.outcome:>5}: {self.text}: {self.statistic} {found}{why}"


def interval(
    values: Any,
    statistic: Callable[..., Any] = np.mean,
    *,
    clusters: Any = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float]:
    """Value and 95 % bootstrap interval of a statistic of one or several independent samples.

    Args:
        values: one sample, shape (n, ...), or a tuple of independent ones; rows are resampled.
        statistic: takes the samples, returns a number.
        clusters: labels of the rows (a tuple of them for several samples); whole clusters, such as
            all images of one prompt, are resampled then.
        seed: of the resampling.
        resamples: how many.
    """
    samples = values if isinstance(values, tuple) else (values,)
    samples = tuple(np.asarray(s) for s in samples)
    labels = clusters if isinstance(clusters, tuple) else (clusters,) * len(samples)
    groups = [
        [np.array([i]) for i in range(len(s))]
        if c is None
        else [np.flatnonzero(np.asarray(c) == name) for name in np.unique(c)]
        for s, c in zip(samples, labels, strict=True)
    ]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        picked = (
            s[np.concatenate([g[i] for i in rng.integers(len(g), size=len(g))])]
            for s, g in zip(samples, groups, strict=True)
        )
        drawn.append(float(statistic(*picked)))
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(statistic(*samples)), float(low), float(high)


def difference(a: Any, b: Any, **options: Any) -> tuple[float, float, float]:
    """Mean of a less mean of b, two independent samples, with its interval."""
    return interval((a, b), lambda x, y: np.mean(x) - np.mean(y), **options)


def proportion(hits: int, trials: int) -> tuple[float, float, float]:
    """A share with its exact (Clopper-Pearson) 95 % interval."""
    share = Share(hits, trials)
    return (share.value, *share.interval)


class Run:
    """One run of an experiment: its settings, its cached steps and what it found.

    Attributes:
        name: the experiment's.
        quick: the short setting, minutes on a laptop.
        seed: keys all randomness.
        out: directory of the results.
        claims: those made so far.
    """

    def __init__(
        self, name: str, out: Path, *, quick: bool = False, seed: int = 0, overwrite: bool = False
    ) -> None:
        self.name, self.out, self.quick, self.seed = name, Path(out), quick, seed
        self.overwrite = overwrite
        self.claims: list[Claim] = []
        self.seconds: dict[str, float] = {}
        (self.out / "steps").mkdir(parents=True, exist_ok=True)

    def pick(self, *, quick: Any, full: Any) -> Any:
        """Choose between the two settings."""
        return quick if self.quick else full

    def generator(self, key: int = 0) -> torch.Generator:
        """Return a generator keyed by the run's seed and a number."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + key)

    def arrays(
        self, name: str, compute: Callable[..., dict[str, Any]], /, **settings: Any
    ) -> dict[str, np.ndarray]:
        """Compute a step once; a second run with the same code and settings reads it.

        Args:
            name: of the step.
            compute: called as `compute(**settings)`; returns arrays or tensors by name.
            settings: plain values; arrays and modules count by their content.
        """
        path = self.out / "steps" / f"{name}-{self._digest(compute, settings)}.npz"
        if path.exists() and not self.overwrite:
            with np.load(path) as kept:
                found = dict(kept)
            self._spent(name, float(found.pop(SECONDS, 0.0)))
            return found
        tqdm.write(f"{self.name}: {name} ...")
        start = time.monotonic()
        made = compute(**settings)
        arrays = {k: v.numpy(force=True) if torch.is_tensor(v) else np.asarray(v) for k, v in made.items()}  # fmt: skip
        if bad := [k for k, v in arrays.items() if v.dtype == object]:
            raise TypeError(f"step {name}: {bad} are no plain arrays")
        seconds = time.monotonic() - start
        part = path.with_suffix(".part.npz")
        np.savez_compressed(part, **arrays, **{SECONDS: seconds})
        part.replace(path)
        self._spent(name, seconds)
        tqdm.write(f"{self.name}: {name} took {seconds:.1f} s")
        return arrays

    def module(
        self, name: str, build: Callable[[], torch.nn.Module], train: Callable[..., None], /, **settings: Any
    ) -> torch.nn.Module:  # fmt: skip
        """Train a module once: `train(module, **settings)`; its weights are a cached step."""

        def compute(**given: Any) -> dict[str, Any]:
            module = build()
            train(module, **given)
            return dict(module.state_dict())

        compute.source = inspect.getsource(build) + inspect.getsource(train)  # type: ignore[attr-defined]
        weights = self.arrays(name, compute, **settings)
        module = build()
        module.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        return module.eval().requires_grad_(False)

    def claim(
        self,
        text: str,
        statistic: str,
        found: tuple[float, float, float],
        *,
        above: float | None = None,
        below: float | None = None,
        source: str = "",
        reason: str = "",
    ) -> Claim:
        """State a claim and whether it holds.

        Args:
            text: the paper's statement.
            statistic: what was measured.
            found: its value and the ends of its 95 % interval.
            above: it must exceed this.
            below: it must stay under this; with `above`, it must lie between.
            source: place in the paper.
            reason: why it came out so.
        """
        value, low, high = found
        floor, ceiling = (-np.inf if above is None else above), (np.inf if below is None else below)
        holds = floor < low and high < ceiling
        fails = high <= floor or low >= ceiling
        demand = " and ".join(
            f"{sign} {limit:g}" for sign, limit in ((">", above), ("<", below)) if limit is not None
        )
        outcome = "holds" if holds else "fails" if fails else "open"
        made = Claim(text, statistic, value, low, high, demand, outcome, source, reason)
        self.claims.append(made)
        return made

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
        """Write a table as NAME.md and NAME.csv, and print it."""
        cells = [[f"{c:.3g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
        lines = [row_of(row) for row in (header, ["---"] * len(header), *cells)]
        text = "\n".join(lines) + "\n"
        (self.out / f"{name}.md").write_text(text, encoding="utf-8")
        with (self.out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        print(f"\n{text}")
        return text

    def figure(self, name: str, fig: Any) -> None:
        """Write a matplotlib figure as NAME.svg and NAME.png."""
        import matplotlib as mpl

        mpl.rcParams["svg.hashsalt"] = self.name  # the same figure, the same bytes
        fig.savefig(self.out / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
        fig.savefig(self.out / f"{name}.png", dpi=110, bbox_inches="tight")

    def finish(self, seconds: float) -> None:
        """Write and print what was claimed."""
        facts = [asdict(claim) for claim in self.claims]
        (self.out / "claims.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        (self.out / "claims.md").write_text(claims_table(facts), encoding="utf-8")
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        made = {"name": self.name, "quick": self.quick, "seed": self.seed, "seconds": seconds,
                "steps": self.seconds, "versions": versions}  # fmt: skip
        (self.out / "run.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
        print("\n".join(str(claim) for claim in self.claims))

    def _spent(self, name: str, seconds: float) -> None:
        """Add what a step took when it was computed, be it in an earlier run."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def _digest(self, compute: Callable, settings: dict[str, Any]) -> str:
        source = getattr(compute, "source", None) or inspect.getsource(compute)
        state = hashlib.sha256(source.encode())
        state.update(f"{self.seed} {self.quick}".encode())
        for key in sorted(settings):
            state.update(f"{key}=".encode())
            for part in _content(settings[key]):
                state.update(part)
        return state.hexdigest()[:16]


def _content(value: Any) -> list[bytes]:
    """What of a setting counts: numbers of arrays and weights, else its text."""
    if isinstance(value, torch.nn.Module):
        return [p for v in value.state_dict().values() for p in _content(v)]
    if torch.is_tensor(value):
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray):
        return [str(value.shape).encode(), np.ascontiguousarray(value).tobytes()]
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in (str(k).encode(), *_content(v))]
    if isinstance(value, (list, tuple)):
        return [p for v in value for p in _content(v)]
    if value is None or isinstance(value, (str, int, float, bool, Path, np.generic)):
        return [repr(value).encode()]
    raise TypeError(f"a step's settings are plain values, arrays or modules, not {type(value)}")


def row_of(cells: Sequence[str]) -> str:
    """Write a row of a Markdown table; a bar within a cell is no border."""
    return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"


def claims_table(facts: Sequence[dict[str, Any]]) -> str:
    """Write claims as a Markdown table."""
    lines = [
        "| claim | measured | value [95 % interval] | wanted | outcome |",
        "|---|---|---|---|---|",
    ]
    for c in facts:
        source = f" ({c['source']})" if c["source"] else ""
        why = f": {c['reason']}" if c["reason"] and c["outcome"] != "holds" else ""
        value = f"{c['value']:.3g} [{c['low']:.3g}, {c['high']:.3g}]"
        outcome = f"**{c['outcome']}**{why}"
        lines.append(row_of([c["text"] + source, c["statistic"], value, c["demand"], outcome]))
    return "\n".join(lines) + "\n"


def end_with_parent() -> None:
    """End when the process that `memfold reproduce` started this from is gone, even killed."""
    parent = int(os.environ.get("MEMFOLD_PARENT", "0"))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


def main(experiment: Callable[[Run], None], file: str) -> None:
    """Run an experiment from the command line.

    Args:
        experiment: takes the run.
        file: `__file__` of its run.py; the folder's name is the experiment's.
    """
    name = Path(file).resolve().parent.name
    doc = inspect.getmodule(experiment).__doc__ or name
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}.run", description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="the short setting")
    parser.add_argument("--seed", type=int, default=0, help="keys all randomness (0)")
    parser.add_argument("--out", type=Path, default=Path("out/reproduce") / name, help="results")
    parser.add_argument("--overwrite", action="store_true", help="compute every step again")
    args = parser.parse_args()
    end_with_parent()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(2, os.cpu_count() or 1))
    import matplotlib as mpl

    mpl.use("Agg")
    run = Run(name, args.out, quick=args.quick, seed=args.seed, overwrite=args.overwrite)
    start = time.monotonic()
    try:
        experiment(run)
    except KeyboardInterrupt:
        sys.exit(130)
    except InputError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    run.finish(time.monotonic() - start)
