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
    app.command()(explain)
    app.command()(calibrate)
    app.command()(mitigate)


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


Prompt = Annotated[str, typer.Option("--prompt", help="The prompt.")]


def explain(
    model: Pipeline,
    prompt: Prompt,
    score: Annotated[
        str,
        typer.Option("--score", help="cfg_norm, guided_score_norm, -flipd or -denoising_loss."),
    ] = "-denoising_loss",
    wrt: Annotated[
        str, typer.Option("--wrt", help="tokens: token embeddings; prompt: the prompt's embedding.")
    ] = "tokens",
    guided: Annotated[
        bool, typer.Option("--guided", help="-flipd, -denoising_loss: of the guided model.")
    ] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Also leave out each word: the check.")
    ] = False,
    out: Annotated[
        str | None, typer.Option("--out", help="Write explanation.json, .html and words.svg here.")
    ] = None,
    images: Images = 4,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    device: Device = "cpu",
    half: Half = False,
    allow_pickle: Pickle = False,
    json_: Json = False,
) -> None:
    """Say which words of a prompt a memorization score hangs on.

    Weights are gradients of the score, averaged over seeds. --leave-one-out also draws the score
    without each word, and tells how well both agree.

    [bold]Example[/bold]: memfold explain my-pipeline --prompt "a photo of ..." --out dir
    """
    from memfold.audit.explained import explained, write_explanation
    from memfold.audit.scoring import Scoring

    scoring = Scoring(
        model=model, images=images, steps=steps, guidance_scale=guidance_scale, seed=seed,
        device=device, half=half, allow_pickle=allow_pickle,
    )  # fmt: skip
    found = explained(
        scoring, prompt, score=score, wrt=wrt, leave_one_out=leave_one_out, guided=guided
    )
    if out is not None:
        write_explanation(found, out)
    if json_:
        typer.echo(json.dumps(found.facts()))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    a, console = found.attribution, Console()
    top = max((float(w) for w in a.weights), default=0.0) or 1.0
    shaded = Text()
    for word, weight in zip(a.words, a.weights, strict=True):
        share = max(float(weight) / top, 0.0)
        color = f"rgb({round(60 + 195 * share)},{round(60 + 60 * (1 - share))},60)"
        shaded.append(printable(word), style=f"white on {color}" if share > 0.15 else "")
        shaded.append(" ")
    console.print(shaded)
    table = Table("word", "weight", "standard error", *(["falls without"] if leave_one_out else []))
    for i, word in enumerate(a.words):
        left = [] if a.left_out is None else [f"{float(a.left_out[i]):.3g}"]
        table.add_row(
            Text(printable(word)), f"{float(a.weights[i]):.3g}", f"{float(a.stderr[i]):.2g}", *left
        )
    console.print(table)
    typer.echo(f"Score {a.score} {a.where}; weights by gradient, {a.wrt}.")
    if a.rank_correlation is not None:
        typer.echo(f"Rank correlation with leaving words out: {a.rank_correlation:.2f}")
        typer.echo(f"Rank correlation with masking words in place: {a.masked_correlation:.2f}")
    for note in a.warnings:
        typer.echo(f"Note: {printable(note)}")


def calibrate(
    model: Pipeline,
    prompts: Annotated[str, typer.Option("--prompts", help="Ordinary prompts, not memorized.")],
    out: Annotated[str, typer.Option("--out", help="The band (.json); parts go to OUT.parts.")],
    alpha: Annotated[
        float, typer.Option("--alpha", help="Wanted false-positive rate of a generation.")
    ] = 0.01,
    score: Annotated[
        list[str] | None,
        typer.Option("--score", help="cfg_norm, guided_score_norm or bright_ending; repeatable."),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", help="Images of a prompt that a call may draw together.")
    ] = 1,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    device: Device = "cpu",
    half: Half = False,
    allow_pickle: Pickle = False,
    overwrite: Overwrite = False,
) -> None:
    """Find the band in which ordinary prompts stay over the steps, for memfold.Guard.

    Each prompt is drawn with seeds of its own. A run that was stopped goes on where it was.

    [bold]Example[/bold]: memfold calibrate my-pipeline --prompts ordinary.txt --out band.json
    """
    from memfold.audit.explained import calibrated
    from memfold.audit.scoring import Scoring

    scoring = Scoring(
        model=model, images=images, steps=steps, guidance_scale=guidance_scale, seed=seed,
        device=device, half=half, allow_pickle=allow_pickle,
    )  # fmt: skip
    band = calibrated(
        scoring, prompts, out, alpha=alpha, scores=tuple(score or ()), overwrite=overwrite
    )
    typer.echo(
        f"{out}: {band.n} ordinary prompts, {len(band.sigmas)} steps, limit {band.threshold:.3g} "
        f"spreads above the median at every step, false-positive rate {band.alpha:g}."
    )


def mitigate(
    model: Pipeline,
    prompt: Prompt,
    out: Annotated[str, typer.Option("--out", help="Directory of before.png, after.png, JSON.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="embedding, rewrite, random_rewrite, random_words, late_guidance, lid_guidance, "
            "padding or noise.",
        ),
    ] = "embedding",
    band: Annotated[
        str | None, typer.Option("--band", help="From memfold calibrate: are the images in it?")
    ] = None,
    images: Images = 4,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    device: Device = "cpu",
    half: Half = False,
    allow_pickle: Pickle = False,
    json_: Json = False,
) -> None:
    """Draw a prompt without repeating what the model knows by heart.

    Writes the images before and after, with the same seeds, and mitigation.json.

    [bold]Example[/bold]: memfold mitigate my-pipeline --prompt "a photo of ..." --out dir
    """
    from memfold.audit.explained import mitigated
    from memfold.audit.scoring import Scoring

    scoring = Scoring(
        model=model, images=images, steps=steps, guidance_scale=guidance_scale, seed=seed,
        device=device, half=half, allow_pickle=allow_pickle,
    )  # fmt: skip
    found = mitigated(scoring, prompt, out, method=method, band=band)
    if json_:
        typer.echo(json.dumps(found))
        return
    typer.echo(printable(found["description"]))
    for name, (before, after) in found["scores"].items():
        typer.echo(f"  {name:<20} {before:>9.3f} -> {after:.3f}")
    if found["leaves_band"] is not None:
        before, after = (sum(left) for left in found["leaves_band"])
        typer.echo(f"  images that leave the band: {before} -> {after} of {images}")
    typer.echo(f"Images: {Path(out) / 'before.png'}, {Path(out) / 'after.png'}")


def printable(text: str) -> str:
    """Replace what a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


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
