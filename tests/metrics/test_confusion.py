"""Classification metrics over the whole validation set, against torchmetrics and hand-written counts."""

from __future__ import annotations

import pytest
import torch
import torchmetrics.functional as oracle
from conftest import FailsAt, toy_learner
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    AUROC,
    ConfusionMatrix,
    DataBunch,
    FBeta,
    KappaScore,
    Learner,
    MatthewsCorreff,
    Precision,
    Recall,
    accuracy,
    auc_roc_score,
    simple_ann,
)
from minifast.errors import DataError
from minifast.metrics.confusion import PairCounts


def answers(classes, n=200, seed=0):
    """Outputs (n, classes) and targets (n,) that agree more often than by chance."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (n,), generator=generator)
    outputs = torch.randn(n, classes, generator=generator)
    outputs[torch.arange(n), targets] += 0.7
    return outputs, targets


def over(metric, outputs, targets, bs=64):
    """The value of a metric over batches."""
    metric.on_train_begin()
    metric.on_epoch_begin()
    for output, target in zip(outputs.split(bs), targets.split(bs), strict=True):
        metric.on_batch_end(output, target)
    return metric.on_epoch_end([])["last_metrics"][0]


# --- the confusion matrix


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_matrix_counts_actual_by_predicted(classes):
    outputs, targets = answers(classes)
    metric = ConfusionMatrix()
    metric.on_epoch_begin()
    for output, target in zip(outputs.split(64), targets.split(64), strict=True):
        metric.on_batch_end(output, target)
    assert metric.on_epoch_end([]) is None
    wanted = oracle.confusion_matrix(outputs, targets, task="multiclass", num_classes=classes)
    assert torch.equal(metric.cm, wanted)


def test_targets_that_are_no_class_are_not_counted():
    counts = PairCounts(2)
    counts.add(torch.tensor([0, 1, 1, 0]), torch.tensor([0, -100, 1, 2]))
    assert counts.table().tolist() == [[1, 0], [0, 1]]


def test_the_matrix_has_no_column_and_shifts_none():
    matrix = ConfusionMatrix()
    learn = toy_learner(50, metrics=[matrix, accuracy])
    learn.fit(2)
    assert learn.recorder.metrics_names == ["accuracy"]
    assert [len(values) for values in learn.recorder.metrics] == [1, 1]
    assert matrix.cm.sum() == 50
    assert matrix.cm.trace().item() / 50 == pytest.approx(learn.recorder.metrics[-1][0])


def test_positions_of_a_sequence_count_each():
    outputs, targets = answers(3, n=60)
    metric = ConfusionMatrix()
    metric.on_epoch_begin()
    metric.on_batch_end(outputs.view(20, 3, 3), targets.view(20, 3))
    assert metric.cm.sum() == 60


# --- precision, recall and F


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("average", ["macro", "weighted", "micro", None])
@pytest.mark.parametrize(
    ("metric", "wanted", "options"),
    [
        (Precision, oracle.precision, {}),
        (Recall, oracle.recall, {}),
        (FBeta, oracle.fbeta_score, {"beta": 2.0}),
        (FBeta, oracle.fbeta_score, {"beta": 0.5}),
    ],
)
def test_averages_are_those_of_torchmetrics(classes, average, metric, wanted, options):
    outputs, targets = answers(classes)
    found = over(metric(average, **options), outputs, targets)
    value = wanted(outputs, targets, task="multiclass", num_classes=classes, average=average or "none", **options)
    assert found == pytest.approx(value.tolist(), abs=1e-6)


@pytest.mark.parametrize("pos_label", [0, 1])
def test_of_two_classes_one_is_the_positive_one(pos_label):
    outputs, targets = answers(2)
    right = ((outputs.argmax(1) == pos_label) & (targets == pos_label)).sum().item()
    found = [over(metric(pos_label=pos_label), outputs, targets) for metric in (Precision, Recall)]
    counts = [(outputs.argmax(1) == pos_label).sum().item(), (targets == pos_label).sum().item()]
    assert found == pytest.approx([right / n for n in counts])
    assert over(FBeta(pos_label=pos_label, beta=1), outputs, targets) == pytest.approx(2 * right / sum(counts))


def test_a_class_that_is_never_predicted_counts_as_0_not_as_nan():
    outputs, targets = torch.eye(3)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 2])
    assert over(Precision(None), outputs, targets) == [1.0, 0.5, 0.0]
    assert over(Precision("macro"), outputs, targets) == 0.5
    assert over(FBeta(None, beta=1), outputs, targets) == pytest.approx([1.0, 2 / 3, 0.0])


def test_binary_of_more_classes_warns_and_is_the_mean_of_the_classes():
    outputs, targets = answers(4)
    metric = Precision()
    with pytest.warns(UserWarning, match=r"Precision has average='binary', but there are 4 classes.*'macro'"):
        found = over(metric, outputs, targets)
    assert found == pytest.approx(over(Precision("macro"), outputs, targets))
    over(metric, outputs, targets)  # and does not warn again


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Precision("binray"), r"`average` must be one of 'binary', 'micro', 'macro', 'weighted', got 'binray'"),
        (lambda: Recall(pos_label=2), r"`pos_label` must be 0 or 1, got 2"),
        (lambda: FBeta(eps=0), r"`eps` must be positive, got 0"),
        (lambda: KappaScore("cubic"), r"`weights` must be one of 'linear', 'quadratic', got 'cubic'"),
    ],
)
def test_invalid_arguments_raise_when_the_metric_is_made(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_single_output_is_a_logit_of_two_classes(shape, dtype):
    outputs, targets = torch.tensor([-1.0, 2.0, 0.5, 0.1]), torch.tensor([0, 1, 0, 1])
    for actual in (targets.to(dtype), targets.to(dtype)[:, None]):
        assert over(Recall(), outputs.view(shape), actual) == 1
        assert over(Precision(), outputs.view(shape), actual) == pytest.approx(2 / 3)
    with pytest.raises(DataError, match=r"targets range from 0 to 2, but a single output per target tells two"):
        over(Recall(), outputs.view(shape), targets * 2)


# --- agreement


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("weights", [None, "linear", "quadratic"])
def test_kappa_is_that_of_torchmetrics(classes, weights):
    outputs, targets = answers(classes)
    wanted = oracle.cohen_kappa(outputs, targets, task="multiclass", num_classes=classes, weights=weights)
    assert over(KappaScore(weights), outputs, targets) == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_matthews_correlation_is_that_of_torchmetrics(classes):
    outputs, targets = answers(classes)
    wanted = oracle.matthews_corrcoef(outputs, targets, task="multiclass", num_classes=classes)
    assert over(MatthewsCorreff(), outputs, targets) == pytest.approx(wanted.item(), abs=1e-6)


def test_answers_of_one_class_agree_no_more_than_by_chance():
    outputs, targets = torch.eye(2)[[0, 0, 0]], torch.tensor([0, 0, 0])
    assert over(KappaScore(), outputs, targets) == over(MatthewsCorreff(), outputs, targets) == 0


# --- the area under the ROC curve


@pytest.mark.parametrize("n", [2, 21, 200])
def test_the_area_is_that_of_torchmetrics_with_ties_too(n):
    outputs, targets = answers(2, n, seed=3)
    targets[:2] = torch.tensor([0, 1])
    for values in (outputs, (outputs * 2).round()):
        scores = torch.sigmoid(values[:, 1] - values[:, 0])
        wanted = oracle.auroc(scores.double(), targets, task="binary").item()
        assert over(AUROC(), values, targets) == pytest.approx(wanted, abs=1e-6)
        assert auc_roc_score(values[:, 1] - values[:, 0], targets).item() == pytest.approx(wanted, abs=1e-6)


def test_scores_that_softmax_would_round_to_1_keep_their_order():
    outputs = torch.tensor([[0.0, 40.0], [0.0, 50.0]])
    assert outputs.softmax(1)[0, 1] == outputs.softmax(1)[1, 1]
    assert over(AUROC(), outputs, torch.tensor([0, 1])) == 1


def test_the_area_of_more_classes_is_refused():
    with pytest.raises(DataError, match=r"two classes.*\(64, 3\).*MulticlassAUROC"):
        over(AUROC(), *answers(3))


# --- in a learner

ALL = [Precision(), Recall(), FBeta(), KappaScore(), MatthewsCorreff(), AUROC(), auc_roc_score]
NAMES = ["precision", "recall", "f_beta", "kappa_score", "matthews_correff", "auroc", "auc_roc_score"]


@pytest.mark.parametrize("n", [20, 21, 45])
def test_table_record_and_validate_agree_with_all_predictions_at_once(n):
    learn = toy_learner(n, metrics=list(ALL))
    learn.fit(2)
    outputs, targets = learn.get_preds(activ=lambda output: output)
    wanted = [over(metric, outputs, targets, bs=n) for metric in ALL[:-1]]
    assert learn.recorder.metrics_names == NAMES
    assert learn.recorder.metrics[-1] == pytest.approx([*wanted, wanted[-1]])
    assert learn.validate()[1:] == learn.recorder.metrics[-1] == learn.recorder.rows[-1][3:-1]


def test_the_score_of_each_class_has_its_own_column(capsys):
    learn = toy_learner(metrics=[Precision(average=None), accuracy], silent=False)
    learn.fit(2)
    names = ["precision_0", "precision_1", "accuracy"]
    assert learn.recorder.metrics_names == names
    assert all(len(values) == 3 for values in learn.recorder.metrics)
    assert [line.split()[3:-1] for line in capsys.readouterr().out.splitlines() if "precision_0" in line] == [names]
    figure = learn.recorder.plot_metrics(return_fig=True)
    assert [len(ax.lines) for ax in figure.axes] == [1, 1, 1]
    assert learn.validate()[1:] == learn.recorder.metrics[-1]


def test_a_finder_run_leaves_the_counts_of_the_last_epoch():
    metric = Precision()
    learn = toy_learner(metrics=[metric, AUROC()])
    learn.fit(1)
    before = metric.cm.clone()
    learn.lr_find(num_it=5)
    assert torch.equal(metric.cm, before)


def test_a_metric_of_ones_own_over_the_matrix():
    class Right(ConfusionMatrix):
        columns = ("right",)

        def on_epoch_end(self, last_metrics, **kwargs):
            super().on_epoch_end(last_metrics)
            return {"last_metrics": [*last_metrics, int(self.cm.trace())]}

    learn = toy_learner(metrics=[Right(), accuracy])
    learn.fit(1)
    assert learn.recorder.metrics_names == ["right", "accuracy"]
    assert learn.recorder.metrics[0][0] == round(60 * learn.recorder.metrics[0][1])


def test_a_run_that_is_killed_and_goes_on_measures_the_same(tmp_path):
    def learner(at=None):
        torch.manual_seed(0)
        x = torch.randn(60, 4)
        items = TensorDataset(x, (x.sum(dim=1) > 0).long())
        data = DataBunch(DataLoader(items, 20), DataLoader(items, 25), device="cpu", path=tmp_path)
        metrics = [Precision(), AUROC(), auc_roc_score]
        return Learner(data, simple_ann(4, 2, 8), metrics=metrics, silent=True)

    whole = learner()
    whole.fit(3)
    stopped = learner()
    with pytest.raises(OSError, match="gone"):
        stopped.fit(3, checkpoint="run", every=1, callbacks=FailsAt(5))
    again = learner()
    again.fit(3, checkpoint="run", every=1, callbacks=FailsAt(None))
    assert again.recorder.metrics == whole.recorder.metrics
