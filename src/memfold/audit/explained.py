"""What the commands for one prompt, and for calibration, do and write."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import memfold
from memfold.datasets.prompts import read_prompts
from memfold.explain.attribution import WRT, Attribution, attribute
from memfold.files import write_bytes, write_text
from memfold.lid.scale import default_sigmas, lid_curve
from memfold.memorization.band import Band, prompts_needed
from memfold.memorization.calibrate import ATTENTION, SCORES, calibrate, conditions_of
from memfold.memorization.conditions import FREE
from memfold.memorization.prompt_scores import score_name
from memfold.mitigation import METHODS, mitigate
from memfold.report.prompt_figures import explanation_page
from memfold.report.word_figure import shaded_words
from memfold.sampling.training import training_images
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.tensors import prompt_generator
from memfold.types import Curve, InputError

from .checks import check_file, check_out, check_prompt
from .mitigation_judge import latents_of
from .scoring import Scoring
from .store import Store
from .where import where


@dataclass(frozen=True)
class Explanation:
    """An attribution, and what stands beside it.

    Attributes:
        attribution: weights of the words.
        generation: the images that it was measured on.
        curves: LID over sigma at the first image, by name: with the prompt, without one.
        taken: where in the images the prompt takes freedom away, as from `where`.
    """

    attribution: Attribution
    generation: Generation
    curves: dict[str, Curve]
    taken: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """Give plain data for explanation.json."""
        a = self.attribution
        return {
            "memfold": memfold.__version__,
            "prompt": a.prompt,
            "words": list(a.words),
            "weights": [float(w) for w in a.weights],
            "stderr": [_number(w) for w in a.stderr],
            "left_out": None if a.left_out is None else [float(w) for w in a.left_out],
            "rank_correlation": None if a.rank_correlation is None else _number(a.rank_correlation),
            "masked": None if a.masked is None else [float(w) for w in a.masked],
            "masked_correlation": (
                None if a.masked_correlation is None else _number(a.masked_correlation)
            ),
            "score": a.score,
            "wrt": a.wrt,
            "where": a.where,
            "seeds": list(self.generation.seeds),
            "curves": {
                name: {"sigmas": c.sigmas.tolist(), "lid": c.lid[0].tolist()}
                for name, c in self.curves.items()
            },
            "warnings": list(a.warnings),
            **self.taken,
        }


def explained(
    scoring: Scoring,
    prompt: str,
    *,
    score: str,
    wrt: str,
    leave_one_out: bool,
    guided: bool = False,
) -> Explanation:
    """Explain a prompt: draw it, attribute the score, and measure LID with and without it.

    Args:
        scoring: the pipeline, seeds and steps.
        prompt: the words.
        score: name of the score.
        wrt: "tokens" or "prompt".
        leave_one_out: also leave out each word.
        guided: take "-flipd" and "-denoising_loss" of the guided model, at the images' scale.

    Returns:
        The explanation.

    Raises:
        InputError: there is no such score, or it or `guided` needs an unconditional half that the
            pipeline has not.
    """
    score = score_name(score)
    check_prompt(prompt)
    if wrt not in WRT:
        raise InputError(f"wrt = {wrt!r} is unknown; choose from {', '.join(WRT)}")
    if guided and score not in ("-flipd", "-denoising_loss"):
        raise InputError(f"--guided means nothing for {score}; leave it out")
    model = scoring.load()
    if guided and not model.has_unconditional:
        raise InputError(f"--guided needs an unconditional half, which {model.name} has not")
    generation = generate_watched(
        model, prompt, scoring.seeds, attention=False, **scoring.options()
    )
    weighed = guided or score == "guided_score_norm"
    found = attribute(
        model, prompt, score=score, wrt=wrt, leave_one_out=leave_one_out, generation=generation,
        guidance_scale=generation.guidance_scale if weighed else None,
        generator=prompt_generator(prompt, scoring.seed),
    )  # fmt: skip
    x = generation.x[:1]
    sigmas = default_sigmas(model.model, 10)
    named = {"with the prompt": model.denoiser(prompt)}
    if model.has_unconditional:
        named["without a prompt"] = model.denoiser()
    curves = {
        name: lid_curve(denoiser, x, sigmas, generator=prompt_generator(prompt, scoring.seed))
        for name, denoiser in named.items()
    }
    return Explanation(found, generation, curves, where(generation, scoring.seed))


def write_explanation(found: Explanation, out: str | Path) -> None:
    """Write explanation.json, a self-contained explanation.html, and words.svg.

    Args:
        found: the explanation.
        out: directory; created if need be.
    """
    directory = _directory(out)
    facts = found.facts()
    write_text(directory / "explanation.json", json.dumps(facts, indent=1))
    write_text(directory / "words.svg", shaded_words(facts["words"], facts["weights"]))
    images = [png_bytes(image) for image in found.generation.images]
    write_text(directory / "explanation.html", explanation_page(facts, images))


def calibrated(
    scoring: Scoring,
    prompts: str | Path,
    out: str | Path,
    *,
    alpha: float,
    scores: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Band:
    """Fit the band of ordinary prompts and save it.

    Args:
        scoring: the pipeline and how it is run, images a prompt included.
        prompts: file of ordinary prompts.
        out: file of the band; finished prompts are kept in a directory beside it.
        alpha: wanted false-positive rate.
        scores: names of the monitor's scores; empty for those that the pipeline has.
        arguments: further ones of the pipeline's call; the band holds for these and no others.
        overwrite: discard the prompts of another calibration.
        progress: show a bar.

    Returns:
        The band.

    Raises:
        InputError: too few prompts, or a score or an argument that the pipeline does not have.
    """
    path = Path(out)
    check_file("out", str(out), ())
    need = prompts_needed(alpha)
    texts = list(dict.fromkeys(read_prompts(prompts).prompts))
    if len(texts) < need:
        raise InputError(
            f"--prompts {prompts} holds {len(texts)} different prompts, too few for --alpha "
            f"{alpha:g}; give {need} or more, or a larger --alpha"
        )
    for name in scores:
        if name not in (*SCORES, *ATTENTION):
            known = ", ".join((*SCORES, *ATTENTION))
            raise InputError(f"--score {name!r} is unknown; choose from {known}")
    model = scoring.load()
    more = dict(arguments or {})
    for name in more:
        if name not in model.accepts or name in (*FREE, *scoring.options()):
            raise InputError(
                f"--argument {name}: {model.name} takes no such argument, or it is given by "
                "another option or for each call"
            )
    fingerprint = {
        **scoring.fingerprint(), "prompts": texts, "scores": list(scores), "arguments": more,
    }  # fmt: skip
    with Store(f"{out}.parts", fingerprint, overwrite=overwrite) as store:

        def keep(i: int, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
            kept = store.piece("calibration", i, lambda: {k: [v] for k, v in run().items()})
            return {k: v[0] for k, v in kept.items()}

        band = calibrate(
            model, texts, alpha=alpha, images=scoring.images, seed=scoring.seed,
            scores=tuple(scores) or None, keep=keep, progress=progress,
            **scoring.options(), **more,
        )  # fmt: skip
        band.save(path)
    return band


def mitigated(
    scoring: Scoring,
    prompt: str,
    out: str | Path,
    *,
    method: str,
    band: str | Path | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Draw a prompt before and after a mitigation and write both.

    Args:
        scoring: the pipeline, seeds and steps.
        prompt: the words.
        out: directory; created if need be.
        method: name of the mitigation.
        band: file of a band, to say whether the images leave it before and after.
        data: training images, for "away".

    Returns:
        What mitigation.json holds.

    Raises:
        InputError: the method needs what a command cannot give, or the band is of something else.
    """
    if (method == "away") != (data is not None):
        raise InputError(
            "--method away needs the training images; pass --data"
            if data is None
            else f"--data is for --method away; leave it out with {method}"
        )
    check_prompt(prompt)
    check_out(str(out))
    if method not in METHODS:
        raise InputError(f"--method {method!r} is unknown; choose from {', '.join(METHODS)}")
    limits = None if band is None else Band.load(band)
    model = scoring.load()
    if limits is not None:
        limits.check(**conditions_of(model, scoring.options()))
    before = generate_watched(model, prompt, scoring.seeds, attention=False, **scoring.options())
    weights, own = None, {}
    if data is not None:
        own["reference"] = latents_of(training_images(data, model), model)
    if method == "rewrite":
        generator = prompt_generator(prompt, scoring.seed)
        weights = attribute(model, prompt, generation=before, generator=generator)
    made = mitigate(
        model, prompt, method=method, seeds=scoring.seeds, weights=weights,
        generator=prompt_generator(prompt, scoring.seed), **scoring.options(), **own,
    )  # fmt: skip
    after = made.generate(scoring.seeds)
    facts = {
        "memfold": memfold.__version__,
        "method": made.method,
        "original": prompt,
        "prompt": made.prompt,
        "description": made.description,
        "seeds": scoring.seeds,
        "scores": {
            name: [float(before.scores[name].mean()), float(after.scores[name].mean())]
            for name in before.scores
            if name in after.scores
        },
        "leaves_band": None if limits is None else [_left(limits, g) for g in (before, after)],
    }
    directory = _directory(out)
    for name, generation in (("before", before), ("after", after)):
        strip = torch.cat(list(generation.images), dim=2)
        write_bytes(directory / f"{name}.png", png_bytes(strip))
    write_text(directory / "mitigation.json", json.dumps(facts, indent=1))
    return facts


def _left(band: Band, generation: Generation) -> list[bool]:
    """Tell of each image whether its scores leave the band at any step."""
    found = [False] * len(generation.seeds)
    for view in generation.views:
        for name in band.scores:
            values = getattr(view, name)
            if values is None or not bool(torch.isfinite(values).all()):
                raise InputError(f"the band judges {name}, which this run does not show")
            limit = band.limit(view.sigma, name)
            found = [had or bool(v > limit) for had, v in zip(found, values, strict=True)]
    return found


def png_bytes(image: Tensor) -> bytes:
    """Encode one image with values in [0, 1], shape (c, h, w), as PNG."""
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    array = pixels.numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _directory(out: str | Path) -> Path:
    path = Path(out)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be made ({error.strerror}); choose another"
        ) from error
    return path


def _number(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
