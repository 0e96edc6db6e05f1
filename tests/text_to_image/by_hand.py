"""The networks of the small pipelines, asked by hand: nothing of memfold's adapter is used."""

from __future__ import annotations

import torch

from tests.text_to_image import tiny

PROMPT = "a photo of anna by the old house"
FLOWS = {"sd3", "flux", "sana", "sana DPM", "lumina2", "cogview4", "chroma", "aura"} | {
    "flux2", "klein", "kontext", "qwen-image", "wan", "lumina-next", "hidream", "z-image",
}  # fmt: skip
TWO_CALLS = {"flux", "lumina2", "cogview4", "chroma"}
ALL = tiny.ALL
BY_HAND = tuple(family for family in ALL if family != "hunyuan")


def noise_of(family, pipe, t):
    """(signal, noise) of z = signal x0 + noise n at the scheduler's time t."""
    if family in FLOWS:
        s = t / 1000
        if family == "cogview4":  # the pipeline shifts its sigmas, by the number of tokens
            mu = (64 / 256) ** 0.5 * 0.75 + 0.25
            s = mu / (mu + 1 / s - 1)
        return 1 - s, s
    a = float(pipe.scheduler.alphas_cumprod[t])
    return a**0.5, (1 - a) ** 0.5


def denoised(family, pipe, x, t, *, prompt=PROMPT, conditional=True):
    """E[x0 | x0 + sigma n = x] at the sigma of the scheduler's time t."""
    signal, noise = noise_of(family, pipe, t)
    z = signal * x
    out = prediction(family, pipe, z, t, prompt=prompt, conditional=conditional)
    return clean(family, z, out, signal, noise)


def clean(family, z, out, signal, noise):
    """x0 from the network's prediction, in the words of each parameterisation."""
    if family in FLOWS:
        return z - noise * out  # z = x0 + s (n - x0)
    if family == "sd2 (v)":
        return signal * z - noise * out
    return (z - noise * out) / signal


@torch.no_grad()
def prediction(family, pipe, z, t, *, prompt=PROMPT, conditional=True):
    """What the pipeline would hand its scheduler without guidance."""
    kind = {"sana DPM": "sana"}.get(family, family)
    kind = "sd" if kind.startswith(("sd1", "sd2")) else kind
    side = 0 if conditional else 1
    return _ASK[kind](pipe, z, torch.tensor(t), prompt, side)


def _sd(pipe, z, t, prompt, side):
    text = pipe.encode_prompt(prompt, "cpu", 1, True)[side]
    return pipe.unet(z, t, encoder_hidden_states=text.repeat(len(z), 1, 1)).sample


def _sdxl(pipe, z, t, prompt, side):
    found = pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=True)
    text, pooled = found[side], found[2 + side]
    sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]])
    more = {"text_embeds": pooled.repeat(len(z), 1), "time_ids": sizes.repeat(len(z), 1)}
    return pipe.unet(
        z, t, encoder_hidden_states=text.repeat(len(z), 1, 1), added_cond_kwargs=more
    ).sample


def _sd3(pipe, z, t, prompt, side):
    found = pipe.encode_prompt(prompt, None, None, device="cpu", max_sequence_length=tiny.LENGTH)
    return pipe.transformer(
        z,
        encoder_hidden_states=found[side].repeat(len(z), 1, 1),
        pooled_projections=found[2 + side].repeat(len(z), 1),
        timestep=t.expand(len(z)).float(),
    ).sample


def _flux(pipe, z, t, prompt, side):
    words = prompt if side == 0 else " "
    text, pooled, ids = pipe.encode_prompt(words, None, "cpu", max_sequence_length=tiny.LENGTH)
    return pipe.transformer(
        z,
        encoder_hidden_states=text.repeat(len(z), 1, 1),
        pooled_projections=pooled.repeat(len(z), 1),
        timestep=t.expand(len(z)) / 1000,
        guidance=torch.full((len(z),), 3.5),
        txt_ids=ids,
        img_ids=pipe._prepare_latent_image_ids(1, 4, 4, "cpu", z.dtype),
    ).sample


def _chroma(pipe, z, t, prompt, side):
    found = pipe.encode_prompt(prompt, "", device="cpu", max_sequence_length=tiny.LENGTH)
    text, ids, mask = found[3 * side : 3 * side + 3]
    image = torch.ones(len(z), z.shape[1], dtype=torch.bool)
    return pipe.transformer(
        z,
        encoder_hidden_states=text.repeat(len(z), 1, 1),
        timestep=t.expand(len(z)) / 1000,
        txt_ids=ids,
        img_ids=pipe._prepare_latent_image_ids(1, 4, 4, "cpu", z.dtype),
        attention_mask=torch.cat([mask.repeat(len(z), 1), image], 1),
    ).sample


def _pixart(pipe, z, t, prompt, side):
    found = pipe.encode_prompt(prompt, device="cpu", max_sequence_length=tiny.LENGTH)
    text, mask = found[2 * side : 2 * side + 2]
    out = pipe.transformer(
        z,
        encoder_hidden_states=text.repeat(len(z), 1, 1),
        encoder_attention_mask=mask.repeat(len(z), 1),
        timestep=t.expand(len(z)),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample
    return out[:, :4]  # the other half is the learned variance


def _sana(pipe, z, t, prompt, side):
    found = pipe.encode_prompt(prompt, device="cpu", max_sequence_length=tiny.LENGTH)
    text, mask = found[2 * side : 2 * side + 2]
    return pipe.transformer(
        z,
        encoder_hidden_states=text.repeat(len(z), 1, 1),
        encoder_attention_mask=mask.repeat(len(z), 1),
        timestep=t.expand(len(z)),
    ).sample


def _lumina2(pipe, z, t, prompt, side):
    found = pipe.encode_prompt(
        prompt, device="cpu", system_prompt="photo", max_sequence_length=tiny.LENGTH
    )
    text, mask = found[2 * side : 2 * side + 2]
    out = pipe.transformer(
        z,
        encoder_hidden_states=text.repeat(len(z), 1, 1),
        encoder_attention_mask=mask.repeat(len(z), 1),
        timestep=1 - t.expand(len(z)) / 1000,
    ).sample
    return -out


def _cogview4(pipe, z, t, prompt, side):
    text = pipe.encode_prompt(prompt, device="cpu", max_sequence_length=tiny.LENGTH)[side]
    size = torch.tensor([[32.0, 32]]).repeat(len(z), 1)
    return pipe.transformer(
        hidden_states=z,
        encoder_hidden_states=text.repeat(len(z), 1, 1),
        timestep=t.expand(len(z)),
        original_size=size,
        target_size=size,
        crop_coords=torch.zeros(len(z), 2),
    ).sample


def _aura(pipe, z, t, prompt, side):
    found = pipe.encode_prompt(prompt, device="cpu", max_sequence_length=tiny.LENGTH)
    return pipe.transformer(
        z,
        encoder_hidden_states=found[2 * side].repeat(len(z), 1, 1),
        timestep=t.expand(len(z)) / 1000,
    ).sample


_ASK = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "chroma": _chroma,
    "pixart": _pixart,
    "sana": _sana,
    "lumina2": _lumina2,
    "cogview4": _cogview4,
    "aura": _aura,
}
