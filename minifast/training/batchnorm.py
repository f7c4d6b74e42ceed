"""Frozen layers with running statistics, and the loss with batch against running statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast.training.groups import BatchNorm, is_frozen
from minifast.training.snapshot import eval_mode, preserve_model
from minifast.utils.tensors import as_arguments, read_floats

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

MIN_SAMPLES = 8  # the statistics of a smaller batch are mostly noise
LARGE_SHARE = 0.5  # of the loss with batch statistics: a larger difference is reported
MIN_SHARE = 0.1  # of the first training loss: a smaller difference does not matter


def set_training_mode(learn: Learner) -> None:
    """Put the learner's model in training mode, and its optimizer, where that has modes.

    With ``train_bn=None``, frozen layers that have running statistics stay in evaluation mode.
    """
    learn.model.train()
    if learn.opt:
        learn.opt.train()
    if learn.train_bn is None:
        hold_frozen_statistics(learn.model, learn.layer_groups)


def hold_frozen_statistics(model: nn.Module, groups: Sequence[nn.Module]) -> None:
    """Put frozen layers with running statistics in evaluation mode, and the others in the mode of the model.

    A layer is frozen if it, a module around it or its layer group has parameters, and none of them requires a gradient.
    """
    if not model.training:
        return
    frozen: set[int] = set()
    if not all(parameter.requires_grad for parameter in model.parameters()):
        for part in [*groups, *model.modules()]:
            if id(part) not in frozen and is_frozen(part):
                frozen.update(map(id, part.modules()))
    for module in model.modules():
        if _has_statistics(module):
            module.training = id(module) not in frozen


def _has_statistics(module: nn.Module) -> bool:
    """Return whether a layer updates buffers in training mode, as BatchNorm and spectral normalization do."""
    names = [name for name, _ in module.named_buffers(recurse=False)]
    return any(name in ("running_mean", "running_var") or name.endswith("_u") for name in names)


def batchnorm_steps(model: nn.Module) -> dict[nn.Module, float]:
    """Return how often each BatchNorm layer has updated its running statistics."""
    return {
        layer: read_floats(layer.num_batches_tracked)[0]
        for layer in model.modules()
        if isinstance(layer, BatchNorm) and layer.track_running_stats and layer.num_batches_tracked is not None
    }


def has_trained_statistics(layer: nn.Module) -> bool:
    """Return whether the running statistics of a normalization layer differ from their initial values."""
    mean, variance = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or nn.parameter.is_lazy(mean):
        return False
    return bool(mean.any()) or not bool((variance == 1).all())


def compare_statistics(
    learn: Learner, layers: Sequence[Any], x: Any, y: Any, first_loss: float | None = None
) -> tuple[float, float] | None:
    """Compare the loss of one batch with batch statistics and with running statistics in BatchNorm layers.

    Dropout is off in both cases. All state and all generators are restored.

    Args:
        learn: the learner.
        layers: the BatchNorm layers that use batch statistics in training.
        x: inputs of the batch.
        y: targets of the batch.
        first_loss: the first training loss, to judge the size of a difference; by default the loss of the batch.

    Returns:
        Both losses if the one with running statistics is much larger; None otherwise, for a batch that is too small,
        and for a loss function whose calls may change it.
    """
    targets = as_arguments(y)
    first = targets[0] if targets else None
    if not layers or not isinstance(first, Tensor) or not first.ndim or len(first) < MIN_SAMPLES:
        return None
    if not isinstance(learn.loss_func, nn.Module) and not hasattr(learn.loss_func, "__code__"):
        return None
    try:
        with preserve_model(learn.loss_func), eval_mode(learn.model), torch.no_grad():
            running = float(learn.loss_func(learn.output_of(x, y), *targets))
            with _batch_statistics(layers):
                batch = float(learn.loss_func(learn.output_of(x, y), *targets))
    except Exception:  # the code of a model or a loss may raise anything; then there is nothing to compare
        return None
    scale = abs(batch if first_loss is None else first_loss)
    large = running - batch > max(LARGE_SHARE * abs(batch), MIN_SHARE * scale)
    return (batch, running) if large else None


@contextmanager
def _batch_statistics(layers: Sequence[Any]) -> Iterator[None]:
    """Let layers normalize by batch statistics without updating their running statistics."""
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer in layers:
            layer.training, layer.track_running_stats = False, True


def statistics_cure(learn: Learner) -> str:
    """Return what to do about running statistics that differ from batch statistics."""
    if learn.train_bn is not None and any(not parameter.requires_grad for parameter in learn.model.parameters()):
        return "Set learn.train_bn = None and freeze again: frozen BatchNorm layers then use running statistics too."
    return learn._advice.get("batchnorm", "Train for more steps, or give the BatchNorm layers a larger momentum.")


def statistics_warning(learn: Learner, steps: dict[nn.Module, float], x: Any, y: Any, first_loss: float | None) -> str:
    """Return a line for the end of a fit in which training and evaluation mode drifted apart; "" if they did not.

    Args:
        learn: the learner after the fit.
        steps: the result of ``batchnorm_steps`` before the fit.
        x: inputs of the last training batch.
        y: targets of the last training batch.
        first_loss: the first training loss of the fit.
    """
    layers = [layer for layer, count in batchnorm_steps(learn.model).items() if steps.get(layer, 0) < count]
    losses = compare_statistics(learn, layers, x, y, first_loss)
    if losses is None:
        return ""
    return (
        f"The loss of one batch is {losses[0]:.3g} with the batch statistics of training and {losses[1]:.3g} with the "
        f"running statistics of validation (BatchNorm). {statistics_cure(learn)}"
    )
