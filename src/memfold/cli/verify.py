"""`memfold verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from memfold.cli._options import Debug, Half, Json, Quiet
from memfold.cli._printing import note_half, print_json, printable


def verify(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="What `audit` or `bench` wrote to --out.")
    ],
    half: Half = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check that nothing in an audit's directory was changed or mixed up since it was written.

    Checks every hash, the plan, the tables against the parts that they were made of, and the report
    against the tables. Exits with 0, or with 1 and a line for each thing that differs.

    [bold]Example[/bold]: memfold verify dir
    """
    from memfold.audit.verify import verify as check

    note_half(half, "memfold verify", quiet)
    differs = check(directory)
    if json_:
        print_json({"directory": directory, "differs": differs})
    elif differs or not quiet:
        for line in differs or ["All as it was written: hashes, plan, parts, tables, report."]:
            typer.echo(printable(line))
    if differs:
        raise typer.Exit(1)
