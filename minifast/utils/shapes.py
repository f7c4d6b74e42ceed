"""Shapes of outputs and targets: which number belongs to which, so that nothing is computed on broadcast shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minifast.errors import DataError
from minifast.utils.tensors import read_floats


def match_shapes(output: Any, target: Any, may_be_complex: bool = False) -> tuple[Tensor, Tensor]:
    """Return outputs in the shape of the targets, and the targets; they may differ in dimensions of size 1 only.

    Raises:
        DataError: if a number of the one has no counterpart in the other, or one is complex and must not be.

    >>> import torch
    >>> output, target = match_shapes(torch.zeros(3, 1), torch.zeros(3))
    >>> output.shape, target.shape
    (torch.Size([3]), torch.Size([3]))
    """
    check_tensors(output, target, may_be_complex)
    if output.shape != target.shape and not _is_same_but_for_ones(output, target):
        are_classes = output.ndim > target.ndim and not target.is_floating_point()
        hint = " For class numbers use accuracy or error_rate, and cross entropy as the loss." if are_classes else ""
        raise DataError(
            f"The outputs have the shape {tuple(output.shape)} and the targets {tuple(target.shape)}, which would be "
            f"broadcast; give both the same shape (dimensions of size 1 may differ).{hint}"
        )
    return output.reshape(target.shape), target


def match_classes(output: Any, target: Any, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Return outputs ``(..., classes)`` and targets ``(...)``; a single output per target is ``(..., 1)``.

    The classes are in the last dimension or in dimension 1, whichever fits the targets. Where both fit, they are in
    dimension ``axis``, by default the last one.

    Raises:
        DataError: if the targets are no class numbers for these outputs.

    >>> import torch
    >>> [values.shape for values in match_classes(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8))]
    [torch.Size([2, 8, 8, 3]), torch.Size([2, 8, 8])]
    """
    check_tensors(output, target)
    shape, labels = tuple(output.shape), tuple(target.shape)
    single = output.ndim == 1 or (output.ndim > 1 and 1 in (shape[1], shape[-1]))
    if single and _is_same_but_for_ones(output, target):
        return output.reshape(*labels, 1), target
    if output.ndim == 2 and target.numel() == len(output):  # also the flattened positions of sequences
        return output, target.flatten()
    last = output.ndim > 1 and labels in (shape[:-1], (*shape[:-1], 1))
    second = output.ndim > 2 and labels in ((shape[0], *shape[2:]), (shape[0], 1, *shape[2:]))
    if last and not (second and axis == 1):
        return output, target.reshape(shape[:-1])
    if second:
        return output.movedim(1, -1), target.reshape(shape[0], *shape[2:])
    hint = "give class numbers (n,) or (n, ...), one for each (n, classes, ...) or (n, ..., classes) of the outputs."
    if shape == labels:
        hint = "for several labels per sample use accuracy_thresh, for one-hot targets give class numbers."
    raise DataError(f"The outputs have the shape {shape} and the targets {labels}; {hint}")


def predict_classes(
    output: Any, target: Any, thresh: float = 0.0, ignore_index: int = -100, axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return predicted classes, actual classes, a mask of the targets that count, and the number of classes.

    A single output per target predicts class 1 where it is above ``thresh``, otherwise class 0.

    Raises:
        DataError: if outputs and targets do not fit, or the targets of a single output are not in [0, 1].

    >>> import torch
    >>> predict_classes(torch.tensor([[-2.0], [3.0]]), torch.tensor([0.0, 1.0]))[:2]
    (tensor([0, 1]), tensor([0, 1]))
    """
    output, target = match_classes(output, target, axis)
    counted = is_counted(target, ignore_index)
    n_classes = output.shape[-1]
    if n_classes > 1:
        return output.argmax(dim=-1), target.long(), counted, n_classes
    return (output[..., 0] > thresh).long(), binary_targets(target, counted), counted, 2


def is_counted(target: Tensor, ignore_index: int) -> Tensor:
    """Return a mask of the targets that are not ``ignore_index``.

    A negative number is no target in unsigned integers, though torch compares it as one: -100 as 156 in uint8.

    >>> is_counted(torch.tensor([156, 2], dtype=torch.uint8), -100)
    tensor([True, True])
    """
    return (target.long() if target.dtype is torch.uint8 else target) != ignore_index


SINGLE_OUTPUT = (
    "a single output per target tells two classes apart; number them 0 and 1, or give the model one output per class. "
    "For regression use rmse, mae or r2_score."
)


def counted_only(output: Any, target: Any, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Return the outputs and targets of one shape as vectors, without the targets that are ``ignore_index``.

    >>> counted_only(torch.tensor([[1.0], [2.0]]), torch.tensor([-100, 3]), -100)
    (tensor([2.]), tensor([3]))
    """
    output, target = match_shapes(output, target, may_be_complex=True)
    counted = is_counted(target, ignore_index)
    return output[counted], target[counted]


def binary_targets(target: Tensor, counted: Tensor | None = None, reason: str = SINGLE_OUTPUT) -> Tensor:
    """Return targets in [0, 1] as class numbers 0 and 1.

    Args:
        target: the targets.
        counted: a mask of the targets that count; the others become 0.
        reason: why they must be in [0, 1], and what to do; the end of the error.

    Raises:
        DataError: if a target that counts is outside of [0, 1].
    """
    checked = target.float() if counted is None else target.float().masked_fill(~counted, 0.0)
    if checked.numel():
        low, high = read_floats(torch.stack(checked.aminmax()))
        if not 0 <= low <= high <= 1:
            raise DataError(f"The targets range from {low:g} to {high:g}, but {reason}")
    return (checked > 0.5).long()


def check_tensors(output: Any, target: Any, may_be_complex: bool = False) -> None:
    """Raise an error unless outputs and targets are one tensor each, of real numbers or ``may_be_complex``."""
    for name, value in (("outputs", output), ("targets", target)):
        if not isinstance(value, Tensor):
            raise DataError(
                f"The {name} are a {type(value).__name__}, but this function compares one tensor of outputs with one "
                f"of targets; select them in a function of your own."
            )
        if value.is_complex() and not may_be_complex:
            raise DataError(
                f"The {name} are complex numbers, for which this function is not defined; use mse, rmse or mae, or a "
                f"function of your own, such as one of torch.view_as_real(output)."
            )


def _is_same_but_for_ones(output: Tensor, target: Tensor) -> bool:
    same_length = output.shape[:1] == target.shape[:1]
    return same_length and [n for n in output.shape[1:] if n != 1] == [n for n in target.shape[1:] if n != 1]
