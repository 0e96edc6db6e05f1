"""`memfold explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from memfold.cli._options import (
    Debug,
    Device,
    Guidance,
    Half,
    Images,
    Json,
    Pickle,
    Pipeline,
    Prompt,
    Quiet,
    Seed,
    Steps,
)
from memfold.cli._printing import print_json, printable


def explain(
    model: Pipeline,
    prompt: Prompt,
    score: Annotated[
        str,
        typer.Option(
            "--score",
            help="denoising_loss or flipd (both negated: neg-flipd and --score=-flipd mean the "
            "same), cfg_norm or guided_score_norm.",
        ),
    ] = "denoising_loss",
    wrt: Annotated[
        str, typer.Option("--wrt", help="tokens: token embeddings; prompt: the prompt's embedding.")
    ] = "tokens",
    guided: Annotated[
        bool, typer.Option("--guided", help="flipd, denoising_loss: of the guided model.")
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
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say which words of a prompt a memorization score hangs on.

    Weights are gradients of the score, averaged over seeds. --leave-one-out also draws the score
    without each word, and tells how well both agree.

    [bold]Example[/bold]: memfold explain my-pipeline --prompt "a photo of ..." --out dir
    """
    from memfold.audit.checks import check_out
    from memfold.audit.explained import explained, write_explanation
    from memfold.audit.scoring import Scoring

    if out is not None:
        check_out(out)
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
        print_json(found.facts())
    if json_ or (quiet and out is not None):
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
