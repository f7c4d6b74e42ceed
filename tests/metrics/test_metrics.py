"""Metrics against hand-written counts, and their mean over batches of different sizes."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from conftest import toy_data, toy_learner

from minifast import (
    AverageMetric,
    Callback,
    Learner,
    accuracy,
    accuracy_thresh,
    add_metrics,
    dice,
    error_rate,
    fbeta,
    simple_ann,
    top_k_accuracy,
)
from minifast.errors import DataError
from minifast.metrics.base import as_metric, name_of

OUTPUTS = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]])  # classes 0, 2, 1, 0


def mean_output(output, target):
    """A metric that is no share of anything, as a plain number."""
    return output.mean().item()


class Largest(Callback):
    """A metric with its own state: the largest output of the validation set."""

    def on_epoch_begin(self):
        self.value = -math.inf

    def on_batch_end(self, last_output):
        self.value = max(self.value, last_output.max().item())

    def on_epoch_end(self, last_metrics):
        return add_metrics(last_metrics, self.value)


# --- accuracy and error_rate


@pytest.mark.parametrize(
    ("targets", "right"), [([0, 2, 1, 0], 4), ([0, 2, 1, 1], 3), ([0, 0, 0, 0], 2), ([1, 0, 2, 2], 0)]
)
def test_accuracy_is_the_share_of_right_answers(targets, right):
    targets = torch.tensor(targets)
    assert accuracy(OUTPUTS, targets).item() == right / 4
    assert error_rate(OUTPUTS, targets).item() == pytest.approx(1 - right / 4)
    assert accuracy(OUTPUTS, targets[:, None]).item() == right / 4  # targets (n, 1), as fastai's users have them


def test_one_item_is_right_or_wrong():
    assert accuracy(OUTPUTS[:1], torch.tensor([0])).item() == 1
    assert accuracy(OUTPUTS[:1], torch.tensor([1])).item() == 0


def test_each_position_of_a_sequence_counts():
    outputs = OUTPUTS.view(2, 2, 3)  # 2 items of 2 positions
    assert accuracy(outputs, torch.tensor([[0, 2], [1, 1]])).item() == 0.75


def test_the_result_is_one_number_as_a_tensor():
    assert accuracy(OUTPUTS, torch.zeros(4, dtype=torch.int64)).shape == ()


# --- the other means


def test_the_target_counts_among_the_best():
    targets = torch.tensor([2, 1, 1, 0])
    found = [top_k_accuracy(OUTPUTS, targets, k).item() for k in (1, 2, 3)]
    assert found == [accuracy(OUTPUTS, targets).item(), 0.75, 1.0]
    assert top_k_accuracy(OUTPUTS.view(2, 2, 3), targets.view(2, 2), 2).item() == 0.75
    with pytest.raises(
        ValueError, match=r"`k` must be from 1 to the number of classes, 3, got 5.*partial\(top_k_accuracy, k=2\)"
    ):
        top_k_accuracy(OUTPUTS, targets)


LABELS = torch.tensor([[1, 0, 1], [0, 0, 1], [0, 0, 0]])
LOGITS = torch.tensor([[2.0, -1.0, 0.1], [-2.0, 1.0, 3.0], [-3.0, -3.0, -3.0]])


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("thresh", [0.2, 0.5, 0.9])
def test_labels_are_right_from_a_probability_on(sigmoid, thresh):
    outputs = LOGITS if sigmoid else LOGITS.sigmoid()
    found = accuracy_thresh(outputs, LABELS, thresh, sigmoid).item()
    assert found == pytest.approx(sum(map(int, ((LOGITS.sigmoid() > thresh) == LABELS.bool()).flatten())) / 9)


@pytest.mark.parametrize("beta", [1, 2])
def test_the_f_score_is_the_mean_of_the_items(beta):
    # Above 0.5 the items predict labels 0 and 2 of 0 and 2, labels 1 and 2 of 2, and none of none.
    precision, recall = 1 / 2, 1 / 1
    second = (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
    assert fbeta(LOGITS, LABELS, 0.5, beta).item() == pytest.approx((1 + second + 0) / 3)
    assert fbeta(LOGITS.sigmoid(), LABELS, 0.5, beta, sigmoid=False).item() == pytest.approx((1 + second) / 3)


def test_masks_overlap_by_item_and_empty_ones_agree():
    predicted = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]]])
    outputs = torch.nn.functional.one_hot(predicted, 2).permute(0, 3, 1, 2).float()
    actual = torch.tensor([[[1, 0], [1, 0]], [[0, 0], [0, 0]]])
    assert dice(outputs, actual).item() == pytest.approx((2 * 1 / 4 + 1) / 2)
    assert dice(outputs, actual[:, None], iou=True).item() == pytest.approx((1 / 3 + 1) / 2)


# --- the mean over a validation set


@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 45])
def test_the_mean_over_uneven_batches_equals_the_metric_of_all_predictions(n):
    learn = toy_learner(60, metrics=[accuracy, error_rate, mean_output])
    loader = toy_data(n, bs=20).valid_dl
    found = learn.validate(loader)

    x, y = (torch.cat(parts) for parts in zip(*loader, strict=True))
    with torch.no_grad():
        outputs = learn.model.eval()(x)
    wanted = [learn.loss_func(outputs, y), accuracy(outputs, y), error_rate(outputs, y), outputs.mean()]
    assert found == pytest.approx([value.item() for value in wanted], abs=1e-6)


def test_a_small_last_batch_weighs_as_little_as_it_holds():
    metric = AverageMetric(lambda output, target: output.mean())
    metric.on_epoch_begin()
    metric.on_batch_end(torch.ones(3), torch.zeros(3))
    metric.on_batch_end(torch.zeros(1), torch.zeros(1))
    assert metric.on_epoch_end([0.5])["last_metrics"] == [0.5, torch.tensor(0.75)]


def test_an_epoch_forgets_the_one_before():
    metric = AverageMetric(accuracy)
    for targets, wanted in (([1, 1, 2, 1], 0.0), ([0, 2, 1, 0], 1.0)):
        metric.on_epoch_begin()
        metric.on_batch_end(OUTPUTS, torch.tensor(targets))
        assert metric.on_epoch_end([])["last_metrics"] == [torch.tensor(wanted)]


def test_several_targets_are_spread_over_the_metrics_arguments():
    metric = AverageMetric(lambda output, first, second: (first + second).mean())
    metric.on_epoch_begin()
    metric.on_batch_end(torch.zeros(2), (torch.ones(2), torch.full((2,), 3.0)))
    assert metric.on_epoch_end([])["last_metrics"] == [torch.tensor(4.0)]


def test_the_mean_over_no_batch_is_an_error_in_words():
    with pytest.raises(DataError, match=r"no batch|empty|no items"):
        toy_learner().validate([])


def test_a_callback_as_a_metric_sets_its_value_at_the_end_of_the_epoch():
    learn = toy_learner(metrics=[accuracy, Largest()])
    learn.fit(2)
    assert [len(row) for row in learn.recorder.metrics] == [2, 2]
    assert learn.recorder.metrics_names == ["accuracy", "largest"]
    assert learn.recorder.metrics[-1] == pytest.approx(learn.validate()[1:])


def test_add_metrics_takes_one_value_or_several():
    assert add_metrics([0.5], 0.9) == {"last_metrics": [0.5, 0.9]}
    assert add_metrics([0.5], [0.9, 0.1]) == {"last_metrics": [0.5, 0.9, 0.1]}
    assert add_metrics([], 1) == {"last_metrics": [1]}


def test_add_metrics_leaves_the_list_it_got():
    before = [0.5]
    add_metrics(before, 0.9)
    assert before == [0.5]


# --- names, and what is no metric


class Named(Largest):
    name = "top"


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (accuracy, "accuracy"),
        (functools.partial(mean_output), "mean_output"),
        (AverageMetric(error_rate), "error_rate"),
        (AverageMetric(functools.partial(accuracy)), "accuracy"),
        (Largest(), "largest"),
        (Named(), "top"),
        (torch.nn.L1Loss(), "l1_loss"),
    ],
)
def test_a_metric_has_the_name_of_its_column(metric, name):
    assert name_of(metric) == name


def test_a_callback_is_taken_as_it_is_and_a_function_averaged():
    largest = Largest()
    assert as_metric(largest) is largest
    assert isinstance(as_metric(accuracy), AverageMetric)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("accuracy", r"'accuracy', which is not callable.*Did you mean accuracy\?"),
        (3, r"3, which is not callable"),
        (Largest, r"the class Largest; give an instance of it: Largest\(\)"),
    ],
)
def test_an_invalid_metric_raises_when_the_learner_is_made(metric, said):
    with pytest.raises(TypeError, match=said):
        Learner(toy_data(), simple_ann(10, 2), metrics=[metric])
