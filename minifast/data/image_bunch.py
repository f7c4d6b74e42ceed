"""Pictures in folders as the data of a learner."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minifast.data.bunch import DataBunch
from minifast.data.images import BUDGET, Pictures, Size, list_pictures, read_picture
from minifast.data.loader import DeviceDataLoader, EpochOrder, TensorLoader, as_pictures, order_of
from minifast.errors import DataError, check_count, check_number, did_you_mean


class ImageDataBunch(DataBunch):
    """Pictures with a class each: floats ``(n, 3, height, width)`` in [0, 1]."""

    size: Size = None

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

        Raises:
            DataError: a folder is missing or empty, a class stands only in the validation folder, a file is no picture
                or is cut off, or pictures differ in size and no ``size`` is given.
        """
        path = Path(path).expanduser()
        check_count("bs", bs)
        if val_bs is not None:
            check_count("val_bs", val_bs)
        if seed is None:
            seed = int(torch.randint(2**31, ()).item())
        if valid_pct is not None:
            check_number("valid_pct", valid_pct, above=0, high=0.99)
            roots = [root for root in (path / train, path / valid) if root.is_dir()] or [path]
            train_set, names = _labelled(roots, classes, f"{path.absolute()} all", size)
            order = order_of(len(train_set), seed, 0).tolist()
            n_valid = max(1, int(len(order) * valid_pct))
            parts: list[tuple[Pictures, list[int] | None]] = [
                (train_set, order[n_valid:]),
                (train_set, order[:n_valid]),
            ]
        else:
            roots = [_existing(path, train, "train"), _existing(path, valid, "valid")]
            train_set, names = _labelled(roots[:1], classes, str(roots[0].absolute()), size)
            valid_set, _ = _labelled(roots[1:], names, str(roots[1].absolute()), size, only=names)
            parts = [(train_set, None), (valid_set, None)]
        if test is not None:
            test_set = Pictures(str((path / test).absolute()), size)
            test_set.add(list_pictures(_existing(path, test, "test"), recurse=True), 0)
            parts.append((test_set, None))
        if len(parts[0][1] or parts[0][0]) < bs:
            n = len(parts[0][1] or parts[0][0])
            warnings.warn(
                f"There are {n} training pictures, fewer than bs={bs}: each epoch is one batch.", stacklevel=2
            )
        in_memory = sum({id(pictures): pictures.bytes_decoded() for pictures, _ in parts}.values()) <= memory
        loaders: list[Any] = [
            (_tensor_loader if in_memory else _file_loader)(
                pictures, indices, bs if i == 0 else val_bs or 2 * bs, i == 0, seed, num_workers, device, names
            )
            for i, (pictures, indices) in enumerate(parts)
        ]
        test_dl = loaders[2] if test is not None else None
        data = cls(loaders[0], loaders[1], test_dl, device, path=path, classes=names)
        data.size = train_set.size
        return data

    def encode(self, item: Any) -> Tensor:
        """Return a picture (a file's path, a PIL image, or a tensor) as the batch of one that the model takes."""
        if isinstance(item, (str, Path)) or hasattr(item, "convert"):
            item = torch.from_numpy(_read(item, self.size))
        elif isinstance(item, Tensor) and item.ndim == 3 and item.is_floating_point():
            item = item.expand(3, -1, -1)
        return super().encode(item)


def _read(item: Any, size: Any) -> Any:
    if hasattr(item, "convert"):  # a PIL image: as its file would be read
        buffer = io.BytesIO()
        item.save(buffer, "PNG")
        item = buffer
    return read_picture(item, size).copy()


def _existing(path: Path, name: str, part: str) -> Path:
    if not path.is_dir():
        raise DataError(f"There is no folder {path}; check the path.")
    folder = path / name
    if not folder.is_dir():
        there = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise DataError(
            f"{path} has no folder {name}; it has {', '.join(there) or 'no folders'}.{did_you_mean(name, there)} "
            f"Name the right one ({part}=...), or give valid_pct=0.2 to choose validation pictures at random."
        )
    return folder


def _labelled(
    roots: Sequence[Path], classes: Sequence[str] | None, name: str, size: Size, only: Sequence[str] | None = None
) -> tuple[Pictures, list[str]]:
    """Return the pictures under the class folders of ``roots`` and the classes; ``only`` refuses other folders."""
    for root in roots:
        if not root.is_dir():
            raise DataError(f"There is no folder {root}; check the path.")
    folders = sorted({entry.name for root in roots for entry in root.iterdir() if entry.is_dir()} - {"models"})
    folders = [folder for folder in folders if not folder.startswith(".")]
    where = " and ".join(map(str, roots))
    if only is not None and (extra := sorted(set(folders) - set(only))):
        raise DataError(
            f"The class {extra[0]} stands in {where} but not in the training folder, so it cannot be learnt; "
            f"add training pictures of it, or remove the folder."
        )
    names = list(classes) if classes is not None else folders
    if not names:
        raise DataError(f"{where} has no class folders; put the pictures of each class in a folder of its own.")
    pictures = Pictures(name, size)
    for label, folder in enumerate(names):
        before = len(pictures)
        for root in roots:
            if (root / folder).is_dir():
                pictures.add(list_pictures(root / folder, recurse=True), label)
        if len(pictures) == before and only is None:
            raise DataError(f"The class folder {roots[0] / folder} has no pictures; add some, or remove the folder.")
    if not len(pictures):
        raise DataError(f"{where} has no pictures; add some.")
    return pictures, names


def _tensor_loader(
    pictures: Pictures, indices: Any, bs: int, train: bool, seed: int, workers: Any, device: Any, classes: list[str]
) -> TensorLoader:
    x, y = pictures.tensors()
    if indices is not None:
        x, y = x[indices], y[indices]
    return TensorLoader(x, y, bs, shuffle=train, seed=seed, device=device, classes=classes)


def _file_loader(
    pictures: Pictures, indices: Any, bs: int, train: bool, seed: int, workers: Any, device: Any, classes: list[str]
) -> DeviceDataLoader:
    if indices is not None:
        pictures = pictures.chosen(indices)
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    dl: Any = DataLoader(
        pictures,  # type: ignore[arg-type]  # it has a length and items, all that a map-style data set is
        bs,
        sampler=EpochOrder(len(pictures), seed) if train else None,
        drop_last=train and len(pictures) >= bs,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return DeviceDataLoader(dl, device, [_scaled])


def _scaled(batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    return as_pictures(batch[0]), batch[1]
