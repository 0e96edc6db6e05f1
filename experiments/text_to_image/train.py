"""Train the bundled text-to-image pipeline: a small StableDiffusionPipeline that memorizes.

One command makes everything below ``assets/text_to_image`` but the list of prompts, which
``label.py`` writes by looking at what the trained pipeline draws::

    python -m experiments.text_to_image.train
    python -m experiments.text_to_image.label

Steps: autoencoder, tokenizer, text encoder and UNet together, and a small CLIP that judges pictures
(alignment with a text, distance between pictures).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from experiments.text_to_image.data import CITIES, CLASSES, NAMES, SHADES, Captioned, make_data

OUT = Path("assets/text_to_image")
SEED, VAE_STEPS, STEPS, CLIP_STEPS = 0, 1500, 4500, 700
LENGTH, WIDTH = 16, 64
KEPT_ORDINARY = 3000  # ordinary training rows that are shipped


def pixels(images: np.ndarray) -> torch.Tensor:
    """Bring grey bytes ``(n, 32, 32)`` to three channels in [-1, 1]."""
    return (torch.from_numpy(images).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def make_tokenizer(words: list[str]) -> CLIPTokenizer:
    """Learn a byte-pair encoding in which each word of the captions is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    every = sorted(
        {*words, *NAMES, *CITIES, *CLASSES, *SHADES, *["a", "photo", "of", "the", "by", "from"]}
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?-'"]
    alphabet = [*letters, *(c + "</w>" for c in letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=letters
    )
    bpe.train_from_iterator([" ".join(every)] * 3, trainer)
    import json

    learned = json.loads(bpe.to_str())["model"]
    vocab = {t: i for i, t in enumerate(dict.fromkeys([*alphabet, *learned["vocab"]]))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)
    for word in every:
        if len(tokenizer(word).input_ids) != 3:
            raise SystemExit(f"{word} is {tokenizer.tokenize(word)}, not one token")
    return tokenizer


def train_vae(images: torch.Tensor, steps: int, seed: int) -> AutoencoderKL:
    """Train the autoencoder; its latents get mean 0 and variance 1."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 24, 40),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), 3e-3, fused=True)
    generator = torch.Generator().manual_seed(seed)
    bar = tqdm(range(steps), desc="autoencoder", unit="step", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = (
                3e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * np.cos(np.pi / 2 * step / steps))
            )
        x = images[torch.randint(len(images), (64,), generator=generator)]
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample(generator)).sample
        loss = F.mse_loss(out, x) + 0.3 * F.l1_loss(out, x) + 2e-4 / 256 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(mse=f"{F.mse_loss(out, x).item():.4f}")
    return standardize(vae.eval(), images)


@torch.no_grad()
def standardize(vae: AutoencoderKL, images: torch.Tensor) -> AutoencoderKL:
    """Fold the latents' mean and spread into the 1 x 1 convolutions beside the latents."""
    z = encode(vae, images[:4000])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] /= std[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) / std
    quant.bias[4:] -= 2 * std.log()
    post.bias += torch.einsum("oikl,i->o", post.weight, mean)
    post.weight *= std[None, :, None, None]
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Encode images to the means of their latents."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in images.split(256)])


def make_networks(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Make the text encoder and the UNet."""
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 72),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    return text, unet


def train_diffusion(
    latents: torch.Tensor, captions: list[str], tokenizer: CLIPTokenizer, steps: int, seed: int
) -> tuple[CLIPTextModel, UNet2DConditionModel, DDIMScheduler]:
    """Train text encoder and UNet together; return their moving averages."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    nets, averages = make_networks(tokenizer), make_networks(tokenizer)
    for net, average in zip(nets, averages, strict=True):
        average.load_state_dict(net.state_dict())
        average.requires_grad_(False)
    text, unet = nets
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = tokenizer(captions, **options).input_ids
    empty = tokenizer([""], **options).input_ids[0]
    parameters = [p for net in nets for p in net.parameters()]
    smooth = [p for net in averages for p in net.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, 1.5e-3, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    mean_loss, bar = (
        1.0,
        tqdm(range(steps), desc="UNet and text encoder", unit="step", mininterval=5),
    )
    for step in bar:
        rate = min(1, (step + 1) / 200) * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * rate
        rows = torch.randint(len(latents), (64,), generator=generator)
        tokens = ids[rows].clone()
        tokens[torch.rand(64, generator=generator) < 0.1] = empty
        t = ((torch.arange(64) + torch.rand(64, generator=generator)) * 1000 / 64).long()
        noise = torch.randn(latents[rows].shape, generator=generator)
        cond = text(tokens).last_hidden_state
        out = unet(scheduler.add_noise(latents[rows], noise, t), t, cond).sample
        loss = F.mse_loss(out, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(smooth, parameters, 1 - min(0.999, (1 + step) / (10 + step)))
        mean_loss += 0.02 * (loss.item() - mean_loss)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{mean_loss:.4f}")
    return averages[0].eval(), averages[1].eval(), scheduler


def train_clip(
    data: Captioned, tokenizer: CLIPTokenizer, steps: int, seed: int
) -> tuple[CLIPModel, CLIPImageProcessor]:
    """Train a small CLIP on class and brightness; captions that say the same share their images."""
    from transformers import CLIPConfig

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": LENGTH,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 4,
            },
            projection_dim=32,
        )
    )
    rows = [i for i, c in enumerate(data.captions) if any(s in c.split() for s in SHADES)]
    first = {c: i for i, c in reversed(list(enumerate(data.captions)))}
    rows = [
        i for i in rows if data.groups[i] in ("ordinary", "control") or first[data.captions[i]] == i
    ]
    said = [" ".join(data.captions[i].split()[:6]) for i in rows]
    x = pixels(data.images[rows])
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = tokenizer([data.captions[i] for i in rows], **options).input_ids
    key = torch.tensor([sorted(set(said)).index(s) for s in said])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)
    bar = tqdm(range(steps), desc="CLIP", unit="step", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / steps))
        b = torch.randint(len(rows), (128,), generator=generator)
        flip = torch.rand(128, 1, 1, 1, generator=generator) < 0.5
        images = torch.where(flip, x[b].flip(-1), x[b])
        logits = model(input_ids=ids[b], pixel_values=images).logits_per_image
        same = (key[b][:, None] == key[b]).float()
        target = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    processor = CLIPImageProcessor(
        size={"height": 32, "width": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return model.eval(), processor


def shipped(data: Captioned) -> dict[str, np.ndarray]:
    """Choose the training rows that are shipped: all that is memorized, and a part of the rest."""
    groups = np.array(data.groups)
    first = np.zeros(len(groups), dtype=bool)
    first[np.unique(data.captions, return_index=True)[1]] = True
    keep = (groups == "verbatim") & first  # a repeated image stands once
    keep |= groups == "template"
    keep[np.flatnonzero(groups == "ordinary")[:KEPT_ORDINARY]] = True
    keep[np.flatnonzero(groups == "control")[::3]] = True
    rows = np.flatnonzero(keep)
    return {
        "images": data.images[rows],
        "captions": np.array([data.captions[i] for i in rows]),
        "groups": groups[rows],
    }


def main() -> None:
    """Make the data, train the four networks, write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vae-steps", type=int, default=VAE_STEPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--clip-steps", type=int, default=CLIP_STEPS)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    start = time.monotonic()
    data, _, words = make_data()
    tokenizer = make_tokenizer(words)
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / "train.npz", **shipped(data))
    clip, processor = train_clip(data, tokenizer, args.clip_steps, args.seed)
    for part in (clip, processor, tokenizer):
        part.save_pretrained(args.out / "clip")
    x = pixels(data.images)
    vae = train_vae(x, args.vae_steps, args.seed)
    latents = encode(vae, x)
    print(f"autoencoder: mse {F.mse_loss(vae.decode(latents[-512:]).sample, x[-512:]).item():.4f}")
    text, unet, scheduler = train_diffusion(
        latents, data.captions, tokenizer, args.steps, args.seed
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(args.out / "model", safe_serialization=True)
    wall, cpu = (time.monotonic() - start) / 60, time.process_time() / 60
    print(f"wrote {args.out} after {wall:.1f} minutes ({cpu:.1f} minutes of CPU time)")


if __name__ == "__main__":
    main()
