"""`memfold bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from memfold.cli._options import (
    Device,
    Guidance,
    Half,
    Images,
    Json,
    Overwrite,
    Pickle,
    Pipeline,
    Seed,
    Steps,
    Workers,
)


def bench(
    model: Pipeline,
    out: Annotated[str, typer.Option("--out", help="Directory of the results.")],
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="Labelled prompts: a column `type` says verbatim, template, memorized, near or "
            "none; a column `use` picks test and calibration.",
        ),
    ] = None,
    memorized: Annotated[
        str | None, typer.Option("--memorized", help="Prompts that are memorized.")
    ] = None,
    other: Annotated[str | None, typer.Option("--other", help="Prompts that are not.")] = None,
    ordinary: Annotated[
        str | None,
        typer.Option("--ordinary", help="Further prompts that are not: the verdict's scale."),
    ] = None,
    detectors: Annotated[
        str, typer.Option("--detectors", help="Names, separated by commas; all if left out.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", help="The first so many of each kind.")
    ] = None,
    images: Images = 4,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    workers: Workers = 1,
    device: Device = "cpu",
    half: Half = False,
    allow_pickle: Pickle = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Compare all detectors on prompts whose answer is known.

    Prompt lists are CSV, JSON lines, plain text or Parquet. Writes bench.json, bench.md, bench.svg
    and scores.csv (a row an image) to --out; a run that was stopped goes on where it was.

    [bold]Example[/bold]: memfold bench my-pipeline --memorized mem.csv --other other.csv --out dir
    """
    from memfold.audit.bench import bench as run
    from memfold.audit.bench import read_labelled
    from memfold.audit.scoring import Scoring

    names = tuple(name.strip() for name in detectors.split(",") if name.strip())
    scoring = Scoring(
        model=model, images=images, steps=steps, guidance_scale=guidance_scale, detectors=names,
        seed=seed, device=device, half=half, allow_pickle=allow_pickle,
    )  # fmt: skip
    labelled, base = read_labelled(prompts, memorized, other, ordinary, limit=limit)
    found = run(
        labelled, scoring, out, ordinary=base, workers=workers, overwrite=overwrite,
        progress=not json_,
    )  # fmt: skip
    typer.echo(json.dumps(found) if json_ else (Path(out) / "bench.md").read_text("utf-8"))
