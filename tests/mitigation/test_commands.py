"""memfold calibrate and memfold mitigate: what they write, how they go on, how they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from memfold.cli import app
from memfold.memorization.band import Band
from memfold.memorization.calibrate import _watch
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import PROMPT

pytestmark = tiny.QUIET
RUN = ["--steps", "2", "--guidance-scale", "3"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny.pipeline("sd1 (eps)").save_pretrained(path)
    return str(path)


def test_calibrate_goes_on_and_mitigate_reads_the_band(directory, tmp_path, monkeypatch):
    prompts, band = tmp_path / "ordinary.txt", tmp_path / "band.json"
    prompts.write_text("\n".join(f"a photo of the {w}" for w in tiny.WORDS if len(w) > 1))
    command = ["calibrate", directory, "--prompts", str(prompts), "--out", str(band), *RUN]
    run = []

    def counted(*args):
        run.append(args[1])
        if len(run) == 5:
            raise KeyboardInterrupt
        return _watch(*args)

    monkeypatch.setattr("memfold.memorization.calibrate._watch", counted)
    assert CliRunner().invoke(app, [*command, "--alpha", "0.1"]).exit_code != 0
    assert not band.exists()
    done = CliRunner().invoke(app, [*command, "--alpha", "0.1"])
    assert done.exit_code == 0, done.output
    found = Band.load(band)
    assert len(run) == found.n + 1  # the one that was interrupted, once more, and no other
    assert found.conditions["guidance_scale"] == 3.0
    few = CliRunner().invoke(app, [*command, "--overwrite"])
    assert isinstance(few.exception, InputError)
    assert "give 99 or more" in str(few.exception)

    out = tmp_path / "out"
    command = ["mitigate", directory, "--prompt", PROMPT, "--method", "padding", "--out", str(out)]
    command += ["--band", str(band), "--images", "2", "--json"]
    done = CliRunner().invoke(app, [*command, *RUN])
    assert done.exit_code == 0, done.output
    facts = json.loads((out / "mitigation.json").read_text())
    assert [len(left) for left in facts["leaves_band"]] == [2, 2]
    before, after = facts["scores"]["cfg_norm"]
    assert before != after
    assert (out / "before.png").read_bytes() != (out / "after.png").read_bytes()
    other = CliRunner().invoke(app, [*command, "--steps", "2", "--guidance-scale", "4"])
    assert isinstance(other.exception, InputError)
    assert "guidance_scale = 3.0, and here it is 4.0" in str(other.exception)


def test_away_takes_the_training_images_and_says_so_without_them(directory, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "train.npy", images)
    command = ["mitigate", directory, "--prompt", PROMPT, "--out", str(tmp_path / "out"), *RUN]
    missing = CliRunner().invoke(app, [*command, "--method", "away"])
    assert isinstance(missing.exception, InputError)
    assert "needs the training images; pass --data" in str(missing.exception)
    data = ["--data", str(tmp_path / "train.npy"), "--images", "2"]
    useless = CliRunner().invoke(app, [*command, *data, "--method", "padding"])
    assert "--data is for --method away" in str(useless.exception)
    done = CliRunner().invoke(app, [*command, *data, "--method", "away", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["method"] == "away"
