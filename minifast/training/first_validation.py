"""Try a sample of the validation set before the first step, so that one that does not fit costs no epoch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from minifast.data.loaders import DeviceDataLoader, TensorLoader
from minifast.errors import DataError
from minifast.losses import check_broadcast
from minifast.training.batch_checks import check_failed_batch
from minifast.training.snapshot import eval_mode, preserve_look
from minifast.utils.checks import add_note
from minifast.utils.compiled import without_compiled_code
from minifast.utils.tensors import as_arguments, as_pair, count_samples, take_rows

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

NOTE = "The first validation batch, tried before the first step of training, so that no epoch is lost."


def try_validation(learn: Learner) -> None:
    """Raise the error of the model or the loss on the first validation batch.

    The model sees one sample, without its forward hooks, and the loss sees nothing. Only where the sample does not fit,
    both see the whole batch, which may start worker processes. Buffers and random generators stay as they were. Several
    processes, and loaders whose data set has no indices, try nothing.
    """
    loader = learn.data.valid_dl
    if learn.parallel is not None:
        return
    with preserve_look(learn, loader), eval_mode(learn.model), torch.no_grad(), without_compiled_code(learn.model):
        try:
            batch = _one_sample(loader)
            if batch is None:
                return
            x, y = as_pair(batch, "validation")
            with _alone(learn):
                output = learn.output_of(x, y)
            check_broadcast(learn.loss_func, output, y)
            check_failed_batch(learn, RuntimeError(), x, output, y)
        except Exception:  # a model may need several samples, and a loss of your own may take what torch's does not
            batch = next(iter(loader), None)
            if batch is not None:
                _try_batch(learn, batch)


@contextmanager
def _alone(learn: Learner) -> Iterator[None]:
    """Call the model without forward hooks, which store outputs, and without the table of frozen features."""
    hooks = [(module, module._forward_hooks) for module in learn.model.modules()]
    features, learn.features = learn.features, None
    try:
        for module, _ in hooks:
            module._forward_hooks = OrderedDict()
        yield
    finally:
        learn.features = features
        for module, own in hooks:
            module._forward_hooks = own


def _one_sample(loader: Any) -> Any:
    """Return a batch of the first sample as the loader prepares it, or None where it has no indices."""
    if isinstance(loader, TensorLoader):
        return loader.batch(torch.arange(min(1, len(loader.y)), device=loader.device)) if len(loader.y) else None
    inner = loader.dl if isinstance(loader, DeviceDataLoader) else None
    if isinstance(inner, (list, tuple)) and inner:
        x, y = as_pair(loader._prepared(inner[0]), "validation")
        return take_rows((x, y), slice(0, 1), count_samples(y, x))
    if not isinstance(inner, DataLoader) or inner.batch_sampler is None or not hasattr(inner.dataset, "__getitem__"):
        return None
    return loader._prepared(inner.collate_fn([inner.dataset[0]]))


def _try_batch(learn: Learner, batch: Any) -> None:
    x, y = as_pair(batch, "validation")
    output = None
    try:
        output = learn.output_of(x, y)
        check_broadcast(learn.loss_func, output, y)
        learn.loss_func(output, *as_arguments(y))
    except Exception as error:
        try:
            check_failed_batch(learn, error, x, output, y)
        except DataError as clearer:
            add_note(clearer, NOTE)
            raise clearer from error
        add_note(error, NOTE)
        raise
