"""Small random pipelines of FLUX.2, Klein, Kontext, Qwen-Image and Wan."""

from __future__ import annotations

import diffusers
import torch
import transformers

from .tiny import LENGTH, clip_text, clip_tokenizer, t5, vae, word_tokenizer

_CHAT = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %} "
    "{% endfor %}"
)


def chat_tokenizer():
    """A tokenizer of words with a chat template that joins the messages' texts."""
    words = word_tokenizer()
    words.chat_template = _CHAT
    return words


def qwen3(words, layers=4):
    config = transformers.Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return transformers.Qwen3ForCausalLM(config).eval()


def flux2_vae():
    """Latents in patches, normalised by a batch norm whose statistics are not 0 and 1."""
    net = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    ).eval()
    n = net.bn.running_mean.numel()
    net.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, n))
    net.bn.running_var.copy_(torch.linspace(0.5, 2.0, n))
    return net


def flux2_transformer(width, distilled):
    return diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=width,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=distilled,
    ).eval()


def flux2():
    """Distilled guidance (4 by default), a chat template, a VAE with a batch norm."""
    words = chat_tokenizer()
    config = transformers.MistralConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return diffusers.Flux2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=transformers.MistralForCausalLM(config).eval(),
        tokenizer=words,
        transformer=flux2_transformer(3 * 16, distilled=True),
    )


def klein():
    """FLUX.2 Klein, the base model: classifier-free guidance in two calls."""
    words = chat_tokenizer()
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=qwen3(words),
        tokenizer=words,
        transformer=flux2_transformer(3 * 16, distilled=False),
    )


def kontext():
    """FLUX Kontext without an image: text-to-image as FLUX."""
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
        guidance_embeds=True,
    ).eval()
    return diffusers.FluxKontextPipeline(
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5),
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5(words),
        tokenizer_2=words,
    )


def qwen_image():
    """True guidance with a renormalised prediction; a five-dimensional VAE with channel means."""
    words = word_tokenizer()
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {
            "mrope_section": [1, 1, 2],
            "rope_type": "default",
            "type": "default",
        },
        "rope_theta": 1000000.0,
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    net = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=4 * 6,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.3, -0.2, 0.1, -0.4],
        latents_std=[1.5, 0.8, 1.2, 2.0],
    ).eval()
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder,
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=words,
        transformer=net,
    )


def wan():
    """Text to video: time is one more axis of the latent; per-channel means in the VAE."""
    words = word_tokenizer()
    config = transformers.UMT5Config(
        vocab_size=len(words), d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4
    )
    autoencoder = diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.3, -0.2, 0.1, -0.4],
        latents_std=[1.5, 0.8, 1.2, 2.0],
    ).eval()
    net = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()
    return diffusers.WanPipeline(
        tokenizer=words,
        text_encoder=transformers.UMT5EncoderModel(config).eval(),
        vae=autoencoder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        transformer=net,
    )


NEWER = {
    "flux2": flux2,
    "klein": klein,
    "kontext": kontext,
    "qwen-image": qwen_image,
    "wan": wan,
}
NEWER_OPTIONS = {
    "flux2": {
        "height": 16,
        "width": 16,
        "max_sequence_length": 128,  # behind a long message of the system
        "text_encoder_out_layers": (1, 2, 3),
    },
    "klein": {
        "height": 16,
        "width": 16,
        "max_sequence_length": LENGTH,
        "text_encoder_out_layers": (1, 2, 3),
    },
    "kontext": {
        "height": 16,
        "width": 16,
        "max_sequence_length": LENGTH,
        "max_area": 256,
        "_auto_resize": False,
    },
    "qwen-image": {"height": 32, "width": 32, "max_sequence_length": LENGTH},
    "wan": {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": LENGTH},
}
