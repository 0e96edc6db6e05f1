"""The cross-attention of a running pipeline, read beside it: nothing of it is replaced."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memfold.denoisers.adapters.scope import Scope, is_compiled
from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.types import InputError


class AttentionWatch:
    """Attention to the prompt's end token, and entropy over tokens, averaged over heads and layers.

    Hooks recompute the weights softmax(q k / sqrt(d)) from what each layer is given. The end token
    is looked for where the tokens of `text_encoder` are the keys of the layers, one by one; in
    pipelines that join or cut texts (HunyuanDiT, Sana's long instruction) there is no end map.

    Args:
        model: a pipeline whose network has cross-attention layers.

    Raises:
        InputError: there is no such layer, or the network is compiled.
    """

    def __init__(self, model: TextToImage) -> None:
        self.model = model
        self.layers = [
            module
            for name, module in model.network.named_modules()
            if name.rpartition(".")[2] == "attn2" and _is_plain(module)
        ]
        if any(map(is_compiled, model.network.modules())):
            raise InputError(
                f"{model.name}'s network is compiled, and its layers cannot be watched; leave "
                "attention=True out"
            )
        if not self.layers:
            raise InputError(
                f"{model.name}'s network has no cross-attention layers (looked for attn2 with "
                "to_q); leave attention=True out"
            )
        self._stack = ExitStack()
        self._seen: list[Tensor] = []
        self._ends: Tensor | None = None
        self._tokens = 0
        self._error: Exception | None = None

    def __enter__(self) -> AttentionWatch:
        """Begin to watch."""
        self._seen, self._ends, self._error = [], None, None
        scope = self._stack.enter_context(Scope(self.model.pipe).opened())
        for layer in self.layers:
            self._stack.enter_context(scope.hooked(layer, before=partial(self._read, layer)))
        encoder = getattr(self.model.pipe, "text_encoder", None)
        if encoder is not None:
            self._stack.enter_context(scope.hooked(encoder, before=self._read_ids))
        return self

    def __exit__(self, *error: object) -> None:
        """Take the hooks away."""
        self._stack.close()
        self._seen = []

    def stop(self) -> None:
        """Keep nothing from here on."""
        self._seen, self._error = [], InputError("the watch was stopped")

    def take(self, n: int, guided: bool) -> tuple[Tensor | None, Tensor]:
        """Return what the layers showed since the last call: end maps (n, h, w), entropies (n,).

        Raises:
            InputError: no layer was called. What a hook met is raised here too: it must not end
                the run from inside the network.
        """
        if self._error is not None:
            raise self._error
        seen, self._seen = self._seen, []
        if not seen:
            raise InputError("no cross-attention layer was called in this step")
        half = self.model.layout.conditional or 0
        if guided and self.model.layout.calls == 1:
            seen = [p.chunk(2)[half] for p in seen]
        elif guided:
            seen = seen[half * len(seen) // 2 : (half + 1) * len(seen) // 2]
        entropy = torch.stack([-(p * p.clamp_min(1e-12).log()).sum(-1).mean(1) for p in seen])
        if self._ends is None:
            return None, entropy.mean(0)
        ends = self._ends.repeat_interleave(max(n // len(self._ends), 1))[:n].to(seen[0].device)
        maps = []
        for p in seen:
            if p.shape[-1] != self._tokens:
                return None, entropy.mean(0)
            value = p.gather(2, ends.view(-1, 1, 1).expand(-1, p.shape[1], 1)).squeeze(-1)
            side = round(value.shape[1] ** 0.5)
            if side * side == value.shape[1]:
                maps.append(value.reshape(n, 1, side, side))
        if not maps:
            return None, entropy.mean(0)
        size = max(m.shape[-1] for m in maps)
        scaled = [
            torch.nn.functional.interpolate(m, size=(size, size), mode="bilinear") for m in maps
        ]
        return torch.stack(scaled).mean(0).squeeze(1), entropy.mean(0)

    @torch.no_grad()
    def _read(self, layer: Any, run: Any, args: tuple, kwargs: dict) -> None:
        """Keep a layer's weights; an error is kept for `take`."""
        if self._error is None:
            try:
                found = _weights(layer, args, kwargs)
                self._seen += [] if found is None else [found]
            except Exception as error:
                self._seen, self._error = [], error

    def _read_ids(self, run: Any, args: tuple, kwargs: dict) -> None:
        """Note where each prompt ends; the prompts are encoded before the empty ones."""
        ids = args[0] if args else kwargs.get("input_ids")
        token = getattr(getattr(run, "tokenizer", None), "eos_token_id", None)
        if self._ends is not None or not isinstance(ids, Tensor) or token is None:
            return
        if ids.ndim == 2 and bool((ids == token).any(1).all()):
            self._ends, self._tokens = (ids == token).int().argmax(1), ids.shape[1]


def _is_plain(module: Any) -> bool:
    """Tell whether a layer has as many heads of keys as of queries (Lumina-Next shares them)."""
    if not hasattr(module, "to_q") or not hasattr(module, "to_k"):
        return False
    return bool(len(module.to_q.weight) == len(module.to_k.weight))


def _weights(layer: Any, args: tuple, kwargs: dict) -> Tensor | None:
    """Compute a layer's attention, mean over heads, (b, places, tokens); None without a text."""
    hidden = args[0] if args else kwargs["hidden_states"]
    text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    if isinstance(text, tuple):  # an IP-Adapter's images stand behind the text
        text = text[0]
    if text is None:
        return None
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    q, k = _queries(layer, hidden, kwargs), _keys(layer, text)
    scale = getattr(layer, "scale", q.shape[-1] ** -0.5)  # Wan's layers do not say it
    logits = q.float() @ k.float().transpose(-1, -2) * scale
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.shape[-1] == logits.shape[-1]:
        bias = mask.float() if mask.is_floating_point() else (1.0 - mask.float()) * -1e4
        logits = logits + bias.reshape(len(bias), 1, -1, logits.shape[-1])
    return logits.softmax(-1).mean(1)


def _queries(layer: Any, hidden: Tensor, kwargs: dict) -> Tensor:
    """Compute a layer's queries, (b, heads, places, d), turned by the places where it does so."""
    q = _split(layer, "norm_q", layer.to_q(hidden))
    if kwargs.get("image_rotary_emb") is None:
        return q
    from diffusers.models.embeddings import apply_rotary_emb

    return apply_rotary_emb(q, kwargs["image_rotary_emb"])


def _keys(layer: Any, text: Tensor) -> Tensor:
    """Compute a layer's keys, (b, heads, tokens, d)."""
    norm = getattr(layer, "norm_cross", None)
    return _split(layer, "norm_k", layer.to_k(text if norm is None else norm(text)))


def _split(layer: Any, name: str, value: Tensor) -> Tensor:
    """Part (b, n, heads d) into (b, heads, n, d); norms are over one head or across all."""
    norm = getattr(layer, name, None)
    across = getattr(getattr(norm, "weight", None), "numel", int)() == value.shape[-1]
    if norm is not None and across:
        value = norm(value)
    value = value.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    return value if norm is None or across else norm(value)
