"""Images with masks: reading, augmentation of both alike, training, plots and export."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from minifast import (
    DataError,
    DatasetType,
    Learner,
    SegmentationDataBunch,
    accuracy,
    dice,
    get_transforms,
    load_learner,
)
from minifast.data.images.augment import Augment
from minifast.data.transforms import PerImage

CODES = ["background", "square"]


def write(path: Path, n: int = 12, values=(0, 1), sizes=((12, 16),), suffix=".png") -> Path:
    """Dark images with a bright square, and masks of the squares."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (path / name).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        height, width = sizes[i % len(sizes)]
        top, left = rng.integers(height - 6), rng.integers(width - 6)
        mask = np.full((height, width), values[0], np.uint8)
        mask[top : top + 6, left : left + 6] = values[1]
        pixels = np.where(mask == values[1], 200, 40).astype(np.uint8)
        Image.fromarray(np.stack([pixels] * 3, -1)).save(path / "images" / f"{i}.png")
        Image.fromarray(mask).save(path / "masks" / f"{i}{suffix}")
    return path


def bunch(path: Path, codes=CODES, **options) -> SegmentationDataBunch:
    given = {"bs": 4, "seed": 0, "device": "cpu", "num_workers": 0, "valid_pct": 0.5, **options}
    return SegmentationDataBunch.from_folder(path, codes, **given)


class Pixelwise(nn.Module):
    """Outputs ``(n, 2, height, width)``: square where it is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize("memory", [2**30, 0])
@pytest.mark.parametrize("kind", ["plain", "values", "palette", "bilevel"])
def test_masks_are_class_numbers_from_memory_and_from_files(tmp_path, memory, kind):
    path = write(tmp_path / "data", values=(0, 255) if kind == "values" else (0, 1))
    if kind in ("palette", "bilevel"):
        for file in (path / "masks").iterdir():
            mask = np.asarray(Image.open(file))
            image = Image.fromarray(mask, "P") if kind == "palette" else Image.fromarray(mask.astype(bool))
            if kind == "palette":
                image.putpalette([9, 9, 9, 90, 0, 0])
            image.save(file)
    data = bunch(path, memory=memory, mask_values=[0, 255] if kind == "values" else None)
    assert (data.c, data.classes, type(data.loss_func)) == (2, CODES, nn.CrossEntropyLoss)
    for dl in (data.train_dl, data.valid_dl):
        for x, y in dl:
            assert (x.shape[1:], y.shape[1:], y.dtype) == ((3, 12, 16), (12, 16), torch.int64)
            assert torch.equal(y, (x[:, 0] > 0.5).long())


@pytest.mark.parametrize("memory", [2**30, 0])
def test_a_relative_folder_gives_the_same_masks(tmp_path, monkeypatch, memory):
    write(tmp_path / "data")
    wanted = bunch(tmp_path / "data", memory=memory).one_batch("valid")
    monkeypatch.chdir(tmp_path)
    data = bunch(Path("data"), memory=memory)
    monkeypatch.chdir(tmp_path / "data")
    for values, other in zip(data.one_batch("valid"), wanted, strict=True):
        assert torch.equal(values, other)


@pytest.mark.parametrize("resize", ["crop", "squish", "pad"])
def test_resizing_keeps_masks_on_their_images_and_whole_numbers(tmp_path, resize):
    path = write(tmp_path / "data", sizes=((40, 60), (30, 30), (64, 33)), values=(3, 7))
    data = bunch(path, codes=["a", "b"], mask_values=[3, 7], size=24, resize=resize)
    for x, y in data.valid_dl:
        assert y.unique().tolist() in ([0], [0, 1])
        inside = nn.functional.max_pool2d((x[:, :1] < 0.2).float(), 3, 1, 1) == nn.functional.max_pool2d(
            (x[:, :1] > 0.7).float(), 3, 1, 1
        )  # at the edges of the square, bilinear images are between
        assert (y == (x[:, 0] > 0.47)).logical_or(inside[:, 0]).float().mean() > 0.97


def test_ignored_pixels_count_neither_in_the_loss_nor_in_the_metrics(tmp_path):
    path = write(tmp_path / "data")
    for file in (path / "masks").iterdir():
        mask = np.asarray(Image.open(file)).copy()
        mask[:, :5] = 255
        Image.fromarray(mask).save(file)
    data = bunch(path, ignore=255, ds_tfms=get_transforms())
    _, y = data.one_batch(DatasetType.Valid)
    assert (y[:, :, :5] == -100).all()
    learn = Learner(data, Pixelwise(), metrics=[accuracy], silent=True)
    loss, found = learn.validate()
    with torch.no_grad():
        output = torch.cat([learn.model(x) for x, _ in data.valid_dl])
    target = torch.cat([y for _, y in data.valid_dl])
    assert loss == pytest.approx(nn.functional.cross_entropy(output, target).item(), rel=1e-5)
    counted = target != -100
    assert found == pytest.approx((output.argmax(1) == target)[counted].float().mean().item(), rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000), vert=st.booleans(), rotate=st.floats(0, 90), warp=st.floats(0, 0.4), square=st.booleans()
)
def test_augmentation_changes_images_and_masks_alike(seed, vert, rotate, warp, square):
    torch.manual_seed(seed)
    height, width = (24, 24) if square else (18, 30)
    y = (torch.rand(3, 1, 4, 5) > 0.5).float()
    y = nn.functional.interpolate(y, (height, width), mode="nearest")[:, 0].long()
    x = y[:, None].float().expand(-1, 3, -1, -1)
    augment = Augment(True, vert, rotate, 1.2, 0, warp, 1.0, 0)
    found, masks = augment((x, y))
    assert masks.dtype is torch.int64
    assert set(masks.unique().tolist()) <= {0, 1}
    sure = (found[:, 0] < 0.01) | (found[:, 0] > 0.99)
    assert sure.float().mean() > 0.3
    assert torch.equal(masks[sure], (found[:, 0] > 0.5).long()[sure])
    torch.manual_seed(seed + 1)
    floats = augment((x, x))
    assert torch.equal(*floats)  # images as targets get the same pixels


def test_transforms_of_torchvision_change_masks_too():
    from torchvision import transforms
    from torchvision.transforms import v2

    y = torch.arange(2 * 4 * 6).view(2, 4, 6)
    x = y[:, None].float().expand(-1, 3, -1, -1)
    for tfm in (v2.RandomHorizontalFlip(1.0), v2.RandomRotation(90), v2.RandomVerticalFlip(0.5)):
        images, masks = PerImage(tfm)((x, y))
        assert type(images) is type(masks) is torch.Tensor
        assert torch.equal(images[:, 0].long(), masks)
    with pytest.raises(DataError, match=r"RandomHorizontalFlip of torchvision.transforms changes the images and not"):
        PerImage(transforms.RandomHorizontalFlip())((x, y))


def test_segmentation_learner_trains_shows_predicts_and_exports(tmp_path):
    path = write(tmp_path / "data")
    data = bunch(path, ds_tfms=get_transforms())
    torch.manual_seed(0)
    learn = Learner(data, Pixelwise(), metrics=[accuracy, dice], silent=True, path=tmp_path)
    learn.fit_one_cycle(20, 0.3)
    assert learn.recorder.metrics[-1][1] > 0.95
    figure = data.show_batch(2, return_fig=True)
    assert [len(ax.images) for ax in figure.axes] == [2] * 4  # image and mask
    assert figure.axes[0].get_title() == "background,\nsquare"
    figure = learn.show_results(rows=3, return_fig=True)
    assert [ax.get_title() for ax in figure.axes] == ["target", "prediction"] * 3
    target, predicted = (figure.axes[i].images[1].get_array().filled(-1) for i in (0, 1))
    assert np.array_equal(target, predicted)
    plt.close("all")
    file = data.valid_ds.items[0]
    numbers = learn.predict(file)[0]
    assert (numbers == torch.tensor(np.asarray(Image.open(path / "masks" / file.name)))).float().mean() > 0.97
    learn.export()
    assert torch.equal(load_learner(tmp_path).predict(file)[0], numbers)
    with pytest.raises(DataError, match=r"TTA takes the mean of predictions for whole images, got .*\(6, 2, 12, 16\)"):
        learn.TTA()


def test_test_images_need_no_masks(tmp_path):
    path = write(tmp_path / "data")
    data = bunch(path, test="images")
    predictions, _ = Learner(data, Pixelwise(), silent=True).get_preds(DatasetType.Test)
    assert predictions.shape == (12, 2, 12, 16)


def test_masks_by_a_function(tmp_path):
    path = write(tmp_path / "data", suffix=".mask.png")
    files = sorted((path / "images").iterdir())
    data = SegmentationDataBunch.from_label_func(
        path, files, lambda file: path / "masks" / f"{file.stem}.mask.png", CODES, seed=0, bs=4, device="cpu"
    )
    x, y = data.one_batch()
    assert torch.equal(y, (x[:, 0] > 0.5).long())


@pytest.mark.parametrize("memory", [2**30, 0])
def test_value_without_a_class_names_the_mask_and_the_remedies(tmp_path, memory):
    path = write(tmp_path / "data", values=(0, 255))
    with pytest.raises(DataError, match=r"mask .*\d\.png has pixels of the value 255, but there are 2 .*mask_values"):
        bunch(path, memory=memory).one_batch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "masks" / "3.png").unlink(), r"1 of 12 images have no mask in .*masks, such as .*3\.png"),
        (
            lambda path: Image.new("L", (4, 4)).save(path / "masks" / "3.png"),
            r"3\.png is 16×12 pixels and .*3\.png is 4×4",
        ),
        (
            lambda path: (
                Image.effect_noise((16, 12), 9).convert("HSV").convert("RGB").save(path / "masks" / "3.png")
                or Image.fromarray(np.random.default_rng(0).integers(9, size=(12, 16, 3), dtype=np.uint8)).save(
                    path / "masks" / "3.png"
                )
            ),
            r"3\.png is no mask \(mode RGB\)",
        ),
        (lambda path: (path / "masks" / "3.png").write_bytes(b"1"), r"3\.png is not a readable image"),
        (
            lambda path: (path / "masks").rename(path / "labels"),
            r"has no folder masks; it has images, labels\. .*as `masks`\.$",
        ),
    ],
)
def test_masks_that_do_not_fit_raise_before_training(tmp_path, spoil, message):
    path = write(tmp_path / "data")
    spoil(path)
    with pytest.raises(DataError, match=message):
        bunch(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_values": [0]}, "`mask_values` must have one value per class, got 1 for 2"),
        ({"mask_values": [0, 300]}, "must be integers from 0 to 255, got 300"),
        ({"ignore": 1}, "`ignore` is 1, which is the value of the class 'square'"),
    ],
)
def test_arguments_of_masks_are_checked(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        bunch(write(tmp_path / "data"), **arguments)


@pytest.mark.parametrize("name", ["from_lists", "from_csv", "from_df", "from_name_func", "from_name_re"])
def test_labels_of_whole_images_are_refused(name, tmp_path):
    with pytest.raises(TypeError, match=rf"^SegmentationDataBunch\.{name} would label whole images, but a mask"):
        getattr(SegmentationDataBunch, name)(tmp_path, ["a.png"], codes=["a", "b"])
