"""Loss functions, and the weight of a batch in a mean loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast.errors import DataError
from minifast.model_loss import ModelLoss
from minifast.utils.checks import bound_arguments, check_number, check_word
from minifast.utils.compiled import uncompiled
from minifast.utils.public import suggest_names
from minifast.utils.shapes import is_counted, match_shapes
from minifast.utils.tensors import as_arguments, count_samples, take_rows, target_names


class MSELossFlat(nn.MSELoss):
    """Mean squared error of outputs reshaped to the targets' shape, so that (n, 1) and (n,) fit each other.

    Shapes that differ in more than dimensions of size 1 raise a ``DataError``.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the error."""
        return super().forward(*match_shapes(input, target))


LOSS_OF_KIND = {"class": nn.CrossEntropyLoss, "classes": nn.BCEWithLogitsLoss, "number": MSELossFlat}


def loss_of_labels(labels: Any) -> nn.Module | None:
    """Return the default loss for ``Labels``: by their kind; None for complex numbers."""
    return None if labels.targets.is_complex() else LOSS_OF_KIND[labels.kind]()


def classes_of(dataset: Any, target: str | Sequence[str] | None = None) -> list[Any] | None:
    """Return the class names of a data set or of the data set that it is a subset of; None without names.

    A data set of Hugging Face has the names in the feature ``target``, by default ``labels`` or ``label``.
    """
    features = getattr(dataset, "features", None)
    if isinstance(features, dict):
        columns = target_names(features, target)
        names = getattr(features[columns[0]], "names", None) if len(columns) == 1 else None
        return list(names) if names else None
    while dataset is not None and not hasattr(dataset, "classes"):
        dataset = getattr(dataset, "dataset", None)  # of a Subset
    classes = getattr(dataset, "classes", None)
    return None if classes is None else list(classes)


class LabelSmoothingCrossEntropy(nn.CrossEntropyLoss):
    """Cross entropy against targets of ``1 - eps`` for the class plus ``eps`` spread evenly over all classes.

    This is torch's ``CrossEntropyLoss(label_smoothing=eps)`` under fastai v1's name. The classes are in dimension 1;
    fastai v1 had them in the last. The validation loss is smoothed too, so it is higher than without smoothing.

    Args:
        eps: the probability to spread, in [0, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Source: C. Szegedy et al., "Rethinking the Inception architecture for computer vision" (2016), section 7.

    >>> loss = LabelSmoothingCrossEntropy(eps=0.2)
    >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    tensor(0.3269)
    """

    def __init__(self, eps: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction, label_smoothing=check_number("eps", eps, low=0, high=1))


class MixUpLoss(nn.Module):
    """Loss of samples mixed of two: ``share`` of the loss against ``target``, the rest against ``other``.

    Without ``other``, as in validation, it is ``loss_func`` itself.

    Args:
        loss_func: the loss of (output, target). Its ``reduction`` decides between sum and mean; the mean of mixed
            samples does not use class weights. A function without a reduction is called sample by sample.

    >>> loss = MixUpLoss(nn.MSELoss())
    >>> outputs, ones, zeros = torch.ones(2), torch.ones(2), torch.zeros(2)
    >>> loss(outputs, ones, zeros, torch.tensor([0.75, 0.5])), loss(outputs, ones)
    (tensor(0.3750), tensor(0.))
    """

    def __init__(self, loss_func: Any) -> None:
        super().__init__()
        self.loss_func = loss_func
        self.reduction = reduction_of(loss_func)

    def forward(self, output: Tensor, target: Tensor, other: Any = None, share: Any = None) -> Tensor:
        """Return the loss of a batch; ``share`` is ``(n,)``."""
        if other is None:
            plain: Tensor = self.loss_func(output, target)
            return plain
        first, second = (sample_losses(self.loss_func, output, values) for values in (target, other))
        losses = torch.lerp(second, first, share.view(-1, *[1] * (first.ndim - 1)).to(first.dtype))
        return losses.sum() if self.reduction == "sum" else losses.mean()


# --- what kind of loss a function is


def unwrap_mixup(loss_func: Any) -> Any:
    """Return the loss inside a MixUpLoss, without ``torch.compile`` around it, and any other loss as it is."""
    return uncompiled(loss_func.loss_func if isinstance(loss_func, MixUpLoss) else loss_func)


def unwrap_loss(loss_func: Any) -> Any:
    """Return a loss without MixUpLoss around it and without arguments bound by ``functools.partial``."""
    loss_func = unwrap_mixup(loss_func)
    return uncompiled(loss_func.func) if isinstance(loss_func, partial) else loss_func


def is_loss(loss_func: Any, kind: type[nn.Module], function: Any) -> bool:
    """Return whether a loss is an instance of torch's ``kind`` or its ``function``, also with arguments bound.

    >>> is_loss(nn.MSELoss(), nn.MSELoss, None), is_loss(partial(functional.l1_loss), nn.L1Loss, functional.l1_loss)
    (True, True)
    """
    loss_func = unwrap_loss(loss_func)
    return isinstance(loss_func, kind) or loss_func is function


def is_cross_entropy(loss_func: Any) -> bool:
    """Return whether a loss is torch's cross entropy or derived from it."""
    return is_loss(loss_func, nn.CrossEntropyLoss, functional.cross_entropy)


def setting_of(loss_func: Any, name: str, default: Any) -> Any:
    """Return a setting of a loss, such as ``reduction``: bound by ``functools.partial``, or the loss's attribute.

    >>> setting_of(partial(functional.cross_entropy, ignore_index=0), "ignore_index", -100)
    0
    """
    loss_func = unwrap_mixup(loss_func)
    bound = bound_arguments(loss_func)
    return bound[name] if name in bound else getattr(unwrap_loss(loss_func), name, default)


def reduction_of(loss_func: Any) -> str:
    """Return the reduction of a loss; a loss that names none counts as a mean.

    >>> reduction_of(nn.MSELoss(reduction="sum")), reduction_of(lambda output, target: output.mean())
    ('sum', 'mean')
    """
    reduction = setting_of(loss_func, "reduction", "mean")
    return reduction if isinstance(reduction, str) else "mean"


# --- the weight of a batch


def _elementwise() -> tuple[tuple[type[nn.Module], ...], tuple[Any, ...]]:
    names = ("MSE", "L1", "SmoothL1", "Huber", "BCE", "BCEWithLogits", "SoftMargin", "HingeEmbedding", "KLDiv")
    functions = ("mse", "l1", "smooth_l1", "huber", "soft_margin", "poisson_nll", "gaussian_nll", "hinge_embedding")
    classes = tuple(getattr(nn, f"{name}Loss") for name in (*names, "PoissonNLL", "GaussianNLL"))
    others = (functional.binary_cross_entropy, functional.binary_cross_entropy_with_logits, functional.kl_div)
    return classes, (*(getattr(functional, f"{name}_loss") for name in functions), *others)


ELEMENTWISE, ELEMENTWISE_FUNCTIONS = _elementwise()  # losses of torch whose mean is over the elements of the targets


def loss_weight(loss_func: Any, targets: Any, inputs: Any = None) -> Any:
    """Return the weight of a batch's loss, so that the weighted mean over batches is the loss of all samples.

    This is the only function that answers this question. The weight is what the loss divides by:

    - cross entropy and NLL: the number of targets that are not ``ignore_index``, or the sum of their class weights;
    - losses that are a mean over elements, such as ``MSELoss`` and ``BCEWithLogitsLoss``: the number of elements;
    - the loss that a model returns: see ``minifast.model_loss.ModelLoss``;
    - ``reduction="sum"``: 1. Sums of batches add up; see ``is_summed``.
    - any other loss: the number of samples, which are dimension 0 of the targets: put the samples first, also where
      the model takes the time first. **A loss of your own is assumed to be the mean over the samples.**
      ``learn.check()`` reports a loss for which the weight is wrong.

    Args:
        loss_func: the loss of (output, \\*targets): a module, a function, either with arguments bound by
            ``functools.partial``, or one of these in a ``MixUpLoss``.
        targets: the targets of the batch, as the loss gets them.
        inputs: the inputs of the batch, which count the samples where the targets cannot.

    Returns:
        A number, or for targets on another device than the CPU a tensor there, so that nothing waits for the device.

    >>> loss_weight(nn.CrossEntropyLoss(), torch.tensor([2, 0, -100])), loss_weight(nn.MSELoss(), torch.zeros(4, 3))
    (2, 12)
    >>> round(loss_weight(nn.CrossEntropyLoss(torch.tensor([0.1, 1.0, 10.0])), torch.tensor([2, 0, -100])), 4)
    10.1
    """
    if is_summed(loss_func):
        return 1
    if isinstance(loss_func, ModelLoss):
        weight = loss_func.weigh(targets)
        return count_samples(targets, inputs) if weight is None else weight
    values = as_arguments(targets)
    target = values[0] if len(values) else None
    if not isinstance(target, Tensor):
        return count_samples(targets, inputs)
    if is_cross_entropy(loss_func) or is_loss(loss_func, nn.NLLLoss, functional.nll_loss):
        if target.is_floating_point():  # probabilities of the classes, in dimension 1
            return target.numel() // target.shape[1] if target.ndim > 1 else 1
        if isinstance(loss_func, MixUpLoss) and len(values) > 1:
            return target.numel()
        return _class_weight(target, setting_of(loss_func, "weight", None), setting_of(loss_func, "ignore_index", -100))
    kind = unwrap_loss(loss_func)
    if (isinstance(kind, ELEMENTWISE) or kind in ELEMENTWISE_FUNCTIONS) and reduction_of(loss_func) == "mean":
        return target.numel()
    return count_samples(targets, inputs)


def _class_weight(target: Tensor, weight: Tensor | None, ignore_index: int) -> Any:
    counted = is_counted(target, ignore_index)
    if weight is None:
        total = counted.sum()
    else:
        total = (weight.to(target.device)[target.masked_fill(~counted, 0).long()] * counted).sum()
    return total.item() if total.is_cpu else total


def is_summed(loss_func: Any) -> bool:
    """Return whether a loss is a sum over the batch (``reduction="sum"``).

    The loss of several batches is then the sum of their losses, as it would be of one big batch.
    """
    return reduction_of(loss_func) == "sum"


def batch_size_effect(loss_func: Any, outputs: Any, targets: Any, inputs: Any = None) -> tuple[float, float] | None:
    """Return the loss of a batch and the loss that its two parts add up to, where the two differ; else None.

    The parts, weighted by ``loss_weight``, are a third of the batch and the rest, one sample and the rest, or the
    single samples (of a large batch 64 parts). Where the losses differ, the weight of ``loss_func`` is not known: a
    mean over batches then depends on the batch size. Returns None too where the loss fails on a part, or is random.

    >>> outputs, targets = torch.arange(6.0), torch.zeros(6)
    >>> batch_size_effect(nn.MSELoss(), outputs, targets) is None
    True
    >>> batch_size_effect(lambda output, target: (output - target).sum(), outputs, targets)
    (15.0, 9.666666666666666)
    """
    n = count_samples(targets, inputs)
    if n < 2:
        return None
    third, size = max(1, n // 3), math.ceil(n / 64)
    in_two = [[slice(None, i), slice(i, None)] for i in (third, 1)]
    for parts in (*in_two, [slice(i, i + size) for i in range(0, n, size)]):
        total = weights = 0.0
        try:
            with torch.no_grad():
                whole, again = (loss_func(outputs, *as_arguments(targets)) for _ in range(2))
                if differ(whole, again):  # it is random, or changes from call to call
                    return None
                for rows in parts:
                    output, target, x = (take_rows(values, rows, n) for values in (outputs, targets, inputs))
                    weight = float(loss_weight(loss_func, target, x))
                    if weight:
                        total += weight * float(loss_func(output, *as_arguments(target)))
                        weights += weight
        except Exception:  # a loss of your own may need the whole batch
            continue
        combined = total if is_summed(loss_func) else total / weights if weights else whole
        if differ(whole, combined):
            return float(whole), float(combined)
    return None


def differ(loss: Any, other: Any) -> bool:
    """Return whether a loss, a tensor with one number, differs from another one by more than rounding.

    >>> differ(torch.tensor(1.0), 1.01), differ(torch.tensor(1.0).bfloat16(), 1.01)
    (True, False)
    """
    tolerance = max(1e-3, 4 * torch.finfo(loss.dtype).eps)
    one, two = float(loss), float(other)
    return abs(one - two) > tolerance * max(abs(one), abs(two), 1e-3)


# --- activations and losses of samples


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda output: output.softmax(1 if output.ndim > 1 else 0),
    "softmax_last": lambda output: output.softmax(-1),
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "none": lambda output: output,
}


def activation_name(loss_func: Any) -> str:
    """Return the activation that belongs to a loss: softmax for cross entropy, exp for NLL, sigmoid for binary ones.

    A loss of your own may have an attribute ``activation`` with one of these words, or ``"none"``.

    >>> activation_name(nn.CrossEntropyLoss()), activation_name(nn.MSELoss())
    ('softmax', 'none')
    """
    loss_func = unwrap_mixup(loss_func)
    name = getattr(loss_func, "activation", None)
    if isinstance(name, str):
        return check_word("the loss's activation", name, list(ACTIVATIONS))
    if is_cross_entropy(loss_func):
        return "softmax"
    if is_loss(loss_func, nn.NLLLoss, functional.nll_loss):
        return "exp"
    if is_loss(loss_func, nn.BCEWithLogitsLoss, functional.binary_cross_entropy_with_logits):
        return "sigmoid"
    return "none"


def activation_of(loss_func: Any) -> Callable[[Tensor], Tensor]:
    """Return the activation that ``activation_name`` names, as a function.

    >>> activation_of(nn.CrossEntropyLoss())(torch.tensor([[0.0, 0.0]]))
    tensor([[0.5000, 0.5000]])
    """
    return ACTIVATIONS[activation_name(loss_func)]


def check_broadcast(loss_func: Any, output: Any, target: Any) -> None:
    """Check that an elementwise loss of torch gets outputs in the shape of the targets.

    Raises:
        DataError: if torch would broadcast them, (n, 1) and (n,) to (n, n) for example.
    """
    if loss_func is functional.cross_entropy or type(loss_func) is nn.CrossEntropyLoss:
        return  # the common case, and never elementwise
    targets = as_arguments(target)
    target = targets[0] if len(targets) else None
    if getattr(output, "shape", None) == getattr(target, "shape", None):
        return
    kind = unwrap_loss(loss_func)
    if type(kind) in ELEMENTWISE or kind in ELEMENTWISE_FUNCTIONS:
        shapes = [tuple(getattr(values, "shape", ())) for values in (output, target)]
        raise DataError(
            f"The model's outputs have the shape {shapes[0]} and the targets {shapes[1]}, which "
            f"{getattr(kind, '__name__', type(kind).__name__)} would broadcast; {same_shape(output, target)}."
        )


def same_shape(output: Any, target: Any) -> str:
    """Return how to give outputs and targets the same shape, where one of them lacks a dimension of size 1.

    >>> same_shape(torch.zeros(8, 1), torch.zeros(8))
    'give the targets as y[:, None] in the data, or let the model return output.squeeze(1)'
    """
    if isinstance(output, Tensor) and isinstance(target, Tensor) and output.ndim and target.ndim:
        if target[:, None].shape == output.shape:
            return "give the targets as y[:, None] in the data, or let the model return output.squeeze(1)"
        if output[:, None].shape == target.shape:
            return "give the targets as y.squeeze(1) in the data, or let the model return output[:, None]"
    return "give both the same shape"


def sample_losses(loss_func: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample: ``(n,)`` for losses of one number per sample, else the shape of the targets.

    Raises:
        DataError: if a function without a reduction fails on a single sample, or torch would broadcast the shapes.

    >>> sample_losses(nn.MSELoss(), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor([0., 4.])
    """
    losses: Any
    loss_func = unwrap_mixup(loss_func)
    if isinstance(loss_func, ModelLoss):
        if not loss_func.is_classification or targets.is_floating_point():
            loss_func(outputs)  # raises an error
        return functional.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none")
    check_broadcast(loss_func, outputs, targets)
    if isinstance(loss_func, nn.Module) and hasattr(loss_func, "reduction"):
        unreduced: Any = copy.copy(loss_func)
        unreduced.reduction = "none"
        losses = unreduced(outputs, targets)
    elif getattr(getattr(loss_func, "func", loss_func), "__module__", "") == functional.__name__:  # also of a partial
        losses = loss_func(outputs, targets, reduction="none")
    else:
        try:
            losses = torch.stack([loss_func(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))])
        except (RuntimeError, ValueError, IndexError) as error:
            raise DataError(
                f"`loss_func` fails on a single sample, so the loss of each sample is not known: {error} If the "
                f"function calls squeeze(), name the dimension, such as squeeze(1)."
            ) from error
    return losses  # type: ignore[no-any-return]


suggest_names(__name__)
