"""Every mitigation: repeatable, nothing of the pipeline changed; and what each of them is."""

from __future__ import annotations

import functools

import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.mitigation import METHODS, mitigate
from memfold.sampling.trajectory import generate_watched
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import PROMPT

pytestmark = tiny.QUIET
RUN = {"num_inference_steps": 3, "guidance_scale": 3.0}
SEEDS = (4, 9)


@functools.cache
def adapted(family="sd1 (eps)"):
    return TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))


@functools.cache
def plain(family="sd1 (eps)"):
    return generate_watched(adapted(family), PROMPT, SEEDS, attention=False, **RUN)


def made(method, family="sd1 (eps)", **options):
    if method == "rewrite":
        options.setdefault("weights", {"anna": 2.0, "house": 0.1})
    if method == "away":
        options.setdefault("reference", plain(family).x)
    if method == "embedding":
        options = {"iterations": 2, "rounds": 1} | options
    return mitigate(adapted(family), PROMPT, method=method, seeds=SEEDS, **RUN | options)


@pytest.mark.parametrize("method", METHODS)
def test_repeatable_and_nothing_of_the_pipeline_changes(method):
    model = adapted()
    weights = {k: v.clone() for k, v in model.network.state_dict().items()}
    state = torch.get_rng_state()
    one, two = made(method), made(method)
    a, b = one.generate(SEEDS), two.generate(SEEDS)
    torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-6)
    assert (one.method, one.original) == (method, PROMPT)
    assert one.prompt == two.prompt
    assert one.description
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, weights[k]) for k, v in model.network.state_dict().items())
    assert not model.network._forward_hooks
    assert not model.network._forward_pre_hooks
    assert all(p.grad is None for p in model.network.parameters())
    again = generate_watched(model, PROMPT, SEEDS, attention=False, **RUN)
    assert torch.equal(again.x, plain().x)
    # Every method does something; an embedding that is free enough already is left alone, and a
    # random network knows nothing by heart (tests/mitigation/test_bundled.py has one that does).
    assert torch.equal(a.x, plain().x) == (method in ("embedding", "reword"))


@pytest.mark.parametrize("family", ["sd2 (v)", "sdxl", "sd3", "pixart", "sana", "hunyuan"])
@pytest.mark.parametrize("method", ["embedding", "lid_guidance", "away", "random_words"])
def test_other_families(family, method):
    found = made(method, family)
    x = found.generate(SEEDS).x
    assert x.isfinite().all()
    assert method == "embedding" or not torch.equal(x, plain(family).x)


def test_unknown_methods_and_options_are_refused():
    with pytest.raises(InputError, match="method = 'magic' is unknown; choose from reword"):
        made("magic")
    with pytest.raises(InputError, match="iteration: no option of method 'embedding'"):
        made("embedding", iteration=3)
    with pytest.raises(InputError, match="model: no option"):
        mitigate(adapted(), PROMPT, model=1)
    with pytest.raises(InputError, match="has no words"):
        mitigate(adapted(), "  ")


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("embedding", {"target": 1.5}, "take 0 < target < 1"),
        ("rewrite", {"weights": [("a", 1.0)]}, "weights are of 'a'"),
        ("reword", {"target": 1.5}, "take 0 < target < 1"),
        ("rewrite", {"n_words": 0}, "take 1 or more"),
        ("rewrite", {"temperature": 0.0}, "above 0"),
        ("random_words", {"kind": "emoji"}, "words, numbers, repeats"),
        ("padding", {"fill": "full"}, "empty, start, zero"),
        ("noise", {"target": 0.0}, "take 0 < target"),
    ],
)
def test_options_out_of_range_are_refused(method, options, match):
    with pytest.raises(InputError, match=match):
        made(method, **options)


def test_noise_that_may_stay_is_the_pipelines_own():
    """With target = 1 nothing has to move: the latents handed over give the images of the seeds."""
    for family in ("sd1 (eps)", "sd1 Euler", "sd2 (v)", "sdxl", "sd3", "sana"):
        x = made("noise", family, target=1.0).generate(SEEDS).x
        torch.testing.assert_close(x, plain(family).x, rtol=1e-3, atol=1e-3, msg=family)


def test_noise_lowers_the_first_steps_pull_and_keeps_its_norm():
    found = made("noise", target=0.5, iterations=20).generate(SEEDS)
    assert (found.first.cfg_norm < plain().first.cfg_norm).all()
    sizes = [g.first.x.flatten(1).norm(dim=1) for g in (found, plain())]
    torch.testing.assert_close(*sizes, rtol=1e-4, atol=0)
    assert len(made("noise").generate((1, 2, 3)).x) == 3  # made for the seeds of each run


def test_late_guidance_waits_for_a_rise_after_a_fall():
    from memfold.mitigation.schedule import late_guidance
    from memfold.sampling.view import StepView

    found = late_guidance(adapted(), PROMPT, seeds=(), options=RUN, before=1.0)
    change, held = found.steering(), []
    for k, norm in enumerate((3.0, 4.0, 2.0, 1.0, 1.5, 0.5)):  # rises, falls, its minimum, rises
        x, pull = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), norm)
        view = StepView(k, 1.0, x, (pull, torch.zeros_like(x), pull))
        out = change(view)
        held.append(out is not None and torch.equal(out, pull))
    assert held == [True, True, True, True, False, False]


def test_padding_changes_the_ends_and_no_word():
    model, cond = adapted(), adapted().condition(PROMPT)
    words = len(model.pipe.tokenizer(PROMPT).input_ids)  # with start and end
    own, empty = (c.kwargs["encoder_hidden_states"] for c in (cond, model.unconditional()))
    for fill, want in (("empty", empty), ("start", own[:, :1].expand_as(own)), ("zero", 0 * own)):
        new = made("padding", fill=fill).cond.kwargs["encoder_hidden_states"]
        assert torch.equal(new[:, : words - 1], own[:, : words - 1])
        assert torch.equal(new[:, words - 1 :], want[:, words - 1 :])
        kept = made("padding", fill=fill, keep_end=True).cond.kwargs["encoder_hidden_states"]
        assert torch.equal(kept[:, words - 1], own[:, words - 1])
        assert torch.equal(kept[:, words:], want[:, words:])
    with pytest.raises(InputError, match="cannot tell which places are padding"):
        mitigate(adapted("sd3"), PROMPT, method="padding")


def test_away_leaves_far_points_alone_and_lengthens_near_distances():
    far = made("away", reference=plain().x + 100).generate(SEEDS).x
    assert torch.equal(far, plain().x)
    near = made("away", radius=1e9, strength=0.5).generate(SEEDS).x
    assert (near - plain().x).flatten(1).norm(dim=1).min() > 0
    with pytest.raises(InputError, match="needs reference latents"):
        mitigate(adapted(), PROMPT, method="away")


def test_random_words_come_from_where_they_should():
    own = PROMPT.split()
    for kind in ("words", "numbers", "repeats"):
        new = made("random_words", kind=kind, n_words=3).prompt.split()
        rest = list(new)
        for word in own:
            rest.remove(word)  # all of the prompt is still there
        assert len(rest) == 3
        if kind == "numbers":
            assert all(word.isdigit() for word in rest)
        if kind == "repeats":
            assert set(rest) <= set(own)
    kept = iter(made("random_words").prompt.split())
    assert all(word in kept for word in own)  # in its order


@pytest.mark.parametrize("family", ["sd1 Euler", "sd1 (eps)", "sd3"])
def test_the_noise_of_a_run_draws_its_image_again(family):
    """The scheduler of the run itself says how loud its first noise is; a fresh one has another."""
    from memfold.mitigation.noise import _first

    model = TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))
    _, noise = _first(model, PROMPT, [3], {"num_inference_steps": 3})
    wanted = model.generate(PROMPT, [3], num_inference_steps=3)
    found = model.generate(PROMPT, [3], num_inference_steps=3, latents=noise)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
