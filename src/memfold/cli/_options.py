"""Options that several commands take, each written once."""

from __future__ import annotations

from typing import Annotated

import typer

Out = Annotated[
    str, typer.Option("--out", help="Directory of the results; made if it is not there.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", help="Print errors alone, and a result that no file takes; --json still prints."
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error, as MEMFOLD_DEBUG=1 does.")
]
Seed = Annotated[
    int, typer.Option("--seed", help="The same seed gives the same numbers and images.")
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, mps ...")]
Half = Annotated[
    bool, typer.Option("--half", help="Compute in float16; nothing where no network runs.")
]
Pickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Also read pickled weights, which can run code: trust their source."
    ),
]
Code = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="Also read an embedding in TorchScript, which runs code of its own: trust its source.",
    ),
]
RecordPaths = Annotated[
    bool,
    typer.Option(
        "--record-paths",
        help="Write whole paths into the results; otherwise the last name of each alone.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Start again where --out holds another run.")
]
Resize = Annotated[
    bool, typer.Option("--resize", help="Scale images of another size to the model's.")
]
ClassLabel = Annotated[
    int | None, typer.Option("--class-label", help="Class of a class-conditional model.")
]

Pipeline = Annotated[str, typer.Argument(help="A diffusers text-to-image directory or hub id.")]
Prompt = Annotated[str, typer.Option("--prompt", help="The words to draw, in quotes.")]
Images = Annotated[int, typer.Option("--images", help="Images drawn for each prompt.")]
Steps = Annotated[
    int | None, typer.Option("--steps", help="Denoising steps; the pipeline's default if left out.")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale", help="Classifier-free guidance; the pipeline's default if left out."
    ),
]
Workers = Annotated[
    int, typer.Option("--workers", help="Processes at a time; each loads the pipeline.")
]
