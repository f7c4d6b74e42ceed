"""Sets of picture files: what folders and lists name, how a set is split, and the loaders of the parts."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from minifast.data.images.decoding import ImageFiles, Size, list_images
from minifast.data.loaders import DeviceDataLoader, TensorLoader, as_images
from minifast.data.order import EpochOrder, split_rows
from minifast.errors import DataError
from minifast.utils.checks import check_folder, check_once, did_you_mean

Parts = list[tuple[ImageFiles, list[int] | None]]  # of training, validation and, perhaps, test; None for all pictures


def split(pictures: ImageFiles, valid_pct: float, seed: int, path: Path) -> Parts:
    """Return two parts of the pictures, drawn at random: those of training, and a share for validation."""
    n = len(pictures)
    if n < 2:
        raise DataError(f"{path} has {n} picture, which training and validation cannot share; add some.")
    return [(pictures, rows.tolist()) for rows in split_rows(n, valid_pct, seed)]


def stat_files(files: Sequence[str | Path], path: Path) -> list[tuple[str, int, int]]:
    """Return name, size in bytes and time of change of each file, as it is named or else in ``path``.

    Raises:
        DataError: there is no file, some are missing, or one is named twice.
    """
    found, missing = [], []
    for file in map(str, files):
        for name in (file, str(path / file)):
            try:
                status = os.stat(name)  # noqa: PTH116 - many files
            except OSError:
                continue
            found.append((name, status.st_size, status.st_mtime_ns))
            break
        else:
            missing.append(file)
    if missing:
        more = f", nor {len(missing) - 1} more of {len(files)}" if len(missing) > 1 else ""
        raise DataError(f"There is no file {missing[0]}{more}; check folder and suffix, or leave such names out.")
    if not found:
        raise DataError("There are no files; give at least two pictures, such as get_image_files(path).")
    name, times = Counter(name for name, _, _ in found).most_common(1)[0]
    if times > 1:
        warnings.warn(f"{name} is named {times} times, so that training and validation may share it.", stacklevel=3)
    return found


def existing(path: Path, name: str, part: str) -> Path:
    """Return the folder ``name`` in ``path``, or say which there are."""
    folder = check_folder(path) / name
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
) -> tuple[ImageFiles, list[str]]:
    """Return the pictures under the class folders of ``roots``, and the classes.

    ``apart`` are folders that are no classes. ``refuse_others`` is given for a validation set, where a class may have
    no pictures: whether folders other than ``classes`` are an error.
    """
    for root in roots:
        check_folder(root)
    where = " and ".join(map(str, roots))
    entries = [entry for root in roots for entry in root.iterdir() if entry.is_dir()]
    folders = sorted({entry.name for entry in entries if not entry.name.startswith(".")} - set(apart))
    if "models" in folders and not any(
        list_images(root / "models", True) for root in roots if (root / "models").is_dir()
    ):
        folders.remove("models")  # where a learner keeps its files
    names = folders if classes is None else list(classes)
    if not names:
        raise DataError(f"{where} has no class folders; put the pictures of each class in a folder of its own.")
    check_once("classes names", names, "name each class once")
    if refuse_others and (extra := sorted(set(folders) - set(names))):
        raise DataError(
            f"The class {extra[0]} stands in {where} but not in the training folder, so it cannot be learnt; "
            f"add training pictures of it, or remove the folder."
        )
    pictures = ImageFiles(name, size)
    for label, folder in enumerate(names):
        before = len(pictures)
        for root in roots:
            if (root / folder).is_dir():
                pictures.add(list_images(root / folder, recurse=True), label)
        if refuse_others is None and folder not in folders:
            raise DataError(
                f"{where} has no folder {folder}; it has {', '.join(folders)}.{did_you_mean(folder, folders)}"
            )
        if refuse_others is None and len(pictures) == before:
            raise DataError(f"The class folder {roots[0] / folder} has no pictures; add some, or remove the folder.")
    if not len(pictures):
        raise DataError(f"{where} has no pictures; add some.")
    return pictures, names


def loaders_of(
    parts: Parts,
    classes: list[Any] | None,
    seed: int,
    bs: int,
    val_bs: int,
    num_workers: int | None,
    device: torch.device | str | None,
    memory: int,
) -> list[Any]:
    """Return a loader of each part, the first shuffled, or None: all of pictures in memory, or all of files."""
    pictures, indices = parts[0]
    n_train = len(pictures if indices is None else indices)
    if n_train < bs:
        warnings.warn(
            f"There are {n_train} training pictures, fewer than bs={bs}: each epoch is one batch.", stacklevel=4
        )
    in_memory = sum({id(pictures): pictures.bytes_decoded() for pictures, _ in parts}.values()) <= memory
    loaders: list[Any] = []
    for i, (pictures, indices) in enumerate(parts):
        batch_size = val_bs if i else bs
        if in_memory:
            x, y = pictures.tensors() if indices is None else (part[indices] for part in pictures.tensors())
            loaders.append(TensorLoader(x, y, batch_size, not i, seed, device, classes=classes))
        else:
            chosen = pictures if indices is None else pictures.chosen(indices)
            loaders.append(file_loader(chosen, batch_size, not i, seed, num_workers, device))
    return [*loaders, None][:3]


def file_loader(
    pictures: ImageFiles, bs: int, train: bool, seed: int, workers: int | None, device: torch.device | str | None
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
    return as_images(x), y
