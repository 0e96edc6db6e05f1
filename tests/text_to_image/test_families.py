"""Families with their own guidance, batch, time or autoencoder, against their networks by hand."""

from __future__ import annotations

import functools

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from memfold.denoisers.adapters._calls import same
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.guidance import CFG, bound, capped, read_rule, rescaled, rules
from memfold.memorization.detectors.seeds import tiled_distances
from memfold.memorization.prompt_scores import SCORES
from memfold.sampling.monitor import Monitor
from memfold.sampling.trajectory import generate_watched
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import FLOWS, PROMPT, clean, noise_of
from tests.text_to_image.tiny_others import NEWER, OTHERS

pytestmark = tiny.QUIET
FAMILIES = (*NEWER, *OTHERS)
EMBEDDED = {"flux2": 4.0, "lcm": 8.5}  # guidance that the network is told, by default
SCALED = {"kontext": "true_cfg_scale", "qwen-image": "true_cfg_scale", "flux": "true_cfg_scale"}
RULES = {
    "kandinsky3": "c + w",
    "z-image": "c + w",
    "qwen-image": "the norm that c has",
    "lumina-next": "three channels",
}


@functools.cache
def adapted(family):
    return TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def recorded(family, **options):
    """The network's calls and what the scheduler is given, in a run of the pipeline itself."""
    model, calls, steps = adapted(family), [], []
    step = model.pipe.scheduler.step

    def hook(module, args, kwargs, output):
        calls.append((args, kwargs))

    def spy(made, t, sample, *args, **kwargs):
        steps.append((made.clone(), float(t), sample.clone(), len(calls)))
        return step(made, t, sample, *args, **kwargs)

    handle = model.network.register_forward_hook(hook, with_kwargs=True)
    model.pipe.scheduler.step = spy
    try:
        model.generate(PROMPT, [3], num_inference_steps=4, **options)
    finally:
        handle.remove()
        del model.pipe.scheduler.step
    return calls, steps


def switched(family, w):
    more = {"negative_prompt": " "} if family in SCALED else {}
    return {SCALED.get(family, "guidance_scale"): w} | more


def near(found, wanted, x, rel=1e-3):
    """Equal, as a share of |x - D|."""
    assert float((found - wanted).norm()) < rel * float((x - wanted).norm())


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_denoisers_are_what_the_pipeline_steps_with(family, w):
    """D under the prompt (w = 1, or no guidance at all) and the guided D, at each step of a run."""
    model, pipe = adapted(family), tiny.pipeline(family)
    if family in EMBEDDED and w != 1:
        pytest.skip("its guidance is distilled into the network")
    alone = 0.0 if family == "z-image" else w
    options = {} if family in EMBEDDED else switched(family, alone if w == 1 else w)
    _, steps = recorded(family, **options)
    d = model.denoiser(PROMPT) if w == 1 else model.denoiser(PROMPT, guidance_scale=w)
    checked = 0
    for made, t, z, _ in steps:
        signal, noise = noise_of(family, pipe, t if family in FLOWS else round(t))
        if signal < 1e-3:
            continue
        wanted = clean(family, z, made, signal, noise)
        near(d(z / signal, noise / signal), wanted, z / signal)
        checked += 1
    assert checked >= 3


def test_the_halves_are_what_the_network_answers_in_a_guided_run(family):
    model = adapted(family)
    if family in EMBEDDED:
        assert not model.has_unconditional
        return
    monitor = Monitor(model, keep=True)
    with monitor:
        model.generate(PROMPT, [3], num_inference_steps=3, **switched(family, 3.0))
    for view in monitor.views[1:]:
        under, without = model.denoiser(PROMPT), model.denoiser()
        near(view.conditional, under(view.x, view.sigma), view.x)
        near(view.unconditional, without(view.x, view.sigma), view.x)
        near(view.guided, model.denoiser(PROMPT, guidance_scale=3.0)(view.x, view.sigma), view.x)
        apart = float((view.conditional - view.unconditional).norm())
        off = float((under(view.x, view.sigma) - view.conditional).norm())
        assert off < 0.1 * apart


def test_prompts_reach_the_network(family):
    """Else nothing here would mean anything: a template may push the words out of the length."""
    model = adapted(family)
    one, other = model.condition(PROMPT), model.condition("red cat by the tree")
    assert same(one, other) > 0
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(model.model(x, 0.8, one), model.model(x, 0.8, other))


def test_the_rule_is_the_pipelines_own(family):
    rule = adapted(family).layout.rule
    assert (rule is None) == (family in EMBEDDED)
    if rule is not None:
        assert RULES.get(family, "u + w (c - u)") in rule.name
        assert rule.off == (0.0 if family in ("kandinsky3", "z-image") else 1.0)


def test_latents_go_through_the_pipelines_own_autoencoder(family):
    model = adapted(family)
    options = {"num_inference_steps": 2}
    x = model.generate(PROMPT, [0, 1], **options)
    image = model.generate(PROMPT, [0, 1], output_type="pt", **options)
    if family == "wan":
        image = image.transpose(1, 2)  # (b, frames, c, h, w) of the pipeline
    if family == "kandinsky3":
        image = image * 0.5 + 0.5  # the pipeline leaves tensors in [-1, 1]
        torch.testing.assert_close(model.decode(x), image, rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(model.decode(x).clamp(0, 1), image, rtol=0, atol=1e-5)
    assert tuple(x.shape[1:]) == model.shape == tuple(model.encode(image.clamp(0, 1)).shape[1:])


@pytest.mark.parametrize("family", ["flux2", "klein", "qwen-image", "wan", "sd3", "flux"])
def test_encoding_turns_the_decoders_scale_round(family):
    """The latent that the autoencoder is given comes back as x: scale, shift and packing."""
    model, given = adapted(family), []
    vae = model.pipe.vae
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    decode = vae.decode

    def spy(z, *args, **kwargs):
        given.append(z.clone())
        return decode(z, *args, **kwargs)

    vae.decode = spy
    try:
        model.decode(x)
    finally:
        del vae.decode
    z = given[0][:, :, 0] if family == "qwen-image" else given[0]
    torch.testing.assert_close(model.model.scaled(z), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", EMBEDDED)
def test_distilled_guidance_is_recorded_as_the_pipeline_passes_it(family):
    model, pipe, options = adapted(family), tiny.pipeline(family), tiny.OPTIONS.get(family, {})
    name = {"flux2": "guidance", "lcm": "timestep_cond"}[family]
    told = {}
    for w in (None, 2.5):
        given = {} if w is None else {"guidance_scale": w}
        calls, _ = recorded(family, **given)
        told[w] = calls[0][1][name]
        found = TextToImage(pipe, **given, **options).condition(PROMPT)
        assert torch.equal(found.kwargs[name], told[w])
        generation = generate_watched(
            model, PROMPT, [0], guidance_scale=w, num_inference_steps=2, attention=False
        )
        assert torch.equal(generation.cond.kwargs[name], told[w])
        view = generation.views[-1]
        again = model.model(view.x, view.sigma, generation.cond)
        near(again, view.conditional, view.x)
    assert not torch.equal(told[None], told[2.5])
    assert torch.equal(model.condition(PROMPT).kwargs[name], told[None])
    with pytest.raises(InputError, match="no unconditional half"):
        model.denoiser(PROMPT, guidance_scale=2.0)


@pytest.mark.parametrize("family", ["flux", "qwen-image", "kontext"])
def test_a_watched_run_records_the_guidance_that_it_ran(family):
    model = adapted(family)
    told = {"num_inference_steps": 2, "attention": False}
    guided = generate_watched(model, PROMPT, [0], guidance_scale=4.0, **told)
    assert guided.guidance_scale == 4.0
    assert all(view.has_guidance for view in guided.views)
    view = guided.views[-1]
    d = model.denoiser(PROMPT, guidance_scale=4.0)
    near(d(view.x, view.sigma), view.guided, view.x)
    plain = generate_watched(model, PROMPT, [0], **told)
    assert plain.guidance_scale == 1.0
    assert not any(view.has_guidance for view in plain.views)
    if family != "qwen-image":
        assert float(guided.cond.kwargs["guidance"]) == 3.5


@pytest.mark.parametrize("family", ["kandinsky3", "qwen-image", "lumina-next", "lumina2"])
def test_guided_scores_follow_the_rule(family):
    model = adapted(family)
    cond, uncond = model.conditions(PROMPT)
    x = 1.5 * torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(1))
    guided = model.denoiser(PROMPT, guidance_scale=3.0)(x, 0.8)
    wanted = (guided - x).flatten(1).norm(dim=1) / 0.8**2
    found = SCORES["guided_score_norm"](model.model, x, 0.8, cond, uncond, guidance_scale=3.0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_option_that_changes_the_rule_is_heeded():
    model = adapted("lumina2")
    assert "the norm that c has" in model.rule().name
    assert model.rule(cfg_normalization=False).name == CFG.name
    sd = adapted("sdxl")
    assert "0.7 at the standard deviation" in sd.rule(guidance_rescale=0.7).name
    told = {"num_inference_steps": 2, "attention": False, "guidance_rescale": 0.7}
    run = generate_watched(sd, PROMPT, [0], guidance_scale=3.0, **told)
    view = run.views[-1]
    d = sd.denoiser(PROMPT, guidance_scale=3.0, guidance_rescale=0.7)
    near(d(view.x, view.sigma), view.guided, view.x)
    plain = sd.denoiser(PROMPT, guidance_scale=3.0)(view.x, view.sigma)
    off = float((plain - view.guided).norm())
    assert off > 10 * float((d(view.x, view.sigma) - view.guided).norm())


# The rules by themselves


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("index", range(6))
def test_each_rule_is_read_off_what_it_makes(index, dtype):
    known = rules(rescale=0.4, cap=0.9)
    generator = torch.Generator().manual_seed(index)
    u = torch.randn(1, 4, 8, 8, generator=generator).to(dtype)
    c = u + 0.1 * torch.randn(1, 4, 8, 8, generator=generator).to(dtype)
    rule = known[index]
    made = rule.mix(c, u, 5.0)
    assert read_rule(c, u, made, 5.0, known) is rule


def test_what_no_rule_makes_is_not_read():
    c, u = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    known = rules()
    assert read_rule(c, u, 0.9 * (u + 5 * (c - u)), 5.0, known) is None
    assert read_rule(c, c, c, 5.0, known) is None  # every rule makes this
    assert read_rule(c, u, c.flatten(1), 5.0, known) is None


@pytest.mark.parametrize("rule", [rescaled(0.6), capped(0.8)], ids=["rescaled", "capped"])
def test_rules_carry_over_from_predictions_to_denoised_points(rule):
    """By the pipeline's own algebra, written out: D = (x - sigma F) / (1 + sigma) of a flow."""
    model = adapted("sd3")
    x, c, u = torch.randn(3, 2, *model.shape, generator=torch.Generator().manual_seed(2))
    sigma = 0.7
    f_c, f_u = (((x - (1 + sigma) * d) / sigma) for d in (c, u))
    wanted = (x - sigma * rule.mix(f_c, f_u, 3.0)) / (1 + sigma)
    found = bound(rule, model.predictor).denoised(c, u, 3.0, x, sigma)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# Sizes


@pytest.mark.parametrize("side", [32, 64, 48])
def test_the_noise_is_that_of_the_run_and_not_of_the_probes_size(side):
    """CogView 4 shifts its sigmas by the number of tokens; the pipeline's own list says how."""
    model = adapted("cogview4")
    pipe = model.pipe
    monitor, options = Monitor(model, keep=True), {"height": side, "width": side}
    with monitor:
        pipe(
            PROMPT,
            num_inference_steps=4,
            output_type="latent",
            **tiny.OPTIONS["cogview4"] | options,
        )
    own = pipe.scheduler.sigmas[:4].double()
    wanted = own / (1 - own)
    torch.testing.assert_close(
        torch.tensor(monitor.sigmas[1:], dtype=torch.float64), wanted[1:], rtol=1e-4, atol=0
    )
    there = TextToImage(pipe, **tiny.OPTIONS["cogview4"] | options)
    view = monitor.views[2]
    near(there.denoiser(PROMPT)(view.x, view.sigma), view.conditional, view.x)


@pytest.mark.parametrize("family", ["flux", "lumina2", "sd3"])
def test_dynamic_shifts_too(family):
    pipe, options = tiny.pipeline(family), tiny.OPTIONS.get(family, {})
    model = adapted(family)
    more = {"mu": 1.2} if family == "sd3" else {}
    scheduler = pipe.scheduler
    if family != "flux":
        pipe.scheduler = type(scheduler).from_config(scheduler.config, use_dynamic_shifting=True)
        model = TextToImage(pipe, **options | more)
    try:
        for side in (16, 32):
            monitor = Monitor(model)
            with monitor:
                pipe(
                    PROMPT, num_inference_steps=4, output_type="latent",
                    **options | more | {"height": side, "width": side},
                )  # fmt: skip
            own = pipe.scheduler.sigmas[1:4].double()
            found = torch.tensor(monitor.sigmas[1:], dtype=torch.float64)
            torch.testing.assert_close(found, own / (1 - own), rtol=1e-3, atol=0)
    finally:
        pipe.scheduler = scheduler


# Pictures beside the words


@functools.cache
def pictured():
    """Stable Diffusion with an IP-Adapter: its network is given a list, of a tensor a picture."""
    tokenizer = tiny.clip_tokenizer()
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=32,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = diffusers.StableDiffusionPipeline(
            vae=tiny.vae(),
            text_encoder=tiny.clip_text(tokenizer),
            tokenizer=tokenizer,
            unet=tiny.unet(),
            scheduler=tiny.vp(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
            safety_checker=None,
            feature_extractor=transformers.CLIPImageProcessorPil(
                size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
            ),
            image_encoder=transformers.CLIPVisionModelWithProjection(vision).eval(),
            requires_safety_checker=False,
        )
        weights, index = {}, 1
        for name, layer in pipe.unet.named_modules():
            if name.endswith("attn2"):
                for key in ("to_k_ip", "to_v_ip"):
                    shape = layer.to_k.weight.shape
                    weights[f"{index}.{key}.weight"] = 0.5 * torch.randn(shape)
                index += 2
        projection = {
            "proj.weight": torch.randn(4 * 32, 32),
            "proj.bias": torch.zeros(4 * 32),
            "norm.weight": torch.ones(32),
            "norm.bias": torch.zeros(32),
        }
        pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    picture = Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3))
    return pipe, {"ip_adapter_image": picture}


def test_an_ip_adapters_pictures_are_part_of_the_condition():
    pipe, options = pictured()
    model = TextToImage(pipe, **options)
    with Monitor(model, keep=True, attention=True) as monitor:
        model.generate(PROMPT, [0, 1], num_inference_steps=3, guidance_scale=3.0)
    assert monitor.blind is None
    assert bool(monitor.scores["bright_ending"].isfinite().all())
    for view in monitor.views[1:]:
        near(model.denoiser(PROMPT)(view.x, view.sigma), view.conditional, view.x)
        near(model.denoiser(PROMPT, guidance_scale=3.0)(view.x, view.sigma), view.guided, view.x)
    other = generate_watched(
        model, PROMPT, [0], cond=model.condition("a dog"), num_inference_steps=2, guidance_scale=3.0
    )
    view = other.views[-1]
    near(model.denoiser("a dog")(view.x, view.sigma), view.conditional, view.x)


def test_a_list_of_texts_is_exchanged_for_another():
    """Z-Image: the prompt's rows of the list are another prompt's, those without it stay."""
    model = adapted("z-image")
    run = generate_watched(
        model,
        PROMPT,
        [0, 1],
        cond=model.condition("a dog"),
        num_inference_steps=2,
        guidance_scale=3.0,
    )
    view = run.views[-1]
    near(model.denoiser("a dog")(view.x, view.sigma), view.conditional, view.x)
    near(model.denoiser()(view.x, view.sigma), view.unconditional, view.x)


def test_frames_count_as_tiles_do():
    """The largest distance over tiles of frames, by hand."""
    videos = torch.rand(3, 3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    found = tiled_distances(videos)
    square = (videos[0] - videos[1]).square().mean(0)
    tiles = square.unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    torch.testing.assert_close(found[0, 1], tiles.max().sqrt())
    torch.testing.assert_close(tiled_distances(videos[:, :, 0]), tiled_distances(videos[:, :, :1]))
