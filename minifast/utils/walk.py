"""Find the objects with state that other objects hold, wherever they hold them.

The walk goes through attributes, containers, partial functions, bound methods and callable objects. Through functions
and classes it looks for random generators only: other variables that a function uses belong to the caller. A list of
samples in the data, such as ``[(x, y), ...]``, has no state.
"""

from __future__ import annotations

import copy
import dis
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from inspect import unwrap
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from minifast.utils.checks import module_name
from minifast.utils.random import is_generator

SCALARS = (bool, int, float, complex, str, bytes, type(None))
CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter, bytearray)
SEQUENCES = (list, tuple)
PLAIN = {Tensor, np.ndarray, *SCALARS}
TENSORS = ("._parameters", "._buffers")  # of modules
MOST = 1000  # elements of a container that are searched for state
OPAQUE = {  # packages whose objects hold nothing that decides a training
    *("threading", "multiprocessing", "logging", "concurrent", "asyncio", "socket", "subprocess", "io", "weakref"),
    *("matplotlib", "pandas", "h5py", "PIL", "pyarrow", "tensorboard", "IPython", "pathlib", "fastprogress"),
}
LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "torchvision", "minifast", *OPAQUE} - {"__main__"}
ENGINES = ("torch.distributed.fsdp", "torch.distributed._composable", "torch.distributed.device_mesh")
CHANGING = {  # methods that change the object they belong to
    *("append", "appendleft", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "popleft"),
    *("remove", "discard", "clear", "sort", "reverse", "rotate", "__setitem__"),
}


class Node(NamedTuple):
    """An object with state: its path, itself, and whether it is part of the data."""

    path: str
    value: Any
    in_data: bool


def walk(
    roots: Mapping[str, Any],
    data: Collection[str] = (),
    stop: Collection[Any] = (),
    seen: set[int] | None = None,
    tensors: bool = True,
) -> Iterator[Node]:
    """Yield each object with state that ``roots`` hold, once.

    Args:
        roots: objects by name; the name begins the paths.
        data: names of the roots that are data.
        stop: objects that are not entered.
        seen: ids of the objects already visited; ids are added.
        tensors: False passes over the parameters and buffers of modules.
    """
    seen = set() if seen is None else seen
    seen |= {id(value) for value in stop}
    waiting = [(Node(name, value, name in data), False) for name, value in reversed(list(roots.items()))]
    alive = []  # so that no id is used twice
    while waiting:
        node, generators_only = waiting.pop()
        value = node.value
        if type(value) in SCALARS or id(value) in seen or _is_of_engine(value.__class__):
            continue
        seen.add(id(value))
        alive.append(value)
        if isinstance(value, (DataLoader, Dataset, Sampler)):
            node = node._replace(in_data=True)
        if not generators_only or is_generator(value):
            yield node
        is_code = isinstance(value, (FunctionType, type))
        children = _children_of_code(value) if is_code else {} if generators_only else _children(value, node.in_data)
        if not tensors and isinstance(value, nn.Module):
            children = {name: child for name, child in children.items() if name not in TENSORS and not _is_empty(child)}
        for name, child in reversed(list(children.items())):
            if type(child) not in SCALARS:
                waiting.append((Node(f"{node.path}{name}", child, node.in_data), generators_only or is_code))


def _children(value: Any, in_data: bool) -> dict[str, Any]:
    """Return what an object holds, by the end of its path."""
    if _has_no_children(value.__class__) or is_generator(value):
        return {}
    if isinstance(value, dict):
        return {f"[{key!r}]": value[key] for key in list(value)[:MOST]}
    if isinstance(value, (list, tuple, deque)):
        skips_samples = in_data and type(value) in SEQUENCES
        elements = zip(range(MOST), value, strict=False)
        return {f"[{i}]": element for i, element in elements if not (skips_samples and _is_sample(element))}
    if isinstance(value, partial):
        return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    if isinstance(value, MethodType):
        return {".__self__": value.__self__, ".__func__": value.__func__}
    if isinstance(value, BuiltinMethodType):
        return {".__self__": value.__self__}
    package = package_of(value.__class__)
    if package in OPAQUE:
        return {}
    children = {f".{name}": child for name, child in attributes_of(value).items() if name != "_iterator"}
    if package not in LIBRARIES:
        children[".__class__"] = type(value)
    return children


@lru_cache(maxsize=4096)
def _is_of_engine(cls: type) -> bool:
    """Return whether a class is one by which torch shards a module over processes."""
    return module_name(cls).startswith(ENGINES) and not issubclass(cls, nn.Module)


@lru_cache(maxsize=4096)
def _has_no_children(cls: type) -> bool:
    return issubclass(cls, (Tensor, np.ndarray, np.generic, ModuleType, *SCALARS))


def _is_sample(value: Any) -> bool:
    """Return whether a value in a list is a batch or a sample of plain values, which no one changes."""
    return type(value) in SEQUENCES and all(type(element) in PLAIN for element in value)


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict) and not value


@lru_cache(maxsize=4096)
def package_of(cls: type) -> str:
    """Return the name of the package that defines a class."""
    return module_name(cls).partition(".")[0]


@lru_cache(maxsize=4096)
def _slots_of(cls: type) -> tuple[str, ...]:
    slots = [vars(owner).get("__slots__", ()) for owner in cls.__mro__[:-1]]
    names = [name for names in slots for name in ((names,) if isinstance(names, str) else names)]
    return tuple(name for name in names if not name.startswith("__"))


def _children_of_code(value: Any) -> dict[str, Any]:
    """Return what a function or a class uses: its variables, defaults and the functions that it calls."""
    if module_name(value).partition(".")[0] in LIBRARIES:
        return {}
    if isinstance(value, type):
        members = {f".{name}": getattr(child, "__func__", child) for name, child in vars(value).items()}
        members |= {f".__base{i}__": base for i, base in enumerate(value.__bases__)}
        properties = {name: child.fget for name, child in members.items() if isinstance(child, property)}
        return {n: child for n, child in (members | properties).items() if _is_code(child) or is_generator(child)}
    variables = {f".{name}": child for name, child in variables_of(value).items()}
    return {name: child for name, child in variables.items() if isinstance(child, FunctionType) or is_generator(child)}


def variables_of(value: FunctionType) -> dict[str, Any]:
    """Return the variables that a function uses and does not create: enclosing and global ones, and defaults.

    >>> limit = 3
    >>> variables_of(lambda x: x < limit)
    {'limit': 3}
    """
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    variables: dict[str, Any] = {}
    for name, cell in cells:
        try:
            variables[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    variables |= {f"default{i}": default for i, default in enumerate(value.__defaults__ or ())}
    variables |= value.__kwdefaults__ or {}
    for name in _names(value.__code__):
        if name in value.__globals__:
            variables.setdefault(name, value.__globals__[name])
    return variables


def _is_code(value: Any) -> bool:
    return isinstance(value, (FunctionType, type))


@lru_cache(maxsize=4096)
def _names(code: CodeType) -> tuple[str, ...]:
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return (*code.co_names, *inner)


def attributes_of(value: Any) -> dict[str, Any]:
    """Return an object's attributes, also those in slots.

    >>> from torch import nn
    >>> "p" in attributes_of(nn.Dropout(0.5))
    True
    """
    attributes = dict(getattr(value, "__dict__", {}))
    if isinstance(value, torch.optim.Optimizer):  # the groups and their state are the optimizer's own to copy
        return {name: v for name, v in attributes.items() if name not in ("state", "param_groups", "defaults")}
    for name in _slots_of(value.__class__):
        if hasattr(value, name):
            attributes.setdefault(name, getattr(value, name))
    return attributes


@lru_cache(maxsize=1024)
def changing_attributes(cls: type) -> frozenset[str]:
    """Return the names of attributes that methods of ``cls`` change after ``__init__``: counters, caches, files.

    >>> class Reader:
    ...     def __init__(self, size):
    ...         self.size, self.reads, self.file = size, 0, None
    ...     def read(self):
    ...         self.reads += 1
    ...         self.file = self.file or open("x")
    >>> sorted(changing_attributes(Reader))
    ['file', 'reads']
    """
    names: set[str] = set()
    for owner in cls.__mro__:
        if owner in (object, nn.Module, Dataset, DataLoader):
            continue
        functions = {name: _function_of(member) for name, member in vars(owner).items()}
        functions = {name: member for name, member in functions.items() if isinstance(member, FunctionType)}
        names |= {name for name, member in vars(owner).items() if isinstance(member, cached_property)}
        starts = [name for name in functions if name in ("__init__", "__new__", "__post_init__", "__setstate__")]
        initial = set(starts)
        while starts:  # and what they call
            used = set(_names(functions[starts.pop()].__code__)) & functions.keys() - initial
            initial |= used
            starts += used
        for name, function in functions.items():
            if name not in initial:
                names |= _changed_by(function.__code__)
    return frozenset(names)


def _function_of(member: Any) -> Any:
    """Return the function of a method, a property or a cached function, without decorators around it."""
    for name in ("__func__", "fget", "func"):
        member = getattr(member, name, member)
    return unwrap(member) if callable(member) and not isinstance(member, type) else member


def _changed_by(code: CodeType) -> set[str]:
    names: set[str] = set()
    aliases: dict[str, str] = {}  # local names of attributes, as in cache = self.cache
    locals_read: list[str] = []  # by the instructions before
    loaded: str | None = None  # the attribute that the instruction before loaded
    in_statement: set[str] = set()  # all attributes that the statement loaded so far
    updated: set[str] = set()  # those of the target and index of an item that is updated, as in self.n[i] += 1
    before: tuple[str, Any] = ("", None)
    for instruction in dis.get_instructions(code):
        kind, argument = instruction.opname, instruction.argval
        if kind == "DUP_TOP_TWO" or (kind, argument) == before == ("COPY", 2):
            updated |= in_statement
        before = (kind, argument)
        if kind == "STORE_SUBSCR":
            names |= updated
        if kind in ("STORE_SUBSCR", "DELETE_SUBSCR") and len(locals_read) > 1:  # container and key
            names |= {aliases[local] for local in locals_read[-2:-1] if local in aliases}
        if kind in ("LOAD_ATTR", "LOAD_METHOD") and argument in CHANGING and locals_read:
            names |= {aliases[local] for local in locals_read[-1:] if local in aliases}
        parts = argument if isinstance(argument, tuple) else (argument,)
        if kind.startswith("STORE_FAST"):
            aliases.pop(parts[0], None)
            if loaded:
                aliases[parts[0]] = loaded
        if kind.startswith("LOAD_FAST") or "_LOAD_FAST" in kind:
            locals_read += parts
        elif kind == "LOAD_CONST":
            locals_read.append("")
        else:
            locals_read = []
        if kind == "LOAD_ATTR" and isinstance(argument, str):
            in_statement.add(argument)
        elif kind.startswith(("STORE_", "DELETE_", "POP_")):
            in_statement, updated = set(), set()
        if kind in ("STORE_ATTR", "DELETE_ATTR"):
            names.add(argument)
        elif kind in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(argument, str):
            if loaded and (argument in CHANGING or (argument.endswith("_") and not argument.startswith("__"))):
                names.add(loaded)
            loaded = argument
            continue
        elif kind in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE") and loaded:
            names.add(loaded)
        if not kind.startswith(("LOAD_FAST", "LOAD_CONST", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME", "CACHE", "COPY")):
            loaded = None
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names.union(*map(_changed_by, inner))


def deep_copy(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Return a deep copy; tensors with a graph, such as stored activations, are copied without it.

    >>> model = nn.Linear(2, 1)
    >>> model.stored = model(torch.ones(1, 2))
    >>> deep_copy(model).stored.requires_grad
    False
    """
    memo = {} if memo is None else memo
    for node in walk({"value": value}):
        if isinstance(node.value, Tensor) and not node.value.is_leaf:
            memo[id(node.value)] = node.value.detach().clone()
    return copy.deepcopy(value, memo)
