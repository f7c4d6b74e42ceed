"""Arrays and tensors as the data of a learner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast.data.bunch import DataBunch
from minifast.data.labels import as_array, as_labels
from minifast.data.loaders import TensorLoader
from minifast.data.order import draw_seed, split_rows
from minifast.data.transforms import check_tfms
from minifast.errors import DataError
from minifast.losses import LOSSES
from minifast.utils.checks import check_count


class TensorDataBunch(DataBunch):
    """Inputs and targets in memory, on the device where training happens."""

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
    ) -> TensorDataBunch:
        """Take inputs and targets: NumPy arrays, torch tensors, columns of pandas, or lists.

        Inputs that are floats come as float32, and so do the columns of a table; whole numbers stay whole, for
        embeddings; uint8 ``(n, 1 or 3, height, width)`` are pictures. What the targets are is read from them, and the
        bunch says it: names, whole numbers and bools are a class each; rows of 0 and 1, and lists of names, several
        classes; other floats real numbers.

        Args:
            x: the inputs, a row an item.
            y: the targets, one for each row.
            valid_pct: this share of the items, chosen at random, is for validation.
            valid: ``(x, y)`` for validation instead.
            test: inputs to predict on.
            bs: items a training batch. A last batch that is not full is left out, unless it is the only one.
            val_bs: items a validation batch; by default twice ``bs``.
            seed: of the choice and of the order of training; by default drawn from torch's generator.
            classes: the classes in their order, or the names of those that ``y`` numbers.
            path: where the learner's files go.
            device: where training happens; by default the GPU if there is one.
            ds_tfms: for pictures, transforms of training and of validation, such as ``get_transforms()``.

        Raises:
            DataError: inputs and targets differ in number, a column holds text, or a target cannot be used.

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
        seed = draw_seed(seed)
        inputs, targets = input_tensor(x, "x"), as_array(y)
        _check_as_many(inputs, targets, "x", "y")
        if valid is None:
            if len(inputs) < 2:
                raise DataError("There is 1 item, which training and validation cannot share; give valid=(x, y).")
            rows = split_rows(len(inputs), valid_pct, seed)
        else:
            if not isinstance(valid, (tuple, list)) or len(valid) != 2:
                raise TypeError(f"valid is a {type(valid).__name__}; it must be a pair (x, y).")
            more, more_targets = input_tensor(valid[0], "x of valid"), as_array(valid[1])
            _check_as_many(more, more_targets, "x of valid", "y of valid")
            if more.shape[1:] != inputs.shape[1:] or more.dtype != inputs.dtype:
                raise DataError(
                    f"Validation items are {more.dtype} {tuple(more.shape[1:])} and training items {inputs.dtype} "
                    f"{tuple(inputs.shape[1:])}; give both alike."
                )
            if targets.shape[1:] != more_targets.shape[1:] or targets.dtype.kind != more_targets.dtype.kind:
                raise DataError(
                    f"Validation targets are {more_targets.dtype} {more_targets.shape[1:]} and training targets "
                    f"{targets.dtype} {targets.shape[1:]}; give both alike."
                )
            rows = torch.arange(len(inputs)), torch.arange(len(inputs), len(inputs) + len(more))
            inputs, targets = torch.cat([inputs, more]), np.concatenate([targets, more_targets])
        labels = as_labels(targets, classes, item="The item {}".format)
        if valid is not None and classes is None and labels.kind == "class":
            unlearnt = set(labels.targets[rows[1]].tolist()) - set(labels.targets[rows[0]].tolist())
            if unlearnt and labels.classes:
                raise DataError(
                    f"The class {labels.classes[min(unlearnt)]!r} stands only in the targets of validation, so it "
                    f"cannot be learnt; add training items of it, or leave it out."
                )
        common: dict[str, Any] = {"seed": seed, "device": device, "classes": labels.classes}
        train_dl = TensorLoader(inputs[rows[0]], labels.targets[rows[0]], bs, True, **common)
        valid_dl = TensorLoader(inputs[rows[1]], labels.targets[rows[1]], val_bs, **common)
        test_dl = None
        if test is not None:
            unseen = input_tensor(test, "test")
            none = torch.zeros(len(unseen), *labels.targets.shape[1:], dtype=labels.targets.dtype)
            test_dl = TensorLoader(unseen, none, val_bs, **common)
        loss = LOSSES[labels.kind]()
        data = cls(train_dl, valid_dl, test_dl, device, path=path, classes=labels.classes, loss_func=loss)
        data.labels = labels
        data._add_ds_tfms(tfms, seed)
        return data

    def encode(self, item: Any) -> Any:
        """Return one item, an array, a tensor or a list, as the batch of one that the model takes."""
        x = torch.as_tensor(item)
        return super().encode(x.float() if x.is_floating_point() or self.train_dl.x.is_floating_point() else x)


def input_tensor(x: Any, name: str) -> Tensor:
    """Return inputs as a tensor: floats as float32, a table's columns too, whole numbers as they are.

    Raises:
        DataError: a column holds text, or the rows differ in length.
    """
    if isinstance(x, Tensor):
        return x.detach().float() if x.is_floating_point() or x.dtype is torch.bool else x.detach()
    if hasattr(x, "columns"):
        columns = [(column, np.asarray(x[column])) for column in x.columns]
        for column, values in columns:
            if values.dtype.kind not in "biuf":
                raise DataError(
                    f"The column {column!r} of {name} holds {values.dtype} values, such as {values[0]!r}; a model "
                    f"takes numbers: leave it out, or number its values."
                )
        return torch.from_numpy(np.stack([values.astype(np.float32) for _, values in columns], 1))
    try:
        array = np.asarray(x)
    except ValueError:
        raise DataError(f"The rows of {name} differ in length; give each as many values.") from None
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise DataError(f"{name} holds {array.dtype} values in the shape {array.shape}; a model takes rows of numbers.")
    whole = array.dtype.kind in "iu"
    array = array if array.dtype == np.uint8 else array.astype(np.int64 if whole else np.float32)
    return torch.tensor(array)


def _check_as_many(inputs: Tensor, targets: Any, x: str, y: str) -> None:
    if len(inputs) != len(targets):
        raise DataError(f"{x} has {len(inputs)} items and {y} has {len(targets)}; give a target for each item.")
