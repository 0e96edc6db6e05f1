"""Where in an image: a map of numbers laid over the picture, with its scale."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy import ndarray
from PIL import Image

from memfold.report import figures
from memfold.report.fields import REMEDY
from memfold.types import InputError

_COLOR = np.array([213.0, 72.0, 0.0])
_LARGEST = 0.85  # how much of the colour the top of the scale gets
_SIDE = (96, 256)  # pixels of a panel: at least, at most
_BOXES = 20


@dataclass(frozen=True)
class Heat:
    """Panels of one prompt.

    Attributes:
        panels: a picture as data URI and its description, one an image.
        scale: the scale, as SVG.
    """

    panels: tuple[tuple[str, str], ...]
    scale: Markup


def heat_of(images: Sequence[bytes], values: Sequence[float], shape: Sequence[int]) -> Heat | None:
    """Lay maps over pictures: grey where a map is 0 or less, coloured where it is large.

    Args:
        images: PNG of each picture.
        values: the maps, row after row, one after the other.
        shape: height and width of a map.

    Returns:
        The panels on one scale, whose end is the 99th percentile of all values; None where there
        is nothing to draw.
    """
    if len(shape) != 2 or not images or len(values) != len(images) * int(np.prod(shape)):
        return None
    maps = np.nan_to_num(np.asarray(values, dtype=float)).reshape(len(images), *map(int, shape))
    top = float(np.quantile(maps, 0.99))
    if top <= 0:
        return None
    panels = tuple(
        (_panel(png, grid / top), _words(i, grid))
        for i, (png, grid) in enumerate(zip(images, maps, strict=True), start=1)
    )
    return Heat(panels, Markup(_scale(top)))


def _words(index: int, grid: ndarray) -> str:
    """Describe a map for those who do not see it: how much, and where most of it lies."""
    h, w = grid.shape
    thirds = [[grid[_third(h, r), _third(w, c)].mean() for c in range(3)] for r in range(3)]
    row, column = np.unravel_index(int(np.argmax(thirds)), (3, 3))
    place = f"{('top', 'middle', 'bottom')[row]} {('left', 'centre', 'right')[column]}"
    return f"map of image {index}: mean {_short(float(grid.mean()))}, most at the {place}"


def _short(value: float) -> str:
    """Freedom at one place is a small number: two digits that count."""
    return f"{value:.2g}".replace("-", "−")


def _third(length: int, part: int) -> slice:
    first = part * length // 3
    return slice(first, max((part + 1) * length // 3, first + 1))


def _panel(png: bytes, share: ndarray) -> str:
    """Blend a map, 1 at the end of the scale, over a grey picture; as a data URI."""
    try:
        picture = Image.open(io.BytesIO(png)).convert("L")
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for a damaged file
        raise InputError(f"a picture is no readable PNG ({error}); {REMEDY}") from error
    factor = min(max(1.0, _SIDE[0] / max(picture.size)), _SIDE[1] / max(picture.size))
    width, height = (max(round(side * factor), 1) for side in picture.size)
    grey = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=float)
    smooth = Image.fromarray(share.clip(0, 1).astype(np.float32))
    weight = np.asarray(smooth.resize((width, height), Image.Resampling.BILINEAR))[..., None]
    mixed = _mixed(grey[..., None], weight)
    buffer = io.BytesIO()
    Image.fromarray(mixed.round().astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _mixed(grey: ndarray, weight: ndarray) -> ndarray:
    return grey * (1 - _LARGEST * weight) + _COLOR * _LARGEST * weight


def _scale(top: float) -> str:
    """Draw the scale over a middle grey, from 0 to the top."""
    parts, width = [], 180.0
    for i in range(_BOXES):
        weight = np.array([(i + 0.5) / _BOXES])
        color = ",".join(str(int(v)) for v in _mixed(np.full(3, 128.0), weight).round())
        x = 10 + i * width / _BOXES
        parts.append(
            f'<rect x="{x:.1f}" y="4" width="{width / _BOXES + 0.3:.1f}" height="10" '
            f'fill="rgb({color})"/>'
        )
    for x, label, anchor in ((10, "0 or less", "start"), (190, f"{_short(top)} or more", "end")):
        parts.append(f'<text x="{x}" y="28" text-anchor="{anchor}">{figures.escape(label)}</text>')
    said = f"Scale: grey for 0 or less, coloured for {_short(top)} degrees of freedom or more"
    return figures.svg(200, 34, parts, said)
