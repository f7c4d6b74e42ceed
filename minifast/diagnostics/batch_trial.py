"""Try a batch: the scale of its inputs, and what the model and the loss make of it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.diagnostics.check_result import Finding
from minifast.diagnostics.target_checks import find_reason, find_target_problems
from minifast.training.batch_checks import type_name
from minifast.training.failed_layer import describe_failed_layer
from minifast.training.non_finite import diagnose, is_finite
from minifast.utils.tensors import as_arguments

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


FAR, WIDE = 3, 5  # mean and standard deviation of inputs that initial weights are not made for


def has_scale(value: Any) -> bool:
    """Return whether a value is a tensor of finite floats."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0 and is_finite(value)


def scale_of(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviations and means of the columns of a table, or those of all numbers."""
    columns = tensor if tensor.ndim == 2 and len(tensor) > 1 else tensor.reshape(-1, 1)
    return torch.std_mean(columns.float(), 0, correction=0)


def check_inputs(x: Any) -> Iterator[Finding]:
    """Yield a finding for inputs of another scale than initial weights are made for."""
    for tensor in as_arguments(x):
        if not has_scale(tensor):
            continue
        deviations, means = scale_of(tensor)
        i = int((means.abs() + deviations).argmax())  # columns have different scales: report the most extreme
        if abs(means[i]) > FAR or deviations[i] > WIDE or deviations[i] < 0.02:
            subject = "The inputs have" if len(means) == 1 else f"Column {i} of the inputs has"
            yield Finding(
                f"{subject} a mean of {means[i]:.3g} and a standard deviation of {deviations[i]:.3g}.",
                "Initial weights are made for inputs with a mean near 0 and a standard deviation near 1; other inputs "
                "train slowly.",
                "Call data.normalize(), or scale the inputs in the dataset.",
                mild=True,
            )


def try_batch(
    learn: Learner, x: Any, y: Any, if_not_finite: str
) -> Generator[Finding, None, tuple[Any, Tensor] | None]:
    """Yield why the model or the loss fails on a batch, and return the outputs and the loss if they do not.

    Args:
        learn: the learner.
        x: the inputs.
        y: the targets.
        if_not_finite: what a loss that is NaN or infinite leads to.
    """
    try:
        output = learn.output_of(x, y)
    except Exception as error:  # a model can raise anything
        yield find_reason(learn, error, x, None, y) or Finding(
            f"The model fails on a batch of shape {shapes_of(x)}: {message_of(error)}. "
            f"{describe_failed_layer(learn.model, error)}".rstrip(". ")
            + ".",
            "It cannot be trained.",
            "Compare the model's input shape with data.one_batch(); change the model or the data.",
        )
        return None
    problems = list(find_target_problems(learn, output, y))
    yield from problems
    if problems:
        return None
    try:
        loss = learn.loss_func(output, *as_arguments(y))
    except Exception as error:  # a loss can raise anything
        yield find_reason(learn, error, x, output, y) or Finding(
            f"The loss fails on outputs {shapes_of(output)} and targets {shapes_of(y)}: {message_of(error)}",
            "No training is possible with it.",
            "Change the shapes or types of outputs or targets, or pass another loss_func to the Learner.",
        )
        return None
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        yield Finding(
            f"The loss must be a tensor with one number per batch, got "
            f"{f'shape {tuple(loss.shape)}' if isinstance(loss, Tensor) else repr(loss)}.",
            "The backward pass starts from one number.",
            "Use reduction='mean' in torch's losses; return the mean from a loss of your own.",
        )
        return None
    if not is_finite(loss) or not is_finite(output):
        sentences: list[str] = []
        with suppress(RuntimeError):  # of the backward pass: without gradients, as in validation, there is none
            for sentence in diagnose(learn.model, learn.loss_func, x, y):
                sentences.append(sentence)
        yield Finding(
            " ".join(sentences) or "The loss is not finite.",
            if_not_finite,
            "Remove NaN and infinity from the data, or look for a division or logarithm of 0 in model and loss.",
        )
        return None
    return output, loss


def shapes_of(value: Any) -> str:
    """Return the shapes and types of the tensors of a batch as text."""
    shapes = [
        f"{tuple(tensor.shape)} {type_name(tensor.dtype)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        for tensor in as_arguments(value)
    ]
    return " and ".join(shapes)


def message_of(error: BaseException) -> str:
    """Return the message of an error, cut short."""
    return shorten(str(error), 300, placeholder=" ...") or type(error).__name__
