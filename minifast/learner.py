"""The Learner: a model, its data and how to train it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from minifast import checkpoint, files
from minifast.callback import Callback, check_callback_fns, check_callbacks
from minifast.callbacks.recorder import Recorder
from minifast.data.bunch import DataBunch
from minifast.errors import DataError, check_callable
from minifast.fitting import Fitting, LearningRate
from minifast.groups import check_groups, freeze_to, split_model, spread
from minifast.heads import initialise
from minifast.history import History
from minifast.metrics import as_metric
from minifast.optimizer import AdamW, OptimWrapper
from minifast.predictions import Predictor
from minifast.shipping import Shipping
from minifast.state import listed
from minifast.techniques import Techniques


def check_data(data: Any) -> DataBunch:
    """Return ``data`` if it is a DataBunch."""
    if not isinstance(data, DataBunch):
        raise TypeError(f"data is a {type(data).__name__}; give a DataBunch, such as DataBunch(train_dl, valid_dl).")
    return data


class Learner(Fitting, Techniques, Predictor, Shipping):
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
        self.metrics = listed(metrics)
        for metric in self.metrics:
            as_metric(metric)
        self.wd = wd
        self.bn_wd = bn_wd
        self.train_bn = train_bn
        self.path = Path(data.path if path is None else path)
        self.model_dir = Path(model_dir)
        self.callback_fns = check_callback_fns(listed(callback_fns))
        self.callbacks = check_callbacks(listed(callbacks))
        self.layer_groups = [self.model] if layer_groups is None else check_groups(self.model, list(layer_groups))
        self.silent = silent
        self.precision: torch.dtype | None = None  # of the forward pass; None is float32
        self.opt: Any = None
        self.history = History()  # of every fit and finder run, the first one first
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
        >>> learn.freeze()
        >>> learn.fit_one_cycle(1, slice(1e-4, 1e-2))
        >>> learn.lr_range(slice(1e-4, 1e-2)).tolist()
        [0.0001, 0.01]
        """
        self.layer_groups = split_model(self.model, split_on)
        self.opt = None
        return self

    def init(self, init: Callable[[torch.Tensor], Any]) -> None:
        """Set the model's weights by ``init``, such as ``nn.init.kaiming_normal_``, and biases to 0.

        Normalisations stay as they are, and so does what is frozen.

        >>> from minifast import DataBunch, simple_ann
        >>> data = DataBunch([(torch.randn(8, 10), torch.randint(2, (8,)))], device="cpu", classes=["a", "b"])
        >>> learn = Learner(data, simple_ann(10, 2))
        >>> learn.init(nn.init.zeros_)
        >>> learn.model[1].weight.abs().max().item()
        0.0
        """
        initialise(self.model, init)

    def freeze_to(self, n: int) -> None:
        """Freeze the layer groups before the ``n``-th, counted from 0, or below 0 from the end; the others train.

        BatchNorms of frozen groups go on being trained with the learner's ``train_bn``, as in fastai v1, and their
        running statistics move in any case (``BnFreeze`` holds those of frozen ones). The optimizer stays, where v1
        makes a new one: what is trained further goes on with its momentum, what is frozen keeps its own, and is neither
        stepped nor decayed.

        Raises:
            ValueError: there is no ``n``-th group.
        """
        freeze_to(self.layer_groups, n, self.train_bn)

    def freeze(self) -> None:
        """Freeze all layer groups but the last, see ``freeze_to``.

        Raises:
            ValueError: there is one group only.
        """
        if len(self.layer_groups) < 2:
            raise ValueError(
                "There is one layer group, so nothing comes before the last; cut the model first, for instance "
                "learn.split(lambda model: [model[-1]])."
            )
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Let all layer groups train."""
        self.freeze_to(0)

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


# fastai v1 has these as functions of a learner too.
fit_one_cycle = Learner.fit_one_cycle
lr_find = Learner.lr_find
