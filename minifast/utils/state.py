"""Copy the state that objects hold in memory, and restore it in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from minifast.utils.random import (
    generator_state,
    get_rng_states,
    is_generator,
    set_generator_state,
    set_rng_states,
)
from minifast.utils.shared import is_shared, read_shared, write_shared
from minifast.utils.walk import CONTAINERS, OPAQUE, SCALARS, attributes_of, package_of, walk

MANY = 2**16  # elements above which a container or tensor of a data set counts as data, not as state


class Snapshot:
    """The state that ``roots`` hold, see ``walk``; ``restore`` puts it back into the same objects.

    Args:
        roots, data, stop, seen: as for ``walk``.
        generators_only: keep the states of random generators only.
        parameters: False leaves out parameters, which nothing changes without gradients.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        data: Collection[str] = (),
        stop: Collection[Any] = (),
        generators_only: bool = False,
        seen: set[int] | None = None,
        parameters: bool = True,
    ) -> None:
        self.tensors: list[Tensor] = []
        self._copies: list[tuple[Any, Any]] = []
        self._workers: list[tuple[DataLoader[Any], Any]] = []
        for _, value, in_data in walk(roots, data, stop, seen, tensors=not generators_only):
            if is_generator(value):
                self._copies.append((value, generator_state(value)))
            elif not generators_only and (parameters or not isinstance(value, nn.Parameter)):
                if isinstance(value, DataLoader) and vars(value).get("persistent_workers"):
                    # Its workers have a state that only they know: others work until it is restored.
                    self._workers.append((value, vars(value).get("_iterator")))
                    vars(value)["_iterator"] = None
                copy = _copy_of(value, in_data)
                if copy is not None:
                    self._copies.append((value, copy))
                    if isinstance(value, Tensor) and not in_data:
                        self.tensors.append(value)

    def restore(self) -> None:
        """Restore the state."""
        for loader, iterator in self._workers:
            vars(loader)["_iterator"] = iterator
        for value, copy in self._copies:
            if is_generator(value):
                set_generator_state(value, copy)
            else:
                put(value, copy)


@contextmanager
def restoring(*snapshots: Snapshot) -> Iterator[None]:
    """Restore snapshots and the global random generators on leaving."""
    generators = get_rng_states()
    try:
        yield
    finally:
        for snapshot in snapshots:
            snapshot.restore()
        set_rng_states(generators)


class _Attributes(NamedTuple):
    cls: type
    values: dict[str, Any]
    in_data: bool


class _TensorCopy(NamedTuple):
    value: Tensor
    grad: Tensor | None
    requires_grad: bool
    version: int  # torch counts the changes in place, but not those through ``tensor.data``


class _Shared(NamedTuple):
    value: Any


def _copy_of(value: Any, in_data: bool) -> Any:
    """Return a copy of an object's own state, or None where it has none."""
    if isinstance(value, Tensor):
        fixed = not value.is_leaf or value.is_inference() or nn.parameter.is_lazy(value) or value.is_meta
        fixed = fixed or (value.layout is torch.strided and 0 in value.stride())  # expanded, which no one writes to
        if fixed or (in_data and value.numel() > MANY):
            return None
        return _TensorCopy(value.detach().clone(), value.grad, value.requires_grad, value._version)
    if isinstance(value, np.ndarray):
        too_much = in_data and value.size > MANY
        return value.copy() if value.flags.writeable and not value.dtype.hasobject and not too_much else None
    if type(value) in CONTAINERS:
        if in_data and (len(value) > MANY or not all(type(element) in SCALARS for element in _elements(value))):
            return None  # samples, or a cache of them
        return value.copy()
    if isinstance(value, (type, FunctionType, MethodType, BuiltinMethodType, partial, tuple, ModuleType)):
        return None
    if is_shared(value):
        return _Shared(read_shared(value))
    if package_of(value.__class__) in OPAQUE:
        return None
    attributes = attributes_of(value)
    return _Attributes(type(value), attributes, in_data) if attributes else None


def _elements(value: Any) -> Collection[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else value


def put(value: Any, copy: Any) -> None:
    """Restore a copy of an object's own state into the object."""
    if isinstance(copy, _TensorCopy):
        with torch.no_grad():
            if value.shape != copy.value.shape:
                value.set_(copy.value)
            # A backward pass may need a tensor that is as it was. On other devices, to compare would wait.
            elif not (value.is_cpu and value._version == copy.version and torch.equal(value, copy.value)):
                value.copy_(copy.value)
        value.requires_grad_(copy.requires_grad)
        value.grad = copy.grad
    elif isinstance(copy, _Attributes):
        _put_attributes(value, copy)
    elif isinstance(copy, _Shared):
        write_shared(value, copy.value)
    elif isinstance(value, np.ndarray):
        value[...] = copy
    elif isinstance(value, (list, bytearray)):
        value[:] = copy
    else:
        value.clear()
        if isinstance(value, deque):
            value.extend(copy)
        else:
            value.update(copy)


def _put_attributes(value: Any, copy: _Attributes) -> None:
    if type(value) is not copy.cls:
        value.__class__ = copy.cls
    now = attributes_of(value)

    def is_state(new: Any) -> bool:
        # A data set keeps what it opened, loaded or cached.
        return not copy.in_data or type(new) in SCALARS or is_generator(new)

    for name in now.keys() - copy.values.keys():
        if is_state(now[name]):
            _delete(value, name)
    for name, old in copy.values.items():
        if now.get(name, value) is not old and is_state(old) and is_state(now.get(name)):
            if name in getattr(value, "__dict__", {}):
                vars(value)[name] = old
            else:
                object.__setattr__(value, name, old)


def _delete(value: Any, name: str) -> None:
    if name in getattr(value, "__dict__", {}):
        del vars(value)[name]
    else:
        object.__delattr__(value, name)
