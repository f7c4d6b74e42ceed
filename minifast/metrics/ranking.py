"""The area under the ROC curve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minifast.errors import DataError
from minifast.metrics.functions import mark
from minifast.metrics.loss_options import loss_options
from minifast.metrics.wrappers import add_metrics
from minifast.training.callback import Callback
from minifast.utils.shapes import binary_targets, check_tensors, is_counted
from minifast.utils.tensors import to_cpu


class AUROC(Callback):
    """Compute the area under the ROC curve of two classes, over the whole validation set.

    Outputs are ``(n, 2)``, or one number per sample that is higher for class 1. Targets are 0 and 1; those that the
    loss ignores do not count. The score and the target of each sample stay in memory until the end of the epoch.
    """

    higher_is_better = True
    _ignored = -100

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    def follow_loss(self, loss_func: Any) -> None:
        """Ignore the targets that a loss ignores."""
        self._ignored = loss_options(loss_func).get("ignore_index", -100)

    def on_epoch_begin(self) -> None:
        """Forget all scores."""
        self._scores, self._targets = [], []

    def on_batch_end(self, last_output: Tensor, last_target: Tensor) -> None:
        """Add a batch."""
        check_tensors(last_output, last_target)
        self._scores.append(_scores_of(last_output))
        self._targets.append(_targets_of(last_target, len(last_output)))

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Return the value."""
        scores, targets = self._scores, self._targets
        self._scores, self._targets = [], []
        area = _area(torch.cat(scores), torch.cat(targets), self._ignored) if scores else None
        return add_metrics(last_metrics, area if area is None else area.item())


def _area(scores: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    scores, targets = to_cpu(scores), to_cpu(targets)
    counted = is_counted(targets, ignore_index)
    reason = "the area under the ROC curve is defined for two classes; number them 0 and 1."
    positive = binary_targets(targets[counted], reason=reason).bool()
    chosen: Any = scores[counted]
    _, places, ties = chosen.unique(return_inverse=True, return_counts=True)
    # Ranks count from 1; equal scores share the mean of their ranks.
    ranks: Tensor = (ties.cumsum(0) - (ties - 1) / 2).double()[places]
    n, n_positive = len(positive), positive.sum()
    return (ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * (n - n_positive))


def _scores_of(outputs: Tensor) -> Tensor:
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        return outputs[:, 1] - outputs[:, 0]  # orders as softmax does, but does not round to 1
    if outputs.numel() != len(outputs):
        raise DataError(
            f"The area under the ROC curve is defined for two classes, outputs (n, 2) or (n,), got "
            f"{tuple(outputs.shape)}; use MulticlassAUROC or MultilabelAUROC of torchmetrics."
        )
    return outputs.flatten()


def _targets_of(targets: Tensor, n: int) -> Tensor:
    if targets.numel() != n or len(targets) != n:
        raise DataError(
            f"The area under the ROC curve needs one target per sample, (n,), got {tuple(targets.shape)} for {n} "
            f"samples; give class numbers 0 and 1."
        )
    return targets.flatten()


@mark(over_all=AUROC, higher_is_better=True)
def auc_roc_score(input: Tensor, targ: Tensor) -> Tensor:
    """Return the area under the ROC curve: how often a sample of class 1 has a higher output than one of class 0.

    As a metric of a learner it is computed over all predictions, without the targets that the loss ignores. It is NaN
    if all samples are of one class.

    Args:
        input: outputs ``(n, 2)``, or scores ``(n,)`` or ``(n, 1)``.
        targ: zeros and ones ``(n,)`` or ``(n, 1)``; -100 does not count.

    Raises:
        DataError: if the shapes do not fit, or targets are outside of [0, 1].

    >>> auc_roc_score(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.7500, dtype=torch.float64)
    """
    check_tensors(input, targ)
    return _area(_scores_of(input), _targets_of(targ, len(input)), -100)
