"""Large JPEG files are decoded at a fraction of their size: nearly the same pixels, the same everywhere; exact=True."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageOps

from minifast import DataError, DatasetType, ImageDataBunch, Learner, SegmentationDataBunch, load_learner, simple_cnn
from minifast.data.images.conversion import Pixels
from minifast.data.images.decoding import read_image
from minifast.data.images.resizing import METHODS

EXACT = Pixels(exact=True)
ORIENTATION = 274  # the EXIF tag


def smooth(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def noise(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    grainy = np.asarray(smooth(rng, width, height)) + rng.normal(0, 25, (height, width, 3))
    return Image.fromarray(grainy.clip(0, 255).astype(np.uint8))


def text(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    page = Image.new("RGB", (width, height), (235, 230, 220))
    draw = ImageDraw.Draw(page)
    for y in range(8, height, 48):
        draw.text((int(rng.integers(0, 40)), y), "sharp edges of many letters", fill=(30, 20, 60), font_size=24)
    return page


def jpeg(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    image.save(stream, "jpeg", exif=exif, **options)
    return stream.getvalue()


def both_ways(content: bytes, size: tuple[int, int], method: str, pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels by default and those decoded in full."""
    ways = (pixels, pixels._replace(exact=True))
    smaller, full = (read_image(io.BytesIO(content), size, method, way).astype(int) for way in ways)
    return smaller, full


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from([smooth, noise, text]),
    width=st.integers(200, 700),
    height=st.integers(200, 700),
    size=st.tuples(st.integers(24, 64), st.integers(24, 64)),
    method=st.sampled_from(METHODS),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    orientation=st.integers(1, 8),
    quality=st.integers(75, 95),
    progressive=st.booleans(),
    with_profile=st.booleans(),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 9),
)
def test_pixels_differ_by_at_most_one_in_the_mean(
    kind, width, height, size, method, mode, orientation, quality, progressive, with_profile, channels, seed
):
    profile = (
        {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()} if with_profile else {}
    )
    image = kind(np.random.default_rng(seed), width, height).convert(mode)
    content = jpeg(image, orientation, quality=quality, progressive=progressive, **profile)
    smaller, full = both_ways(content, size, method, Pixels(channels))
    assert smaller.shape == full.shape
    # For text the mean over images is below 1 too; of 289 × 309 pixels, at size 24, one had 1.07.
    assert np.abs(smaller - full).mean() <= (1.5 if kind is text else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("method", METHODS)
def test_a_size_that_is_no_multiple_of_the_blocks_moves_no_edge(method, orientation):
    """The last of the smaller pixels is covered in part, and the EXIF orientation moves it to another border."""
    image = Image.fromarray((np.indices((413, 533)).sum(0) // 40 % 2 * 200).astype(np.uint8))
    smaller, full = both_ways(jpeg(image, orientation, quality=95), (40, 30), method, Pixels())
    assert not np.array_equal(smaller, full)
    assert np.abs(smaller - full).mean() <= 1


@settings(max_examples=30, deadline=None)
@given(
    st.integers(100, 500), st.integers(100, 500), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(1, 8)
)
def test_exact_pixels_are_those_of_pillow(width, height, size, orientation):
    content = jpeg(noise(np.random.default_rng(0), width, height), orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    wanted = np.asarray(ImageOps.fit(upright, size[::-1], Image.Resampling.BILINEAR))
    assert np.array_equal(read_image(io.BytesIO(content), size, pixels=EXACT).transpose(1, 2, 0), wanted)


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), st.tuples(st.integers(5, 50), st.integers(5, 50)))
def test_only_images_of_six_times_the_size_are_decoded_smaller(width, height, size):
    assume(width < 6 * size[1] or height < 6 * size[0])
    gray = noise(np.random.default_rng(0), width, height).convert("L")  # Pillow resizes it in both ways
    smaller, full = both_ways(jpeg(gray), size, "squish", Pixels())
    assert np.array_equal(smaller, full)


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tif"])
def test_other_formats_are_decoded_in_full(tmp_path, suffix):
    noise(np.random.default_rng(0), 400, 300).save(tmp_path / f"x.{suffix}")
    content = (tmp_path / f"x.{suffix}").read_bytes()
    assert np.array_equal(*both_ways(content, (20, 20), "crop", Pixels()))


def test_a_file_of_several_photographs_gives_the_first_decoded_smaller():
    first, second = (noise(np.random.default_rng(seed), 400, 300) for seed in (0, 1))
    stream = io.BytesIO()
    first.save(stream, "mpo", save_all=True, append_images=[second])
    smaller, full = both_ways(stream.getvalue(), (20, 20), "crop", Pixels())
    assert 0 < np.abs(smaller - full).mean() <= 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_photograph_that_is_cut_off_is_named(tmp_path, share):
    content = jpeg(noise(np.random.default_rng(0), 400, 300))
    (tmp_path / "x.jpg").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"x\.jpg is not a readable image, or it is truncated"):
        read_image(str(tmp_path / "x.jpg"), (20, 20))


def test_a_mask_is_decoded_in_full():
    mask = Image.fromarray((np.indices((300, 400)).sum(0) // 7 % 3).astype(np.uint8))
    content = jpeg(mask, quality=100)
    wanted = ImageOps.fit(Image.open(io.BytesIO(content)), (20, 20), Image.Resampling.NEAREST)
    assert np.array_equal(read_image(io.BytesIO(content), (20, 20), pixels=Pixels(mask=True))[0], np.asarray(wanted))


# --- the same pixels everywhere


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Photographs of 400 × 300 pixels in class folders, some of them rotated."""
    for i in range(12):
        folder = tmp_path / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = noise(np.random.default_rng(i), 400 - i, 300)
        (folder / f"{i}.jpg").write_bytes(jpeg(image, (1, 6, 3)[i % 3], quality=90))
    return tmp_path / "images"


def load(folder: Path, memory: int = 2**30, **options: object) -> ImageDataBunch:
    options = {"size": 24, "bs": 4, "seed": 0, "valid_pct": 0.5, "num_workers": 0, "device": "cpu"} | options
    return ImageDataBunch.from_folder(folder, memory=memory, **options)


def valid_images(data: ImageDataBunch) -> torch.Tensor:
    return torch.cat([x for x, _ in data.valid_dl])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.slow
def test_memory_cache_files_prediction_and_export_see_the_same_pixels(photographs, method, exact):
    data = load(photographs, resize=method, exact=exact)
    wanted = valid_images(data)
    assert valid_images(load(photographs, resize=method, exact=exact)).equal(wanted)  # from the cache
    assert valid_images(load(photographs, memory=0, resize=method, exact=exact)).equal(wanted)
    files = data.valid_ds.items
    assert torch.cat([data.encode(file) for file in files]).equal(wanted)
    assert torch.cat([data.encode(Image.open(file)) for file in files]).equal(wanted)
    learn, exported = Learner(data, simple_cnn((3, 4, 2)), silent=True), io.BytesIO()
    expected = learn.get_preds()[0]
    learn.export(exported)
    exported.seek(0)
    loaded = load_learner(".", exported, test=files, device="cpu")
    assert torch.cat([loaded.data.encode(file) for file in files]).equal(wanted)
    assert loaded.get_preds(DatasetType.Test)[0].allclose(expected, atol=1e-5)


@pytest.mark.parametrize("memory", [2**30, 0])
def test_exact_gives_other_pixels_and_the_cache_of_one_does_not_serve_the_other(photographs, memory):
    smaller, full, again = (valid_images(load(photographs, memory, exact=exact)) for exact in (False, True, False))
    assert 0 < (smaller - full).abs().mean() <= 1 / 255
    assert again.equal(smaller)


@pytest.mark.parametrize(
    ("method", "argument"),
    [
        ("from_lists", lambda files: [file.parent.name for file in files]),
        ("from_name_func", lambda files: lambda file: file.parent.name),
        ("from_name_re", lambda files: r"/([ab])/"),
    ],
)
def test_every_constructor_takes_exact(photographs, method, argument):
    files = sorted(photographs.rglob("*.jpg"))
    create = partial(getattr(ImageDataBunch, method), photographs, files, argument(files))
    options = {"size": 24, "bs": 4, "seed": 0, "device": "cpu", "valid_pct": 0.5}
    smaller, full = (create(exact=exact, **options) for exact in (False, True))
    assert not valid_images(smaller).equal(valid_images(full))
    assert full.encode(files[0]).equal(load(photographs, exact=True).encode(files[0]))


def test_an_image_of_the_caller_stays_as_it_is(photographs):
    data, file = load(photographs), next(photographs.rglob("*.jpg"))
    given = Image.open(file)
    data.encode(given)
    assert np.array_equal(np.asarray(given), np.asarray(Image.open(file)))
    full = load(photographs, exact=True).encode(file)
    assert data.encode(given).equal(full)  # it is decoded in full now


def test_an_export_from_before_predicts_on_exact_pixels(photographs):
    learn, exported = Learner(load(photographs), simple_cnn((3, 4, 2)), silent=True), io.BytesIO()
    learn.export(exported)
    exported.seek(0)
    content = torch.load(exported, weights_only=True)
    assert content.pop("exact") is False
    older = io.BytesIO()
    torch.save(content, older)
    older.seek(0)
    file = next(photographs.rglob("*.jpg"))
    assert load_learner(".", older, device="cpu").data.encode(file).equal(load(photographs, exact=True).encode(file))


def test_images_of_segmentation_are_decoded_smaller_and_their_masks_are_not(tmp_path):
    for i in range(4):
        for name in ("images", "masks"):
            (tmp_path / name).mkdir(exist_ok=True)
        image = noise(np.random.default_rng(i), 403, 301)
        image.save(tmp_path / "images" / f"{i}.jpg", quality=95)
        image.convert("L").point(lambda value: value // 128).save(tmp_path / "masks" / f"{i}.png")
    smaller, full = (
        SegmentationDataBunch.from_folder(
            tmp_path, ["dark", "bright"], size=24, bs=2, seed=0, valid_pct=0.5, device="cpu", exact=exact
        ).one_batch(DatasetType.Valid)
        for exact in (False, True)
    )
    assert 0 < (smaller[0] - full[0]).abs().mean() <= 1 / 255
    assert smaller[1].equal(full[1])


def test_exact_must_be_true_or_false(photographs):
    with pytest.raises(ValueError, match="`exact` must be True or False, got 'yes'"):
        load(photographs, exact="yes")
