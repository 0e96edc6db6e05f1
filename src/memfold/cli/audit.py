"""`memfold audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memfold.cli._options import (
    ClassLabel,
    Code,
    Debug,
    Device,
    Half,
    Json,
    Out,
    Overwrite,
    Pickle,
    Quiet,
    RecordPaths,
    Resize,
    Seed,
)
from memfold.cli._printing import print_json
from memfold.types import InputError

if TYPE_CHECKING:
    from memfold.audit.plan import Plan
    from memfold.audit.prompt_plan import PromptPlan

# Headings of the help.
_JUDGED = "What is judged"
_MEASURED = "How it is measured"
_PROMPTED = "With --prompts"


def audit(
    model: Annotated[str, typer.Argument(help="A diffusers pipeline directory or hub id.")],
    out: Out,
    data: Annotated[
        str | None, typer.Option("--data", help="The images that the model was trained on.")
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option("--holdout", help="Real images that the model has not seen: the reference."),
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(
            "--samples",
            rich_help_panel=_JUDGED,
            help="Judge these images: a folder, .npy, .npz, Parquet or a dataset id.",
        ),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            "--generate",
            rich_help_panel=_JUDGED,
            help="Let the model draw so many images, and judge them.",
        ),
    ] = None,
    train_points: Annotated[
        bool,
        typer.Option(
            "--train-points", rich_help_panel=_JUDGED, help="Judge the training images themselves."
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", rich_help_panel=_JUDGED, help="Judge at most so many, chosen by the seed."
        ),
    ] = None,
    truth: Annotated[
        str | None, typer.Option("--truth", help="JSON with known answers, to compare with.")
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(
            "--embedding",
            help="Nearest images in this embedding too: a vision model, ONNX or TorchScript.",
        ),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            "--estimator",
            rich_help_panel=_MEASURED,
            help="Model side: dsm (denoising loss; the default), flipd (trace) or spectral "
            "(soft count).",
        ),
    ] = None,
    data_estimator: Annotated[
        str | None,
        typer.Option(
            "--data-estimator",
            rich_help_panel=_MEASURED,
            help="Data side: mle, lpca, twonn or empirical; mle if left out.",
        ),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(
            "--sigma",
            rich_help_panel=_MEASURED,
            help="Noise level to look at; chosen on the reference if left out.",
        ),
    ] = None,
    noises: Annotated[
        int | None,
        typer.Option(
            "--noises",
            rich_help_panel=_MEASURED,
            help="Noises for each image; more give smaller errors (16).",
        ),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(
            "--probes",
            rich_help_panel=_MEASURED,
            help="Products for each noise of --estimator flipd (4).",
        ),
    ] = None,
    neighbors: Annotated[
        int | None,
        typer.Option(
            "--neighbors",
            rich_help_panel=_MEASURED,
            help="Training images around each, data side (20).",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            rich_help_panel=_MEASURED,
            help="Wanted false-discovery rate (0.05); for prompts, false-positive rate (0.01).",
        ),
    ] = None,
    max_reference: Annotated[
        int | None,
        typer.Option(
            "--max-reference",
            rich_help_panel=_MEASURED,
            help="Take at most so many reference images.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            rich_help_panel=_MEASURED,
            help="Rows in one pass; halved when memory runs out (128).",
        ),
    ] = None,
    fail_on: Annotated[
        str,
        typer.Option(
            "--fail-on",
            help="Exit with 1 if any is found: overfitting,data,undetermined; with "
            "--prompts: memorized. With 3 if none is, but --copies could not have been called.",
        ),
    ] = "",
    copies: Annotated[
        int,
        typer.Option(
            "--copies", help="The smallest number of copies that --fail-on must not miss (1)."
        ),
    ] = 1,
    class_label: ClassLabel = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance-scale",
            rich_help_panel=_MEASURED,
            help="Guidance, with --class-label or --prompts.",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            rich_help_panel=_JUDGED,
            help="Judge these prompts of a text-to-image pipeline, instead of images.",
        ),
    ] = None,
    ordinary: Annotated[
        str | None,
        typer.Option(
            "--ordinary",
            rich_help_panel=_PROMPTED,
            help="Prompts that are not memorized: the reference of the others.",
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images", rich_help_panel=_PROMPTED, help="Images drawn for each prompt (4)."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            rich_help_panel=_PROMPTED,
            help="Denoising steps; the pipeline's default if left out.",
        ),
    ] = None,
    shown: Annotated[
        int | None,
        typer.Option(
            "--shown", rich_help_panel=_PROMPTED, help="Flagged prompts shown in full (24)."
        ),
    ] = None,
    mitigate: Annotated[
        str | None,
        typer.Option(
            "--mitigate",
            rich_help_panel=_PROMPTED,
            help="Try this mitigation on flagged prompts; memfold mitigate --help names them.",
        ),
    ] = None,
    no_explain: Annotated[
        bool,
        typer.Option(
            "--no-explain",
            rich_help_panel=_PROMPTED,
            help="Do not attribute flagged prompts to their words.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            rich_help_panel=_PROMPTED,
            help="Processes at a time; each loads the pipeline.",
        ),
    ] = None,
    plan_only: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Say how long it would take and what it could find, from a few network passes; "
            "write nothing.",
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    half: Half = False,
    resize: Resize = False,
    allow_pickle: Pickle = False,
    allow_code: Code = False,
    record_paths: RecordPaths = False,
    overwrite: Overwrite = False,
    title: Annotated[str, typer.Option("--title", help="Heading of the report.")] = "",
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
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

    own = ("own", "plan_only", "json_", "quiet", "debug", "write", "no_explain")
    given = {k: v for k, v in locals().items() if k not in own}
    given["fail_on"] = tuple(kind.strip() for kind in fail_on.split(",") if kind.strip())
    given["explain"] = not no_explain
    planned = make_plan(given)
    if plan_only:
        foreseen = foresee(planned)
        if json_:
            print_json(foreseen)
        elif not quiet:
            print_forecast(foreseen)
        return
    facts = run_audit(planned, progress=not (json_ or quiet))
    report = write(Path(out))
    if json_:
        print_json(facts)
    elif quiet:
        pass
    elif prompts is not None:
        print_prompts(facts, str(report))
    else:
        print_images(facts, str(report))
    if facts["exit"]["code"]:
        raise typer.Exit(facts["exit"]["code"])


# What means something for prompts alone, for images alone, and for both.
_PROMPTS = ("ordinary", "images", "steps", "shown", "mitigate", "workers")
_BOTH = (
    "model", "out", "data", "embedding", "alpha", "limit", "guidance_scale", "seed", "device",
    "half", "allow_pickle", "allow_code", "record_paths", "fail_on", "copies", "overwrite", "title",
    "explain",
)  # fmt: skip


def run_audit(planned: Plan | PromptPlan, *, progress: bool) -> dict[str, Any]:
    """Run an audit of images, or of prompts.

    Args:
        planned: what to audit.
        progress: show progress bars.

    Returns:
        What audit.json holds.

    Raises:
        InputError: with the value and the remedy.
    """
    from memfold.audit.plan import Plan

    if isinstance(planned, Plan):
        from memfold.audit.run import run

        return run(planned, progress=progress)
    from memfold.audit.prompts import run_prompts

    return run_prompts(planned, progress=progress)


def foresee(planned: Plan | PromptPlan) -> dict[str, Any]:
    """Say what an audit would take and could find; nothing is written."""
    from memfold.audit.plan import Plan

    if isinstance(planned, Plan):
        from memfold.audit.forecast import forecast

        return forecast(planned)
    from memfold.audit.prompt_forecast import forecast_prompts

    return forecast_prompts(planned)


def make_plan(given: dict[str, Any]) -> Plan | PromptPlan:
    """Make the plan of an audit of images, or of prompts where some are given.

    Args:
        given: the command's options by name.

    Returns:
        The plan.

    Raises:
        InputError: an option does not fit the kind of audit.
    """
    if given["prompts"] is None:
        from memfold.audit.plan import Plan

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
        if given["probes"] is not None and given["estimator"] != "flipd":
            raise InputError(
                f"--probes {given['probes']} belongs to --estimator flipd; leave it with "
                f"{given['estimator'] or 'dsm'}"
            )
        leave = {*_PROMPTS, "prompts", "explain"}
        return Plan(**_set(given, leave))
    from memfold.audit.prompt_plan import PromptPlan

    _refuse_images_only(given)
    leave = set(given) - {*_PROMPTS, *_BOTH, "prompts"}
    return PromptPlan(**_set(given, leave))


def _set(given: dict[str, Any], leave: set[str]) -> dict[str, Any]:
    """Keep what the kind of audit takes; its own defaults stand where nothing was given."""
    return {k: v for k, v in given.items() if k not in leave and v is not None}


def _refuse_images_only(given: dict[str, Any]) -> None:
    for name, off in {
        "holdout": None, "samples": None, "generate": None, "train_points": False, "truth": None,
        "sigma": None, "class_label": None, "max_reference": None, "estimator": None,
        "data_estimator": None, "noises": None, "probes": None, "neighbors": None,
        "batch_size": None, "resize": False,
    }.items():  # fmt: skip
        if given[name] != off:
            raise InputError(
                f"--{name.replace('_', '-')} belongs to an audit of images; leave it with --prompts"
            )


def print_forecast(found: dict[str, Any]) -> None:
    """Print what an audit would take and could find."""
    if "prompts" in found:
        n, passes = found["reference"]["n"], found["passes"]
        typer.echo(
            f"Plan: {found['prompts']:,} prompts against {n:,}; {found['images']:,} images of "
            f"{found['steps']} steps. Nothing was written."
        )
    else:
        n, passes = found["reference"]["n"], sum(found["rows"].values())
        about = found["subjects"]
        typer.echo(
            f"Plan: {about['n']:,} {about['description']} against {n:,} reference images. Nothing "
            "was written."
        )
    each = f"{1000 * found['seconds_per_row']:.3g} ms each"
    typer.echo(f"Work: {passes:,} rows through the network, {each}, measured on a few.")
    typer.echo(f"Time: about {_duration(found['seconds'])} here, an estimate.")
    for warning in found.get("warnings", []):
        typer.echo(f"Note: {warning}")
    basis = f", from a pilot of {found['pilot']} reference images" if "pilot" in found else ""
    typer.echo(f"Power{basis}: {found['power']['sentence']}")
    if found["doubt"]["reason"]:
        typer.echo(
            f"A gate that finds nothing would be inconclusive: {found['doubt']['reason']}; "
            f"{found['doubt']['remedy']}."
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_images(facts: dict[str, Any], report: str) -> None:
    """Print the summary of an audit of images."""
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
    print_gate(facts)
    typer.echo(f"Report: {report}")


def print_gate(facts: dict[str, Any]) -> None:
    """Print what the audit could find, and what its gate says."""
    typer.echo(f"Power: {facts['power']['sentence']}")
    done = facts["exit"]
    if done["outcome"] == "inconclusive":
        typer.echo(f"Inconclusive: {done['reason']}; {done['remedy']}.")
    elif done["outcome"]:
        typer.echo(f"{done['outcome'].capitalize()}: --fail-on {','.join(done['fail_on'])}.")


def _of(rate: dict[str, Any]) -> str:
    if not rate["n"]:
        return "- (0 of 0)"
    return f"{rate['rate']:.3f} ({rate['count']} of {rate['n']})"


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
    print_gate(facts)
    typer.echo(f"Report: {report}")
