"""Audits and benchmarks of prompts: honest rates, hostile words, resumption, errors in one line."""

import csv
import json
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import binom
from typer.testing import CliRunner

from memfold.audit import scored as scored_module
from memfold.audit.bench import bench
from memfold.audit.labelled import Labelled, read_labelled, text_only
from memfold.audit.prompt_forecast import forecast_prompts
from memfold.audit.prompt_plan import PromptPlan
from memfold.audit.prompts import run_prompts
from memfold.audit.scored import score_prompt
from memfold.audit.scoring import Scoring, counted, usable
from memfold.cli import app, main
from memfold.memorization.prompt_verdict import SIGNALS, combine, p_values, standards
from memfold.mitigation.base import Mitigation
from memfold.report.html import write
from memfold.sampling.trajectory import generate_watched
from memfold.types import InputError
from tests.text_to_image import tiny

HOSTILE = 'a <script>alert("x")</script> photo & "dog"\x1b[31m'
SUBJECTS = ["a photo of the red dog", HOSTILE, "a blue house", "a red cat by anna"]
ORDINARY = [f"a {w} by anna from dublin" for w in tiny.WORDS]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    tiny.pipeline("sd1 (eps)").save_pretrained(path)
    return str(path)


@pytest.fixture
def lists(tmp_path):
    subjects, ordinary = tmp_path / "subjects.jsonl", tmp_path / "ordinary.txt"
    subjects.write_text("\n".join(json.dumps({"prompt": p}) for p in SUBJECTS))
    ordinary.write_text("\n".join(ORDINARY))
    return str(subjects), str(ordinary)


def plan(pipeline, lists, tmp_path, **changes):
    given = {
        "model": pipeline, "prompts": lists[0], "ordinary": lists[1], "images": 2, "steps": 2,
        "alpha": 0.2, "explain": False, "out": str(tmp_path / "out"),
    }  # fmt: skip
    return PromptPlan(**given | changes)


def test_p_values_of_exchangeable_prompts_are_valid():
    rng = np.random.default_rng(0)
    runs, m, alpha = 400, 99, 0.05
    called = sum(
        int((p_values(rng.normal(size=1), rng.normal(size=m)) <= alpha)[0]) for _ in range(runs)
    )
    assert binom.cdf(called, runs, alpha) > 1e-4
    assert binom.sf(called - 1, runs, alpha) > 1e-4


def test_p_values_count_ties_against_the_prompt():
    assert p_values([2.0, 5.0], [1.0, 2.0, 3.0]).tolist() == [0.75, 0.25]
    with pytest.raises(InputError, match="finite scores"):
        p_values([float("nan")], [1.0])


def test_the_verdict_is_in_units_of_ordinary_prompts():
    rng = np.random.default_rng(1)
    reference = {name: rng.normal(7, 3, size=(4001, 1)) for name in SIGNALS}
    found = combine({name: np.full((1, 1), 13.0) for name in SIGNALS}, standards(reference))
    # Median and MAD of 4,001 normal numbers: standard errors 1.25 and 1.17 percent of sigma.
    assert abs(found[0, 0] - np.arcsinh(2.0)) < 4 * 0.02 * 2
    with pytest.raises(InputError, match="too few"):
        standards({SIGNALS[0]: np.zeros((5, 1))})
    with pytest.raises(InputError, match="needs one of the detectors"):
        standards({})


def test_an_audit_of_prompts(pipeline, lists, tmp_path):
    facts = run_prompts(plan(pipeline, lists, tmp_path), progress=False)
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [r["prompt"] for r in rows] == SUBJECTS
    called = [r["p_value"] <= 0.2 for r in rows]
    assert [r["verdict"] == "memorized" for r in rows] == called
    assert facts["memorized"]["count"] == sum(called)
    assert facts["reference"]["n"] == len(ORDINARY)
    assert facts["reference"]["expected_rate"] == pytest.approx(3 / 17)
    page = write(tmp_path / "out").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "alert(&#34;x&#34;)" in page
    assert "\x1b" not in page


def test_a_plan_of_prompts_counts_the_passes_and_writes_nothing(pipeline, lists, tmp_path):
    """Rows through the network as the run counts them; no directory is made."""
    planned = plan(pipeline, lists, tmp_path)
    found = forecast_prompts(planned)
    assert not (tmp_path / "out").exists()
    assert found["images"] == (len(SUBJECTS) + len(ORDINARY)) * 2
    run_prompts(planned, progress=False)
    parts = [pq.read_table(p) for p in (tmp_path / "out" / "parts").glob("[op]r*.parquet")]
    passes = sum(
        sum(t[c].to_pylist()) for t in parts for c in t.column_names if c.startswith("passes.")
    )
    assert found["passes"] == pytest.approx(passes)
    assert found["power"]["smallest"] == 1
    few = forecast_prompts(plan(pipeline, lists, tmp_path, alpha=0.01))
    assert few["power"]["smallest"] is None
    assert "99 ordinary prompts" in few["doubt"]["remedy"]


def test_a_report_of_older_results_says_what_is_missing(pipeline, lists, tmp_path):
    """Results that hold `kind` instead of `verdict` are refused in one line."""
    run_prompts(plan(pipeline, lists, tmp_path), progress=False)
    path = tmp_path / "out" / "results.parquet"
    table = pq.read_table(path)
    pq.write_table(table.rename_columns({"verdict": "kind"}), path)
    with pytest.raises(InputError, match="has no column verdict"):
        write(tmp_path / "out")


def test_an_audit_goes_on_where_it_stopped(pipeline, lists, tmp_path, monkeypatch):
    full = run_prompts(plan(pipeline, lists, tmp_path, out=str(tmp_path / "full")), progress=False)
    calls, original = [], scored_module.score_prompt

    def stops(model, prompt, **rest):
        calls.append(prompt)
        if len(calls) == len(ORDINARY) + 2:
            raise KeyboardInterrupt
        return original(model, prompt, **rest)

    monkeypatch.setattr(scored_module, "score_prompt", stops)
    with pytest.raises(KeyboardInterrupt):
        run_prompts(plan(pipeline, lists, tmp_path), progress=False)
    done = len(calls)
    resumed = run_prompts(plan(pipeline, lists, tmp_path), progress=False)
    assert len(calls) - done == len(SUBJECTS)  # the ordinary prompts are not scored again
    assert resumed["memorized"] == full["memorized"]
    with pytest.raises(InputError, match="holds another audit"):
        run_prompts(plan(pipeline, lists, tmp_path, steps=3), progress=False)


def test_without_ordinary_prompts_it_says_what_is_lost(pipeline, lists, tmp_path):
    many = tmp_path / "many.txt"
    many.write_text("\n".join(ORDINARY))
    facts = run_prompts(
        plan(pipeline, lists, tmp_path, prompts=str(many), ordinary=None), progress=False
    )
    assert any("their own reference" in w for w in facts["warnings"])
    assert facts["memorized"]["count"] <= 0.2 * len(ORDINARY)


def test_a_reference_that_cannot_call_anything_is_told(pipeline, lists, tmp_path):
    facts = run_prompts(plan(pipeline, lists, tmp_path, alpha=0.01), progress=False)
    assert facts["memorized"]["count"] == 0
    assert any("Give 99 or more" in w for w in facts["warnings"])


class _Brightness(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@pytest.fixture
def train(tmp_path):
    images = tmp_path / "train.npz"
    pixels = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(images, images=pixels)
    return str(images)


@pytest.fixture
def embedding(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its successor
        torch.jit.script(_Brightness()).save(str(tmp_path / "brightness.pt"))
    return str(tmp_path / "brightness.pt")


def flagged(out):
    return pq.read_table(out / "flagged.parquet").to_pylist()


def test_flagged_prompts_are_shown(pipeline, lists, tmp_path, train):
    given = plan(pipeline, lists, tmp_path, alpha=0.9, data=train)
    facts = run_prompts(given, progress=False)
    assert facts["memorized"]["count"] == facts["shown"] > 0
    shown = flagged(tmp_path / "out")
    assert len(shown) == facts["shown"]
    assert all(len(row["images"]) == 2 for row in shown)
    assert all(row["nearest_space"] == ["latents", "pixels"] for row in shown)
    page = write(tmp_path / "out").read_text(encoding="utf-8")
    different = sum(len(set(row["nearest_id"])) for row in shown)
    assert page.count("data:image/png") == 4 * facts["shown"] + different  # 2 drawn, 2 maps
    assert page.count("Where the prompt takes freedom away") == facts["shown"]


def test_copies_are_found_in_every_space(pipeline, lists, tmp_path, embedding):
    """Training images that are the drawn ones: at no distance, in pixels and the embedding."""
    model = Scoring(model=pipeline, images=2, steps=2).load()
    drawn = generate_watched(model, SUBJECTS[0], [0, 1], attention=False, num_inference_steps=2)
    others = np.random.default_rng(0).random((9, 3, 16, 16), dtype=np.float32)
    images = np.concatenate([others, drawn.images.numpy()])
    np.savez(tmp_path / "train.npz", images=images)
    (tmp_path / "one.txt").write_text(SUBJECTS[0])
    given = plan(
        pipeline, (str(tmp_path / "one.txt"), lists[1]), tmp_path, alpha=0.99,
        data=str(tmp_path / "train.npz"), embedding=embedding, allow_code=True,
    )  # fmt: skip
    assert run_prompts(given, progress=False)["shown"] == 1
    (row,) = flagged(tmp_path / "out")
    assert row["nearest_space"] == ["latents", "pixels", "embedding"]
    calibrated = np.reshape(row["nearest_calibrated"], (3, 2))
    assert np.abs(calibrated[1:]).max() < 1e-3
    assert all(int(i) >= 9 for i in row["nearest_id"][1:])


def test_a_mitigation_that_changes_nothing_changes_no_verdict(
    pipeline, lists, tmp_path, train, monkeypatch
):
    """What it draws is scored by the same detectors and noises, against the same reference."""
    monkeypatch.setattr(
        "memfold.mitigation.mitigate", lambda model, prompt, **_: Mitigation(model, "none", prompt,
        prompt, "nothing", options={"num_inference_steps": 2}),
    )  # fmt: skip
    given = plan(pipeline, lists, tmp_path, alpha=0.9, data=train, mitigate="embedding")
    run_prompts(given, progress=False)
    results = {
        r["prompt"]: r for r in pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    }
    shown = flagged(tmp_path / "out")
    assert shown
    for row in shown:
        before = results[row["prompt"]]
        assert row["mitigated_verdict"] == pytest.approx(before["score"], rel=1e-4)
        assert row["mitigated_p"] == before["p_value"]
        assert row["mitigated_calibrated"] == pytest.approx(row["nearest_calibrated"], rel=1e-4)
        assert row["mitigated"] == row["images"]
    page = write(tmp_path / "out").read_text(encoding="utf-8")
    assert page.count("a p-value after it is no proof") == len(shown)


def test_an_embedding_needs_images_to_compare_with(pipeline, lists, tmp_path, embedding):
    with pytest.raises(InputError, match="--embedding compares with training images"):
        plan(pipeline, lists, tmp_path, embedding=embedding)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--data is missing"),
        (["--prompts", "{p}", "--generate", "5"], "--generate belongs to an audit of images"),
        (["--data", "x", "--ordinary", "{p}"], "--ordinary needs --prompts"),
        (["--data", "x", "--no-explain"], "--no-explain needs --prompts"),
        (["--prompts", "missing.csv"], "missing.csv"),
        (["--prompts", "{p}", "--fail-on", "data"], "--fail-on 'data' is unknown for prompts"),
        (["--prompts", "{p}", "--alpha", "2"], "--alpha = 2"),
    ],
)
def test_errors_are_one_line(pipeline, lists, tmp_path, capsys, monkeypatch, words, says):
    words = [w.replace("{p}", lists[0]) for w in words]
    out = ["--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["memfold", "audit", pipeline, *words, *out])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert "\n" not in error


def test_fail_on_sets_the_exit_code(pipeline, lists, tmp_path):
    words = ["audit", pipeline, "--prompts", lists[0], "--ordinary", lists[1], "--images", "2"]
    words += ["--steps", "2", "--no-explain", "--json", "--out", str(tmp_path / "out")]
    loose = CliRunner().invoke(app, [*words, "--alpha", "0.95", "--fail-on", "memorized"])
    assert loose.exit_code == 1
    assert json.loads(loose.stdout)["exit"]["failed"]
    strict = CliRunner().invoke(app, [*words, "--alpha", "0.01", "--fail-on", "memorized"])
    assert strict.exit_code == 3  # 16 ordinary prompts call nothing at 1 %
    done = json.loads(strict.stdout)
    assert done["exit"]["outcome"] == "inconclusive"
    assert "99 ordinary prompts" in done["exit"]["remedy"]
    assert done["power"]["smallest"] is None
    page = write(tmp_path / "out").read_text(encoding="utf-8")
    assert "Inconclusive: a single memorized prompt among 4 prompts" in page


def test_a_prompt_does_not_depend_on_the_others(pipeline):
    scoring = Scoring(model=pipeline, images=2, steps=2)
    model = scoring.load()
    detectors, left = usable(model, ("cfg_norm", "loss_conditional", "freedom_taken"), 2)
    assert left == []
    first, _ = score_prompt(model, SUBJECTS[0], scoring, detectors)
    score_prompt(model, SUBJECTS[2], scoring, detectors)
    again, _ = score_prompt(model, SUBJECTS[0], scoring, detectors)
    for name in (d.name for d in detectors):
        assert first[f"score.{name}"] == again[f"score.{name}"]
    assert first["passes.generation"] == [4.0, 4.0]  # two steps, two halves
    assert first["passes.cfg_norm"] == [0.0, 0.0]
    assert first["passes.loss_conditional"] == [8.0, 8.0]


def test_products_are_counted(pipeline):
    model = Scoring(model=pipeline).load()
    import torch

    x = torch.zeros(3, *model.shape, requires_grad=True)
    with counted(model) as cost:
        out = model.denoiser("a dog")(x, 0.5)
        out.sum().backward()
    assert (cost.passes, cost.products) == (3, 3)  # recording the prompt runs no network


def labelled():
    prompts = [f"a photo of the {w} dog" for w in ("red", "blue", "old")]
    prompts += [f"a photo of the {w} cat" for w in ("red", "blue", "old", "quiet")]
    return Labelled(tuple(prompts), ("verbatim", "template", "near", *["none"] * 4), tuple(prompts))


def test_a_benchmark(pipeline, tmp_path):
    scoring = Scoring(model=pipeline, images=2, steps=2, detectors=(*SIGNALS, "sharpness"))
    found = bench(labelled(), scoring, tmp_path / "b", ordinary=ORDINARY, progress=False)
    assert {r["detector"] for r in found["rows"]} == {*SIGNALS, "sharpness", "verdict"}
    assert found["prompts"] == {"near": 1, "none": 4, "template": 1, "verbatim": 1, "families": 7,
                                "ordinary": 16}  # fmt: skip
    with (tmp_path / "b" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    for row in found["rows"]:  # AUROC by hand from the score file
        score = {k: [float(r[row["detector"]]) for r in rows if r["type"] in k]
                 for k in (("verbatim", "template"), ("none",))}  # fmt: skip
        a, b = (np.reshape(v, (-1, 2)).mean(1) for v in score.values())
        by_hand = np.mean((a[:, None] > b) + 0.5 * (a[:, None] == b))
        assert row["all.memorized"]["auroc"] == pytest.approx(by_hand)
    text = (tmp_path / "b" / "bench.md").read_text(encoding="utf-8")
    assert text.count("\n| ") >= len(found["rows"])
    assert (tmp_path / "b" / "bench.svg").read_text(encoding="utf-8").startswith("<svg")
    assert found["text_only"] is None


def test_the_verdict_takes_no_test_prompts(pipeline, tmp_path):
    scoring = Scoring(model=pipeline, images=2, steps=2)
    with pytest.raises(InputError, match="stand in the labelled list too"):
        bench(labelled(), scoring, tmp_path, ordinary=[labelled().prompts[0]], progress=False)


def test_text_alone_is_told_from_text_alone():
    words = [f"w{i}" for i in range(40)]
    kinds, families = ("verbatim",) * 40 + ("none",) * 40, tuple(str(i) for i in range(80))
    told = Labelled((*(f"secret {w}" for w in words), *words), kinds, families)
    assert text_only(told) > 0.95
    rng = np.random.default_rng(0)
    same = tuple(f"a {a} {b}" for a, b in rng.integers(0, 1000, (80, 2)))
    # Under the null the AUROC of 40 against 40 has a standard error of 0.065.
    assert abs(text_only(Labelled(same, kinds, families)) - 0.5) < 4 * 0.065


def test_labelled_lists_are_read(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "caption;type;use\na;verbatim;test\nb;none;test\nc;none;calibration\nd;verbatim;calibration\n"
        "e;near;test\na;verbatim;test\n"
    )
    found, ordinary = read_labelled(path)
    assert found.prompts == ("a", "b", "e")
    assert found.kinds == ("verbatim", "none", "near")
    assert ordinary == ["c"]
    with pytest.raises(InputError, match="either --prompts FILE, or both"):
        read_labelled(None, path)
    with pytest.raises(InputError, match="a benchmark needs both"):
        Labelled(("a",), ("none",), ("a",))
    with pytest.raises(InputError, match="stands in both lists"):
        Labelled(("a", "a"), ("none", "verbatim"), ("a", "a"))
