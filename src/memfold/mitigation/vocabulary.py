"""Words that a text encoder knows, and texts as it sees them: what rewriting chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memfold.denoisers.adapters.text_to_image import TextToImage
from memfold.denoisers.adapters.tokenizers import own_tokenizer
from memfold.denoisers.adapters.weights import device_of, weight_of
from memfold.types import InputError

_BATCH = 32


@dataclass(frozen=True)
class Vocabulary:
    """The whole words of a tokenizer, with their rows of the encoder's embedding table.

    Attributes:
        tokenizer: a copy of the pipeline's first.
        encoder: the text encoder that belongs to it.
        words: whole words of letters alone, sorted.
        rows: their embeddings, each of norm 1.
    """

    tokenizer: Any
    encoder: Any
    words: tuple[str, ...]
    rows: Float[Tensor, "words width"]

    @torch.no_grad()
    def near(self, word: str, k: int) -> list[str]:
        """Return the k words nearest to a word by cosine; inflections of itself are left out.

        Args:
            word: any word; of several tokens, their mean stands for it.
            k: how many.

        Returns:
            The words, nearest first.
        """
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        table = weight_of(self.encoder.get_input_embeddings())
        if not ids:
            return []
        row = torch.nn.functional.normalize(table[ids].float().mean(0), dim=0).cpu()
        order = (self.rows @ row).argsort(descending=True).tolist()
        own, found = word.casefold(), []
        for i in order:
            other = self.words[i].casefold()
            if not (other.startswith(own) or own.startswith(other)):
                found.append(self.words[i])
            if len(found) == k:
                break
        return found

    @torch.no_grad()
    def pooled(self, texts: list[str]) -> Float[Tensor, "texts width"]:
        """Embed whole texts, each to norm 1: the encoder's pooled output, or the tokens' mean."""
        parts = []
        for start in range(0, len(texts), _BATCH):
            given = self.tokenizer(
                texts[start : start + _BATCH], padding=True, truncation=True,
                max_length=min(self.tokenizer.model_max_length, 512), return_tensors="pt",
            )  # fmt: skip
            names, device = ("input_ids", "attention_mask"), device_of(self.encoder)
            asked = {k: given[k].to(device) for k in names if k in given}
            out = self.encoder(**asked)
            whole = getattr(out, "text_embeds", None)
            whole = getattr(out, "pooler_output", None) if whole is None else whole
            if whole is None:
                mask = given["attention_mask"].to(device)[..., None]
                last = getattr(out, "last_hidden_state", None)
                if last is None:  # a language model with its head
                    last = self.encoder(**asked, output_hidden_states=True).hidden_states[-1]
                whole = (last * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(whole.float().cpu(), dim=1))
        return torch.cat(parts)


def vocabulary(model: TextToImage) -> Vocabulary:
    """Read the words of the pipeline's first tokenizer.

    Args:
        model: the pipeline.

    Returns:
        The vocabulary.

    Raises:
        InputError: the pipeline has no tokenizer with a text encoder, or no whole words in it.
    """
    tokenizer = own_tokenizer(model.pipe, "tokenizer")
    encoder = getattr(model.pipe, "text_encoder", None)
    if tokenizer is None or encoder is None or not hasattr(encoder, "get_input_embeddings"):
        raise InputError(f"{model.name} has no tokenizer and text encoder; words cannot be chosen")
    table = weight_of(encoder.get_input_embeddings())
    given = tokenizer.get_vocab()
    marked = any(t.endswith("</w>") or t[:1] in ("\u2581", "\u0120") for t in given)
    found: dict[str, int] = {}
    for token, index in given.items():
        word = token.removesuffix("</w>").lstrip("\u2581\u0120")
        whole = not marked or token.endswith("</w>") or token[:1] in ("\u2581", "\u0120")
        if whole and len(word) > 2 and word.isalpha() and index < len(table):
            found.setdefault(word.lower() if word.lower() not in found else word, index)
    if not found:
        raise InputError(f"{model.name}: no whole words in its tokenizer; words cannot be chosen")
    words = tuple(sorted(found))
    rows = table[[found[w] for w in words]].float().cpu()
    return Vocabulary(tokenizer, encoder, words, torch.nn.functional.normalize(rows, dim=1))
