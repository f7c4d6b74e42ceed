"""Normalization: statistics over the training set, finite for every input, and the same for other data."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler, random_split

from minifast import DataBunch, DataError, DatasetType, Learner, TensorDataBunch
from minifast.data import DeviceDataLoader, TensorLoader
from minifast.data.normalize import channel_stats


def whole(loader) -> torch.Tensor:
    return torch.cat([x for x, _ in loader])


def plain_stats(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = x.double().transpose(0, 1).reshape(x.shape[1], -1)
    std = values.std(1) if values.shape[1] > 1 else torch.zeros(len(values))
    return values.mean(1), torch.where(values.amax(1) == values.amin(1), 0.0, std)


COLUMNS = st.sampled_from(["normal", "constant", "rare", "offset", "tiny", "huge"])


def column(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    rare = np.zeros(n)
    rare[rng.integers(n)] = 1
    return {
        "normal": rng.normal(size=n),
        "constant": np.full(n, 3.7),
        "rare": rare,
        "offset": 1.6e9 + 1e4 * rng.normal(size=n),
        "tiny": 1e-40 * rng.normal(size=n),
        "huge": 1e30 * rng.normal(size=n),
    }[kind]


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(1, 50), st.lists(COLUMNS, min_size=1, max_size=5), st.integers(0, 2**16))
def test_statistics_are_those_of_the_whole_training_set_and_batches_stay_finite(n, bs, kinds, seed):
    rng = np.random.default_rng(seed)
    x = np.stack([column(kind, n, rng) for kind in kinds], 1)
    data = TensorDataBunch.from_arrays(x, rng.normal(size=n), bs=bs, seed=seed, device="cpu")
    mean, std = plain_stats(data.train_dl.x)
    data.normalize()
    assert data.norm.mean.flatten().allclose(mean.float(), rtol=1e-5, atol=1e-44)
    assert data.norm.std.flatten().allclose(torch.where(std.float() == 0, 1.0, std.float()), rtol=1e-4, atol=1e-44)
    for loader in (data.train_dl, data.valid_dl):
        assert whole(loader).isfinite().all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 2**16))
def test_statistics_do_not_depend_on_the_batches(sizes, shape, seed):
    torch.manual_seed(seed)
    x = torch.randn(sum(sizes), 3, *shape) * torch.tensor([1.0, 0.0, 1e-3]).view(3, *[1] * len(shape)) + 5
    mean, std = channel_stats((part, None) for part in x.split(sizes))
    expected = plain_stats(x)
    assert mean.allclose(expected[0].float())
    assert std.allclose(expected[1].float(), rtol=1e-4, atol=1e-7)
    assert std[1] == 0


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3000), st.integers(1, 700), st.floats(-1e9, 1e9))
def test_a_constant_channel_has_the_standard_deviation_zero_in_double_precision(n, bs, value):
    x = torch.full((n, 2), value, dtype=torch.float64)
    assert channel_stats((part, None) for part in x.split(bs))[1].tolist() == [0, 0]


X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
Y = torch.arange(50) % 2
IN_MEMORY = {
    "torch": lambda: DataLoader(TensorDataset(X, Y), 8),
    "shuffled, last dropped": lambda: DataLoader(TensorDataset(X, Y), 8, shuffle=True, drop_last=True),
    "subset": lambda: DataLoader(random_split(TensorDataset(X, Y), [50, 0])[0], 8, shuffle=True),
    "sampler": lambda: DataLoader(TensorDataset(X, Y), 8, sampler=WeightedRandomSampler(torch.ones(50), 50)),
    "list": lambda: list(zip(X.split(8), Y.split(8), strict=True)),
    "tensors": lambda: TensorLoader(X, Y, 8, shuffle=True, seed=0, device="cpu"),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_loaders_of_tensors_give_statistics_of_all_samples_and_keep_their_order(name):
    torch.manual_seed(0)
    loader = IN_MEMORY[name]()
    data = DataBunch(loader, device="cpu", loss_func=nn.CrossEntropyLoss())
    state = torch.get_rng_state()
    data.normalize()
    assert torch.get_rng_state().equal(state)
    assert data.norm.mean.flatten().allclose(X.mean(0))
    assert data.norm.std.flatten().allclose(X.std(0))
    if name == "tensors":
        assert loader.epoch == 0


class FromDisk(Dataset):
    """A data set that is not in memory, whose first batch has a constant column."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.tensor([float(i >= 20), float(i)]), i % 2


def test_a_column_that_is_constant_in_the_one_batch_gives_finite_numbers():
    data = DataBunch(DataLoader(FromDisk(), 10), DataLoader(FromDisk(), 10), device="cpu").normalize()
    for loader in (data.train_dl, data.valid_dl):
        x = whole(loader)
        assert x.isfinite().all()
        assert x[:, 0].tolist() == [0.0] * 20 + [1.0] * 20
    assert data.one_batch()[0].allclose(FromDisk()[0][0].new_tensor([[0.0, i] for i in range(10)]), atol=1e-5)


def test_one_training_sample_gives_finite_numbers():
    data = TensorDataBunch.from_arrays(X[:1], Y[:1], valid=(X[1:3], Y[:1].repeat(2)), device="cpu").normalize()
    assert whole(data.train_dl).tolist() == [[0.0] * 4]
    assert whole(data.valid_dl).isfinite().all()


def test_a_standard_deviation_of_zero_that_is_given_counts_as_one():
    data = DataBunch([(X, Y)], device="cpu", loss_func=nn.CrossEntropyLoss()).normalize((X.mean(0), torch.zeros(4)))
    assert whole(data.train_dl).allclose(X - X.mean(0))
    assert data.one_batch()[0].allclose(X, atol=1e-6)


@pytest.mark.parametrize("stats", [(torch.zeros(4), torch.full((4,), torch.nan)), (torch.zeros(4), -torch.ones(4))])
def test_statistics_that_cannot_be_used_raise(stats):
    with pytest.raises(DataError, match=r"^`stats` must be finite, and standard deviations must not be negative"):
        DataBunch([(X, Y)], device="cpu", loss_func=nn.CrossEntropyLoss()).normalize(stats)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite_raise_and_leave_the_data_as_they_were(value):
    x = X.clone()
    x[40, 2] = value
    data = DataBunch(DataLoader(TensorDataset(x, Y), 8), device="cpu")
    with pytest.raises(DataError, match=r"needs finite inputs, but there is NaN or inf in the channels \[2\]"):
        data.normalize()
    assert data.norm is None
    assert data.one_batch()[0].equal(x[:8])


@pytest.mark.parametrize("x", [(X, X), torch.arange(5.0)], ids=["several", "one dimension"])
@pytest.mark.parametrize("stats", [None, ([0.0], [1.0])])
def test_inputs_without_channels_raise(x, stats):
    data = DataBunch([(x, Y[:5])], device="cpu", loss_func=nn.CrossEntropyLoss())
    with pytest.raises(DataError, match=r"^Statistics need float inputs \(n, channels, \.\.\.\), got "):
        data.normalize(stats)


# --- other data


def bunch(kind: str) -> DataBunch:
    if kind == "arrays":
        return TensorDataBunch.from_arrays(X, Y, bs=8, seed=0, device="cpu")
    valid = None if kind == "no validation" else DataLoader(TensorDataset(X, Y), 8)
    return DataBunch(DataLoader(TensorDataset(X, Y), 8), valid, device="cpu")


@pytest.mark.parametrize("kind", ["arrays", "torch", "no validation"])
@pytest.mark.parametrize("other", ["DataLoader", "list", "TensorLoader", "DeviceDataLoader"])
def test_other_data_are_normalized_and_transformed_as_the_validation_data(kind, other):
    data = bunch(kind).normalize()
    data.add_tfm(lambda batch: (batch[0] * 2, batch[1]))
    x, y = X[:20] + 7, Y[:20]
    loader = {
        "DataLoader": lambda: DataLoader(TensorDataset(x, y), 6),
        "list": lambda: [(x, y)],
        "TensorLoader": lambda: TensorLoader(x, y, 6, device="cpu"),
        "DeviceDataLoader": lambda: DeviceDataLoader([(x, y)], "cpu"),
    }[other]()
    expected = 2 * (x - data.norm.mean) / data.norm.std
    assert whole(data.adapt(loader)).allclose(expected, atol=1e-6)
    model = nn.Linear(4, 2)
    loss = Learner(data, model, silent=True).validate(loader)[0]
    assert loss == pytest.approx(nn.functional.cross_entropy(model(expected), y).item(), rel=1e-5)


def test_loaders_of_the_bunch_and_loaders_with_transforms_are_taken_as_they_are():
    data = bunch("arrays").normalize()
    assert data.adapt(data.train_dl) is data.train_dl
    other = bunch("torch").normalize()
    assert data.adapt(other.valid_dl) is other.valid_dl
    assert data.train_dl.tfms == data.valid_dl.tfms == [data.norm]
    with pytest.raises(DataError, match=r"^`dl` must be a loader of batches \(x, y\), got int"):
        data.adapt(3)


def test_other_images_are_scaled_as_those_in_memory():
    x = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    data = TensorDataBunch.from_arrays(x, Y[:20], bs=8, seed=0, device="cpu").normalize()
    found = whole(data.adapt(DataLoader(TensorDataset(x, Y[:20]), 6)))
    assert found.allclose((x.expand(-1, 3, -1, -1) / 255 - data.norm.mean) / data.norm.std, atol=1e-6)


def test_without_validation_other_data_get_no_training_augmentation():
    loader = TensorLoader(torch.rand(20, 3, 4, 4), Y[:20], 8, device="cpu")
    data = DataBunch(loader, device="cpu", loss_func=nn.CrossEntropyLoss())
    data._add_ds_tfms(([lambda batch: (batch[0] + 100, batch[1])], []), seed=0)
    assert whole(data.adapt([(loader.x, Y[:20])])).equal(loader.x)


class Sampling(Dataset):
    """A data set that uses every global generator."""

    def __len__(self):
        return 20

    def __getitem__(self, i):
        return torch.randn(3) + random.random() + float(np.random.normal()), i % 2


@pytest.mark.parametrize("act", ["one_batch", "batch_stats", "normalize", "sanity_check", "show"])
def test_looking_at_a_batch_moves_no_generator(act):
    data = DataBunch(DataLoader(Sampling(), 5, shuffle=True), DataLoader(Sampling(), 5), device="cpu")
    look = {"show": lambda: data.one_batch(DatasetType.Valid)}.get(act) or getattr(data, act)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    look()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    assert before[0].equal(after[0])
    assert before[1:] == after[1:]
