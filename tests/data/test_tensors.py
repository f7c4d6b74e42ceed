"""Arrays as the data of a learner, and what any bunch can say of its batches."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, TensorDataset

from minifast import (
    DataBunch,
    DataError,
    DatasetType,
    DeviceDataLoader,
    Learner,
    TensorDataBunch,
    TensorLoader,
    accuracy,
    channel_view,
    denormalize,
    get_transforms,
    normalize,
    simple_ann,
    simple_cnn,
)
from minifast.losses import MSELossFlat

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 4))
OPTIONS = {"device": "cpu", "seed": 0, "bs": 10}


def bunch(x=X, y=None, **kwargs) -> TensorDataBunch:
    return TensorDataBunch.from_arrays(x, X[:, 0] > 0 if y is None else y, **(OPTIONS | kwargs))


def items(loader) -> list[torch.Tensor]:
    return [torch.cat(part) for part in zip(*loader, strict=True)]


# --- inputs


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (X, torch.float32),
        (X.astype(np.float16), torch.float32),
        (X > 0, torch.float32),
        (X.tolist(), torch.float32),
        (torch.from_numpy(X), torch.float32),
        (torch.from_numpy(X).bfloat16(), torch.float32),
        (X.astype(int), torch.int64),
        (X.astype(np.int32), torch.int64),
        (torch.from_numpy(X).int(), torch.int32),
        (np.zeros((50, 3, 6, 6), np.uint8), torch.uint8),
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)
def test_inputs_are_floats_integers_or_images(x, dtype):
    assert bunch(x).train_dl.x.dtype is dtype


def test_the_arrays_are_left_alone():
    x, y = X.astype(np.float32), np.arange(50.0)
    before = x.copy(), y.copy()
    data = bunch(x, y)
    data.train_dl.x.zero_()
    data.train_dl.y.zero_()
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])


def test_columns_of_a_data_frame_are_floats():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": np.arange(50), "height": X[:, 0], "tall": X[:, 0] > 0})
    data = bunch(frame, frame["tall"])
    assert data.train_dl.x.dtype is torch.float32
    assert data.classes == [False, True]
    assert items(data.train_dl)[0].shape == (40, 3)
    frame["name"] = "x"
    with pytest.raises(DataError, match=r"^The columns of `x` must hold numbers, but 'name' holds .* such as 'x'"):
        bunch(frame, frame["tall"])


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        ([[1.0], [1.0, 2.0]], r"^The rows of `x` must have the same length"),
        (np.array([["a"]]), r"^`x` must hold rows of numbers, got <U1 values of shape \(1, 1\)"),
        (3.0, r"^`x` must hold rows of numbers, got float64 values of shape \(\)"),
    ],
    ids=["ragged", "text", "one"],
)
def test_invalid_inputs_raise(x, sentence):
    with pytest.raises(DataError, match=sentence):
        bunch(x)


# --- targets


@pytest.mark.parametrize(
    ("y", "loss", "c", "said"),
    [
        (X[:, 0] > 0, nn.CrossEntropyLoss, 2, "one of 2 classes, because the labels are bools"),
        (np.arange(50) % 3, nn.CrossEntropyLoss, 3, "one of 3 classes, because the labels are integers"),
        (["a", "b"] * 25, nn.CrossEntropyLoss, 2, "one of 2 classes, because the labels are names"),
        (X[:, 0], MSELossFlat, 1, "a float, because the labels are floats"),
        (X[:, :1], MSELossFlat, 1, "a float, because the labels are floats"),
        (X[:, :3], MSELossFlat, 3, "3 floats, because the labels are floats"),
        (
            X[:, :3] > 0,
            nn.BCEWithLogitsLoss,
            3,
            "any of 3 classes (multi-label), because the labels are rows of 0 and 1",
        ),
        (
            [["a"], ["a", "b"]] * 25,
            nn.BCEWithLogitsLoss,
            2,
            "any of 2 classes (multi-label), because the labels are lists of names",
        ),
    ],
    ids=["bools", "whole", "names", "real", "column", "several", "rows", "lists"],
)
def test_the_loss_is_chosen_by_the_targets_and_it_trains(y, loss, c, said):
    data = bunch(y=y)
    assert isinstance(data.loss_func, loss)
    assert data.c == c
    assert f"each target is {said}" in repr(data)
    learn = Learner(data, simple_ann(4, c, 8), silent=True)
    learn.fit(1)
    assert learn.validate()[0] > 0
    assert len(learn.get_preds()[0]) == 10
    for item in (X[0], X[0].tolist(), torch.from_numpy(X[0]), [1, 2, 3, 4]):
        assert len(learn.predict(item)) == 3


def test_a_line_is_learnt():
    torch.manual_seed(0)
    data = bunch(y=X @ [1.0, -2, 0, 3])
    learn = Learner(data, nn.Linear(4, 1), silent=True)
    learn.fit_one_cycle(40, 1e-1)
    assert learn.validate()[0] < 0.05


def test_each_input_keeps_its_target():
    x = torch.arange(50.0)[:, None].repeat(1, 2)
    data = bunch(x, x[:, 0].tolist(), valid_pct=0.3, test=x)
    for dl in (data.train_dl, data.valid_dl):
        inputs, targets = items(dl)
        assert inputs[:, 0].equal(targets)
    train, valid = (set(dl.x[:, 0].tolist()) for dl in (data.train_dl, data.valid_dl))
    assert (len(train), len(valid), train & valid) == (35, 15, set())
    assert data.dl(DatasetType.Test).x.equal(x)
    assert [dl.batch_size for dl in data.dls] == [10, 20, 20]


def test_the_split_and_the_order_are_functions_of_the_seed():
    def epochs(seed):
        data = bunch(seed=seed)
        return [items(data.train_dl)[0] for _ in range(2)]

    first, same, other = epochs(0), epochs(0), epochs(1)
    assert all(a.equal(b) for a, b in zip(first, same, strict=True))
    assert not first[0].equal(first[1])
    assert not first[0].equal(other[0])


def test_validation_may_be_given():
    data = bunch(X[:30], ["b", "a", "b"] * 10, valid=(X[30:], ["a"] * 20))
    assert data.valid_dl.x.equal(torch.from_numpy(X[30:]).float())
    assert data.valid_dl.y.tolist() == [0] * 20  # by the classes of both
    assert data.classes == ["a", "b"]


@pytest.mark.parametrize(
    ("valid", "sentence"),
    [
        ((X[:5], [0, 1]), r"^`valid\[0\]` has 5 samples and `valid\[1\]` has 2 targets"),
        (
            (X[:2, :3], [0, 1]),
            r"^Training and validation inputs must .* got torch.float32 \(4,\) and torch.float32 \(3,\)",
        ),
        ((X[:2], [0.5, 1.5]), r"^Training and validation targets must .* and float64"),
        ((X[:2], [[0], [1]]), r"^Training and validation targets must"),
        ((X[:2], [0, 2]), r"^The class 2 is in the validation targets only"),
    ],
    ids=["numbers", "width", "kind", "shape", "class"],
)
def test_validation_must_be_like_training(valid, sentence):
    with pytest.raises(DataError, match=sentence):
        bunch(y=np.arange(50) % 2, valid=valid)


def test_what_cannot_be_split_or_paired_raises():
    with pytest.raises(DataError, match=r"^`x` has 50 samples and `y` has 3 targets"):
        bunch(y=[0, 1, 0])
    with pytest.raises(DataError, match=r"^`x` needs at least 2 samples to split, got 1"):
        bunch(X[:1], [0])
    with pytest.raises(TypeError, match=r"^`valid` must be a pair \(x, y\), got ndarray"):
        bunch(valid=X)
    with pytest.raises(ValueError, match=r"^`valid_pct` must be positive, got 0"):
        bunch(valid_pct=0)


def test_images_in_arrays_are_images():
    x = RNG.integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)
    data = bunch(x, ["a", "b"] * 25, ds_tfms=get_transforms())
    batch, y = data.one_batch()
    assert (batch.dtype, batch.shape) == (torch.float32, (10, 3, 8, 8))
    figure = data.show_batch(rows=2, return_fig=True)
    assert [ax.get_title() for ax in figure.axes] == ["ab"[i] for i in y[:4]]
    learn = Learner(data, simple_cnn((3, 4, 2)), metrics=[accuracy], silent=True)
    learn.fit(1)


# --- means and deviations


def test_channels_are_rows():
    x = torch.arange(24.0).view(2, 3, 2, 2)
    assert channel_view(x).tolist() == [x[:, i].flatten().tolist() for i in range(3)]
    assert channel_view(torch.tensor([[1, 2], [3, 4]])).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (2, 3)], ids=str)
def test_normalizing_and_back(shape):
    x, mean, std = torch.rand(shape), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2, 3])
    found = normalize(x, mean, std)
    channel = 1 if len(shape) != 3 else 0
    wanted = torch.stack([(part - m) / s for part, m, s in zip(x.unbind(channel), mean, std, strict=True)], channel)
    assert found.allclose(wanted)
    assert denormalize(found, mean, std).allclose(x, atol=1e-6)
    assert denormalize(found, mean, std, do_x=False).equal(found)


def test_statistics_of_a_batch():
    data = bunch(y=X[:, 0])
    x, _ = data.one_batch()
    mean, std = data.batch_stats()
    assert mean.allclose(x.mean(0))
    assert std.allclose(x.std(0))
    (most,) = data.batch_stats([torch.amax], DatasetType.Valid)
    assert most.equal(data.valid_dl.x.amax(0))
    data.normalize()
    x = torch.cat([x for x, _ in data.train_dl])
    assert x.mean(0).allclose(torch.zeros(4), atol=1e-6)
    assert x.std(0).allclose(torch.ones(4))


def test_whole_numbers_have_no_statistics():
    for act in (bunch(X.astype(int)).batch_stats, bunch(X.astype(int)).normalize):
        with pytest.raises(DataError, match=r"^Statistics need float inputs .*, got torch.int64 \(10, 4\)"):
            act()


# --- a check before training


def test_good_data_pass():
    assert bunch(test=X).sanity_check() is None
    assert DataBunch([(torch.zeros(2, 3), torch.zeros(2))], device="cpu").sanity_check() is None


class Ragged(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.zeros(i + 1), 0


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (Ragged(), r"^The valid part gives no batch: .*stack.* Check its samples"),
        (
            TensorDataset(torch.full((4, 2), torch.nan), torch.zeros(4).long()),
            r"^The inputs of the first valid batch are not all finite",
        ),
        (
            TensorDataset(torch.zeros(4, 2), torch.tensor([1, 2, 1, 2])),
            r"for 2 classes; .*valid part has targets from 1 to 2",
        ),
        (TensorDataset(torch.zeros(4, 2), torch.tensor([0, -1, 1, 0])), r"valid part has targets from -1 to 1"),
    ],
    ids=["ragged", "nan", "too high", "negative"],
)
def test_invalid_data_raise_and_name_the_part(items, sentence):
    good = TensorDataset(torch.zeros(4, 2), torch.zeros(4).long())
    data = DataBunch(DataLoader(good, 4), DataLoader(items, 4), device="cpu", classes=["a", "b"])
    with pytest.raises(DataError, match=sentence):
        data.sanity_check()


# --- loaders made anew


def test_a_loader_is_made_anew_with_other_arguments():
    items = TensorDataset(torch.arange(10), torch.arange(10))
    loader = DeviceDataLoader(DataLoader(items, 4, shuffle=True, drop_last=True), "cpu", [lambda b: (b[0] * 10, b[1])])
    straight = loader.new(shuffle=False, drop_last=False)
    assert torch.cat([x for x, _ in straight]).tolist() == list(range(0, 100, 10))
    assert [len(x) for x, _ in loader.new(batch_size=3)] == [3, 3, 3]
    assert sorted(torch.cat([x for x, _ in loader.new(batch_size=5)]).tolist()) == list(range(0, 100, 10))
    assert [len(x) for x, _ in loader.new(batch_sampler=BatchSampler(SequentialSampler(items), 7, False))] == [7, 3]
    assert len(loader.new(dataset=TensorDataset(torch.arange(40), torch.arange(40)), shuffle=True)) == 10
    straight.add_tfm(print)
    assert len(loader.tfms) == 1


def test_workers_may_be_left_out_anew():
    loader = DataLoader(TensorDataset(torch.arange(4)), 2, num_workers=1, persistent_workers=True, prefetch_factor=3)
    found = DeviceDataLoader(loader, "cpu").new(num_workers=0)
    assert (found.num_workers, len(list(found))) == (0, 2)


@pytest.mark.parametrize(
    ("dl", "kind"),
    [
        ([(torch.zeros(1), torch.zeros(1))], "list"),
        (DataLoader(TensorDataset(torch.zeros(4)), batch_sampler=[[0, 1]]), "DataLoader with a batch sampler"),
    ],
    ids=["list", "batches"],
)
def test_what_makes_no_batches_is_not_made_anew(dl, kind):
    with pytest.raises(DataError, match=rf"^Only a torch DataLoader .* got {kind}\."):
        DeviceDataLoader(dl, "cpu").new(batch_size=2)


def test_the_batch_size_is_set_in_all_parts():
    data = bunch(test=X)
    data.batch_size = 25
    assert [[len(x) for x, _ in dl] for dl in data.dls] == [[25], [10], [25, 25]]
    data.batch_size = 41
    assert [len(x) for x, _ in data.train_dl] == [40]  # the only one
    items = TensorDataset(torch.zeros(10), torch.zeros(10))
    data = DataBunch.create(items, items, bs=5, device="cpu")
    data.batch_size = 2
    assert [len(dl) for dl in data.dls] == [5, 5]
    assert data.batch_size == 2
    with pytest.raises(ValueError, match=r"^`batch_size` must be at least 1, got 0"):
        data.batch_size = 0


# --- seeds


class Drawn(Dataset):
    """Items that draw from the generators of Python, NumPy and torch."""

    def __len__(self):
        return 8

    def __getitem__(self, i):
        numbers = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor(numbers, dtype=torch.float64), torch.tensor(i)


def test_workers_have_seeds_of_their_own_and_the_same_again():
    def epochs(seed):
        data = DataBunch.create(Drawn(), Drawn(), bs=2, num_workers=2, device="cpu", seed=seed)
        return [items(data.train_dl)[0] for _ in range(2)]

    torch.manual_seed(0)
    first = epochs(1)
    torch.manual_seed(5)
    assert all(a.equal(b) for a, b in zip(first, epochs(1), strict=True))
    assert not first[0].equal(epochs(2)[0])
    assert torch.cat(first).unique(dim=0).shape[0] == 16  # no worker and no epoch draws what another drew
    assert all(len(torch.cat(first)[:, i].unique()) == 16 for i in range(3))


def test_a_seed_makes_the_order_a_function_of_the_epoch():
    items_ = TensorDataset(torch.arange(20), torch.arange(20))

    def orders(seed):
        data = DataBunch.create(items_, bs=20, device="cpu", seed=seed)
        return [items(data.train_dl)[0].tolist() for _ in range(2)]

    loader = TensorLoader(*items_.tensors, 20, shuffle=True, seed=3, device="cpu")
    assert orders(3) == [items(loader)[0].tolist() for _ in range(2)]
    assert orders(3) != orders(4)


def test_several_inputs_are_the_arguments_of_the_model():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer = nn.Embedding(5, 2), nn.Linear(6, 2)

        def forward(self, numbers, word):
            return self.layer(torch.cat([numbers, self.words(word)], 1))

    numbers, words, y = np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 5, np.arange(50) % 2
    data = TensorDataBunch.from_arrays(
        (numbers, words), y, valid=((numbers[:9], words[:9]), y[:9]), test=(numbers, words), bs=8, device="cpu"
    )
    learn = Learner(data, Two(), metrics=[accuracy], silent=True)
    learn.fit_one_cycle(1, 1e-2)
    predictions, targets = learn.get_preds()
    with torch.no_grad():
        expected = learn.model(torch.tensor(numbers[:9]).float(), torch.tensor(words[:9])).softmax(1)
    assert torch.allclose(predictions, expected, atol=1e-6)
    assert targets.tolist() == y[:9].tolist()
    assert torch.allclose(learn.predict((numbers[0], words[0]))[2], expected[0], atol=1e-6)
    assert learn.get_preds(DatasetType.Test)[0].shape == (50, 2)


def test_inputs_of_unequal_length_name_the_one():
    with pytest.raises(DataError, match=r"^`x\[1\]` has 9 samples and `y` has 10 targets"):
        TensorDataBunch.from_arrays((np.zeros((10, 2)), np.zeros(9)), np.zeros(10), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_argument_that_decides_the_type_of_inputs_is_named(dtype):
    data = bunch()
    name = str(dtype)
    expected = rf"inputs are float32, .* are {name[6:]}; pass dtype={name} to TensorDataBunch\.from_arrays\."
    with pytest.raises(DataError, match=expected):
        Learner(data, simple_ann(4, 2).to(dtype), silent=True).fit(1)
    assert bunch(dtype=dtype).one_batch()[0].dtype is dtype


@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_doubles_stay_doubles(form):
    x = form(np.linspace(0, 1, 40).reshape(20, 2) / 3)
    y = form(np.linspace(0, 1, 20) / 3)
    data = TensorDataBunch.from_arrays(x, y, bs=20, valid=(x, y), device="cpu", dtype=torch.float64)
    inputs, targets = data.one_batch(DatasetType.Valid)
    assert torch.equal(inputs, torch.as_tensor(x))
    assert torch.equal(targets, torch.as_tensor(y))
    learn = Learner(data, nn.Linear(2, 1).double(), silent=True)
    learn.fit(1)
    assert learn.predict(x[0])[0].dtype is torch.float64
