"""One image to predict: an array is what its file is, and anything else raises an error that names it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from minifast import DataError, ImageDataBunch, Learner, load_learner

KINDS = {  # dtype, the largest value, the value range and the channels
    "8 bits": (np.uint8, 255, None, 3),
    "12 bits": (np.uint16, 4095, (0, 4095), 1),
    "16 bits from an offset": (np.uint16, 65535, (300, 60000), 3),
}


def pixels_of(kind, seed, channel=False):
    dtype, largest, *_ = KINDS[kind]
    array = np.random.default_rng(seed).integers(0, largest + 1, (6, 6)).astype(dtype)
    return array[..., None] if channel else array


@pytest.fixture(scope="module", params=KINDS)
def learners(request, tmp_path_factory):
    """Return the kind, a learner of images of this kind, and the one of its export."""
    kind = request.param
    _, _, value_range, channels = KINDS[kind]
    path = tmp_path_factory.mktemp("images")
    for label in "ab":
        (path / label).mkdir()
        for i in range(4):
            Image.fromarray(pixels_of(kind, i)).save(path / label / f"{i}.png")
    options = {"valid_pct": 0.5, "bs": 2, "seed": 0, "device": "cpu"}
    data = ImageDataBunch.from_folder(path, **options, channels=channels, value_range=value_range, size=6)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36 * channels, 2))
    learn = Learner(data.normalize(), model, silent=True, path=path)
    learn.export()
    return kind, channels, learn, load_learner(path, device="cpu")


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 99))
def test_an_array_is_predicted_as_its_file(learners, tmp_path_factory, seed) -> None:
    kind, _, learn, exported = learners
    file = tmp_path_factory.mktemp("one") / "x.png"
    Image.fromarray(pixels_of(kind, seed)).save(file)
    wanted = learn.predict(file)[2]
    for predictor in (learn, exported):
        for item in (str(file), Image.open(file), pixels_of(kind, seed), pixels_of(kind, seed, channel=True)):
            assert torch.allclose(predictor.predict(item)[2], wanted, atol=1e-6)


def test_a_tensor_is_taken_as_it_is(learners) -> None:
    _, channels, learn, exported = learners
    image = torch.rand(1, 6, 6)
    wanted = learn.predict(image)[2]
    for predictor in (learn, exported):
        for item in (image.expand(channels, -1, -1), image.double(), image.numpy(), image.double().numpy()):
            assert torch.allclose(predictor.predict(item)[2], wanted, atol=1e-6)
    gray = (image * 255).to(torch.uint8)
    assert torch.equal(learn.predict(gray)[2], learn.predict(gray.float() / 255)[2])


DTYPES = ["uint8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64", "bool"]


def is_image(shape, dtype, is_tensor, channels):
    """Return whether a value is an image of the documented types and shapes, or a batch of one."""
    shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if not is_tensor and dtype in ("uint8", "uint16", "bool"):
        own = (1, 2, 3, 4) if dtype == "uint8" else (1,)
        return len(shape) == 2 or (len(shape) == 3 and shape[2] in own)
    of_floats = dtype.startswith("float")
    return len(shape) == 3 and shape[0] in (1, channels) and (of_floats or (is_tensor and dtype == "uint8"))


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 5, 6]), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    is_tensor=st.booleans(),
)
def test_anything_else_raises_an_error_that_names_it(learners, shape, dtype, is_tensor) -> None:
    _, channels, *predictors = learners
    item = torch.zeros(shape, dtype=getattr(torch, dtype)) if is_tensor else np.zeros(shape, dtype)
    for predictor in predictors:
        if is_image(shape, dtype, is_tensor, channels):
            x = predictor.data.encode(item)
            assert x.shape[:2] == (1, channels)
            assert x.dtype is torch.float32
            continue
        with pytest.raises(DataError) as raised:
            predictor.data.encode(item)
        said = f"{'a tensor' if is_tensor else 'an array'} of {dtype} with the shape {tuple(shape)}"
        assert said in str(raised.value)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (np.zeros((6, 6), np.int32), r"an array of int32 with the shape \(6, 6\). Give PIL.Image.fromarray\(array\)"),
        (torch.zeros(6, 6), r"a tensor of float32 with the shape \(6, 6\). Give tensor\[None\]"),
        (torch.zeros(2, 3, 6, 6), r"Give one image, such as batch\[0\]"),
        (None, "got NoneType."),
    ],
)
def test_the_error_says_what_to_give(learners, item, said) -> None:
    for predictor in learners[2:]:
        with pytest.raises(DataError, match=said):
            predictor.predict(item)
