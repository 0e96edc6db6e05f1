"""The weights of a module wherever they stand, its adapters, and a quick sign of a change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_LONG = 4096  # rows: a table of embeddings, of which one may change alone
_FEW = 16  # numbers of any other tensor that show in passing whether it has changed


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return a module's state with the weights that are off-loaded, not their empty stand-ins.

    Args:
        module: accelerate's sequential off-loading may hold its weights.

    Returns:
        Names and tensors, detached, each on the device where it is kept.
    """
    state = module.state_dict()
    return {k: v if v.device.type != "meta" else _kept(module, k, v) for k, v in state.items()}


def weight_of(module: torch.nn.Module, name: str = "weight") -> Tensor:
    """Return one of a module's own tensors, off-loaded or not, detached."""
    here = getattr(module, name).detach()
    return here if here.device.type != "meta" else _kept(module, name, here)


def device_of(module: torch.nn.Module) -> torch.device:
    """Return where a module computes: its execution device, if its weights are off-loaded."""
    for part in module.modules():
        for hook in _hooks(part):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _kept(module: torch.nn.Module, name: str, stand_in: Tensor) -> Tensor:
    """Find a tensor in the map of the hook that holds it, the module's own or a parent's."""
    parents = name.split(".")[:-1]
    for depth in range(len(parents), -1, -1):
        owner = module.get_submodule(".".join(parents[:depth]))
        own = ".".join(name.split(".")[depth:])
        for hook in _hooks(owner):
            held = getattr(hook, "weights_map", None)
            if held is None:
                continue
            try:
                return held[own].detach()
            except KeyError:
                continue
    return stand_in


def _hooks(module: torch.nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def adapter_settings(module: torch.nn.Module) -> list[str]:
    """Say of each layer with an adapter which are active, at what scale, switched off or fused."""
    found = []
    for name, layer in module.named_modules():
        if hasattr(layer, "_disable_adapters"):
            scales = getattr(layer, "scaling", {})
            active = list(getattr(layer, "active_adapters", []))
            says = {
                "active": {a: float(scales[a]) if a in scales else None for a in active},
                "off": bool(layer._disable_adapters),
                "fused": list(getattr(layer, "merged_adapters", [])),
            }
            found.append(f"{name} {json.dumps(says, sort_keys=True)}")
    return found


@torch.no_grad()
def glance(pipe: Any) -> int:
    """Tell in passing whether what makes a pipeline's conditions has changed, in one number.

    It covers every part but the autoencoder: which object it is; for modules the place and version
    of each tensor, and the adapters; and, except for the denoising network, a few numbers of each
    tensor (one of each row of a long table), since writing into `.data` leaves no version.

    Args:
        pipe: a pipeline.

    Returns:
        A hash, the same as long as nothing changed.
    """
    signs: list[Any] = [repr(sorted(dict(getattr(pipe, "config", {})).items(), key=str))]
    for name, part in pipe.components.items():
        if not isinstance(part, torch.nn.Module):
            signs.append((name, id(part), len(part) if hasattr(part, "__len__") else 0))
        elif name != "vae":
            read = name not in ("unet", "transformer")
            signs += [(name, id(part), *adapter_settings(part)), *_signs(part, read)]
    return hash(tuple(signs))


def _signs(module: torch.nn.Module, read: bool) -> Iterator[Any]:
    """Yield the place and version of each tensor and, if they are to be read, a few numbers."""
    few: list[Tensor] = []
    for tensor in state_of(module).values():
        version = 0 if tensor.is_inference() else tensor._version
        yield tensor.data_ptr(), version, tuple(tensor.shape)
        if read and tensor.numel():
            rows = tensor[:, 0] if tensor.ndim == 2 and len(tensor) > _LONG else None
            flat = tensor.reshape(-1)
            some = flat[:: max(flat.numel() // _FEW, 1)] if rows is None else rows
            few.append(some.float())
    yield torch.cat([f.cpu() for f in few]).numpy().tobytes() if few else b""
