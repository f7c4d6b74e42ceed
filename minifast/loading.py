"""What ``Learner.export`` wrote becomes a learner that predicts."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from minifast import files
from minifast.callback import is_plain
from minifast.checkpoint import is_with_opt
from minifast.data.bunch import DataBunch
from minifast.data.image_bunch import ImageDataBunch
from minifast.data.images import Pictures, list_pictures
from minifast.data.picture_sets import file_loader
from minifast.errors import DataError, FileFormatError, MinifastError, check_count
from minifast.learner import Learner
from minifast.program import Program
from minifast.shipping import FORMAT, LOSSES, VERSION, Whole


class MissingLoss(nn.Module):
    """Stands for a loss that a file does not hold; it says so when somebody asks for losses."""

    def __init__(self, called: str, activation: str) -> None:
        super().__init__()
        self.called = called
        self.activation = activation

    def forward(self, *_: Any) -> Tensor:
        """Say that the loss is missing."""
        raise MinifastError(
            f"The export does not hold the loss {self.called}, which is none that minifast knows; set learn.loss_func."
        )


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
    check_whole(target)
    kept = check_format(files.read(target, trust=trust), target)
    model = kept["model"] if "model" in kept else Program(kept["program"])
    size, classes = kept["pictures"], kept["classes"]
    kind = DataBunch if size is None else ImageDataBunch
    loss_func = made_loss(kept["loss"])
    data = kind([], None, loader_for(test, size, bs, device), device, path=path, classes=classes, loss_func=loss_func)
    if isinstance(data, ImageDataBunch):
        data.size = tuple(size)
    return Learner(data, model.eval(), loss_func=loss_func.to(data.device))


def check_whole(file: Path | IO[bytes]) -> None:
    """Refuse a file of which a part is not what was written, by its checksums, at which torch does not look."""
    begin = 0 if isinstance(file, Path) else file.tell()
    damaged = None
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except PermissionError:
        raise
    except Exception:  # a broken directory meets zipfile with errors of every kind; torch's reader says what it is
        damaged = None
    if damaged is not None:
        raise FileFormatError(f"{file} is damaged; take another copy of it.")
    if not isinstance(file, Path):
        file.seek(begin)


def check_format(kept: Any, file: Any) -> dict[str, Any]:
    """Return what a file holds, if ``export`` wrote it."""
    if not isinstance(kept, dict) or kept.get("format") != FORMAT:
        saved = isinstance(kept, dict) and (is_with_opt(kept) or all(map(torch.is_tensor, kept.values())))
        way_out = (
            "learn.save wrote it: make the learner and call learn.load" if saved else "write one with learn.export()"
        )
        raise FileFormatError(f"{file} is no export; {way_out}.")
    if kept.get("version") != VERSION:
        raise FileFormatError(
            f"{file} is an export in format {kept.get('version')}, and this minifast reads format {VERSION}; "
            f"use the version that wrote it, with torch {kept.get('torch')}, or export again with this one."
        )
    missing = {"pictures", "classes", "loss"} - set(kept)
    whole = isinstance(kept.get("model"), Whole)
    if missing or not (whole or "program" in kept):
        raise FileFormatError(f"{file} lacks {', '.join(sorted(missing)) or 'its model'}; export again.")
    return kept


def made_loss(kept: dict[str, Any]) -> nn.Module:
    """Return the loss that a file describes."""
    kind = LOSSES.get(str(kept["name"]))
    if kind is None:
        return MissingLoss(str(kept["called"]), kept["activation"])
    loss = kind()
    for name, value in kept["settings"].items():
        if name in {*vars(loss), *loss._buffers} and is_plain(value):
            setattr(loss, name, value)
    return loss


def loader_for(test: Any, size: Sequence[int] | None, bs: int, device: torch.device | str | None) -> Any:
    """Return the loader of what is to be predicted, or None."""
    files_given = isinstance(test, (list, tuple)) and all(isinstance(one, (str, Path)) for one in test)
    if not files_given and not isinstance(test, (str, Path)):
        return test
    if size is None:
        raise DataError("This model was trained on other things than pictures; give test a loader of batches.")
    height, width = size
    pictures = Pictures("to predict", (height, width))
    if isinstance(test, (str, Path)):
        if not Path(test).is_dir():
            raise DataError(f"There is no folder {test}; give test a folder of pictures, or a list of files.")
        pictures.add(list_pictures(test, recurse=True), 0)
    else:
        pictures.add([(str(one), 0, 0) for one in test], 0)
    if not len(pictures):
        raise DataError("There are no pictures in test; give a folder or a list with at least one.")
    return file_loader(pictures, bs, False, 0, 0, device)
