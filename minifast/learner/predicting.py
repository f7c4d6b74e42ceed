"""Apply a trained model: validate, predict and show results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast import plotting
from minifast.callbacks.recorder import as_number
from minifast.data.bunch import DatasetType
from minifast.data.loaders import to_device
from minifast.errors import DataError
from minifast.losses import activation_name, activation_of, is_cross_entropy, sample_losses
from minifast.metrics.base import as_metric, columns_of, expand_all
from minifast.training import loop
from minifast.training.callback import Callback, LearnerCallback
from minifast.training.dispatcher import Dispatcher
from minifast.training.progress import NullProgress
from minifast.training.snapshot import eval_mode, preserve_generators, preserve_randomness
from minifast.training.state import State
from minifast.utils.checks import check_count
from minifast.utils.tensors import as_list, concatenate, map_tensors
from minifast.utils.text import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minifast.learner.learner import Learner


class Collector(Callback):
    """Collect outputs and targets on the CPU, and stop after ``n_batch`` batches."""

    _order = 1000

    def __init__(self, n_batch: int | None = None) -> None:
        self.n_batch = n_batch
        self.outputs: list[Any] = []
        self.targets: list[Any] = []

    def on_batch_end(self, last_output: Any, last_target: Any) -> dict[str, bool] | None:
        """Store a batch."""
        self.outputs.append(map_tensors(Tensor.cpu, last_output))
        self.targets.append(map_tensors(Tensor.cpu, last_target))
        return {"stop_epoch": True} if len(self.outputs) == self.n_batch else None


def as_float32(values: Tensor) -> Tensor:
    """Return a tensor in half precision as float32, any other unchanged.

    >>> as_float32(torch.ones(2, dtype=torch.bfloat16)), as_float32(torch.tensor(3))
    (tensor([1., 1.]), tensor(3))
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def validate(learn: Learner, dl: Any = None, metrics: Collection[Any] | None = None) -> list[Any]:
    """Return the loss and the metrics over ``dl``."""
    dl = learn.dl() if dl is None else dl
    wrapped = [
        as_metric(metric, learn.loss_func) for metric in (learn.metrics if metrics is None else as_list(metrics))
    ]
    state = State(1, NullProgress(), wrapped, columns_of(wrapped))
    dispatch = Dispatcher(state, active_callbacks(learn), wrapped)
    with preserve_randomness(learn, dl), eval_mode(learn.model):
        dispatch("on_train_begin", metrics=True, callbacks=False)
        dispatch("on_epoch_begin", metrics=True, callbacks=False)
        loss = loop.validate(learn, dl, dispatch)
        if loss is None:
            raise DataError("There is no batch to validate on; give data with at least one sample.")
        state.last_metrics = [loss]
        dispatch("on_epoch_end", metrics=True, callbacks=False)
    loss, *values = map(as_number, state.last_metrics)
    return [loss, *(expand_all(state.metrics_names, values)[1] if values else [])]


def active_callbacks(learn: Learner) -> list[Callback]:
    """Return the callbacks of a learner that are not for training only."""
    callbacks = [callback for callback in learn.callbacks if not callback.fit_only]
    for callback in callbacks:
        if isinstance(callback, LearnerCallback):
            callback.adopt(learn)
    return callbacks


def get_preds(
    learn: Learner,
    ds_type: DatasetType = DatasetType.Valid,
    activ: Callable[[Tensor], Tensor] | None = None,
    with_loss: bool = False,
    n_batch: int | None = None,
) -> list[Any]:
    """Return the predictions and targets of a part of the data."""
    collector = Collector(None if n_batch is None else check_count("n_batch", n_batch))
    dispatch = Dispatcher(State(1, NullProgress()), [*active_callbacks(learn), collector])
    with preserve_randomness(learn), eval_mode(learn.model):
        loop.validate(learn, learn.dl(ds_type), dispatch, with_loss=False)
    if not collector.outputs:
        raise DataError("There is no batch to predict; give data with at least one sample.")
    outputs, targets = concatenate(collector.outputs), concatenate(collector.targets)
    predictions = map_tensors(activation_of(learn.loss_func) if activ is None else activ, outputs)
    if not with_loss:
        return [predictions, targets]
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        raise DataError("The loss of each sample is undefined for several outputs or targets; leave `with_loss` out.")
    # The outputs and targets are on the CPU, and the loss may have tensors such as class weights.
    loss_func: Any = learn.loss_func
    loss_func = copy.deepcopy(loss_func).cpu() if isinstance(loss_func, nn.Module) else loss_func
    return [predictions, targets, sample_losses(loss_func, outputs, targets)]


def pred_batch(
    learn: Learner,
    ds_type: DatasetType = DatasetType.Valid,
    batch: Any = None,
    activ: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """Return the predictions of one batch."""
    x, _ = learn.data.one_batch(ds_type, denorm=False, cpu=False) if batch is None else batch
    with preserve_generators(learn.model), eval_mode(learn.model), torch.no_grad():
        outputs = learn.output_of(to_device(x, learn.data.device))
        predictions = map_tensors(activation_of(learn.loss_func) if activ is None else activ, outputs)
    return to_device(predictions, torch.device("cpu"))


def predict(learn: Learner, item: Any) -> tuple[Any, Any, Any]:
    """Predict one sample."""
    output = map_tensors(lambda values: values[0], learn.pred_batch(batch=(learn.data.encode(item), None)))
    if learn.data.classes is None:
        if not isinstance(output, Tensor) or output.ndim != 1 or not is_cross_entropy(learn.loss_func):
            return output, output, output
        return int(output.argmax()), output.argmax(), output
    if activation_name(learn.loss_func) == "sigmoid" and len(output) == len(learn.data.classes):
        chosen = (output > 0.5).float()
        return [learn.data.classes[int(i)] for i in chosen.nonzero()], chosen, output
    number = output.argmax()
    return learn.data.classes[int(number)], number, output


def show_results(
    learn: Learner, ds_type: DatasetType = DatasetType.Valid, rows: int = 5, return_fig: bool | None = None
) -> Figure | None:
    """Show the targets and predictions of one batch."""
    check_count("rows", rows)
    x, y = learn.data.one_batch(ds_type, denorm=False, cpu=False)
    preds = learn.pred_batch(batch=(x, y))
    images = learn.data.to_images(x[: rows**2] if isinstance(x, Tensor) else x)
    pairs = []
    for prediction, target in zip(preds[: rows if images is None else rows**2], y.cpu(), strict=False):
        is_class = not target.is_floating_point() and target.numel() == 1 and prediction.ndim == 1
        predicted = learn.data.label_of(prediction.argmax() if is_class and len(prediction) > 1 else prediction)
        pairs.append((learn.data.label_of(target.squeeze()), predicted))
    labelled = ds_type is not DatasetType.Test
    if images is None:
        header = ["sample", *(["target"] if labelled else []), "prediction"]
        cells = [[str(i), *(pair if labelled else pair[1:])] for i, pair in enumerate(pairs)]
        print(text_table([header, *cells]))
        return None
    titles = [f"{target}\n{predicted}" if labelled else predicted for target, predicted in pairs]
    categories = labelled and not y.is_floating_point()
    colors = [("tab:green" if a == b else "tab:red") if categories else None for a, b in pairs]
    figure = plotting.plot_images(images, titles, None, colors, "target\nprediction" if labelled else "prediction")
    return plotting.finish(figure.axes, return_fig)
