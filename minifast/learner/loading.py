"""Build a learner for inference from an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from minifast.data.bunch import DataBunch
from minifast.data.images.conversion import Pixels
from minifast.data.images.decoding import ImageFiles
from minifast.data.images.image_bunch import ImageDataBunch
from minifast.data.images.listing import list_images
from minifast.data.images.sources import file_loader
from minifast.data.loaders import TensorLoader
from minifast.data.tabular.encoder import TableEncoder
from minifast.data.tabular.tabular_bunch import TabularDataBunch
from minifast.errors import DataError
from minifast.export.graph import Program
from minifast.export.reader import build_loss, check_archive, check_format
from minifast.learner.learner import Learner
from minifast.utils import files
from minifast.utils.checks import check_count, shortlist
from minifast.utils.public import public


@public
def load_learner(
    path: str | Path,
    file: str | Path | IO[bytes] = "export.pkl",
    test: Any = None,
    device: torch.device | str | None = None,
    bs: int = 64,
    trust: bool = False,
) -> Learner:
    """Return a learner for inference from a file of ``learn.export``; reading the file runs no code in it.

    ``predict`` takes images and tensors as before, and ``get_preds(DatasetType.Test)`` predicts ``test``. The learner
    has no training data, metrics or callbacks.

    Args:
        path: the folder of the file, or the file itself.
        file: the file's name, or an open file.
        test: the data to predict: a folder of images (searched recursively, sorted by name), a list of image files, a
            data frame for a model of tables, or a loader of batches with or without targets.
        device: the device of the model. By default the GPU if there is one.
        bs: the batch size for images in ``test``.
        trust: read a file of ``export(pickle=True)``, which runs the code in it. Use it only for files from someone you
            trust.

    Raises:
        FileNotFoundError: there is no such file, or an image in ``test`` does not exist.
        FileFormatError: the file is incomplete, holds code, or was not written by ``export``.

    >>> load_learner("models")
    Traceback (most recent call last):
    FileNotFoundError: There is no file models/export.pkl; learn.export() writes one.
    """
    path = Path(path)
    check_count("bs", bs)
    if isinstance(file, (str, Path)):
        target: Any = path if path.is_file() else path / file
        if not target.is_file():
            exports = sorted(export.name for export in target.parent.glob("*.pkl")) if target.parent.is_dir() else []
            hint = f"its folder has {', '.join(exports)}" if exports else "learn.export() writes one"
            raise FileNotFoundError(f"There is no file {target}; {hint}.")
        path = target.parent
    else:
        target = file
    check_archive(target)
    content = check_format(files.read(target, trust=trust), target)
    model = content["model"] if "model" in content else Program(content["program"])
    size, classes = content["pictures"], content["classes"]
    table = content.get("table")
    encoder = None if table is None else TableEncoder.from_plain(table)
    data_class = ImageDataBunch if size is not None else DataBunch if encoder is None else TabularDataBunch
    loss_func = build_loss(content["loss"])
    resize = content.get("resize") or "crop"
    channels, value_range, _ = content.get("pixels") or Pixels()[:3]
    exact = content.get("exact", True)  # a file without it is of a model that was trained on exact pixels
    pixels = Pixels(channels, None if value_range is None else tuple(value_range), exact=bool(exact))
    if encoder is not None and hasattr(test, "columns"):
        test_dl: Any = TensorLoader(encoder.encode(test, warn=True), torch.zeros(len(test)), bs, device=device)
    else:
        test_dl = make_test_loader(test, size, resize, pixels, bs, device)
    data = data_class([], None, test_dl, device, path=path, classes=classes, loss_func=loss_func)
    if isinstance(data, ImageDataBunch):
        data.size, data.resize, data.pixels, data.channels = tuple(size), resize, pixels, channels
    if isinstance(data, TabularDataBunch) and encoder is not None:
        data.encoder = encoder
    if isinstance(model, Program):
        first, *others = dimensions = tuple(len(shape) for shape, _ in model.inputs)
        data.sample_dimensions = dimensions if others else first
    return Learner(data, model.eval(), loss_func=loss_func.to(data.device))


def make_test_loader(
    test: Any, size: Sequence[int] | None, resize: str, pixels: Pixels, bs: int, device: torch.device | str | None
) -> Any:
    """Return the loader of the data to predict, or None."""
    is_file_list = isinstance(test, (list, tuple)) and all(isinstance(file, (str, Path)) for file in test)
    if not is_file_list and not isinstance(test, (str, Path)):
        return test
    if size is None:
        raise DataError("The model was not trained on images, so `test` must be a loader of batches.")
    height, width = size
    images = ImageFiles("to predict", (height, width), resize, pixels)
    if isinstance(test, (str, Path)):
        if not Path(test).is_dir():
            raise DataError(f"There is no folder {test}; `test` must be a folder of images or a list of files.")
        images.add(list_images(test, recurse=True), 0)
    else:
        missing = [str(file) for file in test if not Path(file).is_file()]
        if missing:
            raise FileNotFoundError(f"There is no file {shortlist(missing)}; check the paths in `test`.")
        images.add([(str(file), 0, 0) for file in test], 0)
    if not len(images):
        raise DataError("There are no images in `test`; give a folder or a list with at least one.")
    return file_loader(images, bs, False, 0, 0, device)
