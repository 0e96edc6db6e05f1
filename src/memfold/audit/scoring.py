"""Score a list of prompts by detectors, image by image, on one or more processes; resumable."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from memfold.denoisers.adapters._calls import first_tensor
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.detectors import DETECTORS, Detector
from memfold.sampling.trajectory import Generation, generate_watched, has_cross_attention
from memfold.tensors import text_seed
from memfold.types import InputError

from .store import Columns, Store, concat

_PIECE = 8  # prompts in one piece of work


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How prompts are scored.

    Attributes:
        model: pipeline directory or hub id.
        images: images a prompt.
        steps: denoising steps; the pipeline's default where None.
        guidance_scale: w; the pipeline's default where None.
        detectors: names in the registry; all that the pipeline allows where empty.
        seed: the images' seeds are seed, seed + 1, ...; they are the same for every prompt.
        device: where to compute.
        half: compute in half precision (float16 on a GPU).
        allow_pickle: also read weights from pickles.
        height: pixels; the pipeline's default where None.
        width: pixels.
    """

    model: str
    images: int = 4
    steps: int | None = None
    guidance_scale: float | None = None
    detectors: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"
    half: bool = False
    allow_pickle: bool = False
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be used."""
        for name in self.detectors:
            if name not in DETECTORS:
                raise InputError(
                    f"--detectors: {name!r} is unknown; choose from {', '.join(DETECTORS)}"
                )
        for name, least in (("images", 1), ("steps", 2), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} = {value}; take {least} or more")

    def settings(self) -> dict[str, Any]:
        """Give what the numbers depend on, without the model's place."""
        leave = {"model", "device", "allow_pickle"}
        return {k: v for k, v in asdict(self).items() if k not in leave}

    def options(self) -> dict[str, Any]:
        """Give the pipeline's arguments."""
        named = {"num_inference_steps": self.steps, "guidance_scale": self.guidance_scale}
        return {k: v for k, v in named.items() if v is not None}

    @property
    def seeds(self) -> list[int]:
        """The seeds of a prompt's images."""
        return list(range(self.seed, self.seed + self.images))

    def load(self) -> TextToImage:
        """Load the pipeline.

        Raises:
            InputError: it cannot be loaded, or is no text-to-image pipeline.
        """
        from memfold.denoisers.adapters._pipeline import quiet_libraries, read_pipeline
        from memfold.denoisers.adapters.diffusers import is_text_to_image

        pipe = read_pipeline(self.model, allow_pickle=self.allow_pickle, revision=None)
        if not is_text_to_image(pipe):
            raise InputError(
                f"{self.model} is a {type(pipe).__name__}, which takes no prompt (looked for a "
                "text encoder or a tokenizer); audit its images: memfold audit MODEL --data IMAGES"
            )
        with quiet_libraries():
            pipe.to(self.device)
            if self.half:
                pipe.to(torch.float16)
        size: dict[str, Any] = {"height": self.height, "width": self.width}
        return TextToImage(pipe, **{k: v for k, v in size.items() if v is not None})


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: wall time.
        passes: rows that went through the network.
        products: rows that went back through it.
    """

    seconds: float = 0.0
    passes: int = 0
    products: int = 0
    _since: float = field(default=0.0, repr=False)


@contextmanager
def counted(model: TextToImage) -> Iterator[Cost]:
    """Count the rows through the network, forward and back, inside the block.

    Args:
        model: the pipeline.

    Yields:
        The cost, complete after the block.
    """
    cost, place = Cost(), model.places[0]

    def back(gradient: torch.Tensor) -> None:
        cost.products += len(gradient)

    def after(module: Any, args: tuple, kwargs: dict, output: Any) -> None:
        cost.passes += len(args[place] if isinstance(place, int) else kwargs[place])
        out = first_tensor(output)
        if out.requires_grad:
            out.register_hook(back)

    handle, start = model.network.register_forward_hook(after, with_kwargs=True), time.monotonic()
    try:
        yield cost
    finally:
        handle.remove()
        cost.seconds = time.monotonic() - start


def usable(
    model: TextToImage, names: Sequence[str], images: int
) -> tuple[list[Detector], list[str]]:
    """Choose the detectors that a pipeline allows.

    Args:
        model: the pipeline.
        names: wanted ones; all where empty.
        images: images a prompt.

    Returns:
        The detectors, and a line for each that was left out.

    Raises:
        InputError: a detector was asked for by name that the pipeline does not allow.
    """
    found, left = [], []
    for detector in DETECTORS.values():
        if names and detector.name not in names:
            continue
        reason = ""
        if detector.guidance and not model.has_unconditional:
            reason = f"{model.name} has no unconditional half"
        elif detector.attention and not has_cross_attention(model):
            reason = f"{model.name}'s network has no cross-attention layers"
        elif detector.many and images < 2:
            reason = "it needs two or more images a prompt"
        if reason and names:
            raise InputError(f"--detectors: {detector.name} cannot run: {reason}")
        if reason:
            left.append(f"{detector.name}: {reason}")
        else:
            found.append(detector)
    return found, left


def score_prompt(
    model: TextToImage, prompt: str, scoring: Scoring, detectors: Sequence[Detector]
) -> tuple[Columns, Generation]:
    """Generate a prompt's images and score each of them.

    Args:
        model: the pipeline.
        prompt: the words.
        scoring: how.
        detectors: which scores.

    Returns:
        Columns with a row an image (`seed`, `score.NAME`, `steps.NAME`, `sigmas`,
        `seconds.NAME`, `passes.NAME`, `products.NAME`; costs are an image's share), and the
        generation.
    """
    attention = any(d.attention for d in detectors)
    seeds, n = scoring.seeds, scoring.images
    with counted(model) as cost:
        generation = generate_watched(
            model, prompt, seeds, attention=attention, **scoring.options()
        )
    columns: Columns = {"seed": seeds, "sigmas": [[v.sigma for v in generation.views]] * n}
    _put(columns, "generation", cost, n)
    for name, values in generation.scores.items():
        columns[f"steps.{name}"] = values.tolist()
    for detector in detectors:
        generator = torch.Generator().manual_seed(text_seed(prompt, scoring.seed))
        generation.memo.reused.clear()
        with counted(model) as cost:
            values = detector(generation, generator=generator)
        for price in generation.memo.reused:  # what the detector would have paid alone
            cost.seconds += price.seconds
            cost.passes += price.passes
            cost.products += price.products
        columns[f"score.{detector.name}"] = values.tolist()
        _put(columns, detector.name, cost, n)
    return columns, generation


def score_prompts(
    prompts: Sequence[str],
    scoring: Scoring,
    store: Store,
    *,
    stage: str = "prompts",
    workers: int = 1,
    progress: bool = True,
    model: TextToImage | None = None,
) -> Columns:
    """Score prompts; finished pieces are kept, and a second run goes on where the first stopped.

    A prompt's scores depend on itself and on the settings alone, not on the other prompts nor on
    the number of workers.

    Args:
        prompts: the words of each.
        scoring: how.
        store: where pieces are kept.
        stage: a name of the program's own for these prompts.
        workers: processes; each loads the pipeline.
        progress: show a bar.
        model: the pipeline, if it is loaded already; used by a single worker.

    Returns:
        The columns of `score_prompt`, and `prompt`, the index of the row's prompt.

    Raises:
        InputError: what the pipeline cannot do.
    """
    starts = list(range(0, len(prompts), _PIECE))
    todo = [s for s in starts if not store.has(stage, s)]
    bar = tqdm(
        total=len(prompts), desc="Prompts", unit="prompt", disable=not progress,
        initial=len(prompts) - sum(len(prompts[s : s + _PIECE]) for s in todo),
    )  # fmt: skip
    jobs = [(s, list(prompts[s : s + _PIECE])) for s in todo]
    with bar:
        if workers > 1 and len(todo) > 1:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(
                min(workers, len(todo)), context, initializer=_begin, initargs=(scoring,)
            ) as pool:
                for (start, _), columns in zip(jobs, pool.map(_work, jobs), strict=True):
                    store.piece(stage, start, _given(columns))
                    bar.update(len(prompts[start : start + _PIECE]))
        else:
            if jobs:
                _begin(scoring, model)
            for job in jobs:
                store.piece(stage, job[0], partial(_work, job, bar))
            _STATE.clear()
    return concat([store.piece(stage, s, _missing) for s in starts])


_STATE: dict[str, Any] = {}


def _begin(scoring: Scoring, model: TextToImage | None = None) -> None:
    """Load the pipeline in a worker."""
    if model is None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            torch.set_num_threads(1)
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        model = scoring.load()
    detectors, _ = usable(model, scoring.detectors, scoring.images)
    _STATE.update(model=model, scoring=scoring, detectors=detectors)


def _end_with(parent: Any) -> None:
    """End this worker when the command that started it is gone, even if it was killed."""
    parent.join()
    os._exit(1)


def _work(job: tuple[int, list[str]], bar: Any = None) -> Columns:
    start, prompts = job
    pieces = []
    for i, prompt in enumerate(prompts):
        columns, _ = score_prompt(_STATE["model"], prompt, _STATE["scoring"], _STATE["detectors"])
        pieces.append({"prompt": [start + i] * len(columns["seed"])} | columns)
        if bar is not None:
            bar.update(1)
    return concat(pieces)


def _given(columns: Columns) -> Callable[[], Columns]:
    return lambda: columns


def _missing() -> Columns:
    raise InputError("a piece of the results is missing; run the same command again")


def _put(columns: Columns, name: str, cost: Cost, n: int) -> None:
    columns[f"seconds.{name}"] = [cost.seconds / n] * n
    columns[f"passes.{name}"] = [cost.passes / n] * n
    columns[f"products.{name}"] = [cost.products / n] * n


def model_digest(path: str) -> str:
    """Digest a file, or the configuration and weights of a directory; the name of a hub id."""
    root = Path(path)
    if not root.exists():
        return path
    total = hashlib.blake2b(digest_size=16)
    for file in [root] if root.is_file() else sorted(root.rglob("*")):
        if file.is_file() and (root == file or file.suffix in {".json", ".safetensors", ".bin"}):
            total.update(str(file.relative_to(root)).encode())
            with file.open("rb") as handle:
                while block := handle.read(2**20):
                    total.update(block)
    return total.hexdigest()
