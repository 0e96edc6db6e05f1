"""A map over a picture: where it is coloured, what the scale says, what is told in words."""

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from memfold.report.heat_figure import heat_of


def picture(level=128, size=(32, 24)):
    buffer = io.BytesIO()
    Image.new("L", size, level).save(buffer, format="PNG")
    return buffer.getvalue()


def pixels(uri):
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data))).astype(int)


def drawn(grid, level=128):
    grid = np.asarray(grid, dtype=float)
    return heat_of([picture(level)], grid.flatten().tolist(), grid.shape)


def test_colour_lies_where_the_map_is_large():
    grid = np.zeros((6, 8))
    grid[:3, 4:] = 2.0
    ((uri, said),) = drawn(grid).panels
    found = pixels(uri)
    assert found.shape == (72, 96, 3)
    red = found[..., 0] - found[..., 2]
    assert red[:30, 60:].min() > 150
    assert np.abs(red[48:]).max() == 0
    assert np.abs(red[:, :36]).max() == 0
    assert "most at the top right" in said
    assert "mean 0.5" in said


def test_negative_numbers_are_grey_and_the_picture_shows():
    grid = -np.ones((4, 4))
    grid[0, 0] = 1.0
    for level in (40, 200):
        ((uri, _),) = drawn(grid, level).panels
        assert (pixels(uri)[-10:, -10:] == level).all()


def test_all_images_have_one_scale():
    grids = np.stack([np.full((4, 4), 0.5), np.full((4, 4), 1.0)])
    heat = heat_of([picture(0), picture(0)], grids.flatten().tolist(), (4, 4))
    weak, strong = (pixels(uri)[20, 20, 0] for uri, _ in heat.panels)
    assert weak == pytest.approx(strong / 2, abs=1)
    scale = ElementTree.fromstring(heat.scale)
    assert scale.get("role") == "img"
    assert "1 degrees of freedom or more" in scale.get("aria-label")


@pytest.mark.parametrize(
    ("images", "values", "shape"),
    [
        ([], [], []),
        ([picture()], [], []),
        ([picture()], [1.0, 2.0], [2, 2]),
        ([picture()], [0.0] * 4, [2, 2]),
        ([picture()], [float("nan")] * 4, [2, 2]),
        ([picture()], [-1.0] * 4, [2, 2]),
    ],
)
def test_nothing_to_draw_draws_nothing(images, values, shape):
    assert heat_of(images, values, shape) is None
