"""Detectors: one contract, exact models with known dimensions, and a model that memorizes."""

import csv
import inspect
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from memfold import TextToImage
from memfold.audit.scoring import counted, usable
from memfold.citations import CITATIONS
from memfold.denoisers.base import Conditioned, FunctionDenoiser
from memfold.denoisers.guidance import Guided
from memfold.lid.dsm import dsm_lid
from memfold.lid.flipd import flipd
from memfold.memorization.detectors import DETECTORS, curvature_map
from memfold.memorization.detectors.base import LOSS_NOISES, NOISES, PROBES, SIGMA
from memfold.memorization.detectors.seeds import seed_dimension, tiled_distances
from memfold.memorization.detectors.shell import shell
from memfold.memorization.prompt_scores import SCORES
from memfold.sampling.training import TrainingRows
from memfold.sampling.trajectory import generate_watched
from memfold.types import InputError
from tests.oracles import seeded
from tests.text_to_image import tiny

ASSETS = Path("assets/text_to_image")
PROMPT = "a photo of the red dog"
FAMILIES = ["sd1 (eps)", "sd3", "pixart", "flux"]


@pytest.fixture(scope="module")
def generations():
    found = {}
    for family in FAMILIES:
        model = TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))
        run = generate_watched(model, PROMPT, [3, 4], num_inference_steps=3)
        found[family] = replace(run, training=training_like(run))
    return found


def training_like(run, n=6):
    """Training images that were never seen, and an embedding of them."""

    def embed(images):
        return images.flatten(1)[:, :7]

    pixels = torch.rand(n, *run.images.shape[1:], generator=seeded(20))
    latents = torch.randn(n, *run.x.shape[1:], generator=seeded(21))
    return TrainingRows(TrainingRows({}, embed).features(pixels, latents), embed)


@pytest.mark.parametrize("family", ["sd1 (eps)", "sd3"])
def test_one_name_has_one_unit(generations, family):
    """The guided score norm is |s_w| in the monitor and as a score; the detector has sigma too."""
    run = generations[family]
    assert "guided_score_norm" not in DETECTORS
    steps = [((v.x - v.guided).flatten(1).norm(dim=1), v.sigma) for v in run.views]
    for i, (view, (length, sigma)) in enumerate(zip(run.views, steps, strict=True)):
        torch.testing.assert_close(
            run.scores["guided_score_norm"][:, i], length / sigma**2, rtol=1e-4, atol=0
        )
        score = SCORES["guided_score_norm"](
            run.model.model, view.x, view.sigma, run.cond, run.uncond,
            guidance_scale=run.guidance_scale,
        )  # fmt: skip
        torch.testing.assert_close(score, length / sigma**2, rtol=1e-3, atol=0)
    found = DETECTORS["guided_noise_norm"](run)
    torch.testing.assert_close(
        found, torch.stack([n / s for n, s in steps], 1).mean(1), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DETECTORS)
def test_contract(generations, family, name):
    generation, detector = generations[family], DETECTORS[name]
    if detector.missing(generation):
        with pytest.raises(InputError, match=f"{name} needs"):
            detector(generation)
        return
    score = detector(generation, generator=seeded(1))
    assert score.shape == (2,)
    assert score.isfinite().all()
    torch.testing.assert_close(score, detector(generation, generator=seeded(1)), rtol=0, atol=0)


@pytest.mark.parametrize("name", [n for n, d in DETECTORS.items() if not d.many])
def test_an_image_does_not_depend_on_its_batch(generations, name):
    generation, detector = generations["sd1 (eps)"], DETECTORS[name]

    def rest(value):
        if isinstance(value, tuple):
            return tuple(rest(v) for v in value)
        return value[1:] if isinstance(value, torch.Tensor) else value

    views = tuple(
        replace(view, **{f.name: rest(getattr(view, f.name)) for f in fields(view)})
        for view in generation.views
    )
    scores = {k: v[1:] for k, v in generation.scores.items()}
    alone = replace(
        generation, seeds=generation.seeds[1:], x=generation.x[1:], views=views, scores=scores
    )
    together = detector(generation, generator=seeded(2))[1:]
    torch.testing.assert_close(detector(alone, generator=seeded(2)), together, rtol=1e-3, atol=1e-3)


def test_a_pipeline_without_unconditional_half_keeps_the_rest():
    model = TextToImage(tiny.pipeline("flux"), **tiny.OPTIONS["flux"])
    model.layout = replace(model.layout, conditional=None)
    found, left = usable(model, (), 2)
    assert {"loss_conditional", "flipd_conditional", "tiled_l2"} <= {d.name for d in found}
    assert any(line.startswith("cfg_norm: FluxPipeline has no unconditional half") for line in left)
    with pytest.raises(InputError, match="cfg_norm cannot run"):
        usable(model, ("cfg_norm",), 2)


def test_every_entry_tells_its_source_and_has_the_one_signature():
    for detector in DETECTORS.values():
        assert detector.source in CITATIONS
        assert detector.function.__doc__
        parameters = inspect.signature(detector.function).parameters
        assert next(iter(parameters)) == "generation"
        assert parameters["generator"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.fixture(scope="module")
def exact():
    """A generation whose model is exact: 40 dimensions without the prompt, 5 with it."""
    model = TextToImage(tiny.pipeline("sd1 (eps)"))
    generation = generate_watched(model, PROMPT, [0, 1, 2], num_inference_steps=2)
    d = 256
    frame = torch.linalg.qr(torch.randn(d, 40, generator=seeded(3), dtype=torch.float64))[0].float()
    wide, narrow = frame @ frame.T, frame[:, :5] @ frame[:, :5].T

    def denoise(x, sigma, cond):  # a flat Gaussian of standard deviation 50 on the subspace
        p = narrow if cond is generation.cond else wide
        return (x.flatten(1) @ p).view_as(x) * (2500 / (2500 + sigma**2))

    held = TextToImage.__new__(TextToImage)
    held.__dict__ |= model.__dict__
    held.model = FunctionDenoiser(denoise, shape=model.shape)
    x, foreseen = (  # on both
        (torch.randn(3, 5, generator=seeded(k)) @ frame[:, :5].T).reshape(3, 4, 8, 8)
        for k in (4, 14)
    )
    first = replace(generation.first.settled(), predictions=(foreseen, foreseen, foreseen))
    return replace(generation, model=held, x=x, views=(first, *generation.views[1:]))


@pytest.mark.parametrize("place", ["", "_first"])
def test_flipd_counts_the_dimensions(exact, place):
    # One Rademacher probe of a projection of rank k in d has variance at most 2 k.
    noises = NOISES // 2 if place else NOISES
    error = 4 * (2 * 40 / (noises * PROBES)) ** 0.5
    for name, k in (("flipd_conditional", 5), ("flipd_unconditional", 40)):
        score = DETECTORS[name + place](exact, generator=seeded(5)) * (-1 if place else 1)
        assert (score + k).abs().max() < error


@pytest.mark.parametrize("place", ["", "_first"])
def test_losses_count_the_dimensions(exact, place):
    # A mean of chi-squares: variance 2 k / n.
    noises = LOSS_NOISES // 2 if place else LOSS_NOISES
    for name, k in (("loss_conditional", 5), ("loss_unconditional", 40)):
        score = DETECTORS[name + place](exact, generator=seeded(6)) * (-1 if place else 1)
        assert (score + k).abs().max() < 4 * (2 * k / noises) ** 0.5


def test_guidance_is_not_a_smaller_manifold(exact):
    # J_w = J_0 + w (J_c - J_0) has trace 40 - 35 w: negative for w = 7.5, which is what guided
    # FLIPD then says, and why it inverts.
    w = exact.guidance_scale
    score = DETECTORS["flipd_guided"](exact, generator=seeded(7))
    spread = (2 * (40 + w**2 * 35) / (NOISES * PROBES)) ** 0.5
    assert (score + (40 - 35 * w)).abs().max() < 4 * spread


@pytest.mark.parametrize("half", ["with", "without", "guided"])
def test_the_shell_answers_as_the_estimators_do(generations, half):
    generation, seed = generations["sd1 (eps)"], 12
    cond = generation.uncond if half == "without" else generation.cond
    model = Conditioned(generation.model.model, cond)
    if half == "guided":
        model = Guided(model, generation.guidance_scale, uncond=generation.uncond)
    around = shell(generation, SIGMA, seeded(seed))
    trace = flipd(
        model, generation.x, SIGMA, n_noises=NOISES, trace="hutchinson", n_probes=PROBES,
        generator=seeded(seed),
    )  # fmt: skip
    torch.testing.assert_close(around.trace(half), trace.lid, rtol=1e-4, atol=1e-3)
    loss = dsm_lid(model, generation.x, SIGMA, n_noises=LOSS_NOISES, generator=seeded(seed))
    torch.testing.assert_close(around.loss(half), loss.lid, rtol=1e-4, atol=1e-3)
    diagonal = around.diagonal(half).flatten(1).sum(1)
    torch.testing.assert_close(diagonal, trace.lid, rtol=1e-4, atol=1e-3)


def test_what_detectors_share_is_computed_once_and_priced_in_full(generations):
    generation = replace(generations["sd1 (eps)"])  # with nothing known yet
    names = ["flipd_conditional", "freedom_taken", "flipd_guided", "curvature_difference"]
    alone, paid, spent = {}, [], []
    for name in names:
        fresh = replace(generation)
        with counted(fresh.model) as cost:
            alone[name] = DETECTORS[name](fresh, generator=seeded(1))
        spent.append((cost.passes, cost.products))
    for name in names:
        generation.memo.reused.clear()
        with counted(generation.model) as cost:
            score = DETECTORS[name](generation, generator=seeded(1))
        torch.testing.assert_close(score, alone[name], rtol=0, atol=0)
        known = [sum(getattr(p, k) for p in generation.memo.reused) for k in ("passes", "products")]
        paid.append((cost.passes, cost.products))
        assert abs(spent[len(paid) - 1][0] - cost.passes - known[0]) <= 2  # rows that size a chunk
        assert spent[len(paid) - 1][1] == cost.products + known[1]
    rows = len(generation.x) * NOISES
    assert [p[1] for p in paid] == [rows * PROBES, rows * PROBES, 0, 0]
    assert [p[0] for p in paid[2:]] == [0, 0]


@pytest.mark.parametrize("name", ["freedom_taken", "freedom_taken_loss"])
def test_the_prompt_takes_35_dimensions(exact, name):
    # Common noises and probes: only the 35 directions between the subspaces vary.
    n = NOISES * PROBES if name == "freedom_taken" else LOSS_NOISES
    score = DETECTORS[name](exact, generator=seeded(8))
    assert (score - 35).abs().max() < 4 * (2 * 35 / n) ** 0.5


def test_the_curvature_map_sums_to_what_the_prompt_takes(exact):
    where = curvature_map(exact, generator=seeded(9))
    assert where.shape == exact.x.shape
    error = 4 * (2 * 35 / (NOISES * PROBES)) ** 0.5
    assert (where.flatten(1).sum(1) - 35).abs().max() < error


def test_the_cfg_norm_is_that_of_the_network(generations):
    generation = generations["sd1 (eps)"]
    model, view = generation.model, generation.views[0]
    pull = model.model(view.x, view.sigma, generation.cond) - model.model(
        view.x, view.sigma, generation.uncond
    )
    first = DETECTORS["cfg_norm_first"](generation)
    torch.testing.assert_close(
        first, pull.flatten(1).norm(dim=1) / view.sigma, rtol=1e-4, atol=1e-4
    )


def test_the_nearest_training_image_is_found_in_every_space(generations):
    run = generations["sd1 (eps)"]
    images, x, known = run.images, run.x, run.training
    step = torch.full_like(x[1:], 0.25)
    also = TrainingRows({}, known.embed).features(images.roll(1, 0)[:1], x[1:] + step)
    run = replace(run, training=TrainingRows(
        {k: torch.cat([known.spaces[k], also[k]]) for k in also}, known.embed
    ))  # fmt: skip
    latents = DETECTORS["nearest_latents"](run)
    torch.testing.assert_close(latents[1], torch.tensor(-0.25), rtol=0, atol=1e-5)
    assert latents[0] < -0.25
    pixels = DETECTORS["nearest_pixels"](run)
    assert pixels[1] == 0 > pixels[0]
    rows = torch.cat([known.spaces["embedding"], also["embedding"]])
    cosine = torch.cosine_similarity(known.embed(images)[:, None], rows[None], dim=2).amax(1)
    torch.testing.assert_close(DETECTORS["nearest_embedding"](run), cosine - 1, rtol=0, atol=1e-5)


def test_tiles_take_the_largest_difference():
    images = torch.zeros(2, 3, 16, 16)
    images[1, :, :4, :4] = 0.5  # one tile of sixteen
    expected = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    torch.testing.assert_close(tiled_distances(images), expected)


def test_equal_seeds_have_no_dimension(generations):
    generation = generations["sd1 (eps)"]
    same = replace(generation, x=generation.x[:1].repeat(2, 1, 1, 1))
    assert seed_dimension(same).abs().max() < 1e-4
    assert (seed_dimension(generation) < -0.01).all()


@pytest.fixture(scope="module")
def memorizing():
    """Two memorized prompts and two ordinary ones of the bundled pipeline."""
    from memfold.denoisers.adapters._pipeline import read_pipeline

    with (ASSETS / "prompts.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file, delimiter=";") if r["use"] == "test"]
    pipe = read_pipeline(ASSETS / "model", allow_pickle=False, revision=None)
    model = TextToImage(pipe)
    picked = [next(r for r in rows if r["type"] == k) for k in ("verbatim", "template")]
    picked += [next(r for r in rows if r["group"] == g) for g in ("control", "unseen")]
    options = {"num_inference_steps": 20, "guidance_scale": 3.0}
    return [generate_watched(model, r["caption"], [0, 1], **options) for r in picked]


@pytest.mark.parametrize(
    "name",
    [
        "cfg_norm", "cfg_norm_last", "bright_ending", "flipd_conditional", "loss_conditional",
        "freedom_taken", "freedom_taken_loss", "spectral_conditional", "curvature_difference",
        "tiled_l2", "seed_dimension", "flipd_conditional_first", "flipd_unconditional_first",
        "loss_conditional_first",
    ],
)  # fmt: skip
def test_memorized_prompts_score_higher(memorizing, name):
    scores = [DETECTORS[name](g, generator=seeded(10)).mean().item() for g in memorizing]
    assert min(scores[:2]) > max(scores[2:]), scores


def test_scales_are_those_of_the_latents(memorizing):
    # The bundled latents have variance 1, the scale at which sigma is meant.
    assert 0.5 < memorizing[2].x.std() < 2
    assert memorizing[0].model.schedule.sigma_min < SIGMA < memorizing[0].model.schedule.sigma_max


@pytest.mark.parametrize("name", [*DETECTORS, "verdict"])
def test_every_detector_stands_in_the_table_of_known_answers(name):
    lines = Path("docs/detectors.md").read_text("utf-8").splitlines()
    assert any(line.startswith(f"| {name} |") for line in lines)


@pytest.mark.parametrize("name", list(DETECTORS))
def test_every_detector_is_explained_in_a_paragraph_of_its_own(name):
    """And the paragraph says more than the table's title does."""
    text = Path("docs/detectors.md").read_text("utf-8")
    items = re.findall(r"^- `(\w+)`: (.*?)(?=\n- |\n\n)", text, re.DOTALL | re.MULTILINE)
    assert sorted(found for found, _ in items) == sorted(DETECTORS)
    (words,) = (said for found, said in items if found == name)
    assert len(words.split()) >= 4
