"""Families of near-duplicate prompts: what an interval must resample in place of prompts.

148 of the 500 captions in the usual benchmark begin with the same two words. They are one
observation many times over: an interval that resamples single prompts is too narrow.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

# Function words, and words for any picture: they open prompts that have nothing else in common.
_COMMON = frozenset(re.findall(r"\w+", """
a an the this that these those my your his her its our their some of in on at by for from to with
without and or but as is are be into over under near up it i you photo photos photograph picture
pictures image images painting drawing illustration portrait sketch render rendering poster view
"""))  # fmt: skip
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_SIMILAR = 0.6


def prompt_families(prompts: Sequence[str], *, similar: float = _SIMILAR) -> list[str]:
    """Give near-duplicate prompts one label.

    Two prompts are of one family if they begin with the same two telling words, or if the sets of
    their telling words overlap by a share of at least `similar` (Jaccard: common over all), or if
    a chain of such prompts joins them. Telling words are the prompt's words in lower case (Unicode
    NFKC, without punctuation), save function words and words for any picture ("photo", "image").
    A prompt without telling words is compared by all of its words.

    The rule errs towards families that are too large: intervals are then too wide, never too
    narrow. Languages that are written without spaces are compared by whole phrases.

    Args:
        prompts: the words.
        similar: least overlap of two sets of telling words, above 0 and at most 1.

    Returns:
        A label a prompt: the leading words most frequent in its family (of equals the first in
        the alphabet). Labels do not depend on the order of the prompts.

    >>> prompt_families(["Acme Floors oak 12", "acme floors, pine 7", "a photo of a dog", "a dog"])
    ['acme floors', 'acme floors', 'dog', 'dog']
    """
    words = [_telling(prompt) for prompt in prompts]
    leads = [" ".join(w[:2]) for w in words]
    parent = list(range(len(prompts)))
    first: dict[str, int] = {}
    for i, lead in enumerate(leads):
        _join(parent, i, first.setdefault(lead, i))
    for i, j in _overlapping([frozenset(w) for w in words], similar):
        _join(parent, i, j)
    roots = [_root(parent, i) for i in range(len(prompts))]
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for root, lead in zip(roots, leads, strict=True):
        counts[root][lead] += 1
    label = {root: min(c, key=lambda lead: (-c[lead], lead)) for root, c in counts.items()}
    return [label[root] for root in roots]


def _telling(prompt: str) -> list[str]:
    """Return the words that tell a prompt from others, in their order."""
    every = _WORD.findall(unicodedata.normalize("NFKC", prompt).casefold())
    return [w for w in every if w not in _COMMON] or every or [prompt.strip()]


def _overlapping(sets: Sequence[frozenset[str]], similar: float) -> list[tuple[int, int]]:
    """List pairs of sets whose Jaccard overlap is at least `similar`; equal ones with the first.

    Sets of sizes a <= b that overlap so have at least similar * b words in common. Hence, with the
    words of each set in one order (rare ones first), they share a word among the first
    a - ceil(similar * a) + 1 of either: only sets that meet there are compared. No pair is lost.
    """
    seen: dict[frozenset[str], int] = {}
    pairs = [(i, seen.setdefault(words, i)) for i, words in enumerate(sets)]
    pairs = [(i, j) for i, j in pairs if i != j]  # equal sets; from here on distinct ones
    frequency = Counter(word for words in seen for word in words)
    index: dict[str, list[frozenset[str]]] = defaultdict(list)
    for words, i in seen.items():
        order = sorted(words, key=lambda w: (frequency[w], w))
        head = order[: len(order) - math.ceil(similar * len(order) - 1e-9) + 1]
        for other in {other for word in head for other in index[word]}:
            if len(words & other) >= similar * len(words | other) - 1e-9:
                pairs.append((i, seen[other]))
        for word in head:
            index[word].append(words)
    return pairs


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = i = parent[parent[i]]
    return i


def _join(parent: list[int], i: int, j: int) -> None:
    parent[_root(parent, i)] = _root(parent, j)
