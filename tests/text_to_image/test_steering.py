"""Changing what a running pipeline predicts, or is conditioned on, changes that and no more."""

from __future__ import annotations

import functools

import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage, find_network
from memfold.sampling.monitor import Monitor
from memfold.sampling.steering import conditioned, steered
from memfold.sampling.trajectory import generate_watched
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import ALL, PROMPT

pytestmark = tiny.QUIET
OTHER = "the red cat"
W = 3.0


@functools.cache
def adapted(family):
    return TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))


def guided(family, w=W):
    if family == "flux":
        return {"true_cfg_scale": w, "negative_prompt": " "}
    return {"guidance_scale": w}


def plain(family):
    return {"true_cfg_scale": 1.0} if family == "flux" else {"guidance_scale": 1.0}


def run(family, prompt=PROMPT, seeds=(5, 6), steps=3, **options):
    return adapted(family).generate(
        prompt, seeds, num_inference_steps=steps, **options or guided(family)
    )


def close(a, b, rel=2e-3):
    torch.testing.assert_close(a, b, rtol=0, atol=rel * float(b.abs().max()))


# steered


@pytest.mark.parametrize("family", ALL)
def test_no_change_is_the_pipelines_own_run_bit_for_bit(family):
    seen = []
    with steered(adapted(family), lambda view: seen.append(view.index)):
        assert torch.equal(run(family), run_bare(family))
    assert seen[:3] == [0, 1, 2]


@functools.cache
def run_bare(family, prompt=PROMPT):
    return run(family, prompt)


@pytest.mark.parametrize("family", ALL)
def test_its_own_guided_prediction_gives_the_same_images(family):
    def own(view):
        return view.unconditional + W * (view.conditional - view.unconditional)

    options = guided(family)
    if family == "lumina2":  # it scales its guided prediction to the length of the other
        options["cfg_normalization"] = False
    with steered(adapted(family), own):
        x = run(family, **options)
    close(x, run(family, **options))
    assert not torch.equal(run_bare(family), run_bare(family, OTHER))


@pytest.mark.parametrize("family", ALL)
def test_the_conditional_prediction_is_a_run_without_guidance(family):
    """Both halves are set to it, so that the guidance scale drops out."""
    with steered(adapted(family), lambda view: view.conditional):
        x = run(family)
    close(x, run(family, **plain(family)))


@pytest.mark.parametrize("family", ALL)
def test_a_run_without_guidance_can_be_steered(family):
    with steered(adapted(family), lambda view: view.guided):
        x = run(family, **plain(family))
    close(x, run(family, **plain(family)))


@pytest.mark.parametrize("family", ["sd1 (eps)", "sd2 (v)", "sd1 Euler", "sdxl", "sana", "pixart"])
def test_the_wanted_point_is_where_the_run_ends(family):
    """A denoiser that always answers the same point leads to this point."""
    model = adapted(family)
    target = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))
    with steered(model, lambda view: target), Monitor(model, keep=True) as monitor:
        x = run(family, steps=20)
    for view in monitor.views:
        torch.testing.assert_close(view.guided, target, rtol=0, atol=2e-2 * max(1, view.sigma))
    last = monitor.views[-1].sigma
    assert float((x - target).abs().max()) < 5 * last + 1e-3


@pytest.mark.parametrize("family", ALL)
def test_the_monitor_sees_what_was_steered(family):
    model, asked = adapted(family), []

    def half(view):
        asked.append(0.5 * view.conditional)
        return asked[-1]

    with steered(model, half), Monitor(model, keep=True) as monitor:
        run(family)
    for view, wanted in zip(monitor.views, asked, strict=True):
        scale = float(wanted.abs().max() + view.x.abs().max())  # what D is rounded among
        torch.testing.assert_close(view.guided, wanted, rtol=0, atol=2e-5 * scale)


def test_single_images_can_be_steered_and_the_others_stay():
    def first(view):
        own = view.unconditional + W * (view.conditional - view.unconditional)
        return torch.cat([0 * own[:1], own[1:]])

    with steered(adapted("sd1 (eps)"), first):
        x = run("sd1 (eps)")
    close(x[1:], run_bare("sd1 (eps)")[1:])
    assert float((x[0] - run_bare("sd1 (eps)")[0]).abs().max()) > 0.1


@pytest.mark.parametrize("family", ["sd1 (eps)", "flux"])
def test_a_monitor_that_was_there_first_sees_it_too(family):
    model = adapted(family)
    with Monitor(model, keep=True) as monitor, steered(model, lambda view: 0.5 * view.conditional):
        run(family)
    assert len(monitor.views) == 3
    for view in monitor.views:
        scale = float(view.guided.abs().max()) + view.sigma
        torch.testing.assert_close(view.guided, 0.5 * view.conditional, rtol=0, atol=1e-4 * scale)
    assert "step" not in vars(model.pipe.scheduler)


def test_a_change_may_ask_the_model():
    model = adapted("sd1 (eps)")

    def own(view):
        return model.denoiser(PROMPT, guidance_scale=W)(view.x, view.sigma)

    with steered(model, own):
        x = run("sd1 (eps)")
    close(x, run_bare("sd1 (eps)"))


def test_a_change_of_another_shape_is_refused_before_the_step():
    model = adapted("sd1 (eps)")
    hooks = len(model.network._forward_hooks)
    with (
        pytest.raises(InputError, match=r"returned shape \(2, 2, 8, 8\).*same shape"),
        steered(model, lambda view: view.x[:, :2]),
    ):
        run("sd1 (eps)")
    assert len(model.network._forward_hooks) == hooks


# conditioned


@pytest.mark.parametrize("family", ALL)
def test_the_condition_of_another_prompt_is_a_run_of_that_prompt(family):
    model = adapted(family)
    with conditioned(model, model.condition(PROMPT)):
        x = run(family, OTHER)
    assert torch.equal(x, run_bare(family))
    assert not torch.equal(run_bare(family), run_bare(family, OTHER))


@pytest.mark.parametrize("family", ALL)
def test_its_own_condition_changes_nothing(family):
    model = adapted(family)
    with conditioned(model, model.condition(PROMPT)):
        assert torch.equal(run(family), run_bare(family))


@pytest.mark.parametrize("family", ALL)
def test_a_run_without_guidance_can_be_conditioned(family):
    model = adapted(family)
    with conditioned(model, model.condition(PROMPT)):
        x = run(family, OTHER, **plain(family))
    assert torch.equal(x, run(family, **plain(family)))


@pytest.mark.parametrize("family", ALL)
def test_one_image_too(family):
    """A batch of one image has two halves as well."""
    model = adapted(family)
    with conditioned(model, model.condition(PROMPT)):
        x = run(family, OTHER, seeds=(5,))
    assert torch.equal(x, run(family, seeds=(5,)))


@pytest.mark.parametrize("family", ALL)
def test_the_half_without_the_prompt_stays(family):
    """Guidance to the condition of the empty prompt is no guidance."""
    model = adapted(family)
    with conditioned(model, model.unconditional()), Monitor(model) as monitor:
        run(family)
    with Monitor(model) as bare:
        run(family)
    assert float(monitor.scores["cfg_norm"].max()) < 1e-2 * float(bare.scores["cfg_norm"].max())


def test_a_watched_generation_takes_a_condition():
    model = adapted("sd1 (eps)")
    found = generate_watched(
        model, OTHER, [5, 6], cond=model.condition(PROMPT), guidance_scale=W, num_inference_steps=3
    )
    assert torch.equal(found.x, run_bare("sd1 (eps)"))


def test_a_changed_condition_changes_the_images_a_little():
    model = adapted("sd1 (eps)")
    cond = model.condition(PROMPT).map(lambda name, leaf: leaf + 1e-4 * leaf.flip(1))
    with conditioned(model, cond):
        x = run("sd1 (eps)")
    assert 0 < float((x - run_bare("sd1 (eps)")).abs().max()) < 0.1


def test_a_condition_of_another_pipeline_is_refused():
    cond = adapted("sdxl").condition(PROMPT)
    with (
        pytest.raises(InputError, match="another kind of call"),
        conditioned(adapted("sd1 (eps)"), cond),
    ):
        run("sd1 (eps)")


def test_hooks_are_gone_after_a_refusal():
    test_a_condition_of_another_pipeline_is_refused()
    network = find_network(tiny.pipeline("sd1 (eps)"))
    assert not network._forward_pre_hooks
    assert not network._forward_hooks
