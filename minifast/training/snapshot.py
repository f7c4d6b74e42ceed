"""Restore a model or a learner to its state before a temporary change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from minifast.data.resume import load_loader_state, loader_state
from minifast.training.callback import Callback
from minifast.utils.tensors import is_plain

if TYPE_CHECKING:
    from minifast.learner.learner import Learner
from minifast.utils.random import get_rng_states, set_rng_states


@contextmanager
def eval_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Put a model in evaluation mode, or in training mode, and each of its modules back as it was."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in flags:
            module.training = was


@contextmanager
def preserve_model(*models: Any) -> Iterator[None]:
    """Put back what training changes in modules, and the generators; what is no module is passed over.

    That is parameters, buffers, gradients, what is frozen, training flags, and attributes that are tensors or plain
    values.
    """
    wholes = [model for model in models if isinstance(model, nn.Module)]
    modules = list({id(module): module for whole in wholes for module in whole.modules()}.values())
    held = [dict(vars(module)) for module in modules]
    plain = [
        {name: copy.deepcopy(value) for name, value in attributes.items() if name[:1] != "_" and is_plain(value)}
        for attributes in held
    ]
    kinds = ("_parameters", "_buffers", "_modules")
    parts = [{kind: dict(attributes[kind]) for kind in kinds} for attributes in held]
    named = [part[kind] for part in parts for kind in ("_parameters", "_buffers")]
    tensors = list({id(one): one for content in named for one in content.values() if one is not None}.values())
    before = [(tensor.detach().clone(), tensor.grad, tensor.requires_grad) for tensor in tensors]
    generators = get_rng_states()
    try:
        for tensor in tensors:
            tensor.grad = None
        yield
    finally:
        for module, attributes, part, values in zip(modules, held, parts, plain, strict=True):
            vars(module).clear()
            vars(module).update(attributes | values)
            for name, content in part.items():
                attributes[name].clear()
                attributes[name].update(content)
        for tensor, (value, gradient, wanted) in zip(tensors, before, strict=True):
            with torch.no_grad():
                tensor.copy_(value)
            tensor.requires_grad_(wanted)
            tensor.grad = gradient
        set_rng_states(generators)


@contextmanager
def preserve_learner(learn: Learner) -> Iterator[None]:
    """Put back on leaving, however that happens, what training changes in a learner and around it.

    That is parameters, buffers, gradients, what is frozen, training flags, the optimizer, callbacks and metrics, the
    learner's own attributes, the place in its data (position and generators of the training loader), and the
    generators of Python, NumPy, torch and its devices. The optimizer inside is a copy with the same state, and so is
    what callbacks hold; the originals come back. Everything is kept in memory.
    """
    attributes = dict(vars(learn))
    lists = [(value, list(value)) for name, value in attributes.items() if type(value) is list]
    callbacks = [*learn.callbacks, *(metric for metric in learn.metrics if isinstance(metric, Callback))]
    originals = [dict(vars(callback)) for callback in callbacks]
    position = loader_state(learn.data.train_dl)
    try:
        with preserve_model(learn.model, learn.loss_func):
            learn.opt = None if learn.opt is None else learn.opt.copy()
            copy_attributes(callbacks, _not_owned(learn, callbacks))
            yield
    finally:
        vars(learn).clear()
        vars(learn).update(attributes)
        for value, items in lists:
            value[:] = items
        for callback, original in zip(callbacks, originals, strict=True):
            vars(callback).clear()
            vars(callback).update(original)
        load_loader_state(learn.data.train_dl, position)


def _not_owned(learn: Learner, callbacks: Sequence[Callback]) -> list[Any]:
    """Return what a callback may hold but does not own: it is not copied with it."""
    model, data = learn.model, learn.data
    parts = [*model.modules(), *model.parameters(), *model.buffers()]
    loaders = [one for one in vars(data).values() if hasattr(one, "__dict__")]
    loaders += [vars(one)["dl"] for one in loaders if hasattr(vars(one).get("dl"), "__dict__")]
    parts += [value for one in loaders for value in vars(one).values()]  # datasets, samplers, generators
    return [learn, data, *parts, *loaders, *vars(learn).values(), *vars(data).values(), *callbacks]


def copy_attributes(callbacks: Sequence[Callback], shared: Sequence[Any]) -> None:
    """Give callbacks copies of their attributes; what is ``shared``, or cannot be copied, stays what it is.

    What several attributes hold is one thing in the copies too.
    """
    memo: dict[int, Any] = {id(one): one for one in shared}
    for callback in callbacks:
        for name, value in list(vars(callback).items()):
            known = set(memo)
            try:
                vars(callback)[name] = copy.deepcopy(value, memo)
            except Exception:  # whatever a lock, an open file or a generator says to being copied
                for key in memo.keys() - known:  # halves of copies
                    del memo[key]
