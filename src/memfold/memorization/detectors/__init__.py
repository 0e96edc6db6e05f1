"""Detectors of memorized prompts: one signature, one paper a file, one registry."""

from __future__ import annotations

from .anisotropy import anisotropy
from .attention import attention_entropy, bright_ending
from .base import Detector
from .cfg_norm import cfg_norm, cfg_norm_first, cfg_norm_last
from .curvature import curvature_difference, curvature_map
from .denoising_loss import (
    loss_conditional,
    loss_conditional_first,
    loss_guided,
    loss_guided_first,
    loss_unconditional,
    loss_unconditional_first,
)
from .flipd import (
    flipd_conditional,
    flipd_conditional_first,
    flipd_guided,
    flipd_guided_first,
    flipd_unconditional,
    flipd_unconditional_first,
)
from .freedom import freedom_taken, freedom_taken_loss
from .guided_score import guided_noise_norm
from .lhsd import spectral_conditional
from .nearest import nearest_embedding, nearest_latents, nearest_pixels
from .seeds import seed_dimension, tiled_l2
from .sharpness import sharpness

_ALL = (
    Detector(
        "cfg_norm", cfg_norm, "during", "CFG norm, all steps", "wen2024detecting", guidance=True
    ),
    Detector(
        "cfg_norm_first",
        cfg_norm_first,
        "during",
        "CFG norm, first step",
        "wen2024detecting",
        guidance=True,
    ),
    Detector(
        "cfg_norm_last",
        cfg_norm_last,
        "during",
        "CFG norm, last half",
        "wen2024detecting",
        guidance=True,
    ),
    Detector(
        "guided_noise_norm",
        guided_noise_norm,
        "during",
        "guided noise norm",
        "ross2025memorization",
    ),
    Detector(
        "bright_ending",
        bright_ending,
        "during",
        "Bright Ending",
        "chen2025brightending",
        guidance=True,
        attention=True,
    ),
    Detector(
        "attention_entropy",
        attention_entropy,
        "during",
        "attention entropy",
        "ren2024attention",
        attention=True,
    ),
    Detector(
        "anisotropy",
        anisotropy,
        "before",
        "norm and alignment",
        "asthana2026anisotropy",
        guidance=True,
    ),
    Detector("sharpness", sharpness, "before", "sharpness", "jeon2025sharpness", guidance=True),
    Detector(
        "flipd_conditional_first",
        flipd_conditional_first,
        "before",
        "FLIPD at the first step, with the prompt",
        "kamkari2024flipd",
    ),
    Detector(
        "flipd_unconditional_first",
        flipd_unconditional_first,
        "before",
        "FLIPD at the first step, without a prompt",
        "kamkari2024flipd",
        guidance=True,
    ),
    Detector(
        "flipd_guided_first",
        flipd_guided_first,
        "before",
        "FLIPD at the first step, guided",
        "ross2025memorization",
        guidance=True,
    ),
    Detector(
        "loss_conditional_first",
        loss_conditional_first,
        "before",
        "denoising loss at the first step, with the prompt",
        "yeats2025dsm",
    ),
    Detector(
        "loss_unconditional_first",
        loss_unconditional_first,
        "before",
        "denoising loss at the first step, without a prompt",
        "yeats2025dsm",
        guidance=True,
    ),
    Detector(
        "loss_guided_first",
        loss_guided_first,
        "before",
        "denoising loss at the first step, guided",
        "yeats2025dsm",
        guidance=True,
    ),
    Detector(
        "flipd_conditional",
        flipd_conditional,
        "after",
        "FLIPD, with the prompt",
        "kamkari2024flipd",
    ),
    Detector(
        "flipd_unconditional",
        flipd_unconditional,
        "after",
        "FLIPD, without a prompt",
        "kamkari2024flipd",
        guidance=True,
    ),
    Detector(
        "flipd_guided",
        flipd_guided,
        "after",
        "FLIPD, guided",
        "ross2025memorization",
        guidance=True,
    ),
    Detector(
        "loss_conditional",
        loss_conditional,
        "after",
        "denoising loss, with the prompt",
        "yeats2025dsm",
    ),
    Detector(
        "loss_unconditional",
        loss_unconditional,
        "after",
        "denoising loss, without a prompt",
        "yeats2025dsm",
        guidance=True,
    ),
    Detector(
        "loss_guided",
        loss_guided,
        "after",
        "denoising loss, guided",
        "yeats2025dsm",
        guidance=True,
    ),
    Detector(
        "freedom_taken",
        freedom_taken,
        "after",
        "degrees of freedom taken, traces",
        "ross2025memorization",
        guidance=True,
    ),
    Detector(
        "freedom_taken_loss",
        freedom_taken_loss,
        "after",
        "degrees of freedom taken, losses",
        "ross2025memorization",
        guidance=True,
    ),
    Detector(
        "spectral_conditional",
        spectral_conditional,
        "after",
        "soft count, with the prompt",
        "osada2026lhsd",
    ),
    Detector(
        "curvature_difference",
        curvature_difference,
        "after",
        "curvature difference",
        "kim2026curvature",
        guidance=True,
    ),
    Detector(
        "tiled_l2", tiled_l2, "images", "tiled l2 between seeds", "carlini2023extracting", many=True
    ),
    Detector(
        "seed_dimension",
        seed_dimension,
        "images",
        "dimension of the seeds",
        "carlini2023extracting",
        many=True,
    ),
    Detector(
        "nearest_pixels",
        nearest_pixels,
        "images",
        "nearest training image, pixels",
        "carlini2023extracting",
        training="pixels",
    ),
    Detector(
        "nearest_latents",
        nearest_latents,
        "images",
        "nearest training image, latents",
        "carlini2023extracting",
        training="latents",
    ),
    Detector(
        "nearest_embedding",
        nearest_embedding,
        "images",
        "nearest training image, embedding",
        "somepalli2023forgery",
        training="embedding",
    ),
)
DETECTORS: dict[str, Detector] = {detector.name: detector for detector in _ALL}

__all__ = ["DETECTORS", "Detector", "curvature_map"]
