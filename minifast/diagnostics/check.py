"""What is wrong with a learner, in words, from one batch and before any training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast.data.bunch import DatasetType
from minifast.diagnostics.findings import CheckResult, Finding
from minifast.errors import DataError
from minifast.losses import activation_name, is_cross_entropy
from minifast.training import loop
from minifast.training.batch_checks import check_outputs, check_targets
from minifast.training.dispatcher import Dispatcher
from minifast.training.groups import check_groups
from minifast.training.non_finite import diagnose, is_finite
from minifast.training.optimizer import AdamW, OptimWrapper
from minifast.training.progress import NullProgress
from minifast.training.snapshot import preserve_learner, preserve_model
from minifast.training.state import State
from minifast.utils.checks import few
from minifast.utils.tensors import as_arguments, map_tensors, read_floats

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


FEW_STEPS = 10  # below which a schedule has no room to go up and down


ITEMS = 16  # of the batch that is to be learnt by heart


STEPS = 40  # in which a network that learns at all knows them


ENOUGH = 4  # before which weights may still wait for a gradient, behind others that begin at 0


RATES = (1e-2, 1e-1, 1e-3)


KNOWN = 0.8  # share of the loss of the best constant answer, below which something was learnt


REAL = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss)


def check(learn: Learner, epochs: int) -> CheckResult:
    """Look at a learner by one batch of its training data, and put back all that this changes."""
    x, y = learn.data.one_batch(DatasetType.Train, denorm=False, cpu=False)
    seen: list[str] = []
    with preserve_learner(learn), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is wrong, the findings tell
        learn.precision = None  # a loss that nobody scales would lose its small gradients in float16
        learn.model.train()
        findings = [*_inputs(x), *_set_up(learn, epochs), *_batch(learn, x, y, seen)]
    return CheckResult(findings, " ".join(seen))


def _shape(value: Any) -> str:
    shapes = [f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in as_arguments(value)]
    return " and ".join(shapes)


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# --- data


def _inputs(x: Any) -> Iterator[Finding]:
    for one in as_arguments(x):
        if not isinstance(one, Tensor) or not one.is_floating_point() or not is_finite(one):
            continue
        what = "The inputs have"
        if one.ndim == 2 and len(one) > 1:  # columns with a scale each: the farthest tells
            deviations, means = torch.std_mean(one.float(), 0, correction=0)
            i = int((means.abs() + deviations).argmax())
            mean, deviation, what = float(means[i]), float(deviations[i]), f"Column {i} of the inputs has"
        else:
            mean, deviation = float(one.float().mean()), float(one.float().std(correction=0))
        if abs(mean) > 3 or deviation > 5 or deviation < 0.02:
            yield Finding(
                f"{what} a mean of {mean:.3g} and a standard deviation of {deviation:.3g}.",
                "Networks are initialised for inputs around 0 with a deviation of about 1; others train slowly.",
                "data.normalize(), or scale them in the data set.",
                mild=True,
            )


# --- model, optimizer and schedule


def _set_up(learn: Learner, epochs: int) -> Iterator[Finding]:
    try:
        check_groups(learn.model, list(learn.layer_groups))
        held = {id(p) for group in learn.opt.opt.param_groups for p in group["params"]} if learn.opt else set()
        others = [name for name, p in learn.model.named_parameters() if p.requires_grad and id(p) not in held]
        if learn.opt and others:
            yield Finding(
                f"The optimizer does not have {few(others)}, which the model does.",
                "It was made before the model was changed, so these would not be trained.",
                "learn.create_opt(1e-3) makes a new one; better make a new Learner.",
            )
    except ValueError as error:
        yield Finding(
            f"The layer groups are not the model's: {_said(error)}",
            "The model was changed after the Learner was made; what is new would not be trained.",
            "Make a new Learner with the model as it is now.",
        )
        return
    frozen = [name for name, p in learn.model.named_parameters() if not p.requires_grad]
    trained = [p for p in learn.model.parameters() if p.requires_grad]
    if frozen:
        total = len(frozen) + len(trained)
        yield Finding(
            f"{len(frozen)} of {total} parameters are frozen: {few(frozen)}.",
            "They stay as they are." if trained else "Nothing is left to train.",
            "learn.unfreeze() trains all layer groups; or set requires_grad of those that are to be trained.",
            mild=bool(trained),
        )
    if trained:
        learn.create_opt(1e-3, learn.wd)
        if learn.opt.without_momentum:
            name = type(learn.opt.opt).__name__
            yield Finding(
                f"{learn.opt.without_momentum}.",
                "fit_one_cycle moves the momentum against the rate, which is part of what makes high rates bearable.",
                f"Give the Learner opt_func=partial(torch.optim.{name}, momentum=0.9), or train with fit."
                if "momentum" in learn.opt.opt.param_groups[0]
                else "Take AdamW or SGD with momentum, or train with fit.",
                mild=True,
            )
    batches = len(learn.data.train_dl)
    if batches * epochs < FEW_STEPS:
        yield Finding(
            f"{epochs} epoch{'s' if epochs > 1 else ''} of {batches} batches: {batches * epochs} steps in all.",
            f"A schedule of fewer than {FEW_STEPS} steps jumps, and one cycle has no room to warm up.",
            f"A smaller bs, or {math.ceil(FEW_STEPS / batches)} epochs or more; learn.check(epochs) takes your number.",
            mild=True,
        )


# --- one batch through model and loss


def _batch(learn: Learner, x: Any, y: Any, seen: list[str]) -> Iterator[Finding]:
    try:
        output = learn.model(*as_arguments(x))
    except Exception as error:  # whatever the model's code says
        yield Finding(
            f"The model fails on a batch of shape {_shape(x)}: {_said(error)}",
            "It cannot be trained.",
            "Make the model and the data fit each other; learn.summary() and data.one_batch() show them.",
        )
        return
    faults = list(_targets(learn, output, y))
    yield from faults
    if faults:
        return
    try:
        loss = learn.loss_func(output, *as_arguments(y))
    except Exception as error:  # whatever the loss's code says
        yield Finding(
            f"The loss fails on outputs {_shape(output)} and targets {_shape(y)}: {_said(error)}",
            "Nothing can be trained with it.",
            "Make the shapes and types fit, or give the Learner another loss_func.",
        )
        return
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        yield Finding(
            f"The loss is {f'of shape {tuple(loss.shape)}' if isinstance(loss, Tensor) else repr(loss)}.",
            "It must be a tensor of one number a batch, such as the mean.",
            "Give torch's losses reduction='mean', or take the mean in your own.",
        )
        return
    if not is_finite(loss) or not is_finite(output):
        yield Finding(
            " ".join(diagnose(learn.model, learn.loss_func, x, y)) or "The loss is not finite.",
            "Every weight becomes NaN with the first step.",
            "Mend the data, or look for a division or logarithm of 0 in model and loss.",
        )
        return
    yield from _outputs(learn, output)
    start = read_floats(loss.detach())[0]
    yield from _start(learn, output, start, seen)
    if not any(p.requires_grad for p in learn.model.parameters()):
        return  # which is a finding already
    try:
        torch.autograd.backward(loss)
    except Exception as error:  # whatever the model's code made of the graph
        yield Finding(
            f"The backward pass fails: {_said(error)}",
            "Nothing can be trained without gradients.",
            "Look for detach(), no_grad(), .item() or NumPy on the way from the model's parameters to the loss.",
        )
        return
    yield from _by_heart(learn, x, y, seen)


def _targets(learn: Learner, output: Any, y: Any) -> Iterator[Finding]:
    if not isinstance(y, Tensor) or not isinstance(output, Tensor):
        return
    name, dtype = type(learn.loss_func).__name__, str(y.dtype).removeprefix("torch.")
    if is_cross_entropy(learn.loss_func) and y.is_floating_point() and y.shape != output.shape:
        yield Finding(
            f"The targets are {dtype}, and cross entropy wants class numbers.",
            "The loss refuses them, or reads them as probabilities.",
            "Make them int64: y.long().",
        )
    elif is_cross_entropy(learn.loss_func) and y.dtype in (torch.int32, torch.int16, torch.int8, torch.bool):
        yield Finding(f"The targets are {dtype}.", "Cross entropy refuses all but int64.", "Make them int64: y.long().")
    elif isinstance(learn.loss_func, REAL) and not y.is_floating_point():
        yield Finding(
            f"The targets are {dtype}, and {name} wants real numbers.",
            "The loss or its backward pass refuses whole numbers.",
            "Make them float32: y.float(); or for classes give the Learner nn.CrossEntropyLoss().",
        )
    else:
        try:
            check_outputs(learn, output, y)
            check_targets(learn.loss_func, output, y)
        except DataError as error:
            what, _, way_out = str(error).rpartition("; ")
            yield Finding(f"{what}.", "The first batch would end the training, or train on nonsense.", f"So {way_out}")


def _outputs(learn: Learner, output: Any) -> Iterator[Finding]:
    kind = activation_name(learn.loss_func)
    if not isinstance(output, Tensor) or (output.ndim < 2 and kind != "sigmoid"):
        return
    if kind == "softmax" and bool((output >= 0).all()) and _are_one(output.sum(1)):
        yield Finding(
            "The outputs sum to 1: there is a softmax before cross entropy, which does one itself.",
            "Two of them flatten the loss, which then cannot come near 0 and falls slowly.",
            "Leave the softmax out of the model; predict and get_preds apply it.",
        )
    elif kind == "exp" and not _are_one(output.exp().sum(1)):
        yield Finding(
            "The outputs are no logarithms of probabilities, which NLLLoss wants.",
            "The loss has no lower end, and falls for ever without learning.",
            "Give the Learner nn.CrossEntropyLoss(), or end the model with nn.LogSoftmax(1).",
        )
    elif kind == "sigmoid" and bool(((output > 0) & (output < 1)).all()):
        yield Finding(
            "All outputs are between 0 and 1: a sigmoid or a ReLU seems to end the model.",
            "Binary cross entropy with logits does a sigmoid itself, and wants numbers of both signs before it.",
            "Leave it out of the model; or after a sigmoid give the Learner nn.BCELoss().",
        )


def _are_one(sums: Tensor) -> bool:
    return bool(((sums - 1).abs() < 1e-3).all())


def _start(learn: Learner, output: Any, start: float, seen: list[str]) -> Iterator[Finding]:
    means = getattr(learn.loss_func, "reduction", "mean") == "mean"
    if not is_cross_entropy(learn.loss_func) or not means or not isinstance(output, Tensor) or output.ndim < 2:
        seen.append(f"The loss starts at {start:.3g}.")
        return
    chance = math.log(output.shape[1])
    seen.append(f"The loss starts at {start:.3g}; a guess among {output.shape[1]} classes has {chance:.3g}.")
    if start > 2 * chance + 0.5:
        yield Finding(
            f"The loss starts at {start:.3g}, far above the {chance:.3g} of a guess among {output.shape[1]} classes.",
            "The model is sure of wrong answers, and the first steps only undo that.",
            "Scale the inputs, or make the last layer's weights smaller: its outputs should be around 0.",
        )


def _by_heart(learn: Learner, x: Any, y: Any, seen: list[str]) -> Iterator[Finding]:
    unused = [name for name, p in learn.model.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        yield Finding(
            f"No gradient reaches {few(unused)}.",
            "The output does not depend on them, or detach() or no_grad() cuts the way to them, so they never move.",
            "Use them in forward, or take them out of the model.",
        )
    x, y = _few(x), _few(y)
    items = len(as_arguments(y)[0]) if isinstance(as_arguments(y)[0], Tensor) else 0
    best, stuck = math.inf, []
    for rate in RATES:
        with preserve_model(learn.model, learn.loss_func):
            before = {name: p.detach().clone() for name, p in learn.model.named_parameters() if p.requires_grad}
            losses = _train(learn, x, y, rate)
            best = min(best, *losses)
            if rate == RATES[0]:
                now = dict(learn.model.named_parameters())
                stuck = [name for name, p in before.items() if name not in unused and torch.equal(p, now[name])]
            wanted = KNOWN * min(losses[0], _constant(learn, y))
        if best < wanted:
            seen.append(f"{len(losses)} steps on {items} items bring their loss from {losses[0]:.3g} to {best:.3g}.")
            break
    if stuck:
        yield Finding(
            f"The gradient of {few(stuck)} is 0 for every item.",
            "They do not move: units before them are dead, or what follows does not depend on them.",
            "Look for a ReLU whose inputs are all negative, weights of 0 in a row, or inputs that are all 0.",
        )
    if best >= wanted:
        yield Finding(
            f"{items} items of one batch cannot be learnt by heart: their loss is {best:.3g} after {STEPS} steps at "
            f"rates of {_rates()}, and {wanted / KNOWN:.3g} without looking at the inputs.",
            "What cannot learn a few items will not learn many.",
            "See whether the output depends on the input, inputs belong to their targets, and targets are far from 0.",
        )


def _rates() -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(RATES))


def _train(learn: Learner, x: Any, y: Any, rate: float) -> list[float]:
    """Train on one batch again and again, until it is known or ``STEPS`` are done, and return the losses."""
    learn.opt = OptimWrapper.create(AdamW, rate, [learn.model])
    dispatch = Dispatcher(State(1, NullProgress()), [])
    losses = dispatch.state.raw_losses
    for step in range(STEPS):
        loop.one_batch(learn, x, y, dispatch)
        if not math.isfinite(losses[-1]):
            return [loss if math.isfinite(loss) else math.inf for loss in losses]
        if step >= ENOUGH and losses[-1] < KNOWN * min(losses[0], _constant(learn, y)):
            break
    return list(losses)


def _few(values: Any) -> Any:
    """Return ``ITEMS`` items of a batch, spread over it; what is no tensor stays."""

    def chosen(one: Tensor) -> Tensor:
        if not one.ndim or len(one) <= ITEMS:
            return one
        return one[torch.linspace(0, len(one) - 1, ITEMS, device=one.device).long()]

    return map_tensors(chosen, values)


def _constant(learn: Learner, y: Any) -> float:
    """Return the loss of the best answer that does not look at the inputs, where that is known; else infinity."""
    if not isinstance(y, Tensor) or not len(y):
        return math.inf
    if is_cross_entropy(learn.loss_func) and not y.is_floating_point():
        shares = torch.bincount(y[y != getattr(learn.loss_func, "ignore_index", -100)]).float()
        shares = shares[shares > 0] / shares.sum()
        entropy = float(-(shares * shares.log()).sum())
        return entropy or math.inf  # of one class there is nothing to tell
    if isinstance(learn.loss_func, nn.MSELoss):
        return float((y - y.mean(0)).pow(2).mean()) or math.inf
    return math.inf
