"""Metrics computed from the confusion matrix of the whole validation set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minifast.metrics.loss_options import loss_options
from minifast.metrics.wrappers import add_metrics, name_of
from minifast.training.callback import Callback
from minifast.utils.checks import check_number, check_word
from minifast.utils.public import warn_caller
from minifast.utils.shapes import predict_classes
from minifast.utils.tensors import to_cpu

AVERAGES = ("binary", "micro", "macro", "weighted")
MAX_TABLE = 512  # classes up to which counts are a table; with more classes they are a list of pairs
MAX_PAIRS = 2**22  # pairs to collect before equal ones are merged


class PairCounts:
    """The number of samples of each pair (actual class, predicted class), collected over batches.

    With few classes it is a table on the device. With many it is a list of the pairs that occur, so that neither a
    batch nor the whole needs the memory of a table.

    >>> counts = PairCounts(2)
    >>> counts.add(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    >>> counts.table()
    tensor([[1, 1],
            [0, 1]])
    """

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        self._table: Tensor | None = None
        self._pairs: list[Tensor] = []
        self._merged = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)

    def add(self, predicted: Tensor, actual: Tensor) -> None:
        """Add a batch of class numbers; an actual class that does not exist, such as -100, is not counted."""
        predicted, actual = predicted.flatten(), actual.flatten().long()
        counted = (actual >= 0) & (actual < self.n_classes)
        pairs = torch.where(counted, actual * self.n_classes + predicted, -1)
        if self.n_classes <= MAX_TABLE:
            if self._table is None:
                self._table = pairs.new_zeros(self.n_classes**2)
            # torch's bincount would wait for a GPU to find the largest number.
            self._table.index_add_(0, pairs.clamp(min=0), counted.long())
            return
        self._pairs.append(pairs)
        if sum(map(len, self._pairs)) > MAX_PAIRS:
            self._merge()

    def _merge(self) -> None:
        pairs, counts = torch.unique(to_cpu(torch.cat(self._pairs)), return_counts=True)
        places, counts = (torch.cat(both) for both in zip(self._merged, (pairs, counts), strict=True))
        places, index = torch.unique(places, return_inverse=True)
        self._merged = places, counts.new_zeros(len(places)).index_add_(0, index, counts)
        self._pairs = []

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return actual classes, predicted classes and how often each pair occurs, on the CPU."""
        if self._table is not None:
            table = to_cpu(self._table)
            places = table.nonzero()[:, 0]
            return places // self.n_classes, places % self.n_classes, table[places]
        if self._pairs:
            self._merge()
        places, counts = self._merged
        places, counts = places[places >= 0], counts[places >= 0]
        return places // self.n_classes, places % self.n_classes, counts

    def table(self) -> Tensor:
        """Return the counts ``(actual, predicted)`` of all pairs, on the CPU."""
        actual, predicted, counts = self.pairs()
        table = torch.zeros(self.n_classes**2, dtype=torch.int64)
        table[actual * self.n_classes + predicted] = counts
        return table.view(self.n_classes, -1)

    @classmethod
    def from_table(cls, table: Tensor) -> PairCounts:
        """Return the counts of a table ``(actual, predicted)``."""
        counts = cls(len(table))
        counts._merged = table.flatten().nonzero()[:, 0], table[table != 0]
        return counts

    def totals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each class how often it is predicted correctly, predicted, and actual, in float64."""
        actual, predicted, counts = self.pairs()
        counts = counts.double()
        correct = counts * (actual == predicted)
        zeros = counts.new_zeros(self.n_classes)
        places = ((actual, correct), (predicted, counts), (actual, counts))
        first, second, third = (zeros.index_add(0, index, values) for index, values in places)
        return first, second, third


class ConfusionMatrix(Callback):
    """Count the classes of the validation set: ``cm`` is the matrix after each epoch, a row for each actual class.

    It adds no column to the table; the metrics derived from it do. Outputs are ``(n, classes)``, ``(n, ..., classes)``
    or ``(n, classes, ...)``. A single output per target is a logit of two classes and predicts class 1 above 0, or
    above 0.5 if the loss is ``BCELoss`` or a regression loss. Targets that the loss ignores are not counted.
    """

    _counts: PairCounts | None = None
    _options: dict[str, Any] = {}  # noqa: RUF012  # replaced, never changed

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""
        return []

    @property
    def cm(self) -> Tensor | None:
        """The counts ``(actual, predicted)``, int64 on the CPU, or None before the first batch."""
        return None if self._counts is None else self._counts.table()

    def follow_loss(self, loss_func: Any) -> None:
        """Ignore the targets that a loss ignores, and read a single output as it does."""
        self._options = loss_options(loss_func)

    def on_epoch_begin(self) -> None:
        """Forget the counts."""
        self._counts = None

    def on_batch_end(self, last_output: Tensor, last_target: Tensor) -> None:
        """Add a batch."""
        predicted, actual, counted, n_classes = predict_classes(last_output, last_target, **self._options)
        if self._counts is None:
            self._counts = PairCounts(n_classes)
        self._counts.add(predicted, actual.masked_fill(~counted, -1))

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]] | None:
        """Add no value."""
        return None


class Score(ConfusionMatrix):
    """The base of metrics that are a function of the confusion matrix: override ``score`` or ``score_of``."""

    higher_is_better = True

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""
        return [name_of(self)]

    def score(self, cm: Tensor) -> Any:
        """Return the metric of counts ``(actual, predicted)``, on the CPU."""
        return self.score_of(PairCounts.from_table(cm))

    def score_of(self, counts: PairCounts) -> Any:
        """Return the metric of counts that may be too many for a table."""
        return self.score(counts.table().double())

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Return the value."""
        return add_metrics(last_metrics, [None if self._counts is None else self.score_of(self._counts)])


class FBeta(Score):
    """Compute the F score over the whole validation set: precision and recall, with recall weighted ``beta`` times.

    Args:
        average: ``"binary"``, the score of the class ``pos_label``; ``"macro"``, the mean of all classes' scores;
            ``"weighted"``, the mean weighted by the number of samples of each class; ``"micro"``, the score of all
            counts together; or None, the score of each class, with a column each. With more than two classes
            ``"binary"`` warns and is ``"macro"``.
        pos_label: the positive class, 0 or 1. Default: 1.
        eps: the smallest divisor, so that a score without samples is 0.
        beta: the weight of recall. Default: 2.

    In fastai v1 a class that was never predicted made the score NaN, and ``"weighted"`` used the predicted classes.

    >>> FBeta("macro", beta=1).score(torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=torch.float64))
    0.75
    """

    _warned = False

    def __init__(self, average: str | None = "binary", pos_label: int = 1, eps: float = 1e-9, beta: float = 2) -> None:
        self.average = average if average is None else check_word("average", average, AVERAGES)
        if pos_label not in (0, 1):
            raise ValueError(f"`pos_label` must be 0 or 1, got {pos_label!r}.")
        self.pos_label = pos_label
        self.eps = check_number("eps", eps, above=0)
        self.beta = check_number("beta", beta, low=0)

    def share(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """Return numerator and denominator of the score, from the counts of each class or of all."""
        weight = self.beta**2
        return (1 + weight) * right, weight * actual + predicted

    def score_of(self, counts: PairCounts) -> Any:
        """Return the metric: a number, or a list without ``average``."""
        average = self.average
        if average == "binary" and counts.n_classes > 2:
            average = "macro"
            if not self._warned:
                self._warned = True
                warn_caller(
                    f"{type(self).__name__} has average='binary', but there are {counts.n_classes} classes, so it "
                    f"uses average='macro', the mean of their scores. Pass the average that you want.",
                )
        totals = counts.totals()
        actual = totals[2]
        if average == "micro":
            totals = totals[0].sum(), totals[1].sum(), totals[2].sum()
        above, below = self.share(*totals)
        scores = above / below.clamp(min=self.eps)
        if average == "binary":
            scores = scores[self.pos_label]
        elif average == "macro":
            scores = scores.mean()
        elif average == "weighted":
            scores = (scores * actual).sum() / actual.sum().clamp(min=self.eps)
        return scores.tolist()


class Precision(FBeta):
    """Compute the precision, the fraction of correct samples among those predicted as a class.

    It is computed over the whole validation set.

    Args:
        average: see ``FBeta``.
        pos_label: see ``FBeta``.
        eps: see ``FBeta``.

    >>> Precision().score(torch.tensor([[3.0, 1.0], [2.0, 4.0]], dtype=torch.float64))
    0.8
    """

    def __init__(self, average: str | None = "binary", pos_label: int = 1, eps: float = 1e-9) -> None:
        super().__init__(average, pos_label, eps)

    def share(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """Return correct and predicted samples."""
        return right, predicted


class Recall(FBeta):
    """Compute the recall, the fraction of the samples of a class that are predicted as this class.

    It is computed over the whole validation set.

    Args:
        average: see ``FBeta``.
        pos_label: see ``FBeta``.
        eps: see ``FBeta``.

    >>> Recall(pos_label=0).score(torch.tensor([[3.0, 1.0], [2.0, 4.0]], dtype=torch.float64))
    0.75
    """

    def __init__(self, average: str | None = "binary", pos_label: int = 1, eps: float = 1e-9) -> None:
        super().__init__(average, pos_label, eps)

    def share(self, right: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """Return correct and actual samples."""
        return right, actual


class KappaScore(Score):
    """Compute Cohen's kappa, the agreement of predicted and actual classes beyond chance: 1 is perfect, 0 is chance.

    Args:
        weights: None to weight all errors equally; ``"linear"`` or ``"quadratic"`` to weight them by the distance of
            the classes, for ordered classes.

    Source: J. Cohen, "Weighted kappa" (1968).

    >>> KappaScore().score(torch.tensor([[4.0, 1.0], [1.0, 4.0]], dtype=torch.float64))
    0.6
    """

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights if weights is None else check_word("weights", weights, ("linear", "quadratic"))

    def score_of(self, counts: PairCounts) -> float:
        """Return the metric."""
        _, predicted, actual = counts.totals()
        n = actual.sum()
        numbers = torch.arange(counts.n_classes, dtype=actual.dtype)
        rows, columns, numbers_of_pairs = counts.pairs()
        distance = (rows - columns).abs().double()
        # The expected weight of a random pair of classes, from the totals alone.
        if self.weights == "quadratic":
            distance = distance.square()
            squares = actual @ numbers.square() * predicted.sum() + predicted @ numbers.square() * n
            by_chance = squares - 2 * (actual @ numbers) * (predicted @ numbers)
        elif self.weights == "linear":
            below, lower = actual.cumsum(0), predicted.cumsum(0)
            by_chance = (below * (n - lower) + lower * (n - below)).sum()
        else:
            distance = (distance > 0).double()
            by_chance = n * n - actual @ predicted
        by_chance = by_chance / n
        return 1 - float((distance * numbers_of_pairs).sum() / by_chance) if by_chance > 0 else 0.0


class MatthewsCorreff(Score):
    """Compute Matthews' correlation of predicted and actual classes: 1 is perfect; 0 is chance, or undefined.

    Source: J. Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient" (2004).

    >>> round(MatthewsCorreff().score(torch.tensor([[4.0, 1.0], [1.0, 4.0]], dtype=torch.float64)), 4)
    0.6
    """

    def score_of(self, counts: PairCounts) -> float:
        """Return the metric."""
        correct, predicted, actual = counts.totals()
        n = actual.sum()
        covariance = correct.sum() * n - actual @ predicted
        spread = (n**2 - actual @ actual) * (n**2 - predicted @ predicted)
        return float(covariance / spread.sqrt()) if spread > 0 else 0.0
