"""The data of a learner: which loaders it takes, what it knows of them, and that looking at a batch changes nothing."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from conftest import toy_data, toy_items
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from minifast import (
    DataBunch,
    DataError,
    DatasetType,
    DeviceDataLoader,
    ImageDataBunch,
    Learner,
    MinifastError,
    SegmentationDataBunch,
    TabularDataBunch,
    TensorDataBunch,
    TensorLoader,
    accuracy,
    imagenet_stats,
    simple_ann,
)
from minifast.losses import MSELossFlat
from minifast.utils.public import named_parameters


class Labelled(TensorDataset):
    """Items with class names."""

    classes = ("cat", "dog")


class Single(Dataset):
    """One item with the target ``target``."""

    def __init__(self, target) -> None:
        self.target = target

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i):
        if i:
            raise IndexError(i)
        return torch.zeros(3), self.target


@pytest.mark.parametrize("is_split", [True, False])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_too_few_names_of_classes_are_an_error_of_the_bunch(n, is_split):
    samples = TensorDataset(torch.zeros(20, 3), torch.arange(20) % n)
    dataset = Subset(samples, list(range(1, 20))) if is_split else samples
    assert len(DataBunch(DataLoader(dataset, 5), device="cpu", classes=list(range(n))).classes) == n
    for names in ([], ["a"], list("abcde")[: n - 1]):
        with pytest.raises(DataError, match=f"The targets go up to {n - 1}, but `classes` has {len(names)} name"):
            DataBunch(DataLoader(dataset, 5), device="cpu", classes=names)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
@pytest.mark.parametrize("kind", ["loaders", "arrays", "loader"])
def test_a_gpu_that_is_not_there_is_an_error_at_once(kind, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    x, y = torch.zeros(20, 3), torch.arange(20) % 2
    make = {
        "loaders": lambda: DataBunch(DataLoader(TensorDataset(x, y), 5), device=device),
        "arrays": lambda: TensorDataBunch.from_arrays(x, y, device=device),
        "loader": lambda: TensorLoader(x, y, 5, device=device),
    }
    with pytest.raises(ValueError, match=rf"`device` is '{device}', but torch finds no such GPU here"):
        make[kind]()


def test_a_model_in_place_of_the_data_says_the_order():
    data = DataBunch([(torch.zeros(2, 3), torch.tensor([0, 1]))], device="cpu")
    with pytest.raises(TypeError, match=r"`data` comes first, then the model"):
        Learner(torch.nn.Linear(3, 2), data)


def toy_bunch(**kwargs) -> DataBunch:
    return DataBunch(DataLoader(toy_items(), 20), DataLoader(toy_items(), 20), device="cpu", **kwargs)


def images(n: int = 8) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(n, 3, 4, 5, generator=generator), torch.arange(n) % 2)


def inputs(loader) -> torch.Tensor:
    return torch.cat([x for x, _ in loader])


# --- which loaders


def test_a_pair_of_torchs_loaders_is_enough_for_a_learner():
    data = toy_bunch()
    assert [len(dl) for dl in data.dls] == [3, 3]
    assert all(isinstance(dl, DeviceDataLoader) for dl in data.dls)
    learn = Learner(data, simple_ann(10, 2, 8), metrics=[accuracy], silent=True)
    learn.fit(1)
    assert learn.recorder.nb_batches == [3]


def test_lists_of_batches_are_enough_with_a_loss():
    batches = [(torch.randn(4, 10), torch.tensor([0, 1, 0, 1])) for _ in range(2)]
    data = DataBunch(batches, batches, device="cpu")
    assert (data.train_ds, data.classes, data.c, data.loss_func, data.batch_size) == (None,) * 5
    with pytest.raises(DataError, match=r"No loss can be chosen from the data; pass `loss_func`"):
        Learner(data, simple_ann(10, 2))
    learn = Learner(data, simple_ann(10, 2), loss_func=nn.CrossEntropyLoss(), silent=True)
    learn.fit(1)
    assert len(learn.recorder.lrs) == 2


def test_validation_may_be_left_out():
    data = DataBunch(DataLoader(toy_items(), 20), device="cpu")
    assert data.valid_dl is None
    assert data.valid_ds is None
    assert len(data.dls) == 1
    learn = Learner(data, simple_ann(10, 2, 8), silent=True)
    learn.fit(1)
    assert learn.recorder.val_losses == [None]
    with pytest.raises(DataError, match=r"no valid part"):
        learn.validate()


class Endless(IterableDataset):
    def __iter__(self):
        return iter(toy_items())


@pytest.mark.parametrize(
    "loader", [(batch for batch in []), iter([]), map(abs, []), 3, object()], ids=lambda loader: type(loader).__name__
)
@pytest.mark.parametrize("place", ["train_dl", "valid_dl", "test_dl"])
def test_a_loader_without_a_length_raises(loader, place):
    loaders = {"train_dl": [], place: loader}
    with pytest.raises(
        DataError, match=rf"^`{place}` must have a length and yield batches .*, got .*or a list of batches\.$"
    ):
        DataBunch(**loaders, device="cpu")


def test_a_loader_of_a_data_set_without_a_length_raises_too():
    with pytest.raises(DataError, match=r"^`train_dl` must have a length .*, got DataLoader"):
        DataBunch(DataLoader(Endless(), 20), device="cpu")


def test_no_training_loader_raises():
    with pytest.raises(DataError, match=r"^`train_dl` must have a length .*, got NoneType"):
        DataBunch(None)


def test_a_loader_that_is_on_the_device_already_is_taken_as_it_is():
    loader = TensorLoader(torch.zeros(4, 2), torch.zeros(4), 2, device="cpu")
    wrapped = DeviceDataLoader([], device="cpu")
    data = DataBunch(loader, wrapped, device="cpu")
    assert data.train_dl is loader
    assert data.valid_dl is wrapped


# --- what is known of the data


def test_classes_are_the_data_sets_own():
    data = DataBunch(DataLoader(Labelled(torch.zeros(4, 2), torch.arange(4) % 2), 2), device="cpu")
    assert (data.classes, data.c) == (["cat", "dog"], 2)


def test_classes_of_a_part_are_the_wholes():
    whole = Labelled(torch.zeros(4, 2), torch.arange(4) % 2)
    part = Subset(Subset(whole, [0, 1, 2]), [0, 1])
    assert DataBunch(DataLoader(part, 2), device="cpu").classes == ["cat", "dog"]


def test_classes_that_are_given_come_first():
    loader = DataLoader(Labelled(torch.zeros(4, 2), torch.arange(4) % 2), 2)
    data = DataBunch(loader, device="cpu", classes=("a", "b", "c"))
    assert (data.classes, data.c) == (["a", "b", "c"], 3)


def test_without_classes_there_are_none():
    assert (toy_bunch().classes, toy_bunch().c) == (None, None)


@pytest.mark.parametrize(
    ("target", "loss"),
    [
        (1, nn.CrossEntropyLoss),
        (torch.tensor(1), nn.CrossEntropyLoss),
        (0.5, MSELossFlat),
        (torch.tensor(0.5), MSELossFlat),
        (torch.zeros(3), MSELossFlat),
        (torch.zeros(3, dtype=torch.int64), type(None)),  # several classes an item, or one hot: who knows
        ("cat", type(None)),
        (None, type(None)),
        (object(), type(None)),
        ({"box": 1}, type(None)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else "",
)
def test_the_loss_is_chosen_by_the_targets(target, loss):
    assert type(DataBunch(DataLoader(Single(target), 1), device="cpu").loss_func) is loss


def test_classes_mean_cross_entropy_and_a_loss_that_is_given_comes_first():
    items = Labelled(torch.zeros(4, 2), torch.zeros(4))
    assert isinstance(DataBunch(DataLoader(items, 2), device="cpu").loss_func, nn.CrossEntropyLoss)
    given = nn.L1Loss()
    assert DataBunch(DataLoader(items, 2), device="cpu", loss_func=given).loss_func is given


def test_choosing_the_loss_leaves_the_generators_alone():
    before = torch.get_rng_state()
    toy_bunch()
    assert torch.get_rng_state().equal(before)


def test_parts_are_found_by_type():
    data = DataBunch([1], [1, 2], [1, 2, 3], device="cpu")
    assert [len(data.dl(part)) for part in DatasetType] == [1, 2, 3]
    assert data.dl() is data.valid_dl
    assert [(part.name, part.value) for part in DatasetType] == [("Train", 1), ("Valid", 2), ("Test", 3)]
    assert data.dls == [data.train_dl, data.valid_dl, data.test_dl]


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(DataError, match=r"^The data have no test part\. .* give the DataBunch a loader for it\.$"):
        toy_bunch().dl(DatasetType.Test)


def test_data_sets_are_their_loaders():
    train, valid, test = (DataLoader(toy_items(n), 20) for n in (60, 40, 20))
    data = DataBunch(train, valid, test, device="cpu")
    assert [len(items) for items in (data.train_ds, data.valid_ds, data.test_ds)] == [60, 40, 20]
    assert data.train_ds is train.dataset
    assert data.batch_size == 20


def test_it_says_what_it_holds():
    shown = repr(DataBunch([1, 2], [1], device="cpu", classes=["a", "b"], path="here"))
    assert shown == "DataBunch(training: 2 batches; validation: 1 batch; classes: ['a', 'b']; device: cpu; path: here)"


# --- create


@pytest.mark.parametrize(
    ("n", "bs", "sizes"), [(1, 64, [1]), (63, 64, [63]), (64, 64, [64]), (65, 64, [64]), (10, 3, [3] * 3)]
)
def test_create_shuffles_and_drops_a_last_batch_only_in_training(n, bs, sizes):
    torch.manual_seed(0)
    items = TensorDataset(torch.arange(n), torch.arange(n) % 2)
    data = DataBunch.create(items, items, items, bs=bs, device="cpu")
    assert [len(x) for x, _ in data.train_dl] == sizes
    for loader in (data.valid_dl, data.test_dl):
        assert inputs(loader).equal(torch.arange(n))
    if n > 3:
        assert inputs(data.train_dl).tolist() != list(range(sum(sizes)))


def test_create_passes_its_options_on():
    data = DataBunch.create(
        toy_items(), toy_items(), path="here", bs=10, val_bs=30, device="cpu", dl_tfms=[lambda b: b], pin_memory=False
    )
    assert (data.batch_size, data.valid_dl.batch_size, data.path.name) == (10, 30, "here")
    assert [len(dl.tfms) for dl in data.dls] == [1, 1]
    assert DataBunch.create(toy_items(), device="cpu").valid_dl is None
    assert DataBunch.create(toy_items(), device="cpu").batch_size == 64


@pytest.mark.parametrize(("bs", "error"), [(0, ValueError), ("64", TypeError), (6.4, TypeError), (True, TypeError)])
@pytest.mark.parametrize("name", ["bs", "val_bs"])
def test_create_refuses_a_batch_size_that_is_not_a_count(name, bs, error):
    with pytest.raises(error, match=rf"^`{name}` must be"):
        DataBunch.create(toy_items(), toy_items(), device="cpu", **{name: bs})


# --- looking at a batch


def shuffled_images() -> TensorLoader:
    return TensorLoader(torch.arange(60).view(60, 1, 1, 1), torch.arange(60), 8, shuffle=True, seed=1, device="cpu")


def shuffled_by_a_generator() -> DataLoader:
    return DataLoader(toy_items(), 8, shuffle=True, generator=torch.Generator().manual_seed(3))


def shuffled_by_torch() -> DataLoader:
    torch.manual_seed(5)
    return DataLoader(toy_items(), 8, shuffle=True)


@pytest.mark.parametrize("loader", [shuffled_images, shuffled_by_a_generator, shuffled_by_torch])
def test_looking_at_a_batch_keeps_the_order(loader):
    looked = DataBunch(loader(), device="cpu")
    x, _ = looked.one_batch()
    looked.one_batch()
    found = inputs(looked.train_dl)
    other = DataBunch(loader(), device="cpu")
    assert found.equal(inputs(other.train_dl))
    if loader is shuffled_images:
        assert x.equal(found[:8])  # and it is the batch that training begins with


@pytest.mark.parametrize("loader", [shuffled_images, shuffled_by_a_generator])
def test_looking_at_a_batch_that_fails_keeps_the_order_too(loader):
    def fail(batch):
        raise RuntimeError("not today")

    looked = DataBunch(loader(), device="cpu", dl_tfms=[fail])
    with pytest.raises(RuntimeError, match="not today"):
        looked.one_batch()
    looked.train_dl.remove_tfm(fail)
    assert inputs(looked.train_dl).equal(inputs(DataBunch(loader(), device="cpu").train_dl))


def test_one_batch_is_of_the_part_that_is_asked_for():
    batches = [[(torch.full((2, 3), value), torch.tensor([0, 1]))] for value in (1.0, 2.0, 3.0)]
    data = DataBunch(*batches, device="cpu")
    assert [data.one_batch(part)[0][0, 0].item() for part in DatasetType] == [1, 2, 3]
    assert data.one_batch()[0][0, 0].item() == 1


def test_one_batch_is_detached_unless_asked_otherwise():
    data = DataBunch([(torch.ones(2, 3, requires_grad=True), torch.ones(2))], device="cpu")
    assert not data.one_batch()[0].requires_grad
    assert data.one_batch(detach=False)[0].requires_grad


def test_one_batch_of_nothing_is_an_error_in_words():
    with pytest.raises(DataError, match=r"no batch|empty|no items"):
        DataBunch([], device="cpu").one_batch()


def test_one_batch_may_have_several_inputs_and_targets():
    batch = ((torch.ones(2), torch.zeros(2)), [torch.ones(2), torch.zeros(2)])
    (first, second), targets = DataBunch([batch], device="cpu").one_batch()
    assert first.sum() == 2
    assert second.sum() == 0
    assert len(targets) == 2
    alone, targets = DataBunch([(torch.ones(2, requires_grad=True), batch[1])], device="cpu").one_batch()
    assert not alone.requires_grad
    assert len(targets) == 2


# --- transforms and normalization


def add_one(batch):
    x, y = batch
    return x + 1, y


def test_transforms_reach_every_part():
    data = DataBunch(*([(torch.zeros(2, 3), torch.zeros(2))] for _ in range(3)), device="cpu", dl_tfms=[add_one])
    data.add_tfm(add_one)
    assert [inputs(dl).unique().tolist() for dl in data.dls] == [[2], [2], [2]]


def test_transforms_reach_loaders_that_are_on_the_device_already():
    loader = TensorLoader(torch.zeros(4, 2), torch.zeros(4), 2, device="cpu")
    data = DataBunch(loader, DeviceDataLoader([(torch.zeros(2, 2), torch.zeros(2))], device="cpu"), dl_tfms=[add_one])
    assert [inputs(dl).unique().tolist() for dl in data.dls] == [[1], [1]]


def test_one_loader_for_both_parts_is_transformed_once():
    loader = TensorLoader(torch.zeros(4, 2), torch.zeros(4), 2, device="cpu")
    data = DataBunch(loader, loader, device="cpu")
    data.add_tfm(add_one)
    assert [inputs(dl).unique().tolist() for dl in data.dls] == [[1], [1]]


def test_normalizing_by_a_batch_gives_mean_0_and_deviation_1_in_each_channel():
    data = DataBunch(DataLoader(images(), 8), DataLoader(images(), 3), device="cpu")
    assert data.normalize() is data
    x = inputs(data.train_dl)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-6)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-6)
    assert inputs(data.valid_dl).allclose(x)


def test_normalizing_by_given_statistics_and_undoing_it():
    data = DataBunch(DataLoader(images(), 8), device="cpu").normalize(imagenet_stats)
    raw = images().tensors[0]
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in imagenet_stats)
    assert inputs(data.train_dl).allclose((raw - mean) / std)
    assert data.one_batch(denorm=False)[0].allclose((raw - mean) / std)
    assert data.one_batch()[0].allclose(raw, atol=1e-6)


def test_statistics_may_be_tensors():
    stats = tuple(torch.tensor(part) for part in imagenet_stats)
    found, wanted = (DataBunch(DataLoader(images(), 8), device="cpu").normalize(s) for s in (stats, imagenet_stats))
    assert inputs(found.train_dl).equal(inputs(wanted.train_dl))


def test_normalizing_keeps_the_order():
    found, wanted = (DataBunch(shuffled_by_a_generator(), device="cpu") for _ in range(2))
    found.add_tfm(lambda batch: (batch[0][:, :, None, None], batch[1]))  # 10 channels of a pixel
    found.normalize()
    assert [y.tolist() for _, y in found.train_dl] == [y.tolist() for _, y in wanted.train_dl]


def test_columns_are_normalized_as_channels_are():
    data = toy_bunch().normalize()
    x = inputs(data.train_dl)
    assert x.shape == (60, 10)
    assert x.mean(0).tolist() == pytest.approx([0] * 10, abs=1e-6)
    assert x.std(0).tolist() == pytest.approx([1] * 10, abs=1e-6)
    assert data.one_batch()[0].allclose(toy_items().tensors[0][:20], atol=1e-6)


def test_normalizing_twice_raises_and_changes_nothing():
    data = DataBunch(DataLoader(images(), 8), device="cpu").normalize(imagenet_stats)
    before = inputs(data.train_dl)
    with pytest.raises(MinifastError, match=r"normalized already. Make a new DataBunch"):
        data.normalize()
    assert inputs(data.train_dl).equal(before)


def test_one_mean_and_deviation_may_stand_for_all_channels():
    data = DataBunch(DataLoader(images(), 8), device="cpu").normalize(([0.5], [0.25]))
    assert inputs(data.train_dl).allclose((images().tensors[0] - 0.5) / 0.25)


def test_statistics_for_another_number_of_channels_are_an_error_in_words():
    with pytest.raises(DataError, match=r"got 2 means and 2 standard deviations for 3 channels"):
        inputs(DataBunch(DataLoader(images(), 8), device="cpu").normalize(([0.5] * 2, [0.5] * 2)).train_dl)


# --- images of a batch


def test_only_images_can_be_shown():
    with pytest.raises(
        DataError, match=r"^Only images \(n, 1 or 3, height, width\) can be shown, got inputs \(20, 10\)\.$"
    ):
        toy_bunch().show_batch()


@pytest.mark.parametrize("device", ["gpu", "GPU:0", "", [], 1.5])
def test_a_device_that_torch_does_not_know(device) -> None:
    with pytest.raises(ValueError, match=r"`device` must be a device of torch, such as 'cpu', .* got"):
        DataBunch([(torch.zeros(2, 3), torch.zeros(2))], None, device=device)


@pytest.mark.parametrize("cls", [DataBunch, TensorDataBunch, TabularDataBunch, ImageDataBunch, SegmentationDataBunch])
def test_a_missing_test_part_names_an_option_that_there_is(cls) -> None:
    data = toy_data()
    data.__class__ = cls
    with pytest.raises(DataError, match=r"have no test part\. Make the data with \w+\(\.\.\., test\w*=") as error:
        data.dl("test")
    method, option = re.search(r"(\w+)\(\.\.\., (\w+)=", str(error.value)).groups()
    assert option in named_parameters(inspect.unwrap(getattr(cls, method).__func__))


@pytest.mark.parametrize(
    "make",
    [
        lambda names: DataBunch([(torch.zeros(2, 1), torch.zeros(2))], classes=names),
        lambda names: DataBunch.create(toy_items(4), classes=names),
        lambda names: TensorDataBunch.from_arrays(torch.zeros(4, 1), [0, 1, 0, 1], classes=names),
        lambda names: ImageDataBunch.from_lists(".", [__file__, pytest.__file__], [0, 1], classes=names),
    ],
)
def test_classes_that_are_a_text_or_no_list_raise(make):
    for names in (2, {0: "a", 1: "b"}):
        with pytest.raises(TypeError, match=r"^`classes` must be a list of names in the order of their numbers, got "):
            make(names)
    for names in ("ab", b"ab", "a"):
        with pytest.raises(
            TypeError, match=r"^`classes` must be a list of names, got the text b?'ab?'; give \[b?'ab?'\]"
        ):
            make(names)
