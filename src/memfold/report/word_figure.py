"""A prompt's words, shaded by weight, as an SVG file that stands alone."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from memfold.report.figures import escape, printable, svg

_WIDE, _LINE, _SIZE = 640, 34, 20
_GLYPH = 0.62 * _SIZE  # a generous width of one character
_LONGEST = 48  # places of a word that are shown
_MOST = 200  # words that are shown


def shaded_words(words: Sequence[str], weights: Sequence[float]) -> str:
    """Draw words in lines, each on a ground as dark as its weight.

    Args:
        words: the words; any characters.
        weights: one a word, at least 0; the largest has the full colour.

    Returns:
        The SVG document, with its own colours. At most 200 words are drawn, and 48 characters of
        each (half as many wide ones); an ellipsis says so.

    Raises:
        ValueError: words and weights differ in number.
    """
    finite = [w for w in weights if math.isfinite(w)]
    top = max(finite, default=0.0) or 1.0
    parts, x, line = [], 8.0, 0
    for word, weight in zip(_shown(words), _cut(weights), strict=True):
        text = _short(word)
        width = _GLYPH * sum(map(_wide, text)) + 10
        if x > 8 and x + width > _WIDE - 8:
            x, line = 8.0, line + 1
        share = max(weight / top, 0.0) if math.isfinite(weight) else 0.0
        parts.append(_word(text, weight, share, x, 8.0 + _LINE * line, width))
        x += width + 6
    if len(words) > _MOST:
        parts.append(f'<text x="{x:.0f}" y="{8 + _LINE * line + 21}" font-size="20">…</text>')
    name = "Words of the prompt, shaded by weight"
    return svg(_WIDE, _LINE * (line + 1) + 12, parts, name)


def _wide(character: str) -> int:
    """Places of a character: CJK and emoji take two."""
    return 2 if ord(character) > 0x2E7F else 1


def _short(word: str) -> str:
    places = list(accumulate(map(_wide, word)))
    if not places or places[-1] <= _LONGEST:
        return word
    return word[: bisect_right(places, _LONGEST - 1)] + "…"


def _shown(words: Sequence[str]) -> list[str]:
    return [printable(word) for word in words[:_MOST]]


def _cut(weights: Sequence[float]) -> list[float]:
    return [float(w) for w in weights[:_MOST]]


def _word(text: str, weight: float, share: float, x: float, y: float, width: float) -> str:
    """A word on its ground; white where the ground is dark."""
    ink = "#ffffff" if share > 0.6 else "#1c1c1c"
    return (
        f'<g><title>{escape(text)}: {weight:.3g}</title><rect x="{x:.1f}" y="{y:.0f}" '
        f'width="{width:.1f}" height="28" rx="5" fill="#fff6f2"/><rect x="{x:.1f}" y="{y:.0f}" '
        f'width="{width:.1f}" height="28" rx="5" fill="#b3261e" fill-opacity="{share:.3f}"/>'
        f'<text x="{x + 5:.1f}" y="{y + 21:.0f}" font-family="ui-monospace, monospace" '
        f'font-size="{_SIZE}" fill="{ink}">{escape(text)}</text></g>'
    )
