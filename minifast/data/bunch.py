"""The data of a learner: training, validation and test batches, and what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from minifast import plots
from minifast.data.loader import (
    BatchLoader,
    DeviceDataLoader,
    Normalize,
    Transform,
    as_pictures,
    default_device,
    go_to,
    is_picture,
    position_of,
)
from minifast.errors import DataError, MinifastError, check_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stats = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel
imagenet_stats: Stats = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class DatasetType(Enum):
    """Which part of the data is meant."""

    Train = 1
    Valid = 2
    Test = 3


class MSELossFlat(nn.MSELoss):
    """The mean squared error of outputs and targets laid flat, so that (n, 1) and (n,) fit each other."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the error."""
        return super().forward(input.flatten(), target.flatten())


class DataBunch:
    """Training, validation and test batches on one device; a pair of torch DataLoaders is enough.

    Args:
        train_dl: the training batches: anything with a length that yields ``(x, y)``.
        valid_dl: the validation batches, or None.
        test_dl: batches to predict on, or None.
        device: where training happens; by default the GPU if there is one.
        dl_tfms: functions of a batch ``(x, y)`` that return both, applied on the device.
        path: where the learner's files go.
        classes: the names of the classes; by default the data set's own, where it has them.
        loss_func: by default cross entropy for classes and mean squared error for real targets.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> items = TensorDataset(torch.randn(100, 10), torch.randint(2, (100,)))
    >>> data = DataBunch(DataLoader(items, 20, shuffle=True), DataLoader(items, 20), device="cpu")
    >>> len(data.train_dl), data.loss_func
    (5, CrossEntropyLoss())
    """

    def __init__(
        self,
        train_dl: Any,
        valid_dl: Any = None,
        test_dl: Any = None,
        device: torch.device | str | None = None,
        dl_tfms: Sequence[Transform] | None = None,
        path: str | Path = ".",
        classes: Sequence[Any] | None = None,
        loss_func: Any = None,
    ) -> None:
        for name, dl in (("train_dl", train_dl), ("valid_dl", valid_dl), ("test_dl", test_dl)):
            if dl is None and name != "train_dl":
                continue
            if not hasattr(dl, "__iter__") or not _has_length(dl):
                raise DataError(
                    f"{name} is a {type(dl).__name__}; it must have a length and yield batches (x, y): "
                    f"a torch DataLoader of a data set with a length, or a list of batches."
                )
        self.device = torch.device(device) if device is not None else default_device()
        self.train_dl: Any
        self.valid_dl: Any
        self.test_dl: Any
        self.train_dl, self.valid_dl, self.test_dl = (
            dl if dl is None or isinstance(dl, BatchLoader) else DeviceDataLoader(dl, self.device)
            for dl in (train_dl, valid_dl, test_dl)
        )
        for tfm in dl_tfms or ():
            self.add_tfm(tfm)
        self.path = Path(path)
        self.classes = list(classes) if classes is not None else _classes_of(self.train_ds)
        self.loss_func = loss_func if loss_func is not None else _loss_for(self.train_ds, self.classes)
        self.norm: Normalize | None = None

    @classmethod
    def create(
        cls,
        train_ds: Any,
        valid_ds: Any = None,
        test_ds: Any = None,
        path: str | Path = ".",
        bs: int = 64,
        val_bs: int | None = None,
        num_workers: int = 0,
        dl_tfms: Sequence[Transform] | None = None,
        device: torch.device | str | None = None,
        **dl_kwargs: Any,
    ) -> DataBunch:
        """Make a bunch from torch data sets; training items are shuffled, and the last batch dropped if not full."""
        check_count("bs", bs)
        val_bs = bs if val_bs is None else check_count("val_bs", val_bs)
        common = {"num_workers": num_workers, **dl_kwargs}
        train_dl: Any = DataLoader(train_ds, bs, shuffle=True, drop_last=len(train_ds) >= bs, **common)
        valid_dl, test_dl = (None if ds is None else DataLoader(ds, val_bs, **common) for ds in (valid_ds, test_ds))
        return cls(train_dl, valid_dl, test_dl, device, dl_tfms, path)

    @property
    def c(self) -> int | None:
        """The number of classes, or None where the data have none."""
        return None if self.classes is None else len(self.classes)

    @property
    def train_ds(self) -> Any:
        """The training items, or None where the loader does not say."""
        return getattr(self.train_dl, "dataset", None)

    @property
    def valid_ds(self) -> Any:
        """The validation items, or None."""
        return getattr(self.valid_dl, "dataset", None)

    @property
    def test_ds(self) -> Any:
        """The test items, or None."""
        return getattr(self.test_dl, "dataset", None)

    @property
    def batch_size(self) -> Any:
        """The number of items in a training batch."""
        return getattr(self.train_dl, "batch_size", None)

    @property
    def dls(self) -> list[Any]:
        """The loaders that there are."""
        return [dl for dl in (self.train_dl, self.valid_dl, self.test_dl) if dl is not None]

    def dl(self, ds_type: DatasetType = DatasetType.Valid) -> Any:
        """Return the loader of a part of the data.

        Raises:
            DataError: there is no such part.
        """
        loader = {"Train": self.train_dl, "Valid": self.valid_dl, "Test": self.test_dl}[ds_type.name]
        if loader is None:
            raise DataError(f"These data have no {ds_type.name.lower()} part; give the DataBunch one.")
        return loader

    def one_batch(
        self, ds_type: DatasetType = DatasetType.Train, detach: bool = True, denorm: bool = True, cpu: bool = True
    ) -> tuple[Any, Any]:
        """Return a batch ``(x, y)``, by default on the CPU and with normalisation undone; the order stays as it was.

        Raises:
            DataError: there is no such part, or it has no batch.
        """
        loader = self.dl(ds_type)
        position = position_of(loader)
        try:
            with torch.random.fork_rng(devices=[]):
                batch = next(iter(loader), None)
        finally:
            go_to(loader, position)
        if batch is None:
            raise DataError(f"The {ds_type.name.lower()} part of these data has no batch; give it at least one item.")
        x, y = batch
        if denorm and self.norm is not None:
            x = self.norm.undo(x)
        if detach and isinstance(x, Tensor):
            x, y = x.detach(), y.detach()
        return (x.cpu(), y.cpu()) if cpu and isinstance(x, Tensor) else (x, y)

    def add_tfm(self, tfm: Transform) -> None:
        """Add a function of a batch ``(x, y)`` that returns both, to all parts."""
        for dl in {id(dl): dl for dl in self.dls}.values():  # one loader may serve two parts
            dl.add_tfm(tfm)

    def normalize(self, stats: Stats | None = None) -> DataBunch:
        """Subtract the mean and divide by the standard deviation of each channel, in all parts; return the bunch.

        Args:
            stats: (means, standard deviations), such as ``imagenet_stats``; by default those of one training batch.

        Raises:
            MinifastError: the data are normalised already.
        """
        if self.norm is not None:
            raise MinifastError("These data are normalised already; make a new DataBunch to normalise otherwise.")
        x, _ = self.one_batch(cpu=False)
        if stats is None:
            dims = [d for d in range(x.ndim) if d != 1]
            mean, std = x.mean(dims), x.std(dims)
        else:
            mean, std = (torch.as_tensor(part, dtype=torch.float32, device=self.device) for part in stats)
        if any(part.ndim > 1 or part.numel() not in (1, x.shape[1]) for part in (mean, std)):
            raise DataError(
                f"stats holds {mean.numel()} means and {std.numel()} standard deviations, but the data have "
                f"{x.shape[1]} channels; give one of each for every channel."
            )
        shape = (1, -1, *[1] * (x.ndim - 2))
        self.norm = Normalize(mean.view(shape), std.view(shape))
        self.add_tfm(self.norm)
        return self

    def encode(self, item: Any) -> Tensor:
        """Return one item as the batch of one that the model takes."""
        x = torch.as_tensor(item)[None].to(self.device)
        if is_picture(x):
            x = as_pictures(x)
        transformed: Tensor = (self.valid_dl or self.train_dl).transformed((x, None))[0]
        return transformed

    def show_batch(self, rows: int = 5, ds_type: DatasetType = DatasetType.Train, return_fig: bool = False) -> Any:
        """Draw ``rows`` × ``rows`` pictures of one batch with their classes.

        Raises:
            DataError: the items are no pictures.
        """
        x, y = self.one_batch(ds_type)
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] not in (1, 3):
            raise DataError("These items are no pictures (n, 1 or 3, height, width), so there is nothing to draw.")
        n = min(check_count("rows", rows) ** 2, len(x))
        pictures = [picture.clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).numpy() for picture in x[:n]]
        titles = [str(self.classes[int(i)]) if self.classes is not None else f"{i:.3g}" for i in y[:n]]
        figure: Figure = plots.plot_images(pictures, titles)
        return plots.finish(figure.axes, return_fig)

    def __repr__(self) -> str:
        parts = [("train", self.train_dl), ("valid", self.valid_dl), ("test", self.test_dl)]
        counts = ", ".join(f"{name}: {len(dl)} batches" for name, dl in parts if dl is not None)
        return f"{type(self).__name__}({counts}; classes: {self.classes}; device: {self.device}; path: {self.path})"


def _has_length(dl: Any) -> bool:
    try:
        len(dl)
    except TypeError:  # also from a torch DataLoader, which has a length if its data set has one
        return False
    return True


def _classes_of(dataset: Any) -> list[Any] | None:
    while dataset is not None and not hasattr(dataset, "classes"):
        dataset = getattr(dataset, "dataset", None)  # a Subset's whole
    classes = getattr(dataset, "classes", None)
    return None if classes is None else list(classes)


def _loss_for(dataset: Any, classes: Any) -> nn.Module | None:
    if classes is not None:
        return nn.CrossEntropyLoss()
    try:
        target = torch.as_tensor(dataset[0][1])
    except (TypeError, IndexError, KeyError, ValueError, RuntimeError):
        return None
    if target.is_floating_point():
        return MSELossFlat()
    return nn.CrossEntropyLoss() if target.ndim == 0 else None
