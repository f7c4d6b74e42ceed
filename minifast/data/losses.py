"""Which loss belongs to which targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MSELossFlat(nn.MSELoss):
    """The mean squared error of outputs in the shape of the targets, so that (n, 1) and (n,) fit each other."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the error."""
        return super().forward(input.reshape(target.shape), target)


LOSSES = {"class": nn.CrossEntropyLoss, "classes": nn.BCEWithLogitsLoss, "number": MSELossFlat}  # by kind of label


def loss_for(dataset: Any, classes: Any) -> nn.Module | None:
    """Return the loss that fits the targets of a data set, or None where they do not say."""
    if classes is not None:
        return nn.CrossEntropyLoss()
    try:
        target = torch.as_tensor(dataset[0][1])
    except (TypeError, IndexError, KeyError, ValueError, RuntimeError):
        return None
    if target.is_floating_point():
        return MSELossFlat()
    return nn.CrossEntropyLoss() if target.ndim == 0 else None


def classes_of(dataset: Any) -> list[Any] | None:
    """Return the classes that a data set, or the whole of a part of it, names; None where it names none."""
    while dataset is not None and not hasattr(dataset, "classes"):
        dataset = getattr(dataset, "dataset", None)  # a Subset's whole
    classes = getattr(dataset, "classes", None)
    return None if classes is None else list(classes)
