"""The data of a learner: training, validation and test batches, and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minifast import plotting
from minifast.data.labels import Labels
from minifast.data.loaders import BatchLoader, DeviceDataLoader, Transform, batch_of_one, default_device, to_device
from minifast.data.normalize import Normalize, Stats, channel_view, normaliser
from minifast.data.order import EpochOrder
from minifast.data.resume import preserve_loader
from minifast.data.transforms import Seeded
from minifast.errors import DataError, MinifastError
from minifast.losses import classes_of, loss_for
from minifast.utils.checks import check_count
from minifast.utils.tensors import map_tensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DatasetType(Enum):
    """Which part of the data is meant."""

    Train = 1
    Valid = 2
    Test = 3


class DataBunch:
    """Training, validation and test batches on one device; a pair of torch DataLoaders is enough.

    Args:
        train_dl: the training batches: anything with a length that yields ``(x, y)``.
        valid_dl: the validation batches, or None.
        test_dl: batches to predict on, with targets or without (then 0 stands for each), or None.
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

    labels: Labels | None = None  # what they were made from, where they came as labels
    test_labelled = True  # whether the targets of the test part say anything

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
        loaders: list[Any] = [
            dl if dl is None or isinstance(dl, BatchLoader) else DeviceDataLoader(dl, self.device)
            for dl in (train_dl, valid_dl, test_dl)
        ]
        self.train_dl, self.valid_dl, self.test_dl = loaders
        if isinstance(self.test_dl, DeviceDataLoader):
            self.test_dl.may_lack_targets = True
        for tfm in dl_tfms or ():
            self.add_tfm(tfm)
        self.path = Path(path)
        self.classes = list(classes) if classes is not None else classes_of(self.train_ds)
        self.loss_func = loss_func if loss_func is not None else loss_for(self.train_ds, self.classes)
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
        seed: int | None = None,
        **dl_kwargs: Any,
    ) -> DataBunch:
        """Make a bunch from torch data sets; training items are shuffled, and the last batch dropped if not full.

        Args:
            train_ds, valid_ds, test_ds: the data sets, which have a length and items ``(x, y)``.
            path: where the learner's files go.
            bs, val_bs: items a batch in training, and otherwise.
            num_workers: processes that read items. Each has seeds of its own, for Python, NumPy and torch.
            dl_tfms, device: as for ``DataBunch``.
            seed: makes the order of an epoch, and the workers' seeds, a function of it and of the epoch; by default
                they come from torch's generator.
            dl_kwargs: for torch's DataLoaders, such as ``collate_fn``.
        """
        check_count("bs", bs)
        val_bs = bs if val_bs is None else check_count("val_bs", val_bs)
        common = {"num_workers": num_workers, **dl_kwargs}
        order: dict[str, Any] = {"shuffle": True}
        if seed is not None:
            order = {"sampler": EpochOrder(len(train_ds), check_count("seed", seed, least=0))}
            common["generator"] = torch.Generator().manual_seed(seed)
        train_dl: Any = DataLoader(train_ds, bs, drop_last=len(train_ds) >= bs, **order, **common)
        valid_dl, test_dl = (None if ds is None else DataLoader(ds, val_bs, **common) for ds in (valid_ds, test_ds))
        return cls(train_dl, valid_dl, test_dl, device, dl_tfms, path)

    @property
    def c(self) -> int | None:
        """How many outputs a model needs: one a class, or a number; None where the data do not say."""
        if self.classes is not None:
            return len(self.classes)
        return None if self.labels is None else self.labels.c

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
        """The number of items in a training batch; where it is set, in those of all parts."""
        return getattr(self.train_dl, "batch_size", None)

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        for dl in self.dls:
            dl.batch_size = check_count("batch_size", value)

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
        with preserve_loader(loader):
            batch = next(iter(loader), None)
        if batch is None:
            raise DataError(f"The {ds_type.name.lower()} part of these data has no batch; give it at least one item.")
        x, y = batch
        if denorm and self.norm is not None:
            x = self.norm.undo(x)
        if detach:
            x, y = map_tensors(Tensor.detach, (x, y))
        return to_device((x, y), torch.device("cpu")) if cpu else (x, y)

    def add_tfm(self, tfm: Transform) -> None:
        """Add a function of a batch ``(x, y)`` that returns both, to all parts."""
        for dl in {id(dl): dl for dl in self.dls}.values():  # one loader may serve two parts
            dl.add_tfm(tfm)

    def _add_ds_tfms(self, tfms: tuple[list[Transform], list[Transform]], seed: int) -> None:
        """Add transforms of training, and those of the other parts; they draw from generators of their own."""
        train, valid = tfms
        for dl, own in zip(self.dls, (train, valid, valid), strict=False):
            if own:
                dl.add_tfm(Seeded(own, seed))

    def batch_stats(
        self, funcs: Sequence[Callable[..., Tensor]] | None = None, ds_type: DatasetType = DatasetType.Train
    ) -> list[Tensor]:
        """Return the mean and the standard deviation of each channel of one batch, as the model gets it, on the CPU.

        Args:
            funcs: other functions of values ``(channels, values)`` and the dimension to reduce, 1.
            ds_type: which part.

        Raises:
            DataError: the inputs are not floats ``(n, channels, ...)``.
        """
        x, _ = self.one_batch(ds_type, denorm=False)
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point():
            what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise DataError(f"The inputs are {what}; a mean and a deviation are for floats (n, channels, ...).")
        return [func(channel_view(x), 1) for func in (funcs or (torch.mean, torch.std))]

    def sanity_check(self) -> None:
        """Read a batch of each part, and refuse one that cannot be read or trained on.

        Raises:
            DataError: a batch cannot be made, its inputs are not finite, or a target is none of the classes.
        """
        for ds_type in DatasetType:
            name = ds_type.name.lower()
            if getattr(self, f"{name}_dl") is None:
                continue
            try:
                x, y = self.one_batch(ds_type, denorm=False)
            except Exception as error:
                raise DataError(
                    f"The {name} part gives no batch: {error} Look at its items, one by one, and at their shapes."
                ) from error
            if isinstance(x, Tensor) and not x.isfinite().all():
                raise DataError(f"The first batch of the {name} part has inputs that are NaN or infinite; mend them.")
            of_class = self.classes is not None and isinstance(y, Tensor) and y.dtype is torch.int64 and y.ndim == 1
            if of_class and not (int(y.min()) >= 0 and int(y.max()) < len(self.classes or ())):
                raise DataError(
                    f"The first batch of the {name} part has targets from {int(y.min())} to {int(y.max())}, and there "
                    f"are {self.c} classes, 0 to {(self.c or 0) - 1}; number them so."
                )

    def normalize(self, stats: Stats | None = None) -> DataBunch:
        """Subtract the mean and divide by the standard deviation of each channel, in all parts; return the bunch.

        Args:
            stats: (means, standard deviations), such as ``imagenet_stats``; by default those of one training batch.

        Raises:
            MinifastError: the data are normalised already.
        """
        if self.norm is not None:
            raise MinifastError("These data are normalised already; make a new DataBunch to normalise otherwise.")
        x, _ = self.one_batch()
        found = self.batch_stats() if stats is None else stats
        self.norm = normaliser(found, x, self.device)
        self.add_tfm(self.norm)
        return self

    def encode(self, item: Any) -> Any:
        """Return one item, a tensor or several in a tuple, list or dict, as the batch of one that the model takes.

        Raises:
            DataError: it holds no tensor with a dimension.
        """
        x = batch_of_one(item, self.device)
        return (self.valid_dl or self.train_dl).transformed((x, None))[0]

    def show_batch(
        self,
        rows: int = 5,
        ds_type: DatasetType = DatasetType.Train,
        return_fig: bool = False,
        figsize: tuple[float, float] | None = None,
    ) -> Any:
        """Draw ``rows`` × ``rows`` pictures of one batch with their classes, or what else their targets are.

        Raises:
            DataError: the items are no pictures.
        """
        n = check_count("rows", rows) ** 2
        x, y = self.one_batch(ds_type, denorm=False, cpu=False)
        pictures = self.pictures(x[:n] if isinstance(x, Tensor) else x)
        if pictures is None:
            raise DataError("These items are no pictures (n, 1 or 3, height, width), so there is nothing to draw.")
        hidden = ds_type is DatasetType.Test and not self.test_labelled
        titles = ["" if hidden else self.label_of(target) for target in y[:n]]
        figure: Figure = plotting.plot_images(pictures, titles, figsize)
        return plotting.finish(figure.axes, return_fig)

    def pictures(self, x: Any) -> list[Any] | None:
        """Return a batch as the model takes it as pictures to draw, arrays ``(height, width, 3)`` in [0, 1].

        None if it has none: pictures are ``(n, 1 or 3, height, width)``.
        """
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] not in (1, 3):
            return None
        x = x.detach().float() if self.norm is None else self.norm.undo(x.detach().float())
        return [picture.permute(1, 2, 0).expand(-1, -1, 3).numpy() for picture in x.clamp(0, 1).cpu()]

    def label_of(self, target: Any) -> str:
        """Return a target in words: its class, the classes of a row of ones and zeros, or its numbers.

        >>> data = DataBunch([(torch.zeros(2, 3), torch.tensor([0, 1]))], device="cpu", classes=["cat", "dog"])
        >>> data.label_of(torch.tensor(1)), data.label_of(torch.tensor([1.0, 1.0])), data.label_of(torch.tensor(0.25))
        ('dog', 'cat, dog', '0.25')
        """
        target = torch.as_tensor(target)
        if self.classes is not None and target.shape == (len(self.classes),):
            return ", ".join(str(name) for name, there in zip(self.classes, target > 0.5, strict=True) if there)
        if self.classes is not None and target.ndim == 0 and not target.is_floating_point():
            return str(self.classes[int(target)])
        return ", ".join(f"{number:.3g}" for number in target.flatten().tolist())

    def __repr__(self) -> str:
        parts = [("train", self.train_dl), ("valid", self.valid_dl), ("test", self.test_dl)]
        counts = ", ".join(f"{name}: {len(dl)} batches" for name, dl in parts if dl is not None)
        about = "" if self.labels is None else f"{self.labels}; "
        about += f"classes: {self.classes}; device: {self.device}; path: {self.path}"
        return f"{type(self).__name__}({counts}; {about})"


def _has_length(dl: Any) -> bool:
    try:
        len(dl)
    except TypeError:  # also from a torch DataLoader, which has a length if its data set has one
        return False
    return True
