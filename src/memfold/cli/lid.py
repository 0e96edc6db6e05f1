"""`memfold lid`, `data-lid` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memfold.cli._options import (
    ClassLabel,
    Debug,
    Device,
    Half,
    Json,
    Pickle,
    Quiet,
    Resize,
    Seed,
)
from memfold.cli._printing import note_half, print_json, print_table, printable

_COLUMNS = 6  # images whose curves stand side by side in the printed table


def lid(
    model: Annotated[str, typer.Argument(help="A diffusers pipeline directory or hub id.")],
    images: Annotated[
        str, typer.Argument(help="Images: a folder, .npy, .npz, Parquet or a dataset id.")
    ],
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma", help="Noise level to look at; the knee of the mean curve if left out."
        ),
    ] = None,
    estimator: Annotated[
        str,
        typer.Option(
            "--estimator", help="dsm (denoising loss), flipd (trace) or spectral (soft count)."
        ),
    ] = "dsm",
    noises: Annotated[
        int, typer.Option("--noises", help="Noises for each image; more give smaller errors.")
    ] = 16,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Take the first so many images.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="Write the table to a .parquet or .csv file.")
    ] = None,
    figure: Annotated[
        str | None, typer.Option("--figure", help="Draw LID over noise levels (.svg).")
    ] = None,
    class_label: ClassLabel = None,
    seed: Seed = 0,
    device: Device = "cpu",
    half: Half = False,
    resize: Resize = False,
    allow_pickle: Pickle = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Estimate the model's LID at given images, and its curve over scales.

    Low LID: the model has few directions left to vary the image. It is a measurement, no verdict:
    simple images have low LID too. For verdicts run `memfold audit`.

    [bold]Example[/bold]: memfold lid my-ddpm images --limit 8 --figure curves.svg
    """
    from memfold.audit.checks import check_file
    from memfold.audit.survey import model_lid, save, write_figure
    from memfold.report.curve_figure import curve_figure
    from memfold.report.figures import Line

    check_file("out", out, (".parquet", ".csv"))
    check_file("figure", figure, (".svg",))
    found = model_lid(
        model, images, sigma=sigma, estimator=estimator, noises=noises, limit=limit, seed=seed,
        class_label=class_label, device=device, half=half, resize=resize,
        allow_pickle=allow_pickle, progress=not (json_ or quiet),
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
        grid = found.curve.sigmas.tolist()
        write_figure(curve_figure(grid, lines, sigma=found.sigma, title=found.title), figure)
    if json_:
        print_json(
            {
                "title": found.title,
                "sigma": found.sigma,
                "sigmas": found.table["sigmas"][0],
                "rows": found.table,
            }
        )
    elif not (quiet and out is not None):
        print_table(found.table, found.title, False)
        shown, many = _over_sigma(found.table)
        print_table(shown, f"LID over noise levels sigma{many}", False)


def _over_sigma(table: dict[str, list[Any]]) -> tuple[dict[str, list[Any]], str]:
    """Turn the curves into a table with a row a sigma; of many images give their mean."""
    names, curves = table["id"], table["curve"]
    columns = {"sigma": table["sigmas"][0]}
    if len(names) <= _COLUMNS:
        return columns | {n: list(c) for n, c in zip(names, curves, strict=True)}, ""
    mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
    return columns | {"mean LID": mean}, f", mean of {len(names)} images (all: --out or --json)"


def data_lid(
    data: Annotated[
        str, typer.Argument(help="Images: a folder, .npy, .npz, Parquet or a dataset id.")
    ],
    estimator: Annotated[
        str, typer.Option("--estimator", help="mle, lpca (local PCA) or twonn.")
    ] = "mle",
    neighbors: Annotated[
        int, typer.Option("--neighbors", help="Nearest images to look at around each.")
    ] = 20,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", help="Near-duplicates lie within this share of the data's spread."
        ),
    ] = 0.05,
    limit: Annotated[int, typer.Option("--limit", help="Print so many, lowest LID first.")] = 20,
    out: Annotated[
        str | None, typer.Option("--out", help="Write the table to a .parquet or .csv file.")
    ] = None,
    half: Half = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find what a data set will make any model memorize, before any training.

    Estimates the data's own LID around every image, lowest first, duplicates grouped. LID 0 is a
    point mass: an image that stands there so often that memorizing it is the correct fit.

    [bold]Example[/bold]: memfold data-lid train --limit 50 --out risk.csv
    """
    from memfold.audit.checks import check, check_file
    from memfold.audit.survey import data_risk, save

    check({"limit": limit})
    check_file("out", out, (".parquet", ".csv"))
    note_half(half, "memfold data-lid", quiet)
    found = data_risk(data, estimator=estimator, neighbors=neighbors, tolerance=tolerance)
    if out is not None:
        save(found.table, out)
    if json_ or not (quiet and out is not None):
        print_table(found.table, found.title, json_, limit)


def report(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="What `audit` wrote to --out.")],
    half: Half = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw the report of an audit again, without a model.

    Reads the tables in DIR and writes report.html there.

    [bold]Example[/bold]: memfold report dir
    """
    from memfold.audit.checks import check
    from memfold.report.html import write

    check({"out": directory})
    note_half(half, "memfold report", quiet)
    written = write(Path(directory))
    if json_:
        print_json({"report": str(written)})
    elif not quiet:
        typer.echo(f"Report: {printable(str(written))}")
