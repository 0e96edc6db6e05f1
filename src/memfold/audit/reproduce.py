"""Run the paper's experiments, which stand in a checkout of memfold, and collect their claims."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memfold.files import write_text
from memfold.types import InputError

ENTRY = "run.py"
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How one experiment ended.

    Attributes:
        name: of the experiment.
        code: exit code; 0 is success, whatever became of its claims.
        seconds: wall time.
        log: what it printed, a file; None if it went to the terminal.
        claims: `kit.Claim` as dictionaries; empty if it did not end.
    """

    name: str
    code: int
    seconds: float
    log: Path | None
    claims: list[dict[str, Any]]


def checkout(folder: str | Path | None = None) -> Path:
    """Find the checkout that holds the experiments.

    Args:
        folder: a checkout of memfold; if None, the current directory, then the one that memfold
            was installed from in editable mode.

    Returns:
        Its root, which contains `experiments/`.

    Raises:
        InputError: there is none.
    """
    places = [Path(folder)] if folder is not None else [Path.cwd(), Path(__file__).parents[3]]
    for place in places:
        if (place / "experiments" / "kit.py").is_file():
            return place.resolve()
    raise InputError(
        f"no experiments in {' or '.join(map(str, places))}: they are no part of the installed "
        "package; clone memfold's repository and run this there, or give --checkout DIR"
    )


def available(root: Path) -> dict[str, str]:
    """Return the experiments under a checkout's root by name, with one line on each."""
    found = {}
    for path in sorted((root / "experiments").glob(f"*/{ENTRY}")):
        tree = ast.parse(path.read_text("utf-8"))
        if any(
            isinstance(node, ast.FunctionDef) and node.name == "experiment" for node in tree.body
        ):
            found[path.parent.name] = (
                (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
            )
    return found


def run_experiments(
    names: Sequence[str],
    root: Path,
    out: str | Path,
    *,
    quick: bool = False,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    ended: Callable[[Outcome], None] = lambda outcome: None,
    quiet: bool = False,
) -> list[Outcome]:
    """Run experiments, each in a process of its own, and write what they claim.

    A process runs on one thread if there are several. Steps are cached under `out`, so that a run
    that was stopped goes on.

    Args:
        names: of the experiments.
        root: the checkout's.
        out: directory of the results, a folder an experiment.
        quick: the short settings.
        seed: keys all randomness.
        workers: processes at a time.
        overwrite: compute cached steps again.
        ended: called after each.
        quiet: a single experiment prints to its log, too, instead of the terminal.

    Returns:
        Outcomes in the order of `names`; claims.json and claims.md stand in `out`.

    Raises:
        InputError: an unknown name, or fewer than one worker.
    """
    known = available(root)
    for name in names:
        if name not in known:
            raise InputError(f"no experiment {name!r}; there are {', '.join(known)}, and all")
    if workers < 1:
        raise InputError(f"--workers {workers}; take at least 1")
    target = Path(out).resolve()
    target.mkdir(parents=True, exist_ok=True)
    options = ["--seed", str(seed), *(["--quick"] if quick else []),
               *(["--overwrite"] if overwrite else [])]  # fmt: skip
    running: list[subprocess.Popen] = []

    def one(name: str) -> Outcome:
        to_terminal = len(names) == 1 and not quiet
        outcome = _run(
            name, root, target / name, options, min(workers, len(names)) > 1, to_terminal, running
        )
        ended(outcome)
        return outcome

    pool = ThreadPoolExecutor(workers)
    try:
        outcomes = list(pool.map(one, names))
    finally:  # a stopped command takes its experiments with it
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            if process.poll() is None:
                process.terminate()
    _collect(target, outcomes)
    return outcomes


def _run(
    name: str,
    root: Path,
    out: Path,
    options: Sequence[str],
    one_thread: bool,
    to_terminal: bool,
    running: list[subprocess.Popen],
) -> Outcome:
    out.mkdir(parents=True, exist_ok=True)
    (out / "claims.json").unlink(missing_ok=True)  # those of an earlier run
    log = None if to_terminal else out / "log.txt"
    argv = [sys.executable, "-m", f"experiments.{name}.run", "--out", str(out), *options]
    env = os.environ | {"MEMFOLD_PARENT": str(os.getpid())}
    env |= dict.fromkeys(_ONE_THREAD, "1") if one_thread else {}
    start = time.monotonic()
    if log is None:
        process = subprocess.Popen(argv, cwd=root, env=env)
        running.append(process)
        code = process.wait()
    else:
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(argv, cwd=root, env=env, stdout=file, stderr=file)
            running.append(process)
            code = process.wait()
    claims = out / "claims.json"
    made = json.loads(claims.read_text("utf-8")) if code == 0 and claims.exists() else []
    return Outcome(name, code, time.monotonic() - start, log, made)


def _collect(out: Path, outcomes: Sequence[Outcome]) -> None:
    facts = {
        o.name: {"seconds": round(o.seconds, 1), "code": o.code, "claims": o.claims}
        for o in outcomes
    }
    write_text(out / "claims.json", json.dumps(facts, indent=1))
    text = ""
    for outcome in outcomes:
        claims = out / outcome.name / "claims.md"
        body = (
            claims.read_text("utf-8")
            if outcome.code == 0 and claims.exists()
            else "It did not end.\n"
        )
        text += f"## {outcome.name}\n\n{body}\n"
    write_text(out / "claims.md", text)
