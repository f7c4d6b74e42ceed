"""SegmentationDataBunch: images with a mask each, which has the class of every pixel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.data.images.conversion import Pixels, upright_size
from minifast.data.images.decoding import ImageFiles
from minifast.data.images.image_bunch import ImageDataBunch
from minifast.data.images.listing import list_images
from minifast.data.images.resizing import Size
from minifast.data.images.sources import LoaderOptions, split, stat_files, subfolder, take_pixels
from minifast.data.labels import class_list
from minifast.data.order import resolve_seed
from minifast.errors import DataError
from minifast.utils.checks import add_note, check_folder, check_once, shortlist
from minifast.utils.public import public_class

if TYPE_CHECKING:
    from typing import Unpack

IGNORED = 255  # in the stored masks; a batch has IGNORE_INDEX there
IGNORE_INDEX = -100  # what torch's cross entropy and the metrics leave out


class SegmentationFiles(ImageFiles):
    """Data set of image files with masks; a sample is an image and its class numbers, uint8 ``(height, width)``.

    Args:
        name: name of the set in the cache.
        masks: the files of the masks, in the order of the images.
        table: the class number of each pixel value of a mask from 0 to 255, ``IGNORED``, or -1 for no class.
        codes: the names of the classes.
        size: as for ``ImageFiles``, and so are ``resize`` and ``pixels``.
    """

    def __init__(
        self, name: str, masks: ImageFiles, table: Tensor, codes: Sequence[Any], size: Size, resize: str, pixels: Pixels
    ) -> None:
        super().__init__(name, size, resize, pixels)
        self.masks, self.table, self.codes = masks, table, codes

    def subset(self, indices: Iterable[int]) -> SegmentationFiles:
        """Return the files at ``indices`` as a data set of their own."""
        rows = list(indices)
        masks = self.masks.subset(rows)
        copied = SegmentationFiles(self.name, masks, self.table, self.codes, self.size, self.resize, self.pixels)
        copied.add([self.listing[i] for i in rows], 0)
        copied.reference = self.reference
        return copied

    def _sample(self, i: int) -> tuple[Tensor, Tensor]:
        return super()._sample(i)[0], self._numbers(self.masks[i][0], [self.masks.listing[i][0]])[0]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all images, uint8 ``(n, channels, height, width)``, and class numbers ``(n, height, width)``."""
        return super().tensors()[0], self._all_numbers

    def decoded_bytes(self) -> int:
        """Return the bytes that the decoded images and masks need."""
        return super().decoded_bytes() + self.masks.decoded_bytes()

    def sets(self) -> list[ImageFiles]:
        """Return the images and the masks."""
        return [self, self.masks]

    @cached_property
    def _all_numbers(self) -> Tensor:
        return self._numbers(self.masks.tensors()[0][:, 0], [name for name, _, _ in self.masks.listing])

    def _numbers(self, masks: Tensor, names: Sequence[str]) -> Tensor:
        """Return the class numbers of masks, uint8 ``(n, height, width)``."""
        counts = torch.bincount(masks.flatten(), minlength=IGNORED + 1)
        unknown = [value for value in counts.nonzero()[:, 0].tolist() if self.table[value] < 0]
        if unknown:
            known = ((self.table >= 0) & (self.table < IGNORED)).nonzero()[:, 0].tolist()
            name = next(name for name, mask in zip(names, masks, strict=True) if (mask == unknown[0]).any())
            raise DataError(
                f"The mask {name} has pixels of the value {unknown[0]}, but there {_are(len(self.codes))} in `codes`, "
                f"with the values {shortlist(known, 5)}. Add its class to `codes`, give the values of the classes as "
                f"`mask_values` (such as [0, 255]), or give ignore={unknown[0]} to leave such pixels out."
            )
        numbers, table = torch.empty_like(masks), self.table.to(torch.uint8)
        for i, mask in enumerate(masks):  # one by one: the indices need eight times the memory
            numbers[i] = table[mask.long()]
        return numbers


def _are(n: int) -> str:
    return "is 1 class" if n == 1 else f"are {n} classes"


def to_class_numbers(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return a batch with stored masks as class numbers, int64; ignored pixels become ``IGNORE_INDEX``."""
    x, y = batch
    if isinstance(y, Tensor) and y.dtype is torch.uint8:
        ignored = y == IGNORED
        y = y.long().masked_fill_(ignored, IGNORE_INDEX)
    return x, y


def make_table(codes: Sequence[Any], mask_values: Sequence[int] | None, ignore: int | None) -> Tensor:
    """Return the class number of each pixel value, see ``SegmentationFiles``.

    >>> make_table(["background", "cell"], [0, 255], None)[[0, 1, 255]].tolist()
    [0, -1, 1]
    """
    values = list(range(len(codes)) if mask_values is None else mask_values)
    if len(values) != len(codes) or not codes:
        raise ValueError(f"`mask_values` must have one value per class, got {len(values)} for {len(codes)} classes.")
    check_once("mask_values has", values, "give each class another value")
    for value in [*values, *([] if ignore is None else [ignore])]:
        if not isinstance(value, int) or not 0 <= value <= IGNORED:
            raise ValueError(f"The values of a mask must be integers from 0 to {IGNORED}, got {value!r}.")
    if ignore in values:
        raise ValueError(f"`ignore` is {ignore}, which is the value of the class {codes[values.index(ignore)]!r}.")
    table = torch.full((IGNORED + 1,), -1)
    table[values] = torch.arange(len(codes))
    if ignore is not None:
        table[ignore] = IGNORED
    return table


def check_sizes(images: Sequence[str], masks: Sequence[str]) -> None:
    """Raise a DataError for the first image whose mask has another size."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for image, mask, size, other in zip(
            images, masks, pool.map(upright_size, images), pool.map(upright_size, masks), strict=True
        ):
            if size is not None and other is not None and size != other:
                raise DataError(
                    f"An image and its mask must have the same size, but {image} is {size[0]}×{size[1]} pixels and "
                    f"{mask} is {other[0]}×{other[1]}. Correct one of them, or leave the image out."
                )


@public_class()
class SegmentationDataBunch(ImageDataBunch):
    """Hold images and masks: the target of an image is the class of each of its pixels.

    Batches are floats ``(n, channels, height, width)`` in [0, 1] and class numbers, int64 ``(n, height, width)``. The
    pixels of a mask file are class numbers; a palette or a gray image has them, an RGB image does not. Masks are
    resized by the nearest pixel. ``get_transforms()`` flips, rotates, zooms and warps an image and its mask alike. The
    default loss is cross entropy.
    """

    @classmethod
    def from_folder(  # type: ignore[override]  # other targets
        cls,
        path: str | Path,
        codes: Sequence[Any],
        images: str = "images",
        masks: str = "masks",
        valid_pct: float = 0.2,
        seed: int | None = None,
        mask_values: Sequence[int] | None = None,
        ignore: int | None = None,
        **options: Unpack[LoaderOptions],
    ) -> SegmentationDataBunch:
        """Create a bunch from two folders; the mask of an image has its name, with any suffix.

        Args:
            path: the folder of both folders.
            codes: the names of the classes, in the order of their numbers.
            images: name of the folder of the images, which is searched recursively.
            masks: name of the folder of the masks.
            valid_pct: fraction of the images for validation, chosen at random.
            seed: seed of the split and of the training order; by default sampled from torch's generator.
            mask_values: the value of each class in the masks, such as ``[0, 255]``; by default 0, 1, 2, ...
            ignore: the value of pixels that the loss and the metrics leave out.
            options: as for ``ImageDataBunch.from_folder``: ``test``, ``size``, ``bs``, ``val_bs``, ``num_workers``,
                ``device``, ``memory``, ``ds_tfms``, ``resize``, ``channels``, ``value_range`` and ``exact``.

        Returns:
            A bunch with cross entropy as its loss.

        Raises:
            DataError: if an image has no mask, the sizes of the two differ, or a mask has a value without a class.
        """
        path = Path(path).expanduser()
        image_folder, mask_folder = (subfolder(path, images, "images"), subfolder(path, masks, "masks"))
        found = {_stem(name, mask_folder): name for name, _, _ in list_images(mask_folder, recurse=True)}
        files = [Path(name) for name, _, _ in list_images(image_folder, recurse=True)]
        missing = [file for file in files if _stem(file, image_folder) not in found]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(files)} images have no mask in {mask_folder}, such as {missing[0]}. A mask "
                f"has the name of its image with any suffix; for other names use from_label_func."
            )
        return cls.from_label_func(
            path, files, lambda file: found[_stem(file, image_folder)], codes, valid_pct, seed, mask_values, ignore,
            **options,
        )  # fmt: skip

    @classmethod
    def from_label_func(
        cls,
        path: str | Path,
        fnames: Iterable[str | Path],
        label_func: Callable[[Path], str | Path],
        codes: Sequence[Any],
        valid_pct: float = 0.2,
        seed: int | None = None,
        mask_values: Sequence[int] | None = None,
        ignore: int | None = None,
        **options: Unpack[LoaderOptions],
    ) -> SegmentationDataBunch:
        """Create a bunch from image files; ``label_func`` maps the path of an image to that of its mask.

        ``from_folder`` describes the other arguments.
        """
        path, codes = check_folder(Path(path).expanduser()), class_list(codes, "codes")
        table, seed = make_table(codes, mask_values, ignore), resolve_seed(seed)
        names, targets = list(map(Path, fnames)), []
        for file in names:
            try:
                targets.append(label_func(file))
            except Exception as error:
                add_note(error, f"`label_func` was called with {file}.")
                raise
        remaining: dict[str, Any] = {**options}
        pixels = take_pixels(remaining)
        size, resize = remaining.pop("size", None), options.get("resize", "crop")
        masks = ImageFiles(f"{path.absolute()} masks", size, resize, Pixels(mask=True))
        masks.add(stat_files(targets, path), 0)
        files = SegmentationFiles(f"{path.absolute()} segmentation", masks, table, codes, size, resize, pixels)
        files.add(stat_files(names, path), 0)
        check_sizes(*([name for name, _, _ in part.listing] for part in (files, masks)))
        data = cls._from_parts(
            path, split(files, valid_pct, seed, path), codes, None, seed, size=files.size, **remaining
        )
        for dl in data.dls:
            dl.tfms.insert(0, to_class_numbers)  # before the augmentation
        assert isinstance(data, SegmentationDataBunch)
        return data


def _refuse(name: str) -> Any:
    def refuse(cls: type, *arguments: Any, **options: Any) -> Any:
        """Raise a TypeError: the method of ``ImageDataBunch`` labels whole images."""
        raise TypeError(
            f"{cls.__name__}.{name} would label whole images, but a mask labels each pixel. Use from_folder, or "
            f"from_label_func(path, files, function, codes), whose function returns the mask of a file."
        )

    refuse.__name__ = name
    return classmethod(refuse)


for _name in ("from_lists", "from_csv", "from_df", "from_name_func", "from_name_re"):
    setattr(SegmentationDataBunch, _name, _refuse(_name))


def _stem(file: str | Path, folder: Path) -> Path:
    return Path(file).relative_to(folder.absolute()).with_suffix("")
