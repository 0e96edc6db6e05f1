"""The commands, and what all of them share."""

from __future__ import annotations

from typing import Annotated

import typer

from memfold.cli._options import Debug
from memfold.cli.audit import audit
from memfold.cli.bench import bench
from memfold.cli.explain import explain
from memfold.cli.lid import data_lid, lid, report
from memfold.cli.prevent import calibrate, mitigate
from memfold.cli.reproduce import reproduce
from memfold.cli.verify import verify

app = typer.Typer(
    name="memfold",
    help="Find, explain and prevent memorization in generative models by local intrinsic dimension "
    "(LID): how many directions a model, or its data, leaves free around an image.",
    epilog="memfold COMMAND -h shows options and an example. Exit codes: 0 done, 1 found what "
    "--fail-on names, 2 the input cannot be used, 3 inconclusive: the audit could not have called "
    "a copy that it had, 70 memfold's own fault, 130 and 143 stopped.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        import memfold

        typer.echo(f"memfold {memfold.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
    debug: Debug = False,
) -> None:
    pass


for command in (
    audit, verify, lid, data_lid, report, bench, explain, calibrate, mitigate, reproduce,
):  # fmt: skip
    app.command()(command)
