"""Images from every kind of source, and the refusal of what cannot be read as images."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from memfold.datasets.images import Images, load_images, to_model
from memfold.types import InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 6, 8), dtype=np.uint8)  # 5 images, 6 high, 8 wide
RGB = RNG.integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def nchw(array):
    return array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)


# Folders.


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".TIF", ".webp", ".ppm"])
def test_a_folder_keeps_every_pixel(tmp_path, suffix):
    for i, image in enumerate(RGB):
        save(image, tmp_path / f"{i}{suffix}", **({"lossless": True} if "webp" in suffix else {}))
    images = load_images(tmp_path)
    assert images.pixels.dtype == np.uint8
    assert np.array_equal(images.pixels, nchw(RGB))
    assert images.shape == (3, 6, 8)
    assert images.source == str(tmp_path)
    assert images.notes == ()


def test_a_folder_is_searched_in_depth_and_in_natural_order(tmp_path):
    for name in ["b/10.png", "b/2.png", "a1.png", "A10.png", "a2.png"]:
        save(GREY[0], tmp_path / name)
    save(GREY[0], tmp_path / ".hidden/x.png")
    save(GREY[0], tmp_path / "._a1.png", format="png")
    (tmp_path / "labels.csv").write_text("x")
    images = load_images(str(tmp_path))
    assert images.ids == ("a1.png", "a2.png", "A10.png", "b/2.png", "b/10.png")
    assert images.notes == ("1 files of other kinds in the folder were left out",)


def test_jpeg_is_read_as_pil_reads_it(tmp_path):
    path = save(RGB[0], tmp_path / "x.jpeg")
    expected = np.asarray(Image.open(path))
    assert np.array_equal(load_images(tmp_path).pixels[0], expected.transpose(2, 0, 1))
    assert load_images(path).ids == ("x.jpeg",)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    save(GREY[0], tmp_path / "x.png", exif=exif)
    assert np.array_equal(load_images(tmp_path).pixels[0, 0], np.rot90(GREY[0], -1))


def test_black_and_white_palette_and_opaque_alpha_lose_nothing(tmp_path):
    (tmp_path / "bw").mkdir()
    Image.fromarray(GREY[0] > 99).save(tmp_path / "bw/x.png")
    assert np.array_equal(load_images(tmp_path / "bw").pixels[0, 0], (GREY[0] > 99) * np.uint8(255))
    few = RGB[0] // 128 * 128
    (tmp_path / "palette").mkdir()
    Image.fromarray(few).quantize(8).save(tmp_path / "palette/x.png")
    Image.fromarray(few).quantize(8).save(tmp_path / "palette/y.gif")
    expected = np.asarray(Image.fromarray(few).quantize(8).convert("RGB")).transpose(2, 0, 1)
    assert all(np.array_equal(p, expected) for p in load_images(tmp_path / "palette").pixels)
    opaque = np.dstack([RGB[0], np.full((6, 8), 255, np.uint8)])
    save(opaque, tmp_path / "rgba/x.png")
    assert np.array_equal(load_images(tmp_path / "rgba").pixels[0], RGB[0].transpose(2, 0, 1))


def test_transparent_pixels_are_refused(tmp_path):
    alpha = np.full((6, 8), 255, np.uint8)
    alpha[2, 3] = 254
    save(np.dstack([RGB[0], alpha]), tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png has transparent pixels"):
        load_images(tmp_path)


def test_a_transparent_palette_is_refused(tmp_path):
    Image.fromarray(GREY[0]).convert("P").save(tmp_path / "x.png", transparency=int(GREY[0, 0, 0]))
    with pytest.raises(InputError, match=r"x\.png has transparent pixels"):
        load_images(tmp_path)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(color_type, channels):
    row = b"\0" + np.full(4 * channels, 300, ">u2").tobytes()
    header = struct.pack(">IIBBBBB", 4, 4, 16, color_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 4)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_are_refused_where_pil_would_round_them(tmp_path, color_type, channels):
    (tmp_path / "x.png").write_bytes(deep_png(color_type, channels))
    with pytest.raises(InputError, match=r"x\.png has more than 8 bits a channel"):
        load_images(tmp_path)


def test_cmyk_is_refused(tmp_path):
    Image.fromarray(RGB[0]).convert("CMYK").save(tmp_path / "x.jpg")
    with pytest.raises(InputError, match=r"x\.jpg has the mode CMYK"):
        load_images(tmp_path)


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(g) for g in GREY]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=r"x\.gif has more than one frame"):
        load_images(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 60, 0.5, 0.9])
def test_a_damaged_png_is_named(tmp_path, keep):
    big = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = png(big)
    save(big, tmp_path / "0.png")
    cut = whole[: keep if isinstance(keep, int) else int(keep * len(whole))]
    (tmp_path / "1.png").write_bytes(cut)
    with pytest.raises(InputError, match=r"1\.png (cannot be read|is not an image)"):
        load_images(tmp_path)


def test_a_png_with_a_flipped_bit_is_named(tmp_path):
    data = bytearray(png(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    data[len(data) // 2] ^= 4
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.png cannot be read"):
        load_images(tmp_path)


def test_text_under_an_image_name_is_named(tmp_path):
    (tmp_path / "x.jpg").write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"x\.jpg is not an image"):
        load_images(tmp_path)


def test_a_dangling_link_is_named(tmp_path):
    save(GREY[0], tmp_path / "0.png")
    (tmp_path / "1.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"1\.png cannot be read"):
        load_images(tmp_path)


@pytest.mark.parametrize("limit", [30, 5])  # PIL warns above the limit and raises above twice it
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, limit):
    save(GREY[0], tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(InputError, match=r"x\.png is too large to be opened safely"):
        load_images(tmp_path)


def test_mixed_sizes_name_the_first_two_that_differ(tmp_path):
    for name, image in [("1", GREY[0]), ("2", GREY[1]), ("3", GREY[2, :, :4]), ("4", GREY[3, :2])]:
        save(image, tmp_path / f"{name}.png")
    with pytest.raises(InputError, match=r"1\.png is 1 x 6 x 8 .*3\.png is 1 x 6 x 4 .*--resize"):
        load_images(tmp_path)


def test_grey_among_rgb_is_no_one_size(tmp_path):
    save(RGB[0], tmp_path / "1.png")
    save(GREY[0], tmp_path / "2.png")
    with pytest.raises(InputError, match=r"1\.png is 3 x 6 x 8 .*2\.png is 1 x 6 x 8 "):
        load_images(tmp_path)


def test_mixed_sizes_are_brought_to_the_model_on_request(tmp_path):
    save(RGB[0], tmp_path / "1.png")
    save(np.full((30, 20), 77, np.uint8), tmp_path / "2.png")
    images = load_images(tmp_path, fit=(3, 6, 8))
    assert np.array_equal(images.pixels[0], RGB[0].transpose(2, 0, 1))
    assert (images.pixels[1] == 77).all()
    assert images.notes == (
        "1 of 2 images were converted to 3 x 6 x 8 (channels x height x width)",
    )


def test_an_empty_folder(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(InputError, match="holds no images"):
        load_images(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "x.npz", "org/x.npz", "/no/where", "../a/b"])
def test_a_missing_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        load_images(name)


def test_a_misspelt_path_is_not_taken_for_a_dataset_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="data/trian does not exist"):
        load_images("data/trian")


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"the suffix '\.pt' is not one of"):
        load_images(tmp_path / "x.pt")


# Arrays.


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, nchw(GREY)),
        (GREY[..., None], nchw(GREY)),
        (GREY[:, None], nchw(GREY)),
        (RGB, nchw(RGB)),
        (nchw(RGB), nchw(RGB)),
        (RGB[:1], nchw(RGB[:1])),
    ],
)
@pytest.mark.parametrize("kind", ["numpy", "torch", "npy", "npz", "npz_compressed"])
def test_arrays_of_every_layout(tmp_path, array, expected, kind):
    source = {
        "numpy": lambda: array,
        "torch": lambda: torch.tensor(array),
        "npy": lambda: np.save(tmp_path / "x.npy", array) or tmp_path / "x.npy",
        "npz": lambda: np.savez(tmp_path / "x.npz", images=array) or tmp_path / "x.npz",
        "npz_compressed": lambda: (
            np.savez_compressed(tmp_path / "x.npz", images=array) or str(tmp_path / "x.npz")
        ),
    }[kind]()
    images = load_images(source)
    assert images.pixels.dtype == np.uint8
    assert np.array_equal(images.pixels, expected)
    assert images.ids == tuple(map(str, range(len(array))))
    assert images.notes == ()


@pytest.mark.parametrize(
    ("shape", "readings"),
    [
        ((32, 32, 3), r"nhw or one image \(h, w, c\)"),
        ((32, 32, 1), r"nhw or one image \(h, w, c\)"),
        ((3, 32, 32), r"nhw or one image \(c, h, w\)"),
        ((9, 3, 8, 3), "nchw or nhwc"),
        ((9, 1, 8, 3), "nchw or nhwc"),
    ],
)
def test_a_shape_with_two_readings_is_refused(shape, readings):
    with pytest.raises(InputError, match=f"can be read as {readings}.*pass layout="):
        load_images(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("shape", "layout", "read"),
    [
        ((3, 32, 30), "nhw", (1, 32, 30)),
        ((9, 3, 8, 3), "nchw", (3, 8, 3)),
        ((9, 3, 8, 3), "nhwc", (3, 3, 8)),
        ((9, 1, 8, 3), "nhwc", (3, 1, 8)),
    ],
)
def test_layout_settles_the_reading(shape, layout, read):
    assert load_images(np.zeros(shape, np.uint8), layout=layout).shape == read


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 8), r"has the shape \(8, 8\); images are \(n, h, w\)"),
        ((2, 8, 8, 3, 1), "images are"),
        ((), "images are"),
        ((0, 8, 8), "no image in it"),
        ((2, 0, 8, 3), "no image in it"),
        ((2, 8, 8, 4), "without an axis of 1 or 3 channels"),
        ((2, 2, 8, 8), "without an axis of 1 or 3 channels"),
    ],
)
def test_wrong_shapes(shape, message):
    with pytest.raises(InputError, match=message):
        load_images(np.zeros(shape, np.uint8))


def test_a_layout_that_the_array_has_not():
    with pytest.raises(InputError, match="where nchw has it"):
        load_images(RGB, layout="nchw")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_from_0_to_1(dtype):
    array = (RGB / 255).astype(dtype)
    images = load_images(array)
    assert images.pixels.dtype == np.float32
    assert np.array_equal(images.batch().numpy(), nchw(array).astype(np.float32))
    assert "read as [0, 1]" in images.notes[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_from_minus_1_to_1(dtype):
    tensor = torch.tensor([[[-1.0, 1.0], [0.0, 0.5]]] * 2, dtype=dtype, requires_grad=True)
    images = load_images(tensor)
    assert images.batch()[1, 0].tolist() == [[0.0, 1.0], [0.5, 0.75]]
    assert "read as [-1, 1]" in images.notes[0]


@pytest.mark.parametrize("scale", [255, 1.001, -1.001])
def test_floats_out_of_range_are_refused(scale):
    array = np.array([0.0, 1.0]).repeat(8).reshape(1, 4, 4) * scale
    with pytest.raises(InputError, match=r"holds floats from .* scale them to \[0, 1\]"):
        load_images(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_found(bad):
    array = np.zeros((7, 4, 4))
    array[4, 1, 2] = bad
    with pytest.raises(InputError, match="image at index 4 holds NaN or infinity"):
        load_images(array)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, bool, complex, object, "U1"])
def test_other_types_of_number_are_refused(dtype):
    with pytest.raises(InputError, match="convert it to uint8"):
        load_images(np.zeros((2, 4, 4), dtype))


def test_the_callers_array_is_neither_changed_nor_followed():
    array, tensor = GREY.copy(), torch.tensor(GREY)
    images, others = load_images(array), load_images(tensor)
    array[:] = 0
    tensor[:] = 0
    assert np.array_equal(images.pixels, nchw(GREY))
    assert np.array_equal(others.pixels, nchw(GREY))
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 0
    images.batch()[:] = 1
    assert np.array_equal(images.pixels, nchw(GREY))


# Files of arrays.


@pytest.mark.parametrize("ids", [["a", "b", "c", "d", "é"], [5, 4, 3, 2, 1]])
def test_ids_in_npz(tmp_path, ids):
    np.savez(tmp_path / "x.npz", images=GREY, ids=np.array(ids))
    assert load_images(tmp_path / "x.npz").ids == tuple(map(str, ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b"], "2 ids for 5 images"),
        (["a", "b", "c", "b", "d"], "the id 'b' occurs twice"),
        ([0.5, 1, 2, 3, 4], "'ids' must be a row of texts"),
        ([["a"], ["b"], ["c"], ["d"], ["e"]], "'ids' must be a row of texts"),
    ],
)
def test_bad_ids_in_npz(tmp_path, ids, message):
    np.savez(tmp_path / "x.npz", images=GREY, ids=np.array(ids))
    with pytest.raises(InputError, match=message):
        load_images(tmp_path / "x.npz")


def test_npz_without_images(tmp_path):
    np.savez(tmp_path / "x.npz", data=GREY, labels=np.arange(5))
    with pytest.raises(InputError, match="has no array 'images'; its arrays are: data, labels"):
        load_images(tmp_path / "x.npz")


def test_pickles_are_never_loaded(tmp_path):
    objects = np.array([GREY[0], None], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", images=objects)
    np.savez(tmp_path / "y.npz", images=GREY, ids=np.array(["a", None, "b", "c", "d"], object))
    objects.dump(tmp_path / "z.npy")
    for name in ["x.npy", "x.npz", "y.npz", "z.npy"]:
        with pytest.raises(InputError, match=rf"{name} holds Python objects \(a pickle\)"):
            load_images(tmp_path / name)


@pytest.mark.parametrize("keep", [0, 5, 100, 300])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_damaged_array_files(tmp_path, name, keep):
    path = tmp_path / name
    np.save(path, GREY) if name == "x.npy" else np.savez(path, images=GREY)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"x\.np. (cannot be read|holds Python objects)"):
        load_images(path)


# Lists of PIL images.


def test_a_list_of_pil_images():
    images = load_images([Image.fromarray(i) for i in RGB])
    assert np.array_equal(images.pixels, nchw(RGB))
    assert images.ids == ("0", "1", "2", "3", "4")


def test_lists_that_are_not_of_pil_images():
    with pytest.raises(InputError, match="list of images holds no images"):
        load_images([])
    with pytest.raises(InputError, match="image 1 is a ndarray, not a PIL image"):
        load_images([Image.fromarray(GREY[0]), GREY[1]])
    with pytest.raises(InputError, match="image 0 has the mode I;16"):
        load_images([Image.fromarray(GREY[0].astype(np.uint16))])


# Parquet.


def write_parquet(path, rows, name="image"):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"label": list(range(len(rows))), name: rows}), path)
    return path


def test_parquet_of_structs_as_hugging_face_writes_them(tmp_path):
    rows = [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(RGB)]
    images = load_images(write_parquet(tmp_path / "x.parquet", rows))
    assert np.array_equal(images.pixels, nchw(RGB))
    assert images.ids == ("0.png", "1.png", "2.png", "3.png", "4.png")


def test_a_folder_of_parquet_with_plain_bytes(tmp_path):
    write_parquet(tmp_path / "train-10.parquet", [png(i) for i in GREY[3:]], "img")
    write_parquet(tmp_path / "train-2.parquet", [png(i) for i in GREY[:3]], "img")
    images = load_images(tmp_path)
    assert np.array_equal(images.pixels, nchw(GREY))
    assert images.ids == ("0", "1", "2", "3", "4")
    assert load_images(tmp_path, column="img").digest == images.digest


def test_parquet_with_something_wrong(tmp_path):
    bad = write_parquet(tmp_path / "bad.parquet", [png(GREY[0]), b"no image"])
    with pytest.raises(InputError, match=r"bad\.parquet, row 1 is not an image"):
        load_images(bad)
    none = write_parquet(tmp_path / "none.parquet", [png(GREY[0]), None])
    with pytest.raises(InputError, match=r"none\.parquet, row 1 holds no image"):
        load_images(none)
    with pytest.raises(InputError, match=r"no column of images 'label'; its columns are: label, i"):
        load_images(bad, column="label")
    text = write_parquet(tmp_path / "text.parquet", ["a", "b"], "text")
    with pytest.raises(InputError, match=r"name the column of images by column=.*label, text"):
        load_images(text)
    (tmp_path / "cut.parquet").write_bytes(bad.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cut\.parquet cannot be read as Parquet"):
        load_images(tmp_path / "cut.parquet")
    save(GREY[0], tmp_path / "x.png")
    with pytest.raises(InputError, match=r"holds both images .* and Parquet"):
        load_images(tmp_path)


# Hugging Face datasets.


@pytest.fixture(scope="module")
def dataset():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"img": [Image.fromarray(i) for i in RGB], "label": list(range(5))}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_dataset_saved_to_disk(tmp_path, dataset):
    dataset.save_to_disk(tmp_path / "one")
    images = load_images(tmp_path / "one")
    assert np.array_equal(images.pixels, nchw(RGB))
    assert images.ids == ("0", "1", "2", "3", "4")
    with pytest.raises(InputError, match="a single split; leave split='train' out"):
        load_images(tmp_path / "one", split="train")


def test_a_dataset_with_splits_saved_to_disk(tmp_path, dataset):
    datasets = pytest.importorskip("datasets")
    splits = {"train": dataset.select([0, 1]), "test": dataset.select([2])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert len(load_images(tmp_path / "two", split="test")) == 1
    with pytest.raises(InputError, match="has the splits train, test; name one by split="):
        load_images(tmp_path / "two")
    with pytest.raises(InputError, match="'dev' is not one of them"):
        load_images(tmp_path / "two", split="dev")


def test_a_damaged_dataset_on_disk(tmp_path, dataset):
    dataset.save_to_disk(tmp_path / "one")
    for file in (tmp_path / "one").glob("*.arrow"):
        file.unlink()
    with pytest.raises(InputError, match="cannot be read as a saved dataset"):
        load_images(tmp_path / "one")


def test_a_dataset_of_the_hub(monkeypatch, dataset):
    datasets = pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, split: asked.append((name, split)) or dataset
    )
    images = load_images("org/name", split="train")
    assert asked == [("org/name", "train")]
    assert images.source == "org/name (hub, train)"
    assert np.array_equal(images.pixels, nchw(RGB))


def test_the_hub_out_of_reach(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(name, split):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(InputError, match=r"ConnectionError: Couldn't reach 'org/name'.* Hub\)"):
        load_images("org/name")


# Options, slices, digest.


@pytest.mark.parametrize("option", [{"split": "train"}, {"column": "image"}])
def test_an_option_without_meaning_for_the_source_is_refused(option):
    with pytest.raises(InputError, match="means nothing for an array"):
        load_images(GREY, **option)


def test_other_objects_are_refused():
    with pytest.raises(InputError, match="cannot be loaded from a int"):
        load_images(3)


def test_images_are_returned_as_they_are():
    images = load_images(GREY)
    assert load_images(images) is images


def test_slices_are_float32_from_0_to_1():
    images = load_images(RGB)
    parts = list(images.batches(2))
    assert [len(p) for p in parts] == [2, 2, 1]
    assert torch.equal(torch.cat(parts), torch.tensor(nchw(RGB)).float() / 255)
    assert torch.equal(images.batch(1, 3), torch.cat(parts)[1:3])
    with pytest.raises(InputError, match="batch of 0 images"):
        next(images.batches(0))


def test_select_keeps_order_and_names():
    images = load_images(RGB)
    some = images.select([4, 0])
    assert some.ids == ("4", "0")
    assert np.array_equal(some.pixels, nchw(RGB)[[4, 0]])


def test_the_digest_is_that_of_pixels_and_shape(tmp_path):
    images = load_images(RGB)
    expected = hashlib.sha256(b"uint8 (5, 3, 6, 8)" + nchw(RGB).tobytes()).hexdigest()
    assert images.digest == expected
    assert load_images(np.ascontiguousarray(nchw(RGB))).digest == expected
    for i, image in enumerate(RGB):
        save(image, tmp_path / f"{i}.png")
    assert load_images(tmp_path).digest == expected
    changed = RGB.copy()
    changed[4, 5, 7, 2] ^= 1
    assert load_images(changed).digest != expected
    assert load_images(GREY.reshape(5, 8, 6)).digest != load_images(GREY).digest
    native, swapped = (RGB / 255).astype("<f4"), (RGB / 255).astype(">f4")
    assert load_images(native).digest == load_images(swapped).digest != expected


# The model's shape.


def test_the_right_shape_passes_untouched():
    images = load_images(RGB)
    assert to_model(images, (3, 6, 8)) is images
    assert to_model(images, (3, 6, 8), resize=True) is images


@pytest.mark.parametrize("shape", [(3, 12, 16), (1, 6, 8), (3, 8, 6)])
def test_another_shape_is_refused_with_the_remedy(shape):
    told = r"the images are 3 x 6 x 8 .* the model takes {} x {} x {} .*pass --resize".format(
        *shape
    )
    with pytest.raises(InputError, match=told):
        to_model(load_images(RGB), shape)


def test_a_model_of_latents_is_refused():
    with pytest.raises(InputError, match="no grey or RGB image can be brought to"):
        to_model(load_images(RGB), (4, 6, 8), resize=True)


@pytest.mark.parametrize("shape", [(3, 12, 16), (1, 6, 8), (1, 3, 4), (3, 9, 9), (3, 100, 2)])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_a_constant_image_stays_constant(shape, kind):
    array = np.full((2, 6, 8, 3), 51, np.uint8)
    images = to_model(load_images(array if kind == "uint8" else array / 255), shape, resize=True)
    assert images.shape == shape
    assert images.batch().sub(0.2).abs().max() < 1e-6
    assert "converted from 3 x 6 x 8" in images.notes[-1]


def test_scaling_is_pil_bicubic():
    images = to_model(load_images(RGB), (3, 12, 16), resize=True)
    for ours, image in zip(images.pixels, RGB, strict=True):
        theirs = Image.fromarray(image).resize((16, 12), Image.Resampling.BICUBIC)
        assert np.array_equal(ours.transpose(1, 2, 0), np.asarray(theirs))


def test_other_proportions_are_cropped_about_the_centre():
    array = np.zeros((1, 4, 12), np.uint8)
    array[:, :, 4:8] = 200
    images = to_model(load_images(array), (1, 4, 4), resize=True)
    assert (images.pixels == 200).all()


def test_grey_becomes_rgb_and_rgb_grey():
    grey = load_images(GREY)
    assert np.array_equal(to_model(grey, (3, 6, 8), resize=True).pixels, nchw(GREY).repeat(3, 1))
    luma = to_model(load_images(RGB), (1, 6, 8), resize=True).pixels[:, 0].astype(int)
    theirs = [np.asarray(Image.fromarray(i).convert("L")).astype(int) for i in RGB]
    assert np.abs(luma - np.stack(theirs)).max() <= 1


def test_bicubic_overshoot_stays_in_range():
    array = np.zeros((1, 8, 8), np.float32)
    array[:, :, 4:] = 1
    pixels = to_model(load_images(array), (1, 32, 32), resize=True).pixels
    assert pixels.min() == 0
    assert pixels.max() == 1


def test_images_check_their_names():
    with pytest.raises(InputError, match="1 ids for 5 images"):
        Images(nchw(GREY), ("a",), "here")
