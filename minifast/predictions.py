"""What a model says of data: its loss and metrics, its predictions, its layers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast import loop, plots
from minifast.callback import Callback, LearnerCallback
from minifast.callbacks.recorder import as_number
from minifast.checkpoint import evaluating
from minifast.data.bunch import DataBunch, DatasetType
from minifast.data.loader import to_device
from minifast.dispatcher import Dispatcher
from minifast.errors import DataError, check_count
from minifast.interpretation import ClassificationInterpretation
from minifast.losses import activation_name, activation_of, is_cross_entropy, item_losses
from minifast.metrics import as_metric, columns_of
from minifast.part import Part
from minifast.progress import Silent
from minifast.state import State, as_inputs, joined, listed, mapped
from minifast.summary import summary
from minifast.tables import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Collector(Callback):
    """Collects the outputs and targets of a validation, on the CPU, and stops it after ``n_batch`` batches."""

    _order = 1000

    def __init__(self, n_batch: int | None = None) -> None:
        self.n_batch = n_batch
        self.outputs: list[Any] = []
        self.targets: list[Any] = []

    def on_batch_end(self, last_output: Any, last_target: Any) -> dict[str, bool] | None:
        """Take a batch."""
        self.outputs.append(mapped(Tensor.cpu, last_output))
        self.targets.append(mapped(Tensor.cpu, last_target))
        return {"stop_epoch": True} if len(self.outputs) == self.n_batch else None


def as_float32(values: Tensor) -> Tensor:
    """Return a tensor in half precision as float32, another as it is.

    >>> as_float32(torch.ones(2, dtype=torch.bfloat16)), as_float32(torch.tensor(3))
    (tensor([1., 1.]), tensor(3))
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class Predictor(Part):
    """What a learner can say of data without training: the part of ``Learner`` that changes nothing."""

    data: DataBunch
    model: nn.Module
    loss_func: Callable[..., Any]
    metrics: list[Any]
    callbacks: list[Callback]
    precision: torch.dtype | None

    def in_precision(self) -> Any:
        """Return the context in which the model's forward pass runs: torch's autocast, unless it is float32."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.data.device.type, self.precision)

    def output_of(self, inputs: Any) -> Any:
        """Return the model's output for the inputs of a batch, in float32 whatever the precision of the pass."""
        if self.precision is None:
            return self.model(*as_inputs(inputs))
        with self.in_precision():
            output = self.model(*as_inputs(inputs))
        return mapped(as_float32, output)

    def dl(self, ds_type: DatasetType = DatasetType.Valid) -> Any:
        """Return the loader of a part of the data."""
        return self.data.dl(ds_type)

    def validate(self, dl: Any = None, metrics: Collection[Any] | None = None) -> list[Any]:
        """Return ``[loss, *metrics]`` over ``dl``, by default the validation set and the learner's metrics.

        The learner's callbacks are told of the batches only, as by ``get_preds``, since no training begins or ends, and
        those that watch or keep a training are not told at all.
        """
        dl = self.dl() if dl is None else dl
        wrapped = [as_metric(metric) for metric in (self.metrics if metrics is None else listed(metrics))]
        state = State(1, Silent(), wrapped, columns_of(wrapped))
        dispatch = Dispatcher(state, self._taking_part(), wrapped)
        with evaluating(self.model):
            dispatch("on_train_begin", metrics=True, callbacks=False)
            dispatch("on_epoch_begin", metrics=True, callbacks=False)
            loss = loop.validate(self, dl, dispatch)
            if loss is None:
                raise DataError("There is no batch to validate on; give data with at least one item.")
            state.last_metrics = [loss]
            dispatch("on_epoch_end", metrics=True, callbacks=False)
        return [*map(as_number, state.last_metrics)]

    def _taking_part(self) -> list[Callback]:
        """Return the learner's callbacks that have a part in more than training."""
        found = [callback for callback in self.callbacks if not callback._watches]
        for callback in found:
            if isinstance(callback, LearnerCallback):
                callback.adopt(self._learner)
        return found

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
        collector = Collector(None if n_batch is None else check_count("n_batch", n_batch))
        dispatch = Dispatcher(State(1, Silent()), [*self._taking_part(), collector])
        with evaluating(self.model):
            loop.validate(self, self.dl(ds_type), dispatch, with_loss=False)
        if not collector.outputs:
            raise DataError("There is no batch to predict; give data with at least one item.")
        outputs, targets = joined(collector.outputs), joined(collector.targets)
        predictions = mapped(activation_of(self.loss_func) if activ is None else activ, outputs)
        if not with_loss:
            return [predictions, targets]
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            raise DataError("An item has several outputs or targets, whose losses are not known; leave with_loss out.")
        # On the CPU, where outputs and targets are: a loss may hold tensors, such as weights of classes.
        loss_func: Any = self.loss_func
        loss_func = copy.deepcopy(loss_func).cpu() if isinstance(loss_func, nn.Module) else loss_func
        return [predictions, targets, item_losses(loss_func, outputs, targets)]

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
        >>> learn.pred_batch().shape, learn.pred_batch(batch=(torch.zeros(1, 4), None)).sum()
        (torch.Size([8, 2]), tensor(1.))
        """
        x, _ = self.data.one_batch(ds_type, denorm=False, cpu=False) if batch is None else batch
        with evaluating(self.model), torch.no_grad():
            outputs = self.output_of(to_device(x, self.data.device))
            predictions = mapped(activation_of(self.loss_func) if activ is None else activ, outputs)
        return to_device(predictions, torch.device("cpu"))

    def predict(self, item: Any) -> tuple[Any, Any, Any]:
        """Predict one item: what the data set has as one, or for pictures a file's path, a PIL image or an array.

        Returns:
            (class, its number, probabilities) for classes, whose names are their numbers where there are no others;
            under binary cross entropy, where an item may have several, (the classes above a half, 1 for each of them
            and 0 for the others, probabilities); (output, output, output) otherwise.

        Raises:
            DataError: the item is not what the data are made of.
        """
        output = mapped(lambda one: one[0], self.pred_batch(batch=(self.data.encode(item), None)))
        if self.data.classes is None:
            if not isinstance(output, Tensor) or output.ndim != 1 or not is_cross_entropy(self.loss_func):
                return output, output, output
            return int(output.argmax()), output.argmax(), output
        if activation_name(self.loss_func) == "sigmoid" and len(output) == len(self.data.classes):
            chosen = (output > 0.5).float()
            return [self.data.classes[int(i)] for i in chosen.nonzero()], chosen, output
        number = output.argmax()
        return self.data.classes[int(number)], number, output

    def show_results(
        self, ds_type: DatasetType = DatasetType.Valid, rows: int = 5, return_fig: bool | None = None
    ) -> Figure | None:
        """Show targets and predictions of one batch: ``rows`` × ``rows`` pictures, or a table of ``rows`` other items.

        The titles of pictures are the target and the prediction, green where they agree and red where not. Of the test
        part there are only predictions, since its targets need not be known.
        """
        check_count("rows", rows)
        x, y = self.data.one_batch(ds_type, denorm=False, cpu=False)
        preds = self.pred_batch(batch=(x, y))
        pictures = self.data.pictures(x[: rows**2] if isinstance(x, Tensor) else x)
        shown = []
        for prediction, target in zip(preds[: rows if pictures is None else rows**2], y.cpu(), strict=False):
            is_class = not target.is_floating_point() and target.numel() == 1 and prediction.ndim == 1
            predicted = self.data.label_of(prediction.argmax() if is_class and len(prediction) > 1 else prediction)
            shown.append((self.data.label_of(target.squeeze()), predicted))
        known = ds_type is not DatasetType.Test
        if pictures is None:
            header = ["item", *(["target"] if known else []), "prediction"]
            cells = [[str(i), *(pair if known else pair[1:])] for i, pair in enumerate(shown)]
            print(text_table([header, *cells]))
            return None
        titles = [f"{target}\n{predicted}" if known else predicted for target, predicted in shown]
        categories = known and not y.is_floating_point()
        colors = [("tab:green" if a == b else "tab:red") if categories else None for a, b in shown]
        figure = plots.plot_images(pictures, titles, None, colors, "target\nprediction" if known else "prediction")
        return plots.finish(figure.axes, return_fig)

    def interpret(self, ds_type: DatasetType = DatasetType.Valid) -> ClassificationInterpretation:
        """Return what a classifier gets wrong in a part of the data; see ``ClassificationInterpretation``."""
        return ClassificationInterpretation.from_learner(self._learner, ds_type)

    def summary(self) -> str:
        """Return a table of the model's layers with output shapes and parameters, for one batch of the data."""
        x, _ = self.data.one_batch(DatasetType.Train, denorm=False, cpu=False)
        return summary(self.model, x)
