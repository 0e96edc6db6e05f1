"""Small random pipelines of every family, made from configuration classes; no weights are read."""

from __future__ import annotations

import functools

import diffusers
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

PHRASE = "a photo of the dog cat red blue house by anna from dublin quiet old tree"
WORDS = PHRASE.split(" ")
LENGTH = 16
# What diffusers and its friends say of themselves; memfold's own warnings stay errors.
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{words}")
    for words in (
        "__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
        ".*FluxPosEmbed. is deprecated:FutureWarning",
    )
]


def clip_tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = {t: i for i, t in enumerate([*letters, *(c + "</w>" for c in letters)])}
    merges = []
    for word in WORDS:  # a chain of merges: each word ends as one token, or as few
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair, parts = (parts[0], parts[1]), [parts[0] + parts[1], *parts[2:]]
            if pair not in merges:
                merges.append(pair)
                vocab.setdefault("".join(pair), len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def word_tokenizer():
    """A fast tokenizer of words, in the manner of T5: an end token, padding, no start."""
    vocab = {t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=LENGTH,
    )


def clip_text(tokenizer, width=32, projected=False):
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def t5(tokenizer, width=32):
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_ff=37,
        d_kv=8,
        num_layers=2,
        num_heads=4,
    )
    return transformers.T5EncoderModel(config).eval()


def vae(latent_channels=4, **more):
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **more,
    ).eval()


def unet(width=32, **more):
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=8,
        **more,
    ).eval()


def vp(kind=diffusers.DDIMScheduler, **more):
    options = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return kind(**options, **more)


def sd1(scheduler=None):
    tokenizer = clip_tokenizer()
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=scheduler or vp(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd2():
    options = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return sd1(vp(prediction_type="v_prediction", **options))


def sd1_euler():
    return sd1(vp(diffusers.EulerDiscreteScheduler, timestep_spacing="leading", steps_offset=1))


def sd1_pndm():
    return sd1(vp(diffusers.PNDMScheduler, skip_prk_steps=True, steps_offset=1))


def sdxl():
    tokenizer = clip_tokenizer()
    net = unet(
        64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(tokenizer),
        text_encoder_2=clip_text(tokenizer, projected=True),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=net,
        scheduler=vp(diffusers.EulerDiscreteScheduler, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def sd3():
    tokenizer, words = clip_tokenizer(), word_tokenizer()
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=16,
    ).eval()
    return diffusers.StableDiffusion3Pipeline(
        vae=vae(16, shift_factor=0.06, scaling_factor=1.5),
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip_text(tokenizer, projected=True),
        tokenizer=tokenizer,
        text_encoder_2=clip_text(tokenizer, projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(words, 64),
        tokenizer_3=words,
    )


def flux(distilled=True):
    tokenizer, words = clip_tokenizer(), word_tokenizer()
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=distilled,
    ).eval()
    return diffusers.FluxPipeline(
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5),
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5(words),
        tokenizer_2=words,
    )


def pixart():
    words = word_tokenizer()
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=32,
        caption_channels=32,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        use_additional_conditions=False,
    ).eval()
    return diffusers.PixArtAlphaPipeline(
        tokenizer=words,
        text_encoder=t5(words),
        vae=vae(),
        transformer=net,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
    )


def gemma(words):
    config = transformers.Gemma2Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    return transformers.Gemma2Model(config).eval()


def sana(scheduler=None):
    words = word_tokenizer()
    net = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        sample_size=8,
    ).eval()
    dc = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.5,
    ).eval()
    return diffusers.SanaPipeline(
        tokenizer=words,
        text_encoder=gemma(words),
        vae=dc,
        transformer=net,
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def sana_dpm():
    """Sana with the scheduler that its published checkpoints bring."""
    return sana(
        diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
    )


def lumina2():
    """Two calls a step, a time that runs from 0 (noise) to 1, a prediction of x0 - n."""
    words = word_tokenizer()
    net = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        norm_eps=1e-5,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=32,
    ).eval()
    return diffusers.Lumina2Pipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=gemma(words),
        tokenizer=words,
    )


def hunyuan():
    words, other = word_tokenizer(), word_tokenizer()
    bert = transformers.BertConfig(
        vocab_size=len(other),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=37,
        max_position_embeddings=128,
    )
    net = diffusers.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=32,
        activation_fn="gelu-approximate",
        text_len=77,
        text_len_t5=256,
    ).eval()
    return diffusers.HunyuanDiTPipeline(
        transformer=net,
        scheduler=diffusers.DDPMScheduler(),
        vae=vae(),
        text_encoder=transformers.BertModel(bert).eval(),
        tokenizer=other,
        text_encoder_2=t5(words),
        tokenizer_2=words,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def cogview4():
    """A flow that the pipeline shifts by the image's size, while its network's times stay."""
    words = word_tokenizer()
    config = transformers.GlmConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=1,
    )
    net = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
    ).eval()
    return diffusers.CogView4Pipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
        vae=vae(),
        text_encoder=transformers.GlmModel(config).eval(),
        tokenizer=words,
    )


def chroma():
    words = word_tokenizer()
    net = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    ).eval()
    return diffusers.ChromaPipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=t5(words),
        tokenizer=words,
    )


def aura():
    words = word_tokenizer()
    config = transformers.UMT5Config(
        vocab_size=len(words), d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4
    )
    net = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=64,
    ).eval()
    return diffusers.AuraFlowPipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=vae(),
        text_encoder=transformers.UMT5EncoderModel(config).eval(),
        tokenizer=words,
    )


def z_image():
    """Hands its network lists of latents and of texts, and guides by c + w (c - u)."""
    words = word_tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = transformers.Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    net = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    ).eval()
    return diffusers.ZImagePipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=transformers.Qwen3Model(config).eval(),
        tokenizer=words,
    )


FAMILIES = {
    "sd1 (eps)": sd1,
    "sd1 Euler": sd1_euler,
    "sd1 PNDM": sd1_pndm,
    "sd2 (v)": sd2,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "sana": sana,
    "lumina2": lumina2,
    "hunyuan": hunyuan,
    "cogview4": cogview4,
}
# Built in the same way as one of the above; tested by the adapter's tests alone.
MORE = {"sana DPM": sana_dpm, "chroma": chroma, "aura": aura}
ALL = (*FAMILIES, *MORE)  # MORE grows by the families of other files
_SANA = {
    "height": 32,
    "width": 32,
    "max_sequence_length": LENGTH,
    "use_resolution_binning": False,
    "clean_caption": False,
    "complex_human_instruction": None,
}
OPTIONS = {
    "flux": {"height": 16, "width": 16, "max_sequence_length": LENGTH},
    "sd3": {"max_sequence_length": LENGTH},
    "pixart": {
        "clean_caption": False,
        "max_sequence_length": LENGTH,
        "use_resolution_binning": False,
    },
    "sana": _SANA,
    "sana DPM": _SANA,
    "lumina2": {
        "height": 32,
        "width": 32,
        "max_sequence_length": LENGTH,
        "system_prompt": "photo",
    },
    "hunyuan": {"height": 16, "width": 16, "use_resolution_binning": False},
    "cogview4": {"height": 32, "width": 32, "max_sequence_length": LENGTH},
    "chroma": {"height": 16, "width": 16, "max_sequence_length": LENGTH},
    "aura": {"height": 16, "width": 16, "max_sequence_length": LENGTH},
}


@functools.cache
def pipeline(family):
    """One pipeline of a family for the whole session; tests leave it as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (FAMILIES | MORE)[family]()
