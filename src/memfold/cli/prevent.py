"""`memfold calibrate` and `memfold mitigate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from memfold.cli._options import (
    Debug,
    Device,
    Guidance,
    Half,
    Images,
    Json,
    Overwrite,
    Pickle,
    Pipeline,
    Prompt,
    Quiet,
    Seed,
    Steps,
)
from memfold.cli._printing import print_json, printable
from memfold.types import InputError


def calibrate(
    model: Pipeline,
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts",
            help="Ordinary prompts, none of them memorized: text, CSV, JSON lines or Parquet.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", help="The band to write (.json); what is done so far goes to OUT.parts."
        ),
    ],
    alpha: Annotated[
        float,
        typer.Option(
            "--alpha",
            help="Share of ordinary calls that may be stopped; needs 1 / alpha - 1 prompts.",
        ),
    ] = 0.01,
    score: Annotated[
        list[str] | None,
        typer.Option(
            "--score",
            help="cfg_norm, guided_score_norm or bright_ending, once for each; the first two "
            "if left out.",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", help="Images that one guarded call may draw together.")
    ] = 1,
    argument: Annotated[
        list[str] | None,
        typer.Option(
            "--argument",
            help="NAME=VALUE, once for each further argument of the guarded calls, such as "
            "height=64 or negative_prompt=blurry; the band holds for these and no others.",
        ),
    ] = None,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    device: Device = "cpu",
    half: Half = False,
    allow_pickle: Pickle = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the band in which ordinary prompts stay over the steps, for memfold.Guard.

    Each prompt is drawn with seeds of its own. Give the steps, the guidance, the number of images
    and all other arguments that the guarded pipeline will be called with: the band holds for no
    others. A run that was stopped goes on where it was.

    [bold]Example[/bold]: memfold calibrate my-pipeline --prompts ordinary.txt --out band.json
    """
    from memfold.audit.explained import calibrated
    from memfold.audit.scoring import Scoring

    scoring = Scoring(
        model=model, images=images, steps=steps, guidance_scale=guidance_scale, seed=seed,
        device=device, half=half, allow_pickle=allow_pickle,
    )  # fmt: skip
    band = calibrated(
        scoring,
        prompts,
        out,
        alpha=alpha,
        scores=tuple(score or ()),
        arguments=dict(map(_argument, argument or ())),
        overwrite=overwrite,
        progress=not (json_ or quiet),
    )
    if json_:
        named = ("scores", "alpha", "n", "images", "threshold", "conditions")
        print_json({"band": out, **{name: getattr(band, name) for name in named}})
    if json_ or quiet:
        return
    typer.echo(
        f"{printable(out)}: {band.n} ordinary prompts, {len(band.sigmas)} steps, limit "
        f"{band.threshold:.3g} spreads above the median at every step, false-positive rate "
        f"{band.alpha:g}."
    )


def _argument(text: str) -> tuple[str, Any]:
    """Part NAME=VALUE; the value is JSON where it reads as such, else text."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise InputError(f"--argument {text!r} is not NAME=VALUE, such as height=64")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def mitigate(
    model: Pipeline,
    prompt: Prompt,
    out: Annotated[
        str, typer.Option("--out", help="Directory of before.png, after.png and mitigation.json.")
    ],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="reword, embedding, rewrite, random_rewrite, random_words, late_guidance, "
            "lid_guidance, padding, noise or away.",
        ),
    ] = "reword",
    band: Annotated[
        str | None,
        typer.Option("--band", help="From memfold calibrate: says whether the images stay in it."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Training images, for --method away.")
    ] = None,
    images: Images = 4,
    steps: Steps = None,
    guidance_scale: Guidance = None,
    seed: Seed = 0,
    device: Device = "cpu",
    half: Half = False,
    allow_pickle: Pickle = False,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw a prompt without repeating what the model knows by heart.

    Writes the images before and after, with the same seeds, and mitigation.json. No method both
    removes every copy and keeps every picture: look at them.

    [bold]Example[/bold]: memfold mitigate my-pipeline --prompt "a photo of ..." --out dir
    """
    from memfold.audit.explained import mitigated
    from memfold.audit.scoring import Scoring

    scoring = Scoring(
        model=model, images=images, steps=steps, guidance_scale=guidance_scale, seed=seed,
        device=device, half=half, allow_pickle=allow_pickle,
    )  # fmt: skip
    found = mitigated(scoring, prompt, out, method=method, band=band, data=data)
    if json_:
        print_json(found)
    if json_ or quiet:
        return
    typer.echo(printable(found["description"]))
    for name, (before, after) in found["scores"].items():
        typer.echo(f"  {name:<20} {before:>9.3f} -> {after:.3f}")
    if found["leaves_band"] is not None:
        before, after = (sum(left) for left in found["leaves_band"])
        typer.echo(f"  images that leave the band: {before} -> {after} of {images}")
    typer.echo(f"Images: {Path(out) / 'before.png'}, {Path(out) / 'after.png'}")
