"""Read an exported file, without running code from it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from minifast.checkpoint.model import is_with_opt
from minifast.errors import FileFormatError, MinifastError
from minifast.export.writer import FORMAT, LOSSES, VERSION, ModelWithTransforms
from minifast.utils.tensors import is_plain


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


def check_archive(file: Path | IO[bytes]) -> None:
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
    whole = isinstance(kept.get("model"), ModelWithTransforms)
    if missing or not (whole or "program" in kept):
        raise FileFormatError(f"{file} lacks {', '.join(sorted(missing)) or 'its model'}; export again.")
    return kept


def build_loss(kept: dict[str, Any]) -> nn.Module:
    """Return the loss that a file describes."""
    kind = LOSSES.get(str(kept["name"]))
    if kind is None:
        return MissingLoss(str(kept["called"]), kept["activation"])
    loss = kind()
    for name, value in kept["settings"].items():
        if name in {*vars(loss), *loss._buffers} and is_plain(value):
            setattr(loss, name, value)
    return loss
