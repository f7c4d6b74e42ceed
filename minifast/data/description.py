"""What a DataBunch holds, as a line and as a table."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import DataLoader

from minifast.data.loaders import BatchLoader
from minifast.utils.checks import counted, shortlist
from minifast.utils.text import shape_text

if TYPE_CHECKING:
    from minifast.data.bunch import DataBunch

MOST_CLASSES = 10  # whose names are shown


def sizes(loader: Any) -> list[str]:
    """Return how many samples and batches a loader has, as far as it tells."""
    found = []
    dataset: Any = getattr(loader, "dataset", None)
    for of, name, several in ((dataset, "sample", "samples"), (loader, "batch", "batches")):
        with suppress(TypeError):  # a stream has no length
            found.append(counted(len(of), name, several))
    return found


def one_line(data: DataBunch) -> str:
    """Return the sizes of the parts, the classes, the device and the path.

    >>> from minifast.data import DataBunch
    >>> import torch
    >>> DataBunch([(torch.zeros(4, 2), torch.zeros(4, 1))], device="cpu")
    DataBunch(training: 1 batch; device: cpu; path: .)
    """
    parts = {"training": data.train_dl, "validation": data.valid_dl, "test": data.test_dl}
    about = [f"{name}: {' in '.join(sizes(dl))}" for name, dl in parts.items() if dl is not None]
    about += [] if data.labels is None else [str(data.labels)]
    about += [] if data.classes is None else [f"classes: {data.classes}"]
    return f"{type(data).__name__}({'; '.join([*about, f'device: {data.device}', f'path: {data.path}'])})"


def description(data: DataBunch) -> list[tuple[str, str]]:
    """Return the sizes of the parts, what a sample is as the model gets it, the classes, and where data are.

    For that, one training batch is read, where that does not change the order of the data.
    """
    rows = []
    for name, dl in (("training", data.train_dl), ("validation", data.valid_dl), ("test", data.test_dl)):
        size = getattr(dl, "batch_size", None)
        if dl is not None:
            rows.append((name, " in ".join(sizes(dl)) + (f" of {size}" if isinstance(size, int) else "")))
    x, y = first_batch(data)
    shapes = shapes_of(x), shapes_of(y) if data.labels is None else str(data.labels).removeprefix("each target is ")
    rows += [(name, shown) for name, shown in zip(("input", "target"), shapes, strict=True) if shown]
    if data.classes is not None:
        rows.append(("classes", f"{len(data.classes)}: {shortlist(data.classes, MOST_CLASSES)}"))
    if data.loss_func is not None:
        rows.append(("loss", str(data.loss_func)))
    return [*rows, ("device", str(data.device)), ("path", str(data.path))]


def first_batch(data: DataBunch) -> tuple[Any, Any]:
    """Return a training batch, or a pair of None if reading it fails, or would use up an iterator."""
    source = getattr(data.train_dl, "dl", data.train_dl)
    if not isinstance(source, (BatchLoader, DataLoader, list, tuple)):
        return None, None
    try:
        return data.one_batch(denorm=False)
    except Exception:  # the first batch of a fit raises the error
        return None, None


def shapes_of(value: Any) -> str:
    """Return shape and type of each tensor of a batch, without the dimension of the batch; "" if there is none.

    >>> import torch
    >>> shapes_of(torch.zeros(8, 3, 28, 28)), shapes_of((torch.zeros(8), torch.arange(8))), shapes_of(None)
    ('3 x 28 x 28 float32', '1 float32, 1 int64', '')
    """
    if isinstance(value, dict):
        return ", ".join(f"{name}: {shown}" for name, part in value.items() if (shown := shapes_of(part)))
    if isinstance(value, (tuple, list)):
        return ", ".join(filter(None, map(shapes_of, value)))
    if not isinstance(value, Tensor):
        return ""
    return f"{shape_text(value.shape[1:] or (1,))} {str(value.dtype).removeprefix('torch.')}"
