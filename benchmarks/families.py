"""What holds of each family of text-to-image pipelines: the table of docs/text-to-image.md.

    OMP_NUM_THREADS=1 python -m benchmarks.families [--only FAMILY ...]

Every family is a small random pipeline (tests/text_to_image), built without weights. A cell says
"verified" where the check below held, else why not. The output is Markdown; from the checkout's
root.
"""

import argparse
import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from memfold import TextToImage, attribute
from memfold.memorization.calibrate import calibrate
from memfold.memorization.detectors import DETECTORS
from memfold.mitigation import mitigate
from memfold.mitigation.guard import Guard, Refused
from memfold.sampling.monitor import Monitor
from memfold.sampling.steering import steered
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.types import InputError
from tests.text_to_image import tiny, tiny_others
from tests.text_to_image.by_hand import FLOWS, PROMPT, clean, noise_of

ORDINARY = [f"{a} {b}" for a in ("a", "the", "red", "blue") for b in ("dog", "cat", "house")]
FAMILIES = (*tiny.ALL, *tiny_others.NEWER, *tiny_others.OTHERS)
_NEAR = 1e-3  # of |x - D|: what single precision leaves
_STEPS = 4


class Missing(Exception):
    """The family has no such thing."""


def near(found: torch.Tensor, wanted: torch.Tensor, x: torch.Tensor) -> None:
    """Ask for equality, as a share of |x - D|."""
    off = float((found - wanted).norm() / (x - wanted).norm())
    if not off < _NEAR:
        raise AssertionError(f"off by {off:.2g} of the distance from x to D")


@dataclass
class Family:
    """One small pipeline, and what several checks need of it."""

    name: str

    @cached_property
    def model(self) -> TextToImage:
        """The pipeline as memfold reads it."""
        return TextToImage(tiny.pipeline(self.name), **tiny.OPTIONS.get(self.name, {}))

    @cached_property
    def guided(self) -> dict[str, Any]:
        """Arguments of a run with guidance 3, and none where there is no such guidance."""
        layout = self.model.layout
        if layout.conditional is None:
            return {}
        return {k: 3.0 if k.endswith("_scale") else v for k, v in layout.guided.items()}

    @cached_property
    def run(self) -> Generation:
        """Two images of a watched run."""
        w = 3.0 if self.model.has_unconditional else None
        return generate_watched(
            self.model, PROMPT, [3, 4], guidance_scale=w, num_inference_steps=_STEPS
        )

    def steps(self, options: dict[str, Any]) -> list[tuple[torch.Tensor, float, torch.Tensor]]:
        """x, sigma and D of each step of the pipeline's own run, by hand from its scheduler's."""
        pipe, found, step = self.model.pipe, [], self.model.pipe.scheduler.step

        def spy(made: Any, t: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            time = float(t) if self.name in FLOWS else round(float(t))
            signal, noise = noise_of(self.name, pipe, time)
            z = sample
            if getattr(pipe.scheduler, "is_scale_input_called", False):
                z = pipe.scheduler.scale_model_input(sample, t)
            if signal > 1e-3 and (self.name in FLOWS or float(t) == time):
                d = clean(self.name, z, made, signal, noise)
                found.append((z / signal, noise / signal, d))
            return step(made, t, sample, *args, **kwargs)

        pipe.scheduler.step = spy
        try:
            self.model.generate(PROMPT, [3], num_inference_steps=_STEPS, **options)
        finally:
            del pipe.scheduler.step
        if len(found) < 2:
            raise AssertionError("too few steps to compare")
        return found


def loads(family: Family) -> None:
    """Its first guided step comes out again, and its decoder's images are the pipeline's."""
    model = family.model
    x = model.generate(PROMPT, [0], num_inference_steps=2)
    image = model.generate(PROMPT, [0], num_inference_steps=2, output_type="pt")
    if image.ndim == 5:
        image = image.transpose(1, 2)
    found = model.decode(x)
    found = found * 2 - 1 if family.name == "kandinsky3" else found.clamp(0, 1)
    torch.testing.assert_close(found, image, rtol=0, atol=1e-4)


def denoiser(family: Family) -> None:
    """D is what the pipeline steps with, unguided."""
    d = family.model.denoiser(PROMPT)
    for x, sigma, wanted in family.steps(family.model.layout.plain):
        near(d(x, sigma), wanted, x)


def guided_denoiser(family: Family) -> None:
    """D_w is what the pipeline steps with under guidance of 3."""
    if not family.model.has_unconditional:
        raise Missing("distilled guidance")
    d = family.model.denoiser(PROMPT, guidance_scale=3.0)
    for x, sigma, wanted in family.steps(family.guided):
        near(d(x, sigma), wanted, x)


def monitor(family: Family) -> None:
    """The images stay the same bit for bit, and the views are the denoisers'."""
    model, options = family.model, family.guided | {"num_inference_steps": _STEPS}
    bare = model.generate(PROMPT, [3, 4], **options)
    with Monitor(model, keep=True) as watch:
        seen = model.generate(PROMPT, [3, 4], **options)
    if watch.blind is not None:
        raise AssertionError(watch.blind)
    if not torch.equal(bare, seen):
        raise AssertionError("other images")
    d = model.denoiser(PROMPT)
    for view in watch.views[1:]:
        near(d(view.x, view.sigma), view.conditional, view.x)


def detectors(family: Family) -> str:
    """Every detector that the family has the means for gives a number."""
    run, done = family.run, 0
    for name, detector in DETECTORS.items():
        if detector.missing(run):
            continue
        value = detector(run, generator=torch.Generator().manual_seed(0))
        if not bool(value.isfinite().all()):
            raise AssertionError(f"{name} is not finite")
        done += 1
    return f"verified ({done})"


def attribution(family: Family) -> None:
    """Every word has a weight, and not all are the same."""
    found = attribute(
        family.model, PROMPT, generation=family.run, generator=torch.Generator().manual_seed(0)
    )
    weights = torch.as_tensor(found.weights, dtype=torch.float64)
    if not bool(weights.isfinite().all()) or float(weights.std()) == 0:
        raise AssertionError("no weights")


def mitigation(family: Family) -> None:
    """The pipeline steps with the D that it is told, and a mitigation draws."""
    model = family.model
    options = family.guided | {"num_inference_steps": _STEPS}
    half = steered(model, lambda view: 0.5 * view.conditional)
    with half, Monitor(model, keep=True) as watch:
        model.generate(PROMPT, [3], **options)
    if watch.blind is not None:
        raise AssertionError(watch.blind)
    for view in watch.views[1:]:
        own = model.denoiser(PROMPT)(view.x, view.sigma)
        near(view.guided, 0.5 * own, view.x)
    method = "late_guidance" if model.has_unconditional else "random_words"
    drawn = mitigate(model, PROMPT, method=method, num_inference_steps=2).generate([3])
    if not bool(drawn.x.isfinite().all()):
        raise AssertionError("no images")


def guard(family: Family) -> None:
    """Calibrated on ordinary prompts it hands out the pipeline's own images, or refuses."""
    model = family.model
    options = family.guided | tiny.OPTIONS.get(family.name, {}) | {"num_inference_steps": _STEPS}
    band = calibrate(model, ORDINARY, alpha=0.2, **options)
    told = options | {"output_type": "pt"}
    given = {"prompt": PROMPT, "generator": torch.Generator().manual_seed(5)}
    try:
        found = Guard(model, band, on_memorized="refuse")(**given, **told)
    except Refused:
        return
    given["generator"] = torch.Generator().manual_seed(5)
    bare = model.pipe(**given, **told)
    name = "images" if hasattr(bare, "images") else "frames"
    if not torch.equal(getattr(found, name), getattr(bare, name)):
        raise AssertionError("other images")


CHECKS: dict[str, Callable[[Family], str | None]] = {
    "loads": loads,
    "D": denoiser,
    "guided D": guided_denoiser,
    "monitor": monitor,
    "detectors": detectors,
    "attribute": attribution,
    "mitigate": mitigation,
    "guard": guard,
}


def cell(check: Callable[[Family], str | None], family: Family) -> str:
    """Say "verified", or why not in a few words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return check(family) or "verified"
    except Missing as reason:
        return f"none: {reason}"
    except InputError as error:
        return f"refused: {str(error)[:110]}"
    except Exception as error:  # whatever it is, the table says it
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return f"fails: {kind}{' '.join(str(error).split())[:110]}"


def row(name: str) -> str:
    """Return the row of one family."""
    family = Family(name)
    return " | ".join(["", f"{name}", *(cell(c, family) for c in CHECKS.values()), ""]).strip()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=FAMILIES, choices=FAMILIES)
    args = parser.parse_args()
    print(f"| family | {' | '.join(CHECKS)} |")
    print("|---" * (len(CHECKS) + 1) + "|")
    for name in args.only:
        with contextlib.redirect_stderr(io.StringIO()):
            line = row(name)
        print(line, flush=True)


if __name__ == "__main__":
    main()
