"""One prompt and one seed have one set of numbers, whichever command computes them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from memfold.cli import app
from memfold.memorization.calibrate import calibrate
from memfold.memorization.prompt_verdict import SIGNALS
from memfold.tensors import prompt_generator, text_seed
from memfold.types import InputError
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
PROMPTS = ["a photo of the red dog", "a blue house by anna"]
COMMON = ["--images", "2", "--steps", "2"]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """Run every command for two seeds; return what each says of the first prompt."""
    root = tmp_path_factory.mktemp("seeds")
    model = str(root / "model")
    tiny.pipeline("sd1 (eps)").save_pretrained(model)
    (root / "ordinary.txt").write_text("\n".join(f"a {w} by anna" for w in tiny.WORDS[:11]))
    (root / "prompts.txt").write_text("\n".join(PROMPTS))
    rows = [f"{p},{k}" for p, k in zip(PROMPTS, ("memorized", "none"), strict=True)]
    (root / "known.csv").write_text("\n".join(["prompt,kind", *rows]))

    def run(*words):
        done = CliRunner().invoke(app, [*words, *COMMON], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    def found(seed, *, benched):
        own = ["--seed", str(seed)]
        out, mitigation = str(root / f"audit{seed}"), ["random_words", "--seed", str(seed)]
        run("audit", model, "--prompts", str(root / "prompts.txt"), "--ordinary",
            str(root / "ordinary.txt"), "--alpha", "0.999", "--limit", "1", "--out", out,
            "--mitigate", *mitigation)  # fmt: skip
        bench = []
        if benched:
            run("bench", model, "--prompts", str(root / "known.csv"), "--out", out + "b", *own,
                "--detectors", ",".join(SIGNALS))  # fmt: skip
            with open(f"{out}b/scores.csv", encoding="utf-8") as file:
                bench = [r for r in csv.DictReader(file) if r["prompt"] == PROMPTS[0]]
        said = json.loads(run("explain", model, "--prompt", PROMPTS[0], "--json", *own))
        said_of = run("mitigate", model, "--prompt", PROMPTS[0], "--out", out + "m", "--json",
                      "--method", *mitigation)  # fmt: skip
        made = json.loads(said_of)
        results = pq.read_table(f"{out}/results.parquet").to_pylist()
        flagged = {r["prompt"]: r for r in pq.read_table(f"{out}/flagged.parquet").to_pylist()}
        return {
            "audit": results[0], "report": flagged[PROMPTS[0]], "bench": bench,
            "explain": said, "mitigate": made,
        }  # fmt: skip

    return found(0, benched=False), found(7, benched=True)


def test_audit_and_bench_give_the_same_scores(numbers):
    found = numbers[1]
    signals = {k: v for k, v in found["audit"].items() if k.startswith("signal.")}
    assert signals
    for name, value in signals.items():
        both = [float(row[name.removeprefix("signal.")]) for row in found["bench"]]
        assert np.mean(both) == pytest.approx(value, rel=5e-6)  # written in six digits


def test_the_report_and_explain_give_the_same_words_and_the_same_map(numbers):
    for found in numbers:
        report, said = found["report"], found["explain"]
        assert report["words"] == said["words"]
        assert report["weights"] == pytest.approx(said["weights"], rel=1e-6)
        assert report["map"] == pytest.approx(said["map"], rel=1e-6)


def test_the_report_and_mitigate_change_the_prompt_alike(numbers):
    for found in numbers:
        assert found["report"]["mitigated_note"] == found["mitigate"]["description"]
        steps = np.mean(found["report"]["mitigated_score"])
        assert steps == pytest.approx(found["mitigate"]["scores"]["cfg_norm"][1], rel=1e-5)


def test_another_seed_gives_other_numbers_everywhere(numbers):
    one, other = numbers
    assert one["audit"]["signal.cfg_norm"] != other["audit"]["signal.cfg_norm"]
    assert one["report"]["weights"] != other["report"]["weights"]
    assert one["explain"]["curves"] != other["explain"]["curves"]
    assert one["report"]["mitigated_note"] != other["report"]["mitigated_note"]


def test_calibration_takes_the_same_function(monkeypatch):
    from memfold.denoisers.adapters.text_to_image import TextToImage

    seen, real = {}, TextToImage.generate

    def generate(self, prompt, seeds, **options):
        seen[prompt] = list(seeds)
        return real(self, prompt, seeds, **options)

    monkeypatch.setattr(TextToImage, "generate", generate)
    model, prompts = tiny.pipeline("sd1 (eps)"), [f"a {w}" for w in tiny.WORDS[:10]]
    calibrate(model, prompts, alpha=0.1, images=2, seed=3, num_inference_steps=1)
    assert seen == {p: [text_seed(p, 3), text_seed(p, 3) + 1] for p in prompts}


def test_prompts_and_seeds_key_different_numbers():
    keys = {text_seed(p, s) for p in PROMPTS for s in (0, 1, 2**64 - 1)}
    assert len(keys) == 6
    draws = [torch.randn(3, generator=prompt_generator(PROMPTS[0], s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    for seed in (-1, 2**64):
        with pytest.raises(InputError, match=f"seed = {seed}; take one from 0"):
            text_seed("a dog", seed)
