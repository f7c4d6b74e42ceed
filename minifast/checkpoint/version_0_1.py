"""Recognize the runs of checkpoints that version 0.1 wrote."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from minifast.checkpoint.fingerprint import SET_BY_RUNS, settings_of
from minifast.metrics.base import columns_of
from minifast.utils.tensors import is_plain

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


N_SAMPLED = 256  # samples of a data set that the checksum covers


def run_fingerprint(learn: Learner) -> dict[str, dict[str, Any]]:
    """Return what version 0.1 stored to recognize a run."""
    model, opt, data = learn.model, learn.opt.opt, learn.data
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    shapes = {name: list(getattr(value, "shape", ())) for name, value in model.state_dict().items()}
    settings = {name: value for name, value in opt.param_groups[0].items() if name not in SET_BY_RUNS}
    if "betas" in settings:
        settings["betas"] = list(settings["betas"][1:])  # the first is the momentum, which schedules set
    precision = {} if learn.precision is None else {"precision": str(learn.precision)}
    parts: dict[str, dict[str, Any]] = {
        "model": {**shapes, "layers": described(model), "frozen": frozen, **precision},
        "loss": {"function": described(learn.loss_func)},
        "opt": {
            "kind": type(opt).__name__,
            "parameters": [len(group["params"]) for group in opt.param_groups],
            "weight decay": learn.opt.read("wd"),
            **settings,
        },
        "data": {"classes": data.classes},
        "metrics": {"names": columns_of(learn.metrics)},
    }
    for name, loader in (("training", data.train_dl), ("validation", data.valid_dl)):
        if loader:
            items = getattr(loader, "dataset", None)
            parts["data"] |= {
                f"batches of {name}": len(loader),
                f"checksum of {name} items": checksum(items),
            }
    return {part: {name: value for name, value in values.items() if is_plain(value)} for part, values in parts.items()}


def upgrade_call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a saved call of any version with the argument names of this version.

    >>> upgrade_call({"method": "fit", "cyc_len": 2})
    {'method': 'fit', 'epochs': 2}
    """
    return {"epochs" if name == "cyc_len" else name: value for name, value in call.items()}


def described(value: Any) -> str:
    """Return a function's name, or an object's text, without addresses in memory."""
    if isinstance(value, partial):
        return f"{described(value.func)}({value.args}, {value.keywords})"
    name = getattr(value, "__qualname__", None)
    if isinstance(value, nn.modules.loss._Loss):  # their texts do not say how they are set
        return f"{type(value).__qualname__}({settings_of(value)})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", name or repr(value))


def checksum(items: Any) -> str:
    """Return a checksum over a sample of what a data set holds: tensors, arrays, and lists of names and numbers."""
    digest = hashlib.sha256()
    _add(digest, items, depth=3)
    return digest.hexdigest()[:16]


def _add(digest: Any, value: Any, depth: int) -> None:
    if isinstance(value, (np.ndarray, np.generic)):
        numbers = value.dtype.kind in "biuf" and value.ndim
        value = torch.from_numpy(np.ascontiguousarray(value)) if numbers else value.tolist()
    if isinstance(value, Tensor):
        rows = value.detach() if value.ndim else value.detach()[None]
        picked = torch.linspace(0, len(rows) - 1, min(len(rows), N_SAMPLED), device=value.device).long()
        digest.update(rows[picked].cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (str, Path)):
        digest.update("/".join(Path(value).parts[-2:]).encode())  # the folder around may move
    elif isinstance(value, (bool, int, float)):
        digest.update(repr(value).encode())
    elif isinstance(value, (list, tuple)):
        digest.update(str(len(value)).encode())
        for i in np.linspace(0, len(value) - 1, min(len(value), N_SAMPLED)).astype(int).tolist():
            _add(digest, value[i], depth)
    elif isinstance(value, dict):
        _add(digest, [*value.keys(), *value.values()], depth)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, (nn.Module, torch.Generator)):
        for name in sorted(vars(value)):
            _add(digest, vars(value)[name], depth - 1)
