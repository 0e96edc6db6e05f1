"""Evidence for flagged prompts: images, copies, where and which words, and a mitigation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tqdm import tqdm

from memfold.datasets.images import Images
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.embedding import Embedding
from memfold.memorization.replicate import nearest_training
from memfold.sampling.training import TrainingRows
from memfold.sampling.trajectory import Generation, generate_watched
from memfold.tensors import prompt_generator
from memfold.types import InputError

from .explained import png_bytes
from .judging import Judge
from .prompt_plan import METHODS_OFF, PromptPlan
from .scoring import usable
from .store import Columns, Store, concat
from .where import where

WATCHED = "cfg_norm"  # the score over steps that the report draws
_CALIBRATE = 50


@dataclass(frozen=True)
class Show:
    """All that evidence is drawn from.

    Attributes:
        plan: the plan.
        model: the pipeline.
        judge: the audit's verdict.
        data: training images; None where none are given.
        embedding: a further space to compare images in.
    """

    plan: PromptPlan
    model: TextToImage
    judge: Judge
    data: Images | None = None
    embedding: Embedding | None = None

    def flagged(
        self, subjects: list[str], flagged: list[int], store: Store, *, progress: bool
    ) -> Columns:
        """Draw flagged prompts again, explain them and try the mitigation; kept one by one.

        Args:
            subjects: the judged prompts.
            flagged: which of them.
            store: where finished ones are kept.
            progress: show a bar.

        Returns:
            A row a prompt.
        """
        missing = any(not store.has("flagged", i) for i in flagged)
        train = None
        if self.data is not None and missing:
            train = TrainingRows.of(self.model, self.data, self.embedding)
        pieces = []
        quiet = not progress or not flagged
        with tqdm(flagged, desc="Flagged", unit="prompt", disable=quiet) as bar:
            for i in bar:
                compute = partial(self.evidence, subjects[i], i, train)
                pieces.append(store.piece("flagged", i, compute))
        return concat(pieces)

    def evidence(self, prompt: str, index: int, train: TrainingRows | None) -> Columns:
        """Collect the evidence for one prompt, as a table of one row."""
        generation = generate_watched(
            self.model, prompt, self.plan.scoring.seeds, attention=False,
            **self.plan.scoring.options(),
        )  # fmt: skip
        row: dict[str, Any] = {"prompt": prompt, "index": index} | _pictures("images", generation)
        nearest = self.nearest(generation, train)
        row |= {
            "nearest_space": list(nearest),
            "nearest_id": [place[0] for place in nearest.values()],
            "nearest": [place[1] for place in nearest.values()],
            "nearest_calibrated": [v for place in nearest.values() for v in place[2]],
        }
        row |= where(generation, self.plan.seed)
        row |= self.explained(prompt, generation)
        row |= self.mitigated(prompt, row, train)
        return {k: [v] for k, v in row.items()}

    def nearest(
        self, generation: Generation, train: TrainingRows | None
    ) -> dict[str, tuple[str, bytes, list[float]]]:
        """Find, in each space, the training image that lies nearest to any of the seeds' images.

        Args:
            generation: the images.
            train: training images in every space; None where there are none.

        Returns:
            By space: the image's id, its PNG, and the calibrated distance of each seed's image to
            its own nearest one.
        """
        data: Images | None = self.data
        found: dict[str, tuple[str, bytes, list[float]]] = {}
        if data is None or train is None:
            return found
        queries = train.features(generation.images, generation.x)
        for name, rows in train.spaces.items():
            k = min(_CALIBRATE, len(rows) - 1)
            matches = nearest_training(queries[name], rows, k=k, top=1)
            best = int(matches.calibrated[:, 0].argmin())
            place = int(matches.index[best, 0])
            png = png_bytes(data.batch(place, place + 1)[0])
            found[name] = (data.ids[place], png, matches.calibrated[:, 0].tolist())
        return found

    def explained(self, prompt: str, generation: Generation) -> dict[str, Any]:
        """Attribute the score to the words, where that is wanted and possible."""
        empty: dict[str, Any] = {
            "words": [], "weights": [], "weight_stderr": [], "explain_note": "",
        }  # fmt: skip
        if not self.plan.explain:
            return empty
        from memfold.explain.attribution import attribute

        seeds = self.plan.scoring.seeds
        try:
            found = attribute(
                self.model, prompt, seeds=seeds, generation=generation,
                generator=prompt_generator(prompt, self.plan.seed),
            )  # fmt: skip
        except InputError as error:
            return empty | {"explain_note": str(error)}
        return {
            "words": list(found.words),
            "weights": [float(w) for w in found.weights],
            "weight_stderr": [float(w) for w in found.stderr],
            "explain_note": "; ".join(found.warnings),
        }

    def mitigated(
        self, prompt: str, row: dict[str, Any], train: TrainingRows | None
    ) -> dict[str, Any]:
        """Try the mitigation with the same seeds, and judge what it draws as the prompt was."""
        empty: dict[str, Any] = {
            "mitigated": [], "mitigated_note": "", "mitigated_score": [],
            "mitigated_verdict": None, "mitigated_p": None, "mitigated_calibrated": [],
        }  # fmt: skip
        if self.plan.mitigate == METHODS_OFF:
            return empty
        from memfold.mitigation import mitigate

        scoring = self.plan.scoring
        try:
            weights = list(zip(row["words"], row["weights"], strict=True)) or None
            found = mitigate(
                self.model, prompt, method=self.plan.mitigate, seeds=scoring.seeds,
                weights=weights, generator=prompt_generator(prompt, self.plan.seed),
                **scoring.options(),
            )  # fmt: skip
            generation = found.generate(scoring.seeds)
        except InputError as error:
            return empty | {"mitigated_note": str(error)}
        steps = generation.scores.get(WATCHED)
        score, p = self.again(generation, prompt)
        nearest = self.nearest(generation, train)
        return {
            **_pictures("mitigated", generation),
            "mitigated_note": found.description,
            "mitigated_score": [] if steps is None else steps.mean(0).tolist(),
            "mitigated_verdict": score,
            "mitigated_p": p,
            "mitigated_calibrated": [v for place in nearest.values() for v in place[2]],
        }

    def again(self, generation: Generation, prompt: str) -> tuple[float, float]:
        """Score images by the audit's signals, with the prompt's own noises, and judge them."""
        detectors, _ = usable(self.model, self.judge.names, self.plan.images)
        scores = {
            d.name: d(generation, generator=prompt_generator(prompt, self.plan.seed)).numpy()
            for d in detectors
        }
        return self.judge.again(scores)


def _pictures(name: str, generation: Generation) -> dict[str, list[bytes]]:
    return {name: [png_bytes(image) for image in generation.images]}
