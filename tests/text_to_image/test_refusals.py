"""Pipelines whose networks are given more than a latent, or that have no text encoder."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError
from tests.text_to_image import tiny
from tests.text_to_image.by_hand import PROMPT

pytestmark = tiny.QUIET
_IMAGE = Image.fromarray(np.zeros((16, 16, 3), np.uint8))
_MASK = Image.fromarray(np.full((16, 16), 255, np.uint8))


def of(kind, family, **changed):
    """A pipeline of another class with the parts of a tiny one."""
    parts = tiny.pipeline(family).components
    if family == "flux":
        parts = {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    more = {} if family == "flux" else {"requires_safety_checker": False}
    return kind(**parts | changed, **more)


def wide_flux(channels):
    config = tiny.pipeline("flux").transformer.config
    wide = {"in_channels": channels, "out_channels": 16}
    return diffusers.FluxTransformer2DModel.from_config(config, **wide).eval()


def inpainting():
    config = tiny.pipeline("sd1 (eps)").unet.config
    wide = diffusers.UNet2DConditionModel.from_config(config, in_channels=9).eval()
    pipe = of(diffusers.StableDiffusionInpaintPipeline, "sd1 (eps)", unet=wide)
    return pipe, {"image": _IMAGE, "mask_image": _MASK, "height": 16, "width": 16}


def fill():
    pipe = of(diffusers.FluxFillPipeline, "flux", transformer=wide_flux(48))
    return pipe, {"image": _IMAGE, "mask_image": _MASK} | tiny.OPTIONS["flux"]


def control():
    pipe = of(diffusers.FluxControlPipeline, "flux", transformer=wide_flux(32))
    return pipe, {"control_image": _IMAGE} | tiny.OPTIONS["flux"]


def controlnet():
    net = diffusers.ControlNetModel.from_unet(
        tiny.pipeline("sd1 (eps)").unet, conditioning_embedding_out_channels=(8, 16)
    ).eval()
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.1)  # born as zeros, which change nothing
    pipe = of(diffusers.StableDiffusionControlNetPipeline, "sd1 (eps)", controlnet=net)
    return pipe, {"image": _IMAGE, "height": 16, "width": 16}


def deepfloyd():
    words = tiny.word_tokenizer()
    net = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        encoder_hid_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    pipe = diffusers.IFPipeline(
        text_encoder=tiny.t5(words),
        tokenizer=words,
        unet=net,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    return pipe, {"clean_caption": False}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (inpainting, ["widens its latents of shape (4, 8, 8) to (9, 8, 8)", "text-to-image"]),
        (fill, ["widens its latents of shape (16, 16) to (16, 48)"]),
        (control, ["widens its latents of shape (16, 16) to (16, 32)"]),
        (controlnet, ["additional_residual", "ControlNet", "without that part"]),
        (deepfloyd, ["shape (1, 6, 8, 8)", "latents of shape (1, 3, 8, 8)", "learned variance"]),
    ],
    ids=["inpainting", "FluxFill", "FluxControl", "ControlNet", "DeepFloyd IF"],
)
def test_networks_that_are_given_more_than_a_latent(make, words):
    pipe, options = make()
    with pytest.raises(InputError) as caught:
        TextToImage(pipe, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


class Combined(diffusers.DiffusionPipeline):
    """Two pipelines in one, in the manner of Kandinsky 2.2: the inner ones are what runs."""

    def __init__(self, unet, scheduler, vae, text_encoder, tokenizer):
        super().__init__()
        self.register_modules(
            unet=unet, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer
        )

    def __call__(self, prompt=None, num_images_per_prompt=1, generator=None):
        raise KeyError("prior")


def test_whatever_a_pipeline_raises_is_one_line():
    parts = tiny.pipeline("sd1 (eps)").components
    names = ("unet", "scheduler", "vae", "text_encoder", "tokenizer")
    pipe = Combined(**{k: parts[k] for k in names})
    with pytest.raises(InputError, match=r"^Combined cannot be run: KeyError: 'prior'$"):
        TextToImage(pipe)


# Embeddings in place of words


@pytest.fixture(scope="module")
def wordless():
    """Stable Diffusion without its text encoder, and what that says to two prompts and to none."""
    whole = tiny.pipeline("sd1 (eps)")
    texts = {p: whole.encode_prompt(p, "cpu", 1, False)[0] for p in (PROMPT, "a dog", "")}
    pipe = of(diffusers.StableDiffusionPipeline, "sd1 (eps)", text_encoder=None, tokenizer=None)
    return TextToImage(whole), pipe, texts


def test_a_pipeline_without_a_text_encoder_takes_embeddings(wordless):
    whole, pipe, texts = wordless
    none = {"negative_prompt_embeds": texts[""]}
    model = TextToImage(pipe, prompt_embeds=texts["a dog"], **none)
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    for prompt in ("a dog", PROMPT):
        found = model.denoiser(prompt_embeds=texts[prompt], **none)
        torch.testing.assert_close(found(x, 0.8), whole.denoiser(prompt)(x, 0.8))
        guided = model.denoiser(prompt_embeds=texts[prompt], guidance_scale=3.0, **none)
        wanted = whole.denoiser(prompt, guidance_scale=3.0)(x, 0.8)
        torch.testing.assert_close(guided(x, 0.8), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.denoiser()(x, 0.8), whole.denoiser()(x, 0.8))
    drawn = model.generate("", [3], prompt_embeds=texts[PROMPT], num_inference_steps=2, **none)
    wanted = whole.generate(PROMPT, [3], num_inference_steps=2)
    torch.testing.assert_close(drawn, wanted, rtol=1e-4, atol=1e-5)


def test_words_are_refused_where_nothing_reads_them(wordless):
    _, pipe, texts = wordless
    with pytest.raises(InputError, match=r"has no text encoder: pass embeddings .*prompt_embeds"):
        TextToImage(pipe)
    model = TextToImage(pipe, prompt_embeds=texts["a dog"], negative_prompt_embeds=texts[""])
    for ask in (model.denoiser, model.condition, lambda p: model.generate(p, [0])):
        with pytest.raises(InputError, match="has no text encoder"):
            ask(PROMPT)


def test_embeddings_take_the_place_of_words_in_a_whole_pipeline_too(wordless):
    whole, _, texts = wordless
    x = torch.randn(1, *whole.shape, generator=torch.Generator().manual_seed(0))
    found = whole.denoiser(prompt_embeds=texts[PROMPT])
    torch.testing.assert_close(found(x, 0.8), whole.denoiser(PROMPT)(x, 0.8))
    held = TextToImage(whole.pipe, prompt_embeds=texts["a dog"])
    torch.testing.assert_close(held.denoiser(PROMPT)(x, 0.8), whole.denoiser(PROMPT)(x, 0.8))
