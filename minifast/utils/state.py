"""Copy the state that objects hold and restore it in place: in memory (``Snapshot``) or in a checkpoint."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from minifast.utils.random import (
    generator_kind,
    generator_state,
    get_rng_states,
    is_generator,
    make_generator,
    set_generator_state,
    set_rng_states,
)
from minifast.utils.walk import CONTAINERS, MOST, OPAQUE, SCALARS, attributes_of, changing_attributes, package_of, walk

MANY = 2**16  # elements above which a container or tensor of a data set counts as data, not as state
MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


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
                _put(value, copy)


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


def _copy_of(value: Any, in_data: bool) -> Any:
    """Return a copy of an object's own state, or None where it has none."""
    if isinstance(value, Tensor):
        fixed = not value.is_leaf or value.is_inference() or nn.parameter.is_lazy(value) or value.is_meta
        fixed = fixed or (value.layout is torch.strided and 0 in value.stride())  # expanded, which no one writes to
        if fixed or (in_data and value.numel() > MANY):
            return None
        return _TensorCopy(value.detach().clone(), value.grad, value.requires_grad)
    if isinstance(value, np.ndarray):
        too_much = in_data and value.size > MANY
        return value.copy() if value.flags.writeable and not value.dtype.hasobject and not too_much else None
    if type(value) in CONTAINERS:
        if in_data and (len(value) > MANY or not all(type(element) in SCALARS for element in _elements(value))):
            return None  # samples, or a cache of them
        return value.copy()
    if isinstance(value, (type, FunctionType, MethodType, BuiltinMethodType, partial, tuple, ModuleType)):
        return None
    attributes = attributes_of(value)
    return _Attributes(type(value), attributes, in_data) if attributes else None


def _elements(value: Any) -> Collection[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else value


def _put(value: Any, copy: Any) -> None:
    if isinstance(copy, _TensorCopy):
        with torch.no_grad():
            if value.shape == copy.value.shape:
                value.copy_(copy.value)
            else:
                value.set_(copy.value)
        value.requires_grad_(copy.requires_grad)
        value.grad = copy.grad
    elif isinstance(copy, _Attributes):
        _put_attributes(value, copy)
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
            if name in getattr(value, "__dict__", {name: None}):
                vars(value)[name] = old
            else:
                object.__setattr__(value, name, old)


def _delete(value: Any, name: str) -> None:
    if name in getattr(value, "__dict__", {}):
        del vars(value)[name]
    else:
        object.__delattr__(value, name)


# --- in a checkpoint


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
        elements = [to_plain(element) for element in value]
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
    for attribute in list(plain_attributes(roots, data, stop)):
        if attribute.path in missing:
            _load(attribute.owner, attribute.name, missing.pop(attribute.path))
        elif attribute.changes and hasattr(type(attribute.owner), attribute.name):
            delattr(attribute.owner, attribute.name)  # it had the value of its class
    if missing:  # attributes that are set during training
        owners = {node.path: node.value for node in walk(roots, data, stop, tensors=False)}
        for path, value in missing.items():
            owner, _, name = path.rpartition(".")
            if owner in owners and hasattr(owners[owner], "__dict__") and name not in vars(owners[owner]):
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


def _load(owner: Any, name: str, saved: Any) -> None:
    """Set an attribute to a saved value, in place where it is a container or an array."""
    now = attributes_of(owner)[name]
    if isinstance(now, np.ndarray) and isinstance(saved, Tensor) and now.shape == saved.shape:
        now[...] = saved.numpy()
    elif isinstance(now, Tensor) and isinstance(saved, Tensor):
        if now.shape == saved.shape and now.dtype == saved.dtype:
            with torch.no_grad():
                now.copy_(saved)
        else:
            object.__setattr__(owner, name, saved.to(now.device))
    elif isinstance(now, CONTAINERS) and isinstance(saved, (list, dict)):
        _put(now, saved)
    elif isinstance(now, np.generic):
        object.__setattr__(owner, name, type(now)(saved))
    else:
        object.__setattr__(owner, name, saved)
