"""Pictures in folders as the data of a learner."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from minifast.data.bunch import DataBunch
from minifast.data.images.decoding import BUDGET, ImageFiles, Size, check_size, list_images, read_image
from minifast.data.images.sources import Parts, existing, labelled, loaders_of, split, stat_files
from minifast.data.labels import Labels, as_labels
from minifast.data.order import draw_seed
from minifast.data.tables import column, column_name, read_csv
from minifast.data.transforms import check_tfms
from minifast.errors import DataError
from minifast.losses import LOSSES
from minifast.utils.checks import add_note, check_count, check_folder

if TYPE_CHECKING:
    from typing import Unpack


class ImageOptions(TypedDict, total=False):
    """What all ways to make an ``ImageDataBunch`` have in common; ``from_folder`` says what each is."""

    test: str | None
    classes: Sequence[Any] | None
    size: Size
    bs: int
    val_bs: int | None
    num_workers: int | None
    device: torch.device | str | None
    memory: int
    ds_tfms: Any


class ImageDataBunch(DataBunch):
    """Pictures with a class each, several classes, or numbers: floats ``(n, 3, height, width)`` in [0, 1].

    A picture is seen as its camera was held, of an animation the first frame, and what is transparent in its own
    colour.
    """

    size: Size = None
    test_labelled = False

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        train: str = "train",
        valid: str = "valid",
        test: str | None = None,
        valid_pct: float | None = None,
        seed: int | None = None,
        classes: Sequence[str] | None = None,
        size: Size = None,
        bs: int = 64,
        val_bs: int | None = None,
        num_workers: int | None = None,
        device: torch.device | str | None = None,
        memory: int = BUDGET,
        ds_tfms: Any = None,
    ) -> ImageDataBunch:
        """Take pictures from folders: ``path/train/CLASS/…`` and ``path/valid/CLASS/…``.

        A set that fits into ``memory`` is decoded once and kept under ``~/.minifast/cache`` for the next process (a
        changed, added or removed file is noticed). A larger one is read from its files batch by batch, in the same
        order and with the same pixels.

        Args:
            path: the folder.
            train: the name of the training folder.
            valid: the name of the validation folder.
            test: a folder of pictures without classes, to predict on.
            valid_pct: instead of a validation folder, this share of all pictures, chosen at random.
            seed: of that choice and of the order of training; by default drawn from torch's generator.
            classes: the classes to use, in this order; by default all folders', sorted by name.
            size: crop and scale to this height and width; needed where the files differ in size.
            bs: pictures a training batch. A last batch that is not full is left out, unless it is the only one.
            val_bs: pictures a validation batch; by default twice ``bs``.
            num_workers: processes that read a set that does not fit into memory.
            device: where training happens; by default the GPU if there is one.
            memory: how many bytes decoded pictures may take.
            ds_tfms: transforms of whole batches on the device, a pair: those of training and those of validation, such
                as ``get_transforms()``. What they draw comes from ``seed``. One of torchvision's is run on each
                picture by itself; any other is a function of a batch ``(x, y)`` that returns both.

        Raises:
            DataError: a folder is missing or empty, a class stands only in the validation folder, a file is no picture
                or is cut off, or pictures differ in size and no ``size`` is given.
        """
        path = Path(path).expanduser()
        size = check_size(size)
        seed = draw_seed(seed)
        if valid_pct is None:
            roots = [existing(path, train, "train"), existing(path, valid, "valid")]
            train_set, names = labelled(roots[:1], classes, str(roots[0].absolute()), size)
            valid_set, _ = labelled(roots[1:], names, str(roots[1].absolute()), size, refuse_others=classes is None)
            parts: Parts = [(train_set, None), (valid_set, None)]
        else:
            roots = [root for root in (path / train, path / valid) if root.is_dir()] or [path]
            apart = {test} if test is not None and roots == [path] else set()
            train_set, names = labelled(roots, classes, f"{path.absolute()} all", size, apart)
            parts = split(train_set, valid_pct, seed, path)
        return cls._of(path, parts, names, None, seed, test, size, bs, val_bs, num_workers, device, memory, ds_tfms)

    @classmethod
    def from_lists(
        cls,
        path: str | Path,
        fnames: Iterable[str | Path],
        labels: Any,
        valid_pct: float = 0.2,
        seed: int | None = None,
        label_delim: str | None = None,
        **options: Unpack[ImageOptions],
    ) -> ImageDataBunch:
        """Take picture files, and a label for each: a class, several classes, or numbers.

        Names, whole numbers and bools are a class each; lists of names, and rows of 0 and 1, several classes; floats
        real numbers. The bunch says which it is.

        Args:
            path: the folder of the data. Names of files that lead nowhere from here are looked for in it.
            fnames: the files.
            labels: the label of each.
            valid_pct: the share of validation pictures, chosen at random.
            seed: of that choice and of the order of training; by default drawn from torch's generator.
            label_delim: what stands between the classes in a text.
            options: as for ``from_folder``: ``test classes size bs val_bs num_workers device memory ds_tfms``.

        Raises:
            DataError: a file is missing, or is no picture; a label is missing or none of ``classes``.
        """
        path = check_folder(Path(path).expanduser())
        files = list(fnames)
        rest: dict[str, Any] = {**options}
        pictures = ImageFiles(f"{path.absolute()} list", rest.pop("size", None))
        pictures.add(stat_files(files, path), 0)
        labels = labels if hasattr(labels, "__len__") else list(labels)
        if len(labels) != len(files):
            raise DataError(f"There are {len(files)} files and {len(labels)} labels; give a label for each file.")
        seed = draw_seed(seed)
        found = as_labels(labels, rest.pop("classes", None), label_delim, lambda i: f"The picture {files[i]}")
        pictures.labels = found.targets
        parts = split(pictures, valid_pct, seed, path)
        return cls._of(path, parts, found.classes, found, seed, size=pictures.size, **rest)

    @classmethod
    def from_csv(
        cls,
        path: str | Path,
        folder: str | Path | None = None,
        label_delim: str | None = None,
        csv_labels: str | Path = "labels.csv",
        valid_pct: float = 0.2,
        seed: int | None = None,
        fn_col: int | str = 0,
        label_col: int | str | Sequence[int | str] = 1,
        suffix: str = "",
        delimiter: str | None = None,
        header: int | str | None = "infer",
        **options: Unpack[ImageOptions],
    ) -> ImageDataBunch:
        """Take pictures and labels from a CSV file, ``path/csv_labels``.

        A column of whole numbers is read as classes, and one of numbers with a point as real numbers.

        Args:
            path: the folder of the data.
            folder: the pictures' folder in it.
            label_delim: what stands between several classes of a picture.
            csv_labels: the file.
            valid_pct, seed: as for ``from_lists``.
            fn_col: the column of the files, by place or name.
            label_col: that of the labels, or several columns: of 0 and 1 for classes of these names, of real numbers.
            suffix: the end of the files' names, where the table leaves it out, such as ``".jpg"``.
            delimiter: what stands between two fields; by default a comma.
            header: the row of the columns' names; by default the first; None where there is none.
            options: as for ``from_lists``.

        Raises:
            DataError: as ``from_lists``, and where the file is missing, or has not these columns.

        >>> from minifast.data.download import home
        >>> from minifast.data.synthetic import draw_sample
        >>> path = draw_sample(home() / "data" / "small", n_train=60, n_valid=20)
        >>> data = ImageDataBunch.from_csv(path, bs=16, device="cpu")
        >>> data.classes, len(data.train_ds), len(data.valid_ds)
        ([0, 1], 64, 16)
        """
        path = Path(path).expanduser()
        table = read_csv(path / csv_labels, delimiter, header)
        return cls.from_df(path, table, folder, label_delim, valid_pct, seed, fn_col, label_col, suffix, **options)

    @classmethod
    def from_df(
        cls,
        path: str | Path,
        df: Any,
        folder: str | Path | None = None,
        label_delim: str | None = None,
        valid_pct: float = 0.2,
        seed: int | None = None,
        fn_col: int | str = 0,
        label_col: int | str | Sequence[int | str] = 1,
        suffix: str = "",
        **options: Unpack[ImageOptions],
    ) -> ImageDataBunch:
        """Take pictures and labels from a table: a data frame of pandas, or anything with columns; see ``from_csv``."""
        place = Path(path).expanduser() / (folder or "")
        names = column(df, fn_col, "fn_col")
        for i, name in enumerate(names):
            if not isinstance(name, (str, int, Path)):
                raise DataError(f"Row {i} of the table names no file ({name!r}); name one, or leave the row out.")
        labels: list[Any]
        if not isinstance(label_col, (int, str)):
            chosen = [column_name(df, one, "label_col") for one in label_col]
            labels = [list(row) for row in zip(*(column(df, one, "label_col") for one in label_col), strict=True)]
            if options.get("classes") is None and all(one in (0, 1) for row in labels for one in row):
                options["classes"] = chosen
        else:
            labels = column(df, label_col, "label_col")
        files = [place / f"{name}{suffix}" for name in names]
        return cls.from_lists(path, files, labels, valid_pct, seed, label_delim, **options)

    @classmethod
    def from_name_func(
        cls,
        path: str | Path,
        fnames: Iterable[str | Path],
        label_func: Callable[[Path], Any],
        valid_pct: float = 0.2,
        seed: int | None = None,
        **options: Unpack[ImageOptions],
    ) -> ImageDataBunch:
        """Take picture files, such as ``get_image_files(path)``; ``label_func`` says each one's label from its path."""
        files = list(map(Path, fnames))
        labels = []
        for file in files:
            try:
                labels.append(label_func(file))
            except Exception as error:
                add_note(error, f"This was label_func of {file}.")
                raise
        return cls.from_lists(path, files, labels, valid_pct, seed, **options)

    @classmethod
    def from_name_re(
        cls,
        path: str | Path,
        fnames: Iterable[str | Path],
        pat: str,
        valid_pct: float = 0.2,
        seed: int | None = None,
        **options: Unpack[ImageOptions],
    ) -> ImageDataBunch:
        """Take picture files; a label is what the first group of the regular expression ``pat`` finds in the path.

        Raises:
            DataError: ``pat`` has no group, or a path does not match it.
        """
        pattern = re.compile(pat)
        if not pattern.groups:
            raise DataError(f"pat is {pat!r}, which has no group; put the label in parentheses, as r'([^/]+)_' does.")

        def label_of(file: Path) -> str:
            match = pattern.search(file.as_posix())
            if match is None or match[1] is None:
                raise DataError(f"pat, {pat!r}, finds no label in {file.as_posix()}; mend it, or leave the file out.")
            return match[1]

        return cls.from_name_func(path, fnames, label_of, valid_pct, seed, **options)

    @classmethod
    def _of(
        cls,
        path: Path,
        parts: Parts,
        classes: list[Any] | None,
        labels: Labels | None,
        seed: int,
        test: str | None = None,
        size: Size = None,
        bs: int = 64,
        val_bs: int | None = None,
        num_workers: int | None = None,
        device: torch.device | str | None = None,
        memory: int = BUDGET,
        ds_tfms: Any = None,
    ) -> ImageDataBunch:
        """Make loaders of the parts, all in memory or all from files."""
        check_count("bs", bs)
        val_bs = 2 * bs if val_bs is None else check_count("val_bs", val_bs)
        if num_workers is not None:
            check_count("num_workers", num_workers, least=0)
        tfms = check_tfms(ds_tfms)
        train_set = parts[0][0]
        if test is not None:
            folder = existing(path, test, "test")
            test_set = ImageFiles(str(folder.absolute()), size)
            test_set.add(list_images(folder, recurse=True), 0)
            if not len(test_set):
                raise DataError(f"The test folder {folder} has no pictures; add some, or leave test out.")
            if labels is not None:
                test_set.labels = torch.zeros_like(labels.targets[:1]).expand(len(test_set), *labels.targets.shape[1:])
            parts.append((test_set, None))
        for pictures, _ in parts[1:]:
            pictures.reference = train_set.first()
        train_dl, valid_dl, test_dl = loaders_of(parts, classes, seed, bs, val_bs, num_workers, device, memory)
        loss = None if labels is None else LOSSES[labels.kind]()
        data = cls(train_dl, valid_dl, test_dl, device, path=path, classes=classes, loss_func=loss)
        data.size, data.labels = size, labels
        data._add_ds_tfms(tfms, seed)
        return data

    def encode(self, item: Any) -> Any:
        """Return a picture (a file's path, a PIL image, an array or a tensor) as the batch of one that the model takes.

        A uint8 array is ``(height, width)`` or ``(height, width, channels)``, as PIL and OpenCV have it; a tensor
        ``(channels, height, width)``.
        """
        if isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim in (2, 3):
            from PIL import Image

            try:
                item = Image.fromarray(item)
            except TypeError as error:
                raise DataError(f"The item is an array {item.shape}, which is no picture.") from error
        if isinstance(item, (str, Path)) or hasattr(item, "convert"):
            item = torch.from_numpy(read_image(item, check_size(self.size)).copy())
        elif isinstance(item, Tensor) and item.ndim == 3 and item.is_floating_point():
            item = item.expand(3, -1, -1)
        if getattr(item, "ndim", 0) != 3:
            raise DataError(f"The item is a {type(item).__name__}, no picture; give a path, a PIL image or an array.")
        return super().encode(item)
