"""The commands for text-to-image pipelines; the same rules as in cli.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from memfold.types import InputError

Pipeline = Annotated[str, typer.Argument(help="A diffusers text-to-image directory or hub id.")]
Images = Annotated[int, typer.Option("--images", help="Images a prompt.")]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps; the pipeline's default if left out.")
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="Guidance; the pipeline's default if left out."),
]
Seed = Annotated[int, typer.Option("--seed", help="Keys all randomness.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, mps ...")]
Half = Annotated[bool, typer.Option("--half", help="Compute in float16 (on a GPU).")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Also read pickled weights; they can run code.")
]
Workers = Annotated[int, typer.Option("--workers", help="Processes; each loads the pipeline.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Discard another run's results in --out.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(bench)


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


def print_prompts(facts: dict[str, Any], report: str) -> None:
    """Print the summary of an audit of prompts."""
    found, reference = facts["memorized"], facts["reference"]
    low, high = reference["interval"]
    typer.echo(
        f"\n{found['count']} of {facts['prompts']} prompts are called memorized "
        f"({found['rate']:.1%}; 95 % interval {found['low']:.1%} to {found['high']:.1%})."
    )
    typer.echo(
        f"False-positive rate: {facts['alpha']:.1%} wanted; {reference['expected_rate']:.1%} "
        f"({low:.1%} to {high:.1%}) with {reference['n']} reference prompts."
    )
    for warning in facts["warnings"]:
        typer.echo(f"Note: {warning}")
    typer.echo(f"Report: {report}")


# What means something for prompts alone, for images alone, and for both.
_PROMPTS = ("ordinary", "images", "steps", "shown", "mitigate", "workers")
_BOTH = (
    "model", "out", "data", "alpha", "limit", "guidance_scale", "seed", "device", "allow_pickle",
    "fail_on", "overwrite", "title", "explain",
)  # fmt: skip


def run_audit(given: dict[str, Any], *, progress: bool) -> dict[str, Any]:
    """Run an audit of images, or of prompts where some are given.

    Args:
        given: the command's options by name.
        progress: show progress bars.

    Returns:
        What audit.json holds.

    Raises:
        InputError: an option does not fit the kind of audit.
    """
    if given["prompts"] is None:
        from memfold.audit.plan import Plan
        from memfold.audit.run import run

        for name in _PROMPTS:
            if given[name] is not None:
                raise InputError(f"--{name} needs --prompts FILE; give both")
        if not given["explain"]:
            raise InputError("--no-explain needs --prompts FILE; give both")
        if given["data"] is None:
            raise InputError(
                "--data is missing: give the images that the model was trained on, or --prompts "
                "FILE for a text-to-image pipeline"
            )
        leave = {*_PROMPTS, "prompts", "explain"}
        return run(Plan(**_set(given, leave)), progress=progress)
    from memfold.audit.prompt_plan import PromptPlan
    from memfold.audit.prompts import run_prompts

    _refuse_images_only(given)
    leave = set(given) - {*_PROMPTS, *_BOTH, "prompts"}
    return run_prompts(PromptPlan(**_set(given, leave)), progress=progress)


def _set(given: dict[str, Any], leave: set[str]) -> dict[str, Any]:
    """Keep what the kind of audit takes; its own defaults stand where nothing was given."""
    return {k: v for k, v in given.items() if k not in leave and v is not None}


def _refuse_images_only(given: dict[str, Any]) -> None:
    for name, off in {
        "holdout": None, "samples": None, "generate": None, "train_points": False, "truth": None,
        "embedding": None, "sigma": None, "class_label": None, "max_reference": None,
    }.items():  # fmt: skip
        if given[name] != off:
            raise InputError(
                f"--{name.replace('_', '-')} belongs to an audit of images; leave it with --prompts"
            )
