"""Recognize a run: what decides its result, as plain values."""

from __future__ import annotations

import hashlib
import random
import re
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from minifast.data.resume import components
from minifast.distributed.sharding import class_of
from minifast.metrics.base import columns_of
from minifast.utils.saved_state import all_attributes, is_setting, plain_attributes
from minifast.utils.tensors import is_plain
from minifast.utils.walk import OPAQUE, SCALARS, attributes_of, changing_attributes, package_of

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


N_SAMPLED = 256  # samples of a data set that the checksum covers
SET_BY_RUNS = {  # values of a parameter group that schedules and runs set
    *("params", "lr", "momentum", "weight_decay", "fused", "foreach"),
    *("initial_lr", "min_lr", "max_lr", "base_momentum", "max_momentum"),
}
CODE = (FunctionType, BuiltinFunctionType, partial, type, torch.dtype)  # compared by name
LOADER_SETTINGS = ("batch_size", "drop_last")  # of a DataLoader; workers and memory do not change the batches


def run_fingerprint(learn: Learner) -> dict[str, dict[str, Any]]:
    """Return what a run and its resumed part must have in common, by part and name."""
    model, opt, data = learn.model, learn.opt.opt, learn.data
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    shapes = {name: list(getattr(value, "shape", ())) for name, value in model.state_dict().items()}
    layers = [f"{name} {class_of(module).__qualname__}" for name, module in model.named_modules()]
    settings = {name: value for name, value in opt.param_groups[0].items() if name not in SET_BY_RUNS}
    if "betas" in settings:
        settings["betas"] = list(settings["betas"][1:])  # the first is the momentum, which schedules set
    precision = {} if learn.precision is None else {"precision": str(learn.precision)}
    parts: dict[str, dict[str, Any]] = {
        "model": {**shapes, "layers": layers, "frozen": frozen, **precision},
        "loss": {"function": described(learn.loss_func)},
        "opt": {
            "kind": type(opt).__name__,
            "parameters": [len(group["params"]) for group in opt.param_groups],
            "weight decay": learn.opt.read("wd"),
            **settings,
        },
        "data": {"classes": data.classes},
        "metrics": {"names": columns_of(learn.metrics)},
        "settings": settings_of_run(learn),
    }
    for name, loader in (("training", data.train_dl), ("validation", data.valid_dl)):
        if loader:
            samples = getattr(loader, "dataset", None)
            samples = getattr(loader, "dl", None) if samples is None else samples
            parts["data"] |= {
                f"batches of {name}": len(loader),
                f"loader of {name}": [type(part).__name__ for part in components(loader)],
                f"checksum of {name} samples": checksum(samples),
                f"transforms of {name}": [described(tfm) for tfm in getattr(loader, "tfms", ())],
            }
    return {part: {name: v for name, v in values.items() if is_plain(v)} for part, values in parts.items()}


def settings_of_run(learn: Learner) -> dict[str, Any]:
    """Return the plain attributes of model and data that their classes do not change, by path."""
    roots = {"model": learn.model, "train_dl": learn.data.train_dl, "valid_dl": learn.data.valid_dl}
    where: tuple[Any, ...] = (roots, ("train_dl", "valid_dl"), [learn, learn.data])
    settings: dict[str, Any] = {}
    for path, owner, name, value, changes in plain_attributes(*where):
        is_loaders = isinstance(owner, DataLoader) and name not in LOADER_SETTINGS
        is_plain_setting = is_setting(value) or (value is None and name[:1] != "_")
        if not changes and not is_loaders and is_plain_setting and not _is_passing(value):
            settings[path] = value
    for path, owner, name, value, _ in all_attributes(*where):
        is_fixed = not isinstance(owner, DataLoader) and name not in changing_attributes(class_of(owner))
        if is_fixed and isinstance(value, CODE):
            settings[path] = described(value)
    return settings


def _is_passing(value: Any) -> bool:
    """Return whether a value differs from process to process: a folder, a time, an address."""
    return Path(value).is_absolute() if isinstance(value, str) else isinstance(value, (int, float)) and abs(value) > 1e9


def described(value: Any) -> str:
    """Return a function's name, or an object's class with its settings.

    >>> described(nn.L1Loss(reduction="sum")), described(partial(round, ndigits=2))
    ("L1Loss({'reduction': 'sum'})", "round((), {'ndigits': 2})")
    """
    if isinstance(value, partial):
        arguments = tuple(element if is_setting(element) else described(element) for element in value.args)
        keywords = {n: element if is_setting(element) else described(element) for n, element in value.keywords.items()}
        return f"{described(value.func)}({arguments}, {keywords})"
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return str(name)
    if not hasattr(value, "__dict__"):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    settings: dict[str, Any] = {}
    changing = changing_attributes(value.__class__) | {"training"}
    attributes = attributes_of(value) | dict(getattr(value, "_buffers", {}))
    for key, setting in attributes.items():
        if key in changing or key.startswith("_") or isinstance(setting, (torch.Generator, random.Random)):
            continue
        if isinstance(setting, (list, tuple)) and not is_setting(setting):
            settings[key] = [described(element) for element in setting]
        elif isinstance(setting, (Tensor, np.ndarray)):
            settings[key] = checksum(setting)
        elif isinstance(setting, (dict, FunctionType, partial)) and not is_setting(setting):
            settings[key] = described(setting)
        elif is_setting(setting):
            settings[key] = setting
    return f"{type(value).__qualname__}({settings})"


def settings_of(loss_func: nn.Module) -> dict[str, Any]:
    """Return the arguments of a loss function as plain values.

    >>> settings_of(nn.L1Loss(reduction="sum"))
    {'training': True, 'reduction': 'sum'}
    """
    return {name: value for name, value in vars(loss_func).items() if name[:1] != "_" and is_plain(value)}


def checksum(samples: Any) -> str:
    """Return a checksum of some samples of a data set: tensors, arrays, and lists of names and numbers.

    What its class changes does not count: counters, caches and files that are opened when they are needed.
    """
    digest = hashlib.sha256()
    _add(digest, samples, depth=6)
    return digest.hexdigest()[:16]


def _add(digest: Any, value: Any, depth: int) -> None:
    if isinstance(value, (np.ndarray, np.generic)):
        has_numbers = value.dtype.kind in "biuf" and value.ndim
        value = torch.from_numpy(np.ascontiguousarray(value)) if has_numbers else value.tolist()
    if isinstance(value, Tensor):
        rows = value.detach() if value.ndim else value.detach()[None]
        indices = torch.linspace(0, len(rows) - 1, min(len(rows), N_SAMPLED), device=value.device).long()
        digest.update(rows[indices].cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (str, Path)):
        digest.update("/".join(Path(value).parts[-2:]).encode(errors="surrogateescape"))  # the folder above may move
    elif isinstance(value, (set, frozenset)):
        _add(digest, sorted(map(repr, value)) if is_setting(list(value)) else len(value), depth)
    elif isinstance(value, (bool, int, float)):
        digest.update(repr(value).encode())
    elif isinstance(value, (list, tuple)):
        digest.update(str(len(value)).encode())
        for i in np.linspace(0, len(value) - 1, min(len(value), N_SAMPLED)).astype(int).tolist():
            _add(digest, value[i], depth)
    elif isinstance(value, dict):
        if all(isinstance(key, str) for key in value):  # others are caches by number
            _add(digest, [*value.keys(), *value.values()], depth)
    elif (
        depth
        and hasattr(value, "__dict__")
        and package_of(value.__class__) not in OPAQUE
        and not isinstance(value, (nn.Module, torch.Generator, FunctionType, type))
    ):
        changing = changing_attributes(value.__class__)
        for name in sorted(vars(value)):
            # Single values are compared one by one, see settings_of_run, and folders may move.
            part = vars(value)[name]
            is_folder = isinstance(part, Path) and part.is_absolute()
            if name not in changing and type(part) not in SCALARS and not is_folder:
                _add(digest, part, depth - 1)


def is_slice(value: Any) -> bool:
    """Return whether a saved value stands for a slice."""
    return isinstance(value, list) and value[:1] == ["slice"]


def plain_call(method: str, **arguments: Any) -> dict[str, Any]:
    """Return a call as plain values, to save and compare: slices and arrays as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, slice):
            return ["slice", plain(value.start), plain(value.stop)]
        value = value.tolist() if hasattr(value, "tolist") else value
        return [plain(element) for element in value] if isinstance(value, (tuple, list)) else value

    return {"method": method, **{name: plain(value) for name, value in arguments.items()}}
