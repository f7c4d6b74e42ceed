"""compare: the order and the random generators of loaders that the learners share."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from minifast import DataBunch, Learner, TensorLoader, compare, simple_ann
from minifast.comparison.first_states import FirstStates
from minifast.comparison.processes import run_in_processes
from minifast.comparison.runs import Plan
from minifast.data.resume import loader_state
from minifast.training.features import is_equal
from minifast.utils.random import generator_state


def states_of(data: DataBunch):
    return [loader_state(loader) for loader in data.dls]


def drawn(generator) -> float:
    """Return a random number of any generator."""
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    if isinstance(generator, np.random.BitGenerator):
        return float(generator.random_raw())
    return generator.random()


@pytest.mark.parametrize("kind", ["ours", "torch's"])
@pytest.mark.parametrize("ends", ["all runs", "an error", "Ctrl-C"])
def test_a_comparison_leaves_the_order_of_shared_data_as_it_was(kind, ends) -> None:
    x = torch.randn(60, 10)
    items = TensorDataset(x, (x.sum(1) > 0).long())
    if kind == "ours":
        loader = TensorLoader(*items.tensors, 20, shuffle=True, seed=3, device="cpu")
    else:
        loader = DataLoader(items, 20, shuffle=True, generator=torch.Generator().manual_seed(3))
    shared = DataBunch(loader, DataLoader(items, 20), device="cpu", loss_func=nn.CrossEntropyLoss())
    errors = {"an error": RuntimeError("gone"), "Ctrl-C": KeyboardInterrupt()}

    def losses(**configurations) -> list[float]:
        def make_shared() -> Learner:
            return Learner(shared, simple_ann(10, 2, 8))

        result = compare(make_shared, {"rate": 1e-2, **configurations}, epochs=2, seeds=2, silent=True)
        return [run.losses for run in result.runs["rate"]]

    def fails(learn: Learner, epochs: int) -> None:
        learn.fit(1, 1e-2)
        raise errors[ends]

    Learner(shared, simple_ann(10, 2, 8), silent=True).fit(1, 1e-2)  # the loader has left its start
    before, expected = states_of(shared), losses()
    if ends == "an error":
        with pytest.raises(RuntimeError, match="gone"):
            losses(other=fails)
    elif ends == "Ctrl-C":
        losses(other=fails)
    assert is_equal(states_of(shared), before)
    assert losses() == expected


X = torch.linspace(-2, 2, 60).view(60, 1).repeat(1, 10)
ITEMS = TensorDataset(X, torch.arange(60) % 2)


class Noisy(Dataset):
    """Samples with noise of generators of the data set."""

    def __init__(self, *generators) -> None:
        self.generators = list(generators)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, i):
        return ITEMS[i][0] + sum(map(drawn, self.generators)), ITEMS[i][1]


class CreatesGenerator(Noisy):
    """Samples with noise of a generator that is created for the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = None

    def __getitem__(self, i):
        if self.rng is None:
            self.rng = np.random.default_rng(3)
        return ITEMS[i][0] + self.rng.normal(), ITEMS[i][1]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(list(zip(*ITEMS.tensors, strict=True)))


def jitter(batch):
    return batch[0] + torch.randn(()), batch[1]


def tensor_loader(**options):
    return TensorLoader(*ITEMS.tensors, 20, device="cpu", **options)


def augmented():
    data = DataBunch(tensor_loader(), tensor_loader(), device="cpu")
    data._add_ds_tfms(([jitter], [jitter]), 3)
    return data


def of_loaders(train_dl) -> DataBunch:
    return DataBunch(train_dl, DataLoader(ITEMS, 20), device="cpu", loss_func=nn.CrossEntropyLoss())


def seeded():
    return torch.Generator().manual_seed(3)


SHARED = {
    "tensors": lambda: of_loaders(tensor_loader(shuffle=True, seed=3)),
    "data set": lambda: DataBunch.create(ITEMS, ITEMS, bs=20, seed=3, num_workers=0, device="cpu"),
    "stream": lambda: DataBunch.create(Stream(), ITEMS, bs=20, epoch_length=2, num_workers=0, device="cpu"),
    "global generator": lambda: of_loaders(DataLoader(ITEMS, 20, shuffle=True)),
    "own generator": lambda: of_loaders(DataLoader(ITEMS, 20, shuffle=True, generator=seeded())),
    "sampler": lambda: of_loaders(
        DataLoader(ITEMS, 20, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 60, 60, generator=seeded()))
    ),
    "set_epoch": lambda: of_loaders(
        DataLoader(ITEMS, 20, sampler=torch.utils.data.DistributedSampler(ITEMS, num_replicas=1, rank=0))
    ),
    "augmentation": augmented,
    "numpy": lambda: of_loaders(DataLoader(Noisy(np.random.default_rng(3)), 20)),
    "RandomState": lambda: of_loaders(DataLoader(Noisy(np.random.RandomState(3)), 20)),
    "random": lambda: of_loaders(DataLoader(Noisy(random.Random(3)), 20)),
    "two of one type": lambda: of_loaders(DataLoader(Noisy(random.Random(3), random.Random(4)), 20)),
    "created when needed": lambda: of_loaders(DataLoader(CreatesGenerator(), 20)),
    "workers": lambda: of_loaders(DataLoader(Noisy(np.random.default_rng(3)), 20, num_workers=1)),
    "persistent workers": lambda: of_loaders(
        DataLoader(Noisy(np.random.default_rng(3)), 20, num_workers=1, persistent_workers=True)
    ),
}
# A fit changes their generators, and they do not know their seed.
WITHOUT_SEED = ("numpy", "RandomState", "random", "two of one type", "created when needed")


@pytest.mark.parametrize("kind", SHARED)
def test_a_comparison_does_not_depend_on_what_was_done_with_shared_data(kind) -> None:
    data = SHARED[kind]()

    def make_shared() -> Learner:
        return Learner(data, simple_ann(10, 2, 8), loss_func=nn.CrossEntropyLoss(), silent=True)

    def compared():
        result = compare(make_shared, {"a": 1e-2, "b": 1e-2}, epochs=2, seeds=[3, 5], silent=True)
        return [[(run.losses, run.reached) for run in runs] for runs in result.runs.values()]

    torch.manual_seed(0)
    first = compared()
    if kind not in WITHOUT_SEED:
        make_shared().fit(1, 1e-2)
    before = states_of(data)
    assert compared() == first
    assert first[0] == first[1]  # the configurations see the same batches
    assert is_equal(states_of(data), before)


def of_a_state(seed: int) -> np.random.Generator:
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = np.random.PCG64(seed).state
    return generator


GENERATORS = {
    "torch": lambda seed: torch.Generator().manual_seed(seed),
    "random": random.Random,
    "numpy": np.random.default_rng,
    "bits": np.random.MT19937,
    "other bits": lambda seed: np.random.Generator(np.random.SFC64(seed)),
    "jumped": lambda seed: np.random.Generator(np.random.PCG64(seed).jumped()),
    "of a state": of_a_state,
    "RandomState": np.random.RandomState,
    "RandomState of bits": lambda seed: np.random.RandomState(np.random.PCG64(seed)),
}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(sorted(GENERATORS)), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_each_run_begins_with_the_first_state_of_each_generator(kinds, before, between) -> None:
    generators = [GENERATORS[kind](seed) for seed, kind in enumerate(kinds, start=1)]
    starts = [GENERATORS[kind](seed) for seed, kind in enumerate(kinds, start=1)]
    for generator, start in zip(generators, starts, strict=True):
        for _ in range(before):
            drawn(generator), isinstance(start, torch.Generator) or drawn(start)  # torch's begins with its seed
    expected = list(map(drawn, starts))
    assert len(set(expected)) == len(kinds)
    first_states, states = FirstStates(), list(map(generator_state, generators))
    for _ in range(3):
        first_states.begin_run(DataLoader(Noisy(*generators), 20))
        assert list(map(drawn, generators)) == expected
        for generator in generators * between:
            drawn(generator)
    first_states.restore()
    assert is_equal(list(map(generator_state, generators)), states)


class Counted(Noisy):
    """Samples that depend on a counter of those that were read, and on a generator."""

    def __init__(self) -> None:
        super().__init__(random.Random(3))
        self.reads = 0

    def __getitem__(self, i):
        self.reads += 1
        x, y = super().__getitem__(i)
        return x + self.reads / 60, y


def around(part) -> DataBunch:
    """Return new data around a part that other data share."""
    if isinstance(part, DataLoader):
        return of_loaders(part)
    if isinstance(part, torch.Generator):
        return of_loaders(DataLoader(ITEMS, 20, shuffle=True, generator=part))
    return of_loaders(DataLoader(part, 20))


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(
    "make_part",
    [lambda: DataLoader(ITEMS, 20, shuffle=True, generator=seeded()), seeded, Counted],
    ids=["loader", "generator", "data set"],
)
def test_new_loaders_around_a_shared_part_restart_and_restore_it(make_part, keeps) -> None:
    part, kept = make_part(), []
    drawn(part.generators[0] if isinstance(part, Dataset) else getattr(part, "generator", part))
    before = states_of(around(part))

    def make_learner() -> Learner:
        learn = Learner(around(part), simple_ann(10, 2, 8), silent=True)
        kept.extend([learn] * keeps)
        return learn

    runs = compare(make_learner, {"a": 1e-2, "b": 1e-2}, epochs=2, seeds=[3, 5], silent=True).runs
    assert [run.losses for run in runs["a"]] == [run.losses for run in runs["b"]]
    gc.collect()
    assert is_equal(states_of(around(part)), before)


GLOBAL = {
    "method": random.gauss,
    "built-in method": random.random,
    "NumPy's method": np.random.normal,
    "NumPy's generator": np.random.get_state.__self__.standard_normal,
    "torch's generator": torch.default_generator,
}


@pytest.mark.parametrize("kind", GLOBAL)
def test_the_generators_of_the_process_have_the_seed_of_the_run(kind) -> None:
    class Samples(Noisy):
        def __init__(self, source) -> None:
            super().__init__()
            self.source = source

        def __getitem__(self, i):
            numbers.append(drawn(self.source) if isinstance(self.source, torch.Generator) else self.source())
            return ITEMS[i]

    def fit(learn: Learner, epochs: int) -> None:
        numbers.clear()
        learn.fit(1, 1e-2)
        firsts.append(numbers[:60])

    numbers, firsts, data = [], [], of_loaders(DataLoader(Samples(GLOBAL[kind]), 20))
    compare(lambda: Learner(data, simple_ann(10, 2, 8), silent=True), {"a": fit, "b": fit}, seeds=[3, 5], silent=True)
    assert firsts[0] == firsts[1] != firsts[2] == firsts[3]


def test_workers_that_were_at_work_before_go_on_after_a_comparison() -> None:
    data = SHARED["persistent workers"]()
    learn = Learner(data, simple_ann(10, 2, 8), silent=True)
    learn.fit(1, 1e-2)
    iterator = data.train_dl.dl._iterator
    compare(lambda: Learner(data, simple_ann(10, 2, 8)), {"a": 1e-2}, epochs=1, seeds=1, silent=True)
    assert data.train_dl.dl._iterator is iterator


def test_several_processes_leave_the_loaders_of_this_one_as_they_were() -> None:
    pytest.importorskip("cloudpickle")
    data = SHARED["tensors"]()
    Learner(data, simple_ann(10, 2, 8), silent=True).fit(1, 1e-2)
    before = states_of(data)
    plan = Plan(lambda: Learner(data, simple_ann(10, 2, 8), silent=True), {"a": 1e-2}, 1, None)
    run_in_processes(plan, [(3, "a"), (5, "a")], 2).close()
    assert is_equal(states_of(data), before)
