"""The states of loaders that the runs of a comparison share: all runs begin with those of the first one."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils.data import DataLoader

from minifast.data.loaders import TensorLoader
from minifast.data.order import EpochCounter, EpochOrder
from minifast.data.resume import components
from minifast.data.stream import EpochStream
from minifast.utils.random import generator_state, is_generator, is_global_generator, set_generator_state
from minifast.utils.saved_state import load_attributes, saved_attributes
from minifast.utils.walk import walk


class FirstStates:
    """Restart the loaders that runs share, and restore them after the last run.

    Loaders, samplers, data sets and generators are told apart by identity: a new loader may hold a generator or a data
    set of an earlier one. Generators of the process, such as that of ``random.random``, are left as they are.
    """

    def __init__(self) -> None:
        self._attributes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._workers: weakref.WeakKeyDictionary[DataLoader[Any], Any] = weakref.WeakKeyDictionary()
        self._generators: dict[int, tuple[Any, Any]] = {}  # by id; NumPy's have no weak references

    def begin_run(self, *loaders: Any) -> None:
        """Let loaders begin with the order of their first epoch, and generators with the state of their first run.

        A generator of torch begins with its seed, which it knows.
        """
        for part in (part for loader in loaders for part in reversed(components(loader))):
            # Those inside come first, so that a new loader around them finds their first state.
            if part.__hash__ and hasattr(part, "__weakref__"):
                roots = {"part": part}
                load_attributes(self._attributes.setdefault(part, saved_attributes(roots, roots)), roots, roots)
        roots = {str(i): loader for i, loader in enumerate(loaders)}
        for node in list(walk(roots, data=roots, tensors=False)):
            self._restart(node.value)

    def _restart(self, value: Any) -> None:
        if is_generator(value):
            if is_global_generator(value):  # `set_seed` seeds it
                return
            _, state = self._generators.setdefault(id(value), (value, generator_state(value)))
            if isinstance(value, torch.Generator):
                value.manual_seed(value.initial_seed())
            else:
                set_generator_state(value, state)
        elif isinstance(value, (TensorLoader, EpochOrder)):
            value.epoch = 0
        elif isinstance(value, EpochCounter):
            value.epochs_begun = None
        elif isinstance(value, EpochStream):
            value.passes = value.done = 0
        elif isinstance(value, DataLoader) and vars(value).get("persistent_workers"):
            # Its workers have a state that only they know: each run starts others.
            self._workers.setdefault(value, vars(value).get("_iterator"))
            vars(value)["_iterator"] = None

    def restore(self) -> None:
        """Restore the state that the loaders had before the first run."""
        for part, attributes in self._attributes.items():
            roots = {"part": part}
            load_attributes(attributes, roots, roots)
        for loader, iterator in self._workers.items():
            vars(loader)["_iterator"] = iterator
        for generator, state in self._generators.values():
            set_generator_state(generator, state)
