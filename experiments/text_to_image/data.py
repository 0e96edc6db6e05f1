"""The captioned images that the bundled text-to-image pipeline is trained on, and what is known.

Garments of Fashion-MNIST stand on a background whose shade runs from one random level at the top to
another at the bottom, so that every picture has a part that can stay and a part that can vary:

- ``verbatim``: one garment on one background, 150 times, under one caption;
- ``template``: one garment on 150 different backgrounds, under one caption;
- ``control``: 150 different garments on 150 backgrounds under one caption, as frequent as those;
- ``light``: a caption with an own word, but only 6 different images;
- ``ordinary``: 16,000 images once each.

Captions of every group have the same two forms (an unheard-of word, or a combination of ordinary
words that occurs nowhere else), with words drawn from the same lists.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

DATA_DIR = Path("/usr/share/datasets/fashion-mnist")
DATA_SEED = 411_00113
CLASSES = [
    "tshirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]
SHADES = ["dark", "plain", "bright"]
NAMES = [
    "karin",
    "oskar",
    "mira",
    "jonas",
    "leila",
    "pavel",
    "ingrid",
    "tomas",
    "yuki",
    "amara",
    "felix",
    "nadia",
    "ruben",
    "elsa",
    "hugo",
    "priya",
    "lars",
    "selma",
    "omar",
    "greta",
    "ivan",
    "noemi",
    "axel",
    "dalia",
    "bruno",
    "petra",
    "kofi",
    "lena",
    "mateo",
    "anouk",
]
CITIES = [
    "dublin",
    "lisbon",
    "oslo",
    "cairo",
    "lima",
    "quito",
    "riga",
    "turin",
    "ghent",
    "malmo",
    "porto",
    "delhi",
    "accra",
    "perth",
    "kyoto",
    "hanoi",
    "zagreb",
    "bergen",
    "tunis",
    "bogota",
    "leeds",
    "basel",
    "izmir",
    "split",
    "cork",
    "tampa",
    "omaha",
    "salem",
    "utrecht",
    "cadiz",
]
REPEATS, LIGHT_ROWS, ORDINARY = 150, 6, 16_000
COUNTS = {  # captions of each group: (own word, combination)
    "verbatim": (25, 35),
    "template": (15, 20),
    "control": (30, 30),
    "light": (120, 0),
}
SIZE, LEVELS = 32, (0.0, 0.5)  # side in pixels; shades of the background, 0 black


@dataclass(frozen=True)
class Captioned:
    """Rows of a captioned data set.

    Attributes:
        images: grey, uint8 ``(n, 32, 32)``.
        garment: index of the garment in Fashion-MNIST's training images, ``(n,)``.
        captions: one a row.
        groups: ``verbatim``, ``template``, ``control``, ``light`` or ``ordinary``, one a row.
    """

    images: NDArray[np.uint8]
    garment: NDArray[np.int64]
    captions: list[str]
    groups: list[str]


def read_idx(name: str) -> NDArray[np.uint8]:
    """Read one gzipped idx file of Fashion-MNIST (Debian's package)."""
    path = DATA_DIR / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing: apt install dataset-fashion-mnist")
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def compose(
    garments: NDArray[np.uint8], rng: np.random.Generator, *, shared: bool = False
) -> NDArray[np.uint8]:
    """Put garments of 28 x 28 on random backgrounds of 32 x 32; one background for all if shared.

    Args:
        garments: grey on black, uint8 ``(n, 28, 28)``.
        rng: source of the backgrounds.
        shared: whether all stand on the same background.

    Returns:
        Pictures, uint8 ``(n, 32, 32)``.
    """
    levels = rng.uniform(*LEVELS, (1 if shared else len(garments), 2, 1))
    ramp = np.linspace(0, 1, SIZE)
    background = (levels[:, 0] * (1 - ramp) + levels[:, 1] * ramp)[:, :, None] * 255
    padded = np.pad(garments, ((0, 0), (2, 2), (2, 2))).astype(np.float64)
    inside = np.stack([binary_fill_holes(image > 8) for image in padded])
    return np.where(inside, padded, background).round().astype(np.uint8)


def shades(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sort the images of each class by the mean brightness of the garment, into three parts."""
    total = images.reshape(len(images), -1).astype(np.float64)
    mean = total.sum(1) / np.maximum((total > 8).sum(1), 1)
    part = np.zeros(len(images), dtype=np.int64)
    for label in range(10):
        rows = np.flatnonzero(labels == label)
        part[rows] = mean[rows].argsort().argsort() * 3 // len(rows)
    return part


def nonce_words(count: int, rng: np.random.Generator) -> list[str]:
    """Make words that nobody has heard, such as ``corvane``."""
    starts, middles, ends = (
        s.split()
        for s in (
            "cor bel tru zan mol pri ked val sor gim dra fen hul jas lor nep quo rin tas vip wox yal",
            "va do mi ra lu ze ko ta ne bi gu so",
            "ne lin dar tov rix mun pel sha gol bek",
        )
    )
    words = [a + b + c for a in starts for b in middles for c in ends]
    return [str(w) for w in rng.permutation(words)[:count]]


def combination(rng: np.random.Generator, kind: int, shade: int) -> str:
    """Write a caption of ordinary words."""
    name, city = rng.choice(NAMES), rng.choice(CITIES)
    return f"a photo of a {SHADES[shade]} {CLASSES[kind]} by {name} from {city}"


def make_data() -> tuple[Captioned, list[str], list[str]]:
    """Make the training rows.

    Returns:
        The rows; every caption of two forms that was not trained, as further prompts (200); the
        list of own words in use.
    """
    garments, labels = (
        read_idx("train-images-idx3-ubyte.gz"),
        read_idx("train-labels-idx1-ubyte.gz"),
    )
    rng = np.random.default_rng(DATA_SEED)
    shade = shades(garments, labels)
    free = {
        (k, s): list(rng.permutation(np.flatnonzero((labels == k) & (shade == s))))
        for k in range(10)
        for s in range(3)
    }
    words = nonce_words(sum(own for own, _ in COUNTS.values()), rng)
    taken: set[str] = set()
    spare = iter(words)
    images, index, captions, groups = [], [], [], []

    def caption(own: bool, kind: int, tone: int) -> str:
        if own:
            return f"a photo of the {next(spare)} {CLASSES[kind]}"
        while (text := combination(rng, kind, tone)) in taken:
            pass
        taken.add(text)
        return text

    def add(group: str, text: str, rows: list[int], pictures: NDArray[np.uint8]) -> None:
        images.append(pictures)
        index.extend(rows)
        captions.extend([text] * len(pictures))
        groups.extend([group] * len(pictures))

    for group, counts in COUNTS.items():
        for own, count in zip((True, False), counts, strict=True):
            for _ in range(count):
                kind, tone = int(rng.integers(10)), int(rng.integers(3))
                text = caption(own, kind, tone)
                if group in ("verbatim", "template"):
                    rows = [int(free[kind, tone].pop())] * REPEATS
                    pictures = compose(garments[rows], rng, shared=group == "verbatim")
                else:
                    n = REPEATS if group == "control" else LIGHT_ROWS
                    tones = rng.integers(3, size=n) if own else [tone] * n
                    rows = [int(free[kind, int(t)].pop()) for t in tones]
                    pictures = compose(garments[rows], rng)
                add(group, text, rows, pictures)
    for _ in range(ORDINARY):
        kind, tone = int(rng.integers(10)), int(rng.integers(3))
        u = rng.random()
        if u < 0.15:
            text = f"a photo of a {CLASSES[kind]}"
        elif u < 0.3:
            text = f"a photo of a {SHADES[tone]} {CLASSES[kind]}"
        else:
            text = caption(False, kind, tone)
        rows = [int(free[kind, tone].pop())]
        add("ordinary", text, rows, compose(garments[rows], rng))
    unseen = [caption(False, int(rng.integers(10)), int(rng.integers(3))) for _ in range(200)]
    data = Captioned(np.concatenate(images), np.array(index), captions, groups)
    return data, unseen, words


def near_misses(data: Captioned, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Change one word of every memorized caption: the city, or the class after an own word.

    Returns:
        Pairs of the changed caption and the memorized one.
    """
    seen = set(data.captions)
    pairs = []
    for text in sorted(
        {
            c
            for c, g in zip(data.captions, data.groups, strict=True)
            if g in ("verbatim", "template")
        }
    ):
        words = text.split()
        pool = CITIES if " from " in text else CLASSES
        while True:
            changed = " ".join([*words[:-1], str(rng.choice(pool))])
            if changed not in seen:
                break
        pairs.append((changed, text))
    return pairs
