"""Augmentation: each image has its own random numbers, from a generator of its own."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import FailsAt, slow
from torch import Tensor, nn
from torchvision.transforms import v2

from minifast import (
    DataBunch,
    DataError,
    DatasetType,
    DeviceDataLoader,
    Learner,
    TensorDataBunch,
    get_transforms,
    simple_cnn,
)
from minifast.data.images.augment import Augment, perspective, resample
from minifast.data.transforms import Seeded, check_tfms

OFF = {"do_flip": False, "max_rotate": 0, "max_zoom": 1, "max_lighting": 0, "max_warp": 0}


def augment(**kwargs) -> Augment:
    return get_transforms(**(OFF | {"p_affine": 1, "p_lighting": 1} | kwargs))[0][0]


def same(n: int = 64, height: int = 9, width: int = 9) -> Tensor:
    """A batch of one image, n times, whose pixels all differ."""
    image = torch.arange(height * width).float().view(1, 1, height, width) / (height * width)
    return image.repeat(n, 3, 1, 1)


def kinds(x: Tensor) -> int:
    """How many different images a batch holds."""
    return len(x.flatten(1).mul(1000).round().unique(dim=0))


def changed(x: Tensor, **kwargs) -> Tensor:
    torch.manual_seed(0)
    return augment(**kwargs)((x, None))[0]


def smooth(height: int = 40, width: int = 40) -> Tensor:
    down, across = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 2, width)
    return (0.5 + 0.4 * torch.sin(down + across)).expand(1, 3, height, width)


def test_torchvisions_own_transforms_draw_once_a_batch():
    """Why the geometry is done here: a batch that is given whole to torchvision is flipped whole."""
    torch.manual_seed(0)
    assert {kinds(v2.RandomHorizontalFlip()(same())) for _ in range(9)} == {1}


@pytest.mark.parametrize(
    "one", [{"do_flip": True}, {"max_rotate": 10}, {"max_zoom": 1.5}, {"max_lighting": 0.4}, {"max_warp": 0.2}], ids=str
)
def test_each_image_is_changed_by_numbers_of_its_own(one):
    found = changed(same(), **one)
    assert found.shape == (64, 3, 9, 9)
    assert kinds(found) == (2 if "do_flip" in one else 64)
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found[:, 0], found[:, 1])  # the channels stay together


def test_nothing_is_left_as_it_was():
    assert augment()((same(), 5))[0].equal(same())
    assert augment()((same(), 5))[1] == 5


def test_a_flip_mirrors_half_of_the_images():
    x = same(400)
    found = changed(x, do_flip=True)
    mirrored = (found - x.flip(3)).abs().amax((1, 2, 3)) < 1e-5
    kept = (found - x).abs().amax((1, 2, 3)) < 1e-5
    assert (mirrored | kept).all()
    assert 150 < mirrored.sum() < 250


def test_flip_vert_turns_squares_in_eight_ways_and_rectangles_in_four():
    x = same(200)
    found = changed(x, do_flip=True, flip_vert=True)
    ways = [turn for k in range(4) for turn in (x[:1].rot90(k, (2, 3)), x[:1].rot90(k, (2, 3)).flip(3))]
    which = torch.stack([(found - way).abs().amax((1, 2, 3)) < 1e-5 for way in ways])
    assert (which.sum(0) == 1).all()
    assert (which.sum(1) > 10).all()
    assert kinds(changed(same(200, 6, 10), do_flip=True, flip_vert=True)) == 4


@pytest.mark.parametrize("size", [(40, 40), (30, 60)], ids=str)
def test_a_turn_keeps_shapes_also_of_rectangles(size):
    height, width = size
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = ((down - (height - 1) / 2) ** 2 + (across - (width - 1) / 2) ** 2).sqrt()
    x = (1 - disc / 60).clamp(0, 1).expand(32, 3, height, width)
    inside = (disc < 12).expand_as(x)
    assert (changed(x, max_rotate=180) - x)[inside].abs().max() < 0.01


def test_a_turn_is_by_as_many_degrees():
    x = same(1, 21, 21)
    torch.manual_seed(0)
    angle = math.radians(90)
    turn = torch.tensor([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    assert (resample(x, turn[None]) - x.rot90(-1, (2, 3))).abs().max() < 1e-4
    maps = augment(max_rotate=30)._maps(2000, 8, 8)
    degrees = torch.atan2(maps[:, 0, 1], maps[:, 0, 0]).rad2deg()
    assert degrees.abs().max() <= 30.001
    assert degrees.min() < -29
    assert degrees.max() > 29


def test_a_zoom_shows_a_part_that_lies_inside():
    maps = augment(max_zoom=2)._maps(2000, 8, 8)
    part, shift = maps[:, 0, 0], maps[:, :2, 2].abs().amax(1)
    assert part.min() >= 0.5
    assert part.min() < 0.51
    assert part.max() <= 1
    assert (part + shift <= 1 + 1e-6).all()


def test_a_warp_moves_the_corners_by_at_most_max_warp():
    by = torch.tensor([[0.2, -0.2, 0.1, 0.0]])
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]])
    seen = corners @ perspective(by)[0].T
    moved = seen[:, :2] / seen[:, 2:]
    wanted = torch.tensor([[-1.2, -1.1], [1.2, -1.0], [-0.8, 1.1], [0.8, 1.0]])
    assert moved.allclose(wanted, atol=1e-5)
    assert perspective(torch.zeros(2, 4)).allclose(torch.eye(3).expand(2, 3, 3), atol=1e-6)


def test_the_widest_warp_stays_whole():
    torch.manual_seed(0)
    maps = augment(max_warp=0.49)._maps(5000, 8, 8)
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, 1]])
    assert ((corners @ maps.transpose(1, 2))[..., 2] > 0).all()  # no corner beyond the horizon
    assert maps.isfinite().all()


def test_lighting_keeps_black_black_white_white_and_the_order_of_values():
    ramp = torch.linspace(0, 1, 21).view(1, 1, 1, 21).repeat(64, 3, 1, 1)
    found = changed(ramp, max_lighting=0.4)
    assert found[..., 0].max() < 1e-3
    assert found[..., -1].min() > 1 - 1e-3
    assert (found.diff(dim=3) > 0).all()
    middle = found[:, 0, 0, 10]
    assert middle.min() >= 0.3 - 1e-6
    assert middle.max() <= 0.7 + 1e-6
    assert middle.max() - middle.min() > 0.3


def test_probabilities_are_those_of_the_arguments():
    x = smooth().repeat(600, 1, 1, 1)[:, :, ::4, ::4]
    for name, one in (("p_affine", {"max_rotate": 20}), ("p_lighting", {"max_lighting": 0.4})):
        assert (changed(x, **one, **{name: 0}) - x).abs().max() < 1e-5
        touched = ((changed(x, **one, **{name: 0.5}) - x).abs().amax((1, 2, 3)) > 1e-4).float().mean()
        assert 0.4 < touched < (0.6 if name == "p_affine" else 0.85)  # brightness or contrast or both


def test_borders_are_mirrored():
    x = torch.ones(8, 3, 10, 10)
    assert (changed(x, max_rotate=45, max_warp=0.3) - 1).abs().max() < 1e-5


def test_xtra_tfms_come_after():
    train, valid = get_transforms(xtra_tfms=[len])
    assert train[1:] == [len]
    assert valid == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_zoom": 0.5}, "`max_zoom` must be at least 1, got 0.5"),
        ({"max_warp": 0.5}, "`max_warp` must be at most 0.49, got 0.5"),
        ({"max_lighting": 1}, "`max_lighting` must be at most 0.99, got 1"),
        ({"max_rotate": -5}, "`max_rotate` must be at least 0, got -5"),
        ({"p_affine": 1.5}, "`p_affine` must be at most 1, got 1.5"),
    ],
)
def test_values_out_of_range_raise(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        get_transforms(**wrong)


@pytest.mark.parametrize("x", [torch.zeros(4, 10), torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [1]], ids=type)
def test_other_inputs_than_images_raise(x):
    with pytest.raises(DataError, match=r"^Augmentation needs images, .*Leave `ds_tfms` out"):
        get_transforms()[0][0]((x, None))


# --- ds_tfms


@pytest.mark.parametrize("wrong", [[], [len], (1, 2, 3), "ab", get_transforms], ids=type)
def test_ds_tfms_are_a_pair(wrong):
    with pytest.raises(TypeError, match=r"ds_tfms"):
        check_tfms(wrong)


def test_a_transform_that_cannot_be_called_raises():
    with pytest.raises(TypeError, match=r"^each of ds_tfms must be callable, got 3"):
        check_tfms(([3], None))


def images(n: int = 40, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, size, size), generator=generator, dtype=torch.uint8), torch.arange(n) % 2


def bunch(ds_tfms=None, seed: int = 1, **kwargs) -> TensorDataBunch:
    return TensorDataBunch.from_arrays(*images(), bs=8, seed=seed, device="cpu", ds_tfms=ds_tfms, **kwargs)


def epoch(loader) -> Tensor:
    return torch.cat([x for x, _ in loader])


def test_training_is_augmented_and_validation_is_not():
    plain, found = bunch(), bunch(get_transforms())
    assert epoch(found.valid_dl).equal(epoch(plain.valid_dl))
    first, second = epoch(found.train_dl), epoch(found.train_dl)
    assert not first.equal(epoch(plain.train_dl))
    assert kinds(torch.cat([first, second])) == 64  # no image comes twice
    tfms = [], [lambda batch: (batch[0] + 1, batch[1])]
    data = bunch(tfms, test=images()[0])
    assert epoch(data.valid_dl).min() >= 1
    assert epoch(data.test_dl).min() >= 1
    assert epoch(data.train_dl).max() <= 1


def test_augmentation_depends_on_the_seed_of_the_data_alone():
    torch.manual_seed(3)
    first = bunch(get_transforms())
    one = [epoch(first.train_dl) for _ in range(2)]
    torch.manual_seed(4)
    second = bunch(get_transforms())
    assert all(a.equal(b) for a, b in zip(one, [epoch(second.train_dl) for _ in range(2)], strict=True))
    assert not one[0].equal(epoch(bunch(get_transforms(), seed=2).train_dl))


@pytest.mark.parametrize("tfm", [get_transforms()[0][0], v2.RandomRotation(20)], ids=["ours", "torchvision"])
def test_torchs_generator_is_neither_seen_nor_moved(tfm):
    data = bunch(([tfm], None))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch(data.train_dl)
    assert torch.get_rng_state().equal(before)


def test_bunches_may_share_transforms():
    tfms = get_transforms()
    first, second = bunch(tfms), bunch(tfms)
    batches = [(a, b) for (a, _), (b, _) in zip(first.train_dl, second.train_dl, strict=True)]
    assert all(a.equal(b) for a, b in batches)


def test_torchvisions_transforms_are_run_on_each_image():
    x, y = Seeded(check_tfms(([v2.RandomHorizontalFlip()], None))[0], 0)((same(), torch.arange(64)))
    assert kinds(x) == 2
    assert y.equal(torch.arange(64))
    train, valid = check_tfms((v2.Compose([v2.RandomVerticalFlip(), v2.Resize(4)]), v2.Resize(4)))
    assert train[0]((same(), y))[0].shape == valid[0]((same(), y))[0].shape == (64, 3, 4, 4)


def test_torchvisions_mixing_of_images_has_the_whole_batch():
    tfm = v2.MixUp(num_classes=2)
    x, y = Seeded(check_tfms(([tfm], None))[0], 0)((same(), torch.arange(64) % 2))
    assert (x.shape, y.shape) == ((64, 3, 9, 9), (64, 2))


def test_a_transform_that_returns_no_batch_is_named():
    data = bunch(([*get_transforms()[0], nn.Flatten()], None))
    data.train_dl.tfms[-1].tfms[-1] = lambda batch: batch[0]
    with pytest.raises(
        DataError, match=r"^A batch transform must return the pair \(x, y\), but <function .* returned a Tensor"
    ):
        data.one_batch()


def test_looking_at_a_batch_shows_what_training_begins_with_and_changes_nothing():
    looked, other = bunch(get_transforms()), bunch(get_transforms())
    x, _ = looked.one_batch()
    looked.one_batch()
    found = epoch(looked.train_dl)
    assert x.equal(found[:8])
    assert found.equal(epoch(other.train_dl))


def test_normalizing_comes_after_and_is_undone():
    data = bunch(get_transforms())
    raw, _ = data.one_batch()
    data.normalize()
    assert data.one_batch()[0].allclose(raw, atol=1e-5)
    augmented = torch.cat([x for x, _ in bunch(get_transforms()).train_dl.in_order()])
    assert data.norm.mean.flatten().allclose(augmented.mean((0, 2, 3)), atol=1e-5)
    assert data.one_batch(denorm=False)[0].allclose((raw - data.norm.mean) / data.norm.std, atol=1e-5)


# --- runs


def learner(tmp_path, streaming: bool = False) -> Learner:
    torch.manual_seed(0)
    data = bunch(get_transforms(max_lighting=0.4), path=tmp_path)
    if streaming:  # through torch's loader, with the same transforms
        dl = torch.utils.data.DataLoader(data.train_ds, 8, shuffle=True, generator=torch.Generator().manual_seed(5))
        data = DataBunch(DeviceDataLoader(dl, "cpu", data.train_dl.tfms), data.valid_dl, path=tmp_path, device="cpu")
    model = nn.Sequential(nn.Dropout(0.2), simple_cnn((3, 4, 2)))
    return Learner(data, model, loss_func=nn.CrossEntropyLoss(), silent=True)


def weights(learn: Learner) -> Tensor:
    return torch.cat([one.detach().flatten() for one in learn.model.parameters()])


def test_dropout_is_what_it_would_be_without_augmentation(tmp_path):
    seen = []

    class Sees(nn.Dropout):
        def forward(self, x):
            seen.append(super().forward(torch.ones_like(x)))
            return x

    for tfms in (None, get_transforms()):
        torch.manual_seed(0)
        learn = Learner(bunch(tfms), nn.Sequential(Sees(), simple_cnn((3, 4, 2))), silent=True)
        learn.fit(1)
    half = len(seen) // 2
    assert all(a.equal(b) for a, b in zip(seen[:half], seen[half:], strict=True))


@pytest.mark.parametrize("streaming", [False, True], ids=["memory", "streaming"])
def test_the_finder_leaves_no_trace_in_it(tmp_path, streaming):
    plain = learner(tmp_path, streaming)
    plain.fit(2)
    found = learner(tmp_path, streaming)
    found.lr_find(num_it=20)
    found.fit(2)
    assert weights(found).equal(weights(plain))


@pytest.mark.parametrize(
    ("streaming", "at"), [(False, 1), (True, 4), *slow((False, 4), (False, 6), (True, 1), (True, 6))]
)
def test_a_resumed_run_samples_the_same_augmentation(tmp_path, streaming, at):
    whole = learner(tmp_path / "whole", streaming)
    whole.fit_one_cycle(3, 1e-2)
    broken = learner(tmp_path / "broken", streaming)
    with pytest.raises(OSError, match="gone"):
        broken.fit_one_cycle(3, 1e-2, checkpoint="run", every=1, callbacks=[FailsAt(at)])
    again = learner(tmp_path / "broken", streaming)
    again.fit_one_cycle(3, 1e-2, checkpoint="run", every=1, callbacks=[FailsAt(None)])
    assert weights(again).equal(weights(whole))
    assert again.recorder.losses == whole.recorder.losses[-len(again.recorder.losses) :]


def test_a_run_with_other_transforms_is_another_run(tmp_path):
    learner(tmp_path).fit(1, checkpoint="run")
    other = learner(tmp_path)
    other.data.train_dl.tfms[-1].tfms[0].max_rotate = 20.0
    with pytest.raises(Exception, match=r"its data has transforms of training = "):
        other.fit(1, checkpoint="run")


def test_the_test_part_has_the_transforms_of_validation():
    data = bunch((None, v2.Resize(4)), test=images()[0])
    assert data.one_batch(DatasetType.Test)[0].shape[2:] == (4, 4)
