"""What turns a model's outputs into predictions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast.callback import Callback


class Collector(Callback):
    """Collects the outputs and targets of a validation, on the CPU, and stops it after ``n_batch`` batches."""

    _order = 1000

    def __init__(self, n_batch: int | None = None) -> None:
        self.n_batch = n_batch
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []

    def on_batch_end(self, last_output: Tensor, last_target: Tensor) -> dict[str, bool] | None:
        """Take a batch."""
        self.outputs.append(last_output.cpu())
        self.targets.append(last_target.cpu())
        return {"stop_epoch": True} if len(self.outputs) == self.n_batch else None


def activation_of(loss_func: Any) -> Callable[[Tensor], Tensor]:
    """Return what belongs to a loss: softmax to cross entropy, exp to NLL, a sigmoid to binary cross entropy.

    >>> activation_of(nn.CrossEntropyLoss())(torch.tensor([[0.0, 0.0]]))
    tensor([[0.5000, 0.5000]])
    """
    if isinstance(loss_func, nn.CrossEntropyLoss) or loss_func is functional.cross_entropy:
        return lambda output: output.softmax(1)
    if isinstance(loss_func, nn.NLLLoss) or loss_func is functional.nll_loss:
        return torch.exp
    if isinstance(loss_func, nn.BCEWithLogitsLoss) or loss_func is functional.binary_cross_entropy_with_logits:
        return torch.sigmoid
    return lambda output: output


def item_losses(loss_func: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each item, ``(n,)`` for losses of a number an item.

    >>> item_losses(nn.MSELoss(), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor([0., 4.])
    """
    losses: Any
    if isinstance(loss_func, nn.Module) and hasattr(loss_func, "reduction"):
        each: Any = copy.copy(loss_func)
        each.reduction = "none"
        losses = each(outputs, targets)
    elif getattr(loss_func, "__module__", "") == functional.__name__:
        losses = loss_func(outputs, targets, reduction="none")
    else:
        losses = torch.stack([loss_func(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))])
    return losses  # type: ignore[no-any-return]
