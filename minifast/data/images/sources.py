"""Sets of image files: from folders and lists, split into parts, with a loader for each part."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch.utils.data import DataLoader

from minifast.data.images.conversion import (
    COLOR,
    Pixels,
    UnreadableImageError,
    ValueRangeError,
    check_value_range,
    upright_size,
)
from minifast.data.images.decoding import (
    ImageFiles,
    all_unreadable,
    cache_file_of,
    decoding_errors,
    digest,
    read_listed,
)
from minifast.data.images.listing import list_images
from minifast.data.images.resizing import Size
from minifast.data.images.unreadable import with_range
from minifast.data.images.value_range import warn_about_values
from minifast.data.labels import class_list
from minifast.data.loaders import DeviceDataLoader, Items, TensorLoader, scaling
from minifast.data.order import EpochOrder, split_rows
from minifast.errors import DataError
from minifast.utils.checks import check_count, check_folder, did_you_mean, shortlist
from minifast.utils.files import replacing
from minifast.utils.public import warn_caller
from minifast.utils.text import real_name, write_text

FEW = 10  # validation images
PART_NAMES = {"train": "training", "valid": "validation", "test": "test", "images": "image", "masks": "mask"}


class LoaderOptions(TypedDict, total=False):
    """Options of all constructors for images; ``ImageDataBunch.from_folder`` describes them."""

    test: str | None
    size: Size
    bs: int
    val_bs: int | None
    num_workers: int | None
    device: torch.device | str | None
    memory: int
    ds_tfms: Any
    resize: str
    channels: int
    value_range: tuple[float, float] | None
    exact: bool


class ImageOptions(LoaderOptions, total=False):
    """Options of all constructors of ``ImageDataBunch``."""

    classes: Sequence[Any] | None
    on_bad_image: str


Parts = list[tuple[ImageFiles, list[int] | None]]  # training, validation and maybe test files; None stands for all rows


def make_pixels(channels: Any = 3, value_range: Any = None, exact: Any = False) -> Pixels:
    """Return what the pixels become, if the arguments are allowed."""
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 3 for color or 1 for gray, got {channels!r}.")
    if exact not in (True, False):
        raise ValueError(f"`exact` must be True or False, got {exact!r}.")
    return Pixels(channels, check_value_range(value_range), exact=bool(exact))


def take_pixels(options: dict[str, Any]) -> Pixels:
    """Remove the options that say what the pixels become, and return them."""
    return make_pixels(**{name: options.pop(name) for name in ("channels", "value_range", "exact") if name in options})


def image_folder(path: str | Path, folder: str | Path | None = None) -> Path:
    """Return the folder of the images of a table; a file, such as the table itself, is a DataError."""
    whole, images = Path(path).expanduser(), Path(path).expanduser() / (folder or "")
    for name, given in (("path", whole), ("folder", images)):
        if given.is_file():
            raise DataError(
                f"`{name}` must be the folder of the images, got the file {given}. If it is a CSV file, pass it to "
                f"from_csv as csv_labels={given.name!r}."
            )
    return images


def split(files: ImageFiles, valid_pct: float, seed: int, path: Path) -> Parts:
    """Return the files as a training part and a validation part, chosen at random."""
    n = len(files)
    if n < 2:
        raise DataError(f"Training and validation need at least 2 images, got {n} in {path}.")
    return [(files, rows.tolist()) for rows in split_rows(n, valid_pct, seed)]


def stat_files(files: Sequence[str | Path], path: Path) -> list[tuple[str, int, int]]:
    """Return path, size in bytes and modification time in ns of each file; names may be relative to ``path``.

    Warns if a file is listed twice.

    Raises:
        DataError: if the list is empty or a file does not exist.
    """
    listing, missing, here = [], [], Path.cwd()
    for file in map(str, files):
        for name in (file, str(path / file)):
            try:
                status = os.stat(name)  # noqa: PTH116 - many files
            except OSError:
                continue
            name = os.path.join(here, name)  # noqa: PTH118 - many files
            listing.append((name, status.st_size, status.st_mtime_ns))
            break
        else:
            missing.append(file)
    if missing:
        more = f", and {len(missing) - 1} more of {len(files)} are missing" if len(missing) > 1 else ""
        raise DataError(
            f"There is no file {missing[0]}{more}.",
            hint="Check the folder and the suffix.",
            cli_hint="Check DATA, the folder of the images, and the suffix, which --suffix adds.",
        )
    if not listing:
        raise DataError("The list of files is empty. Give at least two images, such as get_image_files(path).")
    name, times = Counter(name for name, _, _ in listing).most_common(1)[0]
    if times > 1:
        warn_caller(
            f"{name} is listed {times} times, so it may be in the training and the validation set.",
        )
    return listing


def subfolder(path: Path, name: str, part: str) -> Path:
    """Return the folder ``name`` in ``path``; the error names the folders that exist."""
    folder = check_folder(path) / name
    if not folder.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        if not names:
            raise DataError(f"{path} has no folders of images; give a folder with one folder per class in {name}.")
        choose = "to choose the validation images at random"
        own = f"the name of your {PART_NAMES[part]} folder as `{part}`"
        hint, cli_hint = f"Pass {own}.", f"Rename a folder to {name}, or give --valid-pct 0.2 {choose}."
        close = did_you_mean(name, names)
        if part in ("train", "valid"):
            hint = f"Pass {own}, or pass valid_pct=0.2 {choose}."
            are_classes = len(names) > 1 and all(list_images(path / entry, recurse=False) for entry in names)
            if are_classes:
                hint, close = f"Pass valid_pct=0.2 {choose}, or {own}.", ""
                cli_hint = f"Give --valid-pct 0.2 {choose}, or move the class folders into folders train and valid."
        raise DataError(f"{path} has no folder {name}; it has {', '.join(names)}.{close}", hint, cli_hint)
    return folder


def check_headers(files: ImageFiles) -> None:
    """Raise a DataError that names all unreadable files of the data if one of these has no header of an image.

    Without such a file, the pixels of none are read, so an image that is truncated raises an error in the training.
    """
    names = [name for name, _, _ in files.listing]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        suspects = [name for name, size in zip(names, pool.map(upright_size, names), strict=True) if size is None]
    for name in suspects:
        try:
            read_listed(name, files.size, files.resize, files.pixels)
        except UnreadableImageError as error:
            raise all_unreadable(files.all_names(), error, files.pixels) from error


def undecodable(files: ImageFiles) -> tuple[list[int], bool]:
    """Return the rows of the files that cannot be decoded, and whether that stays so while the files do not change.

    Raises:
        DataError: the values of an image are outside of the range, which makes it no broken file.
    """
    from PIL import Image

    names = [name for name, _, _ in files.listing]
    errors = decoding_errors(names, files.pixels)
    outside = next((error for error in errors.values() if isinstance(error, ValueRangeError)), None)
    if outside is not None:
        raise with_range(outside, names) from outside
    # Permissions and Pillow's limit of pixels may change.
    passing = PermissionError, FileNotFoundError, Image.DecompressionBombError
    causes = [cause for error in errors.values() for cause in (error, error.__cause__)]
    return list(errors), not any(isinstance(cause, passing) for cause in causes)


def leave_out_unreadable(files: ImageFiles) -> None:
    """Leave out the files that cannot be decoded, and print how many; the result is kept until a file changes."""
    store, fingerprint = cache_file_of(f"{files.name} undecodable{files.pixels}"), digest(repr(files.listing))
    try:
        saved = json.loads(store.read_text()) if store is not None else {}
        bad = saved["bad"] if saved["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        bad = None
    if bad is None:
        bad, is_lasting = undecodable(files)
        with contextlib.suppress(OSError):
            if store is not None and is_lasting:
                with replacing(store) as file:
                    file.write_text(json.dumps({"fingerprint": fingerprint, "bad": bad}))
    if not bad:
        return
    n, names = len(files), [files.listing[i][0] for i in bad]
    if len(bad) == n:
        raise DataError(f"None of the {n} images can be read, such as {names[0]}; check the files.")
    kept = sorted(set(range(n)) - set(bad))
    rest = files.subset(kept)
    files.listing, files.labels = rest.listing, rest.labels
    verb = "is" if len(bad) == 1 else "are"
    write_text(f"{len(bad)} of {n} images cannot be read and {verb} left out: {shortlist(names)}.")


def images_by_class(
    roots: Sequence[Path],
    classes: Sequence[str] | None,
    name: str,
    size: Size,
    exclude: Collection[str | None] = (),
    allow_other_folders: bool | None = None,
    resize: str = "crop",
    skip_bad: bool = False,
    pixels: Pixels = COLOR,
) -> tuple[ImageFiles, list[str], list[str]]:
    """Return the images in the class folders of ``roots``, the classes, and the names of all class folders.

    ``exclude`` names folders that are not classes. Give ``allow_other_folders`` for a validation set only, where a
    class may have no images; False makes folders that are not in ``classes`` an error.
    """
    for root in roots:
        check_folder(root)
    where, folders = " and ".join(map(str, roots)), class_folders(roots, exclude)
    names = list(folders) if classes is None else class_list(classes)
    if not names:
        raise DataError(f"{where} has no class folders. Put the images of each class in a folder with its name.")
    if allow_other_folders is False and (extra := sorted(set(folders) - set(names))):
        raise DataError(
            f"The class {extra[0]} is in {where} but not in the training folder, so it cannot be learned. Add training "
            f"images of it, or remove the folder."
        )
    files, unread = ImageFiles(name, size, resize, pixels), list[str]()
    for label, own in enumerate(names):
        before, folder = len(files), folders.get(own, own)
        for root in roots:
            if (root / folder).is_dir():
                files.add(list_images(root / folder, True, unread), label)
        if allow_other_folders is None and own not in folders:
            raise DataError(f"{where} has no folder {own}; it has {', '.join(folders)}.{did_you_mean(own, folders)}")
        if allow_other_folders is None and len(files) == before:
            others = f"; Pillow cannot read {shortlist(unread)}, convert them to JPEG" if unread else ""
            raise DataError(
                f"The class folder {roots[0] / folder} has no images{others}. Add some, or remove the folder."
            )
    if not len(files):
        raise DataError(f"{where} has no images. Add some.")
    if unread:
        warn_caller(
            f"Photographs are left out, because Pillow cannot read their format: {shortlist(unread)}. Convert them to "
            f"JPEG."
        )
    if skip_bad:
        labels = set(files.labels)
        leave_out_unreadable(files)
        if allow_other_folders is None and (lost := sorted(labels - set(files.labels))):
            raise DataError(
                f"No image of the class {names[lost[0]]} can be read, so it cannot be learned. Replace some, or remove "
                f"the folder."
            )
    return files, names, list(folders)


def class_folders(roots: Sequence[Path], exclude: Collection[str | None] = ()) -> dict[str, str]:
    """Return the class folders in ``roots`` by the names of their classes, sorted, without those of ``exclude``."""
    entries = [entry for root in roots for entry in root.iterdir() if entry.is_dir()]
    names = sorted({entry.name for entry in entries if not entry.name.startswith(".")}.difference(exclude))
    folders = {real_name(name): name for name in names}
    if "models" in folders and not any(
        list_images(root / "models", True) for root in roots if (root / "models").is_dir()
    ):
        del folders["models"]  # the learner's files
    return folders


def relate(parts: Parts) -> None:
    """Give all parts the size of the training images; an error then names the unreadable files of all parts."""
    sets = list({id(files): files for files, _ in parts}.values())
    for files in sets:
        files.others = [other for other in sets if other is not files]
    for files in sets[1:]:
        files.reference = sets[0].reference_size()


def warn_about_unvalidated(parts: Parts, classes: Sequence[Any]) -> None:
    """Warn of classes that have training images but no validation images.

    Few validation images chosen at random are no reason to warn: their metrics say little about any class.
    """
    labels = [torch.as_tensor(files.labels) for files, _ in parts[:2]]
    (_, rows), (_, valid_rows) = parts[:2]
    trained, validated = labels[0] if rows is None else labels[0][rows], labels[1]
    validated = validated if valid_rows is None else validated[valid_rows]
    without = sorted(set(trained.tolist()) - set(validated.tolist()))
    if without and (valid_rows is None or len(validated) >= FEW):
        names = shortlist([str(classes[i]) for i in without])
        how = "Add some." if valid_rows is None else "Use a larger `valid_pct`, or another `seed`."
        warn_caller(
            f"The validation set has no images of {names}, so its loss and metrics say nothing about "
            f"{'this class' if len(without) == 1 else 'these classes'}. {how}"
        )


def make_loaders(
    parts: Parts,
    classes: list[Any] | None,
    seed: int,
    bs: int,
    val_bs: int,
    num_workers: int | None,
    device: torch.device | str | None,
    memory: int,
) -> list[Any]:
    """Return three loaders, the first shuffled, None for a missing part; all read from memory, or all from files."""
    check_count("memory", memory, least=0)
    if num_workers is not None:
        check_count("num_workers", num_workers, least=0)
    files, indices = parts[0]
    names = [name for part in {id(part): part for part, _ in parts}.values() for name, _, _ in part.listing]
    warn_about_values(names, files.pixels.value_range)
    in_memory = sum({id(files): files.decoded_bytes() for files, _ in parts}.values()) <= memory
    if not in_memory:
        for files in {id(files): files for part, _ in parts for files in part.sets()}.values():
            check_headers(files)
    loaders: list[Any] = []
    for i, (files, indices) in enumerate(parts):
        batch_size = val_bs if i else bs
        if in_memory:
            x, y = files.tensors() if indices is None else (tensor[indices] for tensor in files.tensors())
            loader = TensorLoader(x, y, batch_size, not i, seed, device)
            loader.channels = files.pixels.channels
            loader.dataset = LoadedImages(loader.x, loader.y, classes, files, indices)
            loaders.append(loader)
        else:
            part = files if indices is None else files.subset(indices)
            loaders.append(file_loader(part, batch_size, not i, seed, num_workers, device))
    if (n_train := len(parts[0][0] if parts[0][1] is None else parts[0][1])) < bs:  # after all errors
        warn_caller(
            f"There are {n_train} training images, fewer than bs={bs}, so each epoch is one batch.",
        )
    return [*loaders, None][:3]


class LoadedImages(Items):
    """Images in memory; ``items`` holds their paths, as ``ImageFiles`` does."""

    def __init__(self, x: Any, y: Any, classes: Any, files: ImageFiles, indices: Sequence[int] | None) -> None:
        super().__init__(x, y, classes, files.pixels.channels)
        self._names = [files.listing[i][0] for i in (range(len(files)) if indices is None else indices)]

    @property
    def items(self) -> list[Path]:
        """The paths of the files, in the order of the samples."""
        return list(map(Path, self._names))


def file_loader(
    files: ImageFiles, bs: int, train: bool, seed: int, workers: int | None, device: torch.device | str | None
) -> DeviceDataLoader:
    """Return a loader that reads images batch by batch, in the same order as a loader from memory."""
    workers = min(8, os.cpu_count() or 1) if workers is None else workers
    dl: Any = DataLoader(
        files,  # type: ignore[arg-type]  # it has __len__ and __getitem__, as a map-style data set
        bs,
        sampler=EpochOrder(len(files), seed) if train else None,
        drop_last=train and len(files) >= bs,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),  # so that starting workers does not use the global generator
    )
    return DeviceDataLoader(dl, device, [scaling(files.pixels.channels)])
