"""The Learner: a model, its data and how to train it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from minifast import checkpoint, files, training
from minifast.callback import Callback, check_callback_fns, check_callbacks
from minifast.callbacks.checkpointer import Keeping, checkpoint_file, is_slice, plain_call
from minifast.callbacks.lr_finder import LRFinder
from minifast.callbacks.one_cycle import OneCycleScheduler
from minifast.callbacks.recorder import Recorder
from minifast.data.bunch import DataBunch
from minifast.errors import DataError, MinifastError, check_callable, check_count
from minifast.finder_result import FinderResult
from minifast.groups import check_groups, spread
from minifast.metrics import as_metric
from minifast.optimizer import AdamW, OptimWrapper
from minifast.predictions import Predictor
from minifast.state import listed

LearningRate = float | slice | Sequence[float]


class Learner(Predictor):
    """Trains ``model`` on ``data``.

    Args:
        data: the batches to train and validate on.
        model: the network; it goes to the data's device.
        opt_func: makes the optimizer from parameters and ``lr=``; any torch optimizer. By default AdamW with betas
            (0.9, 0.99).
        loss_func: of (output, target); by default chosen from the data, cross entropy for classes.
        metrics: functions of (output, target), averaged over the validation set, or callbacks that hand back
            ``add_metrics(last_metrics, value)`` at the end of an epoch.
        wd: weight decay, decoupled from the gradient.
        bn_wd: whether weight decay applies to normalisations and biases too.
        path: where files go; by default ``data.path``.
        model_dir: the folder in ``path`` for ``save`` and ``load``.
        callback_fns: functions of a learner that make a callback, called anew for each fit.
        callbacks: callbacks for every fit.
        layer_groups: parts of the model that may have learning rates of their own; by default one of all.
        silent: show no bar and no table.

    Raises:
        TypeError, DataError: an argument is of the wrong kind, or the data do not say which loss to use.

    Training uses torch's global generator only as the model does (dropout, for instance); the order of data in memory
    comes from the data's own seed.

    >>> from minifast import DataBunch, accuracy, simple_ann
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> items = TensorDataset(torch.randn(100, 10), torch.randint(2, (100,)))
    >>> data = DataBunch(DataLoader(items, 20), DataLoader(items, 20), device="cpu")
    >>> learn = Learner(data, simple_ann(10, 2), metrics=[accuracy], silent=True)
    >>> learn.fit_one_cycle(2, 1e-2)
    >>> len(learn.recorder.lrs), len(learn.recorder.val_losses)
    (10, 2)
    """

    def __init__(
        self,
        data: DataBunch,
        model: nn.Module,
        opt_func: Callable[..., torch.optim.Optimizer] = AdamW,
        loss_func: Callable[..., Any] | None = None,
        metrics: Collection[Any] | Callable[..., Any] | None = None,
        wd: float | Sequence[float] = 1e-2,
        bn_wd: bool = True,
        path: str | Path | None = None,
        model_dir: str | Path = "models",
        callback_fns: Collection[Callable[..., Callback]] | Callable[..., Callback] | None = None,
        callbacks: Collection[Callback] | Callback | None = None,
        layer_groups: Sequence[nn.Module] | None = None,
        silent: bool = False,
    ) -> None:
        if not isinstance(data, DataBunch):
            raise TypeError(
                f"data is a {type(data).__name__}; give a DataBunch, such as DataBunch(train_dl, valid_dl)."
            )
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model is {model!r}; give an instance of a torch nn.Module, such as simple_cnn((3, 16, 2))."
            )
        self.data = data
        self.model = model.to(data.device)
        self.opt_func = check_callable("opt_func", opt_func)
        chosen = data.loss_func if loss_func is None else loss_func
        if chosen is None:
            raise DataError("The data do not say which loss fits them; give the Learner a loss_func.")
        self.loss_func: Callable[..., Any] = check_callable("loss_func", chosen)
        self.metrics = listed(metrics)
        for metric in self.metrics:
            as_metric(metric)
        self.wd = wd
        self.bn_wd = bn_wd
        self.path = Path(data.path if path is None else path)
        self.model_dir = Path(model_dir)
        self.callback_fns = check_callback_fns(listed(callback_fns))
        self.callbacks = check_callbacks(listed(callbacks))
        self.layer_groups = [self.model] if layer_groups is None else check_groups(self.model, list(layer_groups))
        self.silent = silent
        self.opt: Any = None
        self.history: list[Recorder] = []  # of every fit and finder run, the first one first
        self.recorder = Recorder(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__} on {self.data!r}; loss: {self.loss_func})"

    def create_opt(self, lr: LearningRate, wd: float | Sequence[float] = 0.0) -> None:
        """Make a new optimizer, ``learn.opt``, without the state of the one before."""
        self.opt = OptimWrapper.create(self.opt_func, self.lr_range(lr), self.layer_groups, wd, self.bn_wd)

    def lr_range(self, lr: LearningRate, name: str = "lr") -> Any:
        """Spread a learning rate over the layer groups: a number, ``slice(first, last)``, or a rate each.

        ``slice(last)`` gives all groups but the last a tenth.
        """
        return spread(lr, len(self.layer_groups), name)

    def fit(
        self,
        epochs: int,
        lr: LearningRate = 3e-3,
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
            lr: one rate, or a slice or sequence for the layer groups, see ``lr_range``.
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
        max_lr: LearningRate = 3e-3,
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
            self, max_lr, moms, div_factor, pct_start, final_div, tot_epochs, start_epoch, warmup, policy
        )
        call = plain_call(
            "fit_one_cycle", cyc_len=cyc_len, max_lr=max_lr, moms=moms, div_factor=div_factor, pct_start=pct_start,
            final_div=final_div, wd=wd, tot_epochs=tot_epochs, start_epoch=start_epoch, warmup=warmup, policy=policy,
        )  # fmt: skip
        keeping = Keeping(checkpoint, every, resume, on_write_error, on_nan)
        self._fit(cyc_len, max_lr, wd, callbacks, call, keeping, scheduler)

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
        values, _ = files.read_checked(checkpoint_file(self, checkpoint))
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
        finders = [LRFinder(self, start_lr, end_lr, num_it, stop_div) for _ in range(check_count("repeats", repeats))]
        call = plain_call("lr_find", start_lr=start_lr, end_lr=end_lr, num_it=num_it, stop_div=stop_div, wd=wd)
        return training.find(self, finders, start_lr, wd, call)

    def save(
        self, file: str | Path | IO[bytes], return_path: bool = False, with_opt: bool = True
    ) -> Path | IO[bytes] | None:
        """Save the model, and the optimizer with its state, to ``path/model_dir/{file}.pth`` or an open file.

        The file appears whole or not at all. It holds tensors and plain values only.
        """
        target = checkpoint.model_file(self, file)
        files.write(checkpoint.model_state(self, with_opt), target)
        return target if return_path else None

    def load(
        self,
        file: str | Path | IO[bytes],
        device: torch.device | str | None = None,
        strict: bool = True,
        with_opt: bool | None = None,
        purge: bool = False,
        trust: bool = False,
    ) -> Learner:
        """Load what ``save`` saved and return the learner; code in the file is not run.

        Args:
            file: the name it was saved under, another file's path, or an open file.
            device: where to load to; by default where the model is.
            strict: whether the parameters' names must be the model's.
            with_opt: load the optimizer too; by default if the file has one.
            purge: nothing; callbacks written for fastai v1 give it.
            trust: read a file that holds more than tensors and plain values, which runs the code in it: only for a file
                whose maker you know.

        Raises:
            FileNotFoundError, FileFormatError: there is no such file, or it is cut off or holds code.
            DataError: the file belongs to another model.
        """
        target = checkpoint.model_file(self, file, anywhere=True)
        checkpoint.load_model(self, target, device or self.data.device, strict, with_opt, trust)
        return self

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
        training.fit(self, epochs, lr, wd, extra, call, keeping)


# fastai v1 has these as functions of a learner too.
fit_one_cycle, lr_find = Learner.fit_one_cycle, Learner.lr_find
