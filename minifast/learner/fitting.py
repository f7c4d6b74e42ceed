"""What fit, fit_one_cycle, fit_schedule, lr_find, plot_schedule and resume do: check arguments, then call running."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast import plotting
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.one_cycle import OneCycleScheduler
from minifast.callbacks.recorder import Recorder
from minifast.callbacks.scheduler import ScheduledParameters, as_schedule
from minifast.checkpoint.fingerprint import is_slice, plain_call
from minifast.checkpoint.run import RunCheckpoint, checkpoint_file
from minifast.checkpoint.version_0_1 import upgrade_call
from minifast.distributed.exchange import from_first
from minifast.errors import MinifastError
from minifast.finder.result import FinderResult
from minifast.learner import running
from minifast.learner.running import RunOptions
from minifast.schedules.annealing import Schedule
from minifast.training.callback import Callback, check_callbacks
from minifast.training.parallel import group_of
from minifast.training.progress import in_notebook
from minifast.utils import files
from minifast.utils.checks import check_count, check_number
from minifast.utils.public import check_keywords
from minifast.utils.tensors import as_list
from minifast.utils.text import is_muted, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minifast.learner.learner import Learner

LearningRate = float | slice | Sequence[float]
Callbacks = Collection[Callback] | Callback | None
DEFAULT_LR = slice(3e-3)  # 0.003 for the last layer group, a tenth of it for the others


def fit(learn: Learner, epochs: int, lr: LearningRate, wd: Any, callbacks: Callbacks, options: RunOptions) -> Recorder:
    """Train with a constant learning rate."""
    epochs = check_count("epochs", epochs)
    call = plain_call("fit", epochs=epochs, lr=lr, wd=wd)
    return running.fit(learn, epochs, lr, wd, check_callbacks(as_list(callbacks)), call, options)


def fit_one_cycle(
    learn: Learner, epochs: int, cycle: dict[str, Any], wd: Any, callbacks: Callbacks, options: RunOptions
) -> Recorder:
    """Train with the 1cycle policy; ``cycle`` holds the arguments of ``OneCycleScheduler``."""
    epochs = check_count("epochs", epochs)
    scheduler = OneCycleScheduler(learn, **cycle)
    call = plain_call("fit_one_cycle", epochs=epochs, wd=wd, **cycle)
    print_default_lr(learn, cycle["max_lr"])
    extra = [*check_callbacks(as_list(callbacks)), scheduler]
    return running.fit(learn, epochs, cycle["max_lr"], wd, extra, call, options)


def fine_tune(
    learn: Learner, epochs: int, base_lr: float, freeze_epochs: int, lr_mult: float, cycles: dict[str, Any]
) -> Recorder:
    """Train the last layer group, then all; ``cycles`` holds the arguments of ``fit_one_cycle`` for both."""
    epochs, freeze_epochs = check_count("epochs", epochs), check_count("freeze_epochs", freeze_epochs, least=0)
    check_number("base_lr", base_lr, above=0)
    check_number("lr_mult", lr_mult, above=0)
    pct_start, div_factor = cycles.pop("pct_start"), cycles.pop("div_factor")
    run = cycles.pop("checkpoint", None)
    head = replace(run, name=f"{run.name}_head") if isinstance(run, RunCheckpoint) else run and f"{run}_head"
    learn.freeze()
    if freeze_epochs:
        learn.fit_one_cycle(freeze_epochs, slice(base_lr), pct_start=0.99, checkpoint=head, **cycles)
    learn.unfreeze()
    rates = slice(base_lr / 2 / lr_mult, base_lr / 2)
    return learn.fit_one_cycle(epochs, rates, pct_start=pct_start, div_factor=div_factor, checkpoint=run, **cycles)


def fit_schedule(
    learn: Learner, epochs: int, schedules: dict[str, Any], callbacks: Callbacks, options: RunOptions
) -> Recorder:
    """Train with a schedule, or a constant, for each of ``lr``, ``mom`` and ``wd``."""
    epochs = check_count("epochs", epochs)
    scheduler, values, max_lr = schedule_callback(learn, epochs, schedules)
    call = plain_call("fit_schedule", epochs=epochs, **values)
    wd = values["wd"][0] if "wd" in values else None
    extra = [*check_callbacks(as_list(callbacks)), scheduler]
    return running.fit(learn, epochs, max_lr, wd, extra, call, options)


def schedule_callback(
    learn: Learner, epochs: int, schedules: dict[str, Any]
) -> tuple[ScheduledParameters, dict[str, list[Any]], list[float]]:
    """Return the callback of schedules, their values on a grid of progress, and the maximum learning rates."""
    given = {name: value for name, value in schedules.items() if value is not None or name == "lr"}
    sampled = {name: as_schedule(name, value, len(learn.layer_groups)) for name, value in given.items()}
    functions = {name: function for name, (function, _) in sampled.items()}
    values = {name: grid for name, (_, grid) in sampled.items()}
    scheduler = ScheduledParameters(learn, functions, epochs * len(learn.data.train_dl))
    return scheduler, values, np.max(values["lr"], axis=0).tolist()


def print_default_lr(learn: Learner, max_lr: LearningRate) -> None:
    """Print the maximum learning rate where the caller did not choose one."""
    if not isinstance(max_lr, slice) or max_lr != DEFAULT_LR or learn.silent:
        return
    suggestions = [
        run.finder_result.suggestion for run in learn.history if run.finder_result and run.finder_result.suggestion
    ]
    advice = f"lr_find suggests {suggestions[-1]:.2g}" if suggestions else "lr_find() suggests one for this model"
    tenth = ", a tenth of it for all layer groups but the last" if len(learn.layer_groups) > 1 else ""
    write_text(f"The maximum learning rate is {DEFAULT_LR.stop}{tenth}; {advice}.")


def plot_schedule(
    learn: Learner,
    epochs: int,
    max_lr: LearningRate | Schedule,
    mom: Any,
    wd: Any,
    cycle: dict[str, Any],
    return_fig: bool | None,
    ax: Any,
) -> Figure | None:
    """Plot the values that ``fit_one_cycle`` or ``fit_schedule`` would train with."""
    epochs = check_count("epochs", epochs)
    scheduler: ScheduledParameters
    lr: Any = max_lr
    if callable(max_lr):
        if cycle:
            raise TypeError(
                f"`max_lr` is a schedule, but {', '.join(cycle)} belongs to the 1cycle policy; leave it out."
            )
        scheduler, _, lr = schedule_callback(learn, epochs, {"lr": max_lr, "mom": mom, "wd": wd})
    elif mom is not None or wd is not None:
        raise TypeError("`mom` and `wd` need a schedule as `max_lr`; the 1cycle policy takes its momentum from `moms`.")
    else:
        check_keywords("Learner.plot_schedule", cycle, OneCycleScheduler, but=("learn", "lr_max"))
        scheduler = OneCycleScheduler(learn, max_lr, **cycle)
    values, without_momentum = running.planned_values(learn, scheduler, epochs, lr)
    return plotting.plot_hyperparameters(values, without_momentum, return_fig, ax)


KEPT = ("call", "every")  # what a checkpoint holds of the call that started the run


def resume(learn: Learner, checkpoint: str, callbacks: Callbacks, on_write_error: str, on_nan: str) -> Recorder:
    """Resume a checkpointed run with the arguments that it was started with."""
    file = checkpoint_file(learn, checkpoint)
    values = from_first(lambda: {n: v for n, v in files.read_checked(file)[0].items() if n in KEPT}, group_of(learn))
    call = upgrade_call(values["call"])
    call |= {name: slice(*value[1:]) for name, value in call.items() if is_slice(value)}
    method = call.pop("method")
    if method == "fit_schedule":
        raise MinifastError(
            f"The run {checkpoint!r} was started by fit_schedule, whose schedules are functions and not in the file; "
            f"call fit_schedule again with the same arguments and checkpoint={checkpoint!r}."
        )
    start = learn.fit if method == "fit" else learn.fit_one_cycle
    return start(
        **call, callbacks=callbacks, checkpoint=checkpoint, every=values["every"],
        on_write_error=on_write_error, on_nan=on_nan,
    )  # fmt: skip


def lr_find(
    learn: Learner,
    start_lr: LearningRate,
    end_lr: LearningRate,
    num_it: int,
    stop_div: bool,
    wd: Any,
    repeats: int,
    show_plot: bool,
) -> FinderResult:
    """Run the learning rate range test ``repeats`` times."""
    repeats = check_count("repeats", repeats)
    finders = [LRFinder(learn, start_lr, end_lr, num_it, stop_div) for _ in range(repeats)]
    call = plain_call("lr_find", start_lr=start_lr, end_lr=end_lr, num_it=num_it, stop_div=stop_div, wd=wd)
    result = running.find(learn, finders, start_lr, wd, call)
    shows_plot = show_plot and bool(result.lrs) and not learn.silent and in_notebook() and not is_muted()
    if not learn.silent:
        advice = "" if result.suggestion is None else f" Suggested learning rate: {result.suggestion:.2g}."
        steps = f"step {len(finders[-1].lrs)} of {finders[-1].num_it}"
        how = "" if shows_plot else " learn.recorder.plot() shows the losses."
        write_text(f"Stopped at {steps}: {result.stopped}.{advice}{how}")
    if shows_plot:
        result.plot()
    return result
