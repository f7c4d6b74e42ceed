"""What a model says of data: its loss and metrics, its predictions, its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast import loop
from minifast.callback import Callback
from minifast.checkpoint import evaluating
from minifast.data.bunch import DataBunch, DatasetType
from minifast.dispatcher import Dispatcher
from minifast.errors import DataError, check_count
from minifast.metrics import as_metric, name_of
from minifast.progress import Silent
from minifast.state import State, listed
from minifast.summary import summary


class Collector(Callback):
    """Collects the outputs and targets of a validation, on the CPU, and stops it after ``n_batch`` batches."""

    _order = 1000

    def __init__(self, n_batch: int | None = None) -> None:
        self.n_batch = n_batch
        self.outputs: list[Tensor] = []
        self.targets: list[Tensor] = []

    def on_batch_end(self, last_output: Tensor, last_target: Tensor) -> dict[str, bool] | None:
        """Take a batch."""
        self.outputs.append(last_output.cpu())
        self.targets.append(last_target.cpu())
        return {"stop_epoch": True} if len(self.outputs) == self.n_batch else None


def activation_of(loss_func: Any) -> Callable[[Tensor], Tensor]:
    """Return what belongs to a loss: softmax to cross entropy, exp to NLL, a sigmoid to binary cross entropy.

    >>> activation_of(nn.CrossEntropyLoss())(torch.tensor([[0.0, 0.0]]))
    tensor([[0.5000, 0.5000]])
    """
    if isinstance(loss_func, nn.CrossEntropyLoss) or loss_func is functional.cross_entropy:
        return lambda output: output.softmax(1)
    if isinstance(loss_func, nn.NLLLoss) or loss_func is functional.nll_loss:
        return torch.exp
    if isinstance(loss_func, nn.BCEWithLogitsLoss) or loss_func is functional.binary_cross_entropy_with_logits:
        return torch.sigmoid
    return lambda output: output


def item_losses(loss_func: Any, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each item, ``(n,)`` for losses of a number an item.

    >>> item_losses(nn.MSELoss(), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    tensor([0., 4.])
    """
    losses: Any
    if isinstance(loss_func, nn.Module) and hasattr(loss_func, "reduction"):
        each: Any = copy.copy(loss_func)
        each.reduction = "none"
        losses = each(outputs, targets)
    elif getattr(loss_func, "__module__", "") == functional.__name__:
        losses = loss_func(outputs, targets, reduction="none")
    else:
        losses = torch.stack([loss_func(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))])
    return losses  # type: ignore[no-any-return]


class Predictor:
    """What a learner can say of data without training: the part of ``Learner`` that changes nothing."""

    data: DataBunch
    model: nn.Module
    loss_func: Callable[..., Any]
    metrics: list[Any]
    callbacks: list[Callback]

    def validate(self, dl: Any = None, metrics: Collection[Any] | None = None) -> list[Any]:
        """Return ``[loss, *metrics]`` over ``dl``, by default the validation set and the learner's metrics."""
        dl = self.data.dl(DatasetType.Valid) if dl is None else dl
        wrapped = [as_metric(metric) for metric in (self.metrics if metrics is None else listed(metrics))]
        state = State(1, Silent(), wrapped, list(map(name_of, wrapped)))
        dispatch = Dispatcher(state, self.callbacks, wrapped)
        with evaluating(self.model):
            dispatch("on_train_begin", metrics=True)
            dispatch("on_epoch_begin", metrics=True)
            loss = loop.validate(self, dl, dispatch)
            if loss is None:
                raise DataError("There is no batch to validate on; give data with at least one item.")
            state.last_metrics = [loss]
            dispatch("on_epoch_end", metrics=True)
        return [
            value.item() if isinstance(value, Tensor) and value.ndim == 0 else value for value in state.last_metrics
        ]

    def get_preds(
        self,
        ds_type: DatasetType = DatasetType.Valid,
        activ: Callable[[Tensor], Tensor] | None = None,
        with_loss: bool = False,
        n_batch: int | None = None,
    ) -> list[Tensor]:
        """Return ``[predictions, targets]`` of a part of the data, on the CPU.

        Args:
            ds_type: which part.
            activ: what turns outputs into predictions; by default what belongs to the loss: softmax for cross entropy,
                a sigmoid for binary cross entropy, nothing otherwise.
            with_loss: return the loss of each item too, as the third.
            n_batch: stop after so many batches.
        """
        collector = Collector(None if n_batch is None else check_count("n_batch", n_batch))
        dispatch = Dispatcher(State(1, Silent()), [*self.callbacks, collector])
        with evaluating(self.model):
            loop.validate(self, self.data.dl(ds_type), dispatch, with_loss=False)
        if not collector.outputs:
            raise DataError("There is no batch to predict; give data with at least one item.")
        outputs, targets = torch.cat(collector.outputs), torch.cat(collector.targets)
        predictions = (activation_of(self.loss_func) if activ is None else activ)(outputs)
        losses = [item_losses(self.loss_func, outputs, targets)] if with_loss else []
        return [predictions, targets, *losses]

    def predict(self, item: Any) -> tuple[Any, Tensor, Tensor]:
        """Predict one item: a tensor as the data set has it, or for pictures a file's path or a PIL image.

        Returns:
            (class, its number, probabilities) for classes; (output, output, output) otherwise.
        """
        with evaluating(self.model), torch.no_grad():
            output = activation_of(self.loss_func)(self.model(self.data.encode(item)))[0].cpu()
        if self.data.classes is None:
            return output, output, output
        number = output.argmax()
        return self.data.classes[int(number)], number, output

    def summary(self) -> str:
        """Return a table of the model's layers with output shapes and parameters, for one batch of the data."""
        x, _ = self.data.one_batch(DatasetType.Train, denorm=False, cpu=False)
        return summary(self.model, x)
