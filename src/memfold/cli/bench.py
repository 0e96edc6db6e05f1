"""`memfold bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memfold.cli._options import (
    Code,
    Debug,
    Device,
    Guidance,
    Half,
    Images,
    Json,
    Overwrite,
    Pickle,
    Pipeline,
    Quiet,
    RecordPaths,
    Seed,
    Steps,
    Workers,
)
from memfold.cli._printing import print_json
from memfold.types import InputError


def bench(
    model: Pipeline,
    out: Annotated[
        str, typer.Option("--out", help="Directory of the results; made if it is not there.")
    ],
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
        int | None,
        typer.Option(
            "--limit", help="So many of each kind: the first, for mitigations evenly spaced."
        ),
    ] = None,
    mitigation: Annotated[
        bool, typer.Option("--mitigation", help="Compare mitigations, not detectors.")
    ] = False,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            help="Mitigations, separated by commas, with options: reword,rewrite:n_words=2; all if "
            "left out.",
        ),
    ] = "",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Training images: also detect by the nearest of them; with --mitigation, what "
            "counts as a copy.",
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            "--embedding",
            help="Look for the nearest in this embedding too: a transformers vision model, an ONNX "
            "file, or a TorchScript file (SSCD ...).",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option("--clip", help="A transformers CLIP: text alignment and Frechet distance."),
    ] = None,
    copy_limit: Annotated[
        float | None,
        typer.Option(
            "--copy-limit",
            help="Root mean square distance of latents below which an image is a copy; calibrated "
            "on ordinary prompts if left out.",
        ),
    ] = None,
    attacked: Annotated[
        int | None,
        typer.Option("--attacked", help="Prompts in the adversarial recheck of mitigations (5)."),
    ] = None,
    images: Images = 4,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    workers: Workers = 1,
    device: Device = "cpu",
    half: Half = False,
    allow_pickle: Pickle = False,
    allow_code: Code = False,
    record_paths: RecordPaths = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare all detectors, or all mitigations, on prompts whose answer is known.

    Prompt lists are CSV, JSON lines, plain text or Parquet. Writes bench.json, bench.md, bench.svg
    and scores.csv (a row an image) to --out; with --mitigation mitigation.json, .md, .svg and
    samples.csv. A run that was stopped goes on where it was.

    [bold]Example[/bold]: memfold bench my-pipeline --memorized mem.csv --other other.csv --out dir
    """
    from memfold.audit.checks import check, check_out
    from memfold.audit.labelled import read_labelled
    from memfold.audit.scoring import Scoring

    check({"limit": limit, "attacked": attacked, "workers": workers, "copy_limit": copy_limit})
    check_out(out)
    wanted = {
        "--methods": methods or None, "--clip": clip, "--copy-limit": copy_limit,
        "--attacked": attacked,
    }  # fmt: skip
    given = [name for name, value in wanted.items() if value is not None]
    if given and not mitigation:
        raise InputError(f"{', '.join(given)}: only for --mitigation; add that, or leave it out")
    if embedding and not data and not mitigation:
        raise InputError("--embedding: of which training images? add --data IMAGES")
    if mitigation and detectors:
        raise InputError("--detectors: not with --mitigation; name mitigations with --methods")
    names = tuple(name.strip() for name in detectors.split(",") if name.strip())
    scoring = Scoring(
        model=model, images=images, steps=steps, guidance_scale=guidance_scale, detectors=names,
        seed=seed, device=device, half=half, allow_pickle=allow_pickle,
        allow_code=allow_code,
        data=None if mitigation else data, embedding=None if mitigation else embedding,
    )  # fmt: skip
    if mitigation:
        from memfold.audit.mitigation_bench import Spaces, bench_mitigations, thinned

        labelled, base = read_labelled(prompts, memorized, other, ordinary)
        found = bench_mitigations(
            thinned(labelled, limit), scoring, out, ordinary=base,
            attacked=5 if attacked is None else attacked,
            methods=[name.strip() for name in methods.split(",") if name.strip()],
            spaces=Spaces(data=data, embedding=embedding, clip=clip, copy_limit=copy_limit),
            workers=workers, overwrite=overwrite, progress=not (json_ or quiet),
            record_paths=record_paths,
        )  # fmt: skip
    else:
        from memfold.audit.bench import bench as run

        labelled, base = read_labelled(prompts, memorized, other, ordinary, limit=limit)
        found = run(
            labelled, scoring, out, ordinary=base, workers=workers, overwrite=overwrite,
            progress=not (json_ or quiet), record_paths=record_paths,
        )  # fmt: skip
    table = Path(out) / ("mitigation.md" if mitigation else "bench.md")
    if json_:
        print_json(found)
    elif not quiet:
        typer.echo(table.read_text("utf-8"))
