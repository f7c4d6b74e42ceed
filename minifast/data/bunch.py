"""DataBunch: the training, validation and test loaders of a Learner, with classes and default loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minifast.data.batch_fn import adapt
from minifast.data.checks import check_batch, check_devices, check_loader, check_loader_options
from minifast.data.creation import LoaderOptions, make_loaders
from minifast.data.description import description, one_line
from minifast.data.devices import as_device, default_device
from minifast.data.labels import Labels, check_class_names, check_is_list, count_classes, printable, target_text
from minifast.data.loaders import (
    BatchFn,
    BatchLoader,
    DeviceDataLoader,
    Target,
    Transform,
    to_device,
)
from minifast.data.normalize import Normalize, Stats, channel_stats, channel_view, check_channels, make_normalize
from minifast.data.parts import DatasetType, as_part, loader_of
from minifast.data.resume import preserve_loader
from minifast.data.showing import show_batch
from minifast.data.single import batch_of_one
from minifast.data.targets import default_loss
from minifast.data.transforms import Seeded
from minifast.errors import DataError, MinifastError
from minifast.losses import classes_of
from minifast.utils.checks import check_count
from minifast.utils.public import public_class, warn_caller
from minifast.utils.tensors import as_pair, map_tensors
from minifast.utils.text import Described


@public_class()
class DataBunch(Described):
    """Hold the training, validation and test loaders of a Learner on one device.

    Two torch DataLoaders are enough.

    Args:
        train_dl: training batches: any iterable with a length that yields ``(x, y)``; ``(x1, x2, y)``, whose last value
            is the targets; or dicts with ``labels`` or ``label``. Values of a tuple reach the model as arguments, those
            of a dict as keyword arguments.
        valid_dl: validation batches, or None.
        test_dl: batches to predict, or None. They may lack targets; the target of each sample is then 0.
        device: device for training; by default the GPU if there is one.
        dl_tfms: batch transforms, which take and return ``(x, y)`` on the device.
        path: folder for the learner's files.
        classes: names of the classes; by default the attribute ``classes`` of the training set, if it has one.
        loss_func: loss function; by default cross entropy for classes, binary cross entropy for rows of 0 and 1 as
            floats (multi-label), and mean squared error for other floats.
        target: the name of the targets in batches that are dicts, or several names, which give a tuple of targets. By
            default ``"labels"`` or ``"label"``.
        batch_fn: a function that takes a batch of the loader, on the device, and returns ``(inputs, targets)``, for
            batches of any other kind. There is then no default loss.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> dataset = TensorDataset(torch.randn(100, 10), torch.randint(2, (100,)))
    >>> data = DataBunch(DataLoader(dataset, 20, shuffle=True), DataLoader(dataset, 20), device="cpu")
    >>> len(data.train_dl), data.loss_func
    (5, CrossEntropyLoss())
    """

    files_in_path = True  # a learner writes its files into ``path``
    channels = 3  # of gray images, uint8
    left_out: Sequence[str] = ()  # the class folders that ``classes`` does not name
    labels: Labels | None = None  # how the labels were understood, if the bunch was made from labels
    sample_dimensions: Any = None  # of the inputs of a sample, where no training data tell them
    test_option = "create(..., test_ds=test_ds)"  # how to add a test part
    test_labelled = True  # False: the targets of the test part are placeholders

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
        target: Target = None,
        batch_fn: BatchFn | None = None,
    ) -> None:
        for name, dl in (("train_dl", train_dl), ("valid_dl", valid_dl), ("test_dl", test_dl)):
            if dl is not None or name == "train_dl":
                check_loader(name, dl)
        own = [dl.device for dl in (train_dl, valid_dl, test_dl) if isinstance(dl, BatchLoader)]
        self.device = as_device(device) if device is not None else own[0] if own else default_device()
        check_devices(self.device, own)
        parts = {"training": train_dl, "validation": valid_dl, "test": test_dl}
        self.train_dl, self.valid_dl, self.test_dl = (self._wrapped(dl, part) for part, dl in parts.items())
        if isinstance(self.test_dl, DeviceDataLoader):
            self.test_dl.may_lack_targets = True
        for tfm in dl_tfms or ():
            self.add_tfm(tfm)
        self.path = Path(path)
        check_is_list(classes)
        names = classes_of(self.train_ds, target) if classes is None else classes
        self.classes = None if names is None else list(map(printable, names))
        for loader in self.dls if target is not None or batch_fn is not None else ():
            loader.target, loader.batch_fn = target, batch_fn
        self.loss_is_default, self.loss_func = loss_func is None, loss_func
        if loss_func is None and batch_fn is None:
            check_class_names(classes, self.train_ds)
            self.loss_func = default_loss(self.train_dl, self.classes)
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
        target: Target = None,
        batch_fn: BatchFn | None = None,
        sampler: Any = None,
        epoch_length: int | None = None,
        val_length: int | None = None,
        classes: Sequence[Any] | None = None,
        **dl_kwargs: Any,
    ) -> DataBunch:
        """Create a bunch from torch data sets.

        Training samples are shuffled, and an incomplete last training batch is dropped.

        Args:
            train_ds: training set with indices, or an ``IterableDataset``, which decides its order itself.
            valid_ds: validation set, or None.
            test_ds: test set, or None.
            path: folder for the learner's files.
            bs: samples per training batch.
            val_bs: samples per validation and test batch; by default ``bs``.
            num_workers: worker processes per loader. Each has its own seeds for Python, NumPy and torch.
            dl_tfms: batch transforms, as for ``DataBunch``.
            device: device for training; by default the GPU if there is one.
            seed: seed of the order in each epoch and of the workers; by default both come from torch's generator.
            target: the name of the targets in batches that are dicts, as for ``DataBunch``.
            batch_fn: a function that returns the inputs and targets of a batch, as for ``DataBunch``.
            sampler: the order of the training samples, such as ``WeightedRandomSampler``; by default they are shuffled.
            epoch_length: training batches per epoch, for an ``IterableDataset`` without a length. An epoch continues
                where the last one ended; a data set that ends begins anew.
            val_length: validation batches, for an ``IterableDataset`` without a length; each time the first ones.
            classes: names of the classes, as for ``DataBunch``.
            dl_kwargs: further arguments for torch's DataLoader, such as ``collate_fn``.
        """
        check_loader_options(f"{cls.__name__}.create", dl_kwargs, cls.create)
        others = {"num_workers": num_workers, **dl_kwargs}
        options = LoaderOptions(bs, val_bs, seed, sampler, epoch_length, val_length, others)
        train_dl, valid_dl, test_dl = make_loaders(train_ds, valid_ds, test_ds, options)
        names: dict[str, Any] = {"classes": classes, "target": target, "batch_fn": batch_fn}
        return cls(train_dl, valid_dl, test_dl, device, dl_tfms, path, **names)

    def _wrapped(self, dl: Any, part: str) -> Any:
        loader = dl if isinstance(dl, BatchLoader | None) else DeviceDataLoader(dl, self.device)
        if isinstance(loader, DeviceDataLoader):
            loader.part = loader.part or part
        return loader

    def adapt(self, dl: Any) -> Any:
        """Return a loader of other data that prepares batches as the validation loader does.

        Batches are moved to the device, normalized, and transformed. Loaders of this bunch, and minifast's loaders with
        transforms, are returned unchanged.

        Args:
            dl: any iterable of batches ``(x, y)``.

        Raises:
            DataError: if it cannot be iterated.
        """
        return adapt(self, dl)

    @property
    def c(self) -> int | None:
        """Number of outputs that a model needs: one per class or per regression target; None if unknown.

        Without names of classes it is the training set's ``num_classes``, or its largest class number plus 1.
        """
        if self.classes is not None:
            return len(self.classes)
        return count_classes(self.train_ds) if self.labels is None else self.labels.c

    @property
    def train_ds(self) -> Any:
        """The training set, or None if the loader has no attribute ``dataset``."""
        return getattr(self.train_dl, "dataset", None)

    @property
    def valid_ds(self) -> Any:
        """The validation set, or None."""
        return getattr(self.valid_dl, "dataset", None)

    @property
    def test_ds(self) -> Any:
        """The test set, or None."""
        return getattr(self.test_dl, "dataset", None)

    @property
    def batch_size(self) -> Any:
        """Samples per training batch; setting it changes all loaders."""
        return getattr(self.train_dl, "batch_size", None)

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        for dl in self.dls:
            dl.batch_size = check_count("batch_size", value)

    @property
    def dls(self) -> list[Any]:
        """The loaders of the bunch, without those that are None."""
        return [dl for dl in (self.train_dl, self.valid_dl, self.test_dl) if dl is not None]

    def dl(self, ds_type: DatasetType | str = DatasetType.Valid) -> Any:
        """Return the loader of a part of the data, such as ``"valid"``.

        Raises:
            TypeError, ValueError: if ``ds_type`` is no part.
            DataError: if the bunch has no such part.
        """
        return loader_of(self, ds_type)

    def one_batch(
        self, ds_type: DatasetType | str = DatasetType.Train, detach: bool = True, denorm: bool = True, cpu: bool = True
    ) -> tuple[Any, Any]:
        """Return one batch ``(x, y)`` without changing the order of later batches.

        Args:
            ds_type: part of the data.
            detach: detach the tensors from their graph.
            denorm: undo the normalization of the inputs.
            cpu: move the tensors to the CPU.

        Raises:
            DataError: if the bunch has no such part, or the part has no batch.
        """
        name, loader = as_part(ds_type).name.lower(), self.dl(ds_type)
        with preserve_loader(loader):
            batch = next(iter(loader), None)
        if batch is None:
            raise DataError(f"The {name} part of the data has no batch. Give it at least one sample.")
        x, y = as_pair(batch, name)
        if denorm and self.norm is not None:
            x = self.norm.undo(x)
        if detach:
            x, y = map_tensors(Tensor.detach, (x, y))
        return to_device((x, y), torch.device("cpu")) if cpu else (x, y)

    def add_tfm(self, tfm: Transform) -> None:
        """Add a batch transform, which takes and returns ``(x, y)``, to all parts."""
        for dl in {id(dl): dl for dl in self.dls}.values():  # one loader may serve two parts
            dl.add_tfm(tfm)

    def _add_ds_tfms(self, tfms: tuple[list[Transform], list[Transform]], seed: int) -> None:
        """Add the training transforms and the validation transforms, each with its own generator."""
        train, valid = tfms
        for dl, part in zip(self.dls, (train, valid, valid), strict=False):
            if part:
                dl.add_tfm(Seeded(part, seed))

    def batch_stats(
        self, funcs: Sequence[Callable[..., Tensor]] | None = None, ds_type: DatasetType | str = DatasetType.Train
    ) -> list[Tensor]:
        """Return the mean and the standard deviation of each channel in one batch, as the model gets it.

        Args:
            funcs: statistics to compute instead, called with values ``(channels, n)`` and the dimension to reduce, 1.
            ds_type: part of the data.

        Returns:
            One tensor ``(channels,)`` per statistic, on the CPU.

        Raises:
            DataError: if the inputs are not floats ``(n, channels, ...)``.
        """
        x = check_channels(self.one_batch(ds_type, denorm=False)[0])
        return [func(channel_view(x), 1) for func in (funcs or (torch.mean, torch.std))]

    def sanity_check(self) -> None:
        """Check that the first batch of each part can be read and trained on.

        Raises:
            DataError: if a batch cannot be read, its inputs are not finite, or a target is not one of the classes.
        """
        for ds_type in DatasetType:
            name = ds_type.name.lower()
            if getattr(self, f"{name}_dl") is not None:
                check_batch(name, partial(self.one_batch, ds_type, denorm=False), self.classes)

    def normalize(self, stats: Stats | None = None) -> DataBunch:
        """Normalize the inputs of all parts: subtract the mean of each channel, divide by its standard deviation.

        Args:
            stats: ``(means, standard deviations)`` such as ``imagenet_stats``. By default those of the whole training
                set if it is in memory (arrays, a torch ``TensorDataset``, a list of batches), else of one batch. A
                channel with the standard deviation 0 is only centered.

        Returns:
            The bunch itself.

        Raises:
            MinifastError: if the data are normalized already.
            DataError: if the inputs are not finite floats ``(n, channels, ...)``, or ``stats`` does not fit them.
        """
        if self.norm is not None:
            raise MinifastError("The data are normalized already. Make a new DataBunch to use other statistics.")
        x, _ = self.one_batch()
        with preserve_loader(self.train_dl):
            values = channel_stats(self.train_dl.in_order() or [(x, None)]) if stats is None else stats
        self.norm = make_normalize(values, x, self.device)
        self.add_tfm(self.norm)
        return self

    def encode(self, item: Any) -> Any:
        """Return one sample as a batch of one, transformed as the model expects it.

        Args:
            item: a tensor, or several in a tuple, list or dict, as the data set returns it or as a batch of 1; or an
                object with a method ``to``, which the ``collate_fn`` takes.

        Raises:
            DataError: if the sample is not made of tensors, or is a batch of several samples.
        """
        x = batch_of_one(item, self.device, self.train_dl, self.channels, self.sample_dimensions)
        return (self.train_dl if self.valid_dl is None else self.valid_dl).transformed((x, None))[0]

    def show_batch(
        self,
        rows: int = 5,
        ds_type: DatasetType | str = DatasetType.Train,
        return_fig: bool = False,
        figsize: tuple[float, float] | None = None,
    ) -> Any:
        """Plot ``rows`` × ``rows`` images of one batch, titled with their targets.

        Args:
            rows: images per row and per column.
            ds_type: part of the data.
            return_fig: return the figure.
            figsize: width and height of the figure in inches.

        Raises:
            DataError: if the samples are not images.
        """
        return show_batch(self, rows, ds_type, return_fig, figsize)

    def to_images(self, x: Any) -> list[Any] | None:
        """Return a normalized batch ``(n, 1 or 3, height, width)`` as images for matplotlib.

        Returns:
            Arrays ``(height, width, 3)`` in [0, 1], or None if the batch does not hold images.
        """
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] not in (1, 3):
            return None
        x = x.detach().float() if self.norm is None else self.norm.undo(x.detach().float())
        return [image.permute(1, 2, 0).expand(-1, -1, 3).numpy() for image in x.clamp(0, 1).cpu()]

    def pictures(self, x: Any) -> list[Any] | None:
        """Return ``to_images(x)`` (deprecated name)."""
        warn_caller(
            "`DataBunch.pictures` is now `DataBunch.to_images`; the old name will be removed in version 0.3.",
            DeprecationWarning,
        )
        return self.to_images(x)

    def label_of(self, target: Any) -> str:
        """Return a target as text: its class, its classes if it is multi-label, or its numbers.

        >>> data = DataBunch([(torch.zeros(2, 3), torch.tensor([0, 1]))], device="cpu", classes=["cat", "dog"])
        >>> data.label_of(torch.tensor(1)), data.label_of(torch.tensor([1.0, 1.0])), data.label_of(torch.tensor(0.25))
        ('dog', 'cat, dog', '0.25')
        """
        return target_text(target, self.classes)

    __repr__ = one_line
    _description = description
