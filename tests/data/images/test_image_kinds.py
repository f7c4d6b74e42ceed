"""Image formats: each is read correctly, into memory and batch by batch, or an error names the file."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from minifast import DataError, ImageDataBunch
from minifast.data.images import value_range
from minifast.data.images.conversion import Pixels
from minifast.data.images.decoding import decode, read_image

SIZE = (6, 4)  # width, height


def colours(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)


def grey(seed: int = 0) -> np.ndarray:
    return colours(seed)[..., 0]


def alpha() -> np.ndarray:
    return np.linspace(0, 255, SIZE[0] * SIZE[1]).astype(np.uint8).reshape(SIZE[1], SIZE[0])


def paletted(transparency=None) -> bytes:
    """A PNG whose palette is known, with or without transparent colours."""
    image = Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint8).reshape(SIZE[1], SIZE[0]), "P")
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(stream, "png", **({} if transparency is None else {"transparency": transparency}))
    return stream.getvalue()


def palette_colours() -> np.ndarray:
    palette = np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).reshape(256, 3)
    return palette[np.arange(SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0])]


def saved(image: Image.Image, kind: str, **kwargs) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **kwargs)
    return stream.getvalue()


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(colours(seed)).quantize(24).convert("RGB") for seed in range(3)]
    return saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {})
    )


def first_frame() -> np.ndarray:
    return np.asarray(Image.fromarray(colours(0)).quantize(24).convert("RGB"))


def deep_colours() -> bytes:
    """A PNG of 16 bits a channel, which PIL itself cannot write: the high bytes are ``colours()``."""
    import struct
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = np.stack([colours(), np.full_like(colours(), 77)], -1).reshape(SIZE[1], -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


RIGHT = {  # file's name, its content, its pixels
    "grey.png": (lambda: saved(Image.fromarray(grey()), "png"), grey),
    "black-and-white.png": (lambda: saved(Image.fromarray(grey() > 127), "png"), lambda: 255 * (grey() > 127)),
    "grey-and-alpha.png": (
        lambda: saved(Image.merge("LA", [Image.fromarray(grey()), Image.fromarray(alpha())]), "png"),
        grey,
    ),
    "colours.png": (lambda: saved(Image.fromarray(colours()), "png"), colours),
    "colours-and-alpha.png": (lambda: saved(Image.fromarray(np.dstack([colours(), alpha()])), "png"), colours),
    "one-colour-transparent.png": (
        lambda: saved(Image.fromarray(colours()), "png", transparency=tuple(map(int, colours()[0, 0]))),
        colours,
    ),
    "palette.png": (paletted, palette_colours),
    "palette-one-transparent.png": (lambda: paletted(3), palette_colours),
    "palette-transparent.png": (lambda: paletted(bytes(range(0, 250, 10))), palette_colours),
    "deep-colours.png": (deep_colours, colours),
    "colours.bmp": (lambda: saved(Image.fromarray(colours()), "bmp"), colours),
    "colours.tif": (lambda: saved(Image.fromarray(colours()), "tiff"), colours),
    "inks.tif": (
        lambda: saved(Image.fromarray(np.dstack([255 - colours(), np.zeros_like(grey())]), "CMYK"), "tiff"),
        colours,
    ),
    "animated.gif": (lambda: animated("gif"), first_frame),
    "animated.webp": (lambda: animated("webp"), first_frame),
    "animated.png": (lambda: animated("png"), first_frame),
}


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(np.uint8)
    return (np.stack([pixels] * 3) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).copy()


@pytest.mark.parametrize("name", RIGHT)
def test_each_kind_is_read_as_it_is_seen(tmp_path, name):
    content, pixels = RIGHT[name]
    (tmp_path / name).write_bytes(content())
    found = read_image(str(tmp_path / name))
    assert found.dtype == np.uint8
    assert np.array_equal(np.broadcast_to(found, (3, *found.shape[1:])), as_rgb(pixels()))


def test_inks_of_a_jpeg_are_not_inverted(tmp_path):
    """Those that Photoshop writes are stored inverted, and PIL turns them back."""
    flat = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    inks = Image.merge("CMYK", [*Image.fromarray(255 - flat).split(), Image.new("L", (16, 16), 0)])
    inks.save(tmp_path / "inks.jpg", quality=95)
    with Image.open(tmp_path / "inks.jpg") as image:
        assert image.mode == "CMYK"
    assert np.abs(read_image(str(tmp_path / "inks.jpg")).astype(int).mean((1, 2)) - (200, 60, 20)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_a_image_stands_as_its_camera_was_held(tmp_path, orientation, kind):
    """A file of each EXIF orientation, which all show the same image when upright."""
    upright = Image.fromarray(np.kron(colours(), np.ones((8, 8, 1), np.uint8)))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the PIL Transpose that the camera did, as the standard says
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[274] = orientation
    options = {"jpeg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
    stored.save(tmp_path / f"x.{kind}", exif=exif, **options)
    found = read_image(str(tmp_path / f"x.{kind}"))
    difference = np.abs(found.astype(int) - as_rgb(np.asarray(upright)))
    assert found.shape == (3, 32, 48)
    assert difference.mean() < (3 if kind == "jpeg" else 1e-9)
    with Image.open(tmp_path / f"x.{kind}") as image:  # and as PIL would turn it
        assert np.array_equal(found, as_rgb(np.asarray(ImageOps.exif_transpose(image))))
        assert np.array_equal(read_image(image), found)


def test_a_size_is_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    stored = Image.fromarray(np.kron(colours(), np.ones((8, 8, 1), np.uint8)))
    stored.save(tmp_path / "x.png", exif=exif)
    wanted = ImageOps.fit(stored.transpose(Image.Transpose.ROTATE_270), (10, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(read_image(str(tmp_path / "x.png"), (20, 10)), as_rgb(np.asarray(wanted)))


@pytest.mark.parametrize("key", ["Raw profile type exif", "XML:com.adobe.xmp"])
def test_an_orientation_in_the_texts_of_a_png_file_counts(tmp_path, key):
    """ImageMagick writes EXIF data as a text, other programs write XMP."""
    exif = Image.Exif()
    exif[274] = 6
    content = exif.tobytes()
    texts = {
        "Raw profile type exif": f"\nexif\n{len(content):8}\n{content.hex()}\n",
        "XML:com.adobe.xmp": '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>',
    }
    info = PngImagePlugin.PngInfo()
    info.add_itxt(key, texts[key]) if key.startswith("XML") else info.add_text(key, texts[key])
    Image.fromarray(colours()).save(tmp_path / "x.png", pnginfo=info)
    with Image.open(tmp_path / "x.png") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
        assert wanted.shape != np.asarray(image).shape or not np.array_equal(wanted, np.asarray(image))
    assert np.array_equal(read_image(tmp_path / "x.png").transpose(1, 2, 0), wanted)


def test_a_damaged_note_on_the_camera_costs_no_image(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "x.png", exif=b"Exif\0\0no note at all")
    assert np.array_equal(read_image(str(tmp_path / "x.png")), as_rgb(colours()))


def deep(mode: str) -> Image.Image:
    pixels = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    return Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=pixels).reshape(SIZE[1], SIZE[0]))


DEEP = [("I;16", "deep.png"), ("I;16", "deep.tif"), ("I", "a.tif"), ("F", "b.tif")]


@pytest.mark.parametrize(("mode", "name"), DEEP)
def test_deep_images_are_scaled_from_their_range_to_8_bits(tmp_path, mode, name):
    image = deep(mode)
    image.save(tmp_path / name)
    values = np.asarray(image).astype(float)
    for low, high in ((0, 23), (3, 11)):
        found = read_image(str(tmp_path / name), pixels=Pixels(value_range=(low, high)))
        assert np.array_equal(found[0], ((values - low) / (high - low) * 255).round().clip(0, 255))


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_16_bits_are_scaled_from_0_to_65535_and_floats_from_0_to_1(tmp_path, mode):
    values = np.array([[0, 257, 32768, 65535]])
    Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32)).save(tmp_path / "x.tif")
    assert read_image(str(tmp_path / "x.tif")).tolist() == [[[0, 1, 128, 255]]]
    Image.fromarray((values / 65535).astype(np.float32)).save(tmp_path / "y.tif")
    assert read_image(str(tmp_path / "y.tif")).tolist() == [[[0, 1, 128, 255]]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([[-2, 7.5]]), r"x.tif has values from -2 to 7.5, outside of 0 to 1 .* as `value_range`"),
        (np.int32([[5, 70000]]), r"x.tif has values from 5 to 70000, outside of 0 to 65535"),
        (np.float32([[0, np.nan]]), "x.tif has pixels that are NaN or infinite"),
    ],
)
def test_values_outside_of_the_range_raise_with_the_file_name(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=message):
        read_image(str(tmp_path / "x.tif"))


def write_classes(path, images, suffix="png"):
    """Write images of two classes, ``(values of a, values of b)`` in each row."""
    for label, column in zip("ab", zip(*images, strict=True), strict=True):
        (path / label).mkdir(parents=True)
        for i, values in enumerate(column):
            Image.fromarray(values).save(path / label / f"{i}.{suffix}")
    return path


OPTIONS = {"valid_pct": 0.5, "bs": 4, "seed": 0, "device": "cpu", "channels": 1}


def test_16_bit_images_that_would_be_black_warn_with_the_range_of_all(tmp_path):
    path = write_classes(tmp_path / "images", [(np.uint16([[0, 900]]), np.uint16([[4000, 100]]))] * 4)
    found = r"nearly black.* 8 of the 8 images range from 0 to 4000; value_range=\(0, 4095\) fits them"
    with pytest.warns(UserWarning, match=found):
        ImageDataBunch.from_folder(path, **OPTIONS)
    data = ImageDataBunch.from_folder(path, **OPTIONS, value_range=(0, 4000))
    x, y = data.one_batch()
    assert x.shape == (4, 1, 1, 2)
    assert {tuple(image.flatten().mul(255).round().tolist()) for image in x[y == 0]} <= {(0, 57)}
    assert data.encode(np.uint8([[0, 255]])).shape == (1, 1, 1, 2)
    assert data.encode(path / "b" / "0.png").flatten().mul(255).round().tolist() == [255, 6]
    for wrong in ({"channels": 2}, {"value_range": (3, 1)}, {"value_range": 5}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            ImageDataBunch.from_folder(path, **{**OPTIONS, **wrong})


def test_a_dark_first_image_among_bright_ones_does_not_warn(tmp_path):
    path = write_classes(tmp_path, [(np.uint16([[0, 900]]), np.uint16([[60000, 0]]))] * 4)
    ImageDataBunch.from_folder(path, **OPTIONS)


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
@pytest.mark.parametrize("memory", [2**30, 0])
@settings(max_examples=5, deadline=None)
@given(values=st.lists(st.lists(st.integers(0, 250), min_size=4, max_size=4), min_size=4, max_size=8))
def test_the_suggested_range_clips_no_image(tmp_path_factory, dtype, memory, values):
    scale = {"uint16": 16, "int32": 300, "float32": 0.01}[dtype]
    images = [(np.array([row]) * scale).astype(dtype) for row in values]
    images[0][0, 0] = 70000 if dtype == "int32" else 2  # floats up to 1 and integers up to 65535 need no range
    images = images[: len(images) // 2 * 2]
    path = write_classes(tmp_path_factory.mktemp("deep"), [images[i : i + 2] for i in range(0, len(images), 2)], "tif")
    options = {**OPTIONS, "bs": 1, "memory": memory, "num_workers": 0}
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        try:
            data = ImageDataBunch.from_folder(path, **options)
            assert len([*data.train_dl, *data.valid_dl])
            said = str(record[0].message)
        except DataError as error:
            said = str(error)
    black, white = map(float, re.search(r"value_range=\((.*?), (.*?)\) fits", said).groups())
    assert black <= min(image.min() for image in images) + 1e-4
    assert white >= max(image.max() for image in images) - 1e-4
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "value_range")
        data = ImageDataBunch.from_folder(path, **options, value_range=(black, white))
    assert len([*data.train_dl, *data.valid_dl])


def test_a_single_image_out_of_range_is_in_the_suggested_range(tmp_path, monkeypatch):
    monkeypatch.setattr(value_range, "SAMPLED", 2)
    gray, deep = np.uint8([[0, 200]]), np.float32([[-3, 9]])
    path = write_classes(tmp_path, [(gray, gray)] * 3 + [(deep, gray)] + [(gray, gray)] * 2, "tif")
    with pytest.raises(DataError, match=r"values from -3 to 9, .* range from -3 to 9; value_range=\(-3, 9\) fits them"):
        ImageDataBunch.from_folder(path, **OPTIONS)


@pytest.mark.parametrize(
    ("value_range", "lost"),
    [((0, 4095), 0), ((0, 20), 4), ((0, 1000), 4), ((2000, 4000), 4), ((4000, 60000), 8), ((0, 3500), 4)],
)
def test_a_range_that_clips_many_pixels_warns(tmp_path, value_range, lost):
    dark, bright = np.linspace(0, 900, 40), np.linspace(3100, 4000, 40)
    path = write_classes(tmp_path, [(dark[None].astype(np.uint16), bright[None].astype(np.uint16))] * 4)
    if not lost:
        ImageDataBunch.from_folder(path, **OPTIONS, value_range=value_range)
        return
    said = r"value_range=.* 8 of the 8 images range from 0 to 4000; .*\(0, 4095\)"
    with pytest.warns(UserWarning, match=said) as record:
        ImageDataBunch.from_folder(path, **OPTIONS, value_range=value_range)
    assert len(record) == 1


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data")  # what PIL says of a TIFF
@pytest.mark.parametrize("name", RIGHT)
def test_a_file_that_is_cut_off_is_named(tmp_path, name):
    content = RIGHT[name][0]()
    share = 0.2 if "animated" in name else 0.5  # within the first frame
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=rf"{name} is not a readable image, or it is truncated"):
        read_image(str(tmp_path / name))


def test_kinds_mix_and_are_the_same_from_memory_and_from_files(tmp_path):
    for name, (content, _) in RIGHT.items():
        (tmp_path / name).write_bytes(content())
    files = sorted(map(str, tmp_path.iterdir()))
    wanted = torch.from_numpy(np.stack([as_rgb(RIGHT[Path(file).name][1]()) for file in files]))
    assert decode(files).equal(wanted)
    assert decode(files, threads=3).equal(wanted)
    found = []
    for memory in (2**30, 0):
        data = ImageDataBunch.from_lists(
            tmp_path, files, list(range(len(files))), seed=0, bs=4, device="cpu", memory=memory, num_workers=0
        )
        images = {int(i): x for dl in data.dls for xs, ys in dl for x, i in zip(xs, ys, strict=True)}
        assert all(images[i].equal(wanted[i] / 255) for i in images)
        found.append(images.keys())
    assert found[0] == found[1]
