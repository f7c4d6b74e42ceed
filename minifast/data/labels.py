"""Labels of items, however they come, as the targets of a model: a class, several classes, or numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minifast.errors import DataError
from minifast.utils.checks import check_once, did_you_mean, shortlist


class Labels(NamedTuple):
    """Targets, and how they were understood.

    ``kind`` is ``"class"`` (int64 ``(n,)``), ``"classes"`` (float32 ``(n, classes)`` of 0 and 1), or ``"number"``
    (float32 ``(n,)`` or ``(n, numbers)``).
    """

    targets: Tensor
    classes: list[Any] | None
    kind: str
    why: str

    @property
    def c(self) -> int:
        """How many outputs a model of these targets has."""
        if self.classes is not None:
            return len(self.classes)
        return 1 if self.targets.ndim == 1 else self.targets.shape[1]

    def __str__(self) -> str:
        what = {
            "class": f"one of {self.c} classes",
            "classes": f"any of {self.c} classes",
            "number": f"{self.c} real numbers" if self.c > 1 else "a real number",
        }
        return f"each target is {what[self.kind]}, for the labels are {self.why}"


def as_labels(
    values: Any,
    classes: Sequence[Any] | None = None,
    delim: str | None = None,
    item: Callable[[int], str] = "item {}".format,
) -> Labels:
    """Return labels as targets; what kind they are is read from their type, shape and values.

    Names, whole numbers and bools are a class each. Lists of names are several classes, and so are texts with a
    ``delim``, and rows of 0 and 1. Floats are real numbers, one or several an item.

    Args:
        values: an array, a tensor, a column of a table, or a list.
        classes: the classes in their order; by default those that there are, sorted. Where the labels are whole
            numbers and the classes are not, the labels are their places.
        delim: what stands between the names in a text.
        item: how an item is called in an error.

    Raises:
        DataError: a label is missing, not finite, or not among ``classes``, or labels are of no such kind.

    >>> as_labels(["cat", "dog", "cat"]).targets, as_labels(["cat", "dog", "cat"]).classes
    (tensor([0, 1, 0]), ['cat', 'dog'])
    >>> print(as_labels([0.5, 1.5]))
    each target is a real number, for the labels are floats
    >>> as_labels(["a b", "", "b"], delim=" ").targets.tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    """
    if classes is not None:
        classes = list(classes)
        check_once("classes names", classes, "name each class once")
    array = as_array(values)
    if array.ndim not in (1, 2) or not len(array):
        raise DataError(f"The labels have the shape {array.shape}; give one for each item, (n,) or (n, several).")
    if delim is not None:
        if not isinstance(delim, str) or not delim:
            raise TypeError(f"label_delim is {delim!r}; it must be what stands between two names, such as ' '.")
        if array.ndim == 2:
            raise DataError("Labels in several columns have nothing between their names; leave label_delim out.")
        return _several([_parts(one, delim) for one in array.tolist()], classes, f"texts split at {delim!r}", item)
    if array.dtype == object and all(isinstance(one, list) for one in array):
        lists = array.tolist()
        if any(isinstance(one, float) for each in lists for one in each):
            raise DataError("The labels are lists of floats of different lengths; give each item as many numbers.")
        return _several(lists, classes, "lists of names", item)
    _check_each(array, item)
    if array.dtype.kind == "f":
        return _numbers(array, classes, item)
    if array.ndim == 2 and array.shape[1] > 1:
        if array.dtype.kind not in "biu" or not np.isin(array, (0, 1)).all():
            raise DataError(
                f"The labels are {array.shape[1]} columns of {_name_of(array)}; give floats for several numbers an "
                f"item, or 0s and 1s for several classes."
            )
        return _one_hot(array, classes, "rows of 0 and 1")
    return _one_class(array.reshape(-1), classes, item)


def as_array(values: Any) -> np.ndarray[Any, Any]:
    """Return a column, an array, a tensor or a list as an array; of mixed things and unequal lists one of objects."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.is_floating_point() else values)
    if hasattr(values, "to_numpy"):
        values = np.asarray(values.to_numpy())
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values
    items = list(map(_plain, values))
    lists = [one for one in items if isinstance(one, list)]
    if lists and len(lists) == len(items) and len(set(map(len, lists))) == 1:
        flat = [one for row in lists for one in row]
        numbers = flat and all(isinstance(one, Real) for one in flat)
        if numbers and (any(isinstance(one, float) for one in flat) or set(flat) <= {0, 1}):
            return np.array(items)
    texts = sum(isinstance(one, str) for one in items)
    if not lists and texts in (0, len(items)):
        return np.array(items)
    array = np.empty(len(items), object)
    array[:] = items
    return array


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else getattr(value, "tolist", lambda: value)()


def _is_nan(value: Any) -> bool:
    return value is None or bool(isinstance(value, Real) and value != value)


def _parts(value: Any, delim: str) -> list[str]:
    return [] if _is_nan(value) else [part.strip() for part in str(value).split(delim) if part.strip()]


def _name_of(array: np.ndarray[Any, Any]) -> str:
    return {"b": "bools", "i": "whole numbers", "u": "whole numbers"}.get(array.dtype.kind, "names")


def _check_each(array: np.ndarray[Any, Any], item: Callable[[int], str]) -> None:
    if array.dtype == object:
        missing = [i for i, one in enumerate(array.tolist()) if _is_nan(one)]
    else:
        there = np.isfinite(array) if array.dtype.kind == "f" else array != ""
        missing = np.flatnonzero(~there.reshape(len(array), -1).all(1)).tolist()
    if missing:
        label, more = _plain(array[missing[0]]), len(missing) - 1
        raise DataError(
            f"{item(missing[0])} has no label that could be learnt ({label!r})"
            f"{f', nor have {more} more' if more else ''}; give each item one, or leave those out."
        )
    if array.dtype.kind not in "biufUT":
        example = _plain(array.flat[0])
        raise DataError(
            f"The labels are of several kinds, or of none that is known ({example!r} is the first); give all as names, "
            f"whole numbers, floats, or lists of names."
        )


def _numbers(array: np.ndarray[Any, Any], classes: Sequence[Any] | None, item: Callable[[int], str]) -> Labels:
    if array.ndim == 2 and array.shape[1] > 1 and np.isin(array, (0, 1)).all():
        return _one_hot(array, classes, "rows of 0 and 1")
    if classes is not None:
        raise DataError(
            "The labels are floats, which are real numbers and have no classes; leave classes out, or give the labels "
            "as whole numbers or names."
        )
    return Labels(torch.from_numpy(array.astype(np.float32)), None, "number", "floats")


def _one_class(array: np.ndarray[Any, Any], classes: list[Any] | None, item: Callable[[int], str]) -> Labels:
    why = _name_of(array)
    if classes is None:
        names, numbers = np.unique(array, return_inverse=True)
        return Labels(torch.from_numpy(numbers.astype(np.int64)), names.tolist(), "class", why)
    if array.dtype.kind in "biu" and not any(isinstance(one, Integral) for one in classes):
        known, why = {i: i for i in range(len(classes))}, "the places of the classes"
    else:
        known = {name: i for i, name in enumerate(classes)}
    places = [_place(one, known, i, item) for i, one in enumerate(array.tolist())]
    return Labels(torch.tensor(places), classes, "class", why)


def _place(label: Any, known: dict[Any, int], i: int, item: Callable[[int], str]) -> int:
    if label not in known:
        raise DataError(
            f"{item(i)} has the label {label!r}, which is not among the classes {shortlist(known, 10)}."
            f"{did_you_mean(str(label), map(str, known))} Add it to them, or leave the item out."
        )
    return known[label]


def _several(lists: list[list[Any]], classes: list[Any] | None, why: str, item: Callable[[int], str]) -> Labels:
    names = sorted({one for each in lists for one in each}, key=_order) if classes is None else classes
    if not names:
        raise DataError("No item has a label, so there is no class to learn; check the labels.")
    known = {name: i for i, name in enumerate(names)}
    targets = torch.zeros(len(lists), len(names))
    for i, each in enumerate(lists):
        for label in each:
            targets[i, _place(label, known, i, item)] = 1
    return Labels(targets, names, "classes", why)


def _order(value: Any) -> tuple[bool, Any]:
    return (False, value) if isinstance(value, Real) else (True, str(value))


def _one_hot(array: np.ndarray[Any, Any], classes: Iterable[Any] | None, why: str) -> Labels:
    names = list(range(array.shape[1]) if classes is None else classes)
    if len(names) != array.shape[1]:
        raise DataError(f"classes names {len(names)} classes, and the labels have {array.shape[1]} columns; name each.")
    return Labels(torch.from_numpy(array.astype(np.float32)), names, "classes", why)
