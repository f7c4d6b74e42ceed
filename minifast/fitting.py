"""The methods of a Learner that train: at one rate, by one cycle, by any schedule, and to find a rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minifast import files, plots, training
from minifast.callback import Callback, check_callbacks
from minifast.callbacks.checkpointer import Keeping, checkpoint_file, is_slice, plain_call
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.one_cycle import OneCycleScheduler
from minifast.callbacks.scheduler import ScheduledParameters, as_schedule
from minifast.checkup import check
from minifast.data.bunch import DataBunch
from minifast.errors import MinifastError, check_count, did_you_mean
from minifast.finder_result import FinderResult
from minifast.findings import CheckResult
from minifast.history import History
from minifast.part import Part
from minifast.schedules import Schedule
from minifast.state import listed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LearningRate = float | slice | Sequence[float]
DEFAULT_RATE = slice(3e-3)  # for one layer group 0.003; of several, all but the last have a tenth


class Fitting(Part):
    """The part of ``Learner`` that trains."""

    data: DataBunch
    silent: bool
    history: History
    layer_groups: Sequence[Any]

    def fit(
        self,
        epochs: int,
        lr: LearningRate = DEFAULT_RATE,
        wd: float | Sequence[float] | None = None,
        callbacks: Collection[Callback] | Callback | None = None,
        checkpoint: str | None = None,
        every: int | str | None = None,
        resume: bool = True,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> None:
        """Train for ``epochs`` epochs at the learning rate ``lr``.

        The optimizer is made by the first fit and kept: a later one goes on with its state.

        Args:
            epochs: a whole number of 1 or more.
            lr: one rate, or a slice or sequence for the layer groups, see ``lr_range``; by default 0.003 for the last
                and a tenth for the others.
            wd: weight decay; by default the learner's.
            callbacks: callbacks for this fit only.
            checkpoint: keep the run under this name in ``path/model_dir``, at the end of each epoch. The same call goes
                on where a run of that name was left, to the bit.
            every: save in between too: every so many batches, or for a text such as ``"60s"`` seconds.
            resume: False begins anew, whatever is kept.
            on_write_error: where the disk is full or may not be written, ``"continue"`` the training with a warning,
                or ``"stop"`` it with the error; the last good file stays.
            on_nan: at a loss that is NaN or infinite ``"stop"`` with an error, ``"restore"`` the weights of the last
                epoch that began well and end the fit with a warning, or ``"ignore"`` it.

        Raises:
            NonFiniteLossError: a training loss is NaN or infinite; the message says where, and which layer.
            MinifastError: the checkpoint holds another run; the message says what differs.
        """
        epochs = check_count("epochs", epochs)
        call = plain_call("fit", epochs=epochs, lr=lr, wd=wd)
        keeping = Keeping(checkpoint, every, resume, on_write_error, on_nan)
        self._fit(epochs, lr, wd, callbacks, call, keeping)

    def fit_one_cycle(
        self,
        cyc_len: int,
        max_lr: LearningRate = DEFAULT_RATE,
        moms: tuple[float, float] = (0.95, 0.85),
        div_factor: float = 25.0,
        pct_start: float | None = None,
        final_div: float | None = None,
        wd: float | Sequence[float] | None = None,
        callbacks: Collection[Callback] | Callback | None = None,
        tot_epochs: int | None = None,
        start_epoch: int | None = None,
        warmup: str = "linear",
        policy: str = "one_cycle",
        checkpoint: str | None = None,
        every: int | str | None = None,
        resume: bool = True,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> None:
        """Train for ``cyc_len`` epochs by the 1cycle policy.

        See ``OneCycleScheduler`` for the arguments of the cycle, and ``fit`` for the last five.
        """
        cyc_len = check_count("cyc_len", cyc_len)
        scheduler = OneCycleScheduler(
            self._learner, max_lr, moms, div_factor, pct_start, final_div, tot_epochs, start_epoch, warmup, policy
        )
        call = plain_call(
            "fit_one_cycle", cyc_len=cyc_len, max_lr=max_lr, moms=moms, div_factor=div_factor, pct_start=pct_start,
            final_div=final_div, wd=wd, tot_epochs=tot_epochs, start_epoch=start_epoch, warmup=warmup, policy=policy,
        )  # fmt: skip
        keeping = Keeping(checkpoint, every, resume, on_write_error, on_nan)
        self._say_default(max_lr)
        self._fit(cyc_len, max_lr, wd, callbacks, call, keeping, scheduler)

    def fit_schedule(
        self,
        epochs: int,
        lr: Schedule | float,
        mom: Schedule | float | None = None,
        wd: Schedule | float | None = None,
        callbacks: Collection[Callback] | Callback | None = None,
        checkpoint: str | None = None,
        every: int | str | None = None,
        resume: bool = True,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> None:
        """Train for ``epochs`` epochs with a learning rate, momentum and weight decay that follow schedules.

        Args:
            epochs: a whole number of 1 or more.
            lr: a function of progress from 0 to 1 (see ``minifast.schedules``), or a number that stays. A schedule may
                return an array with a value for each layer group.
            mom: the same for the momentum; by default the optimizer's own. An optimizer without momentum has none.
            wd: the same for the weight decay; by default the learner's.

        The last six arguments are those of ``fit``.

        Raises:
            ValueError, TypeError: a schedule gives what is no rate, no momentum in [0, 1], or no decay.

        >>> import torch
        >>> from minifast import *
        >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> learn = Learner(DataBunch(items, device="cpu"), simple_ann(4, 2), loss_func=loss, silent=True)
        >>> learn.fit_schedule(1, lr=join((1, linear(0.0, 1e-2)), (1, constant(1e-2))))
        >>> learn.recorder.lrs[0], learn.recorder.lrs[-1]
        (0.0, 0.01)
        """
        epochs = check_count("epochs", epochs)
        schedules, values = self._schedules(lr=lr, mom=mom, wd=wd)
        scheduler = ScheduledParameters(self._learner, schedules, epochs * len(self.data.train_dl))
        keeping = Keeping(checkpoint, every, resume, on_write_error, on_nan)
        call = plain_call("fit_schedule", epochs=epochs, **values)
        highest = np.max(values["lr"], axis=0).tolist()
        decay = values["wd"][0] if wd is not None else None
        self._fit(epochs, highest, decay, callbacks, call, keeping, scheduler)

    def plot_schedule(
        self,
        cyc_len: int,
        max_lr: LearningRate | Schedule = DEFAULT_RATE,
        mom: Schedule | float | None = None,
        wd: Schedule | float | None = None,
        return_fig: bool | None = None,
        ax: Any = None,
        **cycle: Any,
    ) -> Figure | None:
        """Draw what each batch would be trained with, without training.

        That is by ``fit_one_cycle(cyc_len, max_lr, **cycle)``; or where ``max_lr`` is a schedule, by
        ``fit_schedule(cyc_len, max_lr, mom, wd)``. The scheduler is the one that trains.

        Args:
            return_fig: return the figure.
            ax: as many axes as hyper-parameters are drawn.
        """
        cyc_len = check_count("cyc_len", cyc_len)
        if callable(max_lr):
            if cycle:
                raise TypeError(f"max_lr is a schedule, and {', '.join(cycle)} would shape one cycle; leave that out.")
            n_batches = cyc_len * len(self.data.train_dl)
            schedules, on = self._schedules(lr=max_lr, mom=mom, wd=wd)
            scheduler: Any = ScheduledParameters(self._learner, schedules, n_batches)
            rate: Any = np.max(on["lr"], axis=0).tolist()
        elif mom is not None or wd is not None:
            raise TypeError("mom and wd go with a schedule as max_lr; one cycle has its momentum from moms.")
        else:
            scheduler, rate = self._one_cycle(max_lr, cycle), max_lr
        values, without = training.planned(self._learner, scheduler, cyc_len, rate)
        return plots.plot_hyperparameters(values, without, return_fig, ax)

    def resume(
        self,
        checkpoint: str,
        callbacks: Collection[Callback] | Callback | None = None,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> None:
        """Go on with the run kept under ``checkpoint``, with the arguments that it was begun with; see ``fit``.

        Raises:
            FileNotFoundError: there is none of that name.
            MinifastError: it is the run of another model or other data, or one of ``fit_schedule``, whose schedules are
                functions, which no file keeps: call that again.
        """
        values, _ = files.read_checked(checkpoint_file(self._learner, checkpoint))
        call: dict[str, Any] = dict(values["call"])
        call |= {name: slice(*value[1:]) for name, value in call.items() if is_slice(value)}
        kind = call.pop("method")
        if kind == "fit_schedule":
            raise MinifastError(f"The run {checkpoint} was begun by fit_schedule; the same call goes on with it.")
        method: Callable[..., None] = self.fit if kind == "fit" else self.fit_one_cycle
        method(
            **call, callbacks=callbacks, checkpoint=checkpoint, every=values["every"],
            on_write_error=on_write_error, on_nan=on_nan,
        )  # fmt: skip

    def lr_find(
        self,
        start_lr: LearningRate = 1e-7,
        end_lr: LearningRate = 10,
        num_it: int = 100,
        stop_div: bool = True,
        wd: float | Sequence[float] | None = None,
        repeats: int = 1,
    ) -> FinderResult:
        """Try learning rates from ``start_lr`` to ``end_lr`` in a mock training; ``learn.recorder.plot()`` shows them.

        Weights, buffers, gradients, optimizer, random generators and the order of data are as before when it ends,
        however it ends. Nothing is written to disk.

        Args:
            start_lr: the first rate.
            end_lr: the last rate.
            num_it: how many steps of the optimizer to make, in as many passes over the data as that takes.
            stop_div: stop when the smoothed loss is more than four times its best.
            wd: weight decay; by default the learner's.
            repeats: how often to run, each time with another order of the data; the result is the median.

        Returns:
            FinderResult: the curve, what each rule reads from it, and a suggestion with the rates about as good, or why
                there is none.
        """
        finders = [
            LRFinder(self._learner, start_lr, end_lr, num_it, stop_div) for _ in range(check_count("repeats", repeats))
        ]
        call = plain_call("lr_find", start_lr=start_lr, end_lr=end_lr, num_it=num_it, stop_div=stop_div, wd=wd)
        return training.find(self._learner, finders, start_lr, wd, call)

    def check(self, epochs: int = 1) -> CheckResult:
        """Look for what would spoil a training of ``epochs`` epochs, and return it in words; nothing is changed.

        One batch goes through model and loss, and some of its items are trained on until they are known by heart.
        Weights, optimizer, generators and the order of data are as before when it ends. Looked at are shapes and types,
        class numbers, the loss at the start against a guess, a softmax where the loss has one, frozen parameters and
        those that get no gradient, the scale of the inputs, the number of steps, and a momentum that is not there. It
        takes less than a second where forty steps on sixteen items do.

        Returns:
            CheckResult: the findings, each with what, why it matters and the way out; it says so where there are none.

        Raises:
            DataError: the training data have no batch.

        >>> from torch import nn, randint, randn
        >>> from minifast import DataBunch, Learner, simple_ann
        >>> items = [(randn(8, 4), randint(2, (8,)))] * 10
        >>> model = nn.Sequential(simple_ann(4, 2), nn.Softmax(1))
        >>> data = DataBunch(items, device="cpu", classes=["no", "yes"])
        >>> print(Learner(data, model).check().findings[0].what)
        The outputs sum to 1: there is a softmax before cross entropy, which does one itself.
        """
        return check(self._learner, check_count("epochs", epochs))

    def _fit(
        self,
        epochs: int,
        lr: LearningRate,
        wd: float | Sequence[float] | None,
        callbacks: Collection[Callback] | Callback | None,
        call: dict[str, Any],
        keeping: Keeping,
        *schedulers: Callback,
    ) -> None:
        keeping.check()
        extra = [*check_callbacks(listed(callbacks)), *schedulers]
        training.fit(self._learner, epochs, lr, wd, extra, call, keeping)

    def _one_cycle(self, max_lr: Any, cycle: dict[str, Any]) -> OneCycleScheduler:
        """Return the scheduler of a cycle; what does not shape one is refused by its name."""
        shape = list(inspect.signature(OneCycleScheduler).parameters)[2:]
        for name in cycle.keys() - set(shape):
            raise TypeError(f"{name} does not shape one cycle; {', '.join(shape)} do.{did_you_mean(name, shape)}")
        return OneCycleScheduler(self._learner, max_lr, **cycle)

    def _schedules(self, **given: Any) -> tuple[dict[str, Schedule], dict[str, list[Any]]]:
        """Return schedules, and their values on a grid, of those that are given."""
        wanted = {name: one for name, one in given.items() if one is not None or name == "lr"}
        both = {name: as_schedule(name, one, len(self.layer_groups)) for name, one in wanted.items()}
        return {name: schedule for name, (schedule, _) in both.items()}, {name: on for name, (_, on) in both.items()}

    def _say_default(self, max_lr: LearningRate) -> None:
        """Say which rate it is where it was not chosen."""
        if isinstance(max_lr, slice) and max_lr == DEFAULT_RATE and not self.silent:
            found = [run.found.suggestion for run in self.history if run.found and run.found.suggestion]
            rest = f"; lr_find suggests {found[-1]:.2g}" if found else "; lr_find() suggests one for this model"
            tenth = ", a tenth of it for all layer groups but the last" if len(self.layer_groups) > 1 else ""
            print(f"The highest learning rate is {DEFAULT_RATE.stop}{tenth}{rest}.")
