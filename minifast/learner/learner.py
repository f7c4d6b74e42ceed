"""The Learner: a model with its data, loss, metrics and optimizer, and all methods that work on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from minifast.callbacks.gradient_clipping import GradientClipping
from minifast.callbacks.mixed_precision import MixedPrecision
from minifast.callbacks.mixup import MixUpCallback
from minifast.callbacks.recorder import Recorder
from minifast.checkpoint.model import load_model, model_file, save_model
from minifast.checkpoint.run import RunCheckpoint
from minifast.data.batch_fn import with_batch_fn
from minifast.data.bunch import DataBunch
from minifast.data.loaders import BatchFn
from minifast.data.parts import DatasetType
from minifast.diagnostics.check import check
from minifast.diagnostics.check_result import CheckResult
from minifast.diagnostics.interpretation import ClassificationInterpretation
from minifast.diagnostics.summary import summary
from minifast.distributed.exchange import result_of_first
from minifast.distributed.sharding import class_of
from minifast.errors import MinifastError
from minifast.export import writer
from minifast.finder.result import FinderResult
from minifast.history import History
from minifast.learner import augmented, copying, fitting, predicting
from minifast.learner.fitting import DEFAULT_LR, LearningRate
from minifast.learner.predicting import as_float32
from minifast.learner.running import RunOptions, optimizer_groups
from minifast.metrics.base import as_metric, columns_of
from minifast.model_loss import forward
from minifast.models import initialize
from minifast.schedules.annealing import Schedule
from minifast.training.batch_checks import explain_errors_of_batch
from minifast.training.batchnorm import hold_frozen_statistics
from minifast.training.callback import Callback, check_callback_fns, check_callbacks
from minifast.training.features import FrozenFeatures
from minifast.training.groups import check_groups, freeze_to, group_indices, split_model, spread
from minifast.training.lazy import initialize_lazy
from minifast.training.loss_choice import choose_loss
from minifast.training.optimizer import AdamW, DefaultDecay, OptimWrapper
from minifast.training.parallel import Parallel, group_of, shard, share_model
from minifast.training.torch_optimizer import check_opt_func
from minifast.utils.aliases import accept_aliases
from minifast.utils.checks import check_callable, check_count, shown
from minifast.utils.compat import compile_in_place
from minifast.utils.compiled import unwrap_compiled
from minifast.utils.memory import keep_freed_memory
from minifast.utils.public import check_keywords, public_class
from minifast.utils.tensors import as_list, map_tensors
from minifast.utils.text import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


P = ParamSpec("P")
R = TypeVar("R")


def check_data(data: Any) -> DataBunch:
    """Return ``data`` if it is a DataBunch."""
    if isinstance(data, nn.Module):
        raise TypeError(f"`data` comes first, then the model, as in Learner(data, model); got {type(data).__name__}.")
    if not isinstance(data, DataBunch):
        raise TypeError(
            f"`data` must be a DataBunch, got {type(data).__name__}; wrap your loaders: DataBunch(train_dl, valid_dl)."
        )
    return data


@public_class(but=("output_of", "in_precision"))  # called for each batch
class Learner:
    """Train, evaluate, apply and export a PyTorch model.

    Args:
        data: the training and validation batches.
        model: the network. It is moved to ``data.device``. A model of ``torch.compile`` stays compiled, without the
            prefix in its parameter names.
        opt_func: a function that makes the optimizer from parameters and ``lr=``, such as any torch optimizer class or
            a ``partial`` of one. With several layer groups it gets parameter groups, as torch's optimizers do. Its
            ``weight_decay``, ``betas`` and others are used as they are; schedules set the momentum (``momentum``, or
            the first of ``betas``) during a fit.
            By default AdamW with betas (0.9, 0.99).
        loss_func: a function or module of (output, target). By default the loss of ``data``, such as cross entropy for
            classes; for batches that are dicts and a model whose ``forward`` takes ``labels``, the loss that the model
            returns. Trainable parameters of a module are trained with those of the last layer group.
        metrics: functions of (output, target), averaged over the validation set; objects with ``reset``, ``update``
            and ``compute``, such as those of torchmetrics; or callbacks that return
            ``add_metrics(last_metrics, value)`` at the end of an epoch.
        wd: weight decay, decoupled from the gradient: one number or one per layer group. By default the
            ``weight_decay`` of ``opt_func``, which torch applies in its own way, or 0.01.
        bn_wd: apply weight decay to normalization layers and biases too.
        train_bn: how BatchNorm layers of frozen layer groups train. None freezes them completely: parameters and
            running statistics stay constant, and the layers normalize by running statistics. True trains them, the
            default of fastai v1. False freezes their parameters only, as in fastai v1.
        path: the folder for files. By default the ``path`` of ``data``; for image data, whose path is the folder of the
            images, the working directory.
        model_dir: the folder in ``path`` for ``save``, ``load`` and checkpoints.
        callback_fns: functions that make a callback from a learner. Each fit calls them again.
        callbacks: callbacks that every fit uses.
        layer_groups: parts of the model, in order, each with its own learning rate. By default one group, the whole
            model. ``split`` makes groups too.
        silent: print no progress bar and no table.
        distributed: train together with the other processes, where torchrun started several. Each then works on its
            share of every batch. False trains in each process alone, as ``MINIFAST_DISTRIBUTED=0`` does.
        sync_bn: with several processes on GPUs, normalize in BatchNorm layers by the statistics of the whole batch. By
            default each process normalizes its share by itself.
        batch_fn: a function that takes a batch of the loaders, on the device, and returns ``(inputs, targets)``, for
            batches of any kind. The learner then works on a copy of ``data``, which has no default loss.
        precompute: in a fit of several epochs, compute the outputs of frozen first layers only once for each sample,
            where that changes nothing but rounding: the model is a Sequential, the data are in memory and not
            augmented, and no hook watches the frozen layers. It prints a line then. False computes them in each epoch.

    Raises:
        TypeError: an argument has the wrong type.
        DataError: neither ``data`` nor ``loss_func`` gives a loss.

    >>> from minifast import DataBunch, accuracy, simple_ann
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> dataset = TensorDataset(torch.randn(100, 10), torch.randint(2, (100,)))
    >>> data = DataBunch(DataLoader(dataset, 20), DataLoader(dataset, 20), device="cpu")
    >>> learn = Learner(data, simple_ann(10, 2), metrics=[accuracy], silent=True)
    >>> recorder = learn.fit_one_cycle(2, 1e-2)
    >>> len(recorder.lrs), len(recorder.val_losses)
    (10, 2)
    """

    # Also of a learner that an earlier version pickled.
    distributed: bool = True
    sync_bn: bool = False
    _advice: Mapping[str, str] = MappingProxyType({})  # the command's words for "stopped" (by Ctrl-C) and "batchnorm"
    parallel: Parallel | None = None  # during a run over several processes
    precompute: bool = True
    features: FrozenFeatures | None = None  # during a run whose first layers are frozen

    def __init__(
        self,
        data: DataBunch,
        model: nn.Module,
        opt_func: Callable[..., torch.optim.Optimizer] = AdamW,
        loss_func: Callable[..., Any] | None = None,
        metrics: Collection[Any] | Callable[..., Any] | None = None,
        wd: float | Sequence[float] = DefaultDecay(1e-2),
        bn_wd: bool = True,
        train_bn: bool | None = None,
        path: str | Path | None = None,
        model_dir: str | Path = "models",
        callback_fns: Collection[Callable[..., Callback]] | Callable[..., Callback] | None = None,
        callbacks: Collection[Callback] | Callback | None = None,
        layer_groups: Sequence[nn.Module] | None = None,
        silent: bool = False,
        distributed: bool = True,
        sync_bn: bool = False,
        batch_fn: BatchFn | None = None,
        precompute: bool = True,
    ) -> None:
        keep_freed_memory()
        check_data(data)
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"`model` must be an instance of torch's nn.Module, got {shown(model)}; make one, such as "
                f"simple_cnn((3, 16, 2))."
            )
        self.data = data if batch_fn is None else with_batch_fn(data, check_callable("batch_fn", batch_fn))
        self.model = unwrap_compiled(model).to(data.device)
        self.opt_func = check_opt_func(opt_func)
        self.loss_func: Any = check_callable("loss_func", choose_loss(self.data, self.model, loss_func, distributed))
        self.metrics = as_list(metrics)
        for metric in self.metrics:
            as_metric(metric)
        self.wd = wd
        self.bn_wd = bn_wd
        self.train_bn = train_bn
        own = data.path if data.files_in_path else Path()
        self.path = Path(own if path is None else path)
        self.model_dir = Path(model_dir)
        self.callback_fns = check_callback_fns(as_list(callback_fns))
        self.callbacks = check_callbacks(as_list(callbacks))
        self.distributed = distributed
        self.sync_bn = sync_bn
        self.precompute = precompute
        self.parallel = None
        share_model(self)
        groups = [self.model] if layer_groups is None else map(unwrap_compiled, layer_groups)
        self.layer_groups = check_groups(self.model, list(groups))
        self.silent = silent
        self.precision: torch.dtype | None = None  # of the forward pass; None is float32
        self.opt: Any = None
        self.history = History()  # the Recorder of each fit and lr_find, in order
        self.recorder = Recorder(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({class_of(self.model).__name__} on {self.data!r}; loss: {self.loss_func})"

    def _repr_html_(self) -> str:
        n = sum(p.numel() for p in self.model.parameters())
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        epochs = sum(len(run.nb_batches) for run in self.history if run.finder_result is None)
        rows = [
            ("model", f"{class_of(self.model).__name__}, {n:,} parameters, {trained:,} of them trainable"),
            ("data", repr(self.data)),
            ("loss", str(self.loss_func)),
            ("metrics", ", ".join(columns_of(self.metrics)) or "none"),
            ("optimizer", getattr(getattr(self.opt_func, "func", self.opt_func), "__name__", repr(self.opt_func))),
            ("trained", f"{epochs} epoch{'' if epochs == 1 else 's'}"),
            ("files", str(self.path / self.model_dir)),
        ]
        return html_table([(type(self).__name__, ""), *rows])

    def __getstate__(self) -> dict[str, Any]:
        return copying.state_of(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        copying.restore(self, state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Learner:
        return copying.deep_copy_learner(self, memo)

    # --- training

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
        """Train for ``epochs`` epochs with the constant learning rate ``lr``.

        The first fit makes the optimizer. Later fits continue with its state.

        Args:
            epochs: the number of passes over the training data, at least 1.
            lr: one learning rate, or a slice or sequence for the layer groups, see ``lr_range``. By default 0.003 for
                the last group and 0.0003 for the others.
            wd: weight decay. By default the learner's.
            callbacks: callbacks for this fit only.
            checkpoint: a name under which the run is saved in ``path/model_dir`` at the end of each epoch. If the file
                holds an unfinished run, the same call resumes it, bit for bit. A ``RunCheckpoint`` holds the name and
                the next three arguments in one object.
            every: save during an epoch too: a number of batches, or seconds as a string such as ``"60s"``.
            resume: False starts from the beginning and ignores the existing checkpoint.
            on_write_error: ``"continue"`` warns when a checkpoint cannot be written and keeps training; ``"stop"``
                raises the error. The last complete file stays.
            on_nan: for a loss that is NaN or infinite, ``"stop"`` raises an error; ``"restore"`` puts the weights of
                the last good epoch back and ends the fit with a warning; ``"ignore"`` keeps training.

        Returns:
            The Recorder of this fit, which is also ``learn.recorder``: learning rates, losses, metrics and plots.

        Raises:
            NonFiniteLossError: a training loss is NaN or infinite. The message names the batch and the layer.
            MinifastError: the checkpoint holds another run. The message names the difference.
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
        """Train for ``epochs`` epochs with the 1cycle policy.

        ``OneCycleScheduler`` describes the arguments of the cycle, ``fit`` all others, the return value and the errors.
        ``cyc_len`` is another name of ``epochs``, as in fastai v1.
        """
        cycle = {
            "max_lr": max_lr, "moms": moms, "div_factor": div_factor, "pct_start": pct_start, "final_div": final_div,
            "tot_epochs": tot_epochs, "start_epoch": start_epoch, "warmup": warmup, "policy": policy,
        }  # fmt: skip
        run = RunOptions(checkpoint, every, resume, on_write_error, on_nan)
        return fitting.fit_one_cycle(self, epochs, cycle, wd, callbacks, run)

    @accept_aliases(div="div_factor")
    def fine_tune(
        self,
        epochs: int,
        base_lr: float = 2e-3,
        freeze_epochs: int = 1,
        lr_mult: float = 100,
        pct_start: float = 0.3,
        div_factor: float = 5.0,
        **kwargs: Any,
    ) -> Recorder:
        """Train the last layer group alone, then all layer groups, each with the 1cycle policy, as in fastai v2.

        The first fit trains for ``freeze_epochs`` epochs with the maximum learning rate ``base_lr``. The second one
        has maximum learning rates from ``base_lr / 2 / lr_mult`` for the first layer group to ``base_lr / 2`` for
        the last.

        Args:
            epochs: the number of epochs of the second fit.
            base_lr: the maximum learning rate of the first fit.
            freeze_epochs: the number of epochs of the first fit; 0 leaves it out.
            lr_mult: the last layer group's learning rate in the second fit, divided by that of the first group.
            pct_start: the part of the second fit in which the learning rate rises; 0.99 of the first fit.
            div_factor: the maximum learning rate of the second fit, divided by the one it starts with. ``div`` is
                another name of it.
            kwargs: arguments of ``fit_one_cycle`` for both fits. The first fit's ``checkpoint`` is ``NAME_head``.

        Returns:
            The Recorder of the second fit; ``learn.history`` holds both.

        Raises:
            ValueError: the model has only one layer group, which ``split`` changes.

        >>> from minifast import DataBunch, simple_ann
        >>> batches = [(torch.randn(8, 10), torch.randint(2, (8,)))] * 2
        >>> data = DataBunch(batches, device="cpu", classes=["a", "b"])
        >>> learn = Learner(data, simple_ann(10, 2), silent=True).split(lambda model: [model[3]])
        >>> [len(recorder.lrs) for recorder in (learn.fine_tune(3), *learn.history)]
        [6, 2, 6]
        """
        check_keywords("fine_tune", kwargs, Learner.fine_tune, Learner.fit_one_cycle, but={"max_lr"})
        cycles = {"pct_start": pct_start, "div_factor": div_factor, **kwargs}
        return fitting.fine_tune(self, epochs, base_lr, freeze_epochs, lr_mult, cycles)

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
        """Train for ``epochs`` epochs with schedules for the learning rate, momentum and weight decay.

        ``fit`` describes the arguments from ``callbacks`` on, the return value and the errors.
        A ValueError names the first invalid value of a schedule.

        Args:
            epochs: the number of passes over the training data, at least 1.
            lr: a function of the progress from 0 to 1 (see ``minifast.schedules``), or a constant. A schedule may
                return an array with one value per layer group. It is called for each batch before the training, so
                it does not see variables that change during the training.
            mom: the same for the momentum. By default the optimizer's own momentum stays.
            wd: the same for the weight decay. By default the learner's.

        >>> import torch
        >>> from minifast import *
        >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> learn = Learner(DataBunch(batches, device="cpu"), simple_ann(4, 2), loss_func=loss, silent=True)
        >>> warmup = schedules.join((1, schedules.linear(0.0, 1e-2)), (1, schedules.constant(1e-2)))
        >>> recorder = learn.fit_schedule(1, lr=warmup)
        >>> recorder.lrs[0], recorder.lrs[-1]
        (0.0, 0.01)
        """
        run = RunOptions(checkpoint, every, resume, on_write_error, on_nan)
        return fitting.fit_schedule(self, epochs, {"lr": lr, "mom": mom, "wd": wd}, callbacks, run)

    def lr_find(
        self,
        start_lr: LearningRate = 1e-7,
        end_lr: LearningRate = 10,
        num_it: int = 100,
        stop_div: bool = True,
        wd: float | Sequence[float] | None = None,
        repeats: int = 1,
        show_plot: bool = True,
    ) -> FinderResult:
        """Run the learning rate range test: a mock training with learning rates from ``start_lr`` to ``end_lr``.

        A notebook shows the losses with the suggestion; elsewhere ``learn.recorder.plot()`` plots them. Afterwards the
        weights, buffers, gradients, optimizer, random generators and data order are restored. Nothing is written to
        disk.

        Args:
            start_lr: the first learning rate.
            end_lr: the last learning rate.
            num_it: the number of optimizer steps, over as many epochs as they need.
            stop_div: stop when the smoothed loss exceeds four times its minimum.
            wd: weight decay. By default the learner's.
            repeats: the number of runs, each with another data order. The result is their median.
            show_plot: show the plot in a notebook.

        Returns:
            The curve, the learning rate that each rule reads from it, and a suggestion with its range, or the reason
            why there is no suggestion.
        """
        return fitting.lr_find(self, start_lr, end_lr, num_it, stop_div, wd, repeats, show_plot)

    def resume(
        self,
        checkpoint: str,
        callbacks: Collection[Callback] | Callback | None = None,
        on_write_error: str = "continue",
        on_nan: str = "stop",
    ) -> Recorder:
        """Resume the checkpointed run named ``checkpoint`` with the arguments it was started with.

        ``fit`` describes the other arguments and the return value.

        Raises:
            FileNotFoundError: there is no checkpoint of that name.
            MinifastError: the run has another model or other data, or was started by ``fit_schedule``: no file holds
                its schedules, so call ``fit_schedule`` again with the same arguments.
        """
        return fitting.resume(self, checkpoint, callbacks, on_write_error, on_nan)

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
        """Plot the hyper-parameters of each batch of a fit, without training.

        The fit is ``fit_one_cycle(epochs, max_lr, **cycle)``. If ``max_lr`` is a schedule, it is
        ``fit_schedule(epochs, max_lr, mom, wd)``.

        ``return_fig`` returns the figure; ``ax`` is one pair of axes per plotted hyper-parameter.
        """
        return fitting.plot_schedule(self, epochs, max_lr, mom, wd, cycle, return_fig, ax)

    def check(self, epochs: int = 1) -> CheckResult:
        """Return the problems that would make a training of ``epochs`` epochs fail, each with a remedy.

        One batch goes through the model and the loss, and the model overfits a few of its samples. The first validation
        batch goes through both too, and is compared with that of training. Afterwards the weights, optimizer, random
        generators and data order are restored. The check covers shapes and types, class numbers, the initial loss, a
        softmax before the loss, frozen parameters, missing gradients, the scale of the inputs, the number of steps and
        the momentum. It trains for 40 to 120 steps on 16 samples. Several processes have the result of the first.

        Raises:
            DataError: the training data have no batch.

        >>> from torch import nn, randint, randn
        >>> from minifast import DataBunch, Learner, simple_ann
        >>> batches = [(randn(8, 4), randint(2, (8,)))] * 10
        >>> model = nn.Sequential(simple_ann(4, 2), nn.Softmax(1))
        >>> data = DataBunch(batches, device="cpu", classes=["no", "yes"])
        >>> print(Learner(data, model).check().findings[0].what)
        The outputs sum to 1: the model ends in a softmax, but cross entropy applies one itself.
        """
        epochs = check_count("epochs", epochs)
        return result_of_first(lambda: check(self, epochs), group_of(self))

    # --- parameter groups

    @property
    def layer_groups(self) -> list[nn.Module]:
        """The parts of the model that can have their own learning rates."""
        return self._layer_groups

    @layer_groups.setter
    def layer_groups(self, groups: Sequence[nn.Module]) -> None:
        self._layer_groups = list(groups)
        self._group_indices = group_indices(self.model, self._layer_groups)

    def create_opt(self, lr: LearningRate, wd: float | Sequence[float] = DefaultDecay(0.0)) -> None:
        """Make a new optimizer ``learn.opt``, without the state of the previous one."""
        groups = optimizer_groups(self)
        self.opt = OptimWrapper.create(self.opt_func, self.lr_range(lr), groups, wd, self.bn_wd)

    def lr_range(self, lr: LearningRate, name: str = "lr") -> Any:
        """Return a learning rate for all layer groups, or an array with one per group.

        ``lr`` is one number; ``slice(first, last)`` for a geometric sequence; ``slice(last)`` for ``last`` in the last
        group and a tenth of it in the others; or a sequence with one number per group. ``name`` is for errors.
        """
        return spread(lr, len(self.layer_groups), name)

    def split(self, split_on: Callable[[Any], Any] | Sequence[nn.Module] | nn.Module) -> Learner:
        """Split the model into layer groups, ``learn.layer_groups``, and return the learner.

        The next fit makes a new optimizer for the groups, without the state of the previous one: split before training.

        Args:
            split_on: the first module of each new group, in the model's order, or a function that returns them from
                the model.

        Raises:
            TypeError, ValueError: something is not a module of the model, or two groups share a parameter.

        >>> from minifast import DataBunch, simple_ann
        >>> batches = [(torch.randn(8, 10), torch.randint(2, (8,)))] * 2
        >>> data = DataBunch(batches, device="cpu", classes=["a", "b"])
        >>> learn = Learner(data, simple_ann(10, 2), silent=True).split(lambda model: [model[3]]).freeze()
        >>> recorder = learn.fit_one_cycle(1, slice(1e-4, 1e-2))
        >>> learn.lr_range(slice(1e-4, 1e-2)).tolist()
        [0.0001, 0.01]
        """
        initialize_lazy(self)
        self.layer_groups = split_model(self.model, split_on)
        self.opt = None
        return self

    def freeze_to(self, n: int) -> Learner:
        """Freeze the layer groups before group ``n``, unfreeze the others, and return the learner.

        BatchNorm layers of frozen groups are frozen too, running statistics included, unless you gave the learner
        ``train_bn=True``, the default of fastai v1. A frozen backbone then needs no gradients, and training sees the
        same features as validation. The optimizer keeps its state, where fastai v1 makes a new one. Frozen parameters
        get no steps and no weight decay.

        Args:
            n: the group, counted from 0, or from the end if negative.

        Raises:
            ValueError: there is no group ``n``.
        """
        initialize_lazy(self)
        freeze_to(self.layer_groups, n, bool(self.train_bn))
        if self.train_bn is None:
            hold_frozen_statistics(self.model, self.layer_groups)  # for a call during a fit
        return self

    def freeze(self) -> Learner:
        """Freeze all layer groups but the last, see ``freeze_to``, and return the learner.

        With only one group it raises a ValueError.
        """
        if len(self.layer_groups) < 2:
            advice = "split it first, such as learn.split(lambda model: [model[-1]])"
            raise ValueError(
                f"The model has only one layer group, so freeze() has no earlier group to freeze; {advice}."
            )
        return self.freeze_to(-1)

    def unfreeze(self) -> Learner:
        """Unfreeze all layer groups and return the learner."""
        return self.freeze_to(0)

    def init(self, init: Callable[[Tensor], Any]) -> Learner:
        """Initialize the weights with ``init``, such as ``nn.init.kaiming_normal_``, and biases with 0.

        Normalization layers and frozen parameters stay as they are. Returns the learner.
        """
        initialize_lazy(self)
        initialize(self.model, init)
        return self

    # --- training options

    def clip_grad(self, clip: float = 0.1) -> Learner:
        """Clip the gradient norm of each step to ``clip``, see ``GradientClipping``; 0 turns clipping off."""
        GradientClipping(clip=clip)  # raises now what the next fit would raise
        self._make_in_each_fit(partial(GradientClipping, clip=clip))
        return self

    def mixup(self, alpha: float = 0.4, stack_x: bool = False, stack_y: bool = True) -> Learner:
        """Train with Mixup, see ``MixUpCallback``, and return the learner."""
        MixUpCallback(alpha=alpha)
        self._make_in_each_fit(partial(MixUpCallback, alpha=alpha, stack_x=stack_x, stack_y=stack_y))
        return self

    def to_fp16(self, loss_scale: float | None = None, max_noskip: int = 1000) -> Learner:
        """Train and predict with float16 autocast, see ``MixedPrecision``; weights and losses stay float32."""
        self._set_precision(torch.float16, MixedPrecision(self, loss_scale, max_noskip))
        return self

    def to_bf16(self) -> Learner:
        """Train and predict with bfloat16 autocast; weights and losses stay float32. It needs no loss scaling."""
        self._set_precision(torch.bfloat16)
        return self

    def to_fp32(self) -> Learner:
        """Train and predict in float32 again."""
        self._set_precision(None)
        return self

    def shard(self, blocks: Sequence[nn.Module] | None = None) -> Learner:
        """Shard parameters, gradients and optimizer state over the processes by torch's FSDP2; return the learner.

        Each of *n* processes holds one *n*-th of them, so that a model can be larger than the memory of one device.
        ``checkpoint=`` then writes a folder of shards beside its file, which any number of processes can resume;
        ``save`` collects the whole model in the memory of process 0. Call it before training, on every process.

        Args:
            blocks: the modules of which one at a time is whole on each device, such as a transformer's layers. By
                default the layers or blocks of layers in the model's Sequentials and ModuleLists.

        Raises:
            MinifastError: there is one process only, or the model is sharded already.

        >>> from minifast import DataBunch, simple_ann
        >>> data = DataBunch([(torch.randn(8, 4), torch.randint(2, (8,)))] * 2, device="cpu", classes=["no", "yes"])
        >>> Learner(data, simple_ann(4, 2)).shard()
        Traceback (most recent call last):
        minifast.errors.MinifastError: shard() needs several processes; start the script with torchrun.
        """
        shard(self, blocks)
        return self

    def compile(self, **options: Any) -> Learner:
        """Compile the model in place with ``torch.compile(**options)``, at its first batches.

        Parameter names stay, so files fit both compiled and other models. The optimizer is not compiled. Training and
        evaluation mode are compiled separately, and again for a batch of another size.
        """
        compile_in_place(self.model, torch.compile(**options))
        return self

    def in_precision(self) -> Any:
        """Return the context of the model's forward pass: torch's autocast, or no context for float32."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.data.device.type, self.precision)

    # --- inference

    def output_of(self, inputs: Any, targets: Any = None) -> Any:
        """Return the model's output for the inputs of a batch, in float32 at any precision of the forward pass.

        A tuple or list of inputs gives the model's arguments, a dict its keyword arguments. An output that is an object
        with ``logits`` gives these. Every forward pass comes here, so a subclass that overrides this method changes
        training, validation and predictions alike.

        Args:
            inputs: the inputs of a batch.
            targets: its targets, which only a model that returns its own loss gets; None in predictions.
        """
        model = self.features or self.model if self.parallel is None else self.parallel.model_for_pass()
        if self.precision is None:
            return forward(model, self.loss_func, inputs, targets, self.model)
        with self.in_precision():
            return forward(model, self.loss_func, inputs, targets, self.model, partial(map_tensors, as_float32))

    def dl(self, ds_type: DatasetType | str = DatasetType.Valid) -> Any:
        """Return the loader of a part of the data, such as ``"valid"``."""
        return self.data.dl(ds_type)

    def validate(self, dl: Any = None, metrics: Collection[Any] | None = None) -> list[Any]:
        """Return ``[loss, *metrics]`` over ``dl``.

        By default these are the validation set and the learner's metrics. Batches of any other loader, or a list of
        batches, are moved and transformed as those of the validation set; a minifast loader does so itself. Only the
        batch events of callbacks run, and not of callbacks with ``fit_only``.

        Args:
            dl: the loader, a list of batches, or a part of the data such as ``"train"``.
            metrics: metrics in the place of the learner's.
        """
        return predicting.validate(self, dl, metrics)

    def get_preds(
        self,
        ds_type: DatasetType | Any = DatasetType.Valid,
        activ: Callable[[Tensor], Tensor] | None = None,
        with_loss: bool = False,
        n_batch: int | None = None,
    ) -> list[Any]:
        """Return ``[predictions, targets]`` of a part of the data, on the CPU, in the structure they come in.

        Values that cannot be one tensor, such as padded sequences or a hidden state, are a list with one per batch.

        Args:
            ds_type: the part, such as ``"test"``; or a loader of other data, whose batches are moved and transformed as
                those of the validation set. A test set or a loader may have no targets; they are returned as 0. For
                images, ``learn.data.test_ds.items`` holds the files in the order of the predictions.
            activ: the activation that turns outputs into predictions. By default the loss's: softmax for cross
                entropy, sigmoid for binary cross entropy, none otherwise.
            with_loss: return the loss of each sample as the third element; of several numbers per sample that of each.
            n_batch: stop after this number of batches.

        Raises:
            DataError: there are no samples, or ``with_loss`` is True and a sample has several outputs or targets.
        """
        return predicting.get_preds(self, ds_type, activ, with_loss, n_batch)

    def TTA(  # noqa: N802 - the name of fastai v1
        self,
        beta: float | None = 0.4,
        scale: float = 1.35,
        ds_type: DatasetType | str = DatasetType.Valid,
        activ: Callable[[Tensor], Tensor] | None = None,
        with_loss: bool = False,
    ) -> list[Any]:
        """Return ``[predictions, targets]`` with test-time augmentation: ``beta * plain + (1 - beta) * mean``.

        The mean is that of the predictions for the four corners of each image, zoomed by ``scale``; with
        ``get_transforms(do_flip=True)`` in training also for their mirror images. No random number is used.

        Args:
            beta: the weight of the plain predictions, from 0 to 1. None returns ``[plain, mean, targets]``.
            scale: the zoom factor, at least 1.
            ds_type: the validation or the test set.
            activ: the activation that turns outputs into predictions, before the mean. By default the loss's.
            with_loss: return the loss of each sample as the third element.

        Raises:
            DataError: the inputs are not images, or the model has several outputs.
        """
        return augmented.tta(self, beta, scale, ds_type, activ, with_loss)

    def tta_only(
        self,
        ds_type: DatasetType | str = DatasetType.Valid,
        activ: Callable[[Tensor], Tensor] | None = None,
        scale: float = 1.35,
    ) -> Iterator[list[Any]]:
        """Yield ``[predictions, targets]`` for each version of the images that ``TTA`` takes the mean of."""
        return augmented.tta_only(self, ds_type, activ, scale)

    def pred_batch(
        self,
        ds_type: DatasetType | str = DatasetType.Valid,
        batch: Any = None,
        activ: Callable[[Tensor], Tensor] | None = None,
    ) -> Any:
        """Return the predictions of one batch, on the CPU; no callback runs.

        Args:
            ds_type: the part of the data whose first batch is used.
            batch: another batch ``(x, y)``, as the model takes it.
            activ: the activation, see ``get_preds``.
        """
        return predicting.pred_batch(self, ds_type, batch, activ)

    def predict(self, item: Any) -> tuple[Any, Any, Any]:
        """Predict one sample.

        Args:
            item: the inputs of one sample, as the dataset returns them, or as a batch of one: ``x[0]`` or ``x[:1]``, or
                the dict of a tokenizer. An object with a method ``to``, such as a graph, becomes a batch by the
                training loader's ``collate_fn``. For image data also a file's path, a PIL image or an array; for a
                table a row: a dict, a pandas Series or a data frame of one row.

        Returns:
            ``(class, index, probabilities)`` for classes; an unnamed class is its index. A model that returns its own
            loss for class numbers predicts classes too. Under binary cross entropy,
            for multi-label targets, ``(classes above 0.5, 0/1 vector, probabilities)``. A single
            output for two classes predicts the second class above 0.5 after the loss's activation, or above 0 if a
            loss of your own has none. With one class per position the first two are class numbers. Otherwise
            ``(output, output, output)``.

        Raises:
            DataError: ``item`` does not have the form of the data's samples, or the outputs do not fit the classes.
        """
        return predicting.predict(self, item)

    def show_results(
        self, ds_type: DatasetType | str = DatasetType.Valid, rows: int = 5, return_fig: bool | None = None
    ) -> Figure | None:
        """Show the targets and predictions of one batch: ``rows`` × ``rows`` images, or a table of ``rows`` samples.

        An image's title has the target above the prediction, green if they agree and red if not; for the test set it
        is the prediction only.
        """
        return predicting.show_results(self, ds_type, rows, return_fig)

    def interpret(
        self, ds_type: DatasetType | str = DatasetType.Valid, tta: bool = False
    ) -> ClassificationInterpretation:
        """Return a classifier's errors on a part of the data, see ``ClassificationInterpretation.from_learner``."""
        return ClassificationInterpretation.from_learner(self, ds_type, tta=tta)

    def summary(self) -> str:
        """Return a table of the model's layers with output shapes and parameter counts, for one batch of the data."""
        x, _ = self.data.one_batch(DatasetType.Train, denorm=False, cpu=False)
        with explain_errors_of_batch(self, x):
            return summary(self.model, x)

    # --- files

    def save(
        self, file: str | Path | IO[bytes], return_path: bool = False, with_opt: bool | None = None
    ) -> Path | IO[bytes] | None:
        """Save the model and its optimizer to ``path/model_dir/{file}.pth`` or an open file.

        The file is written completely or not at all. It holds tensors and plain values only. Of several processes, the
        first writes and the others wait, so all must call this.

        A name that ends in ``.safetensors`` writes the weights and buffers alone, in the format of the package
        safetensors (``pip install safetensors``), which other libraries read. The state of the optimizer, such as its
        moving averages, is not in it.

        Args:
            file: a name, or an open file.
            return_path: return the path or the open file.
            with_opt: save the optimizer's state too. By default if the format can hold it.

        Raises:
            ValueError: the name leads out of the folder; or a ``.safetensors`` file cannot hold what is to be saved:
                the state of an optimizer or of a loss, complex128, sparse or quantized tensors, values of other types.
        """
        target = model_file(self, file)
        save_model(self, target, with_opt)
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
        """Load what ``save`` wrote and return the learner; no code in the file runs.

        Args:
            file: the name given to ``save``; the path of a file that ``save`` wrote, or of a state dict, ``.pth`` or
                ``.safetensors``; or an open file.
            device: the device that reads the file. The model stays where it is.
            strict: require the parameter names of the model.
            with_opt: load the optimizer's state too. By default if the file has one; otherwise the optimizer stays as
                it is.
            purge: has no effect; accepted for fastai v1's calls.
            trust: read a file with more than tensors and plain values, which runs the code in it. Use it only for files
                from someone you trust.

        Raises:
            FileNotFoundError: there is no such file.
            FileFormatError: the file is incomplete, or holds code.
            DataError: the file belongs to another model, or holds no state dict.
            MinifastError: ``with_opt=True``, and the file has no optimizer state.
        """
        target = model_file(self, file, anywhere=True)
        load_model(self, target, device or self.data.device, strict, with_opt, trust)
        return self

    def export(self, file: str | Path | IO[bytes] = "export.pkl", *, pickle: bool = False) -> Path | IO[bytes]:
        """Write the model for inference to ``path/{file}`` or an open file, and return the path; see ``load_learner``.

        The file holds the model, the batch transforms such as normalization, the classes, the image size and the loss.
        torch.export turns the model into a program of torch's core operators with its weights. Reading it runs no code
        and does not need the model's class. It predicts in evaluation mode, for batches of any size, on any device, for
        samples of the learner's shape; images are resized. Before the file is written, its outputs are compared with
        the model's. To train further, use ``save`` and ``load``.

        Args:
            file: a name in ``path``, or an open file.
            pickle: pickle the model instead, if torch.export cannot trace it. Reading such a file runs code and needs
                the model's class, so ``load_learner`` requires ``trust=True``.

        Raises:
            MinifastError: torch.export cannot trace the model, or the program's outputs differ from the model's.
            DataError: the data have no batch to trace with.

        >>> import io
        >>> from minifast import *
        >>> batches = [(torch.randn(8, 4), torch.randint(2, (8,)))] * 10
        >>> data = DataBunch(batches, device="cpu", classes=["no", "yes"])
        >>> learn, file = Learner(data, simple_ann(4, 2)), io.BytesIO()
        >>> _ = learn.export(file)
        >>> _ = file.seek(0)
        >>> category, index, probabilities = load_learner(".", file).predict(torch.zeros(4))
        >>> category in data.classes, probabilities.shape
        (True, torch.Size([2]))
        """
        return writer.export(self, file, pickle)

    def to_pt2(self, file: str | Path | IO[bytes]) -> torch.export.ExportedProgram:
        """Write the model with torch.export to ``path/{file}``, such as ``model.pt2``, and return the program.

        Use it with torch's own tools (C++, ahead-of-time compilation). It holds only the model, in evaluation mode, and
        takes normalized batches of any size. ``torch.export.load`` reads it with pickle: load trusted
        files only.

        Raises:
            MinifastError: torch.export cannot trace the model.
        """
        return writer.to_pt2(self, file)

    def to_onnx(
        self,
        file: str | Path,
        opset_version: int | None = None,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
    ) -> Path:
        """Write the model as ONNX to ``path/{file}``, such as ``model.onnx``, and return the path.

        It holds only the model, in evaluation mode, and takes normalized batches of any size: the dimension of the
        batch is dynamic, all others have the sizes of the data. It needs the packages
        onnx and onnxscript. If onnxruntime is installed, its outputs are compared with the model's first.

        Args:
            file: the name in ``path``.
            opset_version: the version of the ONNX operators. By default what torch recommends.
            input_names: the names of the inputs, one for each. By default those of the arguments of the model.
            output_names: the names of the outputs, one for each. By default chosen by torch.

        Raises:
            ImportError: a package is missing.
            ValueError: there is another number of names than of inputs or outputs, or a name occurs twice.
            MinifastError: torch cannot write the model as ONNX with this version, or the outputs differ.
        """
        return writer.to_onnx(self, file, opset_version, input_names, output_names)

    def _make_in_each_fit(self, maker: partial[Any]) -> None:
        """Add ``maker`` to ``callback_fns``, in place of one that makes the same callback."""
        others = [other for other in self.callback_fns if getattr(other, "func", other) is not maker.func]
        self.callback_fns[:] = [*others, maker]

    def _set_precision(self, dtype: torch.dtype | None, *scaling: Callback) -> None:
        device = self.data.device.type
        if dtype is not None and not torch.amp.is_autocast_available(device):
            raise MinifastError(f"torch has no autocast on {device}; train in float32 there.")
        others = [callback for callback in self.callbacks if not isinstance(callback, MixedPrecision)]
        self.callbacks[:] = [*others, *scaling]
        self.precision = dtype


def _as_function(method: Callable[P, R]) -> Callable[P, R]:
    """Return a method as a function of a learner, which may be given as ``learn=``, as in fastai v1."""

    @wraps(method)
    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        if "learn" in kwargs:
            kwargs["self"] = kwargs.pop("learn")
        return method(*args, **kwargs)

    return function


# fastai v1 has these as functions of a learner too.
fit_one_cycle = _as_function(Learner.fit_one_cycle)
lr_find = _as_function(Learner.lr_find)
