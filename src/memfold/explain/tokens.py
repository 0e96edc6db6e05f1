"""From the tokens that a text encoder was given to the words of the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Word:
    """A piece of a prompt between white space.

    Attributes:
        text: the piece as it stands.
        start: its first character in the prompt.
        end: the character after its last.
    """

    text: str
    start: int
    end: int


def words_of(prompt: str) -> tuple[Word, ...]:
    """Split a prompt at white space.

    Args:
        prompt: the prompt.

    Returns:
        Its words with their places.

    >>> [word.text for word in words_of("a  well-known dog")]
    ['a', 'well-known', 'dog']
    """
    return tuple(Word(m.group(), m.start(), m.end()) for m in _WORD.finditer(prompt))


def word_of_tokens(tokenizer: Any, ids: Sequence[int], prompt: str) -> list[int | None]:
    """Find the word that each token belongs to.

    The prompt is tokenized alone, with offsets into its characters, and looked for inside what the
    encoder was given: special tokens, padding, and text that a pipeline puts around the prompt
    belong to no word. A truncated prompt is found by its beginning.

    Args:
        tokenizer: the encoder's tokenizer.
        ids: the tokens that the encoder was given.
        prompt: the prompt.

    Returns:
        For each token the index of its word, or None.
    """
    words, given = words_of(prompt), list(ids)
    best: tuple[int, int, list[int | None]] = (0, 0, [])
    for text in dict.fromkeys((prompt, prompt.strip(), prompt.lower(), prompt.lower().strip())):
        shift = prompt.find(text) if text in prompt else len(prompt) - len(prompt.lstrip())
        own, spans = _tokenized(tokenizer, text)
        if not own:
            continue
        start, length = _longest_run(given, own)
        if length > best[1]:
            places = [_word_at(words, a + shift, b + shift) for a, b in spans]
            best = (start, length, places[:length])
        if length == len(own):
            break
    found: list[int | None] = [None] * len(given)
    start, length, places = best
    found[start : start + length] = places
    return found


def _tokenized(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize a text alone; by its words where the tokenizer knows no offsets."""
    if getattr(tokenizer, "is_fast", False):
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(out["input_ids"]), [tuple(pair) for pair in out["offset_mapping"]]
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for word in words_of(text):
        own = tokenizer(word.text, add_special_tokens=False)["input_ids"]
        ids += own
        spans += [(word.start, word.end)] * len(own)
    return ids, spans


def _longest_run(given: list[int], own: list[int]) -> tuple[int, int]:
    """Find where the longest beginning of `own` stands in `given`."""
    best = (0, 0)
    for start in range(len(given)):
        length = 0
        while (
            length < len(own)
            and start + length < len(given)
            and given[start + length] == own[length]
        ):
            length += 1
        if length > best[1]:
            best = (start, length)
    return best


def _word_at(words: Sequence[Word], start: int, end: int) -> int | None:
    """Find the word with the largest overlap; None where there is none."""
    overlaps = [min(end, w.end) - max(start, w.start) for w in words]
    best = max(range(len(words)), key=lambda i: overlaps[i], default=None)
    return best if best is not None and overlaps[best] > 0 else None
