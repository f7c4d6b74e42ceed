"""Checks of a batch against the outputs of the model and the loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minifast.data.labels import too_few_names
from minifast.data.targets import is_dict_per_sample
from minifast.data.tensors import TensorDataBunch
from minifast.distributed.sharding import class_of
from minifast.errors import CallbackError, DataError, EmptyEpochError, NonFiniteLossError
from minifast.losses import (
    ELEMENTWISE,
    ELEMENTWISE_FUNCTIONS,
    check_broadcast,
    is_cross_entropy,
    setting_of,
    unwrap_loss,
)
from minifast.model_loss import IGNORED, ModelLoss
from minifast.training.failed_layer import describe_failed_layer
from minifast.training.progress import NullProgress
from minifast.training.state import State
from minifast.utils.checks import add_note, counted, shortlist
from minifast.utils.shapes import is_counted
from minifast.utils.tensors import as_arguments, count_samples, forward_of

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

OTHER_CAUSES = (CallbackError, EmptyEpochError, NonFiniteLossError)  # errors that have another cause than the batch
ONE_VALUE = "Expected more than 1 value per channel when training"  # what torch says of a single sample
UNEQUAL = (  # what torch's collate function says of samples of different shapes, the last in a worker process
    "each element in list of batch should be of equal size",
    "stack expects each tensor to be equal size",
    "Trying to resize storage that is not resizable",
)


def check_outputs(learn: Learner, output: Any, target: Any) -> None:
    """Compare the outputs of the model with the classes, or with the shape of regression targets.

    Raises:
        DataError: they do not fit each other, or there is one class only.
    """
    loss_func = unwrap_loss(learn.loss_func)
    check_broadcast(loss_func, output, target)
    check_class_dimension(loss_func, output, target)
    if not is_cross_entropy(loss_func) or not isinstance(output, torch.Tensor) or output.ndim < 2:
        return
    n_outputs, n_classes = output.shape[1], learn.data.c
    if n_classes is None or (learn.data.classes is None and learn.data.labels is None):  # it may have more
        check_one_class(loss_func, n_outputs)
        return
    left_out = f" (left out: {shortlist(learn.data.left_out)})" if learn.data.left_out else ""
    largest = _largest_class(loss_func, as_arguments(target)[0])
    if largest >= n_classes and (n_outputs != n_classes or n_classes == 1):
        raise too_few_names(largest, n_classes, learn.data.classes or ())
    if n_classes == 1:
        raise DataError(
            f"The data have one class only, {shortlist(learn.data.classes or '0')}, so the loss is 0 for every input: "
            f"nothing can be learned; give samples of two or more classes, and with `classes=` name them all{left_out}."
        )
    if n_outputs != n_classes:
        raise DataError(
            f"The model gives {counted(n_outputs, 'output')}, but the data have {n_classes} classes "
            f"({shortlist(learn.data.classes or ())}){left_out}; give the last layer {n_classes} outputs."
        )


def check_one_class(loss_func: Any, n_outputs: int) -> None:
    """Raise a DataError if torch's cross entropy gets a single output, for which it is 0 whatever the model learns."""
    own = type(loss_func).forward if isinstance(loss_func, nn.CrossEntropyLoss) else nn.CrossEntropyLoss.forward
    if n_outputs == 1 and own is nn.CrossEntropyLoss.forward:
        raise DataError(
            "The model gives 1 output, and cross entropy over one class is 0 for every input; give the last layer one "
            "output per class, or for two classes pass loss_func=nn.BCEWithLogitsLoss() and the targets as "
            "y[:, None].float()."
        )


def has_class_dimension_1(loss_func: Any) -> bool:
    """Return whether a loss is torch's cross entropy itself, which takes the classes from dimension 1."""
    loss = unwrap_loss(loss_func)
    return is_cross_entropy(loss_func) and getattr(type(loss), "forward", None) in (None, nn.CrossEntropyLoss.forward)


def class_dimension_cure(output: torch.Tensor) -> str:
    """Return how to move the classes of outputs from the last dimension to dimension 1."""
    moved = "output.transpose(1, 2)" if output.ndim == 3 else "output.movedim(-1, 1)"
    return (
        f"let the model return {moved}, or pass loss_func=lambda output, target: "
        f"torch.nn.functional.cross_entropy({moved}, target)"
    )


def check_class_dimension(loss_func: Any, output: Any, target: Any) -> None:
    """Check that the classes of outputs for several positions are in dimension 1, where cross entropy takes them from.

    Raises:
        DataError: they are in the last dimension.
    """
    if not has_class_dimension_1(loss_func) or not isinstance(output, torch.Tensor) or output.ndim < 3:
        return
    if not isinstance(target, torch.Tensor) or target.is_floating_point():
        return
    if target.shape == output.shape[:-1] and target.shape[1:] != output.shape[2:]:
        raise DataError(
            f"The outputs have the shape {tuple(output.shape)} and the targets {tuple(target.shape)}: the classes are "
            f"in the last dimension, but cross entropy takes them from dimension 1; {class_dimension_cure(output)}."
        )


def _largest_class(loss_func: Any, target: Any) -> int:
    """Return the largest class number of a batch, -1 if there is none."""
    if not isinstance(target, torch.Tensor) or target.is_floating_point() or target.is_complex():
        return -1
    counted = target[is_counted(target, setting_of(loss_func, "ignore_index", -100))]
    return int(counted.max()) if len(counted) else -1


def check_targets(loss_func: Any, output: Any, target: Any) -> None:
    """Check that each target is the number of an output, or ignored.

    Raises:
        DataError: a target is not.
    """
    are_tensors = isinstance(output, torch.Tensor) and isinstance(target, torch.Tensor)
    if not are_tensors or not is_cross_entropy(loss_func) or target.is_floating_point() or output.ndim < 2:
        return
    _check_range(output.shape[1], target, setting_of(loss_func, "ignore_index", -100))


def check_own_targets(learn: Learner, x: Any, target: Any) -> None:
    """Raise a DataError if a model with a loss of its own gets targets that are not numbers of its outputs."""
    if not isinstance(learn.loss_func, ModelLoss) or not isinstance(target, torch.Tensor) or target.is_floating_point():
        return
    try:
        with torch.no_grad():
            output = learn.output_of(x)
    except Exception:  # the error has another reason
        return
    if isinstance(output, torch.Tensor) and output.ndim > 1:
        _check_range(output.shape[-1], target, IGNORED)


def _check_range(n_outputs: int, target: torch.Tensor, ignore_index: int) -> None:
    used = target[is_counted(target, ignore_index)]
    if len(used) and (used.min() < 0 or used.max() >= n_outputs):
        raise DataError(
            f"The targets go from {int(used.min())} to {int(used.max())}, but the model gives "
            f"{counted(n_outputs, 'output')}; targets are class numbers from 0 to {n_outputs - 1}."
        )


def check_failed_batch(learn: Learner, error: BaseException, x: Any, output: Any, target: Any) -> None:
    """Find the reason why the model (``output`` is None) or the loss failed on a batch.

    Raises:
        DataError: types or shapes do not fit; otherwise nothing happens.
    """
    if output is None:
        check_lists(x, target)
        check_dicts(x, target)
        if isinstance(error, IndexError):
            check_own_targets(learn, x, target)
        if isinstance(error, TypeError):
            check_arguments(learn.model, x)
        if isinstance(error, AttributeError):
            return
        if any(word in str(error) for word in ("type", "Tensor")):  # a model may convert its inputs itself
            check_input_types(learn, x)
        return
    check_target_types(learn.loss_func, output, target)
    check_outputs(learn, output, target)
    check_targets(learn.loss_func, output, as_arguments(target)[0])


def explain_error(learn: Learner, state: State, error: BaseException) -> None:
    """Find the reason in the batch of ``state`` for an error of the model or the loss.

    Raises:
        DataError: types or shapes do not fit; otherwise nothing happens.
    """
    kinds = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
    if not isinstance(error, kinds) or isinstance(error, OTHER_CAUSES):
        return
    if isinstance(error, RuntimeError) and any(text in str(error) for text in UNEQUAL):
        raise DataError(
            "The samples of a batch differ in length or size, so they cannot be one tensor; resize images, and pad "
            "sequences in `collate_fn`, such as transformers' DataCollatorWithPadding(tokenizer)."
        )
    if state.last_input is None:
        return
    check_normalization(error, [count_samples(state.last_target, state.last_input)])
    if state.last_loss is None or is_first_batch(state):  # the first loss may be one that has no gradient
        check_failed_batch(learn, error, state.last_input, state.last_output, state.last_target)


def check_normalization(error: BaseException, counts: Sequence[int], rank: int = 0) -> None:
    """Raise a DataError if ``error`` is that of BatchNorm for a single sample.

    Args:
        error: the error of the model.
        counts: how many samples of the batch each process has.
        rank: this process.
    """
    if ONE_VALUE not in str(error) or isinstance(error, DataError) or not counts or counts[rank] > 1:
        return
    whose = "The batch" if len(counts) == 1 else f"The share of process {rank}"
    of = "" if len(counts) == 1 else f" of the batch's {sum(counts)}"
    least = "" if len(counts) == 1 else f" A batch of {len(counts)} processes needs {2 * len(counts)} or more."
    raise DataError(
        f"{whose} has {counted(counts[rank], 'sample')}{of}, but BatchNorm needs two or more in training; give the "
        f"training loader drop_last=True, or choose another batch size.{least}"
    ) from error


def is_first_batch(state: State) -> bool:
    """Return whether a run is at its first batch of training, which ``learn.check()`` tries too."""
    return state.train and state.num_batch == 0 and len(state.raw_losses) <= 1


@contextmanager
def explain_errors(learn: Learner, state: State) -> Iterator[None]:
    """Raise the reason of ``explain_error`` in place of an error in a pass over batches."""
    try:
        yield
    except Exception as error:
        try:
            explain_error(learn, state, error)
        except DataError as clearer:
            raise clearer from error
        if layer := describe_failed_layer(learn.model, error):
            add_note(error, layer)
        raise


@contextmanager
def explain_errors_of_batch(learn: Learner, x: Any, y: Any = None) -> Iterator[None]:
    """Do the same for an error of the model in one batch outside of a pass."""
    state = State(1, NullProgress())
    state.begin_batch(x, y, train=False)
    with explain_errors(learn, state):
        yield


def check_lists(x: Any, target: Any) -> None:
    """Raise a DataError if values of a batch that is a dict are lists of tensors, collated from Python lists."""
    if not isinstance(x, dict):
        return
    for name, values in {**{repr(name): x[name] for name in x}, "the value of the targets": target}.items():
        if isinstance(values, list) and values and all(isinstance(value, torch.Tensor) for value in values):
            raise DataError(
                f"In the batch, {name} is a list of {len(values)} tensors, because torch collates Python lists column "
                f"by column; make them tensors: with dataset.with_format('torch') for a data set of the package "
                f"datasets, else in the data set or by a collate_fn, such as DataCollatorWithPadding(tokenizer)."
            )


def check_dicts(x: Any, target: Any) -> None:
    """Raise a DataError if a batch has an input and a dict of targets for each sample, as for object detection."""
    if isinstance(x, (list, tuple)) and is_dict_per_sample(target) and len(x) == len(target):
        raise DataError(
            f"The inputs of a batch are {len(x)} values, which the model gets as {len(x)} arguments, and the targets "
            f"are dicts, one for each sample; pass `batch_fn`. For a detection model of torchvision, which takes "
            f"images and targets: batch_fn=lambda batch: ((list(batch[0]), list(batch[1])), batch[1]), with "
            f"loss_func=lambda losses, *targets: sum(losses.values()) and no validation set."
        )


def check_arguments(model: nn.Module, x: Any) -> None:
    """Raise a DataError if the ``forward`` of a model does not take the inputs as its arguments."""
    forward = forward_of(model)
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # of a compiled function
        return
    own = () if "forward" in vars(model) else (model,)  # self
    named = isinstance(x, dict) and bool(x.keys() & signature.parameters.keys())
    arguments, keywords = ((), x) if named else (as_arguments(x), {})
    try:
        signature.bind(*own, *arguments, **keywords)
    except TypeError as error:
        what = ", ".join(map(repr, x)) if named else f"{len(arguments)} value{'s' if len(arguments) != 1 else ''}"
        raise DataError(
            f"The inputs of a batch are {what}, but {class_of(model).__name__}.forward{shown_parameters(signature)} "
            f"does not take these ({error}); the last value of a batch that is a tuple is the targets, all others are "
            f"the model's arguments. Pass `batch_fn` to split batches in another way."
        ) from error


def shown_parameters(signature: inspect.Signature) -> str:
    """Return the names of the parameters but ``self``, in parentheses."""
    return f"({', '.join(name for name in signature.parameters if name != 'self')})"


def check_input_types(learn: Learner, x: Any) -> None:
    """Raise a DataError if inputs are of another type than the model's parameters, or than an embedding needs."""
    types = {parameter.dtype for parameter in learn.model.parameters() if parameter.is_floating_point()}
    embeds = any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in learn.model.modules())
    inputs = as_arguments(x)
    if not any(isinstance(value, (torch.Tensor, dict)) for value in inputs):
        kinds = "None" if x is None else f"of the type {type(inputs[0] if len(inputs) else x).__name__}"
        raise DataError(
            f"The inputs are {kinds}, but the model needs tensors; convert them in the data set or with collate_fn."
        )
    for tensor in inputs:
        if not isinstance(tensor, torch.Tensor) or len(types) != 1:
            continue
        (expected,) = types
        dtype = type_name(tensor.dtype)
        if embeds and len(as_arguments(x)) == 1:
            if tensor.dtype not in (torch.int64, torch.int32):
                raise DataError(
                    f"The inputs are {dtype}, but the model's embedding layer needs int64; convert the inputs with "
                    f"x.long() in the data set."
                )
        elif tensor.dtype != expected and learn.precision is None and not embeds:
            scale = " / 255" if tensor.dtype == torch.uint8 else ""
            how = f"convert the inputs with x.to(torch.{type_name(expected)}){scale} in the data set"
            if tensor.dtype == torch.uint8 and (tensor.ndim == 3 or (tensor.ndim == 4 and tensor.shape[3] in (1, 3))):
                shape, as_images = tuple(tensor.shape), "x[:, None]" if tensor.ndim == 3 else "x.permute(0, 3, 1, 2)"
                how = f"their shape is {shape}, but images are (n, channels, height, width): give {as_images}"
            if isinstance(learn.data, TensorDataBunch) and tensor.is_floating_point():  # whose dtype decided it
                how = f"pass dtype=torch.{type_name(expected)} to {type(learn.data).__name__}.from_arrays"
            raise DataError(f"The inputs are {dtype}, but the model's parameters are {type_name(expected)}; {how}.")


def check_target_types(loss_func: Any, output: Any, target: Any) -> None:
    """Raise a DataError if targets are text, or torch's loss cannot take their type or shape."""
    loss = unwrap_loss(loss_func)
    elementwise = isinstance(loss, ELEMENTWISE) or loss in ELEMENTWISE_FUNCTIONS
    name = getattr(loss, "__name__", type(loss).__name__)
    has_text = isinstance(target, (list, tuple)) and any(isinstance(value, str) for value in target)
    if has_text and (elementwise or is_cross_entropy(loss_func)):
        raise DataError(f"The targets are texts, but {name} needs numbers; give class numbers from 0 in the data set.")
    values = as_arguments(target)
    if (elementwise or is_cross_entropy(loss_func)) and not (len(values) and isinstance(values[0], torch.Tensor)):
        kind = "None" if target is None else f"a {type(target).__name__}"
        raise DataError(
            f"The targets are {kind}, but {name} needs a tensor; convert them in the data set or with collate_fn, or "
            f"select from them in a loss function of your own."
        )
    if not isinstance(target, torch.Tensor) or not isinstance(output, torch.Tensor):
        return
    dtype = type_name(target.dtype)
    if is_cross_entropy(loss_func):
        if target.is_floating_point():
            if target.shape != output.shape:
                raise DataError(f"The targets are {dtype}, but {name} needs class numbers; convert them with y.long().")
            return
        if target.dtype not in (torch.int64, torch.uint8):
            raise DataError(f"The targets are {dtype}, but {name} needs int64; convert them with y.long().")
        check_class_dimension(loss_func, output, target)
        expected = (*output.shape[:1], *output.shape[2:])
        if output.ndim > 1 and tuple(target.shape) != expected:
            raise DataError(
                f"The targets have the shape {tuple(target.shape)}, but {name} needs {expected} for outputs of shape "
                f"{tuple(output.shape)}; reshape them{', with y.squeeze(1)' if target.shape[1:] == (1,) else ''}."
            )
    elif elementwise and target.is_floating_point():
        check_one_output(output, target, dtype)
    elif elementwise:
        raise DataError(f"The targets are {dtype}, but {name} needs floats; convert them with y.float().")


def check_one_output(output: torch.Tensor, target: torch.Tensor, dtype: str) -> None:
    """Raise a DataError if there is one target per sample and several outputs, as for classes."""
    if output.ndim != 2 or output.shape[1] == 1 or target.numel() != len(output):
        return
    shapes = f"The targets are {dtype} with one number per sample, but the model gives {output.shape[1]} outputs"
    if bool((target == target.round()).all()) and bool((target >= 0).all()):
        long = "y.squeeze(1).long()" if target.ndim == 2 else "y.long()"
        raise DataError(
            f"{shapes}; if they are class numbers, convert them with {long} so that the loss is cross entropy, and for "
            f"regression give the last layer 1 output."
        )
    raise DataError(f"{shapes}; for regression give the last layer 1 output.")


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a type without ``torch.``."""
    return str(dtype).removeprefix("torch.")
