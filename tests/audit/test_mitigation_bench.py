"""memfold bench --mitigation: what it writes, how it goes on, how it judges, how it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from memfold.audit.labelled import Labelled
from memfold.audit.mitigation_bench import thinned
from memfold.audit.mitigation_judge import Clip, Judge, Reference
from memfold.audit.mitigation_specs import DEFAULT, read_specs
from memfold.audit.mitigation_summary import Limits, limits_of, summary_rows
from memfold.cli import app
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.mitigation import METHODS
from memfold.report.mitigation_figures import mitigation_figure, mitigation_table
from memfold.types import InputError
from tests.text_to_image import tiny

ASSETS = Path(__file__).parents[2] / "assets" / "text_to_image"
pytestmark = tiny.QUIET
RUN = ["--steps", "2", "--guidance-scale", "3", "--images", "2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny pipeline, prompts with answers, and training images: what the memorized one draws."""
    path = tmp_path_factory.mktemp("world")
    pipe = tiny.pipeline("sd1 (eps)")
    pipe.save_pretrained(path / "model")
    rows = [
        "a photo of the dog;verbatim",
        "a red house;template",
        "a blue cat;none",
        "old tree;none",
    ]
    (path / "p.csv").write_text("prompt;type\n" + "\n".join(rows) + "\n")
    model = TextToImage(pipe)
    x = model.generate("a photo of the dog", [0, 1], num_inference_steps=2, guidance_scale=3.0)
    with torch.no_grad():
        pictures = (model.decode(x).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    noise = np.random.default_rng(0).integers(0, 256, (6, *pictures.shape[1:]), dtype=np.uint8)
    np.savez(path / "train.npz", images=np.concatenate([pictures.numpy(), noise]))
    return path


def command(world, out, *more):
    return ["bench", str(world / "model"), "--mitigation", "--prompts", str(world / "p.csv"),
            "--out", str(out), *RUN, *more]  # fmt: skip


def test_it_goes_on_where_it_was_and_does_not_depend_on_workers(world, tmp_path, monkeypatch):
    from memfold.audit import mitigation_work

    more = ("--methods", "random_words,rewrite,away", "--attacked", "0", "--data",
            str(world / "train.npz"))  # fmt: skip
    real, seen = mitigation_work._work, []

    def counted(job):
        if len(seen) == 7:
            raise KeyboardInterrupt
        seen.append((job.stage, job.index))
        return real(job)

    monkeypatch.setattr(mitigation_work, "_work", counted)
    assert CliRunner().invoke(app, command(world, tmp_path / "a", *more)).exit_code != 0
    monkeypatch.setattr(
        mitigation_work, "_work", lambda job: seen.append((job.stage, job.index)) or real(job)
    )
    done = CliRunner().invoke(app, command(world, tmp_path / "a", *more))
    assert done.exit_code == 0, done.output
    assert len(seen) == len(set(seen)) == 5 * 4  # none, three methods and the control; no twice
    found = json.loads((tmp_path / "a" / "mitigation.json").read_text())
    assert [r["method"] for r in found["rows"][::3]] == [
        "none", "random_words", "rewrite", "random_rewrite", "away",
    ]  # fmt: skip
    monkeypatch.undo()  # the workers are given the function by its name
    again = CliRunner().invoke(app, command(world, tmp_path / "b", *more, "--workers", "2"))
    assert again.exit_code == 0, again.output
    one, two = (rows_of(tmp_path / d / "samples.csv") for d in "ab")
    assert len(one) == 5 * 4 * 2
    for a, b in zip(one, two, strict=True):
        assert (a["method"], a["prompt"], a["drawn"]) == (b["method"], b["prompt"], b["drawn"])
        assert float(a["distance"]) == pytest.approx(float(b["distance"]), rel=1e-3, abs=1e-4)
    for name in ("mitigation.md", "mitigation.svg"):
        assert (tmp_path / "a" / name).stat().st_size > 500
    assert "no --clip" in (tmp_path / "a" / "mitigation.md").read_text()


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_without_training_images_copies_are_of_what_memorized_prompts_draw(world, tmp_path):
    done = CliRunner().invoke(
        app, command(world, tmp_path, "--methods", "padding", "--attacked", "1", "--json")
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert any("no --data" in note for note in found["left_out"])
    assert [r["case"] for r in found["recheck"]["rows"]] == [
        "memorized, mitigated", "memorized, another prompt", "ordinary, own prompt",
    ]  # fmt: skip
    assert found["recheck"]["method"] == "padding"


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (("--methods", "magic"), "'magic' is unknown; choose from reword"),
        (("--methods", "padding:fil=start"), "no option of padding; write name=value, one of fill"),
        (("--methods", "away"), "away needs the training images; pass --data"),
        (("--detectors", "cfg_norm"), "name mitigations with --methods"),
        (("--limit", "0"), "take 1 or more"),
        (("--images", "1"), "how much its images vary"),
        (("--clip", "nowhere"), "no such file or directory"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_refused(world, tmp_path, more, match):
    done = CliRunner().invoke(app, command(world, tmp_path, *more))
    assert isinstance(done.exception, InputError)
    assert match in str(done.exception)
    plain = ["bench", str(world / "model"), "--prompts", str(world / "p.csv"), "--out", "x"]
    done = CliRunner().invoke(app, [*plain, "--methods", "padding"])
    assert "only for --mitigation" in str(done.exception)


def test_names_carry_options_and_rewriting_its_control():
    specs = read_specs(["rewrite:n_words=2:temperature=0.5", "rewrite:url=http://a:1/v1"])
    assert [s.name for s in specs] == [
        "none", "rewrite:n_words=2:temperature=0.5", "random_rewrite:n_words=2",
        "rewrite:url=http://a:1/v1", "random_rewrite:url=http://a:1/v1",
    ]  # fmt: skip
    assert specs[1].options == {"n_words": 2, "temperature": 0.5}
    assert {s.method for s in read_specs(DEFAULT)} == {"none", *METHODS}


def test_limits_are_the_quantile_of_ordinary_images_and_copies_lie_below():
    rng = np.random.default_rng(0)
    rows = [{"distance": rng.random(4).tolist(), "spread": [float(i)] * 4} for i in range(100)]
    limits = limits_of(rows)
    below = sum(v < limits.copy for row in rows for v in row["distance"])
    assert below == 4  # of 400: the 1 % quantile has 4 below itself
    assert limits.alike == 1.0
    assert limits_of(rows, 0.5, 0.25) == Limits(0.5, 0.25)


def test_a_training_image_is_a_copy_and_means_are_by_prompt(world):
    model = TextToImage(tiny.pipeline("sd1 (eps)"))
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    judge = Judge(model, Reference(torch.cat([x[1:], x[1:] + 1]).flatten(1)), None, None)
    found = judge(torch.cat([x[1:], x[1:] + 0.75]), "a dog")
    assert found["distance"] == pytest.approx([0.0, 0.25], abs=1e-6)
    assert found["nearest"] == [0, 1]
    assert found["spread"][0] == pytest.approx(0.375, rel=1e-5)
    cells = {"seconds": [1.0, 1.0]}
    table = [
        ("none", "verbatim", "a", {"distance": [0.1, 0.2], "spread": [0.1] * 2} | cells),
        ("none", "verbatim", "b", {"distance": [0.3, 0.4], "spread": [0.9] * 2} | cells),
    ]
    (row,) = summary_rows(table, Limits(0.2, 0.5), None)
    assert (row["copies"], row["copied"], row["alike"], row["spread"]) == (0.25, 0.5, 0.5, 0.5)
    assert row["copied_interval"] == pytest.approx([0.0126, 0.9874], abs=1e-4)  # exact, 1 of 2


def test_few_prompts_are_spread_over_the_list_and_near_misses_left_out():
    kinds = ["verbatim"] * 6 + ["near"] * 3 + ["none"] * 4
    texts = tuple(f"p{i}" for i in range(13))
    found = thinned(Labelled(texts, tuple(kinds), texts), 2)
    assert found.prompts == ("p0", "p3", "p9", "p11")
    assert len(thinned(Labelled(texts, tuple(kinds), texts), None).prompts) == 10


def test_hostile_names_are_escaped():
    cell = {"prompts": 1, "copies": 0.0, "copied": 0.0, "copied_interval": [0, 1], "alike": 0.0,
            "spread": 1.0, "seconds": 1.0}  # fmt: skip
    rows = [{"method": "<script>|", "kind": k} | cell for k in ("verbatim", "none")]
    assert "<script>" not in mitigation_figure(rows)
    found = {"rows": rows, "limits": {"copy": 0.1, "alike": 0.1, "embedding": None},
             "settings": {"images": 2}, "spaces": {}, "calibrated_on": 1, "left_out": [],
             "recheck": {"rows": []}}  # fmt: skip
    assert "\\|" in mitigation_table(found).splitlines()[2]


@pytest.mark.skipif(not (ASSETS / "clip").is_dir(), reason="the bundled CLIP is missing")
def test_alignment_is_the_cosine_of_clips_own_features(world):
    from transformers import CLIPModel, CLIPTokenizer

    found = Clip(str(ASSETS / "clip"), allow_pickle=False, device="cpu")
    clip = CLIPModel.from_pretrained(ASSETS / "clip").eval()
    pictures = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255
    text = "a photo of a dark coat"
    tokens = CLIPTokenizer.from_pretrained(ASSETS / "clip")(
        [text], padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        both = clip(pixel_values=pictures * 2 - 1, **tokens)
    want = torch.nn.functional.cosine_similarity(both.image_embeds, both.text_embeds)
    torch.testing.assert_close(found.images(pictures) @ found.text([text])[0], want)
    with pytest.raises(InputError, match="embeds no texts"):
        Clip(vision_alone(world), allow_pickle=False, device="cpu")


def vision_alone(world):
    """Save a vision model that knows no words."""
    import transformers

    path = world / "vit"
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=16, patch_size=8,
    )  # fmt: skip
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(path)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(path)
    return str(path)
