"""State wherever it hides: restored by lr_find, not changed by looking at a learner, saved by a checkpoint."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import random
import tempfile
from collections import Counter, defaultdict
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FailsAt, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, Subset, default_collate

from minifast import Callback, DataBunch, DatasetType, Learner, MinifastError
from minifast.hooks import hook_outputs

N, BS = 40, 8

GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(0),
    "random": lambda: random.Random(0),
    "RandomState": lambda: np.random.RandomState(0),
    **{
        name: partial(lambda kind: np.random.Generator(kind(0)), getattr(np.random, name))
        for name in ("PCG64", "MT19937", "Philox", "SFC64", "PCG64DXSM")
    },
}
GLOBAL = {"generator": None}
GLOBAL_GENERATOR = np.random.default_rng(0)


def sample(generator) -> float:
    """A number from a generator of any kind."""
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    return float(generator.random() if hasattr(generator, "random") else generator.random_sample())


class Samples(Dataset):
    """Samples with a transform."""

    def __init__(self, transform=None):
        self.transform = transform

    def __len__(self):
        return N

    def __getitem__(self, i):
        x = torch.linspace(-1, 1, 4) * (i % 5 - 2)
        return (x if self.transform is None else self.transform(x)), i % 2


class Noise:
    """A transform with a generator of its own."""

    def __init__(self, generator):
        self.generator = generator

    def __call__(self, x):
        return x + sample(self.generator)

    def collate(self, batch):
        x, y = default_collate(batch)
        return x + sample(self.generator), y


class Slotted:
    __slots__ = ("generator",)

    def __init__(self, generator):
        self.generator = generator

    def __call__(self, x):
        return x + sample(self.generator)


class Composed:
    def __init__(self, *transforms):
        self.transforms = {"all": list(transforms)}

    def __call__(self, x):
        for transform in self.transforms["all"]:
            x = transform(x)
        return x


class Shuffled(Sampler):
    """Samples an order from a generator, and shuffles its own list in place."""

    def __init__(self, generator):
        self.generator, self.order = generator, list(range(N))

    def __len__(self):
        return N

    def __iter__(self):
        start = int(sample(self.generator) * N)
        self.order[:] = self.order[start:] + self.order[:start]
        return iter(self.order)


class Batches(Sampler):
    def __init__(self, sampler):
        self.sampler = sampler

    def __len__(self):
        return N // BS

    def __iter__(self):
        numbers = list(self.sampler)
        return (numbers[i : i + BS] for i in range(0, N, BS))


class Model(nn.Linear):
    def __init__(self, generator=None):
        super().__init__(4, 2)
        self.held = [{"generator": generator}]

    def forward(self, x):
        generator = self.held[0]["generator"]
        return super().forward(x if generator is None else x + sample(generator))


class Loss(nn.CrossEntropyLoss):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, output, target):
        return super().forward(output, target) * (1 + sample(self.generator))


def with_class_attribute(generator):
    class Own(Samples):
        rng = generator

        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + sample(self.rng), y

    return Own()


def global_noise(x):
    return x + float(GLOBAL_GENERATOR.random())


def in_a_function(generator):
    return lambda x: x + sample(generator)


class Later(Samples):
    """Creates its generator when it is first read."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.rng = kind, None

    def __getitem__(self, i):
        if self.rng is None:
            self.rng = copy.deepcopy(self.kind)
        x, y = super().__getitem__(i)
        return x + sample(self.rng), y


def with_global_generator(generator):
    GLOBAL_GENERATOR.bit_generator.state = np.random.default_rng(0).bit_generator.state
    return DataLoader(Samples(lambda x: global_noise(x)), BS)


PLACES = {
    "data set": lambda g: DataLoader(Samples(Noise(g)), BS),
    "subset of concatenated data sets": lambda g: DataLoader(Subset(ConcatDataset([Samples(Noise(g))]), range(N)), BS),
    "nested transforms": lambda g: DataLoader(Samples(Composed(Composed(Noise(g)))), BS),
    "slots": lambda g: DataLoader(Samples(Slotted(g)), BS),
    "partial": lambda g: DataLoader(Samples(partial(lambda generator, x: x + sample(generator), g)), BS),
    "closure": lambda g: DataLoader(Samples(in_a_function(g)), BS),
    "default of an argument": lambda g: DataLoader(Samples(lambda x, generator=g: x + sample(generator)), BS),
    "class attribute": lambda g: DataLoader(with_class_attribute(g), BS),
    "created later": lambda g: DataLoader(Later(g), BS),
    "global variable": with_global_generator,
    "collate function": lambda g: DataLoader(Samples(), BS, collate_fn=Noise(g).collate),
    "sampler": lambda g: DataLoader(Samples(), BS, sampler=Shuffled(g)),
    "batch sampler": lambda g: DataLoader(Samples(), batch_sampler=Batches(Shuffled(g))),
    "model": None,
    "loss": None,
    "batch transform": None,
}


def learner(kind: str, place: str, path=None) -> Learner:
    generator = GENERATORS[kind]()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    make = PLACES[place] or (lambda g: DataLoader(Samples(), BS, shuffle=True))
    loader = make(generator)
    data = DataBunch(loader, loader, device="cpu", classes=["a", "b"])
    if place == "batch transform":
        data.train_dl.add_tfm(lambda batch: (batch[0] + sample(generator), batch[1]))
    model = Model(generator if place == "model" else None)
    loss = Loss(generator) if place == "loss" else nn.CrossEntropyLoss()
    return Learner(data, model, loss_func=loss, path=path, silent=True)


LOOKS = {
    "lr_find": lambda learn: learn.lr_find(num_it=7),
    "lr_find twice": lambda learn: learn.lr_find(num_it=4, repeats=2),
    "check": lambda learn: learn.check(),
    "validate": lambda learn: learn.validate(),
    "validate training data": lambda learn: learn.validate(learn.data.train_dl),
    "get_preds": lambda learn: learn.get_preds(DatasetType.Train),
    "get_preds with loss": lambda learn: learn.get_preds(with_loss=True),
    "predict": lambda learn: learn.predict(torch.zeros(4)),
    "one_batch": lambda learn: learn.data.one_batch(),
    "show_results": lambda learn: learn.show_results(),
    "summary": lambda learn: learn.summary(),
    "interpret": lambda learn: learn.interpret(),
}


@pytest.mark.parametrize("n_examples", [8, *slow(25)])
def test_looking_does_not_change_training(n_examples):
    @settings(deadline=None, max_examples=n_examples)
    @given(
        st.sampled_from(list(GENERATORS)),
        st.sampled_from(list(PLACES)),
        st.lists(st.sampled_from(list(LOOKS)), min_size=1, max_size=3),
    )
    def compare(kind, place, looks):
        plain = learner(kind, place)
        for _ in range(2):
            plain.fit(1, 1e-2)
        expected = [loss for run in plain.history for loss in run.raw_losses]
        looked = learner(kind, place)
        losses = []
        for i in range(2):
            looked.fit(1, 1e-2)
            losses += looked.recorder.raw_losses
            for look in looks if i == 0 else ():
                LOOKS[look](looked)
        assert losses == expected

    compare()


@pytest.mark.parametrize("n_examples", [4, *slow(25)])
def test_a_resumed_run_equals_one_that_was_not_interrupted(n_examples):
    @settings(deadline=None, max_examples=n_examples)
    @given(
        st.sampled_from(list(GENERATORS)),
        st.sampled_from(list(PLACES)),
        st.integers(0, 14),
        st.sampled_from([None, 1, 2]),
    )
    def compare(kind, place, at, every):
        plain = learner(kind, place)
        plain.fit(3, 1e-2)
        with tempfile.TemporaryDirectory() as folder:
            with pytest.raises(OSError, match="gone"):
                learner(kind, place, folder).fit(3, 1e-2, callbacks=FailsAt(at), checkpoint="run", every=every)
            resumed = learner(kind, place, folder)
            random.seed(9)
            np.random.seed(9)
            torch.manual_seed(9)
            resumed.fit(3, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=every)
        assert list(resumed.recorder.raw_losses) == list(plain.recorder.raw_losses)
        assert all(torch.equal(p, q) for p, q in zip(plain.model.parameters(), resumed.model.parameters(), strict=True))

    compare()


class InWorkers(Samples):
    """Uses the generators of the worker process."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + torch.rand(()), y


def test_workers_that_stay_are_not_used_for_looking(tmp_path):
    def fitted(look):
        torch.manual_seed(0)
        loader = DataLoader(InWorkers(), BS, shuffle=True, num_workers=1, persistent_workers=True)
        learn = Learner(DataBunch(loader, None, device="cpu", classes=["a", "b"]), Model(), path=tmp_path, silent=True)
        learn.fit(1, 1e-2)
        if look:
            learn.lr_find(num_it=6)
            learn.validate(learn.data.train_dl)
        learn.fit(1, 1e-2)
        return learn, list(learn.recorder.raw_losses)

    assert fitted(False)[1] == fitted(True)[1]
    with pytest.warns(UserWarning, match=r"train_dl\.dl\.persistent_workers is True, and the workers have random"):
        fitted(False)[0].fit(1, checkpoint="run")


# --- attributes


class Remembers(nn.Linear):
    """Its outputs depend on what it has seen, in attributes of many types."""

    scale = 1.0

    def __init__(self):
        super().__init__(4, 2)
        self.count, self._seen, self.sums, self.average = 0, [], {"x": 0.0}, torch.zeros(4)
        self.array, self.inner = np.zeros(2), Counts()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.count += 1
            self._seen.append(x.mean().detach())
            self.sums["x"] += float(x.sum())
            self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
            self.array[0] += 1
            self.inner.n += 1
            self.scale = self.scale * 0.99
            self.calls += 1
        self.activation = super().forward(x - self.average)
        factor = self.count + len(self._seen) + self.sums["x"] + self.array[0] + self.inner.n + float(self.calls)
        return self.activation * self.scale * (1 + 0.001 * factor)


class Counts:
    def __init__(self):
        self.n = 0


class Centered(nn.Module):
    """A loss with a buffer that it assigns and a number that moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(2))
        self.n = 0

    def forward(self, output, target):
        self.center = 0.9 * self.center + 0.1 * output.detach().mean(0)
        self.n += 1
        return nn.functional.cross_entropy(output - self.center, target) * (1 + 0.01 * self.n)


def remembering(path=None) -> Learner:
    torch.manual_seed(0)
    data = DataBunch(DataLoader(Samples(), BS, shuffle=True), None, device="cpu", classes=["a", "b"])
    return Learner(data, Remembers(), loss_func=Centered(), path=path, silent=True)


ITERATORS = {
    "count": itertools.count,
    "cycle": lambda: itertools.cycle([1.0, 2.0, 3.0, 5.0, 7.0]),
    "generator": lambda: (i % 7 for i in range(10_000)),
    "list": lambda: iter(list(range(10_000))),
    "zip": lambda: map(sum, zip(itertools.count(), itertools.cycle([1, 2]))),
}


class Iterates(Samples):
    """Takes a factor for each sample from an iterator."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x * (1 + 0.01 * next(self.factors)), y


class IteratesModel(nn.Linear):
    """Takes a factor for each batch from an iterator."""

    def __init__(self, factors):
        super().__init__(4, 2)
        self.factors = factors

    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * next(self.factors))


@pytest.mark.parametrize("place", ["train_dl.dl.dataset", "model"])
@pytest.mark.parametrize("kind", ITERATORS)
def test_an_iterator_that_lr_find_cannot_restore_is_named(kind, place):
    iterator = ITERATORS[kind]()
    samples, model = (Samples(), IteratesModel(iterator)) if place == "model" else (Iterates(iterator), nn.Linear(4, 2))
    learn = Learner(DataBunch(DataLoader(samples, BS), device="cpu", classes=["a", "b"]), model, silent=True)
    words = rf"{place}\.factors is a {type(iterator).__name__}, whose position lr_find cannot restore"
    with pytest.warns(UserWarning, match=words):
        learn.lr_find(num_it=3)


def test_lr_find_restores_attributes_of_model_and_loss():
    plain = remembering()
    plain.fit(2, 1e-2)
    learn = remembering()
    seen = learn.model._seen
    learn.lr_find(num_it=7)
    assert learn.model._seen is seen
    assert seen == []
    assert "scale" not in vars(learn.model)
    learn.fit(2, 1e-2)
    assert plain.recorder.raw_losses == learn.recorder.raw_losses


class KeepsHidden(nn.Module):
    """Keeps the hidden state of a recurrent cell, a queue of outputs and the place in it, in every mode."""

    def __init__(self):
        super().__init__()
        self.cell, self.head, self.hidden, self.place = nn.GRUCell(4, 4), nn.Linear(4, 2), None, 0
        self.register_buffer("queue", torch.zeros(8, 2))

    def forward(self, x):
        fits = self.hidden is not None and len(self.hidden) == len(x)
        hidden = self.cell(x, self.hidden if fits else torch.zeros(len(x), 4))
        self.hidden = hidden.detach()
        output = self.head(hidden)
        self.queue[self.place] = output.detach().mean(0)
        self.place = (self.place + 1) % 8
        return output + self.queue.mean(0)


@pytest.mark.parametrize("n_examples", [8, *slow(25)])
def test_looking_does_not_change_buffers_and_attributes(n_examples):
    def losses(model, loss, looks):
        torch.manual_seed(0)
        loader = DataLoader(Samples(), BS, shuffle=True)
        data = DataBunch(loader, loader, device="cpu", classes=["a", "b"])
        learn = Learner(data, model(), loss_func=loss(), silent=True)
        learn.fit(1, 1e-2)
        for look in looks:
            learn.pred_batch() if look == "pred_batch" else LOOKS[look](learn)
        learn.fit(1, 1e-2)
        return list(learn.recorder.raw_losses)

    @settings(deadline=None, max_examples=n_examples)
    @given(
        st.sampled_from([KeepsHidden, Remembers]),
        st.sampled_from([nn.CrossEntropyLoss, Centered]),
        st.lists(st.sampled_from([*LOOKS, "pred_batch"]), min_size=1, max_size=3),
    )
    def compare(model, loss, looks):
        assert losses(model, loss, looks) == losses(model, loss, [])

    compare()


def test_hooks_keep_what_they_store_while_looking():
    learn = remembering()
    with hook_outputs([learn.model]) as hooks:
        output = learn.pred_batch(DatasetType.Train, activ=lambda x: x)
    assert torch.equal(hooks.stored[0], output)


@pytest.mark.parametrize("at", [8, *slow(0, 3, 5)])
def test_a_checkpoint_saves_attributes_of_model_and_loss(tmp_path, at):
    plain = remembering()
    plain.fit(2, 1e-2)
    broken = remembering(tmp_path)
    with pytest.raises(OSError, match="gone"):
        broken.fit(2, 1e-2, callbacks=FailsAt(at), checkpoint="run", every=1)
    file = tmp_path / "models" / "run.checkpoint"
    content = file.read_bytes()
    for resumed in (remembering(tmp_path), broken):  # as in another process, and in the same one
        file.write_bytes(content)
        resumed.fit(2, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=1)
        assert list(resumed.recorder.raw_losses) == list(plain.recorder.raw_losses)


class CountsReads(Samples):
    """Counts the reads of each sample, in place."""

    def __init__(self, counts):
        super().__init__()
        self.counts, self.offset = counts, 0

    def __getitem__(self, i):
        self.counts[int(i) + self.offset] += 1
        x, y = super().__getitem__(i)
        return x * 0.9 ** float(self.counts[i]), y


COUNTS = {
    "list": lambda: [0] * N,
    "dict": lambda: dict.fromkeys(range(N), 0),
    "defaultdict": lambda: defaultdict(int),
    "Counter": Counter,
    "array": lambda: np.zeros(N),
    "tensor": lambda: torch.zeros(N),
    "shared array": lambda: multiprocessing.Array("d", N),
    "shared array without a lock": lambda: multiprocessing.RawArray("i", N),
}


@pytest.mark.parametrize(
    "kind",
    [
        *("list", "defaultdict", "array", "tensor", "shared array"),
        *slow("dict", "Counter", "shared array without a lock"),
    ],
)
@pytest.mark.parametrize("at", [7, *slow(3)])
def test_a_checkpoint_saves_what_a_data_set_counts_per_sample(tmp_path, kind, at):
    def started(path):
        torch.manual_seed(0)
        loader = DataLoader(CountsReads(COUNTS[kind]()), BS, shuffle=True)
        return Learner(DataBunch(loader, None, device="cpu", classes=["a", "b"]), Model(), path=path, silent=True)

    plain = started(tmp_path / "plain")
    plain.fit(3, 1e-2)
    with pytest.raises(OSError, match="gone"):
        started(tmp_path).fit(3, 1e-2, callbacks=FailsAt(at), checkpoint="run", every=2)
    resumed = started(tmp_path)
    resumed.fit(3, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=2)
    assert list(resumed.recorder.raw_losses) == list(plain.recorder.raw_losses)


@pytest.mark.parametrize("value", [itertools.count(), np.random.SeedSequence(0)])
def test_an_iterator_that_a_checkpoint_cannot_save_is_named(tmp_path, value):
    learn = remembering(tmp_path)
    learn.model.numbers = value
    what = rf"model\.numbers is a {type(value).__name__}, which a checkpoint does not save"
    with pytest.warns(UserWarning, match=what):
        learn.fit(1, checkpoint="run")


WRAPPED = {
    "weight_norm": lambda: weight_norm(nn.Linear(4, 2)),
    "parametrized weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 2)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 2)),
    "parametrized spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 2)),
    "prune": lambda: prune.l1_unstructured(nn.Linear(4, 2), "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "kind", ["weight_norm", "parametrized spectral_norm", *slow("parametrized weight_norm", "spectral_norm", "prune")]
)
def test_weights_that_are_computed_from_others_are_restored(tmp_path, kind):
    def fitted(find):
        torch.manual_seed(0)
        data = DataBunch(DataLoader(Samples(), BS), None, device="cpu", classes=["a", "b"])
        learn = Learner(data, WRAPPED[kind](), path=tmp_path, silent=True)
        for i in range(2):
            learn.fit(1, 1e-2, checkpoint=f"run{i}" if find else None, resume=False)
            if find:
                learn.lr_find(num_it=6)
                learn.check()
        return list(learn.history[-1 if not find else 2].raw_losses)

    assert fitted(False) == fitted(True)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize(("at", "every"), [(8, 2), *slow((8, None), (5, 2), (5, None))])
def test_weights_that_are_computed_from_others_resume_after_a_validated_epoch(tmp_path, kind, every, at):
    def run(fails_at, path, checkpoint="run"):
        torch.manual_seed(0)
        loaders = [DataLoader(Samples(), BS) for _ in range(2)]
        data = DataBunch(*loaders, device="cpu", classes=["a", "b"])
        learn = Learner(data, WRAPPED[kind](), path=path, silent=True)
        learn.fit(2, 1e-2, callbacks=FailsAt(fails_at), checkpoint=checkpoint, every=every)
        return [*learn.recorder.raw_losses, *learn.recorder.val_losses]

    plain = run(None, tmp_path / "plain")
    with pytest.raises(OSError, match="gone"):
        run(at, tmp_path)
    assert run(None, tmp_path) == plain


class CountsAll(Samples):
    """Counts its reads in memory that worker processes share."""

    def __init__(self):
        super().__init__()
        self.reads = multiprocessing.Value("i", 0)

    def __getitem__(self, i):
        with self.reads.get_lock():
            self.reads.value += 1
        return super().__getitem__(i)


def test_a_value_that_processes_share_is_restored(tmp_path):
    def learner(path):
        torch.manual_seed(0)
        data = DataBunch(DataLoader(CountsAll(), BS), None, device="cpu", classes=["a", "b"])
        return Learner(data, nn.Linear(4, 2), path=path, silent=True)

    learn = learner(tmp_path)
    reads = learn.data.train_ds.reads
    before = reads.value
    learn.lr_find(num_it=3)
    assert reads.value == before
    with pytest.raises(OSError, match="gone"):
        learn.fit(2, 1e-2, callbacks=FailsAt(7), checkpoint="run", every=1)
    resumed = learner(tmp_path)
    resumed.fit(2, 1e-2, callbacks=FailsAt(None), checkpoint="run", every=1)
    assert resumed.data.train_ds.reads.value == before + 2 * N


# --- the same run


class Opened:
    """Stands for an open file."""


class Lazy(Samples):
    """Counts, caches, and opens a file at the first read."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.noise, self.reads, self.cache, self.filled = noise, 0, {}, [None] * N
        self.file = None

    def __getitem__(self, i):
        self.reads += 1
        if self.file is None:
            self.file = Opened()
        if i not in self.cache:
            self.cache[i] = super().__getitem__(i)
        self.filled[i] = self.cache[i]
        return self.cache[i]


class Shows(nn.Linear):
    """Shows a number that moves."""

    def __init__(self, dropout=0.0):
        super().__init__(4, 2)
        self.steps, self.dropout = 0, dropout

    def forward(self, x):
        self.steps += self.training
        return super().forward(x)

    def extra_repr(self):
        return f"steps={self.steps}"


def lazy(path, noise=0.0, dropout=0.0) -> Learner:
    torch.manual_seed(0)
    data = DataBunch(DataLoader(Lazy(noise), BS), None, device="cpu", classes=["a", "b"])
    return Learner(data, Shows(dropout), path=path, silent=True)


@pytest.mark.parametrize("at", [2, 7])
@pytest.mark.parametrize("read_before", [False, True])
def test_caches_counters_and_open_files_do_not_make_another_run(tmp_path, at, read_before):
    plain = lazy(tmp_path / "plain")
    plain.fit(2, 1e-2)
    learn = lazy(tmp_path)
    if read_before:
        learn.lr_find(num_it=3)
    with pytest.raises(OSError, match="gone"):
        learn.fit(2, 1e-2, callbacks=FailsAt(at), checkpoint="run")
    content = (tmp_path / "models" / "run.checkpoint").read_bytes()
    for again in (learn, lazy(tmp_path)):
        (tmp_path / "models" / "run.checkpoint").write_bytes(content)
        again.fit(2, 1e-2, callbacks=FailsAt(None), checkpoint="run")
        assert list(again.recorder.raw_losses) == list(plain.recorder.raw_losses)


class ReadsProperty(Samples):
    """Opens its file and fills its caches in properties and cached functions."""

    _table = None

    def __init__(self):
        super().__init__()
        self.found, self.reads, self.by_name = {}, [0], {}

    @property
    def table(self):
        if self._table is None:
            self._table = {"file": Opened(), "numbers": np.arange(3)}
        return self._table

    @cached_property
    def numbers(self):
        return torch.arange(N)

    @lru_cache  # noqa: B019
    def lines(self, i):
        self.found[i] = True
        return self.table

    def __getitem__(self, i):
        self.lines(i)
        reads = self.reads
        reads[0] = reads[0] + 1
        names = self.by_name
        names.update({str(i): torch.ones(1)})
        return super().__getitem__(int(self.numbers[i]))


class InFolder(Samples):
    """Has a folder, which is elsewhere in each process."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.files = [self.root / "train" / f"{i}.png" for i in range(N)]


class WithSetting(Samples):
    """Has a setting of any kind."""

    def __init__(self, setting):
        super().__init__()
        self.setting = setting


def fit_on(samples, path, model=None, fails_at=None) -> Learner:
    torch.manual_seed(0)
    data = DataBunch(DataLoader(samples, BS), None, device="cpu", classes=["a", "b"])
    learn = Learner(data, model or nn.Linear(4, 2), path=path, silent=True)
    learn.fit(2, 1e-2, callbacks=FailsAt(fails_at), checkpoint="run")
    return learn


@pytest.mark.parametrize("kind", [ReadsProperty, InFolder, partial(WithSetting, {"some", "texts", "and", "more"})])
def test_what_a_data_set_opens_in_a_property_is_not_another_run(tmp_path, kind):
    samples = kind()
    with pytest.raises(OSError, match="gone"):
        fit_on(samples, tmp_path, fails_at=7)
    content = (tmp_path / "models" / "run.checkpoint").read_bytes()
    for again in (samples, kind()):
        (tmp_path / "models" / "run.checkpoint").write_bytes(content)
        assert len(fit_on(again, tmp_path).recorder.raw_losses) == 2 * N // BS


PAIRS = {
    "number": (1, 2),
    "none": (None, 2),
    "text": ("a", "b"),
    "set": ({"a", "b"}, {"a", "c"}),
    "frozen set": (frozenset([1]), frozenset([2])),
    "tuple": ((1, 2), (1, 3)),
    "dict": ({"size": [1, 2]}, {"size": [1, 3]}),
    "type": (nn.ReLU, nn.GELU),
    "dtype": (torch.float32, torch.float64),
    "function": (nn.functional.relu, nn.functional.gelu),
    "own function": (sample, global_noise),
    "bound": (partial(sample, generator=1), partial(sample, generator=2)),
    "tensor": (torch.zeros(2), torch.ones(2)),
    "array": (np.zeros(2), np.ones(2)),
    "folder": (Path("a") / "b", Path("a") / "c"),
}


LONG = ["none", "frozen set", "tuple", "type", "dtype", "own function", "array"]


@pytest.mark.parametrize("kind", [*(kind for kind in PAIRS if kind not in LONG), *slow(*LONG)])
def test_a_changed_setting_of_any_kind_raises(tmp_path, kind):
    first, second = PAIRS[kind]
    fit_on(WithSetting(first), tmp_path)
    fit_on(WithSetting(first), tmp_path)
    with pytest.raises(MinifastError, match="holds another run"):
        fit_on(WithSetting(second), tmp_path)


class Activates(nn.Linear):
    """Has a function as a setting."""

    def __init__(self, activation):
        super().__init__(4, 2)
        self.activation = activation

    def forward(self, x):
        return self.activation(super().forward(x))


def test_a_changed_function_of_the_model_raises(tmp_path):
    fit_on(Samples(), tmp_path, Activates(torch.relu))
    with pytest.raises(MinifastError, match=r"settings have model\.activation = '.*relu', and this run has '.*tanh'"):
        fit_on(Samples(), tmp_path, Activates(torch.tanh))


@pytest.mark.parametrize(
    ("change", "words"), [({"noise": 0.5}, r"dataset\.noise = 0\.0"), ({"dropout": 0.5}, r"model\.dropout = 0\.0")]
)
def test_a_changed_setting_of_data_or_model_raises(tmp_path, change, words):
    lazy(tmp_path).fit(1, 1e-2, checkpoint="run")
    with pytest.raises(MinifastError, match=f"its settings have .*{words}, and this run has 0.5"):
        lazy(tmp_path, **change).fit(1, 1e-2, checkpoint="run")


class Acts(Callback):
    """Affects training by a setting."""

    def __init__(self, scale, note=""):
        self.scale, self.note, self.steps = scale, note, 0

    def on_backward_begin(self, last_loss):
        self.steps += 1
        return {"last_loss": last_loss * self.scale}


class Observes(Acts):
    fit_only = True


@pytest.mark.parametrize("kind", [Acts, Observes])
def test_a_changed_setting_of_a_callback_is_used_or_raises(tmp_path, kind):
    learn = lazy(tmp_path)
    learn.fit(2, 1e-2, callbacks=kind(0.5), checkpoint="run")
    changed = kind(0.25)
    if kind is Acts:
        with pytest.raises(MinifastError, match=r"started with scale=0\.5 of Acts, and now it is 0\.25"):
            lazy(tmp_path).fit(2, 1e-2, callbacks=changed, checkpoint="run")
    else:
        lazy(tmp_path).fit(2, 1e-2, callbacks=changed, checkpoint="run")
        assert (changed.scale, changed.steps) == (0.25, 10)
