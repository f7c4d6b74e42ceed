"""Prepare a run, call the training loop, restore state after ``lr_find``, and report where a run stopped early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from minifast.callbacks.accumulation import AccumulateScheduler
from minifast.callbacks.first_batch import FirstBatchCheck
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.nan_loss import LastFiniteWeights, NaNCheck
from minifast.callbacks.recorder import Recorder
from minifast.checkpoint.fingerprint import run_fingerprint
from minifast.checkpoint.run import Checkpointer, RunCheckpoint, checkpoint_file
from minifast.data.shards import is_sharded
from minifast.distributed.agreement import check_same
from minifast.distributed.exchange import broadcast
from minifast.errors import DataError, EmptyEpochError, MinifastError, NonFiniteLossError
from minifast.finder.learning import Evidence, evidence_of
from minifast.finder.result import FinderResult
from minifast.metrics.base import as_metric, columns_of
from minifast.training import loop
from minifast.training.batch_checks import OTHER_CAUSES, check_arguments, explain_error, is_first_batch
from minifast.training.batchnorm import batchnorm_steps, statistics_warning
from minifast.training.callback import Callback, LearnerCallback, adopt_callbacks, check_callbacks, overrides
from minifast.training.dispatcher import Dispatcher
from minifast.training.failed_layer import describe_failed_layer
from minifast.training.features import precomputed
from minifast.training.first_validation import NOTE
from minifast.training.groups import add_loss_parameters, loss_module, per_group, regroup, trained_parameters
from minifast.training.lazy import initialize_lazy
from minifast.training.parallel import Parallel, group_of
from minifast.training.progress import make_bar
from minifast.training.same_weights import SAME_SCRIPT, as_values
from minifast.training.snapshot import iterators_of, preserve_randomness, preserve_training
from minifast.training.state import State
from minifast.utils.checks import add_note, check_number, check_word, module_name
from minifast.utils.compiled import unwrap_compiled
from minifast.utils.public import warn_caller
from minifast.utils.tensors import as_pair
from minifast.utils.text import write_text

if TYPE_CHECKING:
    from minifast.learner.learner import Learner
    from minifast.training.optimizer import OptimWrapper


@dataclass(frozen=True)
class RunOptions:
    """The arguments that ``fit``, ``fit_one_cycle`` and ``fit_schedule`` share, checked."""

    checkpoint: str | RunCheckpoint | None = None
    every: int | str | None = None
    resume: bool = True
    on_write_error: str = "continue"
    on_nan: str = "stop"

    def __post_init__(self) -> None:
        check_word("on_nan", self.on_nan, ("stop", "restore", "ignore"))
        are_defaults = (self.every, self.resume, self.on_write_error) == (None, True, "continue")
        if isinstance(self.checkpoint, RunCheckpoint) and not are_defaults:
            raise ValueError(
                "`every`, `resume` and `on_write_error` belong to the RunCheckpoint that you pass; set them there."
            )
        if self.checkpoint is None and self.every is not None:
            raise ValueError(
                f"`every` is {self.every!r}, but the run has no checkpoint; name one, such as checkpoint='run1'."
            )
        self.run_checkpoint(self.checkpoint or "unnamed")

    def run_checkpoint(self, name: str | RunCheckpoint) -> RunCheckpoint:
        """Return the settings of the checkpoint called ``name``."""
        if isinstance(name, RunCheckpoint):
            return name
        return RunCheckpoint(name, self.every, self.resume, self.on_write_error)


def prepare(learn: Learner, lr: Any, wd: Any) -> None:
    """Check the arguments of a run, and create the optimizer or set its hyperparameters."""
    learn.model = unwrap_compiled(learn.model)
    if not any(parameter.requires_grad for parameter in learn.model.parameters()):
        raise ValueError(
            "The model has no trainable parameter: all are frozen, or it has none. Call learn.unfreeze() to train "
            "them. (A model from load_learner only predicts; use save and load to continue training.)"
        )
    if len(learn.data.train_dl) == 0:
        raise DataError(
            "The training data have no batch: they have fewer samples than one batch, or none. Lower `bs`, or give the "
            "loader drop_last=False."
        )
    groups = optimizer_groups(learn)
    learning_rates = learn.lr_range(lr)
    decay = learn.wd if wd is None else wd
    for value in per_group(decay, len(learn.layer_groups), "wd"):
        check_number("wd", value, low=0)
    if learn.opt is None:
        learn.create_opt(lr, decay)
    else:
        learn.opt = learn.opt.follow(groups, learn.bn_wd)
        learn.opt.lr = learning_rates
        learn.opt.set_wd(decay)


class FollowModel(LearnerCallback):
    """Give parameters that a callback adds or replaces when an epoch begins to the optimizer."""

    _order = 10_000

    def on_epoch_begin(self) -> None:
        """Compare the parameters of the optimizer with those of the model."""
        opt = self.learn.opt.follow(optimizer_groups(self.learn), self.learn.bn_wd)
        if opt is not self.learn.opt and self.learn.parallel is not None:
            raise MinifastError(
                "A callback changed the parameters of the model within a run of several processes; end the run, change "
                "the model and start a second one."
            )
        self.learn.opt = opt


CHECKS = (FirstBatchCheck, NaNCheck, LastFiniteWeights, FollowModel)


def optimizer_groups(learn: Learner) -> list[nn.Module]:
    """Return the layer groups to optimize, after changes of the model, with the loss function's parameters."""
    initialize_lazy(learn)
    groups = regroup(learn.model, learn.layer_groups, learn._group_indices)
    if groups is not learn.layer_groups:
        learn.model.to(learn.data.device)  # the new modules
        learn.layer_groups = groups
    loss = loss_module(learn.loss_func)
    if loss is not None:
        loss.to(learn.data.device)
    return add_loss_parameters(groups, learn.model, learn.loss_func)


def fit(
    learn: Learner,
    epochs: int,
    lr: Any,
    wd: Any,
    extra: Sequence[Callback],
    call: dict[str, Any],
    options: RunOptions,
) -> Recorder:
    """Train with the learner's callbacks and ``extra``; if the run raises before its first batch, nothing changes."""
    valid_dl = learn.data.valid_dl
    if valid_dl is not None and len(valid_dl) == 0:
        warn_caller(
            "The validation data have no batch: they have fewer samples than one batch, or none. The run does not "
            "validate; give the loader drop_last=False, or more samples.",
        )
    batches = getattr(valid_dl, "dl", None)
    if isinstance(batches, (list, tuple)) and batches and valid_dl.batch_fn is None:
        # What is iterated may start processes, so only a list is looked at.
        check_arguments(learn.model, as_pair(batches[0], "validation", valid_dl.target)[0])
    before, opt = learn.recorder, learn.opt
    values = {name: opt.read(name) for name in ("lr", "wd")} if opt else {}
    last_good = None
    try:
        prepare(learn, lr, wd)
        recorder = Recorder(learn)
        recorder.call = call
        first_check, nan_check = FirstBatchCheck(learn), NaNCheck(learn, recorder)
        last_good = LastFiniteWeights(learn) if options.on_nan == "restore" else None
        own = [recorder, first_check, nan_check, FollowModel(learn), *([last_good] if last_good else [])]
        callbacks = [*callbacks_for_run(learn, *own), *extra]
        if options.checkpoint is not None:
            checkpoint = options.run_checkpoint(options.checkpoint)
            callbacks.append(Checkpointer(learn, checkpoint_file(learn, checkpoint.name), call, checkpoint))
        first_check.tries_loss = accumulates(callbacks) or group_of(learn) is not None
        first_check.callbacks = callbacks
        first_check.tries_metrics = bool(valid_dl) and not any(map(_changes_batches, callbacks))
        run(learn, epochs, callbacks, recorder, options.on_nan)
    except NonFiniteLossError as error:
        where = last_good.restore() if last_good else None
        if where is None:
            raise
        warn_caller(f"{error}\nThe weights of {where} are restored.")
    except BaseException:
        if learn.recorder not in learn.history:
            learn.recorder, learn.opt = before, opt
            for name, value in values.items():
                learn.opt.write(name, value)
        raise
    finally:
        if last_good:
            last_good.forget()
    return learn.recorder


def _changes_batches(callback: Callback) -> bool:
    """Return whether a callback of the caller's own may change batches or outputs in validation."""
    own = not module_name(type(callback)).startswith("minifast.")
    return own and any(overrides(callback, event) for event in ("on_batch_begin", "on_loss_begin"))


def find(learn: Learner, finders: Sequence[LRFinder], start_lr: Any, wd: Any, call: dict[str, Any]) -> FinderResult:
    """Run the mock training of each finder and restore all state; the recorder of the last one stays."""
    before, recorder = learn.recorder, None
    affecting = [callback for callback in learn.callbacks if not callback.fit_only]
    initialize_lazy(learn)
    for path, value in iterators_of(learn):
        warn_caller(
            f"{path} is a {type(value).__name__}, whose position lr_find cannot restore: if the mock training moves "
            f"it, training after lr_find differs from training alone. Use a number or a random generator.",
        )
    try:
        with preserve_randomness(learn) as data:
            for finder in finders:  # between them the data order moves on, so that each has other batches
                with preserve_training(learn, data, affecting):
                    prepare(learn, start_lr, wd)
                    recorder = Recorder(learn, silent=True)
                    recorder.call = call
                    epochs = math.ceil(finder.num_it / len(learn.data.train_dl))
                    first_check = FirstBatchCheck(learn)
                    others = callbacks_for_run(learn, recorder, first_check, observers=False)
                    callbacks = [*(callback for callback in others if not callback.controls), finder]
                    finder.uses_validation = not any(map(_changes_batches, others))
                    try:
                        run(learn, epochs, callbacks, recorder, on_nan="ignore")
                    except EmptyEpochError:
                        if not finder.lrs:
                            raise
                        finder.stopped = "the data has no more batches"
    finally:
        learn.recorder = recorder or before
    compared = [losses for finder in finders if (losses := finder.comparison()) is not None]
    evidence = evidence_of(compared, finders[0].lrs) if len(compared) == len(finders) else Evidence()
    evidence = broadcast(evidence)  # each process has losses of its own, but all need the same answer
    curves = [finder.lrs for finder in finders], [finder.losses for finder in finders]
    result = FinderResult(*curves, finders[-1].stopped, **evidence._asdict())
    learn.recorder.finder_result = result
    return result


def planned_values(learn: Learner, scheduler: Any, epochs: int, lr: Any) -> tuple[dict[str, list[Any]], str]:
    """Return the values that a scheduler sets for each batch and layer group, and a note if there is no momentum."""
    opt = learn.opt
    learn.opt = None  # so that a new optimizer is set, not the learner's own
    try:
        prepare(learn, lr, None)
        scheduler.on_train_begin(n_epochs=epochs, epoch=0)
        values = [scheduler.values(i) for i in range(scheduler.first, epochs * len(learn.data.train_dl))]
        without = learn.opt.without_momentum
    finally:
        learn.opt = opt
    n = len(learn.layer_groups)
    return {name: [per_group(step[name], n, name) for step in values] for name in scheduler.schedules}, without


def callbacks_for_run(learn: Learner, *first: Callback, observers: bool = True) -> list[Callback]:
    """Return the learner's callbacks, ``first``, and those that its ``callback_fns`` create for this run.

    Without ``observers``, callbacks with ``fit_only`` are neither returned nor created.
    """
    given = [callback for callback in check_callbacks(learn.callbacks) if observers or not callback.fit_only]
    functions = [
        function
        for function in learn.callback_fns
        if observers or not getattr(getattr(function, "func", function), "fit_only", False)
    ]
    created = check_callbacks([function(learn) for function in functions])
    return [*given, *first, *(callback for callback in created if observers or not callback.fit_only)]


def run(learn: Learner, epochs: int, callbacks: Sequence[Callback], recorder: Recorder, on_nan: str) -> None:
    """Call the training loop with the recorder in the history, and leave the learner usable however it ends."""
    metrics = [as_metric(metric, learn.loss_func) for metric in learn.metrics]
    state = State(epochs, make_bar(learn.silent), metrics, columns_of(metrics), on_nan)
    if recorder.call.get("method") == "lr_find":
        state.pbar.what = "lr_find, pass"
    adopt_callbacks(learn, [*callbacks, *metrics])
    check_single_controller(callbacks)
    if learn.opt.needs_closure:
        check_closure(learn.opt, callbacks)
    checkpointers = [callback for callback in callbacks if isinstance(callback, Checkpointer)]
    for checkpointer in checkpointers:
        others = [callback for callback in callbacks if not isinstance(callback, CHECKS)]
        checkpointer.attach(state, [*others, *metrics])
    reports = not (learn.silent or recorder.silent)
    batchnorm = batchnorm_steps(learn.model) if reports else {}
    before = {name: learn.opt.read(name) for name in learn.opt.names}
    parallel = start_parallel(learn, state, callbacks, recorder)
    dispatcher = Dispatcher(state, callbacks, metrics)
    if parallel is not None:
        dispatcher = Dispatcher(state, [*callbacks, *parallel.callbacks], metrics, parallel.agree)
    learn.history.append(recorder)
    if any(parameter.grad is not None for parameter in trained_parameters(learn)):
        learn.opt.zero_grad()  # gradients that an earlier run accumulated without a step
    try:
        with parallel or precomputed(learn, state):
            loop.fit(learn, dispatcher)
    except BaseException as error:
        if state.last_input is None:
            learn.history.remove(recorder)  # the run ended before its first batch
        learn.opt.zero_grad()  # the gradients of the batch in which it ended
        try:
            explain_error(learn, state, error)
        except DataError as clearer:
            report_stop(learn, state, clearer, checkpointers)
            raise clearer from error
        report_stop(learn, state, error, checkpointers)
        raise
    finally:
        for name in {name for callback in callbacks for name in callback.controls} & before.keys():
            if learn.opt.read(name) != before[name]:
                learn.opt.write(name, before[name])
    if batchnorm and state.train_batch and recorder.losses and not learn.sync_bn:
        line = statistics_warning(learn, batchnorm, *state.train_batch, recorder.losses[0])
        if line:
            write_text(line)


def start_parallel(learn: Learner, state: State, callbacks: Sequence[Callback], recorder: Recorder) -> Parallel | None:
    """Return what a run over several processes needs, or None in a single process.

    Raises:
        MinifastError: the processes would not train the same.
    """
    group = group_of(learn)
    if group is None:
        return None
    if learn.opt.needs_closure:
        raise MinifastError(
            f"{type(learn.opt.opt).__name__} computes the loss several times in a step, which works in one process "
            f"only; use another optimizer, or Learner(distributed=False)."
        )
    loaders = [loader for loader in (learn.data.train_dl, learn.data.valid_dl) if loader]
    own_data = any(is_sharded(loader, group.size) for loader in loaders)
    what: dict[str, Any] = {
        **as_values(recorder.call),
        "the callbacks": [type(callback).__name__ for callback in callbacks],
        "the number of batches": [len(loader) for loader in loaders],
    }
    for part, values in run_fingerprint(learn).items():
        if not own_data or part not in ("data", "settings"):
            what |= {f"{name} ({part})": value for name, value in values.items()}
    check_same(what, SAME_SCRIPT)
    return Parallel(learn, state, group, recorder.call, trains=True, accumulates=accumulates(callbacks))


def accumulates(callbacks: Sequence[Callback]) -> bool:
    """Return whether optimizer steps take several batches."""
    return any(isinstance(callback, AccumulateScheduler) and callback.n_step > 1 for callback in callbacks)


def check_single_controller(callbacks: Sequence[Callback]) -> None:
    """Raise if two callbacks set the same hyperparameter, because the later one would silently win."""
    setters: dict[str, Callback] = {}
    for callback in callbacks:
        for name in callback.controls:
            other = setters.setdefault(name, callback)
            if other is not callback:
                raise ValueError(
                    f"{type(other).__name__} and {type(callback).__name__} both set {name}; leave one of them out "
                    f"(fit_one_cycle and fit_schedule add their own schedule, fit adds none)."
                )


def check_closure(opt: OptimWrapper, callbacks: Sequence[Callback]) -> None:
    """Raise if a callback changes losses or gradients and the optimizer computes them again within a step."""
    changing = [
        type(callback).__name__
        for callback in callbacks
        if not isinstance(callback, CHECKS)
        and (overrides(callback, "on_backward_begin") or overrides(callback, "on_backward_end"))
    ]
    if changing:
        raise ValueError(
            f"{type(opt.opt).__name__} computes the loss and its gradients several times in a step, which "
            f"{', '.join(changing)} cannot follow; leave it out, or use another optimizer."
        )


def report_stop(learn: Learner, state: State, error: BaseException, checkpointers: Sequence[Checkpointer]) -> None:
    """Report where a run stopped early and how to continue: in a note on the error, or a printed line after Ctrl-C."""
    where = state.where()
    saved = " ".join(f"{checkpointer.how_to_resume}." for checkpointer in checkpointers)
    if isinstance(error, KeyboardInterrupt):
        rest = saved or f"{learn._advice.get('stopped', 'you can continue to train the learner')}."
        if learn.recorder.call.get("method") == "lr_find":  # its epochs are not those of a training
            where, rest = "in the search for a learning rate", "lr_find restores all state."
        if not learn.silent:
            write_text(f"Stopped {where}; {rest}")
    elif isinstance(error, NonFiniteLossError):
        if saved:
            add_note(error, saved)
    elif isinstance(error, Exception):
        failed = isinstance(error, (RuntimeError, TypeError, ValueError)) and not isinstance(error, OTHER_CAUSES)
        tried = NOTE in getattr(error, "__notes__", ())  # the first validation batch: the fit has checked it
        advice = "learn.check() finds such problems before training. " if failed and is_first_batch(state) else ""
        where, advice = ("before the first step", "") if tried else (where, advice)
        add_note(error, f"The error occurred {where}, learning rate {learn.opt.lr:.3g}. {advice}{saved}".rstrip())
        if layer := describe_failed_layer(learn.model, error):
            add_note(error, layer)
