"""Labels of samples as the targets of a model: class indices, multi-label rows, or regression targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from minifast.errors import DataError
from minifast.utils.checks import check_once, counted, did_you_mean, shortlist, shown
from minifast.utils.text import real_name


class Labels(NamedTuple):
    """Targets and how the labels were understood.

    Attributes:
        targets: one target per sample.
        classes: names of the classes, or None for regression.
        kind: ``"class"`` for class indices, int64 ``(n,)``; ``"classes"`` for multi-label rows of 0 and 1, float32
            ``(n, classes)``; ``"number"`` for regression targets, float32 ``(n,)`` or ``(n, outputs)``.
        why: what the labels are, such as ``"names"``.
    """

    targets: Tensor
    classes: list[Any] | None
    kind: str
    why: str

    @property
    def c(self) -> int:
        """Number of outputs of a model for these targets."""
        if self.classes is not None:
            return len(self.classes)
        return 1 if self.targets.ndim == 1 else self.targets.shape[1]

    def __str__(self) -> str:
        floats = self.why if self.targets.is_complex() else "floats"
        what = {
            "class": f"one of {self.c} classes",
            "classes": f"any of {self.c} classes (multi-label)",
            "number": f"{self.c} {floats}" if self.c > 1 else f"a {floats[:-1]}",
        }
        return f"each target is {what[self.kind]}, because the labels are {self.why}"


def as_labels(
    values: Any,
    classes: Sequence[Any] | None = None,
    delim: str | None = None,
    name: Callable[[int], str] = "sample {}".format,
) -> Labels:
    """Return labels as targets; their type, shape and values decide the kind.

    Names, integers and bools are classes. Lists of names, texts with a ``delim``, and rows of 0 and 1 are multi-label.
    Floats are regression targets, one or several per sample; so are complex numbers, which have no default loss.

    Args:
        values: an array, a tensor, a column of a table, or a list.
        classes: the classes in order; by default those in ``values``, sorted. If the labels are integers and the
            classes are not, the labels are indices into ``classes``.
        delim: separator of the names in a text.
        name: function that names the sample at an index in error messages.

    Raises:
        DataError: if a label is missing, not finite, or not one of ``classes``, or the labels are of no such kind.

    >>> as_labels(["cat", "dog", "cat"]).targets, as_labels(["cat", "dog", "cat"]).classes
    (tensor([0, 1, 0]), ['cat', 'dog'])
    >>> print(as_labels([0.5, 1.5]))
    each target is a float, because the labels are floats
    >>> as_labels(["a b", "", "b"], delim=" ").targets.tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    """
    if classes is not None:
        classes = class_list(classes)
    array = as_array(values)
    if array.ndim not in (1, 2) or not len(array):
        raise DataError(f"Labels must have the shape (n,) or (n, columns) with n of at least 1, got {array.shape}.")
    if delim is not None:
        if not isinstance(delim, str) or not delim:
            raise TypeError(f"`label_delim` must be the separator of two names, such as ' ', got {delim!r}.")
        if array.ndim == 2:
            raise DataError("`label_delim` splits texts, but the labels are several columns. Leave `label_delim` out.")
        return _multi_label(
            [_split(text, delim) for text in array.tolist()], classes, f"texts split at {delim!r}", name
        )
    if array.dtype == object and all(isinstance(label, list) for label in array):
        lists = array.tolist()
        if any(isinstance(value, float) for labels in lists for value in labels):
            raise DataError("Lists of float labels must have the same length for each sample.")
        return _multi_label(lists, classes, "lists of names", name)
    _check_values(array, name)
    if array.dtype.kind in "fc":
        return _floats(array, classes)
    if array.ndim == 2 and array.shape[1] > 1:
        if array.dtype.kind not in "biu" or not np.isin(array, (0, 1)).all():
            raise DataError(
                f"Labels in several columns must be floats (regression) or 0s and 1s (multi-label), got "
                f"{array.shape[1]} columns of {_kind_name(array)}."
            )
        return _multi_hot(array, classes, "rows of 0 and 1")
    return _class_indices(array.reshape(-1), classes, name)


def class_list(classes: Any, argument: str = "classes") -> list[Any]:
    """Return the names of classes as a list.

    Raises:
        TypeError: they are a text, whose letters would be the names, a dict or no list.
        DataError: a name occurs twice.
    """
    check_is_list(classes, argument)
    names = list(classes)
    check_once(f"{argument} names", names, "name each class once")
    return names


def check_is_list(classes: Any, argument: str = "classes") -> None:
    """Raise a TypeError unless the names of classes are a list; of a text, the letters would be the names."""
    if isinstance(classes, (str, bytes)):
        raise TypeError(
            f"`{argument}` must be a list of names, got the text {shown(classes)}; give [{shown(classes)}]."
        )
    if isinstance(classes, Mapping) or not (classes is None or isinstance(classes, Iterable)):
        raise TypeError(f"`{argument}` must be a list of names in the order of their numbers, got {shown(classes)}.")


def as_array(values: Any) -> np.ndarray[Any, Any]:
    """Return a column, an array, a tensor or a list as an array; mixed types and ragged lists give an object array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype in (torch.float16, torch.bfloat16) else values)
    if hasattr(values, "to_numpy"):
        values = np.asarray(values.to_numpy())
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values
    labels = list(map(_to_python, values))
    lists = [label for label in labels if isinstance(label, list)]
    if lists and len(lists) == len(labels) and len(set(map(len, lists))) == 1:
        flat = [value for row in lists for value in row]
        numbers = flat and all(isinstance(value, Real) for value in flat)
        if numbers and (any(isinstance(value, float) for value in flat) or set(flat) <= {0, 1}):
            return np.array(labels)
    texts = sum(isinstance(label, str) for label in labels)
    if not lists and texts in (0, len(labels)):
        return np.array(labels)
    array = np.empty(len(labels), object)
    array[:] = labels
    return array


def _to_python(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else getattr(value, "tolist", lambda: value)()


def _is_missing(value: Any) -> bool:
    return value is None or bool(isinstance(value, Real) and value != value)


def _split(value: Any, delim: str) -> list[str]:
    return [] if _is_missing(value) else [part.strip() for part in str(value).split(delim) if part.strip()]


def _kind_name(array: np.ndarray[Any, Any]) -> str:
    return {"b": "bools", "i": "integers", "u": "integers"}.get(array.dtype.kind, "names")


def _check_values(array: np.ndarray[Any, Any], name: Callable[[int], str]) -> None:
    if array.dtype == object:
        missing = [i for i, label in enumerate(array.tolist()) if _is_missing(label)]
    else:
        valid = np.isfinite(array) if array.dtype.kind in "fc" else array != ""
        missing = np.flatnonzero(~valid.reshape(len(array), -1).all(1)).tolist()
    if missing:
        label, more = _to_python(array[missing[0]]), len(missing) - 1
        raise DataError(
            f"{name(missing[0])} has no valid label ({label!r}){f', nor have {more} more' if more else ''}. Give each "
            f"sample a label, or leave these samples out."
        )
    if array.dtype.kind not in "biufcUT":
        example = _to_python(array.flat[0])
        raise DataError(
            f"Labels must all be names, all integers, all floats, or all lists of names; the first of these is "
            f"{example!r}, and others differ from it or it is none of these."
        )


def _floats(array: np.ndarray[Any, Any], classes: Sequence[Any] | None) -> Labels:
    is_complex = array.dtype.kind == "c"
    if not is_complex and array.ndim == 2 and array.shape[1] > 1 and np.isin(array, (0, 1)).all():
        return _multi_hot(array, classes, "rows of 0 and 1")
    if classes is not None:
        raise DataError(
            "Float labels are regression targets and have no classes. Leave `classes` out, or give the labels as "
            "integers or names."
        )
    why, dtype = ("complex numbers", np.complex64) if is_complex else ("floats", np.float32)
    return Labels(torch.from_numpy(array.astype(dtype)), None, "number", why)


def _class_indices(array: np.ndarray[Any, Any], classes: list[Any] | None, name: Callable[[int], str]) -> Labels:
    why = _kind_name(array)
    if classes is None:
        values, indices = np.unique(array, return_inverse=True)
        return Labels(torch.from_numpy(indices.astype(np.int64)), values.tolist(), "class", why)
    if array.dtype.kind in "biu" and not any(isinstance(label, Integral) for label in classes):
        if array.dtype.kind == "b" and len(classes) < 2:
            raise DataError(
                f"Bools are 2 classes, but `classes` has {counted(len(classes), 'name')} ({shortlist(classes)}). Name "
                f"both, that of False first, or leave `classes` out."
            )
        outside = np.flatnonzero((array < 0) | (array >= len(classes)))
        if len(outside):
            numbers = counted(len(np.unique(array)), "class number")
            raise DataError(
                f"{name(outside[0])} has the label {array[outside[0]]}, but `classes` has "
                f"{counted(len(classes), 'name')} ({shortlist(classes)}), and the labels have {numbers}, from "
                f"{array.min()} to {array.max()}. Name all classes in the order of their numbers from 0, or leave "
                f"`classes` out."
            )
        known, why = {i: i for i in range(len(classes))}, "indices of the classes"
    else:
        known = {label: i for i, label in enumerate(classes)}
    targets = torch.tensor([_index(label, known, i, name) for i, label in enumerate(array.tolist())])
    return Labels(targets, classes, "class", why)


def _index(label: Any, known: dict[Any, int], i: int, name: Callable[[int], str]) -> int:
    if label not in known:
        raise DataError(
            f"{name(i)} has the label {label!r}, which is not one of the classes {shortlist(known, 10)}."
            f"{did_you_mean(str(label), map(str, known))} Add it to `classes`, or leave the sample out."
        )
    return known[label]


def _multi_label(lists: list[list[Any]], classes: list[Any] | None, why: str, name: Callable[[int], str]) -> Labels:
    names = sorted({label for labels in lists for label in labels}, key=_sort_key) if classes is None else classes
    if not names:
        raise DataError("No sample has a label, so there are no classes. Check the labels.")
    known = {label: i for i, label in enumerate(names)}
    targets = torch.zeros(len(lists), len(names))
    for i, labels in enumerate(lists):
        for label in labels:
            targets[i, _index(label, known, i, name)] = 1
    return Labels(targets, names, "classes", why)


def _sort_key(value: Any) -> tuple[bool, Any]:
    return (False, value) if isinstance(value, Real) else (True, str(value))


def _multi_hot(array: np.ndarray[Any, Any], classes: Iterable[Any] | None, why: str) -> Labels:
    names = list(range(array.shape[1]) if classes is None else classes)
    if len(names) != array.shape[1]:
        raise DataError(
            f"`classes` must name each column of the labels, got {len(names)} names for {array.shape[1]} columns."
        )
    return Labels(torch.from_numpy(array.astype(np.float32)), names, "classes", why)


def count_classes(dataset: Any) -> int | None:
    """Return the number of classes that a data set without names says: by ``num_classes``, ``targets`` or ``labels``.

    >>> from types import SimpleNamespace
    >>> count_classes(SimpleNamespace(num_classes=3)), count_classes(SimpleNamespace(targets=[0, 4, 1]))
    (3, 5)
    """
    names = ("num_classes", "targets", "labels")
    while dataset is not None and not any(hasattr(dataset, name) for name in names):
        dataset = getattr(dataset, "dataset", None)  # of a Subset
    n = getattr(dataset, "num_classes", None)
    if isinstance(n, int):
        return n
    targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if not isinstance(targets, (list, tuple, np.ndarray, Tensor)) or not len(targets):
        return None
    try:
        array = np.asarray(targets)
    except (TypeError, ValueError, RuntimeError):  # of unequal lengths, or on a GPU
        return None
    is_numbers = array.dtype.kind in "iu" and array.ndim == 1 and array.min() >= 0
    return int(array.max()) + 1 if is_numbers else None


def check_class_names(classes: Sequence[Any] | None, dataset: Any) -> None:
    """Raise a DataError if a data set in memory has class numbers that ``classes`` does not name.

    Only the targets of a TensorDataset, or of a Subset of one, are looked at: other data sets may change theirs.
    """
    if classes is None:
        return
    rows: Any = slice(None)
    if isinstance(dataset, Subset):
        dataset, rows = dataset.dataset, list(dataset.indices)
    targets = dataset.tensors[-1] if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1 else None
    if targets is None or targets.ndim != 1 or targets.is_floating_point() or not len(targets[rows]):
        return
    largest = int(targets[rows].max())
    if largest >= len(classes):
        raise too_few_names(largest, len(classes), classes)


def too_few_names(largest: int, n: int, classes: Sequence[Any]) -> DataError:
    """Return the error for a class number that none of ``n`` class names belongs to."""
    return DataError(
        f"The targets go up to {largest}, but `classes` has {counted(n, 'name')} ({shortlist(classes)}); name all "
        f"classes in `classes`, in the order of their numbers from 0, or leave it out."
    )


def printable(label: Any) -> Any:
    r"""Return a label that can be printed, as ``real_name``; bytes of a file name that are not UTF-8 are escaped.

    >>> printable("caf\udcc3\udca9"), printable("caf\udce9"), printable(3)
    ('café', 'caf\\udce9', 3)
    """
    return real_name(label).encode("utf-8", "backslashreplace").decode() if isinstance(label, str) else label


def target_text(target: Any, classes: Sequence[Any] | None) -> str:
    """Return a target as text: its class, its classes if it is multi-label, or its numbers."""
    target = torch.as_tensor(target)
    if classes is not None and target.shape == (len(classes),):
        return ", ".join(str(name) for name, present in zip(classes, target > 0.5, strict=True) if present)
    if classes is not None and target.ndim == 0 and not target.is_floating_point():
        index = int(target)
        return str(classes[index]) if 0 <= index < len(classes) else "ignored" if index < 0 else str(index)
    if classes is not None and target.ndim > 1 and not target.is_floating_point():  # a mask
        present = [index for index in target.unique().tolist() if 0 <= index < len(classes)]
        return ", ".join(str(classes[index]) for index in present)
    return ", ".join(f"{number:.3g}" for number in target.flatten().tolist())
