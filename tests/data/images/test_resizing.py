"""Images of another aspect ratio are cropped, squished or padded, the same in training, prediction and export."""

import io
from itertools import product

import numpy as np
import pytest
import torch
from conftest import slow
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minifast import DatasetType, ImageDataBunch, Learner, load_learner, simple_cnn
from minifast.data.images.decoding import read_image
from minifast.data.images.resizing import METHODS, resize_image

sides = st.integers(1, 12)


@given(sides, sides, sides, sides, st.sampled_from(METHODS), st.sampled_from(["L", "RGB"]))
def test_every_method_gives_the_size_and_no_value_out_of_range(width, height, new_width, new_height, method, mode):
    pixels = np.random.default_rng(0).integers(40, 90, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    found = np.asarray(resize_image(image, (new_height, new_width), method))
    assert found.shape[:2] == (new_height, new_width)
    assert 40 <= found.min() <= found.max() < 90


@given(sides, st.sampled_from(METHODS))
def test_an_image_of_the_size_stays_as_it_is(side, method):
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    assert np.array_equal(np.asarray(resize_image(Image.fromarray(pixels), (side, side), method)), pixels)


def test_what_each_method_keeps_of_a_wide_image():
    row = np.array([10, 10, 200, 200, 200, 200, 90, 90], np.uint8)
    wide = Image.fromarray(np.stack([row] * 4))
    cropped, squished, padded = (np.asarray(resize_image(wide, (4, 4), method)) for method in METHODS)
    assert set(cropped.flatten().tolist()) == {200}
    assert squished[0, 0] < 60
    assert 80 < squished[0, -1] < 110
    assert np.array_equal(padded[1:3], np.asarray(wide.resize((4, 2), Image.Resampling.BILINEAR)))
    assert np.array_equal(padded[0], padded[2])  # mirrored at the border


@pytest.fixture
def wide_images(tmp_path):
    for i in range(12):
        folder = tmp_path / "images" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (8, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


QUICK = [("crop", 2**30), ("pad", 0)]


@pytest.mark.parametrize(
    ("method", "memory"), [*QUICK, *slow(*(case for case in product(METHODS, [2**30, 0]) if case not in QUICK))]
)
def test_training_prediction_and_export_resize_alike(wide_images, method, memory):
    files = sorted(wide_images.rglob("*.png"))
    wanted = {file: read_image(str(file), (8, 8), method) for file in files}
    data = ImageDataBunch.from_folder(
        wide_images, valid_pct=0.3, seed=0, size=8, bs=4, resize=method, memory=memory, num_workers=0, device="cpu"
    )
    x, _ = data.one_batch(DatasetType.Valid)
    assert all(any(np.allclose(image.numpy() * 255, known) for known in wanted.values()) for image in x)
    assert np.allclose(data.encode(files[0])[0].numpy() * 255, wanted[files[0]])
    learn, exported = Learner(data, simple_cnn((3, 4, 2)), silent=True), io.BytesIO()
    expected = learn.predict(files[0])[2]
    learn.export(exported)
    exported.seek(0)
    loaded = load_learner(".", exported, test=files, device="cpu")
    assert torch.allclose(loaded.predict(files[0])[2], expected, atol=1e-5)
    assert torch.allclose(loaded.get_preds(DatasetType.Test)[0][0], expected, atol=1e-5)


def test_the_cache_of_one_method_does_not_serve_another(wide_images):
    batches = [
        ImageDataBunch.from_folder(wide_images, valid_pct=0.3, seed=0, size=8, bs=4, resize=method, device="cpu")
        .one_batch(DatasetType.Valid)[0]
        for method in METHODS
    ]  # fmt: skip
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[1], batches[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8, "resize": "stretch"}, "`resize` must be one of 'crop', 'squish', 'pad', got 'stretch'"),
        ({"resize": "pad"}, "`resize` is 'pad', but there is no `size` to resize to"),
    ],
)
def test_wrong_methods(wide_images, options, message):
    with pytest.raises(ValueError, match=message):
        ImageDataBunch.from_folder(wide_images, valid_pct=0.3, **options)
