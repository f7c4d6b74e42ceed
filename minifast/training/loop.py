"""The training loop: the only one in the library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from minifast.training.averages import WeightedMean
from minifast.training.dispatcher import Dispatcher
from minifast.utils.tensors import as_arguments, count_samples

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def fit(learn: Learner, dispatch: Dispatcher) -> None:
    """Train until all epochs are done or a callback stops it; ``on_train_end`` happens whatever comes."""
    state, bar = dispatch.state, dispatch.state.pbar
    try:
        bar.start(state.n_epochs)
        dispatch("on_train_begin", metrics=True)
        dispatch.jump_to_epoch()
        while state.epoch < state.n_epochs and not state.stop_training:
            state.begin_epoch()
            learn.model.train()
            dispatch("on_epoch_begin", metrics=True)
            for xb, yb in bar.track(state.batches(learn.data.train_dl)):
                one_batch(learn, xb, yb, dispatch)
                if state.stop_epoch:
                    break
            validated = bool(learn.data.valid_dl) and not state.skip_validate
            state.last_metrics = [validate(learn, learn.data.valid_dl, dispatch) if validated else None]
            dispatch("on_epoch_end", metrics=validated)
            state.end_epoch()
    except BaseException as error:
        state.exception = error
        raise
    finally:
        dispatch.end()


def one_batch(learn: Learner, xb: Any, yb: Any, dispatch: Dispatcher) -> None:
    """Train on one batch: forward, loss, backward, step, and an event before and after each."""
    state = dispatch.state
    state.begin_batch(xb, yb, train=True)
    dispatch("on_batch_begin")
    state.last_output = learn.output_of(state.last_input)
    dispatch("on_loss_begin")
    state.last_loss = learn.loss_func(state.last_output, *as_arguments(state.last_target))
    state.raw_losses.append(state.last_loss)
    dispatch("on_backward_begin")
    if not state.skip_bwd:
        state.last_loss.backward()
    dispatch("on_backward_end")
    if not state.skip_step:
        learn.opt.step()
    dispatch("on_step_end")
    if not state.skip_zero:
        learn.opt.zero_grad()
    state.last_loss = state.last_loss.detach()
    dispatch("on_batch_end")
    state.end_batch()


@torch.no_grad()
def validate(learn: Any, dl: Any, dispatch: Dispatcher, with_loss: bool = True) -> float | None:
    """Return the mean loss over ``dl``, each batch weighted by its items; the model goes into evaluation mode."""
    state, mean = dispatch.state, WeightedMean()
    learn.model.eval()
    for xb, yb in state.pbar.track(dl):
        state.begin_batch(xb, yb, train=False)
        dispatch("on_batch_begin", metrics=True)
        state.last_output = learn.output_of(state.last_input)
        dispatch("on_loss_begin")
        if with_loss:
            state.last_loss = learn.loss_func(state.last_output, *as_arguments(state.last_target))
            mean.add(state.last_loss, count_samples(state.last_target))
        dispatch("on_batch_end", metrics=True)
        if state.stop_epoch:
            break
    return mean.read()
