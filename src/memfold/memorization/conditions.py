"""What a band holds for, as plain data: the arguments of the call, the scheduler, the switches."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import torch

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError

# What a call may vary under one band; everything else must be as it was calibrated.
FREE = frozenset({"prompt", "generator", "num_images_per_prompt", "output_type", "return_dict"})
# What no band can hold for: they see or replace the noise and the latents of a run.
NEVER = frozenset(
    {"latents", "noise", "prompt_embeds", "callback", "callback_steps", "callback_on_step_end"}
)
# Set by peft on the layers of an adapter, by IP-Adapters on processors, by enable_freeu on blocks.
_PEFT = ("scaling", "_active_adapter", "_disable_adapters", "merged_adapters")
_PARTS = ("unet", "transformer", "text_encoder", "controlnet", "image_encoder", "prior")
_GLANCE = 16  # numbers of each tensor
_SWITCHES = (*_PEFT, "scale", "s1", "s2", "b1", "b2")


def arguments_of(model: TextToImage, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the value of every argument of a call that must be as it was calibrated.

    Args:
        model: the pipeline.
        given: the arguments of the call.

    Returns:
        Plain data by argument, the pipeline's defaults included; those of `FREE` left out.

    Raises:
        InputError: a value can be neither written down nor compared.
    """
    parameters = inspect.signature(type(model.pipe).__call__).parameters
    named = [n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD][1:]
    defaults = {n: None if p.default is p.empty else p.default for n, p in parameters.items()}
    found = {}
    for name, value in ({n: defaults[n] for n in named} | {**model.options, **given}).items():
        if name in FREE:
            continue
        if name in NEVER and value is not None and value != defaults.get(name):
            raise InputError(
                f"{name} is given, and no band holds for a call with {name}; leave it out"
            )
        found[name] = plain(value, name)
    return found


def scheduler_of(pipe: Any) -> dict[str, Any]:
    """Give the class, the configuration and the table of a pipeline's scheduler as plain data."""
    scheduler = pipe.scheduler
    config = {k: plain(v, k) for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    table = getattr(scheduler, "alphas_cumprod", None)
    return {
        "scheduler": type(scheduler).__name__,
        "scheduler_config": config,
        "scheduler_table": plain(table, "alphas_cumprod"),
    }


def switches_of(pipe: Any) -> str:
    """Digest what changes a network's answer beside its weights: adapters' scales and switches.

    Args:
        pipe: the pipeline; its networks and text encoders are looked at.

    Returns:
        "blake2b:" and 32 hexadecimal digits.
    """
    total = hashlib.blake2b(digest_size=16)
    for name, part in parts_of(pipe).items():
        for place, module in part.named_modules():
            processor = getattr(vars(module).get("processor"), "__dict__", {})
            found = [
                (k, own[k]) for own in (vars(module), processor) for k in _SWITCHES if k in own
            ]
            if found:
                total.update(f"{name}.{place} {found};".encode())
    return f"blake2b:{total.hexdigest()}"


@torch.no_grad()
def glance_of(pipe: Any) -> str:
    """Digest a few numbers of every weight of a pipeline's networks and text encoders.

    Cheap enough for every call: one copy to the processor for each device and type. Weights that
    are off-loaded to nowhere (meta) are left to the full digest.

    Args:
        pipe: the pipeline.

    Returns:
        32 hexadecimal digits.
    """
    total = hashlib.blake2b(digest_size=16)
    rows: dict[tuple[str, str], list[torch.Tensor]] = {}
    for part in parts_of(pipe).values():
        for tensor in (*part.parameters(), *part.buffers()):
            if not tensor.is_meta:
                flat = tensor.detach().reshape(-1)
                some = flat[:: max(flat.numel() // _GLANCE, 1)]
                rows.setdefault((str(tensor.device), str(tensor.dtype)), []).append(some)
    for key, found in sorted(rows.items()):
        total.update(f"{key} {[len(f) for f in found]};".encode())
        total.update(torch.cat(found).to("cpu", torch.float64).numpy().tobytes())
    return total.hexdigest()


def parts_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return the networks and the text encoders of a pipeline: what decides the latents."""
    return {
        name: part
        for name, part in sorted(pipe.components.items())
        if isinstance(part, torch.nn.Module) and name.startswith(_PARTS)
    }


def plain(value: Any, name: str) -> Any:
    """Turn an argument's value into what JSON can hold and what can be compared.

    Args:
        value: None, a number, text, a sequence or mapping of such, a tensor, array or picture.
        name: of the argument, for the error.

    Returns:
        The value; a digest in place of a tensor, an array or a picture.

    Raises:
        InputError: it is of another kind.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), name)
    if isinstance(value, float):
        return value if isfinite(value) else repr(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v, name) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        kept = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [plain(v, name) for v in kept]
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu", torch.float64).numpy()
    if isinstance(value, np.ndarray) or hasattr(value, "__array_interface__"):
        rows = np.ascontiguousarray(value)
        digest = hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()
        return f"{rows.dtype} {rows.shape} blake2b:{digest}"
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    raise InputError(
        f"{name} is of the kind {type(value).__name__}, for which no band holds; leave it out"
    )


def negative_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the negative prompts among the arguments of a call, embedded or not; without empty."""
    return {k: v for k, v in arguments.items() if k.startswith("negative_prompt") and v}
