"""ImageDataBunch: image files as the data of a Learner."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minifast.data.bunch import DataBunch
from minifast.data.images.conversion import Pixels
from minifast.data.images.decoding import BUDGET, ImageFiles
from minifast.data.images.listing import list_images
from minifast.data.images.resizing import Size, check_size
from minifast.data.images.sample import as_image
from minifast.data.images.sources import (
    ImageOptions,
    Parts,
    image_folder,
    images_by_class,
    leave_out_unreadable,
    make_loaders,
    make_pixels,
    relate,
    split,
    stat_files,
    subfolder,
    take_pixels,
    warn_about_unvalidated,
)
from minifast.data.labels import Labels, as_labels
from minifast.data.order import resolve_seed
from minifast.data.tables import column, column_name, read_csv
from minifast.data.transforms import check_tfms
from minifast.errors import DataError
from minifast.losses import loss_of_labels
from minifast.utils.checks import add_note, check_count, check_folder, check_word
from minifast.utils.public import public_class

if TYPE_CHECKING:
    from typing import Unpack


@public_class()
class ImageDataBunch(DataBunch):
    """Hold images with one class, several classes (multi-label) or regression targets.

    Batches are floats ``(n, channels, height, width)`` in [0, 1]. Decoding applies the EXIF orientation, takes the
    first frame of an animation, and ignores transparency. Images with more than 8 bits per channel are scaled to 8
    bits, see ``value_range``.

    ``path`` is the folder of the images. A Learner writes its files into the working directory, not among the images;
    ``Learner(..., path=data.path)`` chooses the folder of the images, as fastai v1 does.
    """

    size: Size = None
    resize = "crop"
    pixels = Pixels()
    test_option = 'from_folder(..., test="test")'
    test_labelled = False
    files_in_path = False  # a file of a learner among the images would become a class, or one of them

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
        resize: str = "crop",
        on_bad_image: str = "raise",
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        exact: bool = False,
    ) -> ImageDataBunch:
        """Create a bunch from folders ``path/train/CLASS/…`` and ``path/valid/CLASS/…``.

        Images that fit into ``memory`` are decoded once and cached in ``~/.minifast/cache``; changed, added or removed
        files renew the cache. Larger sets are read from their files batch by batch, in the same order and with the
        same pixels.

        Args:
            path: the folder.
            train: name of the training folder.
            valid: name of the validation folder.
            test: name of a folder of images without classes, to predict.
            valid_pct: fraction of all images for validation: those of ``train`` and ``valid``, or of the class folders
                in ``path``, are split at random, also where there is a folder ``valid``; ``test`` is left out.
            seed: seed of the split and of the training order; by default sampled from torch's generator.
            classes: the classes to use, in this order; by default the names of all class folders, sorted.
            size: height and width to resize to, or one number for both; needed if the files differ in size.
            bs: images per training batch. An incomplete last batch is dropped, unless it is the only one.
            val_bs: images per validation batch; by default twice ``bs``.
            num_workers: worker processes per loader, for a set that does not fit into ``memory``.
            device: device for training; by default the GPU if there is one.
            memory: limit of the decoded images in memory, in bytes.
            ds_tfms: batch transforms on the device, a pair for training and validation such as ``get_transforms()``.
                Their random numbers depend on ``seed``. A torchvision transform runs on each image separately; any
                other is a function that takes and returns ``(x, y)``.
            resize: how to resize images whose aspect ratio differs from that of ``size``: ``"crop"`` cuts the center,
                ``"squish"`` changes the aspect ratio, ``"pad"`` keeps the whole image and mirrors it at its borders.
            on_bad_image: what to do about files that cannot be decoded. ``"raise"`` names all of them in the error;
                ``"skip"`` leaves them out and prints how many. In a set that does not fit into ``memory``, ``"raise"``
                reads only the headers before the training: a truncated file raises an error when its batch is read.
            channels: 3, or 1 for gray images with one channel; color images then become gray.
            value_range: for images with more than 8 bits per channel, the values that become black and white, such as
                ``(0, 4095)`` for 12 bits. By default 0 and 65535, or for floats 0 and 1.
            exact: decode JPEG files in full, and resize them with Pillow. By default, those of at least six times
                ``size`` are decoded smaller, and torch resizes large ones in color, which is faster; the pixels of
                photographs differ by at most 1 of 255 in the mean.

        Returns:
            A bunch with the default loss for these targets.

        Raises:
            DataError: if a folder is missing or empty, a class is in the validation folder only, a file is not an image
                or is truncated, or the images differ in size and there is no ``size``.
        """
        path = Path(path).expanduser()
        size = check_size(size)
        seed = resolve_seed(seed)
        skip_bad = check_word("on_bad_image", on_bad_image, ("raise", "skip")) == "skip"
        how = resize, skip_bad, make_pixels(channels, value_range, exact)
        if valid_pct is None:
            roots, valid_root = [subfolder(path, train, "train")], subfolder(path, valid, "valid")
            where = str(roots[0].absolute())
        else:
            roots = [path / name for name in (train, valid) if name != test and (path / name).is_dir()] or [path]
            where = f"{path.absolute()} all"
        is_flat = path in roots  # the class folders are beside the folders of other parts
        exclude = {valid, test} if is_flat else ()
        train_set, names, folders = images_by_class(roots, classes, where, size, exclude, None, *how)
        if valid_pct is None:
            where, other = str(valid_root.absolute()), classes is not None
            valid_set = images_by_class([valid_root], names, where, size, (), other, *how)[0]
            parts: Parts = [(train_set, None), (valid_set, None)]
        else:
            parts = split(train_set, valid_pct, seed, path)
        data = cls._from_parts(
            path, parts, names, None, seed, test=test, size=size, bs=bs, val_bs=val_bs, num_workers=num_workers,
            device=device, memory=memory, ds_tfms=ds_tfms, resize=resize, on_bad_image=on_bad_image,
        )  # fmt: skip
        data.left_out = [folder for folder in folders if folder not in names and not (is_flat and folder == "test")]
        return data

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
        """Create a bunch from image files and their labels.

        Names, integers and bools are classes. Lists of names and rows of 0 and 1 are multi-label. Floats are regression
        targets. ``print(data)`` shows which was chosen.

        Args:
            path: folder of the data; file names may be relative to it.
            fnames: the image files.
            labels: the label of each file.
            valid_pct: fraction of the images for validation, chosen at random.
            seed: seed of the split and of the training order; by default sampled from torch's generator.
            label_delim: separator of the classes in a text.
            options: as for ``from_folder``: ``test``, ``classes``, ``size``, ``bs``, ``val_bs``, ``num_workers``,
                ``device``, ``memory``, ``ds_tfms``, ``resize``, ``on_bad_image``, ``channels``, ``value_range`` and
                ``exact``.

        Returns:
            A bunch with the default loss for these labels.

        Raises:
            DataError: if a file is missing or is not an image, or a label is missing or not one of ``classes``.
        """
        path, names = check_folder(Path(path).expanduser()), list(fnames)
        remaining: dict[str, Any] = {**options}
        pixels = take_pixels(remaining)
        classes, size = remaining.pop("classes", None), remaining.pop("size", None)
        files = ImageFiles(f"{path.absolute()} list", size, options.get("resize", "crop"), pixels)
        files.add(stat_files(names, path), 0)
        labels = labels if hasattr(labels, "__len__") else list(labels)
        if len(labels) != len(names):
            raise DataError(f"Give one label per file, got {len(names)} files and {len(labels)} labels.")
        seed = resolve_seed(seed)
        targets = as_labels(labels, classes, label_delim, lambda i: f"The image {names[i]}")
        files.labels = targets.targets
        if check_word("on_bad_image", options.get("on_bad_image", "raise"), ("raise", "skip")) == "skip":
            leave_out_unreadable(files)
        parts = split(files, valid_pct, seed, path)
        return cls._from_parts(path, parts, targets.classes, targets, seed, size=files.size, **remaining)

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
        """Create a bunch from a CSV file with file names and labels.

        Labels that are integers are classes; labels with a decimal point are regression targets.

        Args:
            path: folder of the data.
            folder: folder of the images in ``path``.
            label_delim: separator of the classes in a multi-label text.
            csv_labels: name of the CSV file in ``path``.
            valid_pct: fraction of the images for validation, chosen at random.
            seed: seed of the split and of the training order; by default sampled from torch's generator.
            fn_col: column of the file names, by index or name.
            label_col: column of the labels, by index or name; or several columns, of 0 and 1 for multi-label classes
                with these names, or of floats for regression.
            suffix: suffix to add to the file names, such as ``".jpg"``.
            delimiter: separator of the fields; by default a comma.
            header: index of the row with the column names, by default 0; None if there is none.
            options: as for ``from_lists``.

        Returns:
            A bunch with the default loss for these labels.

        Raises:
            DataError: as ``from_lists``, and if the CSV file or one of the columns is missing.

        >>> from minifast.data.download import home
        >>> from minifast.data.synthetic import generate_sample
        >>> path = generate_sample(home() / "data" / "small", n_train=60, n_valid=20)
        >>> data = ImageDataBunch.from_csv(path, bs=16, device="cpu")
        >>> data.classes, len(data.train_ds), len(data.valid_ds)
        ([0, 1], 64, 16)
        """
        image_folder(path, folder)
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
        """Create a bunch from a data frame with file names and labels; the arguments are those of ``from_csv``."""
        images = image_folder(path, folder)
        names = column(df, fn_col, "fn_col")
        for i, name in enumerate(names):
            if not isinstance(name, (str, int, Path)):
                raise DataError(f"Row {i} of the table must hold a file name, got {name!r}.", cli_hint="Give --fn-col.")
        labels: list[Any]
        if not isinstance(label_col, (int, str)):
            columns = [column(df, which, "label_col") for which in label_col]
            labels = [list(row) for row in zip(*columns, strict=True)]
            if options.get("classes") is None and all(value in (0, 1) for row in labels for value in row):
                options["classes"] = [column_name(df, which, "label_col") for which in label_col]
        else:
            labels = column(df, label_col, "label_col")
        files = [images / f"{name}{suffix}" for name in names]
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
        """Create a bunch from files such as ``get_image_files(path)``; ``label_func`` maps a path to its label."""
        files, labels = list(map(Path, fnames)), []
        for file in files:
            try:
                labels.append(label_func(file))
            except Exception as error:
                add_note(error, f"`label_func` was called with {file}.")
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
        """Create a bunch from image files; the first group of the regular expression ``pat`` in a path is its label.

        Raises:
            DataError: if ``pat`` has no group, or does not match a path.
        """
        pattern = re.compile(pat)
        if not pattern.groups:
            raise DataError(f"`pat` must have a group for the label, such as r'([^/]+)_', got {pat!r}.")

        def label_of(file: Path) -> str:
            match = pattern.search(file.as_posix())
            if match is None or match[1] is None:
                raise DataError(
                    f"`pat` ({pat!r}) finds no label in {file.as_posix()}. Correct `pat`, or leave the file out."
                )
            return match[1]

        return cls.from_name_func(path, fnames, label_of, valid_pct, seed, **options)

    @classmethod
    def _from_parts(
        cls,
        path: Path,
        parts: Parts,
        classes: list[Any] | None,
        labels: Labels | None,
        seed: int,
        *,
        test: str | None = None,
        size: Size = None,
        bs: int = 64,
        val_bs: int | None = None,
        num_workers: int | None = None,
        device: torch.device | str | None = None,
        memory: int = BUDGET,
        ds_tfms: Any = None,
        resize: str = "crop",
        on_bad_image: str = "raise",
    ) -> ImageDataBunch:
        """Create a bunch with one loader per part, all from memory or all from files."""
        check_count("bs", bs)
        val_bs = 2 * bs if val_bs is None else check_count("val_bs", val_bs)
        tfms = check_tfms(ds_tfms)
        train_set = parts[0][0]
        if test is not None:
            folder = subfolder(path, test, "test")
            test_set = ImageFiles(str(folder.absolute()), size, resize, train_set.pixels)
            test_set.add(list_images(folder, recurse=True), 0)
            if not len(test_set):
                raise DataError(f"The test folder {folder} has no images. Add some, or leave `test` out.")
            if on_bad_image == "skip":
                leave_out_unreadable(test_set)
            if labels is not None:
                test_set.labels = labels.targets.new_zeros(len(test_set), *labels.targets.shape[1:])
            parts.append((test_set, None))
        relate(parts)
        train_dl, valid_dl, test_dl = make_loaders(parts, classes, seed, bs, val_bs, num_workers, device, memory)
        if classes is not None and (labels is None or labels.kind == "class"):
            warn_about_unvalidated(parts, classes)
        loss = None if labels is None else loss_of_labels(labels)
        data = cls(train_dl, valid_dl, test_dl, device, path=path, classes=classes, loss_func=loss)
        data.size, data.resize, data.labels = size, resize, labels
        data.pixels, data.channels = train_set.pixels, train_set.pixels.channels
        data._add_ds_tfms(tfms, seed)
        return data

    def encode(self, item: Any) -> Any:
        """Return an image as a batch of one that the model takes.

        Args:
            item: a path, a PIL image, an array of uint8 or uint16 ``(height, width)`` or ``(height, width, channels)``
                as in PIL and OpenCV, which is scaled as a file with these pixels is; or a tensor ``(channels, height,
                width)`` of uint8, or of floats from 0 to 1, which is not resized.

        Raises:
            DataError: if the value is not an image; it names the type and the shape.
        """
        return super().encode(as_image(item, check_size(self.size), self.resize, self.pixels))
