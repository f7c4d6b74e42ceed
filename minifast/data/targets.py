"""The targets of training batches, looked at before training: they decide the default loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from minifast.data.loaders import TensorLoader
from minifast.data.resume import preserve_loader
from minifast.errors import DataError
from minifast.losses import MSELossFlat, same_shape
from minifast.utils.random import get_rng_states, set_rng_states
from minifast.utils.tensors import as_pair, map_tensors

if TYPE_CHECKING:
    from minifast.data.bunch import DataBunch

N_LOOKED = 64  # samples whose targets are read where the first one does not tell what they are


def pair_of(loader: Any, index: int = 0) -> tuple[Any, Any]:
    """Return sample ``index`` of a loader's data set as a batch of one, split into inputs and targets as in training.

    A loader that is not torch's collates in a way of its own: its samples are split, not its batches.
    """
    inner, sample = getattr(loader, "dl", loader), loader.dataset[index]
    if isinstance(inner, DataLoader):
        batch = inner.collate_fn([sample] if inner.batch_sampler is not None else sample)
        pair: tuple[Any, Any] = loader.as_pair(batch, "training")
        return pair
    inputs, targets = loader.as_pair(sample, "training")
    return inputs, default_collate([targets])


def first_targets(loader: Any) -> Any:
    """Return the targets of a batch of the first sample, or None where the data set cannot tell."""
    with _keep_generators():
        try:
            return pair_of(loader)[1]
        except Exception:  # the first batch of a fit raises the error
            return None


def default_loss(loader: Any, classes: Any) -> nn.Module | None:
    """Return the default loss for the targets of a training loader, or None where they do not determine it.

    The targets are those that training uses: of ``(x1, x2, y)`` the last value, of a dict its labels.
    """
    with _keep_generators():
        targets = first_targets(loader)
        if isinstance(targets, Tensor) and targets.is_complex():
            return None
        known = isinstance(targets, Tensor) and targets.ndim > 0
        rows = known and targets.is_floating_point() and targets.ndim == 2 and targets.shape[1] > 1
        if rows and bool(((targets == 0) | (targets == 1)).all()):
            several = _has_several_labels(loader, exclusive=classes is not None or _is_class(loader))
            if several:
                return nn.BCEWithLogitsLoss()
        if classes is not None or (rows and _are_shares(targets) and _is_class(loader) and _all_shares(loader)):
            return nn.CrossEntropyLoss()
    if not known:
        return None
    if targets.is_floating_point():
        return MSELossFlat()
    return nn.CrossEntropyLoss() if targets.ndim == 1 else None


_SAMPLES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # the ``sample_dimensions`` of each loader


def sample_dimensions(loader: Any) -> Any:
    """Return the number of dimensions of each tensor in the inputs of a sample, in their structure.

    Returns None where the loader gives no batch.
    """
    if loader not in _SAMPLES:
        with preserve_loader(loader):
            try:
                _SAMPLES[loader] = _dimensions_in(loader)
            except Exception:  # a loader of no batch, or one whose batches the model cannot take either
                return None
    return _SAMPLES[loader]


def _dimensions_in(loader: Any) -> Any:
    inner = getattr(loader, "dl", loader)
    if isinstance(inner, DataLoader) and inner.batch_sampler is not None:
        inputs = pair_of(loader)[0]
    elif isinstance(loader, TensorLoader):
        inputs = map_tensors(lambda x: x[:1], loader.x)
    else:
        inputs, _ = next(iter(loader))
    return map_tensors(lambda x: x.ndim - 1, inputs)


def without_batch_dimension(item: Any, dimensions: Any) -> Any:
    """Return a sample, also where it is a batch of one, without the dimension of the batch.

    A tokenizer with ``return_tensors="pt"`` returns such a batch, and ``x[:1]`` is one.

    Args:
        item: a tensor, or a tuple, list or dict of them.
        dimensions: the ``sample_dimensions`` of the data, which tell a batch from a sample.

    Raises:
        DataError: it is a batch of several samples.

    >>> without_batch_dimension(torch.zeros(1, 8), 1).shape, without_batch_dimension(torch.zeros(1, 8), 2).shape
    (torch.Size([8]), torch.Size([1, 8]))
    """
    pairs = list(_tensors_with(item, dimensions))
    if not pairs or any(tensor.ndim != ndim + 1 for tensor, ndim in pairs):
        return item
    n = max(len(tensor) for tensor, _ in pairs)
    if n != 1 or any(len(tensor) != 1 for tensor, _ in pairs):
        raise DataError(
            f"`item` must be one sample, got a batch of {n}; get_preds predicts many, and "
            f"learn.pred_batch(batch=(inputs, None)) a batch."
        )
    batched = {id(tensor) for tensor, _ in pairs}
    return map_tensors(lambda tensor: tensor[0] if id(tensor) in batched else tensor, item)


def _tensors_with(item: Any, dimensions: Any) -> Iterator[tuple[Tensor, int]]:
    """Yield each tensor of a sample with the number of dimensions at the same place in ``dimensions``."""
    if isinstance(item, Tensor) and isinstance(dimensions, int):
        yield item, dimensions
    elif isinstance(item, dict) and isinstance(dimensions, dict):
        for name in item.keys() & dimensions.keys():
            yield from _tensors_with(item[name], dimensions[name])
    elif isinstance(item, (list, tuple)) and isinstance(dimensions, (list, tuple)):
        for value, inner in zip(item, dimensions, strict=False):
            yield from _tensors_with(value, inner)


def collated(item: Any, loader: Any) -> Any:
    """Return the inputs of one sample that is an object with a method ``to``, such as a graph, as a batch of one.

    The ``collate_fn`` of the loader makes it, as it makes the batches of training.

    Raises:
        DataError: the loader has no ``collate_fn``, or it fails.
    """
    inner, dataset = getattr(loader, "dl", None), getattr(loader, "dataset", None)
    try:
        with preserve_loader(loader):
            sample: Any = dataset[0]  # type: ignore[index]
            batch = inner.collate_fn([(item, *sample[1:]) if isinstance(sample, (list, tuple)) else item])  # type: ignore[union-attr]
            return loader.as_pair(batch, "training")[0]
    except Exception as error:
        raise DataError(
            f"The sample, a {type(item).__name__}, cannot be made a batch by the collate_fn of the training loader: "
            f"{error!r}; make the batch yourself: learn.pred_batch(batch=(batch, None))."
        ) from error


def no_loss_reason(loader: Any) -> str:
    """Return why ``default_loss`` found no loss, and what to do."""
    with _keep_generators():
        try:
            targets = pair_of(loader)[1]
        except DataError as error:  # a batch without targets
            return f": {str(error).rstrip('.')}"
        except Exception:  # the first batch of a fit raises the error
            targets = None
    if is_dict_per_sample(targets):
        return (
            ": the targets are dicts, one for each sample; pass `loss_func`, and `batch_fn`, a function that returns "
            "(inputs, targets), if the model needs them as an argument"
        )
    if isinstance(targets, (list, tuple)) and targets and isinstance(targets[0], str):
        return ": the targets are texts; give class numbers from 0 in the data set"
    if isinstance(targets, Tensor) and targets.is_complex():
        return (
            ": the targets are complex numbers; pass `loss_func`, such as lambda output, target: "
            "(output - target).abs().square().mean()"
        )
    if not isinstance(targets, Tensor) or targets.ndim < 2:
        return "; pass `loss_func`, such as nn.CrossEntropyLoss()"
    shape = tuple(targets.shape[1:])
    if shape == (1,):
        return ": the targets are integers of shape (n, 1); give class numbers as (n,), with y.squeeze(1)"
    return (
        f": each target has {' x '.join(map(str, shape))} integers; pass `loss_func`, such as nn.CrossEntropyLoss() "
        f"for a class per position, or give floats and nn.BCEWithLogitsLoss() for several labels per sample"
    )


def is_dict_per_sample(targets: Any) -> bool:
    """Return whether targets are a list or tuple of dicts, as for object detection."""
    return isinstance(targets, (list, tuple)) and len(targets) > 0 and all(isinstance(t, Mapping) for t in targets)


def has_named_inputs(data: DataBunch) -> bool:
    """Return whether the inputs of training batches are dicts, by making a batch of one sample."""
    loader: Any = data.train_dl
    inner = getattr(loader, "dl", None)
    with preserve_loader(loader):
        try:
            has_samples = isinstance(inner, DataLoader) and inner.batch_sampler is not None
            inputs, _ = pair_of(loader) if has_samples else next(iter(loader))
        except Exception:  # the first batch of a fit raises the error
            return False
    return isinstance(inputs, dict)


def _has_several_labels(loader: Any, exclusive: bool) -> bool:
    """Return whether the targets are rows of 0 and 1, by samples from the whole data set.

    With ``exclusive``, rows that all have one 1 are a class for each sample.
    """
    try:
        rows = _rows(loader)
    except Exception:  # the first epoch of a fit raises the error
        return False
    is_binary = bool(((rows == 0) | (rows == 1)).all()) and bool(rows.any()) and not bool(rows.all())
    return is_binary and not (exclusive and _are_shares(rows))


def _rows(loader: Any) -> Tensor:
    """Return the targets of samples from the whole data set."""
    n = len(loader.dataset)
    indices = torch.linspace(0, n - 1, min(n, N_LOOKED), dtype=torch.float64).long().tolist()
    return torch.cat([pair_of(loader, i)[1] for i in indices])


def _are_shares(rows: Tensor) -> bool:
    """Return whether rows are probabilities of classes, as Mixup in a ``collate_fn`` makes them of class numbers."""
    return bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all())


def _all_shares(loader: Any) -> bool:
    """Return whether all targets that can be looked at are probabilities of classes."""
    try:
        return _are_shares(_rows(loader))
    except Exception:  # of different shapes, or of a data set without a length
        return False


def _is_class(loader: Any) -> bool:
    """Return whether the target of a sample is a class number, before samples are collated."""
    try:
        target = torch.as_tensor(as_pair(loader.dataset[0], target=loader.target)[1])
    except Exception:  # a data set whose samples are in another form than its batches
        return False
    return target.ndim == 0 and not target.is_floating_point()


@contextmanager
def _keep_generators() -> Iterator[None]:
    """Restore the global random generators on leaving: a data set or collate function may use them."""
    states = get_rng_states()
    try:
        yield
    finally:
        set_rng_states(states)


def are_two_classes(target: Any) -> bool:
    """Return whether targets are floats, one for each sample, that are all 0 or 1, and both occur.

    >>> are_two_classes(torch.tensor([[0.0], [1.0]])), are_two_classes(torch.tensor([0.0, 0.5]))
    (True, False)
    """
    if not isinstance(target, Tensor) or not target.is_floating_point() or target.numel() != len(target):
        return False
    return bool(((target == 0) | (target == 1)).all() & (target == 0).any() & (target == 1).any())


def two_classes_cure(output: Any, target: Tensor) -> str:
    """Return how to train on targets of 0.0 and 1.0, one per sample, as two classes."""
    shape = "" if getattr(output, "shape", None) == target.shape else f", and {same_shape(output, target)}"
    long = "y.squeeze(1).long()" if target.ndim == 2 else "y.long()"
    return (
        f"For two classes pass loss_func=nn.BCEWithLogitsLoss(){shape}; or give class numbers as int64, {long}, and "
        f"the model two outputs"
    )
