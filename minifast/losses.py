"""Loss functions, the choice of a default loss, and what a loss says about its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast.utils.checks import check_number, check_word


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


class LabelSmoothingCrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy against targets of ``1 - eps`` for the class and ``eps`` spread evenly over all classes.

    That is torch's ``CrossEntropyLoss(label_smoothing=eps)`` under fastai v1's name, and v1's formula; the classes are
    in dimension 1, where v1 had the last. The validation loss is smoothed too, so it is higher than without.

    Args:
        eps: how much to spread, in [0, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Source: C. Szegedy et al., "Rethinking the Inception architecture for computer vision" (2016), section 7.

    >>> loss = LabelSmoothingCrossEntropy(eps=0.2)
    >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.3269)
    """

    def __init__(self, eps: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction, label_smoothing=check_number("eps", eps, low=0, high=1))


class MixUpLoss(nn.Module):
    """The loss of items that are mixed of two: ``share`` of the loss against ``target``, the rest against ``other``.

    Without ``other``, as in validation, it is the loss itself.

    Args:
        loss_func: the loss of (output, target). Sum or mean of the items, as its ``reduction`` says (weights of
            classes do not weigh the mean); a function without one is called item by item.

    >>> loss = MixUpLoss(nn.MSELoss())
    >>> outputs, ones, zeros = torch.ones(2), torch.ones(2), torch.zeros(2)
    >>> loss(outputs, ones, zeros, torch.tensor([0.75, 0.5])), loss(outputs, ones)
    (tensor(0.3750), tensor(0.))
    """

    def __init__(self, loss_func: Any) -> None:
        super().__init__()
        self.loss_func = loss_func
        self.reduction = getattr(loss_func, "reduction", "mean")

    def forward(self, output: Tensor, target: Tensor, other: Any = None, share: Any = None) -> Tensor:
        """Return the loss of a batch; ``share`` is ``(n,)``."""
        if other is None:
            plain: Tensor = self.loss_func(output, target)
            return plain
        first, second = (item_losses(self.loss_func, output, each) for each in (target, other))
        losses = torch.lerp(second, first, share.view(-1, *[1] * (first.ndim - 1)).to(first.dtype))
        return losses.sum() if self.reduction == "sum" else losses.mean()


def unmixed(loss_func: Any) -> Any:
    """Return the loss that mixed items are trained with, as it is for others."""
    return loss_func.loss_func if isinstance(loss_func, MixUpLoss) else loss_func


def bare(loss_func: Any) -> Any:
    """Return a loss without mixing, and a function without the arguments that are bound to it."""
    loss_func = unmixed(loss_func)
    return loss_func.func if isinstance(loss_func, partial) else loss_func


def is_a(loss_func: Any, kind: type[nn.Module], function: Any) -> bool:
    """Whether a loss is of torch's ``kind``, or derived from it, or the ``function`` of it, also with arguments bound.

    >>> is_a(nn.MSELoss(), nn.MSELoss, None), is_a(partial(functional.l1_loss), nn.L1Loss, functional.l1_loss)
    (True, True)
    """
    return isinstance(bare(loss_func), kind) or bare(loss_func) is function


def is_cross_entropy(loss_func: Any) -> bool:
    """Whether a loss is torch's cross entropy, or derived from it."""
    return is_a(loss_func, nn.CrossEntropyLoss, functional.cross_entropy)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda output: output.softmax(1),
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "none": lambda output: output,
}


def activation_name(loss_func: Any) -> str:
    """Return what belongs to a loss: softmax to cross entropy, exp to NLL, a sigmoid to binary cross entropy.

    A loss of your own may have an attribute ``activation`` with one of these words, or ``"none"``.

    >>> activation_name(nn.CrossEntropyLoss()), activation_name(nn.MSELoss())
    ('softmax', 'none')
    """
    loss_func = unmixed(loss_func)
    said = getattr(loss_func, "activation", None)
    if isinstance(said, str):
        return check_word("the loss's activation", said, list(ACTIVATIONS))
    if is_cross_entropy(loss_func):
        return "softmax"
    if is_a(loss_func, nn.NLLLoss, functional.nll_loss):
        return "exp"
    if is_a(loss_func, nn.BCEWithLogitsLoss, functional.binary_cross_entropy_with_logits):
        return "sigmoid"
    return "none"


def activation_of(loss_func: Any) -> Callable[[Tensor], Tensor]:
    """Return the function of ``activation_name``.

    >>> activation_of(nn.CrossEntropyLoss())(torch.tensor([[0.0, 0.0]]))
    tensor([[0.5000, 0.5000]])
    """
    return ACTIVATIONS[activation_name(loss_func)]


def item_losses(loss_func: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each item: ``(n,)`` for losses of a number an item, else in the shape of the targets.

    >>> item_losses(nn.MSELoss(), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor([0., 4.])
    """
    losses: Any
    loss_func = unmixed(loss_func)
    if isinstance(loss_func, nn.Module) and hasattr(loss_func, "reduction"):
        each: Any = copy.copy(loss_func)
        each.reduction = "none"
        losses = each(outputs, targets)
    elif getattr(getattr(loss_func, "func", loss_func), "__module__", "") == functional.__name__:  # of a partial too
        losses = loss_func(outputs, targets, reduction="none")
    else:
        losses = torch.stack([loss_func(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))])
    return losses  # type: ignore[no-any-return]
