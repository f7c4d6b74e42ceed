"""What stands around the loop: a run is prepared, watched, kept and, when it ends early, explained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from minifast import loop
from minifast.callback import Callback, LearnerCallback, check_callbacks
from minifast.callbacks.checkpointer import Checkpointer, checkpoint_file
from minifast.callbacks.guard import Guard, LastGood, check_outputs, check_targets
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.recorder import Recorder
from minifast.checkpoint import preserved
from minifast.dispatcher import Dispatcher
from minifast.errors import DataError, NonFiniteLossError, check_number, check_word, note
from minifast.finder_result import FinderResult
from minifast.metrics import as_metric, name_of
from minifast.optimizer import per_group
from minifast.progress import make_bar
from minifast.state import State

if TYPE_CHECKING:
    from minifast.learner import Learner


class Keeping(NamedTuple):
    """How a run is kept, and what becomes of it when it goes wrong: the last arguments of ``Learner.fit``."""

    checkpoint: str | None = None
    every: int | str | None = None
    resume: bool = True
    on_write_error: str = "continue"
    on_nan: str = "stop"


def prepare(learn: Learner, lr: Any, wd: Any) -> None:
    """Check what a run is to do, and make the optimizer or set it."""
    if len(learn.data.train_dl) == 0:
        raise DataError("The training data have no batch; there are fewer items than one batch, or none at all.")
    rates = learn.lr_range(lr)
    decay = learn.wd if wd is None else wd
    for one in per_group(decay, len(learn.layer_groups), "wd"):
        check_number("wd", one, low=0)
    if learn.opt is None:
        learn.create_opt(lr, decay)
    else:
        learn.opt.lr = rates
        learn.opt.wd = decay


def fit(learn: Learner, epochs: int, extra: Sequence[Callback], call: dict[str, Any], keeping: Keeping) -> None:
    """Train with the learner's callbacks, its own and ``extra``."""
    check_word("on_nan", keeping.on_nan, ("stop", "restore", "ignore"))
    recorder = Recorder(learn)
    guard = Guard(learn, losses=keeping.on_nan != "ignore")
    last_good = LastGood(learn) if keeping.on_nan == "restore" else None
    callbacks = [*own_callbacks(learn, recorder, guard, *([last_good] if last_good else [])), *extra]
    if keeping.checkpoint is not None:
        file = checkpoint_file(learn, keeping.checkpoint)
        keeper = Checkpointer(learn, file, call, keeping.every, keeping.resume, keeping.on_write_error)
        if keeper.finished and not learn.silent:
            print(f"The run {keeping.checkpoint} is finished; this is what it left. resume=False begins it anew.")
        callbacks.append(keeper)
    recorder.call = call
    learn.history.append(recorder)
    try:
        run(learn, epochs, callbacks)
    except NonFiniteLossError as error:
        if last_good is None:
            raise
        epoch = last_good.restore()
        warnings.warn(f"{error}\nThe weights of the beginning of epoch {epoch} are put back.", stacklevel=4)


def find(learn: Learner, finders: Sequence[LRFinder], start_lr: Any, wd: Any, call: dict[str, Any]) -> FinderResult:
    """Run the mock training of each finder and put back all that it changed; its record stays."""
    kept, recorder = learn.recorder, None
    try:
        for again, finder in enumerate(finders):
            with preserved(learn):
                prepare(learn, start_lr, wd)
                _shake(learn, again)
                recorder = Recorder(learn, silent=True)
                recorder.call = call
                learn.history.append(recorder)
                epochs = math.ceil(finder.num_it / len(learn.data.train_dl))
                own = own_callbacks(learn, recorder, Guard(learn, losses=False))
                run(learn, epochs, [*(callback for callback in own if not callback._watches), finder])
    finally:
        learn.recorder = recorder or kept
    stopped = finders[-1].stopped
    result = FinderResult([one.lrs for one in finders], [one.losses for one in finders], stopped)
    learn.recorder.found = result
    if not learn.silent:
        rate = "" if result.suggestion is None else f" It suggests a rate of {result.suggestion:.2g}."
        steps = f"step {len(finders[-1].lrs)} of {finders[-1].num_it}"
        print(f"Stopped at {steps}: {stopped}.{rate} learn.recorder.plot() shows the losses.")
    return result


def _shake(learn: Learner, times: int) -> None:
    """Go on to other random numbers and another order of the data."""
    torch.rand(times)
    for _ in range(times):
        next(iter(learn.data.train_dl), None)


def own_callbacks(learn: Learner, *first: Callback) -> list[Callback]:
    """Return the learner's callbacks, ``first``, and those that its ``callback_fns`` make for this run."""
    made = check_callbacks([make(learn) for make in learn.callback_fns])
    return [*check_callbacks(learn.callbacks), *first, *made]


def run(learn: Learner, epochs: int, callbacks: Sequence[Callback]) -> None:
    """Let the loop run, and leave the learner usable however it ends."""
    metrics = [as_metric(metric) for metric in learn.metrics]
    state = State(epochs, make_bar(learn.silent), metrics, list(map(name_of, metrics)))
    for callback in callbacks:
        if isinstance(callback, LearnerCallback):
            callback.adopt(learn)
    keepers = [callback for callback in callbacks if isinstance(callback, Checkpointer)]
    for keeper in keepers:
        keeper.attach(state, [*callbacks, *metrics])
    before = {name: learn.opt.read(name) for name in ("lr", "mom", "wd")}
    try:
        loop.fit(learn, Dispatcher(state, callbacks, metrics))
    except BaseException as error:
        learn.opt.zero_grad()  # the gradients of the batch in which it ended
        if isinstance(error, IndexError):
            check_outputs(learn, state.last_output, state.last_target)
            check_targets(learn.loss_func, state.last_output, state.last_target)
        where = f"epoch {state.epoch} at batch {state.num_batch} of {len(learn.data.train_dl)}"
        kept = "".join(f" {keeper.left()}" for keeper in keepers)
        if isinstance(error, KeyboardInterrupt) and not learn.silent:
            print(f"Stopped in {where}; {kept.strip() or 'the learner can go on.'}")
        elif isinstance(error, Exception):
            note(error, f"This was in {where}, learning rate {learn.opt.lr:.3g}.{kept}")
        raise
    finally:
        for name in {name for callback in callbacks for name in callback._sets}:
            if learn.opt.read(name) != before[name]:
                learn.opt.write(name, before[name])
