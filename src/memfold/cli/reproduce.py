"""`memfold reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memfold.cli._boundary import CRASH
from memfold.cli._options import Debug, Half, Json, Quiet, Seed
from memfold.cli._printing import note_half, print_json, printable

if TYPE_CHECKING:
    from memfold.audit.reproduce import Outcome


def reproduce(
    name: Annotated[
        str, typer.Argument(help="An experiment, or all; the list is printed if left out.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="The short settings: minutes instead of hours.")
    ] = False,
    out: Annotated[
        str, typer.Option("--out", help="Directory of the results, one folder for each experiment.")
    ] = "out/reproduce",
    checkout: Annotated[
        str | None,
        typer.Option(
            "--checkout", help="Where memfold's repository is; the current directory if left out."
        ),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Experiments run at a time.")] = 2,
    seed: Seed = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Compute steps again that are cached in --out.")
    ] = False,
    half: Half = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Repeat the paper's experiments, and say which of its claims hold.

    Writes figures, tables and claims.md (statistic, interval, outcome) to --out. A claim that fails
    is a result; exit code 70 means that an experiment broke. A run that was stopped goes on
    where it was. The experiments stand in memfold's repository, not in the installed package.

    [bold]Example[/bold]: memfold reproduce circle --quick

    [bold]Example[/bold]: memfold reproduce all --quick --out results
    """
    from memfold.audit.checks import check, check_out
    from memfold.audit.reproduce import available, run_experiments
    from memfold.audit.reproduce import checkout as find

    check({"seed": seed, "workers": workers})
    check_out(out)
    root = find(checkout)
    known = available(root)
    note_half(half, "memfold reproduce", quiet)
    if not name:
        if json_:
            print_json(known)
        else:
            typer.echo("\n".join(f"{k:<14} {v}" for k, v in known.items()))
        return

    def ended(outcome: Outcome) -> None:
        if not (json_ or quiet):
            typer.echo(f"{outcome.name:<14} {outcome.seconds:>6.0f} s   {_tally(outcome)}")

    names = list(known) if name == "all" else [name]
    outcomes = run_experiments(
        names, root, out, quick=quick, seed=seed, workers=workers, overwrite=overwrite,
        ended=ended, quiet=json_ or quiet,
    )  # fmt: skip
    if json_:
        print_json(json.loads((Path(out) / "claims.json").read_text("utf-8")))
    elif not quiet:
        for outcome in outcomes:
            for claim in outcome.claims:
                typer.echo(printable(f"{outcome.name}: {_line(claim)}"))
        typer.echo(f"Results: {out}")
    if any(outcome.code for outcome in outcomes):
        raise typer.Exit(CRASH)


def _tally(outcome: Outcome) -> str:
    if outcome.code:
        return f"broke, see {outcome.log or 'above'}"
    ends = [claim["outcome"] for claim in outcome.claims]
    held, open_, failed = (ends.count(end) for end in ("holds", "open", "fails"))
    return f"claims: {held} hold, {open_} open, {failed} fail"


def _line(c: dict[str, Any]) -> str:
    found = f"{c['value']:.3g} [{c['low']:.3g}, {c['high']:.3g}], wanted {c['demand']}"
    return f"{c['outcome']:>5}: {c['text']}: {c['statistic']} {found}"
