"""Batches: their number and order, their pixels, and what a loader over a loader adds."""

from __future__ import annotations

import pickle
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from minifast import DeviceDataLoader, TensorLoader
from minifast.data.order import EpochOrder, order_of
from minifast.data.resume import RemainingBatches

CPU = torch.device("cpu")
Pair = namedtuple("Pair", "left right")  # torch's own collate passes such on


def numbers(n: int, bs: int = 64, **kwargs) -> TensorLoader:
    """A loader of the numbers from 0 to n - 1, with themselves as targets."""
    return TensorLoader(torch.arange(n), torch.arange(n), bs, device="cpu", **kwargs)


def seen(loader) -> list[list[int]]:
    return [x.tolist() for x, _ in loader]


def global_states() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def add_one(batch):
    x, y = batch
    return x + 1, y


def double(batch):
    x, y = batch
    return x * 2, y


# --- how many, and in which order


@pytest.mark.parametrize(
    ("n", "shuffled", "in_order"),
    [
        (1, [1], [1]),
        (2, [2], [2]),
        (63, [63], [63]),
        (64, [64], [64]),
        (65, [64], [64, 1]),
        (127, [64], [64, 63]),
        (128, [64, 64], [64, 64]),
    ],
)
def test_a_last_batch_that_is_not_full_is_left_out_of_training_unless_it_is_the_only_one(n, shuffled, in_order):
    for shuffle, sizes in ((True, shuffled), (False, in_order)):
        loader = numbers(n, shuffle=shuffle, seed=0)
        assert [len(x) for x, _ in loader] == sizes
        assert len(loader) == len(sizes)


def test_no_items_are_no_batches():
    assert len(numbers(0)) == 0
    assert seen(numbers(0)) == []


def test_without_shuffling_the_items_come_in_order():
    assert seen(numbers(5, bs=2)) == [[0, 1], [2, 3], [4]]


def test_an_epoch_holds_each_item_once_with_its_own_target():
    (x, y), *others = numbers(64, shuffle=True, seed=3)
    assert not others
    assert sorted(x.tolist()) == list(range(64))
    assert x.tolist() != list(range(64))
    assert x.equal(y)


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    first = numbers(128, shuffle=True, seed=5)
    epochs = [seen(first), seen(first), seen(first)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]

    torch.manual_seed(99)  # another state of the world, the same order
    random.seed(99)
    again = numbers(128, shuffle=True, seed=5)
    assert [seen(again), seen(again), seen(again)] == epochs
    assert seen(numbers(128, shuffle=True, seed=6)) != epochs[0]


def test_an_epoch_can_be_repeated_from_the_middle():
    loader = numbers(128, shuffle=True, seed=5)
    third = [seen(loader) for _ in range(3)][2]
    late = numbers(128, shuffle=True, seed=5)
    late.epoch = 2
    assert seen(late) == third


def test_an_epoch_that_was_broken_off_counts():
    whole, broken = numbers(128, shuffle=True, seed=5), numbers(128, shuffle=True, seed=5)
    seen(whole)
    next(iter(broken))
    assert seen(broken) == seen(whole)


@pytest.mark.parametrize("n", [1, 2, 64, 65])
def test_orders_are_permutations_and_differ_between_seeds(n):
    assert sorted(order_of(n, 0, 0).tolist()) == list(range(n))
    if n > 2:
        assert len({tuple(order_of(n, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}) == 16


def test_iterating_leaves_the_global_generators_alone():
    loader = numbers(128, shuffle=True, seed=0)
    before = global_states()
    seen(loader)
    seen(loader)
    assert global_states() == before


def test_without_a_seed_torchs_global_generator_gives_one():
    torch.manual_seed(7)
    first = numbers(64, shuffle=True)
    torch.manual_seed(7)
    same, other = numbers(64, shuffle=True), numbers(64, shuffle=True)
    assert seen(first) == seen(same) != seen(other)


# --- pixels


@pytest.mark.parametrize("shuffle", [True, False])
def test_grey_images_become_three_equal_channels_of_exactly_x_over_255(shuffle):
    x = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    batch, y = next(iter(TensorLoader(x, torch.arange(4), 4, shuffle=shuffle, seed=0, device="cpu")))
    assert (batch.dtype, batch.shape) == (torch.float32, (4, 3, 8, 8))
    assert batch[:, 0].equal(batch[:, 1])
    assert batch[:, 0].equal(batch[:, 2])
    exact = np.arange(256, dtype=np.float32).reshape(4, 8, 8) / np.float32(255)
    assert np.array_equal(batch[:, 0].numpy(), exact[y.numpy()])


def test_coloured_images_keep_their_channels():
    x = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    batches = [batch for batch, _ in TensorLoader(x, torch.arange(5), 2, device="cpu")]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.cat(batches).equal(x.float() / 255)


def test_what_is_no_image_comes_as_it_is():
    floats, bytes_ = torch.randn(4, 3, 2, 2), torch.arange(8, dtype=torch.uint8).view(4, 2)
    for x in (floats, bytes_):
        batch, _ = next(iter(TensorLoader(x, torch.arange(4), 4, device="cpu")))
        assert batch.equal(x)
        assert batch.dtype == x.dtype


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    "x", [torch.randn(6, 3), torch.randint(0, 256, (6, 1, 2, 2), dtype=torch.uint8)], ids=["floats", "images"]
)
def test_changing_a_batch_in_place_changes_no_data(x, shuffle):
    kept_x, kept_y = x.clone(), torch.arange(6)
    loader = TensorLoader(x, torch.arange(6), 4, shuffle=shuffle, seed=0, device="cpu")
    for xb, yb in loader:
        xb.add_(1)  # as a model that begins with ReLU(inplace=True) would
        yb.zero_()
    assert loader.x.equal(kept_x)
    assert loader.y.equal(kept_y)


def test_items_one_by_one_are_what_the_batches_hold():
    x = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    loader = TensorLoader(x, torch.tensor([4, 5, 6]), 3, device="cpu", classes=list("abc"))
    batch, _ = next(iter(loader))
    assert len(loader.dataset) == 3
    assert loader.dataset.classes == ["a", "b", "c"]
    for i in range(3):
        image, label = loader.dataset[i]
        assert image.equal(batch[i])
        assert label == 4 + i


# --- what goes wrong


def test_inputs_and_targets_of_different_length_raise():
    with pytest.raises(ValueError, match=r"must have the same length, got 3 inputs and 2 targets"):
        TensorLoader(torch.zeros(3), torch.zeros(2), device="cpu")


@pytest.mark.parametrize(("bs", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError)])
def test_a_batch_size_that_is_not_a_count_raises(bs, error):
    with pytest.raises(error, match=r"^`bs` must be"):
        numbers(3, bs=bs)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), ("1", TypeError)])
def test_a_seed_that_is_not_an_integer_raises(seed, error):
    with pytest.raises(error, match=r"^`seed` must be"):
        numbers(3, shuffle=True, seed=seed)


# --- transforms of whole batches


@pytest.mark.parametrize(
    "make", [lambda: numbers(2, bs=2), lambda: DeviceDataLoader([(torch.arange(2), torch.arange(2))], CPU)]
)
def test_transforms_go_one_after_another_and_can_be_removed(make):
    loader = make()
    loader.add_tfm(add_one)
    loader.add_tfm(double)
    assert seen(loader) == [[2, 4]]
    loader.remove_tfm(add_one)
    assert seen(loader) == [[0, 2]]


def test_a_list_of_transforms_that_was_given_stays_the_givers():
    given = [add_one]
    DeviceDataLoader([], CPU, given).add_tfm(double)
    assert given == [add_one]


# --- a loader over a loader


def test_a_batch_goes_to_the_device_however_it_is_nested():
    one = torch.zeros(2)  # to the meta device, so that a move can be seen without a GPU
    (moved,) = DeviceDataLoader([([one, {"a": one, "b": (one, "text")}], (one, 3))], device="meta")
    (first, inside), (last, number) = moved
    assert {tensor.device.type for tensor in (first, inside["a"], inside["b"][0], last)} == {"meta"}
    assert (inside["b"][1], number) == ("text", 3)
    assert [type(part) for part in (moved, moved[0], moved[1], inside["b"])] == [tuple, list, tuple, tuple]


def test_a_named_tuple_goes_to_the_device_as_one():
    (moved,) = DeviceDataLoader([Pair(torch.zeros(2), torch.zeros(1))], device="meta")
    assert type(moved) is Pair
    assert moved.left.device.type == moved.right.device.type == "meta"


def test_tensors_in_memory_go_to_the_device_once():
    loader = TensorLoader(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), 2, device="meta")
    x, y = next(iter(loader))
    assert {loader.x.device.type, x.device.type, y.device.type} == {"meta"}


def test_other_attributes_are_the_inner_loaders():
    items = TensorDataset(torch.zeros(5, 2))
    inner = DataLoader(items, 2)
    loader = DeviceDataLoader(inner, CPU)
    assert (loader.dataset, loader.batch_size, loader.drop_last, len(loader)) == (items, 2, False, 3)
    with pytest.raises(AttributeError, match=r"bach_size"):
        _ = loader.bach_size


def test_a_loader_over_a_list_is_pickled_whole():
    loader = DeviceDataLoader([(torch.arange(2), torch.arange(2))], CPU, [add_one])
    copy = pickle.loads(pickle.dumps(loader))
    assert seen(copy) == seen(loader) == [[1, 2]]
    assert copy.device == CPU


def test_a_loader_over_torchs_loader_is_pickled_whole():
    loader = DeviceDataLoader(DataLoader(TensorDataset(torch.arange(4), torch.arange(4)), 2), CPU, [double])
    assert seen(pickle.loads(pickle.dumps(loader))) == [[0, 2], [4, 6]]


def test_a_tensor_loader_goes_on_where_it_was_pickled():
    loader = numbers(128, shuffle=True, seed=4)
    seen(loader)
    copy = pickle.loads(pickle.dumps(loader))
    assert seen(copy) == seen(loader)


def test_the_inner_loader_is_asked_anew_each_epoch():
    class Counting(Dataset):
        asked = 0

        def __len__(self):
            return 2

        def __getitem__(self, i):
            type(self).asked += 1
            return torch.tensor(i), torch.tensor(i)

    loader = DeviceDataLoader(DataLoader(Counting(), 1), CPU)
    assert seen(loader) == seen(loader) == [[0], [1]]
    assert Counting.asked == 4


def test_a_loader_made_anew_does_not_move_the_order_of_the_first() -> None:
    samples = TensorDataset(torch.arange(10), torch.arange(10))
    loader = DeviceDataLoader(DataLoader(samples, 2, sampler=EpochOrder(10, seed=3)), "cpu")
    list(loader.new(batch_size=5))
    assert torch.equal(torch.cat([x for x, _ in loader]), order_of(10, 3, 0))


@pytest.mark.parametrize("done", [0, 1, 4, 5, 7])
def test_the_length_of_the_rest_of_an_epoch_is_the_number_of_its_batches(done) -> None:
    loader = TensorLoader(torch.arange(10), torch.arange(10), bs=2, device="cpu")
    rest = RemainingBatches(loader, done, lambda: None)
    assert len(rest) == len(list(rest)) == max(0, 5 - done)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_become_floats_of_the_default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        x = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
        ((batch, _),) = TensorLoader(x, torch.zeros(4), 4, device="cpu")
    finally:
        torch.set_default_dtype(before)
    assert batch.dtype is dtype
    assert torch.equal(batch, (x.to(dtype) / 255).expand(-1, 3, -1, -1))
