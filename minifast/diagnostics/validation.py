"""Find what is wrong with the validation data, but not with the training data, on their first batches."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.data.labels import target_text
from minifast.data.loaders import TensorLoader
from minifast.data.parts import DatasetType
from minifast.diagnostics.batch_trial import FAR, WIDE, has_scale, message_of, scale_of, shapes_of, try_batch
from minifast.diagnostics.check_result import Finding
from minifast.diagnostics.target_checks import check_class_axis, check_pairing
from minifast.losses import is_cross_entropy, setting_of
from minifast.training.snapshot import eval_mode
from minifast.utils.checks import shortlist
from minifast.utils.shapes import is_counted
from minifast.utils.tensors import as_arguments

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

OTHER = 10  # standard deviations of the training batch, and times its own; a part of sorted data has less


def check_validation(learn: Learner, train_x: Any, train_y: Any, found: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the problems of the first validation batch that the first training batch does not have.

    Args:
        learn: the learner.
        train_x: the inputs of the training batch.
        train_y: its targets.
        found: what was found in it.
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
    problems = {_problem_of(finding) for finding in found}
    with eval_mode(learn.model), torch.no_grad():
        differences = (*_check_kind(x, train_x), *_check_scale("inputs", x, train_x))
        for finding in (*differences, *_check_scale("targets", y, train_y), *_try(learn, x, y)):
            if _problem_of(finding) not in problems:
                yield replace(finding, what=f"In the validation data: {finding.what}")
    yield from _check_classes(learn)


def _problem_of(finding: Finding) -> tuple[str, str]:
    """Return what is the same where both parts have a problem: the sentence without its numbers, and the remedy."""
    return re.sub(r"[\d.e+-]*\d", "", finding.what.partition(". ")[0]), finding.remedy


def _try(learn: Learner, x: Any, y: Any) -> Iterator[Finding]:
    outcome = yield from try_batch(learn, x, y, "The validation loss and the metrics would be NaN or infinite.")
    if outcome is not None:
        yield from check_class_axis(learn, outcome[0], y)
        yield from check_pairing(learn, outcome[0], y)


def _check_kind(values: Any, of_training: Any) -> Iterator[Finding]:
    """Yield a finding about inputs of another type or shape than in training; images and columns have one size."""
    pairs = zip(as_arguments(values), as_arguments(of_training), strict=False)
    if len(as_arguments(values)) != len(as_arguments(of_training)) or any(_differ(*pair) for pair in pairs):
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


def _check_scale(name: str, values: Any, of_training: Any) -> Iterator[Finding]:
    """Yield a finding about numbers that are large, and of another scale than in training.

    The first validation batch is often a part of sorted data, which may be narrow and away from the mean.
    """
    for tensor, trained in zip(as_arguments(values), as_arguments(of_training), strict=False):
        if not has_scale(tensor) or not has_scale(trained) or _differ(tensor, trained):
            continue
        (deviations, means), (usual, centers) = (scale_of(part.cpu()) for part in (tensor, trained))
        if len(means) != len(centers):  # a batch of one row of a table
            continue
        is_large = (means.abs() > FAR) | (deviations > WIDE)
        is_other = ((means - centers).abs() > OTHER * usual) | (deviations > OTHER * usual)
        found = is_large & is_other & (usual > 0)  # one value in a batch tells no scale
        if not bool(found.any()):
            continue
        i = int(torch.where(found, means.abs() + deviations, -1).argmax())
        numbers = [
            f"a mean of {mean[i]:.3g} and a standard deviation of {deviation[i]:.3g}"
            for mean, deviation in ((means, deviations), (centers, usual))
        ]
        yield Finding(
            f"{f'Column {i} of the {name} has' if len(means) > 1 else f'The {name} have'} {numbers[0]}, in the "
            f"training data {numbers[1]}.",
            "A model that learned from the one predicts the other badly.",
            "Prepare both parts of the data in the same way.",
            mild=True,
        )


def _check_classes(learn: Learner) -> Iterator[Finding]:
    """Yield the classes that only one of the two parts has, where all targets are in memory."""
    loaders = learn.data.train_dl, learn.data.valid_dl
    if not is_cross_entropy(learn.loss_func) or not all(isinstance(loader, TensorLoader) for loader in loaders):
        return
    targets = [loader.y for loader in loaders]
    if any(not isinstance(y, Tensor) or y.is_floating_point() or y.ndim != 1 for y in targets):
        return
    trained, validated = (y[is_counted(y, setting_of(learn.loss_func, "ignore_index", -100))] for y in targets)
    of_training, of_validation = Counter(trained.tolist()), set(validated.tolist())

    def names(classes: set[int]) -> str:
        return shortlist(target_text(torch.tensor(number), learn.data.classes) for number in sorted(classes))

    if unknown := of_validation - of_training.keys():
        yield Finding(
            f"The validation data have samples of {names(unknown)}, the training data have none.",
            "The model cannot learn to predict what it never sees.",
            f"Add training samples of {_pronoun(unknown)}, or split the data at random.",
        )
    # With this many samples expected of a class, the chance that any class has none is below 1 percent.
    least = (5 + math.log(max(1, len(of_training)))) * len(trained)
    if missing := {c for c, n in of_training.items() if c not in of_validation and n * len(validated) >= least}:
        yield Finding(
            f"The validation data have no sample of {names(missing)}.",
            f"The validation loss and the metrics say nothing about {_pronoun(missing)}.",
            f"Add validation samples of {_pronoun(missing)}, or split the data at random.",
            mild=True,
        )


def _pronoun(classes: set[int]) -> str:
    return "it" if len(classes) == 1 else "them"
