"""Parameters that are sharded over the processes by torch's FSDP2, and the files of their shards.

A sharded parameter is a ``DTensor``, of which each process holds some rows. The files are those of
``torch.distributed.checkpoint``, which any number of processes can read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minifast.distributed.exchange import from_first
from minifast.distributed.group import Group
from minifast.utils.checks import module_name
from minifast.utils.tensors import is_dtensor, map_tensors

SUFFIX = ".shards"
KEY = "sharded tensor"  # of a dict that stands for a tensor in a checkpoint


def is_sharded(value: Any) -> bool:
    """Return whether a value is a sharded tensor, or a module with sharded parameters."""
    return any(map(is_dtensor, value.parameters())) if isinstance(value, nn.Module) else is_dtensor(value)


def class_of(module: nn.Module) -> type:
    """Return the class of a module; of a sharded one, which torch gives a class of its own, the class before."""
    return next(cls for cls in type(module).__mro__ if not module_name(cls).startswith("torch.distributed."))


def local(tensor: Tensor) -> Tensor:
    """Return the rows that this process holds; a tensor that is not sharded as it is."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def shard_model(model: nn.Module, blocks: Sequence[nn.Module] | None, device: torch.device, group: Group) -> None:
    """Shard a model over the processes, each of ``blocks`` by itself, so that only one is whole at a time."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (group.size,))
    for module in [*(layers_of(model) if blocks is None else blocks), model]:
        # Resharded after validation too, so that the parameters are always those that the optimizer knows.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers or blocks of layers with parameters in sequences and lists; none that shares a parameter.

    >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 1))
    >>> [str(layer) for layer in layers_of(model)][1]
    'Linear(in_features=3, out_features=1, bias=True)'
    """
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1

    def find(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            containers = (nn.Sequential, nn.ModuleList)
            if isinstance(child, containers) or not isinstance(module, containers):
                yield from find(child)
            elif any(True for _ in child.parameters()):
                yield child

    layers = []
    for layer in find(model):
        own: dict[int, int] = {}
        for _, parameter in layer.named_parameters(remove_duplicate=False):
            own[id(parameter)] = own.get(id(parameter), 0) + 1
        if all(uses[name] == count for name, count in own.items()):
            layers.append(layer)
    return layers


def whole(values: Any, group: Group | None) -> Any:
    """Return values with whole tensors, on the CPU, for sharded ones; on other ranks than 0 these are empty.

    All processes must call it.
    """

    def collect(tensor: Any) -> Any:
        if not is_sharded(tensor):
            return tensor
        full = tensor.full_tensor()
        return full.cpu() if group is None or group.rank == 0 else full.new_empty(0)

    return map_tensors(collect, values)


def like(value: Any, target: Any) -> Any:
    """Return a whole tensor sharded as ``target`` is; anything else as it is. All processes must call it."""
    if not is_sharded(target) or is_sharded(value) or not isinstance(value, Tensor) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    moved = value.to(target.device)
    return distribute_tensor(moved, target.device_mesh, target.placements)


def like_model(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return a state dict, or gradients by name, sharded as the parameters of ``model`` are."""
    parameters = dict(model.named_parameters())
    return {name: like(value, parameters.get(name)) for name, value in state.items()}


def like_optimizer(state: dict[int, Any], groups: Sequence[dict[str, Any]]) -> dict[int, Any]:
    """Return the ``state`` part of an optimizer's state dict, sharded as the parameters of its groups are."""
    parameters = dict(enumerate(parameter for group in groups for parameter in group["params"]))
    return {i: map_tensors(partial(like, target=parameters.get(i)), values) for i, values in state.items()}


# --- files of shards


def take_shards(values: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return values with a dict for each sharded tensor, and these tensors by name."""
    shards: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def take(tensor: Tensor) -> Any:
        if not is_sharded(tensor):
            return tensor
        name = names.setdefault(id(tensor), str(len(names)))
        shards[name] = tensor.detach()
        return {KEY: name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}

    return map_tensors(take, values), shards


def save_shards(shards: dict[str, Tensor], file: Path, group: Group | None) -> str:
    """Write the shards of all processes into a new folder beside a file, and return its name; all must call it."""
    from torch.distributed.checkpoint.state_dict_saver import save

    def unused() -> str:
        numbers = [int(folder.name.split(".")[-2]) for folder in folders_of(file)]
        return f"{file.stem}.{max(numbers, default=0) + 1}{SUFFIX}"

    name = from_first(unused, group)
    save(dict(shards), checkpoint_id=file.with_name(name))
    return name


def load_shards(values: Any, folder: Path, model: nn.Module) -> Any:
    """Return values with the tensors for the dicts of ``take_shards``, sharded if ``model`` is.

    The processes may be others than those that saved them; all must call it.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    parameters: Iterator[Any] = model.parameters()
    mesh = next((parameter.device_mesh for parameter in parameters if is_sharded(parameter)), None)
    tensors: dict[str, Tensor] = {}

    def make(value: dict[str, Any]) -> Tensor:
        dtype = getattr(torch, value["dtype"])
        if mesh is None:
            return torch.empty(value["shape"], dtype=dtype)
        from torch.distributed.tensor import Shard, zeros

        return zeros(value["shape"], dtype=dtype, device_mesh=mesh, placements=[Shard(0)])

    _map_stand_ins(lambda value: tensors.setdefault(value[KEY], make(value)), values)
    load(tensors, checkpoint_id=folder)
    return _map_stand_ins(lambda value: tensors[value[KEY]], values)


def _map_stand_ins(function: Callable[[dict[str, Any]], Any], values: Any) -> Any:
    if isinstance(values, dict):
        if KEY in values:
            return function(values)
        return {name: _map_stand_ins(function, value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)([_map_stand_ins(function, value) for value in values])
    return values


def remove_shards(file: Path, kept: Sequence[str]) -> None:
    """Remove the folders of shards that belong to a file and are not among ``kept``."""
    for folder in folders_of(file):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def folders_of(file: Path) -> list[Path]:
    """Return the folders of shards that belong to a file."""
    pattern = re.compile(rf"{re.escape(file.stem)}\.\d+{re.escape(SUFFIX)}")
    return [path for path in file.parent.iterdir() if pattern.fullmatch(path.name)] if file.parent.is_dir() else []
