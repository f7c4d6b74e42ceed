"""torchdata's StatefulDataLoader as a loader, and in a run that is resumed."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import FailsAt, slow
from torch import nn
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from minifast import DataBunch, Learner

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="StatefulDataLoader is in torchdata")

N, BS = 48, 8
READ: list[int] = []  # the samples that this process read
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))


class Augmented(Dataset):
    """Samples with noise of the global generator."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i):
        READ.append(i)
        return X[i] + torch.randn(4) / 9, int(X[i].sum() > 0)


class Stream(IterableDataset):
    """The same samples in order, shared by the workers."""

    def __init__(self) -> None:
        self.samples = Augmented()

    def __len__(self) -> int:
        return N

    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for i in range(first, N, step):
            yield self.samples[i]


class StatefulStream(Stream):
    """A stream that knows its position."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 0

    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        while first + self.position * step < N:
            self.position += 1
            yield self.samples[first + (self.position - 1) * step]
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def learner(path, dataset, num_workers: int, **arguments) -> Learner:
    torch.manual_seed(0)
    if isinstance(dataset, Augmented):
        arguments["shuffle"] = True
    train = stateful.StatefulDataLoader(dataset, batch_size=BS, num_workers=num_workers, **arguments)
    data = DataBunch(train, stateful.StatefulDataLoader(Augmented(), batch_size=BS), device="cpu")
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Linear(4, 2))
    return Learner(data, model, loss_func=nn.CrossEntropyLoss(), path=path, silent=True)


def weights(learn: Learner) -> torch.Tensor:
    return nn.utils.parameters_to_vector(learn.model.parameters()).detach()


STOPS = [(1, 1), (6, None), (8, None), (8, 1), (9, 2), (17, 5)]  # an epoch has 6 batches


@pytest.mark.parametrize(
    ("make", "num_workers", "stops"),
    [
        (Augmented, 0, STOPS),
        (StatefulStream, 2, [(9, 2)]),
        *slow((Stream, 0, STOPS), (StatefulStream, 0, STOPS)),
        *slow(*((make, 2, [(6, 1), (9, 2)]) for make in (Augmented, Stream, StatefulStream))),
    ],
)
def test_a_resumed_run_has_the_weights_of_one_that_was_not_interrupted(tmp_path, make, num_workers, stops):
    plain = learner(tmp_path, make(), num_workers)
    plain.fit(3, 1e-2)
    for at, every in stops:
        with pytest.raises(OSError, match="gone"):
            learner(tmp_path, make(), num_workers).fit(
                3, 1e-2, checkpoint=f"{at}-{every}", every=every, callbacks=[FailsAt(at)]
            )
        resumed = learner(tmp_path, make(), num_workers)
        resumed.fit(3, 1e-2, checkpoint=f"{at}-{every}", every=every, callbacks=[FailsAt(None)])
        assert torch.equal(weights(plain), weights(resumed)), (at, every)


@pytest.mark.parametrize("make", [Augmented, StatefulStream])
def test_without_workers_no_sample_is_read_again(tmp_path, make):
    with pytest.raises(OSError, match="gone"):
        learner(tmp_path, make(), 0).fit(1, checkpoint="run", every=1, callbacks=[FailsAt(3)])
    resumed = learner(tmp_path, make(), 0)
    READ.clear()
    resumed.fit(1, checkpoint="run", every=1, callbacks=[FailsAt(None)])
    assert len(READ) == N - 3 * BS + N


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_that_its_user_set_to_a_state_gives_the_rest_without_a_warning(tmp_path, num_workers):
    learn = learner(tmp_path, StatefulStream(), num_workers)
    batches = iter(learn.data.train_dl.dl)
    for _ in range(2):
        next(batches)
    state = learn.data.train_dl.dl.state_dict()
    del batches
    again = learner(tmp_path, StatefulStream(), num_workers)
    again.data.train_dl.dl.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="'set_vital'")
        again.fit(1)
    assert len(again.recorder.losses) == 4
    again.fit(1)
    assert len(again.recorder.losses) == 6


def test_a_look_at_a_batch_during_the_epoch_changes_nothing(tmp_path):
    class Looks(FailsAt):
        def on_batch_end(self, train):
            if train:
                next(iter(learns[-1].data.train_dl.dl))  # another iterator, which is then the loader's last one

    learns = [learner(tmp_path, Augmented(), 0)]
    learns[0].fit(2, 1e-2, callbacks=[Looks(None)])
    learns.append(learner(tmp_path, Augmented(), 0))
    with pytest.raises(OSError, match="gone"):
        learns[1].fit(2, 1e-2, checkpoint="run", every=1, callbacks=[Looks(7)])
    learns.append(learner(tmp_path, Augmented(), 0))
    learns[2].fit(2, 1e-2, checkpoint="run", every=1, callbacks=[Looks(None)])
    assert torch.equal(weights(learns[0]), weights(learns[2]))
