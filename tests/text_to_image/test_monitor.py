"""What is seen of a running generation, against the same numbers computed by hand."""

from __future__ import annotations

import copy
import functools
import warnings
from dataclasses import replace

import diffusers
import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage, find_network
from memfold.sampling.attention import AttentionWatch
from memfold.sampling.monitor import Monitor, MonitorWarning
from memfold.sampling.trajectory import generate_watched, has_cross_attention
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import ALL, BY_HAND, FLOWS, PROMPT, clean, noise_of, prediction

pytestmark = tiny.QUIET
CROSS = ("sd1 (eps)", "sd1 Euler", "sd1 PNDM", "sd2 (v)", "sdxl", "pixart", "sana", "hunyuan")
STEPS = 4


@functools.cache
def adapted(family):
    return TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))


def guided(family, w=4.0):
    if family == "flux":
        return {"true_cfg_scale": w, "negative_prompt": " "}
    more = {"lumina2": {"cfg_normalization": False}}
    return {"guidance_scale": w} | more.get(family, {})


@pytest.fixture(params=ALL)
def family(request):
    return request.param


def watched(family, seeds=(3,), prompt=PROMPT, w=4.0, **options):
    model = adapted(family)
    with Monitor(model, keep=True, **options) as monitor:
        x = model.generate(prompt, seeds, num_inference_steps=STEPS, **guided(family, w))
    return monitor, x


def test_images_are_those_of_a_run_without_it_bit_for_bit(family):
    model, pipe = adapted(family), tiny.pipeline(family)
    options = dict(num_inference_steps=STEPS, **guided(family))
    bare = model.generate(PROMPT, [3, 4], **options)
    monitor, x = watched(family, (3, 4), attention=family in CROSS)
    assert torch.equal(x, bare)
    assert len(monitor.views) == len(monitor.sigmas) >= STEPS
    assert torch.equal(model.generate(PROMPT, [3, 4], **options), bare)
    with Monitor(pipe) if family not in tiny.OPTIONS else Monitor(model):
        again = model.generate(PROMPT, [3, 4], **options)
    assert torch.equal(again, bare)


@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", "DDPMScheduler", "DDIM eta"])
def test_images_of_random_steps_too(kind):
    """The pipeline hands its generator on, since the step still shows that it takes one."""
    pipe, options = tiny.sd1(), {"num_inference_steps": 3}
    if kind == "DDIM eta":
        options["eta"] = 1.0
    else:
        config = {"clip_sample": False} if kind == "DDPMScheduler" else {}
        pipe.scheduler = tiny.vp(getattr(diffusers, kind), steps_offset=1, **config)
    model = TextToImage(pipe)
    torch.manual_seed(0)
    bare = model.generate(PROMPT, [3, 4], **options)
    torch.manual_seed(1)
    with Monitor(model):
        assert torch.equal(model.generate(PROMPT, [3, 4], **options), bare)


def test_scores_do_not_depend_on_the_batch(family):
    together, _ = watched(family, (3, 4, 5), attention=family in CROSS)
    alone, _ = watched(family, (4,), attention=family in CROSS)
    assert together.scores.keys() == alone.scores.keys() >= {"cfg_norm", "guided_score_norm"}
    for name, value in alone.scores.items():
        assert value.shape[0] == 1
        assert together.scores[name].shape == (3, value.shape[1])
        torch.testing.assert_close(together.scores[name][1:2], value, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("family", BY_HAND)
def test_views_are_the_network_asked_by_hand(family):
    pipe, monitor = tiny.pipeline(family), Monitor(adapted(family), keep=True)
    times, step = [], pipe.scheduler.step

    def spy(out, t, sample, *args, **kwargs):
        times.append(float(t))
        return step(out, t, sample, *args, **kwargs)

    pipe.scheduler.step = spy
    try:
        with monitor:
            adapted(family).generate(PROMPT, [3], num_inference_steps=STEPS, **guided(family))
    finally:
        del pipe.scheduler.step
    checked = 0
    for i, (view, t) in enumerate(zip(monitor.views, times, strict=True)):
        if not 0 < t < 990:  # pure noise has no sigma
            continue
        t = t if family in FLOWS else int(t)
        signal, noise = noise_of(family, pipe, t)
        assert view.sigma == pytest.approx(noise / signal, rel=1e-3)
        z = view.x * signal
        raw = [prediction(family, pipe, z, t, conditional=c) for c in (True, False)]
        one, other = (clean(family, z, r, signal, noise) for r in raw)
        worst = 1e-3 * float(one.abs().max())
        torch.testing.assert_close(view.conditional, one, rtol=0, atol=worst)
        torch.testing.assert_close(view.unconditional, other, rtol=0, atol=worst)
        torch.testing.assert_close(view.guided, other + 4.0 * (one - other), rtol=0, atol=9 * worst)
        by_hand = float((one - other).norm()) * signal / noise
        assert float(monitor.scores["cfg_norm"][0, i]) == pytest.approx(by_hand, rel=0.05, abs=1e-4)
        score = float((view.x - view.guided).norm()) / view.sigma**2
        assert float(monitor.scores["guided_score_norm"][0, i]) == pytest.approx(score, rel=1e-4)
        checked += 1
    assert checked >= 3


@pytest.mark.parametrize("family", ["sd1 (eps)", "sdxl", "pixart"])
def test_cfg_norm_is_the_distance_of_the_two_noises(family):
    """For a network of noises the score is |eps_c - eps_0| itself."""
    seen = []
    model = adapted(family)

    def hook(module, args, output):
        seen.append(output[0].chunk(2))

    handle = find_network(model.pipe).register_forward_hook(hook)
    try:
        monitor, _ = watched(family, (3, 4))
    finally:
        handle.remove()
    for i, (empty, text) in enumerate(seen):
        wanted = (text - empty)[:, :4].flatten(1).norm(dim=1)
        torch.testing.assert_close(monitor.scores["cfg_norm"][:, i], wanted, rtol=2e-3, atol=1e-4)


def test_no_pass_of_the_network_is_added(family):
    model, passes = adapted(family), []
    handle = find_network(model.pipe).register_forward_hook(lambda *_: passes.append(1))
    try:
        model.generate(PROMPT, [0], num_inference_steps=STEPS, **guided(family))
        bare = len(passes)
        watched(family, (0,), attention=family in CROSS)
        assert len(passes) == 2 * bare
    finally:
        handle.remove()


def test_a_run_without_guidance_has_no_cfg_norm(family):
    model = adapted(family)
    options = {"true_cfg_scale": 1.0} if family == "flux" else {"guidance_scale": 1.0}
    with Monitor(model, keep=True) as monitor:
        model.generate(PROMPT, [0, 1], num_inference_steps=2, **options)
    assert "cfg_norm" not in monitor.scores
    view = monitor.views[0]
    assert view.unconditional is None
    assert bool(view.cfg_norm.isnan().all())
    assert torch.equal(view.guided, view.conditional)


def test_the_same_monitor_twice_forgets_the_first_run():
    model = adapted("sd1 (eps)")
    monitor = Monitor(model, keep=True)
    for n, seeds in ((2, [0]), (3, [1, 2])):
        with monitor:
            model.generate(PROMPT, seeds, num_inference_steps=n)
        assert len(monitor.views) == n
        assert monitor.scores["cfg_norm"].shape == (len(seeds), n)


def test_what_on_step_raises_ends_the_run_and_leaves_no_hooks(family):
    class Enough(Exception):
        pass

    model, indices = adapted(family), []

    def on_step(view):
        indices.append(view.index)
        if view.index == 1:
            raise Enough

    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules()]
    with pytest.raises(Enough), Monitor(model, on_step=on_step):
        model.generate(PROMPT, [0], num_inference_steps=STEPS)
    assert indices == [0, 1]
    assert "step" not in vars(model.pipe.scheduler)
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.network.modules()]
    assert after == hooks


def test_an_error_of_on_step_is_not_taken_for_the_pipelines():
    model = adapted("sd1 (eps)")

    def on_step(view):
        raise InputError("stop: the prompt is memorized")

    with (
        pytest.raises(InputError, match=r"^stop: the prompt is memorized$"),
        Monitor(model, on_step=on_step),
    ):
        model.generate(PROMPT, [0], num_inference_steps=2)


def test_on_step_may_ask_the_model_and_encode_prompts(family):
    """Its calls are not taken for the run's, and do not change the images."""
    model, norms = adapted(family), []
    sigma_max = model.model.sigma_max

    def on_step(view):
        d = model.denoiser(f"the dog {view.index}")  # a new prompt: the pipeline runs in the middle
        norms.append(float(d(view.x, min(view.sigma, sigma_max)).norm()))

    options = dict(num_inference_steps=3, **guided(family))
    bare = model.generate(PROMPT, [7], **options)
    with Monitor(model, on_step=on_step, attention=family in CROSS) as monitor:
        x = model.generate(PROMPT, [7], **options)
    assert torch.equal(x, bare)
    assert len(norms) == len(monitor.sigmas) >= 3


def test_alignment_is_a_cosine_between_scores():
    monitor, _ = watched("sd1 (eps)", (3, 4))
    for view in monitor.views:
        s_c, s_0 = (
            ((d - view.x) / view.sigma**2).flatten(1).double()
            for d in (view.conditional, view.unconditional)
        )
        wanted = torch.nn.functional.cosine_similarity(s_c - s_0, s_0)
        torch.testing.assert_close(view.alignment.double(), wanted, rtol=1e-3, atol=1e-3)


# Attention


def probabilities(family, seeds):
    """The softmax of each cross-attention, by diffusers' own slow processor, in a run."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    pipe, found = tiny.pipeline(family), []
    layers = [m for n, m in find_network(pipe).named_modules() if n.endswith("attn2")]
    scores = Attention.get_attention_scores
    kept = {layer: layer.processor for layer in layers}

    def spy(self, query, key, mask=None):
        p = scores(self, query, key, mask)
        if self in kept:
            found.append(p.unflatten(0, (-1, self.heads)))
        return p

    Attention.get_attention_scores = spy
    for layer in layers:
        layer.processor = AttnProcessor()
    try:
        adapted(family).generate(PROMPT, seeds, num_inference_steps=1, **guided(family))
    finally:
        Attention.get_attention_scores = scores
        for layer, processor in kept.items():
            layer.processor = processor
    return found  # (2 b, heads, places, tokens) a layer


@pytest.mark.parametrize("family", ["sd1 (eps)", "sd2 (v)", "sdxl", "pixart"])
def test_entropy_and_end_maps_are_those_of_the_softmax(family):
    layers = [p.chunk(2)[1] for p in probabilities(family, [3, 4])]
    model, pipe = adapted(family), tiny.pipeline(family)
    with Monitor(model, attention=True, keep=True) as monitor:
        model.generate(PROMPT, [3, 4], num_inference_steps=1, **guided(family))
    view = monitor.views[0]
    mean = [p.mean(1) for p in layers]  # over heads
    entropies = [-(p * p.log().nan_to_num(neginf=0)).sum(-1).mean(-1) for p in mean]
    wanted = torch.stack(entropies).mean(0)
    torch.testing.assert_close(view.attention_entropy, wanted, rtol=1e-4, atol=1e-5)
    tokens = pipe.tokenizer(PROMPT, padding="max_length", max_length=tiny.LENGTH).input_ids
    end = tokens.index(pipe.tokenizer.eos_token_id)
    maps = []
    for p in mean:
        side = round(p.shape[1] ** 0.5)
        maps.append(p[:, :, end].reshape(2, 1, side, side))
    size = max(m.shape[-1] for m in maps)
    maps = [torch.nn.functional.interpolate(m, (size, size), mode="bilinear") for m in maps]
    wanted = torch.stack(maps).mean(0)[:, 0]
    torch.testing.assert_close(view.end_attention, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["sana", "hunyuan"])
def test_queries_and_keys_are_those_of_other_processors(family, monkeypatch):
    """Where a processor norms or turns queries and keys, so does the watch."""
    import torch.nn.functional as F

    model, seen = adapted(family), []
    layers = [m for n, m in find_network(model.pipe).named_modules() if n.endswith("attn2")]
    fused, inside = F.scaled_dot_product_attention, []

    def spy(q, k, v, attn_mask=None, *args, **kwargs):
        if inside:
            logits = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
            logits = logits if attn_mask is None else logits + attn_mask
            p = logits.softmax(-1).mean(1).chunk(2)[1]
            seen.append(-(p * p.clamp_min(1e-12).log()).sum(-1).mean(1))
        return fused(q, k, v, attn_mask, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    handles = [m.register_forward_pre_hook(lambda *_: inside.append(1)) for m in layers]
    handles += [m.register_forward_hook(lambda *_: inside.clear()) for m in layers]
    try:
        with Monitor(model, attention=True) as monitor:
            model.generate(PROMPT, [3, 4], num_inference_steps=1, **guided(family))
    finally:
        for handle in handles:
            handle.remove()
    found = monitor.scores["attention_entropy"][:, 0]
    assert len(seen) == len(layers)
    torch.testing.assert_close(found, torch.stack(seen).mean(0), rtol=1e-4, atol=1e-5)


def test_bright_ending_weighs_the_difference_by_the_end_map():
    monitor, _ = watched("sd1 (eps)", (3, 4), attention=True)
    view = monitor.views[1]
    mask = view.end_attention
    if mask.shape[1:] != view.x.shape[2:]:
        mask = torch.nn.functional.interpolate(
            mask[:, None], size=view.x.shape[2:], mode="bilinear"
        )[:, 0]
    eps = (view.conditional - view.unconditional) / view.sigma
    weighted = (eps * mask[:, None]).flatten(1).norm(dim=1)
    torch.testing.assert_close(view.bright_ending, weighted / mask.flatten(1).mean(1))
    even = replace(view, end_attention=torch.full_like(view.end_attention, 0.2))
    torch.testing.assert_close(even.bright_ending, even.cfg_norm)


@pytest.mark.parametrize("family", ["sana", "hunyuan"])
def test_texts_without_a_known_end_have_no_end_map(family):
    model = adapted(family)
    with Monitor(model, attention=True, keep=True) as monitor:
        model.generate(PROMPT, [3], num_inference_steps=1, **guided(family))
    if family == "hunyuan":  # two texts are joined: the keys are not the first one's tokens
        assert monitor.views[0].end_attention is None
        assert "bright_ending" not in monitor.scores
    assert monitor.scores["attention_entropy"].shape == (1, 1)


@pytest.mark.parametrize("family", ["sd3", "flux", "lumina2", "cogview4", "chroma", "aura"])
def test_networks_without_cross_attention_say_so(family):
    assert not has_cross_attention(adapted(family))
    with pytest.raises(InputError, match=r"no cross-attention layers.*leave attention=True out"):
        AttentionWatch(adapted(family))


def test_calls_outside_a_run_are_not_its_own():
    model = adapted("sd1 (eps)")
    scheduler, z = model.pipe.scheduler, torch.zeros(1, 4, 8, 8)
    scheduler.set_timesteps(2)
    with Monitor(model) as monitor:
        model.network(z, 5, encoder_hidden_states=torch.zeros(1, 16, 32))
        scheduler.step(z, scheduler.timesteps[0], z)
    assert (monitor.sigmas, monitor.scores, monitor.blind) == ([], {}, None)


def test_a_watched_generation_is_all_of_it(family):
    model = adapted(family)
    found = generate_watched(model, PROMPT, [3, 4], guidance_scale=4.0, num_inference_steps=2)
    extra = {k: v for k, v in guided(family).items() if k == "negative_prompt"}
    name = "true_cfg_scale" if family == "flux" else "guidance_scale"
    x = model.generate(PROMPT, [3, 4], num_inference_steps=2, **{name: 4.0} | extra)
    if family != "flux":  # which takes no guidance at all without a negative prompt
        assert torch.equal(found.x, x)
        assert found.views[0].unconditional is not None
    assert found.seeds == (3, 4)
    assert found.images.shape[:2] == (2, 3)
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1


def test_a_view_means_the_same_before_and_after_it_is_settled(family):
    """Scores come from predictions where that is cheaper, from D where a view was kept."""
    model, seen = adapted(family), []
    with Monitor(model, keep=True, on_step=seen.append) as monitor:
        model.generate(PROMPT, [3, 4], num_inference_steps=3, **guided(family))
    for lazy, kept in zip(seen, monitor.views, strict=True):
        assert kept.has_guidance == lazy.has_guidance == (kept.unconditional is not None)
        for name in ("x", "conditional", "guided"):
            torch.testing.assert_close(getattr(lazy, name), getattr(kept, name), rtol=0, atol=0)
        for name in ("cfg_norm", "guided_score_norm"):
            # D - x cancels where sigma is small: its rounding is |x| eps over sigma or sigma^2
            size = float(kept.x.flatten(1).norm(dim=1).max()) * 1e-6
            power = 1 if name == "cfg_norm" else 2
            torch.testing.assert_close(
                getattr(lazy, name), getattr(kept, name), rtol=1e-4,
                atol=size / kept.sigma**power, equal_nan=True,
            )  # fmt: skip


# Blind


def watched_call(pipe, model, n=1, **options):
    """Draw without a monitor and with one; return it, and whether the images are the same."""

    def draw():
        return pipe(
            PROMPT, num_inference_steps=STEPS, num_images_per_prompt=n, output_type="latent",
            generator=torch.Generator().manual_seed(0), **options,
        ).images  # fmt: skip

    bare = draw()
    with Monitor(model, keep=True, attention=has_cross_attention(model)) as monitor:
        seen = draw()
    return monitor, torch.equal(seen, bare)


def assert_blind_from(monitor, step, n=1):
    assert monitor.blind
    assert {"cfg_norm", "guided_score_norm"} <= monitor.scores.keys()
    for name, value in monitor.scores.items():
        assert value.shape == (n, STEPS), name
        assert bool(value[:, step:].isnan().all()), name
        assert bool(value[:, :step].isfinite().all()), name
    assert [s == s for s in monitor.sigmas] == [i < step for i in range(STEPS)]
    assert len(monitor.views) == step


def test_three_calls_a_step_make_it_blind_and_no_more():
    """Stable Diffusion 3 asks once more where it leaves layers out."""
    pipe = tiny.pipeline("sd3")
    pipe.set_progress_bar_config(disable=True)
    options = {
        "skip_guidance_layers": [0], "skip_layer_guidance_start": 0.3,
        "skip_layer_guidance_stop": 1.0, "guidance_scale": 4.0,
    }  # fmt: skip
    with pytest.warns(MonitorWarning, match="from step . on the monitor is blind.*run goes on"):
        monitor, same = watched_call(pipe, adapted("sd3"), **options, **tiny.OPTIONS["sd3"])
    assert same
    step = sum(s == s for s in monitor.sigmas)
    assert 0 < step < STEPS
    assert_blind_from(monitor, step)


def unreadable(pipe, model, monkeypatch, case):
    """Break what the monitor reads, and not the run."""
    if case == "own code":
        monkeypatch.setattr("memfold.sampling.monitor.view_of", lambda *_, **__: 1 / 0)
    if case == "attention":
        monkeypatch.setattr("memfold.sampling.attention._weights", lambda *_: 1 / 0)
    if case == "another network":
        twin = copy.deepcopy(pipe.unet)
        monkeypatch.setitem(vars(pipe), "unet", twin)


@pytest.mark.parametrize("case", ["own code", "attention", "another network"])
@pytest.mark.parametrize("n", [1, 3])
def test_what_it_cannot_read_never_ends_a_run(case, n, monkeypatch):
    pipe = tiny.sd1()
    pipe.set_progress_bar_config(disable=True)
    model = TextToImage(pipe)
    unreadable(pipe, model, monkeypatch, case)
    with pytest.warns(MonitorWarning) as told:
        monitor, same = watched_call(pipe, model, n)
    assert same
    assert len(told) == 1
    assert_blind_from(monitor, 0, n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning must not end it either
        assert watched_call(pipe, model, n)[1]


def test_a_run_of_another_size_in_the_same_block_makes_it_blind():
    model, told = adapted("sd1 (eps)"), "a step of 2 images follows one of 1"
    with Monitor(model) as monitor:
        model.generate(PROMPT, [0], num_inference_steps=2)
        with pytest.warns(MonitorWarning, match=told):
            model.generate(PROMPT, [0, 1], num_inference_steps=2)
    assert monitor.scores["cfg_norm"].isnan().tolist() == [[False, False, True, True]]


def test_a_batch_of_prompts_is_read():
    pipe, model = tiny.pipeline("sd1 (eps)"), adapted("sd1 (eps)")
    prompts = [PROMPT, "the dog", "a quiet house"]
    with Monitor(model) as monitor:
        pipe(prompts, num_inference_steps=2, output_type="latent")
    assert monitor.blind is None
    assert monitor.scores["cfg_norm"].shape == (3, 2)


def test_a_compiled_network_is_read():
    pipe = tiny.sd1()
    pipe.set_progress_bar_config(disable=True)
    model = TextToImage(pipe)
    pipe.unet.compile(backend="eager")
    pipe(PROMPT, num_inference_steps=1, output_type="latent")
    monitor, same = watched_call(pipe, model)
    assert same
    assert monitor.blind is None
    assert monitor.scores["cfg_norm"].shape == (1, STEPS)


def test_attention_beside_an_ip_adapter_is_that_to_the_text():
    """Its layers are given the text and the images as a pair."""
    from memfold.sampling import attention

    layer = AttentionWatch(adapted("sd1 (eps)")).layers[0]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 16, layer.to_q.in_features, generator=generator)
    text = torch.randn(1, 10, layer.to_k.in_features, generator=generator)
    images = [torch.randn(1, 1, 4, layer.to_k.in_features, generator=generator)]
    alone = attention._weights(layer, (hidden,), {"encoder_hidden_states": text})
    both = attention._weights(layer, (hidden,), {"encoder_hidden_states": (text, images)})
    assert torch.equal(alone, both)
