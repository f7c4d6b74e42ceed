"""Objects with reset, update and compute as metrics: those of torchmetrics, and others with these methods."""

from __future__ import annotations

import copy

import pytest
import torch
import torchmetrics
from conftest import FailsAt, toy_data, toy_learner

from minifast import Learner, accuracy, simple_ann
from minifast.metrics.base import columns_of


def of_two(name: str, **options):
    return getattr(torchmetrics, name)(task="multiclass", num_classes=2, **options)


def held(metric) -> dict:
    return copy.deepcopy(metric.metric_state)


class Largest:
    """The largest output, by an object of one's own."""

    def __init__(self):
        self.heard = []

    def reset(self):
        self.heard.append("reset")
        self.value = torch.tensor(-torch.inf)

    def update(self, output, target):
        self.heard.append("update")
        self.value = torch.maximum(self.value, output.max())

    def compute(self):
        return self.value


@pytest.mark.parametrize("n", [1, 20, 21, 45])
def test_values_are_those_of_all_predictions_at_once_and_agree_everywhere(n):
    metrics = [of_two("Accuracy", average="micro"), of_two("F1Score", average="macro"), of_two("AUROC"), accuracy]
    learn = toy_learner(60, metrics=metrics)
    learn.data.valid_dl = toy_data(n).valid_dl
    if n == 1:
        learn.metrics = metrics = [metrics[0], accuracy]  # the others warn of one class
    learn.fit(2)
    outputs, targets = learn.get_preds(activ=lambda output: output)
    wanted = [copy.deepcopy(metric)(outputs, targets).item() for metric in metrics[:-1]]
    assert learn.recorder.metrics[-1][:-1] == pytest.approx(wanted, abs=1e-6)
    assert learn.recorder.metrics[-1][0] == pytest.approx(learn.recorder.metrics[-1][-1])  # accuracy
    assert learn.validate()[1:] == learn.recorder.metrics[-1] == learn.recorder.rows[-1][3:-1]
    assert all(type(value) is float for value in learn.recorder.metrics[-1])


def test_columns_are_named_in_snake_case_or_by_name():
    named = of_two("Recall")
    named.name = "found"
    collection = torchmetrics.MetricCollection([of_two("Precision"), of_two("Recall")])
    chosen = torchmetrics.MetricCollection({"P": of_two("Precision"), "r 1": of_two("Recall")})
    assert columns_of([of_two("F1Score"), named]) == ["multiclass_f1_score", "found"]
    assert columns_of([collection, accuracy]) == ["multiclass_precision", "multiclass_recall", "accuracy"]
    assert columns_of([chosen]) == ["P", "r 1"]


def test_a_collection_gives_a_column_each(capsys):
    collection = torchmetrics.MetricCollection(
        {"p": of_two("Precision", average="macro"), "r": of_two("Recall", average="macro")}, prefix="all_"
    )
    learn = toy_learner(50, metrics=[collection, accuracy], silent=False)
    learn.fit(1)
    outputs, targets = learn.get_preds()
    wanted = copy.deepcopy(collection)(outputs, targets)
    assert learn.recorder.metrics_names == [*wanted, "accuracy"]
    assert learn.recorder.metrics[0][:-1] == pytest.approx([value.item() for value in wanted.values()])
    assert capsys.readouterr().out.split()[3:6] == [*wanted, "accuracy"]


def test_a_collection_may_stand_alone():
    learn = toy_learner(metrics=torchmetrics.MetricCollection([of_two("Precision"), of_two("Recall")]))
    learn.fit(1)
    assert len(learn.recorder.metrics[0]) == 2


def test_several_values_have_a_column_each_and_a_matrix_one():
    each = of_two("Precision", average="none")
    labelled = torchmetrics.ClasswiseWrapper(of_two("Recall", average="none"), labels=["cat", "dog"])
    learn = toy_learner(metrics=[each, of_two("ConfusionMatrix"), labelled])
    learn.fit(1)
    ((_, _, matrix, _, _),) = learn.recorder.metrics
    assert [sum(row) for row in matrix] == [30, 30]
    assert learn.recorder.metrics_names == [
        *("multiclass_precision_0", "multiclass_precision_1", "multiclass_confusion_matrix"),
        *("classwise_wrapper_multiclassrecall_cat", "classwise_wrapper_multiclassrecall_dog"),
    ]
    assert learn.validate()[1:] == learn.recorder.metrics[-1]


def test_nothing_is_left_in_a_metric_after_fit_or_validate():
    metric = of_two("AUROC")
    empty = held(metric)
    learn = toy_learner(metrics=[metric])
    learn.fit(1)
    assert held(metric) == empty
    learn.validate()
    assert held(metric) == empty


def test_a_finder_run_leaves_a_metric_alone():
    metric = of_two("Accuracy")
    learn = toy_learner(metrics=[metric])
    metric.update(torch.eye(2), torch.tensor([0, 0]))
    before = held(metric)
    learn.lr_find(num_it=5)
    assert metric.update_count == 1
    assert all(torch.equal(held(metric)[name], before[name]) for name in before)


def test_what_an_interrupted_validation_left_does_not_count():
    metric = of_two("Accuracy", average="micro")
    learn = toy_learner(metrics=[metric])
    metric.update(torch.eye(2), torch.tensor([1, 1]))
    assert learn.validate()[1] == pytest.approx(learn.validate(metrics=[accuracy])[1])


def test_a_run_that_is_killed_and_goes_on_measures_the_same(tmp_path):
    def learner():
        return toy_learner(50, path=tmp_path, metrics=[of_two("AUROC"), of_two("F1Score", average="macro")])

    whole = learner()
    whole.fit(3)
    with pytest.raises(OSError, match="gone"):
        learner().fit(3, checkpoint="run", every=1, callbacks=FailsAt(5))
    again = learner()
    again.fit(3, checkpoint="run", every=1, callbacks=FailsAt(None))
    assert again.recorder.metrics == whole.recorder.metrics


def test_an_object_with_the_three_methods_is_enough():
    largest = Largest()
    learn = toy_learner(metrics=[largest])
    learn.fit(1)
    outputs, _ = learn.get_preds(activ=lambda output: output)
    assert learn.recorder.metrics_names == ["largest"]
    assert learn.recorder.metrics[0] == pytest.approx([outputs.max().item()])
    assert largest.heard == ["reset", "update", "update", "update", "reset"]


def test_no_validation_asks_nothing_of_it():
    largest = Largest()
    learn = toy_learner(metrics=[largest, of_two("Accuracy")])
    learn.data.valid_dl = None
    learn.fit(1)
    assert largest.heard == []
    assert learn.recorder.metrics == []


@pytest.mark.parametrize("metric", [torchmetrics.MeanSquaredError, Largest, torch.nn.L1Loss])
def test_a_class_is_refused_when_the_learner_is_made(metric):
    with pytest.raises(TypeError, match=rf"the class {metric.__name__}; give an instance of it: {metric.__name__}\(\)"):
        Learner(toy_data(), simple_ann(10, 2), metrics=[metric])


def test_an_error_of_a_metric_names_the_metric_before_the_first_step():
    learn = toy_learner(metrics=[torchmetrics.Accuracy(task="multiclass", num_classes=5)])
    with pytest.raises(ValueError, match=r"metric multiclass_accuracy fails.*number of classes"):
        learn.fit(1)
    assert learn.model[1].weight.grad is None
    assert not learn.recorder.lrs
