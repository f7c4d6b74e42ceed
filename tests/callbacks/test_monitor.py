"""Callbacks that monitor a value: when they act, which errors they raise, and resumed runs."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from conftest import FailsAt, slow, toy_data, toy_learner

from minifast import (
    Callback,
    CallbackError,
    DataBunch,
    DataError,
    EarlyStoppingCallback,
    GeneralScheduler,
    Learner,
    LearningRateScheduler,
    ReduceLROnPlateauCallback,
    SaveModelCallback,
    TrackerCallback,
    TrainingPhase,
    accuracy,
    simple_ann,
)

NAN = math.nan


class Gives(Callback):
    """A metric that has the values given, one an epoch; None where there is none."""

    def __init__(self, *values, name="score"):
        self.values = list(values)
        self.name = name

    def on_epoch_end(self, epoch, last_metrics):
        return {"last_metrics": [*last_metrics, self.values[epoch]]}


def fitted(callback: Callback, *values, lr=1e-2, name="score", **kwargs) -> Learner:
    learn = toy_learner(metrics=[Gives(*values, name=name)], callbacks=[callback], **kwargs)
    learn.fit(len(values), lr)
    return learn


def epochs(learn: Learner) -> int:
    return len(learn.recorder.rows)


# --- what is better


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("valid_loss", True),
        ("error_rate", True),
        ("root_mean_squared_error", True),
        ("cross_entropy", True),
        ("exp_rmspe", True),
        ("MSE", True),
        ("accuracy", False),
        ("auroc", False),
        ("semsecond", False),
    ],
)
def test_auto_knows_by_the_name_which_is_better(name, lower):
    assert TrackerCallback(monitor=name).operator(1, 2) is lower
    assert TrackerCallback(monitor=name, mode="max").operator(1, 2) is False
    assert TrackerCallback(monitor=name, mode="min").operator(1, 2) is True


def test_a_tracker_keeps_the_best_and_its_epoch():
    learn = fitted(TrackerCallback(monitor="score"), 0.1, 0.5, 0.5, 0.2)
    tracker = learn.tracker_callback
    assert (tracker.best, tracker.best_epoch, tracker.wait) == (0.5, 1, 2)
    learn.metrics[0].values = [0.3]
    learn.fit(1)
    assert (tracker.best, tracker.best_epoch, tracker.wait) == (0.3, 0, 0)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_no_improvement_and_a_missing_value_counts_for_nothing(mode):
    learn = fitted(TrackerCallback(monitor="score", mode=mode), NAN, None, 0.5, NAN, None, NAN)
    tracker = learn.tracker_callback
    assert (tracker.best, tracker.best_epoch, tracker.wait) == (0.5, 2, 2)
    nothing = fitted(TrackerCallback(monitor="score", mode=mode), NAN, NAN).tracker_callback
    assert (nothing.best_epoch, nothing.wait) == (None, 2)


@pytest.mark.parametrize("monitor", ["train_loss", "valid_loss", "accuracy"])
def test_every_value_of_the_table_can_be_watched(monitor):
    learn = toy_learner(callback_fns=partial(TrackerCallback, monitor=monitor))
    learn.fit(3, 1e-2)
    column = [row[learn.recorder.names.index(monitor)] for row in learn.recorder.rows]
    assert learn.tracker_callback.best == (max if monitor == "accuracy" else min)(column)


def test_a_column_that_a_callback_adds_can_be_watched_without_validation():
    class Adds(Callback):
        _order = -20

        def __init__(self, learn):
            self.learn = learn

        def on_train_begin(self):
            self.learn.recorder.add_metric_names(["norm"])

        def on_epoch_end(self, last_metrics, epoch):
            return {"last_metrics": [*last_metrics, float(epoch)]}

    torch.manual_seed(0)
    data = DataBunch(toy_data().train_dl, device="cpu")
    learn = Learner(data, simple_ann(10, 2), loss_func=torch.nn.CrossEntropyLoss(), silent=True)
    learn.callback_fns = [Adds, partial(TrackerCallback, monitor="norm")]
    learn.fit(3)
    assert learn.tracker_callback.best_epoch == 2


# --- what is refused


def test_an_unknown_value_is_refused_before_training_with_those_that_exist():
    learn = toy_learner(callbacks=[EarlyStoppingCallback(monitor="acuracy")])
    with pytest.raises(
        ValueError, match=r"monitors acuracy, .* it has train_loss, valid_loss, accuracy\. Did you mean accuracy\?"
    ):
        learn.fit(1)
    assert learn.recorder.lrs == []


@pytest.mark.parametrize("monitor", ["valid_loss", "accuracy"])
def test_a_value_that_needs_validation_is_refused_without_it(monitor):
    without = DataBunch(toy_data().train_dl, device="cpu")
    options = {"loss_func": torch.nn.CrossEntropyLoss(), "metrics": [accuracy], "silent": True}
    learn = Learner(without, simple_ann(10, 2), **options)
    with pytest.raises(DataError, match=f"SaveModelCallback monitors {monitor}, but this fit is not validated; give"):
        learn.fit(1, callbacks=SaveModelCallback(monitor=monitor))
    assert learn.recorder.lrs == []
    with pytest.raises(ValueError, match="it has train_loss"):
        learn.fit(1, callbacks=SaveModelCallback(monitor="other"))


def test_a_fit_that_skips_validation_is_refused_too():
    class Skips(Callback):
        def on_train_begin(self):
            return {"skip_validate": True}

    with pytest.raises(DataError, match="not validated"):
        toy_learner(callbacks=[Skips(), TrackerCallback()]).fit(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: TrackerCallback("accuracy"),
            "`learn` must be a Learner or None, got 'accuracy'; write monitor='accuracy'",
        ),
        (lambda: TrackerCallback(mode="less"), "`mode` must be one of 'auto', 'min', 'max', got 'less'"),
        (lambda: EarlyStoppingCallback(patience=1.5), r"`patience` must be an integer, got 1\.5 of type float"),
        (lambda: EarlyStoppingCallback(min_delta=-1), "`min_delta` must be at least 0, got -1"),
        (lambda: SaveModelCallback(every="batch"), "`every` must be one of 'improvement', 'epoch', got 'batch'"),
        (lambda: ReduceLROnPlateauCallback(factor=1), "`factor` must be lower than 1, got 1"),
        (lambda: ReduceLROnPlateauCallback(min_lr=-1), "`min_lr` must be at least 0, got -1"),
    ],
)
def test_what_means_nothing_is_refused_at_once(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_value_that_is_no_single_number_is_refused():
    with pytest.raises(TypeError, match=r"TrackerCallback can monitor a single number only, but score is"):
        fitted(TrackerCallback(monitor="score"), torch.zeros(2))


# --- EarlyStopping


@pytest.mark.parametrize(("patience", "done"), [(0, 3), (1, 3), (2, 4), (3, 5), (6, 7)])
def test_it_stops_after_patience_epochs_without_an_improvement(patience, done):
    learn = fitted(EarlyStoppingCallback(monitor="score", patience=patience), 0.1, 0.2, 0.2, 0.1, 0.0, 0.0, 0.0)
    assert epochs(learn) == done


def test_the_wait_begins_anew_after_an_improvement_of_min_delta():
    stop = EarlyStoppingCallback(monitor="score", min_delta=0.1, patience=2)
    assert epochs(fitted(stop, 0.5, 0.59, 0.7, 0.75, 0.79, 1.0)) == 5
    down = EarlyStoppingCallback(monitor="score", mode="min", min_delta=0.1, patience=2)
    assert epochs(fitted(down, 0.7, 0.61, 0.5, 0.45, 0.41, 0.0)) == 5


def test_it_says_why_it_stopped(capsys):
    fitted(EarlyStoppingCallback(monitor="score"), 0.25, 0.125, silent=False)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Stopped after epoch 1: score did not improve on 0.25 of epoch 0 for 1 epoch."


# --- SaveModel


class Weights(Callback):
    """Notes the weights at the end of each epoch."""

    def on_train_begin(self):
        self.seen = []

    def on_epoch_end(self):
        self.seen.append(next(self.model.parameters()).detach().clone())


def noting(learn: Learner) -> Weights:
    weights = Weights()
    weights.model = learn.model
    return weights


def weight(learn: Learner) -> torch.Tensor:
    return next(learn.model.parameters())


def test_the_best_is_saved_and_loaded_when_the_fit_ends(tmp_path, capsys):
    learn = toy_learner(path=tmp_path, metrics=[Gives(0.1, 0.9, 0.5)], silent=False)
    weights = noting(learn)
    learn.fit(3, 1e-2, callbacks=[weights, SaveModelCallback(monitor="score")])
    assert torch.equal(weight(learn), weights.seen[1])
    assert not torch.equal(weights.seen[1], weights.seen[2])
    assert capsys.readouterr().out.splitlines()[-1] == "Loaded bestmodel, the model of epoch 1: score 0.9."
    other = toy_learner(path=tmp_path).load("bestmodel")
    assert torch.equal(weight(other), weights.seen[1])
    assert other.opt.opt.state_dict()["state"][0]["step"] == 6


def test_after_one_cycle_the_rate_is_put_back_though_the_best_has_another(tmp_path):
    learn = toy_learner(path=tmp_path, metrics=[Gives(0.9, 0.1, 0.1)])
    learn.fit_one_cycle(3, 1e-2, callbacks=SaveModelCallback(monitor="score"))
    assert (learn.opt.lr, learn.opt.mom) == (1e-2, 0.9)


def test_nothing_is_loaded_where_nothing_was_better(tmp_path):
    learn = toy_learner(path=tmp_path, metrics=[Gives(NAN, NAN)])
    learn.save("bestmodel")
    weights = noting(learn)
    with pytest.warns(UserWarning, match="SaveModelCallback saved no model: score was NaN in all epochs"):
        learn.fit(2, 1e-2, callbacks=[weights, SaveModelCallback(monitor="score")])
    assert torch.equal(weight(learn), weights.seen[-1])


def test_each_epoch_is_saved_without_any_value_to_watch(tmp_path):
    data = DataBunch(toy_data().train_dl, device="cpu", path=tmp_path)
    learn = Learner(data, simple_ann(10, 2, 8), loss_func=torch.nn.CrossEntropyLoss(), silent=True)
    weights = noting(learn)
    learn.fit(2, 1e-2, callbacks=[weights, SaveModelCallback(every="epoch", name="model")])
    assert sorted(file.name for file in (tmp_path / "models").iterdir()) == ["model_0.pth", "model_1.pth"]
    assert torch.equal(weight(learn), weights.seen[1])
    learn.load("model_0")
    assert torch.equal(weight(learn), weights.seen[0])


def test_a_name_that_leads_out_is_refused_before_training(tmp_path):
    learn = toy_learner(path=tmp_path)
    with pytest.raises(ValueError, match="is outside of"):
        learn.fit(1, callbacks=SaveModelCallback(name="../x"))
    assert learn.recorder.lrs == []


@pytest.mark.parametrize(("error", "loaded"), [(KeyboardInterrupt, True), (RuntimeError, False)])
def test_the_best_is_loaded_after_a_ctrl_c_and_not_after_an_error(tmp_path, error, loaded):
    class Fails(Callback):
        def on_batch_begin(self, iteration):
            if iteration == 8:
                raise error

    learn = toy_learner(path=tmp_path, metrics=[Gives(0.9, 0.1, 0.1)])
    weights = noting(learn)
    with pytest.raises(error):
        learn.fit(3, 1e-2, callbacks=[weights, Fails(), SaveModelCallback(monitor="score")])
    assert torch.equal(weight(learn), weights.seen[0]) is loaded


# --- ReduceLROnPlateau


def test_the_rate_is_lowered_after_patience_epochs_each_time():
    reduce = ReduceLROnPlateauCallback(monitor="score", patience=2, factor=0.5, min_lr=1e-4)
    learn = fitted(reduce, 0.5, 0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, lr=8e-3)
    assert learn.recorder.lrs[::3] == [8e-3, 8e-3, 8e-3, 4e-3, 4e-3, 4e-3, 4e-3, 2e-3]
    assert learn.opt.lr == 8e-3  # put back


def test_without_patience_each_epoch_that_is_no_better_lowers_it():
    reduce = ReduceLROnPlateauCallback(monitor="score", factor=0.5, min_lr=0)
    assert fitted(reduce, 0.5, 0.5, 0.5, 0.6, 0.7, lr=8e-3).recorder.lrs[::3] == [8e-3, 8e-3, 4e-3, 2e-3, 2e-3]


def test_min_lr_is_a_floor():
    learn = fitted(ReduceLROnPlateauCallback(monitor="score"), 0.5, 0.5, 0.5, 0.5, lr=3e-3)
    assert learn.recorder.lrs[::3] == [3e-3, 3e-3, 1e-3, 1e-3]


def test_layer_groups_keep_their_proportions():
    seen = []

    class Notes(Callback):
        def on_train_end(self):
            seen.append(learn.opt.read("lr"))

    learn = toy_learner(metrics=[Gives(0.5, 0.5, 0.5)])
    learn.layer_groups = [learn.model[:2], learn.model[2:]]
    learn.fit(3, slice(1e-4, 1e-2), callbacks=[ReduceLROnPlateauCallback(monitor="score", min_lr=2e-3), Notes()])
    assert seen == [[pytest.approx(2e-5), 2e-3]]


def test_it_says_what_it_did(capsys):
    fitted(ReduceLROnPlateauCallback(monitor="score"), 0.5, 0.5, 0.5, lr=3e-3, silent=False)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Learning")]
    assert said == ["Learning rate 0.001 after epoch 1: score did not improve on 0.5 of epoch 0 for 1 epoch."]


def test_a_rate_that_could_never_be_lowered_is_refused():
    with pytest.raises(ValueError, match=r"The learning rate is 0\.001 and `min_lr` is 0\.001, so .* never lower it"):
        toy_learner().fit(1, 1e-3, callbacks=ReduceLROnPlateauCallback())


@pytest.mark.parametrize(
    ("other", "fit"),
    [
        ("OneCycleScheduler", lambda learn, reduce: learn.fit_one_cycle(1, 1e-2, callbacks=reduce)),
        ("ScheduledParameters", lambda learn, reduce: learn.fit_schedule(1, 1e-2, callbacks=reduce)),
        (
            "LearningRateScheduler",
            lambda learn, reduce: learn.fit(1, callbacks=[reduce, LearningRateScheduler(lambda epoch: 1e-2)]),
        ),
        (
            "ReduceLROnPlateauCallback",
            lambda learn, reduce: learn.fit(1, callbacks=[reduce, ReduceLROnPlateauCallback(monitor="accuracy")]),
        ),
    ],
)
def test_beside_a_schedule_of_the_rate_it_is_refused_and_nothing_changes(other, fit):
    learn = toy_learner()
    with pytest.raises(ValueError, match=f"ReduceLROnPlateauCallback and {other} both set lr; leave one of them out"):
        fit(learn, ReduceLROnPlateauCallback())
    assert learn.history == []
    assert learn.opt is None


def test_beside_a_schedule_of_something_else_it_is_not():
    learn = toy_learner(metrics=[Gives(0.5, 0.5)])
    phases = [TrainingPhase(6).schedule_hp("mom", (0.9, 0.8))]
    learn.fit(2, 3e-3, callbacks=[GeneralScheduler(learn, phases), ReduceLROnPlateauCallback(monitor="score")])
    assert len(learn.recorder.lrs) == 6


# --- runs that are kept, and the finder


def kept_learner(path, fails_at: int | None = None) -> Learner:
    torch.manual_seed(0)
    callbacks = [
        SaveModelCallback(monitor="score", name=f"best of {path.name}"),
        ReduceLROnPlateauCallback(patience=2, monitor="score", factor=0.5, min_lr=1e-4),
        EarlyStoppingCallback(patience=4, monitor="score"),
        FailsAt(fails_at),
    ]
    data = toy_data(shuffle=True)
    metrics = [Gives(0.3, NAN, 0.2, 0.4, 0.1, 0.1, 0.35, 0.2, 1.0)]
    return Learner(data, simple_ann(10, 2, 8), metrics=metrics, path=path, silent=True, callbacks=callbacks)


def state(learn: Learner) -> list:
    kept = [(one.best, one.best_epoch, one.wait) for one in learn.callbacks[:3]]
    lists = [learn.recorder.lrs, learn.recorder.raw_losses, [row[:-1] for row in learn.recorder.rows]]
    return [kept, repr(lists), [value.tolist() for value in learn.model.state_dict().values()]]


@pytest.mark.parametrize("fails_at", [14, *slow(1, 4, 10, 15, 22)])
def test_a_run_taken_up_again_equals_one_that_was_left_alone(tmp_path, fails_at):
    alone = kept_learner(tmp_path / "alone")
    alone.fit(9, 8e-3, checkpoint="run")
    assert epochs(alone) == 8
    assert alone.recorder.lrs[::3] == [8e-3, 8e-3, 8e-3, 4e-3, 4e-3, 4e-3, 2e-3, 2e-3]
    with pytest.raises(OSError, match="gone"):
        kept_learner(tmp_path / "again", fails_at).fit(9, 8e-3, checkpoint="run", every=2)
    again = kept_learner(tmp_path / "again")
    torch.manual_seed(99)
    again.fit(9, 8e-3, checkpoint="run", every=2)
    assert state(again) == state(alone)


def test_a_finished_run_that_is_shown_again_keeps_its_model_though_the_file_has_another(tmp_path):
    first, second = kept_learner(tmp_path), kept_learner(tmp_path)
    first.fit(9, 8e-3, checkpoint="run")
    toy_learner(path=tmp_path).save(f"best of {tmp_path.name}")
    second.fit(9, 8e-3, checkpoint="run")
    assert state(first) == state(second)


def test_the_finder_leaves_no_trace(tmp_path):
    learn = kept_learner(tmp_path)
    made = partial(EarlyStoppingCallback, monitor="nothing")
    learn.callback_fns = [made]
    before = [dict(vars(one)) for one in learn.callbacks]
    learn.lr_find(num_it=20)
    assert [dict(vars(one)) for one in learn.callbacks] == before
    assert len(learn.recorder.lrs) == 20
    assert list(tmp_path.iterdir()) == []


def test_a_subclass_in_the_manner_of_fastai_v1_works():
    class Notes(TrackerCallback):
        def on_train_begin(self, **kwargs):
            super().on_train_begin(**kwargs)
            self.values = []

        def on_epoch_end(self, epoch, **kwargs):
            current = self.get_monitor_value()
            if current is not None and self.operator(current, self.best):
                self.best = current
                self.values.append(epoch)

    class Stops(EarlyStoppingCallback):
        def on_epoch_end(self, epoch, **kwargs):
            return super().on_epoch_end(epoch, **kwargs)

    assert fitted(Notes(monitor="score"), 0.1, 0.0, 0.2).notes.values == [0, 2]
    assert epochs(fitted(Stops(monitor="score"), 0.1, 0.0, 0.2)) == 2


# --- the direction comes from the metric


class Stated:
    """A metric object that states its direction."""

    def __init__(self, higher_is_better, name="distance"):
        self.higher_is_better, self.name = higher_is_better, name

    def reset(self):
        pass

    def update(self, output, target):
        pass

    def compute(self):
        return 0.5


@pytest.mark.parametrize("name", ["distance", "some_loss", "accuracy"])
@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("mode", ["auto", "min", "max"])
def test_the_metric_states_which_direction_is_better(name, higher, mode, capsys):
    tracker = TrackerCallback(monitor=name, mode=mode)
    learn = toy_learner(metrics=[Stated(higher, name)], callbacks=[tracker], silent=False)
    learn.fit(1)
    assert tracker.lower_is_better is (not higher if mode == "auto" else mode == "min")
    assert "judging by the name" not in capsys.readouterr().out


@pytest.mark.parametrize(("name", "better", "other"), [("distance", "higher", "min"), ("my_error", "lower", "max")])
def test_a_direction_judged_by_the_name_is_printed(name, better, other, capsys):
    tracker = TrackerCallback(monitor=name)
    toy_learner(metrics=[Stated(None, name)], callbacks=[tracker], silent=False).fit(1)
    line = (
        f"TrackerCallback takes {better} values of {name} as better, judging by the name; mode='{other}' is the "
        f"opposite."
    )
    assert line in capsys.readouterr().out
    assert tracker.lower_is_better is (better == "lower")


@pytest.mark.parametrize("name", ["rmse", "root_mean_squared_error", "val_loss", "valid_loss", "train_loss"])
def test_other_names_of_a_value_are_known(name):
    from minifast import rmse

    x = torch.randn(16, 3)
    data = DataBunch([(x, x.sum(1, keepdim=True))], [(x, x.sum(1, keepdim=True))], device="cpu")
    tracker = TrackerCallback(monitor=name)
    model = torch.nn.Linear(3, 1)
    Learner(data, model, loss_func=torch.nn.MSELoss(), metrics=[rmse], callbacks=[tracker], silent=True).fit(2, 1e-3)
    assert tracker.best_epoch == 1
    assert tracker.lower_is_better


@pytest.mark.parametrize("every", ["improvement", "epoch"])
def test_a_best_model_that_cannot_be_written_is_found_before_training(tmp_path, every):
    (tmp_path / "models").write_text("a file where the folder should be")
    learn = toy_learner(path=tmp_path)
    with pytest.raises(OSError, match=r"bestmodel.*\.pth cannot be written: .*; use another folder or name"):
        learn.fit(1, callbacks=SaveModelCallback(every=every))
    assert learn.recorder.lrs == []


def test_a_resumed_run_refuses_the_other_direction(tmp_path):
    class Stops(Callback):
        armed = True

        def on_epoch_begin(self, epoch):
            if Stops.armed and epoch == 2:
                raise OSError("gone")

    def fit(mode):
        torch.manual_seed(0)
        tracker = EarlyStoppingCallback(monitor="valid_loss", mode=mode, patience=99)
        learn = toy_learner(path=tmp_path, callbacks=[tracker, Stops()])
        learn.fit(3, 1e-3, checkpoint="run")
        return learn

    with pytest.raises(OSError, match="gone"):
        fit("auto")
    Stops.armed = False
    with pytest.raises(CallbackError, match="took lower values of valid_loss as better; give the same `mode`"):
        fit("max")
    assert len(fit("min").recorder.rows) == 3
