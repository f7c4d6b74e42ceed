"""Check the content of an exported file and build its loss, without running code from it."""

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
    """Stand for a loss that is not in the file; it raises an error when a loss is computed."""

    def __init__(self, called: str, activation: str) -> None:
        super().__init__()
        self.called = called
        self.activation = activation

    def forward(self, *_: Any) -> Tensor:
        """Raise an error that names the loss."""
        raise MinifastError(
            f"The export does not hold the loss {self.called}, because minifast does not know it; set learn.loss_func."
        )


def check_archive(file: Path | IO[bytes]) -> None:
    """Raise a FileFormatError if a checksum in the file is wrong; torch does not check them."""
    begin = 0 if isinstance(file, Path) else file.tell()
    damaged = None
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except PermissionError:
        raise
    except Exception:  # zipfile raises errors of many types for damaged archives; torch's reader reports them
        damaged = None
    if damaged is not None:
        raise FileFormatError(f"{file} is damaged; use another copy of it.")
    if not isinstance(file, Path):
        file.seek(begin)


def check_format(content: Any, file: Any) -> dict[str, Any]:
    """Return the content of a file if ``export`` wrote it in this format."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        is_saved = isinstance(content, dict) and (is_with_opt(content) or all(map(torch.is_tensor, content.values())))
        hint = "learn.save wrote it: make the learner and call learn.load" if is_saved else "learn.export() writes one"
        raise FileFormatError(f"{file} is not an export; {hint}.")
    if content.get("version") != VERSION:
        raise FileFormatError(
            f"{file} is an export in format {content.get('version')}, but this version of minifast reads format "
            f"{VERSION}; use the version that wrote it, with torch {content.get('torch')}, or export again."
        )
    missing = {"pictures", "classes", "loss"} - set(content)
    is_pickled = isinstance(content.get("model"), ModelWithTransforms)
    if missing or not (is_pickled or "program" in content):
        raise FileFormatError(f"{file} has no {', '.join(sorted(missing)) or 'model'}; export again.")
    return content


def build_loss(description: dict[str, Any]) -> nn.Module:
    """Return the loss that a file describes."""
    loss_class = LOSSES.get(str(description["name"]))
    if loss_class is None:
        return MissingLoss(str(description["called"]), description["activation"])
    loss = loss_class()
    for name, value in description["settings"].items():
        if name in {*vars(loss), *loss._buffers} and is_plain(value):
            setattr(loss, name, value)
    return loss
