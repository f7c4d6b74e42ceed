"""Find the problems of a learner from one batch of each part, before any training; ``Learner.check`` calls it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast.data.parts import DatasetType
from minifast.diagnostics.batch_trial import check_inputs, message_of, try_batch
from minifast.diagnostics.check_result import CheckResult, Finding
from minifast.diagnostics.target_checks import (
    check_class_axis,
    check_loss_weight,
    check_pairing,
    check_regression,
    check_single_class,
)
from minifast.diagnostics.validation import check_validation
from minifast.losses import (
    activation_name,
    is_cross_entropy,
    is_loss,
    reduction_of,
    setting_of,
)
from minifast.training import loop
from minifast.training.batchnorm import compare_statistics, has_trained_statistics, set_training_mode, statistics_cure
from minifast.training.dispatcher import Dispatcher
from minifast.training.groups import BatchNorm, regroup
from minifast.training.lazy import initialize_lazy
from minifast.training.optimizer import AdamW, OptimWrapper
from minifast.training.parallel import group_of
from minifast.training.progress import NullProgress
from minifast.training.snapshot import preserve_learner, preserve_model
from minifast.training.state import State
from minifast.training.untrained import untrained_parameters
from minifast.utils.checks import counted, shortlist
from minifast.utils.shapes import is_counted
from minifast.utils.tensors import count_samples, map_tensors, read_floats

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


FEW_STEPS = 10  # with fewer steps a schedule has no room to rise and fall
OVERFIT_SAMPLES = 16
OVERFIT_STEPS = 40
MIN_STEPS = 4  # a weight behind a layer of zeros gets its first gradient after some steps
OVERFIT_LRS = (1e-2, 1e-1, 1e-3)
LEARNED = 0.8  # share of the best constant prediction's loss; below it the model uses its inputs


def check(learn: Learner, epochs: int) -> CheckResult:
    """Return the problems of a learner, and restore all state that the check changes."""
    observations: list[str] = []
    initialize_lazy(learn)
    with preserve_learner(learn), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the findings report the same problems
        x, y = learn.data.one_batch(DatasetType.Train, denorm=False, cpu=False)
        learn.precision = None  # float16 without loss scaling would round small gradients to 0
        set_training_mode(learn)
        findings = [*check_inputs(x), *check_single_class(learn, y), *_check_setup(learn, epochs)]
        findings += _check_statistics(learn, x, y)
        findings += _check_batch(learn, x, y, observations)
        findings += check_validation(learn, x, y, findings)
    if learn.data.valid_dl is None:
        observations.append("There are no validation data, so the table has no validation loss and no metrics.")
    if (group := group_of(learn)) is not None:
        observations.append(f"All {group.size} processes return this result, which is that of process 0.")
    return CheckResult(findings, " ".join(observations))


# --- model, optimizer and schedule


def _check_setup(learn: Learner, epochs: int) -> Iterator[Finding]:
    try:
        learn.layer_groups = regroup(learn.model, learn.layer_groups, learn._group_indices)
    except ValueError as error:
        yield Finding(
            f"The layer groups do not match the model: {message_of(error)}",
            "The model changed after the Learner was made; its new parameters would not be trained.",
            "Make a new Learner with the changed model.",
        )
        return
    frozen = [name for name, p in learn.model.named_parameters() if not p.requires_grad]
    trained = [p for p in learn.model.parameters() if p.requires_grad]
    if frozen:
        total = len(frozen) + len(trained)
        yield Finding(
            f"{len(frozen)} of {total} parameters are frozen: {shortlist(frozen)}.",
            "They are not trained." if trained else "No parameter is left to train.",
            "Call learn.unfreeze(), or set requires_grad of the parameters to train.",
            mild=bool(trained),
        )
    if trained:
        learn.create_opt(1e-3, learn.wd)
        if learn.opt.without_momentum:
            name = type(learn.opt.opt).__name__
            yield Finding(
                f"{learn.opt.without_momentum}.",
                "fit_one_cycle lowers the momentum while the learning rate rises: high learning rates stay stable.",
                f"Pass opt_func=partial(torch.optim.{name}, momentum=0.9) to the Learner, or train with fit."
                if "momentum" in learn.opt.opt.param_groups[0]
                else "Use AdamW or SGD with momentum, or train with fit.",
                mild=True,
            )
    batches = len(learn.data.train_dl)
    if (steps := batches * epochs) < FEW_STEPS:
        yield Finding(
            f"{counted(epochs, 'epoch')} of {counted(batches, 'batch', 'batches')}: {counted(steps, 'step')} in total.",
            f"With fewer than {FEW_STEPS} steps a schedule changes in large jumps and has no warm-up.",
            f"Use a smaller batch size, or train for {math.ceil(FEW_STEPS / batches)} epochs or more: "
            f"learn.check(epochs) takes the number.",
            mild=True,
        )


def _check_statistics(learn: Learner, x: Any, y: Any) -> Iterator[Finding]:
    layers = [
        layer
        for layer in learn.model.modules()
        if isinstance(layer, BatchNorm) and layer.training and has_trained_statistics(layer)
    ]
    if losses := compare_statistics(learn, layers, x, y):
        yield Finding(
            f"The loss is {losses[0]:.3g} with the batch statistics of BatchNorm layers, and {losses[1]:.3g} with "
            f"their running statistics.",
            "Training uses batch statistics, validation and predictions use running statistics.",
            statistics_cure(learn),
            mild=True,
        )


# --- one batch through model and loss


def _check_batch(learn: Learner, x: Any, y: Any, observations: list[str]) -> Iterator[Finding]:
    outcome = yield from try_batch(learn, x, y, "The first step would turn every weight into NaN.")
    if outcome is None:
        return
    output, loss = outcome
    yield from _check_outputs(learn, output)
    yield from check_class_axis(learn, output, y)
    yield from check_regression(learn, output, y)
    start = read_floats(loss.detach())[0]
    yield from _check_initial_loss(learn, output, start, observations)
    names = untrained_parameters(learn, loss)
    failure = _backward_failure(learn, loss)  # before another forward pass, which may change buffers that it needs
    yield from list(check_pairing(learn, output, y)) or check_loss_weight(learn, output, x, y)
    if names:
        yield Finding(
            f"The loss depends on parameters that are not trained: {shortlist(names)}.",
            "The optimizer gets the parameters of the model, and of a loss function that is an nn.Module.",
            "Make the modules part of the model or of the loss, or freeze them with requires_grad_(False).",
        )
    if failure is not None:
        yield failure
    elif any(p.requires_grad for p in learn.model.parameters()):  # else _check_setup reports it
        yield from _check_overfitting(learn, x, y, observations)


def _backward_failure(learn: Learner, loss: Tensor) -> Finding | None:
    """Run the backward pass of a model with trainable parameters, and return what fails."""
    if not any(p.requires_grad for p in learn.model.parameters()):
        return None
    try:
        torch.autograd.backward(loss)
    except Exception as error:  # autograd and custom functions can raise anything
        return Finding(
            f"The backward pass fails: {message_of(error)}",
            "Training needs gradients.",
            "Look for detach(), no_grad(), .item() or NumPy between the model's parameters and the loss.",
        )
    return None


def _check_outputs(learn: Learner, output: Any) -> Iterator[Finding]:
    kind = activation_name(learn.loss_func)
    if not isinstance(output, Tensor) or (output.ndim < 2 and kind != "sigmoid"):
        return
    if kind == "softmax" and bool((output >= 0).all()) and _all_near_one(output.sum(1)):
        yield Finding(
            "The outputs sum to 1: the model ends in a softmax, but cross entropy applies one itself.",
            "With two softmaxes the loss cannot come near 0 and falls slowly.",
            "Remove the softmax from the model; predict and get_preds apply it.",
        )
    elif kind == "exp" and not _all_near_one(output.exp().sum(1)):
        yield Finding(
            "The outputs are not log-probabilities, but NLLLoss needs them.",
            "The loss has no minimum: it falls without end and the model learns nothing.",
            "Pass nn.CrossEntropyLoss() to the Learner, or end the model with nn.LogSoftmax(1).",
        )
    elif kind == "sigmoid" and bool(((output > 0) & (output < 1)).all()):
        yield Finding(
            "All outputs are between 0 and 1: the model seems to end in a sigmoid or a ReLU.",
            "Binary cross entropy with logits applies a sigmoid itself and needs outputs of both signs.",
            "Remove the last activation; or keep the sigmoid and pass nn.BCELoss() to the Learner.",
        )


def _all_near_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < 1e-3).all())


def _check_initial_loss(learn: Learner, output: Any, start: float, observations: list[str]) -> Iterator[Finding]:
    is_mean_entropy = is_cross_entropy(learn.loss_func) and reduction_of(learn.loss_func) == "mean"
    if not is_mean_entropy or not isinstance(output, Tensor) or output.ndim < 2:
        observations.append(f"The initial loss is {start:.3g}.")
        return
    n_classes = output.shape[1]
    chance = math.log(n_classes)
    observations.append(
        f"The initial loss is {start:.3g}; uniform guessing among {n_classes} classes gives {chance:.3g}."
    )
    if start > 2 * chance + 0.5:
        yield Finding(
            f"The initial loss is {start:.3g}, far above the {chance:.3g} of uniform guessing among {n_classes} "
            "classes.",
            "The model is confident in wrong answers; the first steps only undo that.",
            "Scale the inputs, or reduce the last layer's initial weights so that its outputs are near 0.",
        )


def _check_overfitting(learn: Learner, x: Any, y: Any, observations: list[str]) -> Iterator[Finding]:
    """Train on a few samples of the batch; a model that cannot overfit them will not learn more of them."""
    unused = [name for name, p in learn.model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        yield Finding(
            f"{shortlist(unused)} get{'s' if len(unused) == 1 else ''} no gradient.",
            "The output does not depend on them, or detach() or no_grad() cuts the graph, so they are never trained.",
            "Use them in forward, or remove them from the model.",
        )
    x, y = _select_samples(x), _select_samples(y)
    n_samples = count_samples(y, x)
    best, unchanged = math.inf, []
    for lr in OVERFIT_LRS:
        with preserve_model(learn.model, learn.loss_func):
            before = {name: p.detach().clone() for name, p in learn.model.named_parameters() if p.requires_grad}
            losses = _overfit(learn, x, y, lr)
            best = min(best, *losses)
            if lr == OVERFIT_LRS[0]:
                after = dict(learn.model.named_parameters())
                unchanged = [name for name, p in before.items() if name not in unused and torch.equal(p, after[name])]
            target_loss = LEARNED * min(losses[0], _constant_loss(learn, y))
        if best < target_loss:
            observations.append(
                f"{len(losses)} steps on {n_samples} samples reduce their loss from {losses[0]:.3g} to {best:.3g}."
            )
            break
    if unchanged:
        yield Finding(
            f"The gradient of {shortlist(unchanged)} is 0 for every sample.",
            "These parameters do not change: the units before them are dead, or the output does not depend on them.",
            "Look for a ReLU with only negative inputs, for consecutive layers of zeros, and for inputs of zeros.",
        )
    if best >= target_loss:
        yield Finding(
            f"The model cannot overfit {n_samples} samples: their loss is {best:.3g} after {OVERFIT_STEPS} steps at "
            f"learning rates of {', '.join(f'{lr:g}' for lr in sorted(OVERFIT_LRS))}, and {target_loss / LEARNED:.3g} "
            f"for a constant prediction.",
            "A model that cannot learn a few samples cannot learn many.",
            "Check that the output depends on the input, that inputs match their targets, and the targets' scale.",
        )


def _overfit(learn: Learner, x: Any, y: Any, lr: float) -> list[float]:
    """Train on one batch until it is learned or for ``OVERFIT_STEPS`` steps, and return the losses."""
    learn.opt = OptimWrapper.create(AdamW, lr, [learn.model])
    dispatch = Dispatcher(State(1, NullProgress()), [])
    losses = dispatch.state.raw_losses
    for step in range(OVERFIT_STEPS):
        loop.one_batch(learn, x, y, dispatch)
        if not math.isfinite(losses[-1]):
            return [loss if math.isfinite(loss) else math.inf for loss in losses]
        if step >= MIN_STEPS and losses[-1] < LEARNED * min(losses[0], _constant_loss(learn, y)):
            break
    return list(losses)


def _select_samples(values: Any) -> Any:
    """Return up to ``OVERFIT_SAMPLES`` samples, evenly spaced over the batch; values that are not tensors stay."""

    def select(tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) <= OVERFIT_SAMPLES:
            return tensor
        return tensor[torch.linspace(0, len(tensor) - 1, OVERFIT_SAMPLES, device=tensor.device).long()]

    return map_tensors(select, values)


def _constant_loss(learn: Learner, y: Any) -> float:
    """Return the loss of the best prediction that ignores the inputs, or infinity where it is unknown."""
    if not isinstance(y, Tensor) or not len(y):
        return math.inf
    if is_cross_entropy(learn.loss_func) and not y.is_floating_point():
        shares = torch.bincount(y[is_counted(y, setting_of(learn.loss_func, "ignore_index", -100))]).float()
        shares = shares[shares > 0] / shares.sum()
        entropy = float(-(shares * shares.log()).sum())
        return entropy or math.inf  # with one class there is nothing to predict
    if is_loss(learn.loss_func, nn.MSELoss, functional.mse_loss):
        return float((y - y.mean(0)).pow(2).mean()) or math.inf
    return math.inf
