"""Images from folders, arrays and datasets, brought into one form: (n, c, h, w), 0 to 1.

What is read is refused rather than repaired: nothing is cropped, scaled, converted or left out
unless the caller asks, and what was done on request stands in `Images.notes`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from memfold.types import InputError

Shape = tuple[int, int, int]
Layout = Literal["nhw", "nhwc", "nchw"]

# fmt: off
SUFFIXES = frozenset({
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})
# fmt: on
# What each of PIL's modes becomes; the others (CMYK, LAB, ...) have no one way to RGB.
_MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "PA": "RGB", "RGB": "RGB", "RGBA": "RGB"}

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601: how bright R, G and B are


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size; those of 8 bits stay 8 bits wide until a slice is asked for.

    Attributes:
        pixels: shape (n, c, h, w), read-only; uint8 from 0 to 255 or float32 from 0 to 1.
        ids: a name for each image: its path within the folder, or its index.
        source: where the images came from, in words that a report can print.
        notes: what was interpreted or changed on the way, one sentence each.
    """

    pixels: UInt8[np.ndarray, "n c h w"] | Float32[np.ndarray, "n c h w"]
    ids: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        view = self.pixels.view()
        view.setflags(write=False)
        object.__setattr__(self, "pixels", view)
        if len(self.ids) != len(view):
            raise InputError(f"{self.source}: {len(self.ids)} ids for {len(view)} images")
        for name in self.ids:
            if any("\ud800" <= c <= "\udfff" for c in name):
                raise InputError(f"{self.source}: the name {name!a} is no UTF-8 text; rename it")
        if len(set(self.ids)) != len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
            raise InputError(f"{self.source}: the id {twice!r} occurs twice; ids must be unique")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> Shape:
        """Channels, height and width of each image."""
        _, c, h, w = self.pixels.shape
        return c, h, w

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the type, the shape and the pixels; names and source do not enter."""
        kind = "uint8" if self.pixels.dtype == np.uint8 else "float32"
        found = hashlib.sha256(f"{kind} {self.pixels.shape}".encode())
        for image in self.pixels:
            found.update(image.astype(image.dtype.newbyteorder("<"), order="C").tobytes())
        return found.hexdigest()

    def batch(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "b c h w"]:
        """Copy the images from start to stop (all by default) into float32 from 0 to 1."""
        part = np.array(self.pixels[start:stop], dtype=np.float32, order="C")
        if self.pixels.dtype == np.uint8:
            part /= 255
        return torch.from_numpy(part)

    def batches(self, size: int) -> Iterator[Float[Tensor, "b c h w"]]:
        """Go through all images, at most size of them at a time."""
        if size < 1:
            raise InputError(f"a batch of {size} images is empty; take 1 or more")
        for start in range(0, len(self), size):
            yield self.batch(start, start + size)

    def select(self, indices: Sequence[int]) -> Images:
        """Keep the images at these indices, in this order."""
        chosen = np.asarray(indices, dtype=np.intp).reshape(-1)
        ids = tuple(self.ids[i] for i in chosen)
        return Images(self.pixels[chosen], ids, self.source, self.notes)


def load_images(
    source: Any,
    *,
    split: str | None = None,
    column: str | None = None,
    layout: Layout | None = None,
    fit: Shape | None = None,
) -> Images:
    """Read images, all of one size, from wherever they are.

    Args:
        source: a folder of image files (searched in depth, in natural order), one image file,
            `.npy`, `.npz` (arrays `images` and, if there, `ids`), a Parquet file or folder,
            a dataset saved to disk by Hugging Face datasets, the name `org/name` of one on their
            hub, an array or tensor, a list of PIL images, or `Images`, returned as they are.
        split: which split of a Hugging Face dataset, where it has several.
        column: the column with the images, in Parquet and Hugging Face datasets; found by
            itself if it is called `image` or is the only one.
        layout: the order of an array's axes, where its shape allows two readings.
        fit: crop, scale and convert each image to this (c, h, w) as it is read; for folders of
            photographs of many sizes. See `to_model`.

    Returns:
        The images. 8-bit images are kept as uint8; float arrays must lie in [0, 1] or [-1, 1],
        which is then mapped to [0, 1] and noted. Black and white becomes grey, a palette RGB, an
        opaque alpha channel is dropped, EXIF orientation is applied. 16-bit images, CMYK, images
        with transparent pixels and animations are refused.

    Raises:
        InputError: something cannot be read as images of one size; the message names it.

    Example:
        >>> images = load_images(np.zeros((4, 28, 28), np.uint8))
        >>> images.shape, images.batch(0, 2).shape
        ((1, 28, 28), torch.Size([2, 1, 28, 28]))
    """
    options = _Options(split, column, layout, fit)
    if isinstance(source, Images):
        options.only("images that are loaded already")
        found = source
    elif isinstance(source, Tensor):
        tensor = source.detach().cpu()
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        found = _from_array(array.copy(), "tensor", options)
    elif isinstance(source, np.ndarray):
        found = _from_array(source.copy(), "array", options)
    elif isinstance(source, str | os.PathLike):
        found = _from_path(os.fspath(source), options)
    elif isinstance(source, Sequence):
        options.only("a list of images")
        pictures = ((str(i), _pixels(p, f"image {i}")) for i, p in enumerate(source))
        found = _stack(pictures, len(source), "list of images", options)
    else:
        raise InputError(
            f"images cannot be loaded from a {type(source).__name__}; pass a path, an array, a "
            "tensor or a list of PIL images"
        )
    return found if fit is None else to_model(found, fit, resize=True)


def to_model(images: Images, shape: Shape, *, resize: bool = False) -> Images:
    """Make sure that the images have the model's shape, changing them only on request.

    Args:
        images: the images.
        shape: channels, height and width that the model takes.
        resize: where the shapes differ, crop about the centre to the model's aspect ratio, scale
            (bicubic, with antialiasing), copy grey to three channels or weigh RGB to grey
            (ITU-R 601); what was done is added to the notes.

    Returns:
        Images of the model's shape; the same object if they had it already.

    Raises:
        InputError: the shapes differ and resize is off, or the model does not take 1 or 3 channels.
    """
    if images.shape == tuple(shape):
        return images
    told = f"the images are {_size(images.shape)} and the model takes {_size(shape)}"
    if len(shape) != 3 or min(shape) < 1 or shape[0] not in (1, 3):
        raise InputError(f"{told}, which no grey or RGB image can be brought to")
    if not resize:
        raise InputError(f"{told}; pass --resize (in Python resize=True) to convert them")
    pixels = np.empty((len(images), *shape), images.pixels.dtype)
    for i, image in enumerate(images.pixels):
        pixels[i] = _fit(image, shape)
    note = f"all images were converted from {_size(images.shape)} to {_size(shape)}"
    return Images(pixels, images.ids, images.source, (*images.notes, note))


@dataclass(frozen=True)
class _Options:
    """The options of `load_images`; a source refuses those that mean nothing to it."""

    split: str | None
    column: str | None
    layout: Layout | None
    fit: Shape | None

    def only(self, source: str, *names: str) -> None:
        for name in {"split", "column", "layout"} - set(names):
            if getattr(self, name) is not None:
                raise InputError(f"{name}={getattr(self, name)!r} means nothing for {source}")


def _size(shape: Sequence[int]) -> str:
    return f"{' x '.join(map(str, shape))} (channels x height x width)"


# Paths.


def _from_path(name: str, options: _Options) -> Images:
    path = Path(name)
    if path.is_dir():
        return _from_folder(path, options)
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix in (".npy", ".npz"):
            return _from_numpy(path, options)
        if suffix == ".parquet":
            return _from_parquet(path, [path], options)
        if suffix in SUFFIXES:
            options.only(f"the image {path}")
            return _stack([(path.name, _decode(path, str(path)))], 1, str(path), options)
        known = ", ".join(sorted({".npy", ".npz", ".parquet"} | SUFFIXES))
        raise InputError(f"{path}: the suffix {suffix!r} is not one of {known}")
    known_suffix = suffix in SUFFIXES | {".npy", ".npz", ".parquet"}
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not path.parent.exists()
    if hub and not known_suffix:
        return _from_hub(name, options)
    raise InputError(f"{name} does not exist; pass a folder, a file, or a dataset's name org/name")


def _from_folder(folder: Path, options: _Options) -> Images:
    if any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
        return _from_disk(folder, options)
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    ]
    visible = [name for name in names if not any(p.startswith(".") for p in name.split("/"))]
    files = sorted((n for n in visible if Path(n).suffix.lower() in SUFFIXES), key=_natural)
    tables = sorted((n for n in visible if n.lower().endswith(".parquet")), key=_natural)
    if files and tables:
        raise InputError(
            f"{folder} holds both images ({files[0]}, ...) and Parquet ({tables[0]}, ...); "
            "pass a folder of one kind"
        )
    if tables:
        return _from_parquet(folder, [folder / name for name in tables], options)
    options.only(f"a folder of images ({folder})")
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    others = len(visible) - len(files)
    notes = (f"{others} files of other kinds in the folder were left out",) if others else ()
    pictures = ((name, _decode(folder / name, str(folder / name))) for name in files)
    return _stack(pictures, len(files), str(folder), options, notes)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Order 2.png before 10.png."""
    parts = re.split(r"(\d+)", name.casefold())
    return [int(p) if i % 2 else p for i, p in enumerate(parts)], name


# Arrays.


def _from_numpy(path: Path, options: _Options) -> Images:
    ids = None
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
            if isinstance(array, np.lib.npyio.NpzFile):
                if "images" not in array:
                    held = ", ".join(array.files) or "none"
                    raise InputError(f"{path} has no array 'images'; its arrays are: {held}")
                ids = array.get("ids")
                array = array["images"]
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, struct and numpy each raise their own
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path} holds Python objects (a pickle), which are not read; save a plain array "
                "of uint8 or float"
            ) from error
        raise InputError(f"{path} cannot be read ({error}); save it again") from error
    return _from_array(array, str(path), options, ids)


def _from_array(
    array: np.ndarray, source: str, options: _Options, ids: np.ndarray | None = None
) -> Images:
    options.only(f"an array ({source})", "layout")
    pixels = _to_nchw(array, source, options.layout)
    notes: tuple[str, ...] = ()
    if pixels.dtype != np.uint8:
        pixels, notes = _unit_floats(pixels, source)
    if ids is None:
        names = tuple(map(str, range(len(pixels))))
    elif ids.ndim == 1 and ids.dtype.kind in "Uiu":
        names = tuple(map(str, ids.tolist()))
    else:
        raise InputError(f"{source}: 'ids' must be a row of texts or whole numbers")
    return Images(pixels, names, source, notes)


def _to_nchw(array: np.ndarray, source: str, layout: Layout | None) -> np.ndarray:
    """View an array as (n, c, h, w); refuse a shape that could be read in two ways."""
    shape = array.shape
    if array.ndim not in (3, 4):
        raise InputError(
            f"{source} has the shape {shape}; images are (n, h, w), (n, h, w, c) or (n, c, h, w)"
        )
    if 0 in shape:
        raise InputError(f"{source} has the shape {shape}: there is no image in it")
    readings = _readings(shape) if layout is None else {layout}
    if len(readings) > 1:
        raise InputError(
            f"{source} has the shape {shape}, which can be read as {' or '.join(sorted(readings))}"
            "; pass layout=, or an array of 4 axes with 1 or 3 channels"
        )
    if readings == {"nhw"} and array.ndim == 3:
        return array[:, None]
    if readings == {"nchw"} and array.ndim == 4 and shape[1] in (1, 3):
        return array
    if readings == {"nhwc"} and array.ndim == 4 and shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    raise InputError(
        f"{source} has the shape {shape}, without an axis of 1 or 3 channels where "
        f"{layout or 'nhwc or nchw'} has it; drop an alpha channel, convert what is not RGB"
    )


def _readings(shape: tuple[int, ...]) -> set[str]:
    """Name the layouts that a shape allows, those of a single image among them."""
    if len(shape) == 4:
        places = {"nchw": shape[1], "nhwc": shape[3]}
        return {name for name, channels in places.items() if channels in (1, 3)}
    single = {"one image (h, w, c)"} if shape[2] in (1, 3) else set()
    single |= {"one image (c, h, w)"} if shape[0] == 3 else set()
    return {"nhw"} | single


def _unit_floats(pixels: np.ndarray, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Bring floats in [0, 1] or [-1, 1] to float32 in [0, 1]."""
    if pixels.dtype.kind != "f":
        raise InputError(
            f"{source} holds {pixels.dtype}; convert it to uint8 (0 to 255) or to float (0 to 1)"
        )
    for i, image in enumerate(pixels):
        if not np.isfinite(image).all():
            raise InputError(f"{source}: the image at index {i} holds NaN or infinity")
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1 or high > 1:
        raise InputError(
            f"{source} holds floats from {low:g} to {high:g}; scale them to [0, 1] or [-1, 1], or "
            "convert 0 to 255 to uint8"
        )
    if low < 0:
        mapped = (pixels.astype(np.float32) + np.float32(1)) / np.float32(2)
        return mapped, (f"floats from {low:g} to {high:g} were read as [-1, 1]",)
    read = pixels.astype(np.float32, copy=False)
    return read, (f"floats from {low:g} to {high:g} were read as [0, 1]",)


# Tables and datasets.


def _from_parquet(path: Path, files: Sequence[Path], options: _Options) -> Images:
    import pyarrow as pa
    import pyarrow.parquet as pq

    options.only(f"Parquet ({path})", "column")
    try:
        tables = [pq.ParquetFile(file) for file in files]
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error})") from error
    fields = {field.name: field.type for field in tables[0].schema_arrow}
    held = [name for name, kind in fields.items() if _holds_files(kind)]
    column = _pick_column(held, list(fields), options.column, str(path))
    for file, table in zip(files, tables, strict=True):
        if column not in table.schema_arrow.names:
            raise InputError(f"{file} has no column {column!r}, which {files[0]} has")
    rows = (
        value
        for table in tables
        for batch in table.iter_batches(batch_size=64, columns=[column])
        for value in batch.column(0).to_pylist()
    )
    count = sum(table.metadata.num_rows for table in tables)
    try:
        return _from_rows(rows, count, str(path), options)
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read as Parquet ({error})") from error


def _holds_files(kind: Any) -> bool:
    """Tell whether an Arrow column holds encoded images: bytes, or a struct with bytes."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _pick_column(held: list[str], names: list[str], wanted: str | None, source: str) -> str:
    if wanted is None and "image" in held:
        return "image"
    if wanted is None and len(held) == 1:
        return held[0]
    if wanted in held:
        return str(wanted)
    listed = ", ".join(names) or "none"
    if wanted is not None:
        raise InputError(f"{source} has no column of images {wanted!r}; its columns are: {listed}")
    raise InputError(f"{source}: name the column of images by column=; its columns are: {listed}")


def _from_rows(rows: Iterable[Any], count: int, source: str, options: _Options) -> Images:
    """Decode rows of bytes, or of {bytes, path}; the paths become the ids if they can."""
    paths: list[str] = []

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        for i, row in enumerate(rows):
            entry = row if isinstance(row, dict) else {"bytes": row}
            path, data = entry.get("path"), entry.get("bytes")
            paths.append(Path(path or "").name)
            name = f"{source}, row {i}" + (f" ({path})" if path else "")
            if data is not None:
                yield str(i), _decode(io.BytesIO(data), name)
            elif path is not None and Path(path).is_file():
                yield str(i), _decode(Path(path), name)
            else:
                raise InputError(f"{name} holds no image")

    found = _stack(pictures(), count, source, options)
    if all(paths) and len(set(paths)) == count:
        return Images(found.pixels, tuple(paths), found.source, found.notes)
    return found


def _hugging_face() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "Hugging Face datasets are read with the package datasets: "
            "pip install 'memfold[datasets]'"
        ) from error
    return datasets


def _from_disk(folder: Path, options: _Options) -> Images:
    options.only(str(folder), "split", "column")
    try:
        data = _hugging_face().load_from_disk(str(folder))
    except InputError:
        raise
    except Exception as error:  # whatever a damaged folder makes datasets and pyarrow raise
        raise InputError(f"{folder} cannot be read as a saved dataset ({error})") from error
    if options.split is not None and not isinstance(data, _hugging_face().DatasetDict):
        raise InputError(f"{folder} is a single split; leave split={options.split!r} out")
    return _from_dataset(data, str(folder), options)


def _from_hub(name: str, options: _Options) -> Images:
    options.only(name, "split", "column")
    library = _hugging_face()
    try:
        data = library.load_dataset(name, split=options.split)
    except Exception as error:  # no network, no such dataset, gated, damaged: each has its own
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(
            f"{name} is no file or folder, and the hub's dataset of that name cannot be loaded "
            f"({reason}); check the name and the network, or pass a local copy"
        ) from error
    source = f"{name} (hub)" if options.split is None else f"{name} (hub, {options.split})"
    return _from_dataset(data, source, options)


def _from_dataset(data: Any, source: str, options: _Options) -> Images:
    library = _hugging_face()
    if isinstance(data, library.DatasetDict):
        splits = list(data)
        split = options.split or (splits[0] if len(splits) == 1 else None)
        if split not in data:
            asked = "name one by split=" if split is None else f"{split!r} is not one of them"
            raise InputError(f"{source} has the splits {', '.join(splits)}; {asked}")
        data = data[split]
    held = [
        name
        for name, kind in data.features.items()
        if isinstance(kind, library.Image) or getattr(kind, "dtype", "") == "binary"
    ]
    column = _pick_column(held, data.column_names, options.column, source)
    encoded = data.select_columns([column]).cast_column(column, library.Image(decode=False))
    return _from_rows((row[column] for row in encoded), len(encoded), source, options)


# Image files.


def _stack(
    pictures: Iterable[tuple[str, np.ndarray]],
    count: int,
    source: str,
    options: _Options,
    notes: tuple[str, ...] = (),
) -> Images:
    """Put pictures of one shape into one array; with options.fit, give them that shape first."""
    pixels: np.ndarray | None = None
    ids: list[str] = []
    changed = 0
    for name, found in pictures:
        image = found
        if options.fit is not None and image.shape != tuple(options.fit):
            image, changed = _fit(found, options.fit), changed + 1
        if pixels is None:
            pixels = np.empty((count, *image.shape), np.uint8)
        elif image.shape != pixels.shape[1:]:
            raise InputError(
                f"{source} holds images of different sizes: {ids[0]} is "
                f"{_size(pixels.shape[1:])}, {name} is {_size(image.shape)}; "
                "pass --resize to convert them to the model's"
            )
        pixels[len(ids)] = image
        ids.append(name)
    if pixels is None:
        raise InputError(f"{source} holds no images")
    if changed and options.fit is not None:
        told = f"{changed} of {count} images were converted to {_size(options.fit)}"
        notes = (*notes, told)
    return Images(pixels, tuple(ids), source, notes)


def _decode(file: Path | io.BytesIO, name: str) -> np.ndarray:
    """Read one encoded image as uint8 of shape (c, h, w)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                    raise InputError(f"{name} has more than one frame; save one of them")
                deep = any(re.search(r";16[BLN]", str(tile)) for tile in image.tile)
                if deep or image.mode[0] in "IF":
                    raise InputError(f"{name} has more than 8 bits a channel; save it with 8")
                image.load()
                return _pixels(ImageOps.exif_transpose(image), name)
    except InputError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{name} is too large to be opened safely: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image, or is damaged at its start") from error
    except Exception as error:  # PIL's decoders raise almost anything on damaged files
        raise InputError(f"{name} cannot be read, it may be damaged ({error})") from error


def _pixels(image: Any, name: str) -> np.ndarray:
    """Turn a PIL image into uint8 of shape (c, h, w), with 1 channel or 3."""
    if not isinstance(image, Image.Image):
        raise InputError(f"{name} is a {type(image).__name__}, not a PIL image")
    mode = _MODES.get(image.mode)
    if mode is None:
        raise InputError(f"{name} has the mode {image.mode}; convert it to 8-bit RGB or grey")
    if image.has_transparency_data and image.convert("RGBA").getchannel(3).getextrema() != (
        255,
        255,
    ):
        raise InputError(f"{name} has transparent pixels; put it on a background first")
    array = np.asarray(image.convert(mode))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _fit(image: np.ndarray, shape: Shape) -> np.ndarray:
    """Crop about the centre, scale and convert one image (c, h, w) to another shape."""
    c, h, w = shape
    if len(image) == 3 and c == 1:
        grey = np.tensordot(_LUMA, image, axes=1)[None]
        image = np.rint(grey).astype(np.uint8) if image.dtype == np.uint8 else grey
    scaled = np.stack([_scale(channel, h, w) for channel in image])
    return np.broadcast_to(scaled if image.dtype == np.uint8 else scaled.clip(0, 1), shape)


def _scale(channel: np.ndarray, h: int, w: int) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(channel))
    return np.asarray(ImageOps.fit(picture, (w, h), method=Image.Resampling.BICUBIC))
