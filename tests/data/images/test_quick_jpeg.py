"""JPEG files are decoded and resized quickly where that gives Pillow's pixels."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from minifast import DataError
from minifast.data.images import quick_jpeg
from minifast.data.images.conversion import Pixels
from minifast.data.images.decoding import ImageFiles, read_image
from minifast.data.images.quick_jpeg import (
    LEAST_PIXELS,
    MAX_SHIFT,
    crop_axis,
    decode_pixels,
    has_kernel,
    resize_quickly,
    torchvision_decoder,
)
from minifast.data.images.resizing import Box, part_of

needs_decoder = pytest.mark.skipif(torchvision_decoder() is None, reason="torchvision has no equal JPEG decoder")
needs_kernel = pytest.mark.skipif(not has_kernel(), reason="torch has no kernel for bytes on this processor")


def photograph(width: int, height: int, grain: float, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(
        0, grain, (height, width, 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def by_pillow(image: Image.Image, size: tuple[int, int], box: Box) -> np.ndarray:
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box)).transpose(2, 0, 1).astype(int)


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(180, 700),
    height=st.integers(180, 600),
    size=st.tuples(st.integers(16, 330), st.integers(16, 330)),
    method=st.sampled_from(["crop", "squish"]),
    grain=st.sampled_from([0.0, 12.0]),
    seed=st.integers(0, 5),
)
def test_pixels_are_those_of_pillow_up_to_rounding_and_within_one_in_the_mean(width, height, size, method, grain, seed):
    image = photograph(width, height, grain, seed)
    box = part_of(image, size, method)
    quick = resize_quickly(image, size, box)
    assume(quick is not None)
    difference = np.abs(quick - by_pillow(image, size, box))
    assert quick.shape == (3, *size)
    assert difference.mean() <= 1
    inner = difference[:, 1:-1, 1:-1]
    assert inner.max() <= 2
    assert inner.mean() <= 0.3


@settings(max_examples=300)
@given(
    begin=st.floats(0, 300),
    scale=st.floats(1, 20),
    n=st.integers(1, 300),
    right=st.integers(0, 100),
    grid=st.sampled_from([1, 2, 4, 1 / 0.37]),
)
def test_a_crop_covers_its_part_to_a_64th_of_a_pixel(begin, scale, n, right, grid):
    begin = round(begin * grid) / grid
    end, side = begin + scale * n, math.ceil(begin + scale * n) + right
    found = crop_axis(begin, end, n, side)
    assume(found is not None)
    assert 0 <= found.source.start < found.source.stop <= side
    for bound, pixel in ((begin, found.result.start), (end, found.result.stop)):
        assert found.source.start + pixel / found.factor == pytest.approx(bound, abs=MAX_SHIFT + 1e-9)
    assert found.result.stop - found.result.start == n
    resized = (found.source.stop - found.source.start) * found.factor * quick_jpeg.ROUNDING_GUARD
    assert resized >= found.result.stop


def test_an_axis_that_becomes_longer_is_left_to_pillow():
    assert crop_axis(171.677, 205.323, 34, 377) is None  # torch would skip it, because it keeps its size
    assert crop_axis(1.5, 8, 269, 8) is None


def test_a_part_on_whole_pixels_is_cut_there():
    assert crop_axis(10, 110, 50, 200) == (slice(10, 112), 0.5, slice(0, 50))


@needs_kernel
def test_a_half_pixel_at_the_border_moves_no_edge():
    columns = np.indices((375, 500))[1] // 25 % 2 * 200
    image = Image.fromarray(columns.astype(np.uint8)).convert("RGB")
    box = part_of(image, (224, 224), "crop")
    assert box == (62.5, 0, 437.5, 375)
    quick = resize_quickly(image, (224, 224), box)
    assert np.abs(quick - by_pillow(image, (224, 224), box)).mean() <= 0.1
    moved = by_pillow(image, (224, 224), Box(62, 0, 437, 375))
    assert np.abs(quick - moved).mean() > 3


@pytest.mark.parametrize(
    ("mode", "side", "size", "box"),
    [
        ("L", 400, (10, 10), Box(0, 0, 400, 400)),
        ("RGB", 150, (10, 10), Box(0, 0, 150, 150)),  # small
        ("RGB", 400, (10, 10), Box(0.25, 0, 400, 400)),  # no whole pixel lies before the part
        ("RGB", 500, (224, 224), Box(26.5, 0, 474.5, 448)),  # each pixel of the result is two wide
    ],
)
def test_what_it_cannot_do_is_left_to_pillow(mode, side, size, box):
    assert LEAST_PIXELS > 150 * 150
    assert resize_quickly(Image.new(mode, (side, side)), size, box) is None


def test_a_processor_without_the_kernel_is_left_to_pillow(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert resize_quickly(Image.new("RGB", (400, 400)), (10, 10), Box(0, 0, 400, 400)) is None


@pytest.mark.parametrize(("form", "is_used"), [("jpeg", True), ("png", False), ("webp", False)])
@pytest.mark.parametrize("pixels", [Pixels(), Pixels(exact=True), Pixels(channels=1)])
@pytest.mark.parametrize("method", ["crop", "squish", "pad"])
def test_only_jpeg_files_in_color_are_resized_by_it(monkeypatch, form, is_used, pixels, method):
    used = []
    monkeypatch.setattr(
        "minifast.data.images.conversion.resize_quickly",
        lambda *arguments: used.append(quick_jpeg.resize_quickly(*arguments)),
    )
    stream = io.BytesIO()
    photograph(500, 375, 5).save(stream, form)
    read_image(stream, (224, 224), method, pixels)
    given_to_it = is_used and has_kernel() and pixels == Pixels() and method != "pad"
    assert any(result is not None for result in used) is given_to_it


@pytest.mark.parametrize(
    ("size", "pixels", "may_differ"),
    [
        (8, Pixels(), True),
        (None, Pixels(), False),
        (8, Pixels(exact=True), False),
        (8, Pixels(mask=True), False),
    ],
)
def test_a_cache_is_used_on_another_processor_only_if_it_gives_the_same_pixels(monkeypatch, size, pixels, may_differ):
    fingerprints = set()
    for capability in ("DEFAULT", "AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        fingerprints.add(ImageFiles("name", size, pixels=pixels)._fingerprint)
    assert len(fingerprints) == (2 if may_differ else 1)


@needs_decoder
@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
            "progressive": st.booleans(),
            "restart_marker_blocks": st.sampled_from([0, 3]),
            "keep_rgb": st.booleans(),
        }
    ),
    seed=st.integers(0, 5),
)
def test_torchvision_decodes_the_bits_of_pillow(width, height, mode, options, seed):
    stream = io.BytesIO()
    if options["keep_rgb"]:
        options["subsampling"] = "4:4:4"
    photograph(width, height, 9, seed).convert(mode).save(stream, "jpeg", **options)
    image = Image.open(stream)
    assume(image.mode == "RGB")
    pixels = decode_pixels(image)
    assert image.tile  # not by Pillow
    assert np.array_equal(pixels[..., :3], np.asarray(Image.open(stream)))


@needs_decoder
@needs_kernel
@pytest.mark.parametrize("form", ["jpeg", "mpo"])
def test_a_file_has_the_same_pixels_without_torchvision(monkeypatch, form):
    stream = io.BytesIO()
    photograph(500, 375, 12).save(stream, form, append_images=[photograph(500, 375, 12, 1)])
    with_it = read_image(stream, (224, 224))
    monkeypatch.setattr(quick_jpeg, "torchvision_decoder", lambda: None)
    assert np.array_equal(with_it, read_image(stream, (224, 224)))


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_a_damaged_file_is_treated_as_by_pillow(monkeypatch, damage):
    stream = io.BytesIO()
    photograph(500, 375, 12).save(stream, "jpeg")
    content = bytearray(stream.getvalue())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2 : len(content) // 2 + 20] = bytes(range(100, 120))

    def result() -> np.ndarray | str:
        try:
            return read_image(io.BytesIO(content), (224, 224))
        except DataError as error:
            return str(error).partition("object at")[0]

    with_it = result()
    monkeypatch.setattr(quick_jpeg, "torchvision_decoder", lambda: None)
    assert np.array_equal(with_it, result())
    assert isinstance(with_it, str) == (damage == "truncated")


@pytest.mark.parametrize("lacks", ["torchvision", "operator", "equal pixels"])
def test_without_a_decoder_of_the_same_pixels_pillow_decodes(monkeypatch, lacks):
    torchvision_decoder.cache_clear()
    if lacks == "torchvision":
        monkeypatch.setattr(quick_jpeg, "find_spec", lambda name: None)
    if lacks != "equal pixels":
        monkeypatch.setattr(torch.ops, "image", object())
    else:
        other = SimpleNamespace(decode_jpeg=lambda content, mode: torch.zeros(3, 37, 53, dtype=torch.uint8))
        monkeypatch.setattr(torch.ops, "image", other)
    try:
        assert torchvision_decoder() is None
    finally:
        torchvision_decoder.cache_clear()


@needs_kernel
def test_threads_of_torch_change_no_pixel():
    image, box = photograph(500, 375, 12), Box(62.5, 0, 437.5, 375)
    alone = resize_quickly(image, (224, 224), box)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = resize_quickly(image, (224, 224), box)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(alone, together)
