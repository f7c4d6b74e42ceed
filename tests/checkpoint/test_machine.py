"""Whatever is done to a learner between two trainings, training is as if it had not been done."""

from __future__ import annotations

import copy
import io
import random
import tempfile

import numpy as np
import pytest
import torch
from conftest import FailsAt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from torch import nn
from torch.utils.data import DataLoader, Dataset

from minifast import DataBunch, DatasetType, Learner, TensorLoader, accuracy


class Noisy(Dataset):
    def __init__(self):
        self.rng = np.random.RandomState(1)

    def __len__(self):
        return 24

    def __getitem__(self, i):
        x = torch.linspace(-1, 1, 4) * (i % 3 - 1)
        return x + float(self.rng.normal()) + random.random() + float(np.random.random()), i % 2


def make(kind: str, path: str) -> Learner:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    if kind == "memory":
        x, y = torch.randn(24, 4), torch.arange(24) % 2
        train = TensorLoader(x, y, 6, shuffle=True, seed=1, device="cpu")
        valid = TensorLoader(x, y, 12, device="cpu")
    else:
        train, valid = DataLoader(Noisy(), 6, shuffle=True), DataLoader(Noisy(), 12)
    data = DataBunch(train, valid, device="cpu", classes=["a", "b"], path=path)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2))
    return Learner(data, model, metrics=[accuracy], silent=True)


class Machine(RuleBasedStateMachine):
    """Trains a learner with other calls in between, and a second one without them."""

    @initialize(kind=st.sampled_from(["memory", "DataLoader"]))
    def begin(self, kind):
        self.kind = kind
        self.folder = tempfile.TemporaryDirectory()
        self.learn = make(kind, self.folder.name)
        self.states = self.global_states()
        self.trainings = 0

    def teardown(self):
        if hasattr(self, "folder"):
            self.compare()
            self.folder.cleanup()

    def compare(self):
        """Train a new learner alone, as often, and compare the weights."""
        alone = make(self.kind, self.folder.name)
        for i in range(self.trainings):
            alone.fit_one_cycle(1, 1e-2 / (1 + i))
        pairs = zip(alone.model.state_dict().values(), self.learn.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    @staticmethod
    def global_states():
        return random.getstate(), np.random.get_state(), torch.get_rng_state()

    @rule()
    def train(self):
        self.learn.fit_one_cycle(1, 1e-2 / (1 + self.trainings))
        self.trainings += 1

    @rule(at=st.integers(0, 3), every=st.sampled_from([None, 1]))
    def train_with_an_interruption(self, at, every):
        name, lr = f"run{self.trainings}", 1e-2 / (1 + self.trainings)
        with pytest.raises(OSError, match="gone"):
            self.learn.fit_one_cycle(1, lr, checkpoint=name, every=every, callbacks=FailsAt(at))
        self.learn.fit_one_cycle(1, lr, checkpoint=name, every=every, callbacks=FailsAt(None))
        self.trainings += 1

    @rule(repeats=st.integers(1, 2), n=st.integers(2, 6))
    def lr_find(self, repeats, n):
        self.learn.lr_find(num_it=n, repeats=repeats)

    @rule()
    def check(self):
        self.learn.check()

    @rule(training=st.booleans())
    def validate(self, training):
        self.learn.validate(self.learn.data.train_dl if training else None)

    @rule(part=st.sampled_from([DatasetType.Train, DatasetType.Valid]), with_loss=st.booleans())
    def get_preds(self, part, with_loss):
        self.learn.get_preds(part, with_loss=with_loss)

    @rule()
    def look(self):
        self.learn.predict(torch.zeros(4))
        self.learn.data.one_batch()
        self.learn.summary()
        self.learn.interpret()

    @rule()
    def save_and_load(self):
        file = io.BytesIO()
        self.learn.save(file)
        file.seek(0)
        self.learn.load(file)

    @rule()
    def copy(self):
        """Train a copy, which is no part of this learner."""
        states = self.global_states()
        copy.deepcopy(self.learn).fit(1, 1e-2)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def test_training_after_anything_equals_training_alone():
    run_state_machine_as_test(Machine, settings=settings(deadline=None, max_examples=5, stateful_step_count=8))


@pytest.mark.slow
def test_training_after_anything_equals_training_alone_in_many_orders():
    run_state_machine_as_test(Machine, settings=settings(deadline=None, max_examples=300, stateful_step_count=20))
