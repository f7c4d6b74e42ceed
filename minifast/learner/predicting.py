"""Apply a trained model: validate, predict and show results."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast import plotting
from minifast.data.loaders import to_device
from minifast.data.parts import DatasetType, as_part
from minifast.data.shards import is_sharded
from minifast.data.showing import is_mask
from minifast.data.targets import first_targets
from minifast.distributed.group import current_group
from minifast.errors import DataError
from minifast.losses import (
    ACTIVATIONS,
    activation_name,
    activation_of,
    is_cross_entropy,
    is_loss,
    sample_losses,
    unwrap_loss,
)
from minifast.metrics.base import as_metric, columns_of, expand_all
from minifast.metrics.loss_options import threshold_of
from minifast.model_loss import ModelLoss
from minifast.training import loop
from minifast.training.batch_checks import explain_errors, explain_errors_of_batch
from minifast.training.callback import Callback, adopt_callbacks
from minifast.training.dispatcher import Dispatcher
from minifast.training.parallel import Parallel, group_of
from minifast.training.progress import NullProgress
from minifast.training.snapshot import eval_mode, not_owned, preserve_buffers, preserve_look
from minifast.training.state import State
from minifast.utils.checks import add_note, check_count, counted
from minifast.utils.tensors import as_list, as_number, concatenate, count_samples, map_tensors, take_rows
from minifast.utils.text import shape_text, text_table, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minifast.learner.learner import Learner


class Collector(Callback):
    """Collect outputs and targets on the CPU, and stop after ``n_batch`` batches."""

    _order = 1000

    def __init__(self, n_batch: int | None = None, single: bool = False) -> None:
        self.n_batch = n_batch
        self.single = single
        self.outputs: list[Any] = []
        self.targets: list[Any] = []
        self.counts: list[int] = []

    def on_batch_end(self, last_output: Any, last_target: Any, last_input: Any) -> dict[str, bool] | None:
        """Store a batch, and with ``single`` check that it has one tensor of outputs and one of targets."""
        if self.single and not (isinstance(last_output, Tensor) and isinstance(last_target, Tensor)):
            raise DataError(
                "The loss of each sample is undefined for several outputs or targets; leave `with_loss` out."
            )
        self.counts.append(count_samples(last_target, last_input))
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
    dl = DatasetType.Valid if dl is None else dl
    dl = learn.dl(dl) if isinstance(dl, (str, DatasetType)) else learn.data.adapt(dl)
    wrapped = [
        as_metric(metric, learn.loss_func) for metric in (learn.metrics if metrics is None else as_list(metrics))
    ]
    state = State(1, NullProgress(), wrapped, columns_of(wrapped))
    adopt_callbacks(learn, wrapped)
    callbacks, call = active_callbacks(learn), {"method": "validate", "batches": batches_of(dl)}
    with (
        preserve_look(learn, dl),
        eval_mode(learn.model),
        evaluation(learn, state, call, callbacks, wrapped) as dispatch,
    ):
        dispatch("on_train_begin", metrics=True, callbacks=False)
        dispatch("on_epoch_begin", metrics=True, callbacks=False)
        loss = loop.validate(learn, dl, dispatch)
        if loss is None:
            raise DataError("There is no batch to validate on; give data with at least one sample.")
        state.last_metrics = [loss]
        dispatch("on_epoch_end", metrics=True, callbacks=False)
    loss, *values = map(as_number, state.last_metrics)
    return [loss, *(expand_all(state.metrics_names, values)[1] if values else [])]


@contextmanager
def evaluation(
    learn: Learner, state: State, call: dict[str, Any], callbacks: Sequence[Callback], metrics: Sequence[Callback] = ()
) -> Iterator[Dispatcher]:
    """Yield the dispatcher of a pass over data without training, which several processes split.

    Of several processes, each must be in the same ``call``, a method with its arguments, with the same weights.
    """
    group = group_of(learn)
    try:
        if group is None:
            with explain_errors(learn, state):
                yield Dispatcher(state, callbacks, metrics)
            return
        with Parallel(learn, state, group, call) as parallel, explain_errors(learn, state):
            yield Dispatcher(state, [*callbacks, *parallel.callbacks], metrics, parallel.agree)
    except Exception as error:
        if state.n_batches is not None and state.valid_batch < state.n_batches:
            add_note(error, f"The error occurred at batch {state.valid_batch} of {state.n_batches}.")
        raise


def batches_of(dl: Any) -> int | None:
    """Return the number of batches that a loader gives all processes; None if it gives each its own, or has none."""
    group = current_group()
    if group is None or is_sharded(dl, group.size) or not hasattr(dl, "__len__"):
        return None
    return len(dl)


def active_callbacks(learn: Learner) -> list[Callback]:
    """Return the callbacks of a learner that are not for training only."""
    callbacks = [callback for callback in learn.callbacks if not callback.fit_only]
    adopt_callbacks(learn, callbacks)
    return callbacks


def get_preds(
    learn: Learner,
    ds_type: Any = DatasetType.Valid,
    activ: Callable[[Tensor], Tensor] | None = None,
    with_loss: bool = False,
    n_batch: int | None = None,
) -> list[Any]:
    """Return the predictions and targets of a part of the data, or of a loader."""
    collector = Collector(None if n_batch is None else check_count("n_batch", n_batch), single=with_loss)
    callbacks, state = [*active_callbacks(learn), collector], State(1, NullProgress())
    dl = loader_to_predict(learn, ds_type)
    call = {"method": "get_preds", "n_batch": n_batch, "batches": batches_of(dl)}
    with preserve_look(learn, dl), eval_mode(learn.model), evaluation(learn, state, call, callbacks) as dispatch:
        loop.validate(learn, dl, dispatch, with_loss=False)
    if not collector.outputs:
        raise DataError("There is no batch to predict; give data with at least one sample.")
    counts = collector.counts
    outputs, targets = concatenate(collector.outputs, counts), concatenate(collector.targets, counts)
    predictions = map_tensors(activation_for(learn, outputs, targets) if activ is None else activ, outputs)
    if not with_loss:
        return [predictions, targets]
    # The outputs and targets are on the CPU, and the loss may have tensors such as class weights.
    loss_func: Any = learn.loss_func
    loss_func = copy.deepcopy(loss_func).cpu() if isinstance(loss_func, nn.Module) else loss_func
    with preserve_buffers(loss_func, stop=not_owned(learn, ())), explain_errors(learn, state):
        if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
            return [predictions, targets, sample_losses(loss_func, outputs, targets)]
        batches = zip(collector.outputs, collector.targets, strict=True)
        return [predictions, targets, concatenate([sample_losses(loss_func, *batch) for batch in batches], counts)]


def loader_to_predict(learn: Learner, ds_type: Any) -> Any:
    """Return the loader of a part, or another loader as one whose batches may lack targets."""
    if isinstance(ds_type, (str, DatasetType, Tensor, np.ndarray)) or not hasattr(ds_type, "__iter__"):
        return learn.dl(ds_type)
    loader = copy.copy(learn.data.adapt(ds_type))
    loader.may_lack_targets = True
    return loader


def activation_for(learn: Learner, outputs: Any, targets: Any) -> Callable[[Tensor], Tensor]:
    """Return the function that turns outputs into predictions, by the loss and the dimension of the classes."""
    return ACTIVATIONS["softmax_last"] if has_classes_last(learn, outputs, targets) else activation_of(learn.loss_func)


def has_classes_last(learn: Learner, outputs: Any, targets: Any = None) -> bool:
    """Return whether outputs are ``(n, ..., classes)`` for a cross entropy of the user's own, which permutes them.

    Without targets, as for a single sample, the number of classes in the data tells it.
    """
    loss = unwrap_loss(learn.loss_func)
    own = isinstance(loss, nn.CrossEntropyLoss) and type(loss).forward is not nn.CrossEntropyLoss.forward
    if not own or hasattr(loss, "activation") or not isinstance(outputs, Tensor) or outputs.ndim < 3:
        return False
    if isinstance(targets, Tensor):
        return targets.shape in (outputs.shape[:-1], (*outputs.shape[:-1], 1))
    return learn.data.c == outputs.shape[-1] != outputs.shape[1]


def pred_batch(
    learn: Learner,
    ds_type: DatasetType | str = DatasetType.Valid,
    batch: Any = None,
    activ: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """Return the predictions of one batch."""
    x, y = learn.data.one_batch(ds_type, denorm=False, cpu=False) if batch is None else batch
    x = to_device(x, learn.data.device)
    with preserve_buffers(learn.model, stop=[learn, learn.data]), eval_mode(learn.model), torch.no_grad():
        with explain_errors_of_batch(learn, x, y):
            outputs = learn.output_of(x)
        predictions = map_tensors(activation_for(learn, outputs, y) if activ is None else activ, outputs)
    return to_device(predictions, torch.device("cpu"))


def predict(learn: Learner, item: Any) -> tuple[Any, Any, Any]:
    """Predict one sample."""
    output = map_tensors(lambda values: values[0], learn.pred_batch(batch=(learn.data.encode(item), None)))
    return decide(learn, output)


def decide(learn: Learner, output: Any) -> tuple[Any, Any, Any]:
    """Return what ``Learner.predict`` returns for the predictions of one sample."""
    classes, loss_func = learn.data.classes, learn.loss_func
    if not isinstance(output, Tensor) or output.ndim > 1:
        own = isinstance(loss_func, ModelLoss) and loss_func.is_classification
        if isinstance(output, Tensor) and (own or is_cross_entropy(loss_func)):
            last = own or (output.ndim == 2 and has_classes_last(learn, output[None]))
            if classes is not None and output.shape[-1 if last else 0] != len(classes):
                raise DataError(
                    f"The model gives outputs of the shape {tuple(output.shape)} for the sample, but the data have "
                    f"{len(classes)} classes; pass one sample without a dimension for the batch, such as batch[0]."
                )
            number = output.argmax(dim=-1 if last else 0)  # of each position
            return number, number, output
        return output, output, output
    if classes is None:
        if not predicts_class(learn, output):
            return output, output, output
        return int(output.argmax()), output.argmax(), output
    binary = activation_name(loss_func) == "sigmoid" or is_loss(loss_func, nn.BCELoss, functional.binary_cross_entropy)
    if binary and output.shape == (len(classes),):
        chosen = (output > 0.5).float()
        return [classes[int(i)] for i in chosen.nonzero()], chosen, output
    if output.numel() == 1 and len(classes) == 2:
        number = class_of(loss_func, output)
    elif output.numel() == len(classes):
        number = output.argmax()
    else:
        raise DataError(
            f"The model gives {counted(output.numel(), 'output')}, but the data have {len(classes)} classes; give the "
            f"last layer {len(classes)} outputs."
        )
    return classes[int(number)], number, output


def predicts_class(learn: Learner, output: Tensor) -> bool:
    """Return whether the outputs of a sample are one for each class, by the loss or by the targets of a model's own."""
    loss_func = learn.loss_func
    if not isinstance(loss_func, ModelLoss):
        return is_cross_entropy(loss_func)
    if loss_func.is_classification or loss_func.activation != "none" or output.numel() == 1:
        return loss_func.is_classification
    targets = first_targets(learn.data.train_dl)
    return isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()


def class_of(loss_func: Any, prediction: Tensor) -> Tensor:
    """Return the class number, 0 or 1, of a single prediction."""
    return (prediction.reshape(()) > threshold_of(loss_func)).long()


def show_results(
    learn: Learner, ds_type: DatasetType | str = DatasetType.Valid, rows: int = 5, return_fig: bool | None = None
) -> Figure | None:
    """Show the targets and predictions of one batch."""
    ds_type = as_part(ds_type)
    check_count("rows", rows)
    x, y = learn.data.one_batch(ds_type, denorm=False, cpu=False)
    preds = learn.pred_batch(batch=(x, y))
    images = learn.data.to_images(x[: rows**2] if isinstance(x, Tensor) else x)
    y, n = to_device(y, torch.device("cpu")), count_samples(y, x)
    if images is not None and isinstance(preds, Tensor) and preds.ndim == 4 and is_mask(preds[:, 0].long(), x):
        return show_masks(learn, images[:rows], y if ds_type is not DatasetType.Test else None, preds, return_fig)
    shown = range(min(n, rows if images is None else rows**2))
    pairs = [describe_pair(learn, sample_of(y, i, n), sample_of(preds, i, n)) for i in shown]
    labelled = ds_type is not DatasetType.Test
    if images is None:
        header = ["sample", *(["target"] if labelled else []), "prediction"]
        cells = [[str(i), *(pair if labelled else pair[1:])] for i, pair in enumerate(pairs)]
        write_text(text_table([header, *cells]))
        return None
    titles = [f"{target}\n{predicted}" if labelled else predicted for target, predicted in pairs]
    categories = labelled and isinstance(y, Tensor) and (not y.is_floating_point() or has_binary_output(learn, preds))
    colors = [("tab:green" if a == b else "tab:red") if categories else None for a, b in pairs]
    figure = plotting.plot_images(images, titles, None, colors, "target\nprediction" if labelled else "prediction")
    return plotting.finish(figure.axes, return_fig)


def show_masks(
    learn: Learner, images: list[Any], y: Tensor | None, preds: Tensor, return_fig: bool | None
) -> Figure | None:
    """Show the target mask and the predicted mask of each image in one row."""
    predicted = preds.argmax(1) if preds.shape[1] > 1 else (preds[:, 0] > threshold_of(learn.loss_func)).long()
    parts = {} if y is None else {"target": y.view_as(predicted).long()}
    parts["prediction"] = predicted
    shown = [(image, name, masks[i].numpy()) for i, image in enumerate(images) for name, masks in parts.items()]
    pictures, titles, masks = map(list, zip(*shown, strict=True))
    figure = plotting.plot_images(pictures, titles, masks=masks, columns=len(parts))
    return plotting.finish(figure.axes, return_fig)


def has_binary_output(learn: Learner, preds: Any) -> bool:
    """Return whether the model has a single output for two classes."""
    two = learn.data.classes is not None and len(learn.data.classes) == 2
    return two and isinstance(preds, Tensor) and preds.numel() == len(preds)


def sample_of(values: Any, i: int, n: int) -> Any:
    """Return sample ``i`` of a batch of ``n``."""
    if isinstance(values, (list, tuple)) and len(values) == n and not any(isinstance(v, Tensor) for v in values):
        return values[i]
    return take_rows(values, i, n)


def describe_pair(learn: Learner, target: Any, prediction: Any) -> tuple[str, str]:
    """Return the target and the prediction of a sample as text."""
    if not isinstance(target, Tensor) or not isinstance(prediction, Tensor):
        return describe(learn, target), describe(learn, prediction)
    if target.numel() == 1 and has_binary_output(learn, prediction.reshape(1, -1)):
        prediction, target = class_of(learn.loss_func, prediction), (target.squeeze() > 0.5).long()
    elif not target.is_floating_point() and target.numel() == 1 and prediction.ndim == 1 and len(prediction) > 1:
        prediction = prediction.argmax()
    return describe(learn, target.squeeze()), describe(learn, prediction)


def describe(learn: Learner, value: Any) -> str:
    """Return a target or prediction of a sample as text; a large tensor as its shape."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {describe(learn, element)}" for name, element in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(describe(learn, element) for element in value)
    if not isinstance(value, Tensor):
        return str(value)
    many = 20
    return learn.data.label_of(value) if value.ndim < 2 or value.numel() <= many else shape_text(value.shape)
