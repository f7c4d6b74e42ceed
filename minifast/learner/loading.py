"""Load an exported learner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from minifast.data.bunch import DataBunch
from minifast.data.images.decoding import ImageFiles, list_images
from minifast.data.images.image_bunch import ImageDataBunch
from minifast.data.images.sources import file_loader
from minifast.errors import DataError
from minifast.export.graph import Program
from minifast.export.reader import build_loss, check_archive, check_format
from minifast.learner.learner import Learner
from minifast.utils import files
from minifast.utils.checks import check_count


def load_learner(
    path: str | Path,
    file: str | Path | IO[bytes] = "export.pkl",
    test: Any = None,
    device: torch.device | str | None = None,
    bs: int = 64,
    trust: bool = False,
) -> Learner:
    """Return a learner that predicts with what ``learn.export`` wrote; reading the file runs no code in it.

    ``predict`` takes pictures and tensors as before, and ``get_preds(DatasetType.Test)`` predicts ``test``. There are
    no training data in it; metrics and callbacks are not kept.

    Args:
        path: the folder of the file, or the file itself.
        file: its name, or an open file.
        test: what to predict: a folder of pictures (those in its folders too, sorted by name), a list of picture
            files, or a loader of batches, with targets or without.
        device: where to predict; by default the GPU if there is one.
        bs: pictures a batch of ``test``.
        trust: read a file that ``export(pickle=True)`` wrote, which runs the code in it: only one whose maker you know.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is cut off, holds code, or was written by something else than ``export``.

    >>> load_learner("models")
    Traceback (most recent call last):
    FileNotFoundError: There is no file models/export.pkl; learn.export() writes one.
    """
    path = Path(path)
    check_count("bs", bs)
    if isinstance(file, (str, Path)):
        target: Any = path if path.is_file() else path / file
        if not target.is_file():
            there = sorted(one.name for one in target.parent.glob("*.pkl")) if target.parent.is_dir() else []
            found = f"its folder has {', '.join(there)}" if there else "learn.export() writes one"
            raise FileNotFoundError(f"There is no file {target}; {found}.")
        path = target.parent
    else:
        target = file
    check_archive(target)
    kept = check_format(files.read(target, trust=trust), target)
    model = kept["model"] if "model" in kept else Program(kept["program"])
    size, classes = kept["pictures"], kept["classes"]
    kind = DataBunch if size is None else ImageDataBunch
    loss_func = build_loss(kept["loss"])
    data = kind([], None, loader_for(test, size, bs, device), device, path=path, classes=classes, loss_func=loss_func)
    if isinstance(data, ImageDataBunch):
        data.size = tuple(size)
    return Learner(data, model.eval(), loss_func=loss_func.to(data.device))


def loader_for(test: Any, size: Sequence[int] | None, bs: int, device: torch.device | str | None) -> Any:
    """Return the loader of what is to be predicted, or None."""
    files_given = isinstance(test, (list, tuple)) and all(isinstance(one, (str, Path)) for one in test)
    if not files_given and not isinstance(test, (str, Path)):
        return test
    if size is None:
        raise DataError("This model was trained on other things than pictures; give test a loader of batches.")
    height, width = size
    pictures = ImageFiles("to predict", (height, width))
    if isinstance(test, (str, Path)):
        if not Path(test).is_dir():
            raise DataError(f"There is no folder {test}; give test a folder of pictures, or a list of files.")
        pictures.add(list_images(test, recurse=True), 0)
    else:
        pictures.add([(str(one), 0, 0) for one in test], 0)
    if not len(pictures):
        raise DataError("There are no pictures in test; give a folder or a list with at least one.")
    return file_loader(pictures, bs, False, 0, 0, device)
