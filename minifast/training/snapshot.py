"""Restore a model or a learner to its state before a temporary change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from minifast.training.callback import Callback
from minifast.utils.saved_state import all_attributes, is_iterator
from minifast.utils.state import Snapshot, restoring

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


@contextmanager
def eval_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Put a model into evaluation mode, or training mode, and restore each module's mode on leaving."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in flags:
            module.training = was_training


@contextmanager
def preserve_model(*models: Any) -> Iterator[None]:
    """Restore modules and the global generators on leaving; anything that is not a module is ignored.

    Parameters, buffers, gradients, ``requires_grad``, training flags, and all attributes are restored.
    """
    roots = {str(i): model for i, model in enumerate(models) if isinstance(model, nn.Module)}
    snapshot = Snapshot(roots)
    with restoring(snapshot):
        for tensor in snapshot.tensors:
            tensor.grad = None
        yield


@contextmanager
def preserve_buffers(*objects: Any, stop: Sequence[Any] = ()) -> Iterator[None]:
    """Restore buffers, attributes and random generators of models and losses on leaving, but not parameters.

    Nothing inside may change parameters. Hooks keep what they stored inside: that is what they are for. Models with
    parameters that are created inside keep them, and only their generators are restored.
    """
    roots = {str(i): value for i, value in enumerate(objects)}
    modules = [module for value in objects if isinstance(value, nn.Module) for module in value.modules()]
    hooks = [hooks for module in modules for name, hooks in vars(module).items() if name.endswith("_hooks")]
    tensors = [t for module in modules for t in (*module._parameters.values(), *module._buffers.values())]
    lazy = any(nn.parameter.is_lazy(tensor) for tensor in tensors if tensor is not None)
    with restoring(Snapshot(roots, (), [*stop, *hooks], generators_only=lazy, parameters=False)):
        yield


@contextmanager
def preserve_look(learn: Learner, *loaders: Any) -> Iterator[None]:
    """Do what ``preserve_randomness`` and ``preserve_buffers`` do for the model and the loss function of a learner."""
    with (
        preserve_randomness(learn, *loaders),
        preserve_buffers(learn.model, learn.loss_func, stop=not_owned(learn, ())),
    ):
        yield


@contextmanager
def preserve_randomness(learn: Learner, *loaders: Any) -> Iterator[set[int]]:
    """Restore data order and random generators on leaving, so that what happens inside does not change training.

    That is the state of the learner's and other ``loaders``, samplers, data sets and transforms, and each generator in
    the model, the loss function, the callbacks and the metrics, with the global ones. Yields the ids of the objects
    that belong to the data.
    """
    seen: set[int] = set()
    data = loaders_of(learn) | {str(i): loader for i, loader in enumerate(loaders)}
    owners = [*learn.callbacks, *learn.metrics]
    others = {"model": learn.model, "loss_func": learn.loss_func, "owners": owners}
    data_order = Snapshot(data, data, [learn, learn.data], seen=seen)
    in_data = set(seen)
    with restoring(data_order, Snapshot(others, (), not_owned(learn, owners), generators_only=True, seen=seen)):
        yield in_data


@contextmanager
def preserve_learner(learn: Learner, callbacks: Sequence[Callback] = ()) -> Iterator[None]:
    """Restore all state of a learner on leaving, whatever happens inside.

    That is the model, the loss function, the optimizer, ``callbacks``, metrics, the learner's attributes, the data
    order and all random generators. The optimizer inside is a copy with the same state.
    """
    with preserve_randomness(learn) as data, preserve_training(learn, data, callbacks):
        yield


@contextmanager
def preserve_training(learn: Learner, data: Collection[int], callbacks: Sequence[Callback] = ()) -> Iterator[None]:
    """Do what ``preserve_learner`` does, but let data order and the global random generators move on.

    Args:
        learn: the learner.
        data: what ``preserve_randomness`` yields. Callbacks may refer to data, which are not theirs.
        callbacks: the callbacks whose state is restored.
    """
    attributes = dict(vars(learn))
    lists = [(value, list(value)) for value in attributes.values() if type(value) is list]
    metrics = [metric for metric in learn.metrics if isinstance(metric, Callback)]
    seen: set[int] = set()
    model = Snapshot({"model": learn.model, "loss_func": learn.loss_func}, (), [learn, learn.data], seen=seen)
    seen |= set(data)
    others = {"callbacks": [*callbacks], "metrics": metrics, "opt": None if learn.opt is None else learn.opt.opt}
    rest = Snapshot(others, (), not_owned(learn, [*callbacks, *metrics]), seen=seen)
    try:
        for tensor in model.tensors:
            tensor.grad = None
        learn.opt = None if learn.opt is None else learn.opt.copy()
        yield
    finally:
        vars(learn).clear()
        vars(learn).update(attributes)
        for value, elements in lists:
            value[:] = elements
        model.restore()
        rest.restore()


def iterators_of(learn: Learner) -> Iterator[tuple[str, Any]]:
    """Yield the paths and values of iterators in model, loss function and data, whose position cannot be restored."""
    loaders = loaders_of(learn)
    roots = {"model": learn.model, "loss_func": learn.loss_func, **loaders}
    for path, _, _, value, _ in all_attributes(roots, loaders, [learn, learn.data]):
        if is_iterator(value):
            yield path, value


def loaders_of(learn: Learner) -> dict[str, Any]:
    """Return the loaders of a learner's data, by name."""
    return {name: getattr(learn.data, name) for name in ("train_dl", "valid_dl", "test_dl")}


def not_owned(learn: Learner, owners: Sequence[Any]) -> list[Any]:
    """Return what ``owners``, such as callbacks and metrics, may refer to but do not own."""
    entered = {id(value) for value in (learn.model, learn.loss_func, *owners)}
    return [learn, learn.data, *(value for value in vars(learn).values() if id(value) not in entered)]
