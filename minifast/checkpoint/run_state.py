"""Collect the state of a run that a checkpoint saves, and restore it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from minifast.data.resume import RemainingBatches, load_loader_state
from minifast.distributed.exchange import gather
from minifast.distributed.group import Group
from minifast.distributed.sharding import like_model
from minifast.training.callback import Callback
from minifast.training.groups import loss_module, loss_parameters
from minifast.training.snapshot import not_owned
from minifast.utils.public import warn_caller
from minifast.utils.random import get_rng_states, set_rng_states, states_for_rank
from minifast.utils.saved_state import (
    UNKNOWN,
    all_attributes,
    generators_of,
    is_iterator,
    load_attributes,
    load_generators,
    load_saved_state,
    saved_attributes,
    saved_state,
    single_values,
    to_plain,
)
from minifast.utils.tensors import is_plain, map_tensors
from minifast.utils.walk import changing_attributes, package_of, walk

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

FORMAT = 2  # of the files; version 0.1 wrote 1, without a number
LOADERS = ("train_dl", "valid_dl")
STATEFUL_TYPES = (deque, set, dict, list, bytearray, np.ndarray, np.generic)


OF_RANK = ("position", "random_at_epoch", "gradients", "state", "random")  # what each of several processes has


def with_ranks(values: dict[str, Any], group: Group | None) -> dict[str, Any]:
    """Return values to save, with those that each process of a group has by itself in ``ranks``."""
    if group is None:
        return values
    own = map_tensors(lambda tensor: tensor.detach().cpu(), {name: values[name] for name in OF_RANK})
    return {**values, "ranks": gather(own)}


def of_rank(values: dict[str, Any], group: Group | None) -> dict[str, Any]:
    """Return the values for this process of those that were saved by as many processes, or by another number."""
    rank, size = (0, 1) if group is None else (group.rank, group.size)
    ranks = values.get("ranks", [{name: values[name] for name in OF_RANK if name in values}])
    if len(ranks) == size:
        return {**values, **ranks[rank]}
    saved = [of_one.get("gradients", {}) for of_one in ranks]
    names = sorted({name for gradients in saved for name in gradients})
    gradients = {name: sum(some.get(name, 0) for some in saved) / len(saved) for name in names}
    states = {name: states_for_rank(values[name], rank) for name in ("random", "random_at_epoch")}
    return {**values, **states, "gradients": gradients}


def describe_ranks(values: dict[str, Any], group: Group | None) -> str:
    """Return a sentence for a run that another number of processes saved; otherwise ""."""
    before, now = len(values.get("ranks", [None])), 1 if group is None else group.size
    if before == now:
        return ""
    return f" Processes: {before} saved it, {now} will continue, so the results are equal up to rounding."


class RunState:
    """The state of a run beside that of the loop and the callbacks' own: model, optimizer, data and generators."""

    def __init__(self, learn: Learner, callbacks: Sequence[Callback]) -> None:
        self.learn = learn
        data = {name: getattr(learn.data, name) for name in LOADERS if getattr(learn.data, name)}
        self._data = data
        self._roots = {"model": learn.model, "loss_func": learn.loss_func, "optimizer": learn.opt.opt, **data}
        self._stop = [learn, learn.data]
        self._with_callbacks = {**self._roots, "callbacks": list(callbacks)}
        self._not_callbacks = not_owned(learn, [*self._roots.values(), *callbacks])
        self._before = single_values(self._roots, LOADERS, self._stop)
        self._remaining: RemainingBatches | None = None  # of the epoch

    def position(self) -> dict[str, Any]:
        """Return the state of the loaders and what they use."""
        return saved_state(self._data, LOADERS, self._stop, self._before)

    def remaining(self, loader: Any, **arguments: Any) -> RemainingBatches:
        """Return the batches of an epoch, see ``RemainingBatches``."""
        self._remaining = RemainingBatches(loader, **arguments)
        return self._remaining

    def state_in_epoch(self, num_batch: int) -> dict[str, Any] | None:
        """Return the state that the training loader itself saves after a number of batches; None if it does not."""
        return self._remaining.own_state(num_batch) if num_batch and self._remaining is not None else None

    def collect(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        learn = self.learn
        model, loss = learn.model, loss_module(learn.loss_func)
        state = {
            "attributes": saved_attributes(self._roots, LOADERS, self._stop, self._before),
            "generators": generators_of(self._with_callbacks, LOADERS, self._not_callbacks),
        }
        return {
            "weights": model.state_dict(),
            "buffers": dict(model.named_buffers()),  # also those that are not persistent
            "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
            "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
            "loss_gradients": [p.grad for p in loss_parameters(model, learn.loss_func)],
            "optimizer": learn.opt.state_dict(),
            "inner_optimizers": {path: optimizer.state_dict() for path, optimizer in self._inner_optimizers()},
            "loss_func": {} if loss is None else loss.state_dict(),
            "state": state,
            "random": get_rng_states(),
        }

    @torch.no_grad()
    def restore(self, values: dict[str, Any]) -> None:
        """Restore model, optimizer, loss function and what they hold."""
        learn = self.learn
        learn.model.load_state_dict(like_model(values["weights"], learn.model))
        gradients = like_model(values["gradients"], learn.model)
        for name, buffer in learn.model.named_buffers():
            if name in values["buffers"]:
                buffer.copy_(values["buffers"][name])
        for name, parameter in learn.model.named_parameters():
            parameter.requires_grad_(values["trainable"][name])
            gradient = gradients.get(name)  # of batches that are accumulated for the next step
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        parameters = loss_parameters(learn.model, learn.loss_func)
        for parameter, gradient in zip(parameters, values.get("loss_gradients", []), strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        inner = self._inner_optimizers()
        shared = [optimizer for _, optimizer in inner if optimizer.param_groups is learn.opt.opt.param_groups]
        learn.opt.load_state_dict(values["optimizer"])
        for path, optimizer in inner:
            if path in values.get("inner_optimizers", {}):
                optimizer.load_state_dict(values["inner_optimizers"][path])
        for optimizer in shared:
            optimizer.param_groups = learn.opt.opt.param_groups
        loss = loss_module(learn.loss_func)
        if loss is not None and values.get("loss_func"):
            loss.load_state_dict(values["loss_func"])
        self.restore_state(values)

    def restore_state(self, values: dict[str, Any]) -> None:
        """Restore generators and attributes, where the file has them."""
        if "state" in values:
            load_attributes(values["state"]["attributes"], self._roots, LOADERS, self._stop)
            load_generators(values["state"]["generators"], self._with_callbacks, LOADERS, self._not_callbacks)

    def restore_position(self, position: Any) -> None:
        """Restore the loaders to the start of an epoch."""
        if isinstance(position, dict):
            load_saved_state(position, self._data, LOADERS, self._stop)
            return
        for loader, state in zip(self._data.values(), position, strict=True):  # of version 0.1
            load_loader_state(loader, state)

    def restore_batch(self, values: dict[str, Any]) -> None:
        """Restore what batches change, when the batches before the next one have been read again."""
        self.restore_state(values)
        transforms = getattr(self.learn.data.train_dl, "tfms", [])
        for transform, state in zip(transforms, values.get("transforms", []), strict=False):
            load_loader_state(transform, state)
        set_rng_states(values["random"])

    def _inner_optimizers(self) -> list[tuple[str, torch.optim.Optimizer]]:
        """Return the optimizers that the optimizer works with inside."""
        nodes = walk({"optimizer": self.learn.opt.opt}, stop=[*self._stop, self.learn.model])
        is_inner = torch.optim.Optimizer
        return [(n.path, n.value) for n in nodes if isinstance(n.value, is_inner) and n.value is not self.learn.opt.opt]

    def unsaved(self) -> Iterator[tuple[str, Any]]:
        """Yield the paths and values of attributes with state that a checkpoint cannot save."""
        for path, value, _ in walk(self._data, LOADERS, self._stop):
            has_own_workers = isinstance(value, DataLoader) and bool(vars(value).get("persistent_workers"))
            if has_own_workers and package_of(value.dataset.__class__) != "minifast":  # ours use no random numbers
                yield f"{path}.persistent_workers", value.persistent_workers
        for path, owner, name, value, in_data in all_attributes(self._roots, LOADERS, self._stop):
            is_container = isinstance(value, (list, dict, set, deque)) and not in_data
            changes = is_iterator(value) or (is_container and name in changing_attributes(owner.__class__))
            if changes and to_plain(value) is UNKNOWN:
                yield path, value


def warn_of_unsaved_state(callback: Callback) -> None:
    """Warn of an attribute that holds state of a type that a checkpoint cannot save."""
    if type(callback).state_dict is not Callback.state_dict:
        return
    name = type(callback).__name__
    for attribute, value in vars(callback).items():
        if isinstance(value, STATEFUL_TYPES) and not is_plain(value):
            warn_caller(
                f"{name}.{attribute} is a {type(value).__name__}, which a checkpoint does not save; give "
                f"{name} the methods state_dict and load_state_dict.",
            )
