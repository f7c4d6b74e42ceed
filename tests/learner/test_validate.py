"""Validating and predicting between and during fits do not change the training."""

from __future__ import annotations

import pytest
import torch
from conftest import toy_learner

from minifast import (
    AccumulateScheduler,
    ActivationStats,
    Callback,
    CSVLogger,
    EarlyStoppingCallback,
    EMACallback,
    LearnerCallback,
    MixedPrecision,
    MixUpCallback,
    SaveModelCallback,
    StopAfterNBatches,
    TerminateOnNaNCallback,
)

EVERY = [
    *(AccumulateScheduler, ActivationStats, CSVLogger, EarlyStoppingCallback, EMACallback, MixUpCallback),
    *(MixedPrecision, SaveModelCallback, StopAfterNBatches, TerminateOnNaNCallback),
]


def looks(learn):
    return [learn.validate, learn.get_preds]


@pytest.mark.parametrize("kind", EVERY)
def test_a_learner_with_any_callback_predicts_the_same_before_a_fit(kind, tmp_path) -> None:
    alone, learn = toy_learner(), toy_learner(path=tmp_path / "here", callbacks=kind())
    assert learn.validate() == alone.validate()
    assert torch.equal(learn.get_preds()[0], alone.get_preds()[0])
    assert learn.precision is None
    assert not any(module._forward_hooks for module in learn.model.modules())
    assert not (tmp_path / "here").exists()


def test_the_best_model_and_the_records_stay_as_the_fit_left_them(tmp_path) -> None:
    save, stats = SaveModelCallback(), ActivationStats()
    learn = toy_learner(path=tmp_path, callbacks=[save, stats])
    learn.fit(2, 1e-2)
    best, kept = save.best, (tmp_path / "models" / "bestmodel.pth").read_bytes()
    for look in looks(learn):
        look()
    assert (save.best, stats.stats.shape[2]) == (best, 6)
    assert (tmp_path / "models" / "bestmodel.pth").read_bytes() == kept


@pytest.mark.parametrize("look", [0, 1])
@pytest.mark.parametrize("callback", [AccumulateScheduler(n_step=2), EMACallback(decay=0.5), MixedPrecision(), None])
def test_predicting_in_the_middle_of_an_epoch_changes_nothing(callback, look, tmp_path) -> None:
    class Looks(LearnerCallback):
        def on_batch_end(self, train, num_batch):
            if train and num_batch == 0:
                looks(self.learn)[look]()

    ends = []
    for more in ([], [Looks()]):
        learn = toy_learner(path=tmp_path, callbacks=callback)
        learn.fit(2, 1e-2, callbacks=more)
        ends.append([parameter.detach().clone() for parameter in learn.model.parameters()])
    assert all(map(torch.equal, *ends))


def test_a_callback_without_a_learner_is_given_the_one_that_validates() -> None:
    class Doubles(LearnerCallback):
        def on_batch_begin(self, last_input):
            seen.append(self.learn)
            return {"last_input": 2 * last_input}

    seen: list[object] = []
    learn = toy_learner(callbacks=Doubles())
    for look in looks(learn):
        look()
        assert seen.pop() is learn


def test_a_metric_gets_all_events_and_a_callback_those_of_batches() -> None:
    heard: list[str] = []

    class Hears(Callback):
        def on_train_begin(self):
            heard.append("train")

        def on_epoch_end(self):
            heard.append("epoch")

        def on_batch_end(self, epoch):
            heard.append("batch")

    toy_learner(callbacks=Hears(), metrics=Hears()).validate()
    assert heard == ["train", *["batch"] * 6, "epoch"]
