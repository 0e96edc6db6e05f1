"""From the tokens that a text encoder was given to the words of the prompt."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
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

    Example:
        >>> " + ".join(word.text for word in words_of("a  well-known dog"))
        'a + well-known + dog'
    """
    return tuple(Word(m.group(), m.start(), m.end()) for m in _WORD.finditer(prompt))


def word_of_tokens(tokenizer: Any, ids: Sequence[int], prompt: str) -> list[int | None]:
    """Find the word that each token belongs to.

    The prompt is tokenized alone, with offsets into its characters, and looked for inside what the
    encoder was given: special tokens, padding, and text that a pipeline puts around the prompt
    belong to no word. The longest common run counts first, then what stands in the same order on
    either side of it; a truncated prompt is so found by its beginning.

    Args:
        tokenizer: the encoder's tokenizer.
        ids: the tokens that the encoder was given.
        prompt: the prompt.

    Returns:
        For each token the index of its word, or None.
    """
    words, given = words_of(prompt), list(ids)
    best: tuple[int, list[int | None]] = (0, [None] * len(given))
    for text, shift in _variants(prompt[: _reach(words, len(given))]):
        own, spans = _tokenized(tokenizer, text)
        own = own[: len(given)]  # no more can have reached the encoder
        found: list[int | None] = [None] * len(given)
        count = 0
        for start, place, length in _common(given, own):
            count += length
            for i in range(length):
                first, last = spans[place + i]
                found[start + i] = _word_at(words, first + shift, last + shift)
        if count > best[0]:
            best = (count, found)
        if own and count == len(own):
            break
    return best[1]


def _reach(words: Sequence[Word], tokens: int) -> int:
    """Find how many characters can have reached an encoder; some words may have no token."""
    return words[min(len(words), 4 * tokens + 16) - 1].end if words else 0


def _variants(prompt: str) -> list[tuple[str, int]]:
    """Give what a pipeline may have made of a prompt, with its first character's place there."""
    lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in prompt)  # same length
    shift = len(prompt) - len(prompt.lstrip())
    pairs = [(prompt, 0), (prompt.strip(), shift), (lower, 0), (lower.strip(), shift)]
    return list(dict(pairs).items())


def _tokenized(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize a text alone; by its words where the tokenizer knows no offsets."""
    if getattr(tokenizer, "is_fast", False):
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(out["input_ids"]), [tuple(pair) for pair in out["offset_mapping"]]
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for word in words_of(text):
        own = tokenizer(word.text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += own
        spans += [(word.start, word.end)] * len(own)
    return ids, spans


def _common(given: list[int], own: list[int]) -> list[tuple[int, int, int]]:
    """Find the common runs, in order: place in `given`, place in `own`, length."""
    blocks = SequenceMatcher(None, given, own, autojunk=False).get_matching_blocks()
    return [(b.a, b.b, b.size) for b in blocks if b.size]


def _word_at(words: Sequence[Word], start: int, end: int) -> int | None:
    """Find the word with the largest overlap; None where there is none."""
    first = max(bisect_right(words, start, key=lambda w: w.start) - 1, 0)
    overlaps: dict[int, int] = {}
    for i in range(first, len(words)):
        if words[i].start >= end:
            break
        overlaps[i] = min(end, words[i].end) - max(start, words[i].start)
    best = max(overlaps, key=lambda i: overlaps[i], default=None)
    return best if best is not None and overlaps[best] > 0 else None
