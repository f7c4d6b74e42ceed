"""The training loop: the only one in the library."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from minifast.errors import EmptyEpochError
from minifast.losses import check_broadcast, is_summed, loss_weight
from minifast.training.averages import WeightedMean, check_loss
from minifast.training.batchnorm import set_training_mode
from minifast.training.dispatcher import Dispatcher
from minifast.training.state import EPOCH_END, State
from minifast.utils.tensors import as_arguments, as_pair

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def fit(learn: Learner, dispatch: Dispatcher) -> None:
    """Train until all epochs are done or a callback stops; ``on_train_end`` happens in any case.

    Raises:
        EmptyEpochError: a part of the data gave no batch in an epoch.
        DataError: a batch is no pair.
    """
    state, bar = dispatch.state, dispatch.state.pbar
    try:
        bar.start(state.n_epochs)
        dispatch("on_train_begin", metrics=True)
        dispatch.jump_to_epoch()
        while state.epoch < state.n_epochs and not state.stop_training:
            state.begin_epoch()
            set_training_mode(learn)
            dispatch("on_epoch_begin", metrics=True)
            for batch in bar.track(state.batches(learn.data.train_dl, trains=True)):
                one_batch(learn, *as_pair(batch), dispatch)
                if state.stop_epoch:
                    break
            validated = begin_validation(learn, state)
            state.last_metrics = [validate(learn, learn.data.valid_dl, dispatch) if validated else None]
            check_epoch(learn, state, validated)
            dispatch("on_epoch_end", metrics=validated)
            state.end_epoch()
    except BaseException as error:
        state.exception = error
        raise
    finally:
        learn.opt.train(False)
        dispatch.end()


def begin_validation(learn: Learner, state: State) -> bool:
    """Switch to the optimizer's evaluation weights, where it has such, and return whether the epoch validates."""
    learn.opt.train(False)
    return bool(learn.data.valid_dl) and not state.skip_validate


def check_epoch(learn: Learner, state: State, validated: bool) -> None:
    """Begin the end of an epoch; raise an error if the training or validation data gave no batch in it."""
    for part, loader, empty in (
        ("training", learn.data.train_dl, not state.num_batch),
        ("validation", learn.data.valid_dl, validated and state.last_metrics == [None]),
    ):
        if empty:
            raise EmptyEpochError(
                f"The {part} data gave no batch in epoch {state.epoch}, though the length of the loader is "
                f"{len(loader)}. If it can be iterated only once, pass one that starts anew in each epoch, such as a "
                f"torch DataLoader or a list."
            )
    state.stage = EPOCH_END


def compute_loss(learn: Learner, state: State) -> Any:
    """Return the loss of the last output, which becomes ``last_loss``; of several processes, that of all of them."""
    check_broadcast(learn.loss_func, state.last_output, state.last_target)
    loss = learn.loss_func(state.last_output, *as_arguments(state.last_target))
    check_loss(loss)
    state.last_loss = loss if learn.parallel is None else learn.parallel.whole_loss(loss)
    return state.last_loss


def loss_again(learn: Learner, state: State) -> Any:
    """Compute the loss of the batch and its gradients again, for an optimizer that changed the weights in its step."""
    learn.opt.zero_grad()
    with torch.enable_grad():
        loss = learn.loss_func(learn.output_of(state.last_input, state.last_target), *as_arguments(state.last_target))
        loss.backward()
    return loss


def one_batch(learn: Learner, xb: Any, yb: Any, dispatch: Dispatcher) -> None:
    """Train on one batch: forward, loss, backward and step, with an event before and after each."""
    state = dispatch.state
    state.begin_batch(xb, yb, train=True)
    dispatch("on_batch_begin")
    state.last_output = learn.output_of(state.last_input, state.last_target)
    dispatch("on_loss_begin")
    state.raw_losses.append(compute_loss(learn, state))
    dispatch("on_backward_begin")
    if not state.skip_bwd:
        state.last_loss.backward()
    dispatch("on_backward_end")
    if not state.skip_step:
        learn.opt.step(partial(loss_again, learn, state) if learn.opt.needs_closure else None)
    dispatch("on_step_end")
    if not state.skip_zero:
        learn.opt.zero_grad()
    state.last_loss = state.last_loss.detach()
    dispatch("on_batch_end")
    state.end_batch()


@torch.no_grad()
def validate(learn: Learner, dl: Any, dispatch: Dispatcher, with_loss: bool = True) -> float | None:
    """Return the loss over all samples of ``dl``, or None without a batch; the model goes into evaluation mode.

    It is the mean over what the loss counts (see ``minifast.losses.loss_weight``), or for a loss with
    ``reduction="sum"`` the sum; so it does not depend on the batch size.
    """
    state, mean = dispatch.state, WeightedMean()
    learn.model.eval()
    for batch in state.pbar.track(state.batches(dl)):
        state.begin_batch(*as_pair(batch, "validation"), train=False)
        dispatch("on_batch_begin", metrics=True)
        state.last_output = learn.output_of(state.last_input, state.last_target if with_loss else None)
        dispatch("on_loss_begin")
        if with_loss:
            mean.add(compute_loss(learn, state), loss_weight(learn.loss_func, state.last_target, state.last_input))
        dispatch("on_batch_end", metrics=True)
        if state.end_valid_batch():
            break
    return mean.read_sum() if is_summed(learn.loss_func) else mean.read()
