"""Weights are norms of gradients, checked against differences; every family, every refusal."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from memfold.denoisers.adapters._calls import same
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.explain.attribution import attribute
from memfold.explain.states import keyed_noises
from memfold.memorization.prompt_scores import SCORES
from memfold.sampling.trajectory import generate_watched
from memfold.tensors import base_seed, prompt_generator
from memfold.types import InputError
from tests.text_to_image import tiny

pytestmark = tiny.QUIET
PROMPT = "a red dog"
SIGMAS_H, H = 1e-4, 1e-4  # steps of the differences, in x and in an embedding


@functools.cache
def adapted(family):
    return TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))


@functools.cache
def precise():
    """A pipeline of its own in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return TextToImage(tiny.FAMILIES["sd1 (eps)"]().to(torch.float64))


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def at(model, prompt, position, direction, h):
    """Condition with one token's embedding moved by h along one axis."""

    def move(module, args, out):
        out = out.clone()
        out[:, position, direction] += h
        return out

    table = model.pipe.text_encoder.get_input_embeddings()
    handle = table.register_forward_hook(move)
    try:
        return model.embedded(prompt).cond.map(lambda name, tensor: tensor.detach())
    finally:
        handle.remove()


def norm_by_differences(model, prompt, position, score):
    """Norms of the gradients of one or more scores with respect to one token's embedding."""
    width = model.pipe.text_encoder.config.hidden_size
    slopes = []
    for direction in range(width):
        up, down = (score(at(model, prompt, position, direction, h)) for h in (H, -H))
        slopes.append((up - down) / (2 * H))
    return np.linalg.norm(slopes, axis=0)


def test_cfg_norm_against_differences():
    model = precise()
    run = generate_watched(model, PROMPT, (4,), num_inference_steps=4, guidance_scale=3.0)
    found = attribute(model, PROMPT, score="cfg_norm", steps=(1, 3), generation=run)

    @torch.no_grad()
    def score(cond):
        values = []
        for view in (run.views[1], run.views[3]):
            pair = [model.model(view.x, view.sigma, c) for c in (cond, run.uncond)]
            values.append(float((pair[0] - pair[1]).norm()) / view.sigma)
        return np.array(values)

    for word in (0, 2):  # the start token comes first
        each = norm_by_differences(model, PROMPT, word + 1, score)
        assert each.min() > 0
        assert float(found.weights[word]) == pytest.approx(each.mean(), rel=1e-4)


def test_guided_flipd_against_differences_of_both_halves():
    model, prompt, w, step = precise(), "dog", 3.0, 2
    run = generate_watched(model, prompt, (4,), num_inference_steps=4, guidance_scale=w)
    found = attribute(
        model, prompt, score="-flipd", steps=(step,), guidance_scale=w, generation=run,
        generator=source(7), leave_one_out=True,
    )  # fmt: skip
    seed, sigma, x0 = base_seed(source(7)), run.views[step].sigma, run.x
    x = x0 + sigma * keyed_noises(x0, (4,), 1, seed)[:, 0]
    probes = 1 - 2 * (keyed_noises(x0, (4,), 4, seed + 1)[0] < 0).double()

    @torch.no_grad()
    def score(cond, halves=(True, True)):
        points = torch.cat([x, *(x + h * v[None] for v in probes for h in (SIGMAS_H, -SIGMAS_H))])
        without = model.model(points, sigma, run.uncond)
        guided = without + w * (model.model(points, sigma, cond) - without)
        if not halves[1]:  # the known defect: the unconditional half does not move with x
            guided = guided - (1 - w) * (without - without[:1])
        ups, downs = guided[1::2], guided[2::2]
        trace = ((ups - downs) * probes).flatten(1).sum(1).mean() / (2 * SIGMAS_H)
        return -float(trace + ((guided[0] - x[0]) ** 2).sum() / sigma**2)

    value = SCORES["-flipd"](
        model.model, x, sigma, run.cond, run.uncond, guidance_scale=w, probes=probes[None]
    )
    assert float(value) == pytest.approx(score(run.cond), rel=1e-6)
    assert abs(score(run.cond, halves=(True, False)) - float(value)) > 1e-3 * abs(float(value))
    assert float(found.weights[0]) == pytest.approx(
        norm_by_differences(model, prompt, 1, score), rel=1e-3
    )
    drop = score(run.cond) - score(model.condition(""))
    assert float(found.left_out[0]) == pytest.approx(drop, rel=1e-5)


def test_without_a_generator_noises_are_keyed_by_the_prompt():
    model, options = adapted("sd1 (eps)"), {"seeds": (3,), "num_inference_steps": 2}
    one, again = (attribute(model, PROMPT, **options) for _ in range(2))
    torch.testing.assert_close(one.weights, again.weights, rtol=0, atol=0)
    drawn = generate_watched(model, PROMPT, [3], num_inference_steps=2)
    keyed = prompt_generator(PROMPT)
    given = attribute(model, PROMPT, generation=drawn, generator=keyed)
    torch.testing.assert_close(one.weights, given.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", list(SCORES))
def test_a_seed_does_not_depend_on_its_company(score):
    model, options = adapted("sd1 (eps)"), {"num_inference_steps": 4, "score": score}
    together = attribute(model, PROMPT, seeds=(3, 8, 5), generator=source(), **options)
    alone = attribute(model, PROMPT, seeds=(8,), generator=source(), **options)
    torch.testing.assert_close(together.per_seed[1], alone.per_seed[0], rtol=2e-3, atol=1e-5)
    assert not torch.allclose(together.per_seed[1], together.per_seed[0], rtol=0.05)
    torch.testing.assert_close(together.weights, together.per_seed.mean(0))
    spread = together.per_seed.std(0) / 3**0.5
    torch.testing.assert_close(together.stderr, spread)
    assert alone.stderr.isnan().all()


def test_same_images_give_the_same_weights_in_any_batch():
    """Of one run, a part of the seeds gives that part of the weights, noises included."""
    from memfold.explain.gradients import embeddings, gradient_of
    from memfold.explain.states import States

    model = adapted("sd1 (eps)")
    run = generate_watched(model, PROMPT, (1, 2, 3), num_inference_steps=4)
    states = States(run, "-denoising_loss", None, None, 11)
    whole = torch.stack(list(states.scores(run.cond)))
    for i in range(3):
        part = torch.stack(list(states.scores(run.cond, slice(i, i + 1))))
        torch.testing.assert_close(part[:, 0], whole[:, i], rtol=1e-4, atol=1e-3)
    held = embeddings(model, PROMPT, "tokens")
    total = sum(
        gradient_of(value.sum(), held, 3) for value in states.scores(held.cond, slice(1, 2))
    )
    generator = torch.Generator().manual_seed(0)
    found = attribute(model, PROMPT, score="-denoising_loss", generation=run, generator=generator)
    other = States(run, "-denoising_loss", None, None, base_seed(source(0)))
    total = sum(gradient_of(v.sum(), held, 3) for v in other.scores(held.cond, slice(1, 2))) / 3
    torch.testing.assert_close(found.per_seed[1].double(), total, rtol=1e-4, atol=1e-5)


FAMILIES = ["sd1 (eps)", "sd2 (v)", "sdxl", "sd3", "flux", "pixart", "sana", "lumina2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_weighs_every_word(family):
    model = adapted(family)
    score = "-denoising_loss" if family == "flux" else "cfg_norm"
    found = attribute(
        model, "a red  dog", seeds=(0, 1), score=score, num_inference_steps=3, generator=source()
    )
    assert found.words == ("a", "red", "dog")
    assert found.spans == ((0, 1), (2, 5), (7, 10))
    assert (found.weights > 0).all()
    assert found.warnings == ()


def test_two_encoders_both_count():
    """With the second encoder's embeddings out of reach, only a part of the weight is left."""
    from memfold.explain.gradients import embeddings, gradient_of
    from memfold.explain.states import States

    model = adapted("sdxl")
    held = embeddings(model, PROMPT, "tokens")
    assert len(held.leaves) == 2
    run = generate_watched(model, PROMPT, (0,), num_inference_steps=3)
    state = States(run, "cfg_norm", (1,), None, 0)
    value = next(iter(state.scores(held.cond))).sum()
    both = gradient_of(value, held, 3)
    parts = [
        gradient_of(value, type(held)(held.cond, (leaf,), (owner,)), 3)
        for leaf, owner in zip(held.leaves, held.owners, strict=True)
    ]
    torch.testing.assert_close(both, parts[0] + parts[1])
    assert all((part > 0).all() for part in parts)
    found = attribute(model, PROMPT, score="cfg_norm", steps=(1,), generation=run)
    torch.testing.assert_close(found.weights.double(), both, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["sd1 (eps)", "sdxl", "sd3", "flux", "pixart"])
def test_with_respect_to_what_the_network_is_given(family):
    model = adapted(family)
    score = "-denoising_loss" if family == "flux" else "cfg_norm"
    found = attribute(
        model, PROMPT, seeds=(0,), score=score, wrt="prompt", num_inference_steps=3,
        generator=source(),
    )  # fmt: skip
    assert (found.weights > 0).all()


def test_a_word_that_did_not_reach_the_encoder_has_no_weight_and_is_named():
    prompt = " ".join(["red"] * 14 + ["dog", "cat"])
    found = attribute(adapted("sd1 (eps)"), prompt, seeds=(0,), score="cfg_norm",
                      num_inference_steps=2, leave_one_out=True)  # fmt: skip
    assert found.weights[14:].tolist() == [0.0, 0.0]
    assert (found.weights[:14] > 0).all()
    assert found.left_out[15] == pytest.approx(0.0, abs=1e-6)
    assert "2 words" in found.warnings[0]
    assert "'dog'" in found.warnings[0]


def test_the_rank_correlation_is_that_of_the_two_lists():
    from scipy.stats import spearmanr

    found = attribute(adapted("sd1 (eps)"), "a photo of the red dog", seeds=(0, 1),
                      num_inference_steps=3, leave_one_out=True, generator=source())  # fmt: skip
    wanted = spearmanr(found.weights.tolist(), found.left_out.tolist()).statistic
    assert found.rank_correlation == pytest.approx(wanted)
    wanted = spearmanr(found.weights.tolist(), found.masked.tolist()).statistic
    assert found.masked_correlation == pytest.approx(wanted)


@pytest.mark.parametrize("family", ["sd1 (eps)", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_a_masked_word_is_that_of_every_encoder_and_nothing_else(family):
    """A mask leaves the hooks as they were, and what stands in a word's place does not count."""
    from memfold.explain.left_out import masks

    model = adapted(family)
    one, other = (list(masks(model, text)) for text in ("a red dog", "a blue dog"))
    with torch.no_grad():
        assert same(one[1], other[1]) == 0  # the words that differ are masked
        assert same(one[0], other[0]) > 0
        assert same(one[1], model.condition("a red dog")) > 0
        assert same(model.embedded("a red dog").cond, model.condition("a red dog")) < 1e-5


def test_an_encoder_that_cuts_the_gradient_still_has_the_prompts_embedding(monkeypatch):
    """And the gradient with respect to the prompt's embedding asks for no graph through it."""
    model = TextToImage(tiny.pipeline("sd1 (eps)"))
    given = {"wrt": "prompt", "score": "cfg_norm", "seeds": (0,), "num_inference_steps": 3}
    wanted = attribute(model, PROMPT, **given).weights
    encoder, asked = model.pipe.text_encoder, []
    forward = encoder.forward

    def cut(*args, **kwargs):
        asked.append(torch.is_grad_enabled())
        with torch.no_grad():
            return forward(*args, **kwargs)

    monkeypatch.setattr(encoder, "forward", cut)
    assert torch.equal(attribute(model, PROMPT, **given).weights, wanted)
    assert asked
    assert not any(asked)
    with pytest.raises(InputError, match=r"cuts the gradient.*take wrt='prompt'"):
        attribute(model, PROMPT, **given | {"wrt": "tokens"})


def test_masking_falls_as_far_as_the_score_by_hand():
    model = precise()
    run = generate_watched(model, PROMPT, (4,), num_inference_steps=4, guidance_scale=3.0)
    found = attribute(model, PROMPT, score="cfg_norm", steps=(1,), generation=run,
                      leave_one_out=True)  # fmt: skip
    table = model.pipe.text_encoder.get_input_embeddings()

    def mask(module, args, out):
        out = out.clone()
        out[:, 2] = table.weight.mean(0)
        return out

    handle = table.register_forward_hook(mask)
    cond = model.embedded(PROMPT).cond
    handle.remove()
    view = run.views[1]
    with torch.no_grad():
        without = model.model(view.x, view.sigma, run.uncond)
        full, masked = (
            float((model.model(view.x, view.sigma, c) - without).norm()) / view.sigma
            for c in (run.cond, cond)
        )
    assert float(found.masked[1]) == pytest.approx(full - masked, rel=1e-4)


@pytest.mark.parametrize(
    ("family", "given", "words"),
    [
        ("sd1 (eps)", {"score": "lid"}, "score = 'lid' is unknown; choose from cfg_norm"),
        ("sd1 (eps)", {"wrt": "pixels"}, "wrt = 'pixels' is unknown"),
        ("sd1 (eps)", {"steps": (0, 9)}, r"steps = \[0, 9\]; choose from 0 to 2"),
        ("sd1 (eps)", {"steps": ()}, r"steps = \[\]"),
        ("sd1 (eps)", {"seeds": ()}, "seeds is empty"),
    ],
)
def test_what_cannot_be_done_is_said(family, given, words):
    with pytest.raises(InputError, match=words):
        attribute(adapted(family), PROMPT, num_inference_steps=3, **given)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_no_words(prompt):
    with pytest.raises(InputError, match="no words"):
        attribute(adapted("sd1 (eps)"), prompt)


def test_a_generation_of_another_prompt_is_refused():
    model = adapted("sd1 (eps)")
    run = generate_watched(model, "a cat", (0,), num_inference_steps=2)
    with pytest.raises(InputError, match="another prompt"):
        attribute(model, PROMPT, generation=run)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"score": "cfg_norm"}, "score = 'cfg_norm' needs an unconditional half"),
        ({"score": "guided_score_norm"}, "take '-denoising_loss' or '-flipd'"),
        ({"score": "-flipd", "guidance_scale": 3.0}, "guidance_scale = 3.0 needs an"),
    ],
)
def test_a_pipeline_without_an_unconditional_half(given, words):
    model = TextToImage(tiny.pipeline("flux"), **tiny.OPTIONS["flux"])
    model.layout = replace(model.layout, conditional=None)
    with pytest.raises(InputError, match=words):
        attribute(model, PROMPT, num_inference_steps=3, **given)
    for score in ("-denoising_loss", "-flipd"):
        found = attribute(model, PROMPT, seeds=(0,), num_inference_steps=2, score=score)
        assert (found.weights > 0).all()
