"""Files of the package safetensors, which hold tensors by name and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from minifast.errors import FileFormatError
from minifast.utils.checks import shortlist

SUFFIX = ".safetensors"


def is_safetensors(file: Any) -> TypeGuard[Path]:
    """Return whether ``file`` is a path with the suffix of the format."""
    return isinstance(file, Path) and file.suffix == SUFFIX


def package(file: Path) -> Any:
    """Return the module ``safetensors``; an ImportError names the command that installs it."""
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"{file} needs the package safetensors: pip install safetensors") from error
    return safetensors


def check_storable(state: Any, file: Path) -> None:
    """Raise a ValueError that names what of a state dict the format cannot hold."""
    save = package(file).torch.save

    def can_hold(value: Any) -> bool:
        try:
            save({"": value.new_empty(0)})
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
        return True

    refused = [f"{name} ({_kind(value)})" for name, value in state.items() if not can_hold(value)]
    if refused:
        raise ValueError(f"A {SUFFIX} file cannot hold {shortlist(refused)}; save to {file.stem}.pth instead.")


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = str(value.dtype).removeprefix("torch.")
    return kind if value.layout is torch.strided else f"{kind}, {str(value.layout).removeprefix('torch.')}"


def save(state: Mapping[str, Tensor], file: Path) -> None:
    """Write a state dict into an existing file, which keeps its permissions.

    A tensor with several names is written once, and the metadata give the others, as ``safetensors.torch.save_model``
    does. Tensors that share a part of their memory are written in full.
    """
    kept: dict[Any, str] = {}
    metadata = {"format": "pt"}
    tensors: dict[str, Tensor] = {}
    storages: set[Any] = set()
    for name, value in state.items():
        tensor = value.detach().resolve_conj().resolve_neg()
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and (first := kept.setdefault(key, name)) != name:
            metadata[name] = first
            continue
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        # The package refuses tensors that share memory, as it cannot say so in the file.
        tensors[name] = tensor.clone() if storage in storages else tensor
        tensors[name] = tensors[name].contiguous()
        storages.add(storage)
    mode = file.stat().st_mode
    module = package(file)
    try:
        module.torch.save_file(tensors, file, metadata)
    except module.SafetensorError as error:
        raise OSError(f"{file.parent} cannot be written into: {error}") from error
    file.chmod(mode)  # newer versions of the package put another file in its place


def load(file: Path, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """Return the state dict in a file, with each name of a tensor that has several.

    Raises:
        FileFormatError: the file is damaged.
        ImportError: the package safetensors is not installed.
    """
    module = package(file)
    try:
        with module.safe_open(file, "pt", device=str(device or "cpu")) as content:
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            metadata = content.metadata() or {}
    except module.SafetensorError as error:
        raise FileFormatError(f"{file} is damaged, or no safetensors file ({error}). Copy it again.") from error
    others = {name: state[first] for name, first in metadata.items() if first in state and name not in state}
    return {**state, **others}
