"""The columns of metrics: one name for each value, the same everywhere, and the direction of better."""

from __future__ import annotations

import csv
import functools

import pytest
import torch
import torchmetrics
from conftest import FailsAt, slow, toy_data, toy_learner
from hypothesis import given, settings
from hypothesis import strategies as st

from minifast import (
    AUROC,
    Callback,
    CSVLogger,
    EarlyStoppingCallback,
    Precision,
    Recall,
    SaveModelCallback,
    accuracy,
    accuracy_thresh,
    add_metrics,
    error_rate,
    mse,
    r2_score,
    read_history,
    rmse,
    top_k_accuracy,
)
from minifast.errors import CallbackError, DataError, MinifastError
from minifast.metrics.base import columns_of, direction_of, may_be_header


def pair(output, target):
    """A tuple of two numbers."""
    return output.mean(), 2.0


def vector(output, target):
    """A vector of three numbers."""
    return torch.stack([output.mean(), output.max(), output.min()])


def scores(output, target):
    """A dict of numbers."""
    return {"low": output.min(), "high": output.max().item()}


def valid_loss(output, target):
    """A metric with the name of another column."""
    return output.mean()


class TwoValues(Callback):
    """A metric callback with two values."""

    columns = ("first", "second")

    def on_epoch_end(self, last_metrics):
        return add_metrics(last_metrics, [1.0, 2.0])


class Undeclared(TwoValues):
    """A metric callback with two values and one name."""

    columns = ("only",)


class NoValue(Callback):
    """A callback that adds no value, among metrics."""


def torch_metric(name, **options):
    return getattr(torchmetrics, name)(task="multiclass", num_classes=2, **options)


MAKERS = {
    "function": lambda: accuracy,
    "partial": lambda: functools.partial(top_k_accuracy, k=1),
    "other partial": lambda: functools.partial(top_k_accuracy, k=2),
    "lambda": lambda: lambda output, target: output.mean(),
    "number": lambda: lambda output, target: 3,
    "pair": lambda: pair,
    "vector": lambda: vector,
    "dict": lambda: scores,
    "reserved": lambda: valid_loss,
    "score": lambda: Precision("macro"),
    "scores": lambda: Recall(None),
    "callback": TwoValues,
    "torchmetrics": lambda: torch_metric("Accuracy"),
    "classwise": lambda: torch_metric("Recall", average="none"),
    "labelled": lambda: torchmetrics.ClasswiseWrapper(torch_metric("Recall", average="none"), labels=["a", "b"]),
    "matrix": lambda: torch_metric("ConfusionMatrix"),
    "collection": lambda: torchmetrics.MetricCollection([torch_metric("Precision"), torch_metric("Recall")]),
}


@pytest.mark.parametrize("n_examples", [8, *slow(25)])
def test_each_value_has_one_column_with_a_name_of_its_own(n_examples, tmp_path_factory):
    @settings(deadline=None, max_examples=n_examples)
    @given(names=st.lists(st.sampled_from(list(MAKERS)), min_size=1, max_size=6), skipped=st.booleans())
    def check(names, skipped):
        path = tmp_path_factory.mktemp("run")
        learn = toy_learner(40, metrics=[MAKERS[name]() for name in names], path=path)

        class SkipsFirst(Callback):
            def on_epoch_begin(self, epoch):
                return {"skip_validate": skipped and epoch == 0}

        learn.fit(2, callbacks=[SkipsFirst(), CSVLogger()])
        recorder = learn.recorder
        assert len(set(recorder.names)) == len(recorder.names)
        assert all(len(row) == len(recorder.names) for row in recorder.rows)
        assert len(recorder.metrics[-1]) == len(recorder.metrics_names)
        assert recorder.rows[-1][3:-1] == recorder.metrics[-1] == learn.validate()[1:]
        assert all(isinstance(value, (int, float, list)) for value in recorder.metrics[-1])
        with (path / "history.csv").open() as file:
            header, *rows = csv.reader(file)
        assert header == recorder.names
        assert [len(row) for row in rows] == [len(header)] * 2
        learn.history.to_json(path / "history.json")
        (loaded,) = read_history(path / "history.json")
        assert (loaded.names, loaded.metrics) == (recorder.names, recorder.metrics)
        learn.history.to_csv(path / "all.csv")
        with (path / "all.csv").open() as file:
            assert next(csv.reader(file)) == ["run", "method", *recorder.names]

    check()


def test_names_tell_partials_apart_by_their_arguments_and_others_by_a_number():
    both = [functools.partial(top_k_accuracy, k=1), functools.partial(top_k_accuracy, k=2)]
    assert columns_of(both) == ["top_k_accuracy_k_1", "top_k_accuracy_k_2"]
    assert columns_of(both[:1]) == ["top_k_accuracy"]
    assert columns_of([Precision(), Precision("macro"), valid_loss]) == ["precision", "precision_2", "valid_loss_2"]
    assert columns_of([accuracy_thresh, functools.partial(accuracy_thresh, thresh=0.3)]) == [
        *("accuracy_thresh", "accuracy_thresh_thresh_0.3"),
    ]


def test_values_stand_under_their_names():
    learn = toy_learner(50, metrics=[pair, accuracy, scores, error_rate])
    learn.fit(1)
    values = dict(zip(learn.recorder.metrics_names, learn.recorder.metrics[0], strict=True))
    outputs, _ = learn.get_preds(activ=lambda output: output)
    assert list(values) == ["pair_0", "pair_1", "accuracy", "scores_low", "scores_high", "error_rate"]
    assert values["pair_1"] == 2
    assert values["pair_0"] == pytest.approx(outputs.mean().item(), abs=1e-6)
    assert values["accuracy"] + values["error_rate"] == pytest.approx(1)
    assert outputs.min() <= values["scores_low"] <= values["scores_high"] <= outputs.max()


def test_one_of_several_values_can_be_monitored(tmp_path):
    learn = toy_learner(metrics=[Recall(None)], path=tmp_path)
    stop = EarlyStoppingCallback(monitor="recall_1", mode="max", patience=50)
    learn.fit(2, callbacks=[stop, SaveModelCallback(monitor="recall_0", mode="max")])
    assert stop.best == max(values[1] for values in learn.recorder.metrics)
    with pytest.raises(ValueError, match="recall_7"):
        learn.fit(1, callbacks=EarlyStoppingCallback(monitor="recall_7", mode="max"))


def test_a_resumed_run_has_the_columns_of_the_whole_run(tmp_path, capsys):
    def learner(silent=True):
        return toy_learner(60, metrics=[scores, accuracy], path=tmp_path, silent=silent)

    whole = learner()
    whole.fit(3)
    with pytest.raises(OSError, match="gone"):
        learner().fit(3, checkpoint="run", every=1, callbacks=[FailsAt(5), CSVLogger(append=True)])
    again = learner(silent=False)
    again.fit(3, checkpoint="run", every=1, callbacks=[FailsAt(None), CSVLogger(append=True)])
    assert again.recorder.metrics_names == whole.recorder.metrics_names == ["scores_low", "scores_high", "accuracy"]
    assert again.recorder.metrics == whole.recorder.metrics
    with (tmp_path / "history.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == again.recorder.names
    assert len(rows) == 3


def test_rows_with_the_same_expanded_columns_are_appended_to(tmp_path):
    toy_learner(metrics=[scores], path=tmp_path).fit(1, callbacks=CSVLogger())
    toy_learner(metrics=[scores], path=tmp_path).fit(1, callbacks=CSVLogger(append=True))
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    with pytest.raises(DataError, match="has the columns"):
        toy_learner(metrics=[accuracy], path=tmp_path).fit(1, callbacks=CSVLogger(append=True))
    assert may_be_header(["a", "b_0", "b_1"], ["a", "b"])
    assert not may_be_header(["a", "c"], ["a", "b"])


def test_columns_of_a_callback_stay_under_their_names_without_validation():
    class Adds(Callback):
        _order = -20

        def __init__(self, learn):
            self.learn = learn

        def on_train_begin(self):
            self.learn.recorder.add_metric_names(["added"])

        def on_epoch_begin(self, epoch):
            return {"skip_validate": epoch == 0}

        def on_epoch_end(self, last_metrics):
            return add_metrics(last_metrics, 7.0)

    learn = toy_learner(metrics=[accuracy, pair])
    learn.fit(2, callbacks=Adds(learn))
    first, second = [dict(zip(learn.recorder.names, row, strict=True)) for row in learn.recorder.rows]
    assert (first["accuracy"], first["pair_1"], first["added"]) == (None, None, 7.0)
    assert (second["pair_1"], second["added"]) == (2.0, 7.0)


@pytest.mark.parametrize("metrics", [[Undeclared()], [accuracy, Undeclared()], [NoValue(), accuracy]])
def test_another_number_of_values_than_columns_raises_an_error(metrics):
    learn = toy_learner(metrics=metrics)
    with pytest.raises(CallbackError, match=r"returned \d values for the columns .*`columns`"):
        learn.fit(1)
    with pytest.raises(CallbackError, match=r"returned \d values for the columns .*`columns`"):
        learn.validate()


def test_an_object_that_accumulates_is_given_once():
    score = torchmetrics.Accuracy(task="multiclass", num_classes=2)
    precision = Precision()
    for metrics in (
        [score, score],
        [score, torchmetrics.MetricCollection([score])],
        [torchmetrics.wrappers.MinMaxMetric(score), score],
        [precision, accuracy, precision],
    ):
        for call in (lambda learn: learn.validate(), lambda learn: learn.fit(1)):
            with pytest.raises(ValueError, match="is in `metrics` twice as one object"):
                call(toy_learner(metrics=metrics))
    twice = toy_learner(metrics=[score, score.clone(), accuracy, accuracy]).validate()[1:]
    assert twice == pytest.approx([twice[0]] * 4)


def test_keys_that_change_raise_an_error():
    def counted(output, target):
        return {f"of {len(target)}": 1.0}

    with pytest.raises(DataError, match=r"the keys \['of 10'\] for this batch and \['of 20'\] before"):
        toy_learner(50, metrics=counted).validate()


def test_values_that_change_raise_an_error():
    def per_sample(output, target):
        return output[:, 0]

    with pytest.raises(DataError, match="per_sample returned 10 values for this batch and 20 before"):
        toy_learner(50, metrics=[per_sample]).fit(1)
    with pytest.raises(DataError, match=r"lambda.* returned a value of shape \(20, 2\)"):
        toy_learner(metrics=[lambda output, target: output]).fit(1)
    count = iter("abcdefgh")
    changing = toy_learner(20, metrics=[lambda output, target: {next(count): 1.0}])
    with pytest.raises(MinifastError, match="return the same values in each epoch"):
        changing.fit(2)


@pytest.mark.parametrize(
    ("metric", "name", "direction"),
    [
        (accuracy, "accuracy", "max"),
        (functools.partial(error_rate), "error_rate", "min"),
        (mse, "mean_squared_error", "min"),
        (rmse, "root_mean_squared_error", "min"),
        (r2_score, "r2_score", "max"),
        (AUROC(), "auroc", "max"),
        (Precision(None), "precision_1", "max"),
        (torch.nn.L1Loss(), "l1_loss", "min"),
        (torchmetrics.HammingDistance(task="multiclass", num_classes=2), "multiclass_hamming_distance", "min"),
        (
            torchmetrics.MetricCollection({"d": torchmetrics.MeanSquaredError(), "e": torchmetrics.R2Score()}),
            "d",
            "min",
        ),
        (torchmetrics.ClasswiseWrapper(torch_metric("Recall", average="none")), "classwise_wrapper_0", "max"),
        (scores, "scores_low", None),
        (accuracy, "valid_loss", None),
    ],
)
def test_a_metric_states_which_direction_is_better(metric, name, direction):
    assert direction_of(name, [metric]) == direction


def test_other_data_is_moved_and_normalised_as_the_own():
    own = toy_learner(metrics=[accuracy])
    own.data.normalize()
    own.fit(1)
    items = own.data.valid_dl.dl.dataset
    loader = torch.utils.data.DataLoader(items, 7)
    wanted = pytest.approx(own.validate())
    assert own.validate(loader) == wanted
    assert own.validate([tuple(batch) for batch in loader]) == wanted
    assert own.validate(own.data.valid_dl) == wanted
    for wrong in (own.data, 3):
        with pytest.raises(DataError, match="`dl` must be a loader of batches"):
            own.validate(wrong)
    without = toy_learner(metrics=[accuracy])
    without.data = toy_data()
    without.data.valid_dl = None
    without.data.normalize()
    assert without.validate(loader)[0] == pytest.approx(without.validate(without.data.train_dl)[0])
