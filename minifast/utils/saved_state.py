"""Return the state that objects hold as tensors and plain values for a checkpoint, and restore it in place."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from minifast.utils.random import generator_kind, generator_state, is_generator, make_generator, set_generator_state
from minifast.utils.shared import is_shared, read_shared, write_shared
from minifast.utils.state import MANY, put
from minifast.utils.walk import CONTAINERS, MOST, OPAQUE, SCALARS, attributes_of, changing_attributes, package_of, walk

MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


class Attribute(NamedTuple):
    """An attribute with a plain value: where it is, and whether its class changes it."""

    path: str
    owner: Any
    name: str
    value: Any
    changes: bool


def plain_attributes(
    roots: Mapping[str, Any], data: Collection[str] = (), stop: Collection[Any] = ()
) -> Iterator[Attribute]:
    """Yield the attributes of all objects in ``roots`` that hold plain values, in the order of ``walk``."""
    for path, owner, name, value, in_data in all_attributes(roots, data, stop):
        is_order = in_data and name in ("epoch", "seed")  # a seed may be sampled
        if is_shared(value):
            yield Attribute(path, owner, name, read_shared(value), changes=True)
            continue
        changes = is_order or name in changing_attributes(owner.__class__)
        plain = to_plain(value) if not in_data or _is_small(owner, value, changes) else UNKNOWN
        if plain is not UNKNOWN:
            yield Attribute(path, owner, name, plain, changes)


def all_attributes(
    roots: Mapping[str, Any], data: Collection[str] = (), stop: Collection[Any] = ()
) -> Iterator[tuple[str, Any, str, Any, bool]]:
    """Yield path, owner, name, value and whether it is data, of each attribute, but for those of every nn.Module."""
    for path, owner, in_data in walk(roots, data, stop, tensors=False):
        without = (type, FunctionType, MethodType, BuiltinMethodType, partial, tuple, Tensor, np.ndarray, *CONTAINERS)
        if is_generator(owner) or isinstance(owner, without):
            continue
        if package_of(owner.__class__) in OPAQUE:
            continue
        for name, value in attributes_of(owner).items():
            if not (isinstance(owner, nn.Module) and name in MODULE_ATTRIBUTES) and name != "_iterator":
                yield f"{path}.{name}", owner, name, value, in_data


def is_iterator(value: Any) -> bool:
    """Return whether a value has a position that cannot be read, as iterators have and seeds that give others.

    >>> is_iterator(iter([1])), is_iterator([1])
    (True, False)
    """
    if hasattr(type(value), "__next__"):
        return not isinstance(value, io.IOBase)
    return isinstance(value, np.random.SeedSequence)


def is_setting(value: Any) -> bool:
    """Return whether a value is a number or a text, or a short container of such."""
    if isinstance(value, (list, tuple, dict)):
        elements: Collection[Any] = value.values() if isinstance(value, dict) else value
        return len(elements) <= MOST and all(map(is_setting, elements))
    return value is not None and type(value) in SCALARS


def _is_small(owner: Any, value: Any, changes: bool) -> bool:
    """Return whether a value of the data is a setting or state, not the samples themselves."""
    if type(value) in SCALARS or isinstance(value, np.generic):
        return True
    if isinstance(value, (Tensor, np.ndarray)):
        return changes and (value.numel() if isinstance(value, Tensor) else value.size) <= MANY
    if type(value) not in (*CONTAINERS, tuple):
        return False
    numbers = value.values() if isinstance(value, dict) else value
    only_numbers = all(type(element) in (bool, int, float) for element in numbers)
    return only_numbers and (isinstance(owner, Sampler) or (changes and isinstance(value, (list, deque, dict))))


UNKNOWN = object()


def to_plain(value: Any) -> Any:
    """Return a value as tensors and plain values, or ``UNKNOWN``; arrays become tensors, sets and deques lists."""
    if type(value) in (bool, int, float, str, type(None)):
        return value
    if isinstance(value, Tensor):
        is_value = value.is_leaf and not nn.parameter.is_lazy(value) and type(value) is Tensor
        return value.detach() if is_value else UNKNOWN
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()) if value.dtype.kind in "bif" or value.dtype == np.uint8 else UNKNOWN
    if type(value) in (list, tuple, set, deque):
        ordered = sorted(value, key=repr) if type(value) is set else value  # of texts it differs between processes
        elements = [to_plain(element) for element in ordered]
        if any(element is UNKNOWN for element in elements):
            return UNKNOWN
        return tuple(elements) if type(value) is tuple else elements
    if type(value) in (dict, OrderedDict, defaultdict, Counter):
        pairs = {key: to_plain(element) for key, element in value.items()}
        known = all(type(key) in (bool, int, float, str) for key in pairs)
        return pairs if known and all(element is not UNKNOWN for element in pairs.values()) else UNKNOWN
    return UNKNOWN


def saved_state(
    roots: Mapping[str, Any],
    data: Collection[str] = (),
    stop: Collection[Any] = (),
    before: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the state of ``roots`` as tensors and plain values: all generators, and attributes that change."""
    attributes = saved_attributes(roots, data, stop, before)
    return {"generators": generators_of(roots, data, stop), "attributes": attributes}


def saved_attributes(
    roots: Mapping[str, Any],
    data: Collection[str] = (),
    stop: Collection[Any] = (),
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the attributes of ``roots`` that change, by path.

    Args:
        roots, data, stop: as for ``walk``.
        before: ``single_values`` of an earlier moment; what changed since then is state too.
    """
    return {
        attribute.path: attribute.value
        for attribute in plain_attributes(roots, data, stop)
        if attribute.changes or type(attribute.value) not in SCALARS or _has_changed(attribute, before)
    }


def _has_changed(attribute: Attribute, before: Mapping[str, Any] | None) -> bool:
    if before is None:
        return False
    old = before.get(attribute.path, UNKNOWN)
    return type(old) is not type(attribute.value) or bool(old != attribute.value)


def single_values(roots: Mapping[str, Any], data: Collection[str] = (), stop: Collection[Any] = ()) -> dict[str, Any]:
    """Return the attributes of ``roots`` that are a number, a text or None, by path."""
    attributes = plain_attributes(roots, data, stop)
    return {attribute.path: attribute.value for attribute in attributes if type(attribute.value) in SCALARS}


def generators_of(roots: Mapping[str, Any], data: Collection[str] = (), stop: Collection[Any] = ()) -> dict[str, Any]:
    """Return the kinds and states of the generators in ``roots``, by path."""
    nodes = walk(roots, data, stop, tensors=False)
    return {
        node.path: [generator_kind(node.value), generator_state(node.value)]
        for node in nodes
        if is_generator(node.value)
    }


def load_saved_state(
    state: Mapping[str, Mapping[str, Any]],
    roots: Mapping[str, Any],
    data: Collection[str] = (),
    stop: Collection[Any] = (),
) -> None:
    """Restore what ``saved_state`` returned."""
    load_attributes(state["attributes"], roots, data, stop)
    load_generators(state["generators"], roots, data, stop)


def load_attributes(
    attributes: Mapping[str, Any],
    roots: Mapping[str, Any],
    data: Collection[str] = (),
    stop: Collection[Any] = (),
) -> None:
    """Restore what ``saved_attributes`` returned."""
    missing = dict(attributes)
    weights = _memory_of_modules(roots, data, stop)
    for attribute in list(plain_attributes(roots, data, stop)):
        if attribute.path in missing:
            _load(attribute.owner, attribute.name, missing.pop(attribute.path), weights)
        elif attribute.changes and hasattr(type(attribute.owner), attribute.name):
            delattr(attribute.owner, attribute.name)  # it had the value of its class
    if missing:  # attributes that are set during training
        owners = {node.path: node.value for node in walk(roots, data, stop, tensors=False)}
        for path, value in missing.items():
            owner, _, name = path.rpartition(".")
            if owner not in owners or not hasattr(owners[owner], "__dict__"):
                continue
            now = vars(owners[owner]).get(name, UNKNOWN)
            if now is UNKNOWN or (value is None and is_generator(now)):  # a generator that is created when needed
                object.__setattr__(owners[owner], name, value)


def load_generators(
    states: Mapping[str, Any], roots: Mapping[str, Any], data: Collection[str] = (), stop: Collection[Any] = ()
) -> None:
    """Restore what ``generators_of`` returned."""
    nodes = {node.path: node.value for node in walk(roots, data, stop, tensors=False)}
    for path, (kind, state) in states.items():
        generator = nodes.get(path)
        if generator is None:  # it is created when it is first needed
            owner, _, name = path.rpartition(".")
            generator = make_generator(kind) if hasattr(nodes.get(owner), "__dict__") else None
            if generator is not None and vars(nodes[owner]).get(name) is None:
                object.__setattr__(nodes[owner], name, generator)
        if is_generator(generator) and generator_kind(generator) == kind:
            set_generator_state(generator, state)


def _memory_of_modules(roots: Mapping[str, Any], data: Collection[str], stop: Collection[Any]) -> set[int]:
    """Return the addresses of the parameters and buffers of all modules."""
    modules = [node.value for node in walk(roots, data, stop, tensors=False) if isinstance(node.value, nn.Module)]
    tensors = [tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())]
    return {address for tensor in tensors if tensor is not None and (address := _address(tensor))}


def _address(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins, or 0 where it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError, ValueError):  # sparse, lazy, or without memory
        return 0


def _load(owner: Any, name: str, saved: Any, weights: Collection[int]) -> None:
    """Set an attribute to a saved value, in place where it is a container, an array or a tensor.

    A tensor that shares the memory of a weight is replaced: it is a view, such as ``weight`` of ``spectral_norm``.
    """
    now = attributes_of(owner)[name]
    if is_shared(now):
        write_shared(now, saved)
    elif isinstance(now, np.ndarray) and isinstance(saved, Tensor) and now.shape == saved.shape:
        now[...] = saved.numpy()
    elif isinstance(now, Tensor) and isinstance(saved, Tensor):
        if now.shape == saved.shape and now.dtype == saved.dtype and _address(now) not in weights:
            with torch.no_grad():
                now.copy_(saved)
        else:
            object.__setattr__(owner, name, saved.to(now.device))
    elif isinstance(now, CONTAINERS) and isinstance(saved, (list, dict)):
        put(now, saved)
    elif isinstance(now, np.generic):
        object.__setattr__(owner, name, type(now)(saved))
    else:
        object.__setattr__(owner, name, saved)
