"""Pictures in folders as the data of a learner."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minifast.data.bunch import DataBunch
from minifast.data.images import BUDGET, Pictures, Size, check_size, list_pictures, read_picture
from minifast.data.loader import DeviceDataLoader, EpochOrder, TensorLoader, as_pictures, is_picture, order_of
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
        size = check_size(size)
        check_count("bs", bs)
        val_bs = 2 * bs if val_bs is None else check_count("val_bs", val_bs)
        if num_workers is not None:
            check_count("num_workers", num_workers, least=0)
        seed = int(torch.randint(2**31, ()).item()) if seed is None else check_count("seed", seed, least=0)
        if valid_pct is None:
            roots = [existing(path, train, "train"), existing(path, valid, "valid")]
            train_set, names = labelled(roots[:1], classes, str(roots[0].absolute()), size)
            valid_set, _ = labelled(roots[1:], names, str(roots[1].absolute()), size, refuse_others=classes is None)
            valid_set.reference = train_set.first()
            parts: list[tuple[Pictures, list[int] | None]] = [(train_set, None), (valid_set, None)]
        else:
            check_number("valid_pct", valid_pct, above=0, high=0.99)
            roots = [root for root in (path / train, path / valid) if root.is_dir()] or [path]
            apart = {test} if test is not None and roots == [path] else set()
            train_set, names = labelled(roots, classes, f"{path.absolute()} all", size, apart)
            if len(train_set) < 2:
                raise DataError(f"{path} has 1 picture, which training and validation cannot share; add some.")
            order = order_of(len(train_set), seed, 0).tolist()
            n_valid = max(1, int(len(order) * valid_pct))
            parts = [(train_set, order[n_valid:]), (train_set, order[:n_valid])]
        if test is not None:
            folder = existing(path, test, "test")
            test_set = Pictures(str(folder.absolute()), size)
            test_set.add(list_pictures(folder, recurse=True), 0)
            if not len(test_set):
                raise DataError(f"The test folder {folder} has no pictures; add some, or leave test out.")
            test_set.reference = train_set.first()
            parts.append((test_set, None))
        n_train = len(train_set if parts[0][1] is None else parts[0][1])
        if n_train < bs:
            warnings.warn(
                f"There are {n_train} training pictures, fewer than bs={bs}: each epoch is one batch.", stacklevel=2
            )
        in_memory = sum({id(pictures): pictures.bytes_decoded() for pictures, _ in parts}.values()) <= memory
        loaders: list[Any] = []
        for i, (pictures, indices) in enumerate(parts):
            batch_size = val_bs if i else bs
            if in_memory:
                x, y = pictures.tensors() if indices is None else (part[indices] for part in pictures.tensors())
                loaders.append(TensorLoader(x, y, batch_size, not i, seed, device, classes=names))
            else:
                chosen = pictures if indices is None else pictures.chosen(indices)
                loaders.append(file_loader(chosen, batch_size, not i, seed, num_workers, device))
        test_dl = loaders[2] if test is not None else None
        data = cls(loaders[0], loaders[1], test_dl, device, path=path, classes=names)
        data.size = size
        return data

    def encode(self, item: Any) -> Tensor:
        """Return a picture (a file's path, a PIL image, or a tensor) as the batch of one that the model takes."""
        if isinstance(item, (str, Path)) or hasattr(item, "convert"):
            item = torch.from_numpy(read_picture(item, check_size(self.size)).copy())
        elif isinstance(item, Tensor) and item.ndim == 3 and item.is_floating_point():
            item = item.expand(3, -1, -1)
        return super().encode(item)


def existing(path: Path, name: str, part: str) -> Path:
    """Return the folder ``name`` in ``path``, or say which there are."""
    if not path.is_dir():
        raise DataError(f"There is no folder {path}; check the path.")
    folder = path / name
    if not folder.is_dir():
        there = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        way_out = "" if part == "test" else ", or give valid_pct=0.2 to choose validation pictures at random"
        raise DataError(
            f"{path} has no folder {name}; it has {', '.join(there) or 'no folders'}.{did_you_mean(name, there)} "
            f"Name the right one ({part}=...){way_out}."
        )
    return folder


def labelled(
    roots: Sequence[Path],
    classes: Sequence[str] | None,
    name: str,
    size: Size,
    apart: Collection[str] = (),
    refuse_others: bool | None = None,
) -> tuple[Pictures, list[str]]:
    """Return the pictures under the class folders of ``roots``, and the classes.

    ``apart`` are folders that are no classes. ``refuse_others`` is given for a validation set, where a class may have
    no pictures: whether folders other than ``classes`` are an error.
    """
    for root in roots:
        if not root.is_dir():
            raise DataError(f"There is no folder {root}; check the path.")
    where = " and ".join(map(str, roots))
    entries = [entry for root in roots for entry in root.iterdir() if entry.is_dir()]
    folders = sorted({entry.name for entry in entries if not entry.name.startswith(".")} - set(apart))
    if "models" in folders and not any(
        list_pictures(root / "models", True) for root in roots if (root / "models").is_dir()
    ):
        folders.remove("models")  # where a learner keeps its files
    names = folders if classes is None else list(classes)
    if not names:
        raise DataError(f"{where} has no class folders; put the pictures of each class in a folder of its own.")
    if twice := [one for one in names if names.count(one) > 1]:
        raise DataError(f"classes names {twice[0]} twice; name each class once.")
    if refuse_others and (extra := sorted(set(folders) - set(names))):
        raise DataError(
            f"The class {extra[0]} stands in {where} but not in the training folder, so it cannot be learnt; "
            f"add training pictures of it, or remove the folder."
        )
    pictures = Pictures(name, size)
    for label, folder in enumerate(names):
        before = len(pictures)
        for root in roots:
            if (root / folder).is_dir():
                pictures.add(list_pictures(root / folder, recurse=True), label)
        if refuse_others is None and folder not in folders:
            raise DataError(
                f"{where} has no folder {folder}; it has {', '.join(folders)}.{did_you_mean(folder, folders)}"
            )
        if refuse_others is None and len(pictures) == before:
            raise DataError(f"The class folder {roots[0] / folder} has no pictures; add some, or remove the folder.")
    if not len(pictures):
        raise DataError(f"{where} has no pictures; add some.")
    return pictures, names


def file_loader(
    pictures: Pictures, bs: int, train: bool, seed: int, workers: int | None, device: torch.device | str | None
) -> DeviceDataLoader:
    """Return a loader that reads pictures as they are needed, in the order in which memory would give them."""
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    dl: Any = DataLoader(
        pictures,  # type: ignore[arg-type]  # it has a length and items, all that a map-style data set is
        bs,
        sampler=EpochOrder(len(pictures), seed) if train else None,
        drop_last=train and len(pictures) >= bs,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),  # so that starting workers draws from no global generator
    )
    return DeviceDataLoader(dl, device, [scaled])


def scaled(batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    """Turn a batch of uint8 pictures into floats in [0, 1]."""
    x, y = batch
    return as_pictures(x) if is_picture(x) else x, y
