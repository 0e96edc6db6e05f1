"""`memfold explain`: its three files, its answer on a terminal, and what it refuses."""

import json
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from memfold.cli import app, main
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.explain.attribution import attribute
from memfold.sampling.trajectory import generate_watched
from memfold.tensors import prompt_generator
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
HOSTILE = 'a \x1b[31m<b>dog</b> [bold]"x"'


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny.pipeline("sd1 (eps)").save_pretrained(path)
    return str(path)


def run(pipeline, *given, prompt="a red dog"):
    options = ["--images", "2", "--steps", "3", "--prompt", prompt]
    return CliRunner().invoke(app, ["explain", pipeline, *options, *given])


def test_it_writes_three_files_that_agree(pipeline, tmp_path):
    out = tmp_path / "new" / "out"
    done = run(pipeline, "--leave-one-out", "--json", "--out", str(out))
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in out.iterdir()) == [
        "explanation.html", "explanation.json", "words.svg",
    ]  # fmt: skip
    said = json.loads(done.stdout)
    assert said == json.loads((out / "explanation.json").read_text("utf-8"))
    assert said["words"] == ["a", "red", "dog"]
    assert len(said["left_out"]) == len(said["masked"]) == 3
    assert set(said["curves"]) == {"with the prompt", "without a prompt"}
    texts = [e.text for e in ElementTree.parse(out / "words.svg").iter() if e.tag.endswith("text")]
    assert texts == ["a", "red", "dog"]
    assert (out / "explanation.html").read_text("utf-8").count(
        "data:image/png;base64,"
    ) == 4  # maps too
    assert len(said["map"]) == 2 * said["map_shape"][0] * said["map_shape"][1]


@pytest.mark.parametrize("guided", [False, True])
def test_guided_weighs_both_halves_at_the_scale_of_the_images(pipeline, guided):
    given = ["--score=-flipd", "--guidance-scale", "4", "--json", *(["--guided"] if guided else [])]
    said = json.loads(run(pipeline, *given).stdout)
    model = TextToImage(pipeline)
    drawn = generate_watched(
        model, "a red dog", (0, 1), attention=False, guidance_scale=4.0, num_inference_steps=3
    )
    a = attribute(
        model, "a red dog", score="-flipd", generation=drawn,
        guidance_scale=4.0 if guided else None, generator=prompt_generator("a red dog"),
    )  # fmt: skip
    other = attribute(
        model, "a red dog", score="-flipd", generation=drawn,
        guidance_scale=None if guided else 4.0, generator=prompt_generator("a red dog"),
    )  # fmt: skip
    assert said["weights"] == pytest.approx(a.weights.tolist(), rel=1e-3)
    assert said["weights"] != pytest.approx(other.weights.tolist(), rel=1e-2)


@pytest.mark.parametrize("name", ["flipd", "neg-flipd", "-flipd"])
def test_a_negative_score_needs_no_minus_on_the_command_line(pipeline, name):
    given = [f"--score={name}"] if name[0] == "-" else ["--score", name]
    said = json.loads(run(pipeline, *given, "--json").stdout)
    assert said["score"] == "-flipd"
    model = TextToImage(pipeline)
    drawn = generate_watched(model, "a red dog", (0, 1), attention=False, num_inference_steps=3)
    a = attribute(
        model, "a red dog", score=name, generation=drawn,
        generator=prompt_generator("a red dog"),
    )  # fmt: skip
    assert said["weights"] == pytest.approx(a.weights.tolist(), rel=1e-3)


def test_a_hostile_prompt_does_not_reach_the_terminal(pipeline, tmp_path):
    done = run(pipeline, "--out", str(tmp_path), prompt=HOSTILE)
    assert done.exit_code == 0, done.output
    assert "\x1b[31m" not in done.output
    assert "[bold]" in done.output  # shown, not obeyed
    page = (tmp_path / "explanation.html").read_text("utf-8")
    assert "<b>" not in page
    assert "\x1b" not in page
    assert json.loads((tmp_path / "explanation.json").read_text("utf-8"))["prompt"] == HOSTILE


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--prompt", " "], "the prompt has no words"),
        (["--prompt", "a dog", "--score", "lid"], "score = 'lid' is unknown; choose from cfg_norm"),
        (["--prompt", "a dog", "--wrt", "x"], "wrt = 'x' is unknown"),
        (["--prompt", "a dog", "--images", "0"], "--images = 0; take 1 or more"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(pipeline, given, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["memfold", "explain", pipeline, "--steps", "2", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("memfold:")]
    assert words in line
    assert "Traceback" not in said
