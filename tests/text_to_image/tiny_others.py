"""Small random pipelines that guide, batch or embed their guidance in their own way."""

from __future__ import annotations

import diffusers
import transformers

from . import tiny
from .tiny import LENGTH, clip_text, clip_tokenizer, gemma, t5, unet, vae, vp, word_tokenizer
from .tiny_newer import NEWER, NEWER_OPTIONS


def lcm():
    """Guidance (8.5 by default) as a vector that the network is told."""
    tokenizer = clip_tokenizer()
    return diffusers.LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        unet=unet(time_cond_proj_dim=16),
        scheduler=vp(diffusers.LCMScheduler, set_alpha_to_one=True, original_inference_steps=50),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def kandinsky3():
    """Guidance (w + 1) c - w u; a VQ model in place of a VAE."""
    words = word_tokenizer()
    movq = diffusers.VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        num_vq_embeddings=12,
        norm_type="spatial",
        vq_embed_dim=4,
    ).eval()
    net = diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=32,
    ).eval()
    return diffusers.Kandinsky3Pipeline(
        tokenizer=words,
        text_encoder=t5(words),
        unet=net,
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.02,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=False,
        ),
        movq=movq,
    )


def lumina_next():
    """Guides three of four channels; a time from 0 (noise) to 1; half of the output is unused."""
    words = word_tokenizer()
    net = diffusers.LuminaNextDiT2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=32,
        scaling_factor=1.0,
    ).eval()
    return diffusers.LuminaPipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=gemma(words),
        tokenizer=words,
    )


def hidream():
    """One of the arguments has its batch on the second axis: a layer of Llama a row."""
    tokenizer, words, llama = clip_tokenizer(), word_tokenizer(), word_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(llama),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        attn_implementation="eager",
    )
    net = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[32, 32],
        text_emb_dim=64,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(32, 32),
        llama_layers=(0, 1),
        force_inference_output=True,
    ).eval()
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_text(tokenizer, projected=True),
        tokenizer=tokenizer,
        text_encoder_2=clip_text(tokenizer, projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(words),
        tokenizer_3=words,
        text_encoder_4=transformers.LlamaForCausalLM(config).eval(),
        tokenizer_4=llama,
        transformer=net,
    )
    pipe.default_sample_size = 8  # sizes are brought to it
    return pipe


OTHERS = {
    "lcm": lcm,
    "kandinsky3": kandinsky3,
    "lumina-next": lumina_next,
    "hidream": hidream,
    "z-image": tiny.z_image,
}
OTHERS_OPTIONS = {
    "kandinsky3": {"height": 64, "width": 64},
    "lumina-next": {
        "height": 32,
        "width": 32,
        "clean_caption": False,
        "max_sequence_length": LENGTH,
    },
    "z-image": {"height": 32, "width": 32, "max_sequence_length": LENGTH},
    "hidream": {"height": 16, "width": 16, "max_sequence_length": LENGTH},
}
tiny.MORE.update(NEWER | OTHERS)
tiny.OPTIONS.update(NEWER_OPTIONS | OTHERS_OPTIONS)
