"""What several commands use: data, models, figures and the error of wrong arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minifast.errors import DownloadError, MinifastError
from minifast.utils.checks import did_you_mean
from minifast.utils.folders import home
from minifast.utils.text import write_text

DEFAULT_DATA = "mnist_sample"
DOWNLOAD_TIMEOUT = 6.0  # seconds; without a network the first line of output comes within ten seconds


class UsageError(Exception):
    """The command's arguments cannot work: exit code 2."""


def save_figure(figure: Any, out: Path) -> None:
    """Write a figure, completely or not at all."""
    from minifast.utils.files import replacing

    with replacing(out) as file:
        figure.savefig(file, dpi=120, format=out.suffix.removeprefix("."))


def use_file_backend() -> None:
    """Select the matplotlib backend that only writes files."""
    import matplotlib as mpl

    mpl.use("agg")


def make_data(folder: Path, options: argparse.Namespace, seed: int) -> Any:
    """Return the images of a folder with the options' split, size and batch size."""
    from minifast.data.images.image_bunch import ImageDataBunch

    parts = [name for name in ("train", "valid") if (folder / name).is_dir()]
    if options.valid_pct is not None and "valid" in parts:
        write_text(
            f"With --valid-pct, the images in {' and '.join(parts)} are split at random. Leave it out to validate with "
            f"the folder valid."
        )
    data = ImageDataBunch.from_folder(folder, valid_pct=options.valid_pct, seed=seed, **data_options(options))
    if data.classes is not None and len(data.classes) == 1:
        raise MinifastError(
            f"{folder} has images of one class only, {data.classes[0]}; give a folder of images for each of two or "
            f"more classes."
        )
    return data


def data_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``ImageDataBunch`` that do not depend on where the labels are."""
    from minifast.data.images.augment import get_transforms

    limits = options.value_range
    if limits is not None and limits[0] >= limits[1]:
        raise UsageError(f"--value-range {limits[0]:g} {limits[1]:g}: give the lower value first.")
    return {
        "size": options.size,
        "bs": options.bs,
        "device": check_device(options.device),
        "ds_tfms": get_transforms() if options.augment else None,
        "resize": options.resize,
        "on_bad_image": options.on_bad_image,
        "value_range": None if limits is None else tuple(limits),
    }


def check_device(name: str | None) -> str | None:
    """Return ``name`` if torch can use that device here."""
    import torch

    if name is not None:
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"--device {name} is not available here; leave it out, or pass cpu.") from error
    return name


def find_data(data: str) -> Path:
    """Return a folder, from a path or the name of a data set; without a network, generated data for the default."""
    from minifast.data.download import URLs, untar_data

    if Path(data).is_dir():
        return Path(data)
    if Path(data).is_file():
        raise UsageError(f"{data} is a file; give the folder of the images. A file of labels comes after --csv.")
    names = {name.lower(): address for name, address in vars(URLs).items() if name.isupper()}
    if data.lower() not in names:
        close = did_you_mean(data.lower(), [name for name in names if name[0] == data[:1].lower()])
        raise UsageError(f"{data} is neither a folder nor the name of a data set.{close}")
    try:
        return untar_data(names[data.lower()], timeout=DOWNLOAD_TIMEOUT)
    except DownloadError as error:
        archive = f"{names[data.lower()].rpartition('/')[2]}.tgz"
        if data.lower() != DEFAULT_DATA or any(p.exists() for p in (Path("data") / archive, home() / "data" / archive)):
            raise  # the user's own archive must not be replaced by other images
        from minifast.data.synthetic import generate_sample

        write_text(f"{' '.join(error.cli_message.split())} Training on generated images of 3s and 7s instead.")
        return generate_sample()


def check_model(learn: Any, arch: str) -> None:
    """Raise an error, before any work, if the model cannot train on the first batch."""
    import torch

    from minifast.training.snapshot import preserve_learner
    from minifast.utils.tensors import as_pair

    with preserve_learner(learn), torch.no_grad():
        images, _ = as_pair(next(iter(learn.data.train_dl)))
        size = f"{len(images)} images of {' x '.join(map(str, images.shape[2:]))} pixels"
        try:
            output = learn.model.train()(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            larger = ", a larger --bs" if len(images) < len(learn.data.train_ds) else ""
            raise UsageError(
                f"--arch {arch} cannot train on a batch of {size}: {error}. Try --size 224{larger}, or another --arch."
            ) from error
    if not isinstance(output, torch.Tensor):
        raise UsageError(f"--arch {arch} gives several outputs in training, which needs Python; try another --arch.")


def check_arch(arch: str) -> None:
    """Raise an error, before any work, if there is no network of that name."""
    if arch == "simple_cnn":
        return
    from minifast.vision.architecture import find_function

    try:
        find_function(arch)
    except ValueError as error:
        own = did_you_mean(arch, ["simple_cnn"])
        raise UsageError(f"--arch: there is no {arch}.{own}" if own else f"--arch: {error}") from error


def make_model(arch: str, n_outputs: int) -> Any:
    """Return an untrained network for images of ``n_outputs`` classes, or with as many labels of another kind."""
    from torch import nn

    from minifast.models import simple_cnn
    from minifast.vision.architecture import find_function

    if arch != "simple_cnn":
        return find_function(arch)[0](num_classes=n_outputs)
    # The outputs of simple_cnn alone are never negative: of labels, none could be improbable, and a high learning rate
    # makes all outputs 0, for good.
    return nn.Sequential(*simple_cnn((3, 16, 16, 16)), nn.Linear(16, n_outputs))


def is_first_process() -> bool:
    """Return whether this is the only process of the training, or the first of several, which writes the files."""
    from minifast.distributed.group import current_group

    group = current_group()
    return group is None or not group.rank
