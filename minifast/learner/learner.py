"""The Learner: a model, its data and every way to train, apply and export it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast.callbacks.gradient_clipping import GradientClipping
from minifast.callbacks.mixed_precision import MixedPrecision
from minifast.callbacks.mixup import MixUpCallback
from minifast.callbacks.recorder import Recorder
from minifast.checkpoint.model import load_model, model_file, model_state
from minifast.checkpoint.run import RunCheckpoint
from minifast.data.bunch import DataBunch, DatasetType
from minifast.diagnostics.check import check
from minifast.diagnostics.findings import CheckResult
from minifast.diagnostics.interpretation import ClassificationInterpretation
from minifast.diagnostics.summary import summary
from minifast.errors import DataError, MinifastError
from minifast.export import writer
from minifast.finder.result import FinderResult
from minifast.history import History
from minifast.learner import fitting, predicting
from minifast.learner.fitting import DEFAULT_LR, LearningRate
from minifast.learner.predicting import as_float32
from minifast.learner.running import RunOptions
from minifast.metrics.base import as_metric
from minifast.models import initialise
from minifast.schedules.annealing import Schedule
from minifast.training.callback import Callback, check_callback_fns, check_callbacks
from minifast.training.groups import check_groups, freeze_to, split_model, spread
from minifast.training.optimizer import AdamW, OptimWrapper
from minifast.utils import files
from minifast.utils.aliases import accept_aliases
from minifast.utils.checks import check_callable, check_count
from minifast.utils.tensors import as_arguments, as_list, map_tensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_data(data: Any) -> DataBunch:
    """Return ``data`` if it is a DataBunch."""
    if not isinstance(data, DataBunch):
        raise TypeError(f"data is a {type(data).__name__}; give a DataBunch, such as DataBunch(train_dl, valid_dl).")
    return data


class Learner:
    """Trains ``model`` on ``data``.

    Args:
        data: the batches to train and validate on.
        model: the network; it goes to the data's device.
        opt_func: makes the optimizer from parameters and ``lr=``; any torch optimizer. By default AdamW with betas
            (0.9, 0.99).
        loss_func: of (output, target); by default chosen from the data, cross entropy for classes.
        metrics: functions of (output, target), averaged over the validation set; objects with ``reset``, ``update`` and
            ``compute``, such as those of torchmetrics; or callbacks that hand back ``add_metrics(last_metrics, value)``
            at the end of an epoch.
        wd: weight decay, decoupled from the gradient.
        bn_wd: whether weight decay applies to normalisations and biases too.
        train_bn: whether the BatchNorms of frozen layer groups go on being trained.
        path: where files go; by default ``data.path``.
        model_dir: the folder in ``path`` for ``save`` and ``load``.
        callback_fns: functions of a learner that make a callback, called anew for each fit.
        callbacks: callbacks for every fit.
        layer_groups: parts of the model that may have learning rates of their own; by default one of all. ``split``
            makes them from a few cuts.
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
    >>> _ = learn.fit_one_cycle(2, 1e-2)
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
        train_bn: bool = True,
        path: str | Path | None = None,
        model_dir: str | Path = "models",
        callback_fns: Collection[Callable[..., Callback]] | Callable[..., Callback] | None = None,
        callbacks: Collection[Callback] | Callback | None = None,
        layer_groups: Sequence[nn.Module] | None = None,
        silent: bool = False,
    ) -> None:
        check_data(data)
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
        self.metrics = as_list(metrics)
        for metric in self.metrics:
            as_metric(metric)
        self.wd = wd
        self.bn_wd = bn_wd
        self.train_bn = train_bn
        self.path = Path(data.path if path is None else path)
        self.model_dir = Path(model_dir)
        self.callback_fns = check_callback_fns(as_list(callback_fns))
        self.callbacks = check_callbacks(as_list(callbacks))
        self.layer_groups = [self.model] if layer_groups is None else check_groups(self.model, list(layer_groups))
        self.silent = silent
        self.precision: torch.dtype | None = None  # of the forward pass; None is float32
        self.opt: Any = None
        self.history = History()  # of every fit and finder run, the first one first
        self.recorder = Recorder(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__} on {self.data!r}; loss: {self.loss_func})"

    def fit(
        self,
        epochs: int,
        lr: LearningRate = DEFAULT_LR,
        wd: float | Sequence[float] | None = None,
        callbacks: Collection[Callback] | Callback | None = None,
        checkpoint: str | RunCheckpoint | None = None,
        every: int | str | None = None,
        resume: bool = True,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> Recorder:
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
        run = RunOptions(checkpoint, every, resume, on_write_error, on_nan)
        return fitting.fit(self, epochs, lr, wd, callbacks, run)

    @accept_aliases(cyc_len="epochs")
    def fit_one_cycle(
        self,
        epochs: int,
        max_lr: LearningRate = DEFAULT_LR,
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
        checkpoint: str | RunCheckpoint | None = None,
        every: int | str | None = None,
        resume: bool = True,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> Recorder:
        """Train for ``epochs`` epochs by the 1cycle policy.

        See ``OneCycleScheduler`` for the arguments of the cycle, and ``fit`` for the last five.
        """
        cycle = {
            "max_lr": max_lr, "moms": moms, "div_factor": div_factor, "pct_start": pct_start, "final_div": final_div,
            "tot_epochs": tot_epochs, "start_epoch": start_epoch, "warmup": warmup, "policy": policy,
        }  # fmt: skip
        run = RunOptions(checkpoint, every, resume, on_write_error, on_nan)
        return fitting.fit_one_cycle(self, epochs, cycle, wd, callbacks, run)

    def fit_schedule(
        self,
        epochs: int,
        lr: Schedule | float,
        mom: Schedule | float | None = None,
        wd: Schedule | float | None = None,
        callbacks: Collection[Callback] | Callback | None = None,
        checkpoint: str | RunCheckpoint | None = None,
        every: int | str | None = None,
        resume: bool = True,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> Recorder:
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
        >>> warmup = schedules.join((1, schedules.linear(0.0, 1e-2)), (1, schedules.constant(1e-2)))
        >>> _ = learn.fit_schedule(1, lr=warmup)
        >>> learn.recorder.lrs[0], learn.recorder.lrs[-1]
        (0.0, 0.01)
        """
        run = RunOptions(checkpoint, every, resume, on_write_error, on_nan)
        return fitting.fit_schedule(self, epochs, {"lr": lr, "mom": mom, "wd": wd}, callbacks, run)

    @accept_aliases(cyc_len="epochs")
    def plot_schedule(
        self,
        epochs: int,
        max_lr: LearningRate | Schedule = DEFAULT_LR,
        mom: Schedule | float | None = None,
        wd: Schedule | float | None = None,
        return_fig: bool | None = None,
        ax: Any = None,
        **cycle: Any,
    ) -> Figure | None:
        """Draw what each batch would be trained with, without training.

        That is by ``fit_one_cycle(epochs, max_lr, **cycle)``; or where ``max_lr`` is a schedule, by
        ``fit_schedule(epochs, max_lr, mom, wd)``. The scheduler is the one that trains.

        Args:
            return_fig: return the figure.
            ax: as many axes as hyper-parameters are drawn.
        """
        return fitting.plot_schedule(self, epochs, max_lr, mom, wd, cycle, return_fig, ax)

    def resume(
        self,
        checkpoint: str,
        callbacks: Collection[Callback] | Callback | None = None,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> Recorder:
        """Go on with the run kept under ``checkpoint``, with the arguments that it was begun with; see ``fit``.

        Raises:
            FileNotFoundError: there is none of that name.
            MinifastError: it is the run of another model or other data, or one of ``fit_schedule``, whose schedules are
                functions, which no file keeps: call that again.
        """
        return fitting.resume(self, checkpoint, callbacks, on_write_error, on_nan)

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
        return fitting.lr_find(self, start_lr, end_lr, num_it, stop_div, wd, repeats)

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
        return check(self, check_count("epochs", epochs))

    def create_opt(self, lr: LearningRate, wd: float | Sequence[float] = 0.0) -> None:
        """Make a new optimizer, ``learn.opt``, without the state of the one before."""
        self.opt = OptimWrapper.create(self.opt_func, self.lr_range(lr), self.layer_groups, wd, self.bn_wd)

    def lr_range(self, lr: LearningRate, name: str = "lr") -> Any:
        """Spread a learning rate over the layer groups: a number, ``slice(first, last)``, or a rate each.

        ``slice(last)`` gives all groups but the last a tenth.
        """
        return spread(lr, len(self.layer_groups), name)

    def split(self, split_on: Callable[[Any], Any] | Sequence[nn.Module] | nn.Module) -> Learner:
        """Cut the model into layer groups, ``learn.layer_groups``, and return the learner.

        The next fit makes a new optimizer for them, without the state of the one before: split before you train.

        Args:
            split_on: the modules that a new group begins with, in the model's order, or a function of the model that
                returns them.

        Raises:
            TypeError, ValueError: something is no module of the model, or two groups share a parameter.

        >>> from minifast import DataBunch, simple_ann
        >>> items = [(torch.randn(8, 10), torch.randint(2, (8,)))] * 2
        >>> data = DataBunch(items, device="cpu", classes=["a", "b"])
        >>> learn = Learner(data, simple_ann(10, 2), silent=True).split(lambda model: [model[3]])
        >>> _ = learn.freeze()
        >>> _ = learn.fit_one_cycle(1, slice(1e-4, 1e-2))
        >>> learn.lr_range(slice(1e-4, 1e-2)).tolist()
        [0.0001, 0.01]
        """
        self.layer_groups = split_model(self.model, split_on)
        self.opt = None
        return self

    def init(self, init: Callable[[torch.Tensor], Any]) -> Learner:
        """Set the model's weights by ``init``, such as ``nn.init.kaiming_normal_``, and biases to 0.

        Normalisations stay as they are, and so does what is frozen.

        >>> from minifast import DataBunch, simple_ann
        >>> data = DataBunch([(torch.randn(8, 10), torch.randint(2, (8,)))], device="cpu", classes=["a", "b"])
        >>> learn = Learner(data, simple_ann(10, 2))
        >>> _ = learn.init(nn.init.zeros_)
        >>> learn.model[1].weight.abs().max().item()
        0.0
        """
        initialise(self.model, init)
        return self

    def freeze_to(self, n: int) -> Learner:
        """Freeze the layer groups before the ``n``-th, counted from 0, or below 0 from the end; the others train.

        BatchNorms of frozen groups go on being trained with the learner's ``train_bn``, as in fastai v1, and their
        running statistics move in any case (``BnFreeze`` holds those of frozen ones). The optimizer stays, where v1
        makes a new one: what is trained further goes on with its momentum, what is frozen keeps its own, and is neither
        stepped nor decayed.

        Raises:
            ValueError: there is no ``n``-th group.
        """
        freeze_to(self.layer_groups, n, self.train_bn)
        return self

    def freeze(self) -> Learner:
        """Freeze all layer groups but the last, see ``freeze_to``.

        Raises:
            ValueError: there is one group only.
        """
        if len(self.layer_groups) < 2:
            raise ValueError(
                "There is one layer group, so nothing comes before the last; cut the model first, for instance "
                "learn.split(lambda model: [model[-1]])."
            )
        return self.freeze_to(-1)

    def unfreeze(self) -> Learner:
        """Let all layer groups train."""
        return self.freeze_to(0)

    def save(
        self, file: str | Path | IO[bytes], return_path: bool = False, with_opt: bool = True
    ) -> Path | IO[bytes] | None:
        """Save the model, and the optimizer with its state, to ``path/model_dir/{file}.pth`` or an open file.

        The file appears whole or not at all. It holds tensors and plain values only.
        """
        target = model_file(self, file)
        files.write(model_state(self, with_opt), target)
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
        target = model_file(self, file, anywhere=True)
        load_model(self, target, device or self.data.device, strict, with_opt, trust)
        return self

    def clip_grad(self, clip: float = 0.1) -> Learner:
        """Clip the gradients of each step to a norm of ``clip``, see ``GradientClipping``; 0 clips no longer."""
        GradientClipping(clip=clip)  # refuses what is no norm, now and not in the fit
        self._make(partial(GradientClipping, clip=clip))
        return self

    def mixup(self, alpha: float = 0.4, stack_x: bool = False, stack_y: bool = True) -> Learner:
        """Train on mixtures of two items, see ``MixUpCallback``."""
        MixUpCallback(alpha=alpha)
        self._make(partial(MixUpCallback, alpha=alpha, stack_x=stack_x, stack_y=stack_y))
        return self

    def to_fp16(self, loss_scale: float | None = None, max_noskip: int = 1000) -> Learner:
        """Train and predict in float16 where that is safe, see ``MixedPrecision``; weights and losses stay float32."""
        self._set_precision(torch.float16, MixedPrecision(self, loss_scale, max_noskip))
        return self

    def to_bf16(self) -> Learner:
        """Train and predict in bfloat16 where that is safe, by torch's autocast; weights and losses stay float32.

        bfloat16 has float32's range, so no loss needs to be scaled: take it where the device computes with it.
        """
        self._set_precision(torch.bfloat16)
        return self

    def to_fp32(self) -> Learner:
        """Train and predict in float32 again."""
        self._set_precision(None)
        return self

    def compile(self, **options: Any) -> Learner:
        """Compile the model in place, at its first batches; ``options`` are those of ``torch.compile``.

        The names of its parameters stay, so files fit both models that are compiled and those that are not. Learning
        rate and momentum are no part of what is compiled. Training and evaluation are compiled apart, and each once
        more where a first batch of another size comes.

        >>> import torch
        >>> from minifast import *
        >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 3
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> learn = Learner(DataBunch(items, device="cpu"), simple_ann(4, 2), loss_func=loss, silent=True)
        >>> _ = learn.compile(backend="eager").fit(1, 1e-2)
        """
        self.model.compile(**options)
        return self

    def in_precision(self) -> Any:
        """Return the context in which the model's forward pass runs: torch's autocast, unless it is float32."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.data.device.type, self.precision)

    def output_of(self, inputs: Any) -> Any:
        """Return the model's output for the inputs of a batch, in float32 whatever the precision of the pass."""
        if self.precision is None:
            return self.model(*as_arguments(inputs))
        with self.in_precision():
            output = self.model(*as_arguments(inputs))
        return map_tensors(as_float32, output)

    def dl(self, ds_type: DatasetType = DatasetType.Valid) -> Any:
        """Return the loader of a part of the data."""
        return self.data.dl(ds_type)

    def validate(self, dl: Any = None, metrics: Collection[Any] | None = None) -> list[Any]:
        """Return ``[loss, *metrics]`` over ``dl``, by default the validation set and the learner's metrics.

        The learner's callbacks are told of the batches only, as by ``get_preds``, since no training begins or ends, and
        those that watch or keep a training are not told at all.
        """
        return predicting.validate(self, dl, metrics)

    def get_preds(
        self,
        ds_type: DatasetType = DatasetType.Valid,
        activ: Callable[[Tensor], Tensor] | None = None,
        with_loss: bool = False,
        n_batch: int | None = None,
    ) -> list[Any]:
        """Return ``[predictions, targets]`` of a part of the data, on the CPU; several outputs or targets as they come.

        Args:
            ds_type: which part; a test part may have no targets, and those returned are then 0.
            activ: what turns outputs into predictions; by default what belongs to the loss: softmax for cross entropy,
                a sigmoid for binary cross entropy, nothing otherwise.
            with_loss: return the loss of each item too, as the third; of several numbers an item that of each number.
            n_batch: stop after so many batches.

        Raises:
            DataError: there is no item; or ``with_loss`` is asked for where an item has several outputs or targets.
        """
        return predicting.get_preds(self, ds_type, activ, with_loss, n_batch)

    def pred_batch(
        self,
        ds_type: DatasetType = DatasetType.Valid,
        batch: Any = None,
        activ: Callable[[Tensor], Tensor] | None = None,
    ) -> Any:
        """Return the predictions of one batch, on the CPU; callbacks take no part.

        Args:
            ds_type: the part whose first batch it is.
            batch: another batch ``(x, y)``, as the model takes it.
            activ: what turns outputs into predictions, see ``get_preds``.

        >>> from minifast import DataBunch, Learner, simple_ann
        >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 2
        >>> learn = Learner(DataBunch(items, items, device="cpu", classes=["a", "b"]), simple_ann(4, 2))
        >>> learn.pred_batch().shape, learn.pred_batch(batch=(torch.zeros(1, 4), None)).shape
        (torch.Size([8, 2]), torch.Size([1, 2]))
        """
        return predicting.pred_batch(self, ds_type, batch, activ)

    def predict(self, item: Any) -> tuple[Any, Any, Any]:
        """Predict one item: what the data set has as one, or for pictures a file's path, a PIL image or an array.

        Returns:
            (class, its number, probabilities) for classes, whose names are their numbers where there are no others;
            under binary cross entropy, where an item may have several, (the classes above a half, 1 for each of them
            and 0 for the others, probabilities); (output, output, output) otherwise.

        Raises:
            DataError: the item is not what the data are made of.
        """
        return predicting.predict(self, item)

    def show_results(
        self, ds_type: DatasetType = DatasetType.Valid, rows: int = 5, return_fig: bool | None = None
    ) -> Figure | None:
        """Show targets and predictions of one batch: ``rows`` × ``rows`` pictures, or a table of ``rows`` other items.

        The titles of pictures are the target and the prediction, green where they agree and red where not. Of the test
        part there are only predictions, since its targets need not be known.
        """
        return predicting.show_results(self, ds_type, rows, return_fig)

    def interpret(self, ds_type: DatasetType = DatasetType.Valid) -> ClassificationInterpretation:
        """Return what a classifier gets wrong in a part of the data; see ``ClassificationInterpretation``."""
        return ClassificationInterpretation.from_learner(self, ds_type)

    def summary(self) -> str:
        """Return a table of the model's layers with output shapes and parameters, for one batch of the data."""
        x, _ = self.data.one_batch(DatasetType.Train, denorm=False, cpu=False)
        return summary(self.model, x)

    def export(self, file: str | Path | IO[bytes] = "export.pkl", *, pickle: bool = False) -> Path | IO[bytes]:
        """Write what predictions need to ``path/{file}`` or an open file, and return where; ``load_learner`` reads it.

        That is the model with what the data do to a batch (normalising, other ``dl_tfms``), the classes, the size of
        pictures and the loss. The model goes as a program of torch's core operators, made by torch.export, with its
        weights: tensors and plain values, so that reading it runs no code, and needs none of yours. It predicts in
        evaluation mode, with batches of any size on any device, and is not trained; to train on, use ``save`` and
        ``load``. Items must have the shape of the learner's; pictures are brought to their size. Its outputs are
        compared with the model's before the file is written. (fastai v1 pickles the model, and torch.export.load uses
        pickle too: reading such files runs code in them.)

        Args:
            file: a name in ``path``, or an open file.
            pickle: write the model as it is, with pickle, where torch.export cannot follow it. Reading that runs code
                and needs its classes, so ``load_learner`` takes it with ``trust=True`` only.

        Raises:
            MinifastError: torch.export cannot follow the model, or the program predicts otherwise than the model.
            DataError: the data have no batch to follow.

        >>> import io
        >>> from minifast import *
        >>> items = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
        >>> data = DataBunch(items, device="cpu", classes=["no", "yes"])
        >>> learn, file = Learner(data, simple_ann(4, 2)), io.BytesIO()
        >>> _ = learn.export(file)
        >>> _ = file.seek(0)
        >>> category, number, probabilities = load_learner(".", file).predict(torch.zeros(4))
        >>> category in data.classes, probabilities.shape
        (True, torch.Size([2]))
        """
        return writer.export(self, file, pickle)

    def to_pt2(self, file: str | Path | IO[bytes]) -> torch.export.ExportedProgram:
        """Write the model with torch.export to ``path/{file}``, such as ``model.pt2``, and return the program.

        It is for torch's own tools (C++, ahead-of-time compilation): the model alone, in evaluation mode, which takes
        batches of any size as the data give them to it, normalised. Read it with ``torch.export.load``, which uses
        pickle: only a file whose maker you know.

        Raises:
            MinifastError: torch.export cannot follow the model.
        """
        return writer.to_pt2(self, file)

    def to_onnx(self, file: str | Path) -> Path:
        """Write the model as ONNX to ``path/{file}``, such as ``model.onnx``, and return where.

        It is the model alone, in evaluation mode, which takes batches of any size as the data give them to it,
        normalised. Needs the packages onnx and onnxscript; where onnxruntime is there too, its outputs are compared
        with the model's before the file is written.

        Raises:
            ImportError: a package is missing.
            MinifastError: torch cannot write the model as ONNX, or the outputs differ.
        """
        return writer.to_onnx(self, file)

    def _make(self, maker: partial[Any]) -> None:
        """Have a callback made for each fit, in the place of one of its kind."""
        others = [one for one in self.callback_fns if getattr(one, "func", one) is not maker.func]
        self.callback_fns[:] = [*others, maker]

    def _set_precision(self, dtype: torch.dtype | None, *scaling: Callback) -> None:
        kind = self.data.device.type
        if dtype is not None and not torch.amp.is_autocast_available(kind):
            raise MinifastError(f"torch has no autocast on {kind}; stay with float32 there.")
        self.callbacks[:] = [*(one for one in self.callbacks if not isinstance(one, MixedPrecision)), *scaling]
        self.precision = dtype


# fastai v1 has these as functions of a learner too.
fit_one_cycle = Learner.fit_one_cycle


lr_find = Learner.lr_find
