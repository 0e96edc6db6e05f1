"""The command line: a subcommand is a few lines over the library."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from memfold.cli_text import print_prompts, register, run_audit
from memfold.types import InputError

app = typer.Typer(
    name="memfold",
    help="Find, explain and prevent memorization in generative models by local intrinsic dimension "
    "(LID): how many directions a model, or its data, leaves free around an image.",
    epilog="Exit codes: 0 done, 1 found what --fail-on names, 2 the input cannot be used.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Out = Annotated[str, typer.Option("--out", help="Directory of the results; created if need be.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON, nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Keys all randomness.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, mps ...")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Also read pickled weights; they can run code.")
]
Resize = Annotated[
    bool, typer.Option("--resize", help="Bring images of another size to the model's.")
]
ClassLabel = Annotated[
    int | None, typer.Option("--class-label", help="Class of a class-conditional model.")
]


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


@app.command()
def audit(
    model: Annotated[str, typer.Argument(help="A diffusers pipeline directory or hub id.")],
    out: Out,
    data: Annotated[
        str | None, typer.Option("--data", help="The images the model was trained on.")
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option("--holdout", help="Real images that the model has not seen: the reference."),
    ] = None,
    samples: Annotated[str | None, typer.Option("--samples", help="Judge these images.")] = None,
    generate: Annotated[
        int | None, typer.Option("--generate", help="Draw so many images and judge them.")
    ] = None,
    train_points: Annotated[
        bool, typer.Option("--train-points", help="Judge the training images themselves.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Judge at most so many, chosen by the seed.")
    ] = None,
    truth: Annotated[
        str | None, typer.Option("--truth", help="JSON with known answers, to compare with.")
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option("--embedding", help="TorchScript image embedding: nearest images in it too."),
    ] = None,
    estimator: Annotated[
        str, typer.Option("--estimator", help="Model side: dsm, flipd or spectral.")
    ] = "dsm",
    data_estimator: Annotated[
        str, typer.Option("--data-estimator", help="Data side: mle, lpca, twonn or empirical.")
    ] = "mle",
    sigma: Annotated[
        float | None, typer.Option("--sigma", help="Scale; chosen on the reference if left out.")
    ] = None,
    noises: Annotated[int, typer.Option("--noises", help="Noises for each image.")] = 16,
    probes: Annotated[
        int, typer.Option("--probes", help="Products for each noise (estimator flipd).")
    ] = 4,
    neighbors: Annotated[
        int, typer.Option("--neighbors", help="Training images around each, data side.")
    ] = 20,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            help="Wanted false-discovery rate (0.05); for prompts, false-positive rate (0.01).",
        ),
    ] = None,
    max_reference: Annotated[
        int | None, typer.Option("--max-reference", help="At most so many reference images.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Rows in one pass; halved when memory runs out.")
    ] = 128,
    fail_on: Annotated[
        str, typer.Option("--fail-on", help="Exit with 1 on: overfitting,data,undetermined.")
    ] = "",
    class_label: ClassLabel = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", help="Guidance, with --class-label or --prompts."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", help="Judge the prompts of a text-to-image pipeline instead."),
    ] = None,
    ordinary: Annotated[
        str | None,
        typer.Option("--ordinary", help="Prompts that are not memorized: their reference."),
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", help="Images a prompt (4), with --prompts.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Denoising steps, with --prompts.")
    ] = None,
    shown: Annotated[
        int | None,
        typer.Option("--shown", help="Flagged prompts shown in full (24), with --prompts."),
    ] = None,
    mitigate: Annotated[
        str | None,
        typer.Option("--mitigate", help="Mitigation tried on flagged prompts, with --prompts."),
    ] = None,
    no_explain: Annotated[
        bool, typer.Option("--no-explain", help="Do not attribute flagged prompts to their words.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes, with --prompts.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    resize: Resize = False,
    allow_pickle: Pickle = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard another audit's results in --out.")
    ] = False,
    title: Annotated[str, typer.Option("--title", help="Heading of the report.")] = "",
    json_: Json = False,
) -> None:
    """Say which images a diffusion model memorized, of which kind, and why.

    Images come from a folder, .npy or .npz (array `images`), Parquet, a Hugging Face dataset
    directory or a dataset id. Writes results.parquet, audit.json and report.html to --out. A run
    that was stopped, even killed, goes on where it was when the same command is run again.

    With --prompts it judges the prompts of a text-to-image pipeline against ordinary ones, shows
    what they draw, which words do it, and what a mitigation changes.

    [bold]Example[/bold]: memfold audit my-ddpm --data train --holdout test --generate 500 --out dir

    [bold]Example[/bold]: memfold audit my-sd --prompts p.csv --ordinary o.txt --out dir
    """
    from memfold.report.html import write

    given = {k: v for k, v in locals().items() if k not in ("json_", "write", "no_explain")}
    given["fail_on"] = tuple(kind.strip() for kind in fail_on.split(",") if kind.strip())
    given["explain"] = not no_explain
    facts = run_audit(given, progress=not json_)
    report = write(Path(out))
    if json_:
        typer.echo(json.dumps(facts, indent=1))
    elif prompts is not None:
        print_prompts(facts, str(report))
    else:
        _print_audit(facts, str(report))
    if facts["exit"]["failed"]:
        raise typer.Exit(1)


@app.command()
def lid(
    model: Annotated[str, typer.Argument(help="A diffusers pipeline directory or hub id.")],
    images: Annotated[str, typer.Argument(help="A folder, .npy, .npz, Parquet or dataset id.")],
    sigma: Annotated[
        float | None, typer.Option("--sigma", help="Scale; the knee of the mean curve if left out.")
    ] = None,
    estimator: Annotated[str, typer.Option("--estimator", help="dsm, flipd or spectral.")] = "dsm",
    noises: Annotated[int, typer.Option("--noises", help="Noises for each image.")] = 16,
    limit: Annotated[int | None, typer.Option("--limit", help="The first so many images.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Write a .parquet or .csv file.")] = None,
    figure: Annotated[str | None, typer.Option("--figure", help="Draw the curves (.svg).")] = None,
    class_label: ClassLabel = None,
    seed: Seed = 0,
    device: Device = "cpu",
    resize: Resize = False,
    allow_pickle: Pickle = False,
    json_: Json = False,
) -> None:
    """Estimate the model's LID at given images, and its curve over scales.

    Low LID: the model has few directions left to vary the image. It is a measurement, no verdict:
    simple images have low LID too. For verdicts run `memfold audit`.
    """
    from memfold.audit.survey import model_lid, save, write_figure
    from memfold.report.figures import Line, curves

    found = model_lid(
        model, images, sigma=sigma, estimator=estimator, noises=noises, limit=limit, seed=seed,
        class_label=class_label, device=device, resize=resize, allow_pickle=allow_pickle,
        progress=not json_,
    )  # fmt: skip
    if out is not None:
        save(found.table, out)
    if figure is not None and found.curve is not None:
        lines = [
            Line(name, "none", lid.tolist(), stderr.tolist())
            for name, lid, stderr in zip(
                found.table["id"], found.curve.lid, found.curve.stderr, strict=True
            )
        ]
        write_figure(curves(found.curve.sigmas.tolist(), lines, None, sigma=found.sigma), figure)
    _print_table(found.table, found.title, json_)


@app.command("data-lid")
def data_lid(
    data: Annotated[str, typer.Argument(help="A folder, .npy, .npz, Parquet or dataset id.")],
    estimator: Annotated[str, typer.Option("--estimator", help="mle, lpca or twonn.")] = "mle",
    neighbors: Annotated[int, typer.Option("--neighbors", help="Images around each.")] = 20,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Near-duplicates: distance, share of the spread.")
    ] = 0.05,
    limit: Annotated[int, typer.Option("--limit", help="Print the lowest so many.")] = 20,
    out: Annotated[str | None, typer.Option("--out", help="Write a .parquet or .csv file.")] = None,
    json_: Json = False,
) -> None:
    """Find what a data set will make any model memorize, before any training.

    Estimates the data's own LID around every image, lowest first, duplicates grouped. LID 0 is a
    point mass: an image that stands there so often that memorizing it is the correct fit.
    """
    from memfold.audit.survey import data_risk, save

    found = data_risk(data, estimator=estimator, neighbors=neighbors, tolerance=tolerance)
    if out is not None:
        save(found.table, out)
    _print_table(found.table, found.title, json_, limit)


@app.command()
def report(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="What `audit` wrote to --out.")],
) -> None:
    """Draw the report of an audit again, without a model."""
    from memfold.report.html import write

    typer.echo(f"Report: {write(Path(directory))}")


register(app)


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


def _print_audit(facts: dict[str, Any], report: str) -> None:
    n, rates = facts["subjects"]["n"], facts["rates"]
    typer.echo(f"\n{n} {facts['subjects']['description']}, sigma {facts['sigma']:.3g}:")
    for kind, found in rates.items():
        share = f"{found['rate']:.1%} ({found['low']:.1%} to {found['high']:.1%})"
        typer.echo(f"  {kind:<13} {found['count']:>6}   {share}")
    if facts["ground_truth"]:
        typer.echo("Against the known answers:")
        for kind, recall in facts["ground_truth"]["recall"].items():
            precision = facts["ground_truth"]["precision"][kind]
            typer.echo(f"  {kind:<13} precision {_of(precision)}, recall {_of(recall)}")
    for warning in facts["warnings"]:
        typer.echo(f"Note: {warning}")
    typer.echo(f"Report: {report}")


def _of(rate: dict[str, Any]) -> str:
    if not rate["n"]:
        return "- (0 of 0)"
    return f"{rate['rate']:.3f} ({rate['count']} of {rate['n']})"


def _print_table(
    table: dict[str, list[Any]], title: str, as_json: bool, limit: int | None = None
) -> None:
    if as_json:
        typer.echo(json.dumps({"title": title, "rows": table}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [k for k, v in table.items() if not (v and isinstance(v[0], list))]
    typer.echo(title)
    shown = Table()
    for name in names:
        shown.add_column(name, justify="left" if name == "id" else "right")
    rows = list(zip(*(table[k] for k in names), strict=True))
    for row in rows[:limit]:
        shown.add_row(*(Text(_cell(value)) for value in row))
    Console().print(shown)
    if limit is not None and len(rows) > limit:
        typer.echo(f"{len(rows) - limit} more; --out FILE writes all, --limit prints more.")


def _cell(value: Any) -> str:
    """Write a value; what a terminal would obey (escape sequences in file names) is replaced."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
