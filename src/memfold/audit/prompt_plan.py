"""The plan of an audit of prompts: every argument, checked before any work is done."""

from __future__ import annotations

import shlex
from copy import copy
from dataclasses import asdict, dataclass, fields
from typing import Any

from memfold.memorization.prompt_verdict import SIGNALS
from memfold.mitigation import METHODS
from memfold.types import InputError

from .checks import check, check_out
from .plan import recorded
from .scoring import Scoring

PROMPT_KINDS = ("memorized",)
METHODS_OFF = "none"
_PATHS = ("model", "prompts", "out", "ordinary", "data", "embedding")


@dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """Which prompts to audit, and how.

    Attributes:
        model: a diffusers text-to-image pipeline directory or hub id.
        prompts: file of the prompts to judge.
        out: directory of the results.
        ordinary: file of prompts that are not memorized: the reference; without it the judged
            prompts are their own.
        data: images that the model was trained on, for evidence.
        embedding: image embedding to find the nearest of them in, beside latents and pixels: a
            TorchScript file or a transformers vision model (`memfold.load_embedding`).
        alpha: wanted false-positive rate: the share of ordinary prompts that may be called.
        images: images a prompt.
        steps: denoising steps; the pipeline's default where None.
        guidance_scale: w; the pipeline's default where None.
        limit: judge at most the first so many prompts; all where None.
        shown: flagged prompts that are shown with pictures, words and a mitigation, worst first.
        explain: attribute the score of flagged prompts to their words.
        mitigate: mitigation that is tried on flagged prompts; "none" for no try.
        seed: keys all randomness.
        workers: processes.
        device: where to compute.
        half: compute in half precision.
        allow_pickle: also read weights from pickles.
        allow_code: also read an embedding in TorchScript, which runs code of its own.
        record_paths: write whole paths into audit.json and the report, not last names.
        fail_on: "memorized" makes the exit code 1 if any prompt is called; without any it is 0, or
            3 where `copies` memorized prompts could not have been called: inconclusive.
        copies: the smallest number of memorized prompts that a gate must not miss.
        overwrite: discard another audit's results in `out`.
        title: heading of the report.
    """

    model: str
    prompts: str
    out: str
    ordinary: str | None = None
    data: str | None = None
    embedding: str | None = None
    alpha: float = 0.01
    images: int = 4
    steps: int | None = None
    guidance_scale: float | None = None
    limit: int | None = None
    shown: int = 24
    explain: bool = True
    mitigate: str = METHODS_OFF
    seed: int = 0
    workers: int = 1
    device: str = "cpu"
    half: bool = False
    allow_pickle: bool = False
    allow_code: bool = False
    record_paths: bool = False
    fail_on: tuple[str, ...] = ()
    copies: int = 1
    overwrite: bool = False
    title: str = ""

    def __post_init__(self) -> None:
        """Refuse arguments that cannot be used, each in one line with its remedy."""
        check(asdict(self))
        for kind in self.fail_on:
            if kind not in PROMPT_KINDS:
                raise InputError(
                    f"--fail-on {kind!r} is unknown for prompts; choose {', '.join(PROMPT_KINDS)}"
                )
        if self.mitigate not in (METHODS_OFF, *METHODS):
            raise InputError(
                f"--mitigate {self.mitigate!r} is unknown; choose from "
                f"{', '.join((METHODS_OFF, *METHODS))}"
            )
        if self.embedding is not None and self.data is None:
            raise InputError("--embedding compares with training images; give them by --data")
        check_out(self.out)

    @property
    def scoring(self) -> Scoring:
        """How prompts are scored."""
        return Scoring(
            model=self.model,
            images=self.images,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            detectors=(),
            seed=self.seed,
            device=self.device,
            half=self.half,
            allow_pickle=self.allow_pickle,
            allow_code=self.allow_code,
        )

    def recorded(self) -> PromptPlan:
        """Give the plan as results show it: of paths the last name alone, unless all is wanted."""
        shown = copy(self)
        for name in _PATHS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(shown, name, recorded(value, whole=self.record_paths))
        return shown

    def arguments(self) -> dict[str, Any]:
        """Give every argument, for the record."""
        return asdict(self) | {"fail_on": list(self.fail_on)}

    def command(self) -> str:
        """Write the command line that repeats this audit; defaults are left out."""
        words = ["memfold", "audit", self.model]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "model" or value == field.default:
                continue
            name = field.name.replace("_", "-")
            if field.name == "explain":
                words.append("--no-explain")
                continue
            words.append(f"--{name}")
            if isinstance(value, tuple):
                value = ",".join(value)
            if value is not True:
                words.append(str(value))
        return shlex.join(words)


__all__ = ["METHODS_OFF", "PROMPT_KINDS", "SIGNALS", "PromptPlan"]
