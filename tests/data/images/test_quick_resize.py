"""JPEG files are resized by torch where its kernel gives Pillow's pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from minifast.data.images import quick_resize
from minifast.data.images.conversion import Pixels
from minifast.data.images.decoding import ImageFiles, read_image
from minifast.data.images.quick_resize import LEAST_PIXELS, LEAST_SCALE, has_kernel, resize_quickly
from minifast.data.images.resizing import Box, part_of

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
    width=st.integers(300, 700),
    height=st.integers(334, 600),
    size=st.tuples(st.integers(16, 500), st.integers(16, 500)),
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
    halves = any(side % 1 for side in box)
    assert quick.shape == (3, *size)
    assert difference.mean() <= 1
    inner = difference[:, 1:-1, 1:-1]
    assert halves or (inner.max() <= 2 and inner.mean() <= 0.3)


@needs_kernel
def test_a_half_pixel_at_the_border_moves_no_edge():
    columns = np.indices((375, 500))[1] // 25 % 2 * 200
    image = Image.fromarray(columns.astype(np.uint8)).convert("RGB")
    box = part_of(image, (224, 224), "crop")
    assert box == (62.5, 0, 437.5, 375)
    quick = resize_quickly(image, (224, 224), box)
    assert np.abs(quick - by_pillow(image, (224, 224), box)).mean() <= 1
    moved = by_pillow(image, (224, 224), Box(62, 0, 437, 375))
    assert np.abs(quick - moved).mean() > 3


@pytest.mark.parametrize(
    ("mode", "side", "size", "box"),
    [
        ("L", 400, (10, 10), Box(0, 0, 400, 400)),
        ("RGB", 300, (10, 10), Box(0, 0, 300, 300)),  # small
        ("RGB", 400, (10, 10), Box(0.25, 0, 400, 400)),  # a quarter of a pixel
        ("RGB", 400, (300, 300), Box(0.5, 0, 399.5, 400)),  # a half where the scale is small
    ],
)
def test_what_it_cannot_do_is_left_to_pillow(mode, side, size, box):
    assert LEAST_PIXELS > 300 * 300
    assert LEAST_SCALE > 399 / 300
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
        lambda *arguments: used.append(quick_resize.resize_quickly(*arguments)),
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
