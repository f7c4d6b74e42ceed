"""TensorDataBunch: arrays and tensors in memory as the data of a Learner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast.data.bunch import DataBunch
from minifast.data.labels import Labels, as_array, as_labels
from minifast.data.loaders import TensorLoader
from minifast.data.order import resolve_seed, split_rows
from minifast.data.transforms import check_tfms
from minifast.errors import DataError
from minifast.losses import loss_of_labels
from minifast.utils.checks import check_count
from minifast.utils.public import public_class


@public_class()
class TensorDataBunch(DataBunch):
    """Hold inputs and targets in memory, on the device for training."""

    test_option = "from_arrays(..., test=x)"
    test_labelled = False

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        valid_pct: float = 0.2,
        valid: tuple[Any, Any] | None = None,
        test: Any = None,
        bs: int = 64,
        val_bs: int | None = None,
        seed: int | None = None,
        classes: Sequence[Any] | None = None,
        path: str | Path = ".",
        device: torch.device | str | None = None,
        ds_tfms: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> TensorDataBunch:
        """Create a bunch from inputs and targets: NumPy arrays, torch tensors, pandas columns, or lists.

        Float inputs and the columns of a table become ``dtype``. Integer inputs stay integers, for embeddings. Inputs
        uint8 ``(n, 1 or 3, height, width)`` are images. The kind of the targets follows from their type, and
        ``print(data)`` shows it: names, integers and bools are classes; rows of 0 and 1, and lists of names, are
        multi-label; other floats are regression targets.

        Args:
            x: inputs, one row per sample; a tuple of several arrays, tensors or tables gives several arguments of the
                model.
            y: targets, one per sample.
            valid_pct: fraction of the samples for validation, chosen at random.
            valid: a validation set ``(x, y)``, instead of ``valid_pct``.
            test: inputs to predict.
            bs: samples per training batch. An incomplete last batch is dropped, unless it is the only one.
            val_bs: samples per validation batch; by default twice ``bs``.
            seed: seed of the split and of the training order; by default sampled from torch's generator.
            classes: the classes in order, or the names of the classes that ``y`` numbers.
            path: folder for the learner's files.
            device: device for training; by default the GPU if there is one.
            ds_tfms: for images, the transforms of training and of validation, such as ``get_transforms()``.
            dtype: the type of float inputs and targets, such as ``torch.float64`` for a model of doubles.

        Returns:
            A bunch with the default loss for these targets.

        Raises:
            DataError: if inputs and targets differ in length, a column holds text, or a target cannot be used.

        >>> x = np.random.default_rng(0).normal(size=(100, 4))
        >>> data = TensorDataBunch.from_arrays(x, x[:, 0] > 0, classes=["less", "more"], device="cpu")
        >>> data.classes, data.loss_func, len(data.train_ds), len(data.valid_ds)
        (['less', 'more'], CrossEntropyLoss(), 80, 20)
        >>> TensorDataBunch.from_arrays(x, x.sum(1), device="cpu").loss_func
        MSELossFlat()
        """
        check_count("bs", bs)
        val_bs = 2 * bs if val_bs is None else check_count("val_bs", val_bs)
        tfms = check_tfms(ds_tfms)
        seed = resolve_seed(seed)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"`dtype` must be a float type of torch, such as torch.float64, got {dtype!r}.")
        inputs, targets = input_tensors(x, "x", dtype), as_array(y)
        n = _check_lengths(inputs, targets, "x", "y")
        if valid is None:
            if n < 2:
                raise DataError(f"`x` needs at least 2 samples to split, got {n}; or give `valid=(x, y)`.")
            rows = split_rows(n, valid_pct, seed)
        else:
            valid_inputs, valid_targets = _valid_pair(valid, inputs, targets, dtype)
            rows = torch.arange(n), torch.arange(n, n + len(valid_targets))
            inputs = tuple(torch.cat(parts) for parts in zip(inputs, valid_inputs, strict=True))
            targets = np.concatenate([targets, valid_targets])
        labels = as_labels(targets, classes, name="Sample {}".format)
        if valid is not None and classes is None and labels.kind == "class":
            check_unseen(labels, rows)
        if labels.kind == "number":
            exact = in_precision(targets, dtype)
            labels = labels._replace(targets=exact.reshape(labels.targets.shape))
        elif labels.kind == "classes":
            labels = labels._replace(targets=labels.targets.to(dtype))
        common: dict[str, Any] = {"seed": seed, "device": device, "classes": labels.classes}
        train_dl = TensorLoader(_rows_of(inputs, rows[0]), labels.targets[rows[0]], bs, True, **common)
        valid_dl = TensorLoader(_rows_of(inputs, rows[1]), labels.targets[rows[1]], val_bs, **common)
        test_dl = None
        if test is not None:
            test_inputs = input_tensors(test, "test", dtype)
            placeholders = torch.zeros(len(test_inputs[0]), *labels.targets.shape[1:], dtype=labels.targets.dtype)
            test_dl = TensorLoader(_single(test_inputs), placeholders, val_bs, **common)
        loss = loss_of_labels(labels)
        data = cls(train_dl, valid_dl, test_dl, device, path=path, classes=labels.classes, loss_func=loss)
        data.labels = labels
        data._add_ds_tfms(tfms, seed)
        return data

    def encode(self, item: Any) -> Any:
        """Return one sample, an array, a tensor or a list, or a tuple of several inputs, as a batch of one."""
        own = self.train_dl.x
        if not isinstance(own, tuple):
            return super().encode(_like(torch.as_tensor(item), own))
        if not isinstance(item, (tuple, list)) or len(item) != len(own):
            raise DataError(f"A sample must be a tuple of {len(own)} inputs, got {type(item).__name__}.")
        return super().encode(tuple(_like(torch.as_tensor(x), part) for x, part in zip(item, own, strict=True)))


def _like(x: Tensor, own: Tensor) -> Tensor:
    """Return a sample in the type of the float inputs."""
    if own.is_floating_point():
        return x.to(own.dtype)
    return x.float() if x.is_floating_point() else x


def _single(inputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    return inputs[0] if len(inputs) == 1 else inputs


def _rows_of(inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor | tuple[Tensor, ...]:
    return _single(tuple(part[rows] for part in inputs))


def input_tensors(x: Any, name: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the inputs of a model as tensors: several if ``x`` is a tuple of arrays, tensors or tables."""
    several = isinstance(x, tuple) and len(x) > 0 and all(hasattr(part, "shape") and part.shape for part in x)
    if not several:
        return (input_tensor(x, name, dtype),)
    return tuple(input_tensor(part, f"{name}[{i}]", dtype) for i, part in enumerate(x))


def input_tensor(x: Any, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return inputs as a tensor: floats and the columns of a table as ``dtype``, integers as integers.

    Raises:
        DataError: if a column holds text, or the rows differ in length.
    """
    if isinstance(x, Tensor):
        return x.detach().to(dtype) if x.is_floating_point() or x.dtype is torch.bool else x.detach()
    if hasattr(x, "columns"):
        columns = [(column, np.asarray(x[column])) for column in x.columns]
        for column, values in columns:
            if values.dtype.kind not in "biuf":
                raise DataError(
                    f"The columns of `{name}` must hold numbers, but {column!r} holds {values.dtype} values such as "
                    f"{values[0]!r}. Remove the column, or encode it as numbers."
                )
        return torch.from_numpy(np.stack([values.astype(np.float64) for _, values in columns], 1)).to(dtype)
    try:
        array = np.asarray(x)
    except ValueError:
        raise DataError(f"The rows of `{name}` must have the same length.") from None
    if array.dtype.kind not in "biufc" or not array.ndim:
        raise DataError(f"`{name}` must hold rows of numbers, got {array.dtype} values of shape {array.shape}.")
    integers = array.dtype.kind in "iu"
    if array.dtype == np.uint8:
        return torch.tensor(array)
    return torch.tensor(array.astype(np.int64)) if integers else in_precision(array, dtype)


def in_precision(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """Return numbers as a tensor of a float type, or of the complex type of the same precision."""
    if array.dtype.kind == "c":
        return torch.from_numpy(array.astype(np.complex128)).to(dtype.to_complex())
    return torch.from_numpy(array.astype(np.float64)).to(dtype)


def _valid_pair(
    valid: Any, inputs: tuple[Tensor, ...], targets: Any, dtype: torch.dtype
) -> tuple[tuple[Tensor, ...], Any]:
    """Return inputs and targets for validation if they are like those for training."""
    if not isinstance(valid, (tuple, list)) or len(valid) != 2:
        raise TypeError(f"`valid` must be a pair (x, y), got {type(valid).__name__}.")
    valid_inputs, valid_targets = input_tensors(valid[0], "valid[0]", dtype), as_array(valid[1])
    _check_lengths(valid_inputs, valid_targets, "valid[0]", "valid[1]")
    kinds = [" and ".join(f"{p.dtype} {tuple(p.shape[1:])}" for p in parts) for parts in (inputs, valid_inputs)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"Training and validation inputs must have the same type and shape, got {kinds[0]} and {kinds[1]}."
        )
    if targets.shape[1:] != valid_targets.shape[1:] or targets.dtype.kind != valid_targets.dtype.kind:
        raise DataError(
            f"Training and validation targets must have the same type and shape, got {targets.dtype} "
            f"{targets.shape[1:]} and {valid_targets.dtype} {valid_targets.shape[1:]}."
        )
    return valid_inputs, valid_targets


def check_unseen(labels: Labels, rows: tuple[Tensor, Tensor], hint: str = "") -> None:
    """Raise an error if a class is in the validation targets only; ``hint`` is what else may be wrong."""
    unseen = set(labels.targets[rows[1]].tolist()) - set(labels.targets[rows[0]].tolist())
    if unseen and labels.classes:
        raise DataError(
            f"The class {labels.classes[min(unseen)]!r} is in the validation targets only, so it cannot be "
            f"learned. {hint}Add training samples of it, or remove it."
        )


def _check_lengths(inputs: tuple[Tensor, ...], targets: Any, x: str, y: str) -> int:
    """Return the number of samples, if inputs and targets have the same."""
    for i, part in enumerate(inputs):
        if len(part) != len(targets):
            name = x if len(inputs) == 1 else f"{x}[{i}]"
            raise DataError(
                f"`{name}` has {len(part)} samples and `{y}` has {len(targets)} targets. Give one target per sample."
            )
    return len(targets)
