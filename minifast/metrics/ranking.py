"""The area under the ROC curve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minifast.errors import DataError
from minifast.metrics.base import add_metrics, over_all
from minifast.training.callback import Callback
from minifast.utils.tensors import to_cpu


class AUROC(Callback):
    """The area under the ROC curve of two classes, over the whole validation set.

    Outputs are ``(n, 2)``, or one number an item that is higher for the second class. Of each item the score and the
    target are kept until the end of the epoch.
    """

    def __init__(self) -> None:
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    def on_epoch_begin(self) -> None:
        """Start anew."""
        self._scores, self._targets = [], []

    def on_batch_end(self, last_output: Tensor, last_target: Tensor) -> None:
        """Add a batch."""
        self._scores.append(_scores_of(last_output))
        self._targets.append(last_target.flatten())

    def on_epoch_end(self, last_metrics: list[Any]) -> dict[str, list[Any]]:
        """Hand back the value."""
        scores, targets = self._scores, self._targets
        self._scores, self._targets = [], []
        area = auc_roc_score(torch.cat(scores), torch.cat(targets)) if scores else None
        return add_metrics(last_metrics, area if area is None else area.item())


def _scores_of(outputs: Tensor) -> Tensor:
    if outputs.ndim == 2 and outputs.shape[1] == 2:
        return outputs[:, 1] - outputs[:, 0]  # in the order of softmax's probabilities, without their rounding to 1
    if outputs.numel() != len(outputs):
        raise DataError(
            f"The area under the ROC curve is one of two classes, and the outputs have the shape "
            f"{tuple(outputs.shape)}; torchmetrics has MulticlassAUROC and MultilabelAUROC."
        )
    return outputs.flatten()


@over_all(AUROC)
def auc_roc_score(input: Tensor, targ: Tensor) -> Tensor:
    """Return the area under the ROC curve: how often an item of class 1 has a higher output than one of class 0.

    As a metric it is taken over all predictions at once. It is NaN where all items are of one class.

    Args:
        input: outputs ``(n, 2)``, or scores ``(n,)``.
        targ: zeros and ones ``(n,)``.

    >>> auc_roc_score(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0, 0, 1, 1]))
    tensor(0.7500, dtype=torch.float64)
    """
    positive = to_cpu(targ.flatten()).bool()
    scores: Any = to_cpu(_scores_of(input))
    _, places, ties = scores.unique(return_inverse=True, return_counts=True)
    ranks: Tensor = (ties.cumsum(0) - (ties - 1) / 2).double()[places]  # from 1 on, equal scores share their mean
    n, n_positive = len(positive), positive.sum()
    return (ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * (n - n_positive))
