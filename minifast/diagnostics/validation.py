"""Find what is wrong with the validation data, but not with the training data, on their first batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.data.labels import target_text
from minifast.data.loaders import TensorLoader
from minifast.data.parts import DatasetType
from minifast.diagnostics.batch_trial import check_inputs, message_of, shapes_of, try_batch
from minifast.diagnostics.check_result import Finding
from minifast.diagnostics.target_checks import LARGE_BATCH, check_class_axis, check_pairing, check_target_scale
from minifast.losses import is_cross_entropy, setting_of
from minifast.training.snapshot import eval_mode
from minifast.utils.checks import shortlist
from minifast.utils.shapes import is_counted
from minifast.utils.tensors import as_arguments

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

PER_CLASS = 5  # samples in the mean; with more, a class without a sample is hardly chance


def check_validation(learn: Learner, train_x: Any, found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the problems of the first validation batch that the first training batch does not have.

    Args:
        learn: the learner.
        train_x: the inputs of the training batch.
        found: what was found in it; the same problem has the same remedy.
    """
    if learn.data.valid_dl is None:
        return
    try:
        x, y = learn.data.one_batch(DatasetType.Valid, denorm=False, cpu=False)
    except Exception as error:  # a data set can raise anything
        yield Finding(
            f"The first validation batch cannot be read: {message_of(error)}",
            "The first epoch would end with an error, or have no validation loss.",
            "Check the samples of the validation set one by one.",
        )
        return
    remedies = {finding.remedy for finding in found}
    with eval_mode(learn.model), torch.no_grad():
        for finding in (*_check_kind(x, train_x), *_try(learn, x, y)):
            if finding.remedy not in remedies:
                yield replace(finding, what=f"In the validation data: {finding.what}")
    yield from _check_classes(learn)


def _try(learn: Learner, x: Any, y: Any) -> Iterator[Finding]:
    yield from check_inputs(x)
    outcome = yield from try_batch(learn, x, y, "The validation loss and the metrics would be NaN or infinite.")
    if outcome is not None:
        yield from check_class_axis(learn, outcome[0], y)
        yield from check_target_scale(learn, outcome[0], y)
        yield from check_pairing(learn, outcome[0], y)


def _check_kind(values: Any, of_training: Any) -> Iterator[Finding]:
    """Yield a finding about inputs of another type or shape than in training; images and columns have one size."""
    pairs = list(zip(as_arguments(values), as_arguments(of_training), strict=False))
    if len(as_arguments(values)) != len(as_arguments(of_training)) or any(map(_differ, *zip(*pairs, strict=True))):
        yield Finding(
            f"The inputs are {shapes_of(values)}, in the training data {shapes_of(of_training)}.",
            "A model that learned from the one may fail on the other, or predict it badly.",
            "Prepare both parts of the data in the same way.",
            mild=True,
        )


def _differ(value: Any, of_training: Any) -> bool:
    if not isinstance(value, Tensor) or not isinstance(of_training, Tensor):
        return type(value) is not type(of_training)
    if value.dtype != of_training.dtype or value.ndim != of_training.ndim:
        return True
    return value.is_floating_point() and value.ndim in (2, 4) and value.shape[1:] != of_training.shape[1:]


def _check_classes(learn: Learner) -> Iterator[Finding]:
    """Yield the classes that only one of the two parts has, where all targets are in memory."""
    loaders = learn.data.train_dl, learn.data.valid_dl
    if not is_cross_entropy(learn.loss_func) or not all(isinstance(loader, TensorLoader) for loader in loaders):
        return
    targets = [loader.y for loader in loaders]
    if any(not isinstance(y, Tensor) or y.is_floating_point() or y.ndim != 1 for y in targets):
        return
    trained, validated = (y[is_counted(y, setting_of(learn.loss_func, "ignore_index", -100))] for y in targets)
    of_training, of_validation = set(trained.tolist()), set(validated.tolist())

    def names(classes: set[int]) -> str:
        return shortlist(target_text(torch.tensor(number), learn.data.classes) for number in sorted(classes))

    if unknown := of_validation - of_training:
        yield Finding(
            f"The validation data have samples of {names(unknown)}, the training data have none.",
            "The model cannot learn to predict what it never sees.",
            "Add training samples of it, or split the data at random.",
        )
    missing = of_training - of_validation
    if missing and len(validated) >= max(LARGE_BATCH, PER_CLASS * len(of_training)):
        yield Finding(
            f"The validation data have no sample of {names(missing)}.",
            "The validation loss and the metrics say nothing about it.",
            "Add validation samples of it, or split the data at random.",
            mild=True,
        )
