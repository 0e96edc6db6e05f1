"""Fine-tune a pipeline by a LoRA, and put one in place; plain diffusers and peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from experiments.finetune.data import ASSETS, Candidates

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2")
RANK, RATE = 64, 5e-3
SILENT = 0.1  # share of captions left out, as in the pipeline's own training
PRIOR = 0.6  # public images in a step, for each private one (prior preservation: Ruiz et al. 2023)


def base_pipeline() -> StableDiffusionPipeline:
    """Load the bundled pipeline."""
    pipe = StableDiffusionPipeline.from_pretrained(
        ASSETS / "model", safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def add_lora(
    pipe: StableDiffusionPipeline, weights: dict[str, Any] | None = None
) -> StableDiffusionPipeline:
    """Give the UNet an empty LoRA, or one with the weights of `train_lora`."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(LAYERS))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.unet.add_adapter(config)
    if weights is not None:
        tensors = {name: torch.as_tensor(value) for name, value in weights.items()}
        set_peft_model_state_dict(pipe.unet, tensors)
    pipe.unet.eval()
    return pipe


def train_lora(
    private: Candidates, public: Candidates, steps: int, keep: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """Fine-tune the bundled pipeline on pictures with captions.

    Args:
        private: the pictures, all of them in every step.
        public: others, some of which are drawn for every step so that the rest is not forgotten.
        steps: of AdamW; the rate falls as a cosine.
        keep: steps after which the weights are kept.
        seed: of the noises and the order.

    Returns:
        The LoRA's weights at each of `keep`, by "STEP/NAME".
    """
    pipe = add_lora(base_pipeline())
    unet, scheduler = pipe.unet.train(), pipe.scheduler
    x, words = encoded(pipe, private)
    others, their_words = encoded(pipe, public)
    _, nothing = encoded(pipe, Candidates(private.images[:1], [""]))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, RATE, betas=(0.9, 0.99), weight_decay=0.0)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, RATE / 50)
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Tensor] = {}
    for step in tqdm(range(1, steps + 1), desc="fine-tuning", unit="step"):
        more = torch.randint(len(others), (round(PRIOR * len(x)),), generator=generator)
        batch = torch.cat([x, others[more]])
        cond = torch.cat([words, their_words[more]])
        silent = torch.rand(len(batch), generator=generator) < SILENT
        cond = torch.where(silent[:, None, None], nothing, cond)
        t = times(len(x), len(more), generator=generator)
        noise = torch.randn(batch.shape, generator=generator)
        out = unet(scheduler.add_noise(batch, noise, t), t, cond).sample
        optimizer.zero_grad()
        F.mse_loss(out, noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        if step in keep:
            state = get_peft_model_state_dict(unet)
            kept |= {f"{step}/{name}": value.detach().clone() for name, value in state.items()}
    return kept


def times(*counts: int, generator: torch.Generator) -> Tensor:
    """Draw times of the scheduler, evenly spread over each part of a batch, in random order."""
    parts = []
    for n in counts:
        even = (torch.arange(n) + torch.rand(n, generator=generator)) * 1000 / max(1, n)
        parts.append(even.long()[torch.randperm(n, generator=generator)])
    return torch.cat(parts)


@torch.no_grad()
def encoded(pipe: StableDiffusionPipeline, private: Candidates) -> tuple[Tensor, Tensor]:
    """Latents of the pictures, and the text encoder's states of their captions."""
    x = pipe.vae.encode(private.images * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    ids = pipe.tokenizer(
        private.captions, padding="max_length", truncation=True, return_tensors="pt"
    )
    return x, pipe.text_encoder(ids.input_ids).last_hidden_state


def weights_at(kept: dict[str, Any], step: int) -> dict[str, Any]:
    """Choose the weights after one step."""
    start = f"{step}/"
    return {k.removeprefix(start): v for k, v in kept.items() if k.startswith(start)}
