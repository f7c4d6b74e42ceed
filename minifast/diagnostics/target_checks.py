"""Find problems of the targets of a batch: their type, their shape, and how the loss pairs them with the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast.data.labels import target_text
from minifast.data.loaders import TensorLoader
from minifast.data.targets import two_classes_cure
from minifast.diagnostics.check_result import Finding
from minifast.errors import DataError
from minifast.losses import is_cross_entropy, is_loss, setting_of
from minifast.training.batch_checks import (
    check_failed_batch,
    check_outputs,
    check_targets,
    class_dimension_cure,
    has_class_dimension_1,
    type_name,
)
from minifast.training.batch_size_effect import REMEDY, loss_effect
from minifast.training.broadcast_loss import broadcast_pairs
from minifast.utils.shapes import is_counted

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


LARGE_BATCH = 16  # in which balanced classes all occur
WIDE, NARROW, FAR = 10, 0.02, 5  # standard deviations, and distance of the means, that a short training does not reach
SCALED_LOSSES = (
    (nn.MSELoss, functional.mse_loss),
    (nn.L1Loss, functional.l1_loss),
    (nn.SmoothL1Loss, functional.smooth_l1_loss),
    (nn.HuberLoss, functional.huber_loss),
)
FLOAT_TARGET_LOSSES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss)


def find_target_problems(learn: Learner, output: Any, y: Any) -> Iterator[Finding]:
    """Yield why the loss cannot take the targets."""
    if not isinstance(y, Tensor) or not isinstance(output, Tensor):
        return
    name, dtype = type(learn.loss_func).__name__, type_name(y.dtype)
    if is_cross_entropy(learn.loss_func) and y.is_floating_point() and y.shape != output.shape:
        yield Finding(
            f"The targets are {dtype}, but cross entropy needs class numbers.",
            "The loss raises an error, or reads them as probabilities.",
            "Convert them to int64: y.long().",
        )
    elif is_cross_entropy(learn.loss_func) and y.dtype in (torch.int32, torch.int16, torch.int8, torch.bool):
        yield Finding(
            f"The targets are {dtype}, but cross entropy needs int64.",
            "The loss raises an error.",
            "Convert them to int64: y.long().",
        )
    elif isinstance(learn.loss_func, FLOAT_TARGET_LOSSES) and not y.is_floating_point():
        yield Finding(
            f"The targets are {dtype}, but {name} needs floats.",
            "The loss or its backward pass raises an error for integers.",
            "Convert them to float32: y.float(). For classes, pass nn.CrossEntropyLoss() to the Learner.",
        )
    else:
        try:
            check_outputs(learn, output, y)
            check_targets(learn.loss_func, output, y)
        except DataError as error:
            yield _finding_of(error)


def find_reason(learn: Learner, error: Exception, x: Any, output: Any, y: Any) -> Finding | None:
    """Return what the fit would report for a model or loss that fails on its first batch, if it knows the reason."""
    try:
        check_failed_batch(learn, error, x, output, y)
    except DataError as clearer:
        return _finding_of(clearer)
    return None


def _finding_of(error: DataError) -> Finding:
    problem, _, remedy = str(error).partition("; ")
    return Finding(
        f"{problem}." if remedy else problem,
        "The first batch would raise an error, or the loss would be meaningless.",
        f"{remedy[:1].upper()}{remedy[1:]}" if remedy else "Change the data or the model.",
    )


def check_regression(learn: Learner, output: Any, y: Any) -> Iterator[Finding]:
    """Yield findings about float targets: two classes, or another scale than the outputs."""
    yield from check_two_classes(learn, output, y)
    yield from check_target_scale(learn, output, y)


def check_single_class(learn: Learner, y: Any) -> Iterator[Finding]:
    """Yield a finding if all targets are one class: of the training set if it is in memory, else of a larger batch."""
    targets = y
    if learn.data.c == 1:  # `check_outputs` reports it
        return
    if isinstance(learn.data.train_dl, TensorLoader):
        targets = learn.data.train_dl.y
    elif not isinstance(y, Tensor) or len(y) < LARGE_BATCH:
        return
    if not is_cross_entropy(learn.loss_func) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return
    counted = targets[is_counted(targets, setting_of(learn.loss_func, "ignore_index", -100))]
    if counted.ndim != 1 or len(counted) < 2 or bool((counted != counted[0]).any()):
        return
    which = "training targets" if targets is not y else f"{len(counted)} targets of the first batch"
    yield Finding(
        f"All {which} are one class, {target_text(counted[0], learn.data.classes)}.",
        "A model that always answers with it has no error, so it learns nothing from the inputs.",
        "Add samples of the other classes, or shuffle the training data.",
        mild=targets is y,
    )


def check_two_classes(learn: Learner, output: Any, y: Any) -> Iterator[Finding]:
    """Yield a finding if the targets of a squared error are 0 and 1 only."""
    if not isinstance(y, Tensor) or not is_loss(learn.loss_func, nn.MSELoss, functional.mse_loss):
        return
    if y.is_floating_point() and y.numel() == len(y) > 1 and bool(((y == 0) | (y == 1)).all()):
        yield Finding(
            "The targets are 0 and 1 as floats, and the loss is the squared error.",
            "If they are two classes, the squared error trains more slowly than cross entropy.",
            f"{two_classes_cure(output, y)}.",
            mild=True,
        )


@torch.no_grad()
def check_target_scale(learn: Learner, output: Any, y: Any) -> Iterator[Finding]:
    """Yield a finding if regression targets are far from the outputs that the model begins with.

    A model that scales its outputs itself, such as that of ``tabular_learner``, begins near the targets.
    """
    if not isinstance(output, Tensor) or not isinstance(y, Tensor) or not y.is_floating_point():
        return
    is_scaled = any(is_loss(learn.loss_func, kind, function) for kind, function in SCALED_LOSSES)
    if not is_scaled or not (y.ndim and output.ndim) or output.numel() != y.numel() or not 1 < len(y) == len(output):
        return
    width = y.shape[1] if y.ndim == output.ndim == 2 else 1  # images, for example, have one scale
    columns = [values.cpu().double().reshape(-1, width) for values in (y, output)]  # not every device has float64
    (deviations, means), (starts, centers) = (torch.std_mean(values, 0, correction=0) for values in columns)
    gaps = (means - centers).abs()
    wide = (deviations > WIDE) & (deviations > 10 * starts)
    narrow = (deviations > 0) & (deviations < NARROW) & (10 * deviations < starts)
    far = (gaps > FAR) & (gaps > deviations)
    for i in (wide | narrow | far).nonzero().flatten().tolist()[:1]:
        subject = "The targets have" if len(means) == 1 else f"Column {i} of the targets has"
        yield Finding(
            f"{subject} a mean of {means[i]:.3g} and a standard deviation of {deviations[i]:.3g}.",
            "The outputs of a new model have a mean near 0 and a standard deviation near 1. Training must first reach "
            "the scale of the targets, which takes hundreds of steps.",
            "Train on (y - mean) / std, with mean and std of the training targets, and compute prediction * std + mean "
            "after the training.",
            mild=True,
        )


def check_class_axis(learn: Learner, output: Any, y: Any) -> Iterator[Finding]:
    """Yield a finding if the shapes do not tell which dimension of the outputs has the classes."""
    if not has_class_dimension_1(learn.loss_func) or not isinstance(output, Tensor) or not isinstance(y, Tensor):
        return
    if output.ndim > 2 and y.shape == output.shape[:-1] and y.shape[1:] == output.shape[2:]:
        yield Finding(
            f"The outputs {tuple(output.shape)} may have their classes in dimension 1 or in the last one; "
            f"cross entropy takes dimension 1.",
            "If the last dimension has the classes, the loss compares the wrong numbers, and no error shows it.",
            f"If it has, {class_dimension_cure(output)}.",
            mild=True,
        )


def check_pairing(learn: Learner, output: Any, y: Any) -> Iterator[Finding]:
    """Yield a finding if the loss compares each output with every target, because it broadcasts their shapes."""
    if isinstance(output, Tensor) and isinstance(y, Tensor) and (n_pairs := broadcast_pairs(learn, output, y)):
        yield Finding(
            f"The loss does not change when targets are exchanged between samples: outputs {tuple(output.shape)} and "
            f"targets {tuple(y.shape)} broadcast to {n_pairs} pairs.",
            "Each output is compared with the targets of all samples, so the model learns their mean.",
            "Give both the same shape in the loss, such as output.squeeze(1), or in the data set, such as y[:, None].",
        )


def check_loss_weight(learn: Learner, output: Any, x: Any, y: Any) -> Iterator[Finding]:
    """Yield a finding if the loss of a batch is not the weighted mean of the losses of its parts."""
    if effect := loss_effect(learn, output, x, y):
        yield Finding(
            "The loss of the batch is {:.4g}, but its two parts, weighted by their samples, give {:.4g}.".format(
                *effect
            ),
            "The loss is not the mean over the samples, so validation loss and accumulated steps depend on batch size.",
            f"{REMEDY}.",
            mild=True,
        )
