"""A guarded pipeline: the same images where nothing fires, none of the others where it does."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.memorization.band import Band
from memfold.memorization.calibrate import calibrate, weights_digest
from memfold.mitigation.guard import Guard, MemorizationWarning, Refused
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import ALL, PROMPT

pytestmark = tiny.QUIET


@functools.cache
def adapted(family):
    return TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))


def band(threshold, *, scores=("guided_score_norm",), images=2, **conditions):
    """A band of centre 0 and scale 1 at every noise level: the threshold is the limit."""
    one = dict.fromkeys(scores, (0.0, 0.0))
    two = dict.fromkeys(scores, (1.0, 1.0))
    return Band(scores, (1e-6, 1e9), one, two, threshold, 0.01, 99, images, conditions)


def call(pipe, seed=5, n=2, **more):
    return pipe(
        prompt=PROMPT,
        num_inference_steps=3,
        num_images_per_prompt=n,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **more,
    ).images


def own_options(family):
    return tiny.OPTIONS.get(family, {})


@pytest.mark.parametrize("family", ALL)
def test_what_does_not_fire_is_bit_identical(family):
    model = adapted(family)
    guarded = Guard(model, band(np.inf))
    with model.quiet():
        bare = call(model.pipe, **own_options(family))
        assert torch.equal(call(guarded), bare)
    assert guarded.last == "passed"
    assert "step" not in vars(model.pipe.scheduler)
    assert not model.network._forward_hooks


@pytest.mark.parametrize("family", ["sd1 (eps)", "sd3", "flux", "lumina2"])
def test_what_fires_is_stopped_at_its_step_and_refused(family):
    model, passes = adapted(family), []
    handle = model.network.register_forward_hook(lambda *_: passes.append(1))
    try:
        guarded = Guard(model, band(0.0), on_memorized="refuse")
        with model.quiet():
            call(model.pipe, **own_options(family))
        whole, before = len(passes), len(passes)
        with model.quiet(), pytest.raises(Refused) as caught:
            call(guarded)
    finally:
        handle.remove()
    assert 3 * (len(passes) - before) == whole  # the first of three steps and no other
    assert (caught.value.step, caught.value.bound, guarded.last) == (0, 0.0, "refused")
    assert caught.value.score > 0
    assert caught.value.reason == str(caught.value)
    assert isinstance(caught.value, RuntimeError)
    assert not model.network._forward_hooks
    assert "step" not in vars(model.pipe.scheduler)


def test_it_fires_at_the_first_step_above_the_limit():
    model = adapted("sd1 (eps)")
    from memfold.sampling.monitor import Monitor

    with model.quiet(), Monitor(model) as monitor:
        call(model.pipe)
    highest = monitor.scores["cfg_norm"].max(0).values
    for step in (0, 1, 2):  # the band has its limit just below the score of this step alone
        order = np.argsort(monitor.sigmas)
        centre = [1e9] * 3
        centre[step] = float(highest[step]) * (1 - 1e-6)
        sigmas = tuple(float(monitor.sigmas[i]) for i in order)
        made = Band(
            ("cfg_norm",), sigmas, {"cfg_norm": tuple(centre[i] for i in order)},
            {"cfg_norm": (1.0,) * 3}, 0.0, 0.01, 99, 2, {},
        )  # fmt: skip
        with model.quiet(), pytest.raises(Refused) as caught:
            call(Guard(model, made, on_memorized="refuse"))
        assert caught.value.step == step
        assert caught.value.score == pytest.approx(float(highest[step]))


def test_a_warning_leaves_the_images_as_they_are():
    model = adapted("sd1 (eps)")
    guarded = Guard(model, band(0.0), on_memorized="warn")
    with model.quiet():
        bare = call(model.pipe)
        with pytest.warns(MemorizationWarning, match="at step 1 guided_score_norm was"):
            assert torch.equal(call(guarded), bare)
    assert guarded.last == "warned"


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_the_mitigated_run_starts_from_the_callers_noise(given, many, monkeypatch):
    """With a mitigation that changes nothing, the second run gives the images of the bare one."""
    from memfold import mitigation

    def nothing(model, prompt, *, seeds, weights, generator, options):
        torch.randn(7)  # a mitigation that uses the global generator does not shift the noise
        return mitigation.Mitigation(model, "nothing", prompt, prompt, "", options=options)

    monkeypatch.setitem(mitigation.METHODS, "nothing", nothing)
    model = adapted("sd1 (eps)")
    guarded = Guard(model, band(1e-3, scores=("guided_score_norm",)), method="nothing")
    limits = iter([0.0] + [np.inf] * 9)
    monkeypatch.setattr(Band, "limit", lambda *_: next(limits))

    def drawn(pipe):
        torch.manual_seed(3)
        made = [torch.Generator().manual_seed(k) for k in (8, 9)]
        generator = (made if many else made[0]) if given else None
        return pipe(
            PROMPT, num_inference_steps=2, num_images_per_prompt=2, generator=generator,
            output_type="latent",
        ).images  # fmt: skip

    with torch.random.fork_rng(), model.quiet():
        assert torch.equal(drawn(guarded), drawn(model.pipe))
    assert guarded.last == "mitigated"
    assert guarded.mitigation.method == "nothing"


def test_what_still_fires_after_the_mitigation_is_refused():
    model = adapted("sd1 (eps)")
    guarded = Guard(model, band(0.0), method="random_words")
    with model.quiet(), pytest.raises(Refused, match="after the mitigation by random_words"):
        call(guarded)
    assert guarded.last == "refused"


@pytest.mark.parametrize("given", [False, True])
def test_rewriting_needs_no_weights_and_takes_an_attribution(given):
    from memfold.explain.attribution import attribute

    model = adapted("sd1 (eps)")
    weights = (lambda prompt: attribute(model, prompt, seeds=(1,))) if given else None
    guarded = Guard(model, band(0.0), method="rewrite", weights=weights)
    with model.quiet(), pytest.raises(Refused, match="after the mitigation by rewrite"):
        call(guarded)
    assert len(guarded.mitigation.prompt.split()) == len(PROMPT.split())


def test_a_steered_mitigation_cannot_hide_from_the_check():
    """LID guidance sets both halves alike; the monitor still sees the network's own."""
    from memfold import mitigate

    model = adapted("sd1 (eps)")
    with model.quiet():
        made = mitigate(
            model, PROMPT, method="lid_guidance", window=(0.0, 1e9), num_inference_steps=3
        )
        scores = made.generate((1, 2)).scores["cfg_norm"]
    assert (scores > 1e-4).all()


def test_a_band_of_something_else_is_refused():
    model = adapted("sd1 (eps)")
    digest = weights_digest(model.network)
    Guard(model, band(1.0, pipeline=model.name, digest=digest))
    with pytest.raises(InputError, match="calibrated with pipeline = Another"):
        Guard(model, band(1.0, pipeline="Another"))
    with pytest.raises(InputError, match="digest"):
        Guard(model, band(1.0, digest="blake2b:00"))
    with pytest.raises(InputError, match=r"guidance_scale = 3\.0, and here it is 7.5"):
        call(Guard(model, band(np.inf, guidance_scale=3.0)))  # the pipeline's own default
    with pytest.raises(InputError, match="calibrated on 1 a prompt"):
        call(Guard(model, band(np.inf, images=1)))
    with pytest.raises(InputError, match="shows no cfg_norm"), model.quiet():
        call(Guard(model, band(np.inf, scores=("cfg_norm",))), guidance_scale=1.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"on_memorized": "ignore"}, "mitigate, warn, refuse"),
        ({"method": "magic"}, "choose from reword"),
    ],
)
def test_unknown_options_are_refused_at_once(options, match):
    with pytest.raises(InputError, match=match):
        Guard(adapted("sd1 (eps)"), band(1.0), **options)


def test_calls_that_it_cannot_judge_are_refused():
    guarded = Guard(adapted("sd1 (eps)"), band(1.0))
    with pytest.raises(InputError, match="one prompt at a time, as a string, not list"):
        guarded(["a dog", "a cat"])
    with pytest.raises(InputError, match="takes no stepps"):
        guarded(PROMPT, stepps=3)


def test_calibration_can_go_on_and_knows_its_model():
    model = adapted("sd1 (eps)")
    prompts = [f"a photo of the {w}" for w in tiny.WORDS if len(w) > 1][:11]
    options = {"alpha": 0.1, "num_inference_steps": 2, "guidance_scale": 3.0}
    whole = calibrate(model, prompts, **options)
    assert (whole.n, whole.images, whole.scores) == (11, 1, ("cfg_norm", "guided_score_norm"))
    assert whole.conditions["guidance_scale"] == 3.0
    assert whole.conditions["digest"] == weights_digest(model.network)
    kept, runs = {}, []

    def keep(i, run):
        if i not in kept:
            if len(runs) == 4:
                raise KeyboardInterrupt
            runs.append(i)
            kept[i] = run()
        return kept[i]

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, prompts, keep=keep, **options)
    for round_ in range(2):
        runs.clear()
        if round_ == 0:
            with pytest.raises(KeyboardInterrupt):
                calibrate(model, prompts, keep=keep, **options)
        else:
            assert calibrate(model, prompts, keep=keep, **options) == whole
            assert runs == [8, 9, 10]
    with pytest.raises(InputError, match=r"too few for alpha = 0\.01; give 99"):
        calibrate(model, prompts)


def test_calibration_draws_each_prompt_with_seeds_of_its_own(monkeypatch):
    model, seen = adapted("sd1 (eps)"), {}
    real = TextToImage.generate

    def generate(self, prompt, seeds, **options):
        seen[prompt] = tuple(seeds)
        return real(self, prompt, seeds, **options)

    monkeypatch.setattr(TextToImage, "generate", generate)
    prompts = [f"a photo of the {w}" for w in tiny.WORDS if len(w) > 1][:10]
    made = calibrate(model, prompts, alpha=0.1, images=2, num_inference_steps=1)
    assert made.images == 2
    assert len(set().union(*seen.values())) == 20


def test_another_weight_makes_another_digest():
    network = copy.deepcopy(adapted("sd1 (eps)").network)
    before = weights_digest(network)
    assert before == weights_digest(copy.deepcopy(network))
    next(network.parameters()).data.view(-1)[0] += 1e-3
    assert weights_digest(network) != before
