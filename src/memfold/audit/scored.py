"""Score a list of prompts by detectors, image by image, on one or more processes; resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.detectors import Detector
from memfold.sampling.training import TrainingRows
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.tensors import prompt_generator
from memfold.types import InputError

from .scoring import Cost, Scoring, counted, usable
from .store import Columns, Store, concat
from .workers import run_parallel

_PIECE = 8  # prompts in one piece of work


def score_prompt(
    model: TextToImage,
    prompt: str,
    scoring: Scoring,
    detectors: Sequence[Detector],
    training: TrainingRows | None = None,
) -> tuple[Columns, Generation]:
    """Generate a prompt's images and score each of them.

    Args:
        model: the pipeline.
        prompt: the words.
        scoring: how.
        detectors: which scores.
        training: images to compare with; None for none.

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
    generation = replace(generation, training=training)
    columns: Columns = {"seed": seeds, "sigmas": [[v.sigma for v in generation.views]] * n}
    _put(columns, "generation", cost, n)
    for name, values in generation.scores.items():
        columns[f"steps.{name}"] = values.tolist()
    for detector in detectors:
        generator = prompt_generator(prompt, scoring.seed)
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
            results = run_parallel(_work, jobs, workers=workers, begin=_begin, arguments=(scoring,))
            with closing(results):
                for (start, _), columns in zip(jobs, results, strict=True):
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
        model = scoring.load()
    detectors, _ = usable(model, scoring.detectors, scoring.images, scoring.spaces)
    training = scoring.training(model) if any(d.training for d in detectors) else None
    _STATE.update(model=model, scoring=scoring, detectors=detectors, training=training)


def _work(job: tuple[int, list[str]], bar: Any = None) -> Columns:
    start, prompts = job
    pieces = []
    for i, prompt in enumerate(prompts):
        columns, _ = score_prompt(prompt=prompt, **_STATE)
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
