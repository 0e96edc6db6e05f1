"""The command line: a subcommand is a few lines over the library."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from memfold.cli.audit import audit
from memfold.cli.bench import bench
from memfold.cli.explain import explain
from memfold.cli.lid import data_lid, lid, report
from memfold.cli.prevent import calibrate, mitigate
from memfold.cli.reproduce import reproduce
from memfold.types import InputError

app = typer.Typer(
    name="memfold",
    help="Find, explain and prevent memorization in generative models by local intrinsic dimension "
    "(LID): how many directions a model, or its data, leaves free around an image.",
    epilog="memfold COMMAND --help shows options and an example. Exit codes: 0 done, 1 found what "
    "--fail-on names, 2 the input cannot be used.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
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
) -> None:
    pass


for command in (audit, lid, data_lid, report, bench, explain, calibrate, mitigate, reproduce):
    app.command()(command)


def main() -> None:
    """Run the command line; every fault of the input is one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; mend that and run the same command again")
    except KeyboardInterrupt:
        _fail("stopped; run the same command again to go on where it was", 130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error of the command-line parser
            raise
        _fail(f"{error.format_message()} (see memfold --help)")
    sys.exit(code or 0)


def _fail(message: str, code: int = 2) -> None:
    print(f"memfold: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
