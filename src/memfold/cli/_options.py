"""Options that several commands take, each written once."""

from __future__ import annotations

from typing import Annotated

import typer

Out = Annotated[str, typer.Option("--out", help="Directory of the results; created if need be.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Keys all randomness.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, mps ...")]
Half = Annotated[bool, typer.Option("--half", help="Compute in float16 (on a GPU).")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Also read pickled weights; they can run code.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Discard another run's results in --out.")
]
Resize = Annotated[
    bool, typer.Option("--resize", help="Bring images of another size to the model's.")
]
ClassLabel = Annotated[
    int | None, typer.Option("--class-label", help="Class of a class-conditional model.")
]

Pipeline = Annotated[str, typer.Argument(help="A diffusers text-to-image directory or hub id.")]
Prompt = Annotated[str, typer.Option("--prompt", help="The prompt.")]
Images = Annotated[int, typer.Option("--images", help="Images a prompt.")]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps; the pipeline's default if left out.")
]
Guidance = Annotated[
    float | None,
    typer.Option("--guidance-scale", help="Guidance; the pipeline's default if left out."),
]
Workers = Annotated[int, typer.Option("--workers", help="Processes; each loads the pipeline.")]
