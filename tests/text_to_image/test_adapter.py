"""What a pipeline's denoiser says, against its network asked by hand, and what is refused."""

from __future__ import annotations

import functools
import inspect

import diffusers
import pytest
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage, find_network
from memfold.memorization.prompt_scores import SCORES
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import (
    ALL,
    BY_HAND,
    FLOWS,
    PROMPT,
    TWO_CALLS,
    clean,
    denoised,
    noise_of,
)

pytestmark = tiny.QUIET


@functools.cache
def adapted(family):
    return TextToImage(tiny.pipeline(family), **tiny.OPTIONS.get(family, {}))


def points(model, n, sigma, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *model.shape, generator=generator)
    return x * (1 + sigma**2) ** 0.5


def close(a, b, *, rel=2e-4):
    """Equal up to rounding, as a share of the largest value."""
    torch.testing.assert_close(a, b, rtol=0, atol=rel * float(b.abs().max()))


def switched(family, w):
    return {"true_cfg_scale" if family == "flux" else "guidance_scale": w}


@pytest.fixture(params=ALL)
def family(request):
    return request.param


@pytest.mark.parametrize("family", BY_HAND)
@pytest.mark.parametrize("t", [20, 300, 750])
def test_denoiser_is_the_network_asked_by_hand(family, t):
    model, pipe = adapted(family), tiny.pipeline(family)
    signal, noise = noise_of(family, pipe, t)
    x = points(model, 3, noise / signal)
    for conditional, d in ((True, model.denoiser(PROMPT)), (False, model.denoiser())):
        wanted = denoised(family, pipe, x, t, conditional=conditional)
        close(d(x, noise / signal), wanted)


@pytest.mark.parametrize("family", BY_HAND)
def test_both_halves_differ_and_neither_is_taken_for_the_other(family):
    model, pipe = adapted(family), tiny.pipeline(family)
    signal, noise = noise_of(family, pipe, 500)
    x = points(model, 1, noise / signal)
    one, other = (denoised(family, pipe, x, 500, conditional=c) for c in (True, False))
    apart = float((one - other).abs().max())
    found = model.denoiser(PROMPT)(x, noise / signal)
    assert float((found - one).abs().max()) < 0.1 * apart


def test_guided_denoiser_is_what_the_pipeline_hands_its_scheduler(family):
    model, pipe, w = adapted(family), tiny.pipeline(family), 3.0
    seen, handed = [], []
    step = pipe.scheduler.step
    net = find_network(pipe)

    def hook(module, args, kwargs, output):
        z = args[0] if args else kwargs["hidden_states"]
        seen.append(z.detach().clone())

    def spy(prediction, t, sample, *args, **kwargs):
        handed.append((prediction.clone(), round(float(t), 3), seen[-1][: len(sample)]))
        return step(prediction, t, sample, *args, **kwargs)

    handle, pipe.scheduler.step = net.register_forward_hook(hook, with_kwargs=True), spy
    try:
        model.generate(PROMPT, [3], num_inference_steps=4, **switched(family, w), **plainly(family))
    finally:
        handle.remove()
        del pipe.scheduler.step
    guided = model.denoiser(PROMPT, guidance_scale=w)
    checked = 0
    for prediction, t, z in handed:
        if family in FLOWS:
            signal, noise = noise_of(family, pipe, t)
        else:
            signal, noise = noise_of(family, pipe, round(t))
        if signal < 1e-6 or (family not in FLOWS and t != round(t)):
            continue
        wanted = clean(family, z, prediction, signal, noise)
        close(guided(z / signal, noise / signal), wanted, rel=1e-3)
        checked += 1
    assert checked >= 3


def plainly(family):
    return {"negative_prompt": " "} if family == "flux" else {}


def test_guidance_of_one_is_the_prompt_and_of_nought_the_model_without_it(family):
    model = adapted(family)
    x = points(model, 2, 1.3)
    close(model.denoiser(PROMPT, guidance_scale=1.0)(x, 1.3), model.denoiser(PROMPT)(x, 1.3))
    if model.layout.rule.extra == 0:  # lumina2 brings it to the norm of the other half
        close(model.denoiser(PROMPT, guidance_scale=0.0)(x, 1.3), model.denoiser()(x, 1.3))


def test_layout_is_what_the_family_does(family):
    layout = adapted(family).layout
    assert layout.calls == (2 if family in TWO_CALLS else 1)
    assert layout.conditional == (0 if family in TWO_CALLS else 1)
    assert (family in {"pixart", "hunyuan"}) == ("half" in layout.output)
    assert (family == "lumina2") == ("negative" in layout.output)
    assert (layout.louder == 1) != (family == "cogview4")


def test_a_point_does_not_depend_on_its_batch(family):
    d = adapted(family).denoiser(PROMPT, guidance_scale=2.0)
    x = points(adapted(family), 3, 0.8)
    sigma = torch.tensor([0.5, 0.8, 2.0])
    together = d(x, sigma)
    for i in range(3):
        close(d(x[i : i + 1], float(sigma[i])), together[i : i + 1], rel=1e-5)


def test_the_jacobian_flows_and_parameters_stay_out(family):
    model = adapted(family)
    d = model.denoiser(PROMPT, guidance_scale=2.0)
    x = points(model, 1, 0.8).requires_grad_()
    v = points(model, 1, 0.8, seed=1)
    (product,) = torch.autograd.grad(d(x, 0.8), x, v)
    h = 1e-2
    u = points(model, 1, 0.0, seed=2)
    with torch.no_grad():
        rise = (d(x + h * u, 0.8) - d(x - h * u, 0.8)) / (2 * h)
    expected = float((rise * v).sum())
    assert float((product * u).sum()) == pytest.approx(expected, rel=0.02, abs=0.02)
    assert all(p.grad is None for p in model.network.parameters())


def test_latents_go_through_the_pipelines_own_vae(family):
    model, pipe = adapted(family), tiny.pipeline(family)
    x = model.generate(PROMPT, [0, 1], num_inference_steps=2)
    image = model.generate(PROMPT, [0, 1], num_inference_steps=2, output_type="pt")
    torch.testing.assert_close(model.decode(x).clamp(0, 1), image, rtol=0, atol=1e-5)
    assert x.shape[1:] == model.shape == tuple(model.encode(image).shape[1:])
    assert pipe.vae.training is False


@pytest.mark.parametrize("family", ["flux", "chroma"])
def test_packing_is_the_pipelines_own(family):
    model, pipe = adapted(family), tiny.pipeline(family)
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    packed = pipe._pack_latents(z, 2, 4, 8, 8)
    assert torch.equal(model.model.packing.pack(z), packed)
    assert torch.equal(model.model.packing.unpack(packed), z)


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16)])
def test_images_that_are_no_square(height, width):
    pipe = tiny.pipeline("flux")
    model = TextToImage(pipe, **tiny.OPTIONS["flux"] | {"height": height, "width": width})
    x = model.generate(PROMPT, [0], num_inference_steps=1)
    image = model.generate(PROMPT, [0], num_inference_steps=1, output_type="pt")
    assert image.shape[2:] == (height, width)
    torch.testing.assert_close(model.decode(x).clamp(0, 1), image, rtol=0, atol=1e-5)


def test_six_passes_are_enough_to_look_at_a_pipeline(family):
    pipe, passes = tiny.pipeline(family), []
    handle = find_network(pipe).register_forward_hook(lambda *_: passes.append(1))
    try:
        model = TextToImage(pipe, **tiny.OPTIONS.get(family, {}))
        assert len(passes) == 6
        model.condition("a dog")
        assert len(passes) == 6 + (model.layout.calls == 2)  # the last call never computes
    finally:
        handle.remove()


def test_conditions_are_kept():
    model = adapted("sd1 (eps)")
    assert model.condition("a cat") is model.condition("a cat")
    assert model.condition("a cat") is not model.condition("a dog")
    other = model.conditions("a cat", negative_prompt="red")[1]
    assert not torch.equal(
        other.kwargs["encoder_hidden_states"],
        model.unconditional().kwargs["encoder_hidden_states"],
    )


def test_generation_is_the_pipelines_own():
    model, pipe = adapted("sd1 (eps)"), tiny.pipeline("sd1 (eps)")
    seeds = [5, 9]
    wanted = pipe(
        PROMPT,
        num_images_per_prompt=2,
        num_inference_steps=3,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type="latent",
    ).images
    assert torch.equal(model.generate(PROMPT, seeds, num_inference_steps=3), wanted)


@pytest.mark.parametrize("scheduler", ["Euler", "DPM", "Heun", "UniPC", "DDPM", "LMS", "Karras"])
def test_other_schedulers_mean_the_same_network(scheduler):
    kinds = {
        "Euler": diffusers.EulerAncestralDiscreteScheduler,
        "DPM": diffusers.DPMSolverMultistepScheduler,
        "Heun": diffusers.HeunDiscreteScheduler,
        "UniPC": diffusers.UniPCMultistepScheduler,
        "DDPM": diffusers.DDPMScheduler,
        "LMS": diffusers.LMSDiscreteScheduler,
        "Karras": diffusers.EulerDiscreteScheduler,
    }
    more = {"Karras": {"use_karras_sigmas": True}, "DDPM": {"clip_sample": False}}
    pipe = tiny.pipeline("sd1 (eps)")
    other = diffusers.StableDiffusionPipeline(
        **pipe.components
        | {"scheduler": tiny.vp(kinds[scheduler], steps_offset=1, **more.get(scheduler, {}))},
        requires_safety_checker=False,
    )
    x = points(adapted("sd1 (eps)"), 2, 0.7)
    wanted = adapted("sd1 (eps)").denoiser(PROMPT)(x, 0.7)
    close(TextToImage(other).denoiser(PROMPT)(x, 0.7), wanted)


# Refusals


def refused(thing, *words, **options):
    with pytest.raises(InputError) as caught:
        TextToImage(thing, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("thing", [3, None, torch.nn.Linear(2, 2)])
def test_what_is_no_pipeline(thing):
    refused(thing, type(thing).__name__, ".components and .scheduler", "hub id")


def test_pipelines_without_a_prompt():
    unet = diffusers.UNet2DModel(
        sample_size=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=4,
    ).eval()
    pipe = diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler())
    refused(pipe, "DDPMPipeline takes no prompt")


def test_pipelines_that_need_an_image():
    parts = tiny.pipeline("sd1 (eps)").components
    image = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    refused(
        image, "StableDiffusionImg2ImgPipeline needs an image", "looked for a run with a prompt",
        "AutoPipelineForText2Image",
    )  # fmt: skip


def test_pipelines_that_draw_videos():
    parts = tiny.pipeline("sd1 (eps)").components
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), attention_head_dim=4,
        cross_attention_dim=32,
    ).eval()  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "scheduler")
    video = diffusers.TextToVideoSDPipeline(unet=unet, **{k: parts[k] for k in names})
    refused(video, "TextToVideoSDPipeline takes `num_frames`", "pass a text-to-image pipeline")


def test_networks_in_training_mode():
    pipe = tiny.pipeline("sd1 (eps)")
    pipe.unet.train()
    try:
        refused(pipe, "in training mode", ".eval()")
    finally:
        pipe.unet.eval()


def test_options_that_are_unknown():
    pipe = tiny.pipeline("sd1 (eps)")
    refused(pipe, "StableDiffusionPipeline takes no hight", hight=16)
    model = adapted("sd1 (eps)")
    with pytest.raises(InputError, match="takes no steps; leave it out"):
        model.generate(PROMPT, [0], steps=3)
    with pytest.raises(InputError, match="takes no colour"):
        model.denoiser(PROMPT, colour="red")


@pytest.mark.parametrize("prompt", [3, ["a", "b"], b"a"])
def test_prompts_that_are_no_string(prompt):
    with pytest.raises(InputError, match=f"one string, not {type(prompt).__name__}"):
        inspect.unwrap(TextToImage.conditions)(adapted("sd1 (eps)"), prompt)


def test_empty_seeds_and_guidance_without_a_prompt():
    with pytest.raises(InputError, match="seeds is empty"):
        adapted("sd1 (eps)").generate(PROMPT, [])
    with pytest.raises(InputError, match="needs a prompt to guide to"):
        adapted("sd1 (eps)").denoiser(guidance_scale=3.0)


def test_arguments_that_the_pipeline_refuses():
    with pytest.raises(InputError, match="refuses its arguments"):
        adapted("sd1 (eps)").generate(PROMPT, [0], prompt_embeds=torch.zeros(1, 16, 32))


class Odd(diffusers.StableDiffusionPipeline):
    """A pipeline whose network, scheduler or batch behaves as told."""

    def __call__(self, prompt=None, num_images_per_prompt=1, guidance_scale=7.5, generator=None):
        self.scheduler.set_timesteps(3)
        guided = guidance_scale > 1
        rows = self.rows(num_images_per_prompt)
        n = rows * (self.parts if guided else 1)
        text = torch.zeros(n, 16, 32)
        if self.heeds:
            text[: n // self.parts if guided else n] = 1.0  # the prompt comes first
        if self.drawn:
            text = text + torch.randn(n, 1, 32, generator=generator)
        z = torch.randn(rows, 4, 8, 8, generator=generator)
        for t in self.scheduler.timesteps:
            both = torch.cat([z] * (self.parts if guided else 1))
            out = self.unet(both, t, encoder_hidden_states=text).sample
            if guided and self.parts == 2:
                c, u = out.chunk(2)
                out = self.mix(c, u, guidance_scale)
            out = out[:rows]
            if self.steps:
                z = self.scheduler.step(self.change(out), t, z).prev_sample
        return [z]


def plain_mix(c, u, w):
    return u + w * (c - u)


def odd(**manner):
    """A pipeline of a plain manner, but for what is told."""
    pipe = Odd(**tiny.pipeline("sd1 (eps)").components, requires_safety_checker=False)
    plain = {"rows": lambda n: n, "parts": 2, "change": lambda out: out, "steps": True}
    plain["drawn"] = False
    for name, value in (plain | {"heeds": True, "mix": plain_mix} | manner).items():
        setattr(pipe, name, value)
    return pipe


def test_the_odd_pipeline_is_fine_by_itself():
    assert TextToImage(odd()).layout.conditional == 0


@pytest.mark.parametrize(
    "mix",
    [lambda c, u, w: u + 0.9 * w * (c - u), lambda c, u, w: u + w * (c - u).sign()],
    ids=["weaker", "sign"],
)
def test_a_rule_that_is_unknown_refuses_what_is_guided_and_nothing_else(mix):
    model = TextToImage(odd(mix=mix))
    x = points(model, 1, 0.8)
    assert bool(model.denoiser(PROMPT)(x, 0.8).isfinite().all())
    words = r"Odd's network's two predictions are mixed in a way .*leave guidance_scale out"
    with pytest.raises(InputError, match=words):
        model.denoiser(PROMPT, guidance_scale=2.0)
    cond, uncond = model.conditions(PROMPT)
    with pytest.raises(InputError, match=words):
        SCORES["guided_score_norm"](model.model, x, 0.8, cond, uncond, guidance_scale=2.0)
    assert bool(SCORES["cfg_norm"](model.model, x, 0.8, cond, uncond).isfinite().all())


@pytest.mark.parametrize(
    ("manner", "words"),
    [
        ({"change": lambda out: 2 * out}, ["changes its network's output", "as it is, first half"]),
        ({"change": lambda out: out**3}, ["changes its network's output"]),
        ({"rows": lambda n: 1}, ["a batch of 1 for one image and 1 for two"]),
        ({"rows": lambda n: 2 * n}, ["a batch of 2 for one image and 4 for two"]),
        ({"parts": 3}, ["3 parts for one image", "2 (classifier-free guidance)"]),
        ({"steps": False}, ["did not call", "scheduler.step"]),
        ({"drawn": True}, ["makes its condition of random numbers", "another for each seed"]),
        ({"heeds": False}, ["both halves", "cannot tell which is the prompt's"]),
    ],
)
def test_pipelines_of_an_unknown_manner(manner, words):
    refused(odd(**manner), *words)


def test_pipelines_that_fall_over():
    def change(out):
        raise RuntimeError("no more\nmemory")

    refused(odd(change=change), "cannot be run: RuntimeError: no more memory")


def test_a_scheduler_whose_noise_is_not_its_tables():
    pipe = tiny.sd1_euler()
    scale = type(pipe.scheduler).set_timesteps

    def louder(*args, **kwargs):
        scale(pipe.scheduler, *args, **kwargs)
        pipe.scheduler.sigmas = pipe.scheduler.sigmas * 1.5

    pipe.scheduler.set_timesteps = louder
    refused(pipe, "other sigmas than its table", "1.5", "take another scheduler")


def test_pipelines_without_an_unconditional_half():
    pipe = tiny.flux()
    kind = type("Distilled", (diffusers.FluxPipeline,), {"__call__": plain_flux})
    pipe.__class__ = kind
    model = TextToImage(pipe, **tiny.OPTIONS["flux"])
    assert not model.has_unconditional
    x = points(model, 1, 1.0)
    close(model.denoiser(PROMPT)(x, 1.0), adapted_like(pipe).denoiser(PROMPT)(x, 1.0))
    louder = TextToImage(pipe, guidance_scale=9.0, **tiny.OPTIONS["flux"])
    wanted = adapted_like(pipe, guidance_scale=9.0).denoiser(PROMPT)(x, 1.0)
    close(louder.denoiser(PROMPT)(x, 1.0), wanted)
    for ask in (lambda: model.denoiser(), lambda: model.denoiser(PROMPT, guidance_scale=2.0)):
        with pytest.raises(InputError, match=r"no unconditional half.*leave guidance_scale out"):
            ask()


def plain_flux(
    self, prompt=None, height=None, width=None, num_inference_steps=28, max_sequence_length=512,
    num_images_per_prompt=1, generator=None, output_type="pil", guidance_scale=3.5,
):  # fmt: skip
    return diffusers.FluxPipeline.__call__(
        self,
        prompt,
        height=height,
        width=width,
        num_inference_steps=num_inference_steps,
        max_sequence_length=max_sequence_length,
        num_images_per_prompt=num_images_per_prompt,
        generator=generator,
        output_type=output_type,
        guidance_scale=guidance_scale,
    )


def adapted_like(pipe, **options):
    whole = diffusers.FluxPipeline(**pipe.components)
    return TextToImage(whole, **options, **tiny.OPTIONS["flux"])
