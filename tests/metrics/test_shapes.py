"""Metrics over shapes, dtypes and batch sizes: equal to a plain computation over all samples, or a DataError."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from minifast import (
    AUROC,
    RMSE,
    ClassificationInterpretation,
    ConfusionMatrix,
    DataBunch,
    FBeta,
    KappaScore,
    Learner,
    MatthewsCorreff,
    Precision,
    R2Score,
    Recall,
    accuracy,
    accuracy_thresh,
    dice,
    error_rate,
    explained_variance,
    fbeta,
    mae,
    mse,
    r2_score,
    rmse,
    top_k_accuracy,
)
from minifast.errors import DataError
from minifast.losses import MSELossFlat
from minifast.metrics.confusion import MAX_TABLE, PairCounts

quick = settings(deadline=None, max_examples=25)


class Echo(nn.Module):
    """A model whose outputs are its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + 0 * self.weight


def echo(x, y, loss_func, bs, **options):
    """A learner that predicts ``x`` for the targets ``y``."""
    items = TensorDataset(x, y)
    data = DataBunch(DataLoader(items, bs), DataLoader(items, bs), device="cpu", loss_func=loss_func, **options)
    return Learner(data, Echo(), silent=True)


def over(metric, outputs, targets, bs):
    """The value of a metric callback over batches."""
    metric.on_epoch_begin()
    for output, target in zip(outputs.split(bs), targets.split(bs), strict=True):
        metric.on_batch_end(output, target)
    return metric.on_epoch_end([])["last_metrics"][0]


def binary(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator), torch.randint(2, (n,), generator=generator)


SHAPES = st.sampled_from([(-1,), (-1, 1)])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool])


# --- a single output is that of two classes


@quick
@given(n=st.integers(1, 30), seed=st.integers(0, 99), out=SHAPES, target=SHAPES, dtype=DTYPES, bs=st.integers(1, 31))
def test_metrics_of_a_single_output_are_those_of_its_sign(n, seed, out, target, dtype, bs):
    logits, labels = binary(n, seed)
    predicted, actual = (logits > 0).numpy(), labels.bool().numpy()
    outputs, targets = logits.view(out), labels.to(dtype).view(target)
    right = float((predicted == actual).mean())
    assert accuracy(outputs, targets).item() == pytest.approx(right)
    assert error_rate(outputs, targets).item() == pytest.approx(1 - right)
    assert accuracy_thresh(outputs, targets).item() == pytest.approx(right)
    both = (predicted & actual).sum()
    assert over(Precision(), outputs, targets, bs) == pytest.approx(both / max(predicted.sum(), 1))
    assert over(Recall(), outputs, targets, bs) == pytest.approx(both / max(actual.sum(), 1))
    matrix = ConfusionMatrix()
    matrix.on_epoch_begin()
    matrix.on_batch_end(outputs, targets)
    assert matrix.cm.tolist() == [[int(((actual == i) & (predicted == j)).sum()) for j in (0, 1)] for i in (0, 1)]


@quick
@given(
    n=st.integers(2, 20),
    seed=st.integers(0, 99),
    bs=st.integers(1, 21),
    loss=st.sampled_from(["bce", "logits", "own", "function", "mse"]),
)
def test_a_learner_with_a_single_output_is_right_everywhere(n, seed, bs, loss):
    logits, labels = binary(n, seed)
    predicted = (logits > 0).long()
    column = labels.float()[:, None]
    losses = {
        "bce": nn.BCELoss(),
        "mse": MSELossFlat(),
        "logits": nn.BCEWithLogitsLoss(),
        "function": functional.binary_cross_entropy_with_logits,
        "own": lambda o, t: functional.binary_cross_entropy_with_logits(o[:, 0], t.float()),
    }
    x = logits.sigmoid()[:, None] if loss in ("bce", "mse") else logits[:, None]
    learn = echo(x, labels if loss == "own" else column, losses[loss], bs, classes=["cat", "dog"])
    right = (predicted == labels).float().mean().item()
    _, shown, wrong, kappa = learn.validate(metrics=[accuracy, error_rate, KappaScore()])
    assert shown == pytest.approx(right)
    assert wrong == pytest.approx(1 - right)
    assert [learn.predict(row)[0] for row in x] == [["cat", "dog"][i] for i in predicted]
    found = learn.interpret()
    assert torch.equal(found.pred_class, predicted)
    assert found.confusion_matrix().trace() == (predicted == labels).sum()
    assert kappa == pytest.approx(KappaScore().score(torch.from_numpy(found.confusion_matrix())))
    actual = found.preds[torch.arange(n), labels]
    assert actual.tolist() == pytest.approx(torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid()).tolist())
    if loss == "mse":
        return
    worst = functional.binary_cross_entropy(actual, torch.ones(n), reduction="none").argsort(descending=True)
    assert found.losses[found.top_losses()[1]].tolist() == pytest.approx(found.losses[worst].tolist(), rel=1e-4)
    unsure = ClassificationInterpretation.from_learner(learn, activ=lambda output: output)
    assert torch.equal(unsure.pred_class, predicted)


def test_results_of_a_single_output_are_named_as_its_classes(capsys):
    x = torch.tensor([[-1.0], [2.0]])
    learn = echo(x, torch.tensor([[0.0], [0.0]]), nn.BCEWithLogitsLoss(), 2, classes=["cat", "dog"])
    learn.show_results()
    assert capsys.readouterr().out.splitlines()[1:] == ["0       cat     cat", "1       cat     dog"]


def test_a_single_output_needs_a_loss_and_classes_that_fit():
    x = torch.randn(4, 1)
    learn = echo(x, torch.zeros(4).long(), nn.CrossEntropyLoss(), 2, classes=["cat", "dog"])
    with pytest.raises(DataError, match="CrossEntropyLoss needs one output per class"):
        learn.interpret()
    learn = echo(x, torch.zeros(4, 1), nn.BCEWithLogitsLoss(), 2, classes=["a", "b", "c"])
    with pytest.raises(DataError, match="The model gives 1 output, but the data have 3 classes"):
        learn.predict(x[0])
    with pytest.raises(DataError, match="top_k_accuracy needs one output per class"):
        top_k_accuracy(x, torch.zeros(4).long())
    with pytest.raises(DataError, match=r"fbeta scores the labels of each sample.*FBeta\(\)"):
        fbeta(x, torch.zeros(4, 1))


# --- classes in the last dimension or in dimension 1


@quick
@given(
    n=st.integers(1, 6),
    classes=st.integers(2, 5),
    sizes=st.lists(st.integers(1, 4), max_size=2),
    second=st.booleans(),
    ones=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_classes_may_be_in_dimension_1_or_the_last(n, classes, sizes, second, ones, seed):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, *sizes, classes, generator=generator)
    targets = torch.randint(classes, (n, *sizes), generator=generator)
    right = float((outputs.numpy().argmax(-1) == targets.numpy()).mean())
    best = float((np.argsort(-outputs.numpy(), -1)[..., :2] == targets.numpy()[..., None]).any(-1).mean())
    given_targets = targets[..., None] if ones and not second else targets
    shown = outputs.movedim(-1, 1) if second else outputs
    axis = 1 if second else None  # decides only where both layouts fit
    assert accuracy(shown, given_targets, axis=axis).item() == pytest.approx(right)
    assert top_k_accuracy(shown, given_targets, k=2, axis=axis).item() == pytest.approx(best)
    matrix = ConfusionMatrix()
    matrix.follow_loss(nn.CrossEntropyLoss() if second else lambda output, target: 0)
    matrix.on_epoch_begin()
    matrix.on_batch_end(shown, given_targets)
    assert matrix.cm.sum() == targets.numel()
    assert matrix.cm.trace().item() / targets.numel() == pytest.approx(right)


@pytest.mark.parametrize("bs", [2, 3, 5])
def test_a_square_batch_is_read_as_the_loss_reads_it(bs):
    x, y = torch.randn(6, 3, 3), torch.randint(3, (6, 3))
    wanted = (x.argmax(1) == y).float().mean().item()
    assert echo(x, y, nn.CrossEntropyLoss(), bs).validate(metrics=accuracy)[1] == pytest.approx(wanted)


@pytest.mark.parametrize("ignore_index", [-100, 0])
@pytest.mark.parametrize("bs", [1, 2, 5])
def test_targets_that_the_loss_ignores_do_not_count(bs, ignore_index):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, 7, generator=generator)
    y = torch.randint(1, 4, (5, 7), generator=generator)
    y[torch.rand(5, 7, generator=generator) < 0.4] = ignore_index
    counted = y != ignore_index
    right = ((x.argmax(1) == y) & counted).sum().item() / counted.sum().item()
    learn = echo(x, y, nn.CrossEntropyLoss(ignore_index=ignore_index), bs)
    matrix = ConfusionMatrix()
    _, mean, micro = learn.validate(metrics=[accuracy, Recall("micro"), matrix])
    assert mean == pytest.approx(right)
    assert micro == pytest.approx(right)
    assert matrix.cm.sum() == counted.sum()


# --- nothing is computed on broadcast shapes

MISFITS = [((4,), (4, 2)), ((4, 1), (4, 2)), ((4, 2), (2, 4)), ((4, 2), (8,)), ((1, 4), (4, 1)), ((4, 1), (1, 4))]


@pytest.mark.parametrize(("out", "target"), MISFITS)
@pytest.mark.parametrize(
    "metric", [mse, mae, rmse, r2_score, explained_variance, accuracy_thresh, MSELossFlat(), fbeta]
)
def test_numbers_that_have_no_counterpart_raise_an_error(metric, out, target):
    with pytest.raises(DataError, match=r"The outputs have the shape .* and the targets .*would be broadcast"):
        metric(torch.zeros(out), torch.zeros(target))


@pytest.mark.parametrize(
    ("out", "target"), [((4,), (4, 2)), ((4, 1), (4, 2)), ((4, 3), (4, 3)), ((4, 3), (2,)), ((4, 3, 5), (4, 2))]
)
@pytest.mark.parametrize("metric", [accuracy, error_rate, functools.partial(top_k_accuracy, k=1)])
def test_class_numbers_that_do_not_fit_raise_an_error(metric, out, target):
    with pytest.raises(DataError, match=r"The outputs have the shape .* and the targets"):
        metric(torch.zeros(out), torch.zeros(target).long())
    with pytest.raises(DataError, match=r"The outputs have the shape .* and the targets"):
        over(Recall(), torch.zeros(out), torch.zeros(target).long(), 4)


def test_targets_that_are_no_labels_raise_an_error():
    for metric in (accuracy, dice, lambda o, t: over(AUROC(), o.flatten(), t.flatten(), 8)):
        with pytest.raises(DataError, match=r"targets range from 0 to 255"):
            metric(torch.zeros(2, 1, 2, 2), torch.tensor([0.0, 255.0, 0.0, 0.0]).repeat(2).view(2, 1, 2, 2))
    with pytest.raises(DataError, match="one tensor of outputs"):
        accuracy((torch.zeros(2, 2), torch.zeros(2)), torch.zeros(2))
    with pytest.raises(DataError, match="one target per sample"):
        over(AUROC(), torch.zeros(4, 2), torch.zeros(4, 2), 4)


@quick
@given(n=st.integers(2, 30), seed=st.integers(0, 99), out=SHAPES, target=SHAPES, bs=st.integers(1, 31))
def test_regression_metrics_are_those_of_pairs(n, seed, out, target, bs):
    generator = torch.Generator().manual_seed(seed)
    pred, targ = torch.randn(n, generator=generator), torch.randn(n, generator=generator)
    p, t = pred.double().numpy(), targ.double().numpy()
    outputs, targets = pred.view(out), targ.view(target)
    squared = float(((p - t) ** 2).mean())
    assert mse(outputs, targets).item() == pytest.approx(squared, rel=1e-4)
    assert mae(outputs, targets).item() == pytest.approx(float(np.abs(p - t).mean()), rel=1e-4)
    assert MSELossFlat()(outputs, targets).item() == pytest.approx(squared, rel=1e-4)
    assert over(RMSE(), outputs, targets, bs) == pytest.approx(squared**0.5, rel=1e-4)
    assert over(R2Score(), outputs, targets, bs) == pytest.approx(1 - squared / t.var(), rel=1e-3, abs=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.SoftMarginLoss, nn.PoissonNLLLoss])
def test_losses_of_torch_are_not_broadcast_either(kind):
    learn = echo(torch.zeros(4, 1), torch.zeros(4), kind(), 2)
    for call in (learn.validate, lambda: learn.get_preds(with_loss=True)):
        with pytest.raises(DataError, match=r"\(\d, 1\) and the targets \(\d,\), which \w+Loss would broadcast"):
            call()
    learn = echo(torch.zeros(4, 1), torch.zeros(4), MSELossFlat(), 2)
    with pytest.raises(DataError, match="would broadcast"):
        learn.validate(metrics=[kind()])


@pytest.mark.parametrize("bs", [1, 3, 7])
@pytest.mark.parametrize(
    "metric",
    [nn.CrossEntropyLoss(torch.tensor([1.0, 5.0])), nn.CrossEntropyLoss(reduction="sum"), functional.cross_entropy],
)
def test_a_loss_as_a_metric_does_not_depend_on_the_batch_size(metric, bs):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 2, generator=generator), torch.tensor([0, 1, 0, 0, -100, 1, 0])
    found = echo(x, y, nn.CrossEntropyLoss(), bs).validate(metrics=metric)[1]
    assert found == pytest.approx(metric(x, y).item(), rel=1e-5)


# --- masks


@quick
@given(n=st.integers(1, 4), h=st.integers(1, 4), w=st.integers(2, 4), kind=st.integers(0, 3), seed=st.integers(0, 99))
def test_masks_overlap_in_any_layout(n, h, w, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, actual = torch.randn(n, h, w, generator=generator), torch.randint(2, (n, h, w), generator=generator)
    predicted = (logits > 0).numpy()
    overlap = [(2 * (p & a).sum() / (p.sum() + a.sum())) if (p | a).any() else 1.0
               for p, a in zip(predicted, actual.bool().numpy(), strict=True)]  # fmt: skip
    outputs = [torch.stack([torch.zeros_like(logits), logits], 1), logits[:, None], logits[:, None], logits[:, None]][
        kind
    ]
    targets = [actual, actual, actual[:, None], actual.float()][kind]
    assert dice(outputs, targets).item() == pytest.approx(float(np.mean(overlap)), abs=1e-5)


@pytest.mark.parametrize(
    ("out", "target"), [((4, 2), (4,)), ((4, 1), (4,)), ((4,), (4,)), ((2, 3, 4, 4), (2, 4, 4)), ((2, 2, 4, 4),) * 2]
)
def test_what_is_no_mask_raises_an_error(out, target):
    with pytest.raises(DataError, match="dice compares masks"):
        dice(torch.zeros(out), torch.zeros(target))


# --- many classes


@quick
@given(
    classes=st.sampled_from([2, 3, 7, MAX_TABLE + 3]),
    n=st.integers(1, 60),
    bs=st.integers(1, 61),
    seed=st.integers(0, 99),
)
def test_scores_of_any_number_of_classes_are_those_of_the_table(classes, n, bs, seed):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(min(classes, 9), (n,), generator=generator)
    outputs = torch.randn(n, classes, generator=generator) + functional.one_hot(targets, classes) * 2
    table = np.zeros((classes, classes))
    np.add.at(table, (targets.numpy(), outputs.argmax(1).numpy()), 1)
    correct, predicted, actual = table.diagonal(), table.sum(0), table.sum(1)
    recalls = correct / np.maximum(actual, 1)
    assert over(Recall("macro"), outputs, targets, bs) == pytest.approx(recalls.mean())
    assert over(Precision("weighted"), outputs, targets, bs) == pytest.approx(
        (correct / np.maximum(predicted, 1) * actual).sum() / n
    )
    for weights, power in ((None, 0), ("linear", 1), ("quadratic", 2)):
        distance = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes))).astype(float)
        distance = (distance > 0) * distance**power
        chance = (distance * np.outer(actual, predicted)).sum() / n
        wanted = 1 - (distance * table).sum() / chance if chance else 0
        assert over(KappaScore(weights), outputs, targets, bs) == pytest.approx(wanted, abs=1e-9)
    spread = (n**2 - actual @ actual) * (n**2 - predicted @ predicted)
    wanted = (correct.sum() * n - actual @ predicted) / np.sqrt(spread) if spread else 0
    assert over(MatthewsCorreff(), outputs, targets, bs) == pytest.approx(wanted, abs=1e-9)


def test_ten_thousand_classes_need_no_table(monkeypatch):
    monkeypatch.setattr(PairCounts, "table", None)
    monkeypatch.setattr("minifast.metrics.confusion.MAX_PAIRS", 100)
    outputs, targets = torch.randn(64, 10_000), torch.randint(10_000, (64,))
    for metric in (Precision("macro"), FBeta(None), KappaScore("linear"), MatthewsCorreff()):
        over(metric, outputs, targets, 16)


def test_a_binary_average_comes_back_with_two_classes():
    metric = Precision()
    with pytest.warns(UserWarning, match="'binary', but there are 3 classes"):
        over(metric, torch.randn(8, 3), torch.randint(3, (8,)), 4)
    assert metric.average == "binary"
    outputs, targets = torch.randn(8, 2), torch.arange(8) % 2
    assert over(metric, outputs, targets, 4) == over(Precision(), outputs, targets, 8)
