"""One prompt under one mitigation, or one attack: the work of a benchmark, in several processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.explain.attribution import Attribution, attribute
from memfold.memorization.embedding import unit
from memfold.mitigation import Mitigation, mitigate
from memfold.mitigation.evaluate import copies, recheck
from memfold.sampling.trajectory import generate_watched
from memfold.tensors import prompt_generator

from .mitigation_judge import Clip, Judge, Reference, nearest_row
from .mitigation_specs import NONE, Spec
from .scoring import Scoring
from .store import Columns, Store, read_table
from .workers import run_parallel

APART = 1000  # how far the seeds of an attack's images lie from those of the prompts
CASES = ("memorized, mitigated", "memorized, another prompt", "ordinary, own prompt")
_STATE: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """What the images are judged by.

    Attributes:
        data: training images; None to take what the memorized prompts draw by themselves.
        embedding: a TorchScript file or transformers vision model in which copies are also looked
            for; None for none.
        clip: a transformers CLIP, for alignment and the Frechet distance; None for none.
        copy_limit: root mean square distance of latents below which an image is a copy; the 1 %
            quantile of what ordinary prompts draw if None.
        alike_limit: spread of a prompt's seeds below which they are alike; likewise.
    """

    data: str | None = None
    embedding: str | None = None
    clip: str | None = None
    copy_limit: float | None = None
    alike_limit: float | None = None


@dataclass(frozen=True)
class Job:
    """One prompt under one mitigation, or one attack."""

    stage: str
    index: int
    spec: Spec
    prompt: str
    attack: str = ""  # what is attacked, "" for no attack
    other: str = ""  # the prompt whose picture is to be brought back
    limit: float = 0.0


@dataclass(frozen=True)
class Setting:
    """What a worker needs to begin."""

    scoring: Scoring
    spaces: Spaces
    reference: Path
    extra: Callable[..., Any] | None


def load_spaces(scoring: Scoring, spaces: Spaces) -> tuple[Any, Clip | None]:
    """Load the embedding (vectors of length 1) and the CLIP that the images are judged in."""
    embedding = clip = None
    if spaces.embedding is not None:
        embedding = unit(scoring.read_embedding(spaces.embedding))
    if spaces.clip is not None:
        clip = Clip(spaces.clip, allow_pickle=scoring.allow_pickle, device=scoring.device)
    return embedding, clip


def run_jobs(
    state: Setting,
    store: Store,
    model: TextToImage,
    jobs: Sequence[Job],
    *,
    workers: int,
    progress: bool,
) -> list[Columns]:
    """Do what is not yet done, keep each piece, and return all."""
    todo = [job for job in jobs if not store.has(job.stage, job.index)]
    bar = tqdm(
        total=len(jobs), initial=len(jobs) - len(todo), desc="Mitigations", unit="prompt",
        disable=not progress or not jobs,
    )  # fmt: skip
    with bar, closing(_done(state, model, todo, workers)) as done:
        for job, columns in zip(todo, done, strict=True):
            store.piece(job.stage, job.index, partial(dict, columns))
            bar.update(1)
    return [store.piece(job.stage, job.index, dict) for job in jobs]


def _done(
    state: Setting, model: TextToImage, todo: Sequence[Job], workers: int
) -> Generator[Columns, None, None]:
    if workers == 1 or len(todo) < 2:
        if todo:
            _begin(state, model)
        yield from map(_work, todo)
        _STATE.clear()
        return
    yield from run_parallel(_work, todo, workers=workers, begin=_begin, arguments=(state,))


def _begin(state: Setting, model: TextToImage | None = None) -> None:
    """Load all that a worker needs."""
    if model is None:
        model = state.scoring.load()
    embedding, clip = load_spaces(state.scoring, state.spaces)
    reference = Reference.of(read_table(state.reference))
    extra = None if state.extra is None else state.extra(model)
    judge = Judge(model, reference, embedding, clip, extra)
    _STATE.update(model=model, judge=judge, scoring=state.scoring, data=state.spaces.data)


def _work(job: Job) -> Columns:
    if job.attack:
        return _attack(job)
    scoring, judge = _STATE["scoring"], _STATE["judge"]
    start = time.monotonic()
    made = _made(job)
    x = (
        _STATE["model"].generate(job.prompt, scoring.seeds, **scoring.options())
        if made is None
        else made.generate(scoring.seeds).x
    )
    seconds = time.monotonic() - start
    found = judge(x.float(), job.prompt)
    n = len(scoring.seeds)
    return found | {
        "seed": list(scoring.seeds),
        "seconds": [seconds] * n,
        "drawn": [job.prompt if made is None else made.prompt] * n,
        "description": ["" if made is None else made.description] * n,
    }


def _made(job: Job) -> Mitigation | None:
    """Make the mitigation of a prompt; nothing for "none"."""
    if job.spec.method == NONE:
        return None
    scoring, model, judge = _STATE["scoring"], _STATE["model"], _STATE["judge"]
    own: dict[str, Any] = dict(job.spec.options)
    if job.spec.method == "away":
        own["reference"] = judge.reference.latents.reshape(-1, *model.shape)
    weights = None
    if job.spec.method == "rewrite":
        weights = _attributed(model, job.prompt, scoring)
    return mitigate(
        model, job.prompt, method=job.spec.method, seeds=scoring.seeds, weights=weights,
        generator=prompt_generator(job.prompt, scoring.seed), **scoring.options(), **own,
    )  # fmt: skip


def _attributed(model: TextToImage, prompt: str, scoring: Scoring) -> Attribution:
    seeds = [max(scoring.seeds) + 1, max(scoring.seeds) + 2]
    generator = prompt_generator(prompt, scoring.seed)
    return attribute(model, prompt, seeds=seeds, generator=generator, **scoring.options())


def _attack(job: Job) -> Columns:
    """Optimise an embedding to bring a picture back; count its copies before and after."""
    scoring, model = _STATE["scoring"], _STATE["model"]
    options = scoring.options()
    target = _target(job)
    made = _made(job) if job.attack == CASES[0] else None
    text = job.prompt if made is None else made.prompt
    cond = made.cond if made is not None and made.cond is not None else model.condition(text)
    generator = prompt_generator(job.prompt, scoring.seed)
    found = recheck(model, cond, target, generator=generator)
    seeds = [s + APART for s in scoring.seeds]
    shares = []
    for now in (cond, found):
        x = generate_watched(model, text, seeds, cond=now, attention=False, **options).x
        shares.append(float(copies(x.float(), target, job.limit).float().mean()))
    return {"before": shares[:1], "after": shares[1:]}


def _target(job: Job) -> Tensor:
    """Return the picture that an attack is to bring back: the nearest that may be copied.

    Without training images the reference holds what memorized prompts draw: of no use for an
    ordinary picture, which then stands for itself.
    """
    scoring, model, judge = _STATE["scoring"], _STATE["model"], _STATE["judge"]
    own: Tensor = model.generate(job.other, scoring.seeds[:1], **scoring.options()).float()
    if job.attack == CASES[2] and not _STATE["data"]:
        return own
    _, nearest = nearest_row(own.flatten(1).cpu(), judge.reference.latents)
    return judge.reference.latents[nearest].reshape(own.shape).to(own)
