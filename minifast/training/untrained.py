"""Find parameters that the loss depends on, but that nothing trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast.distributed.sharding import is_sharded
from minifast.utils.checks import shortlist
from minifast.utils.walk import variables_of, walk

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def untrained_parameters(learn: Learner, loss: Tensor, callbacks: Sequence[Any] = ()) -> list[str]:
    """Return the names of parameters that get a gradient from ``loss`` but belong to neither model nor optimizer.

    Such as those of a module in the closure of the loss function, or in a plain list of the model. The optimizers that
    ``callbacks``, or those of the learner, have as attributes train parameters too.
    """
    if is_sharded(learn.model):
        return []  # the graph holds whole parameters, not their shards
    known = {id(parameter) for parameter in learn.model.parameters()}
    groups = [] if learn.opt is None else learn.opt.opt.param_groups
    known |= {id(parameter) for group in groups for parameter in group["params"]}
    untrained = [parameter for parameter in parameters_behind(loss) if id(parameter) not in known]
    if untrained:
        known = {id(parameter) for parameter in _trained_by([*learn.callbacks, *callbacks], [learn, learn.data])}
        untrained = [parameter for parameter in untrained if id(parameter) not in known]
    if not untrained:
        return []
    names = _names(learn)
    return sorted(names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in untrained)


def _trained_by(callbacks: Sequence[Any], stop: list[Any]) -> Iterator[Tensor]:
    """Yield the parameters of torch optimizers that callbacks have as attributes."""
    for node in walk({"callbacks": callbacks}, stop=stop):
        if isinstance(node.value, torch.optim.Optimizer):
            for group in node.value.param_groups:
                yield from group["params"]


def untrained_message(names: list[str]) -> str:
    """Return the sentence that names parameters which nothing trains."""
    return (
        f"The loss depends on parameters that are not trained: {shortlist(names)}. The optimizer gets the parameters "
        f"of the model, and of a loss function that is an nn.Module; make the modules part of one of these, or freeze "
        f"them with requires_grad_(False)."
    )


def parameters_behind(loss: Tensor) -> Iterator[nn.Parameter]:
    """Yield the parameters that the backward pass from ``loss`` reaches."""
    waiting: list[Any] = [loss.grad_fn]
    seen = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            yield variable
        waiting += [following for following, _ in node.next_functions]


def _names(learn: Learner) -> dict[int, str]:
    """Return names of the parameters that model and loss function hold, wherever they hold them."""
    names: dict[int, str] = {}
    waiting: list[tuple[str, Any]] = [("model", learn.model), ("loss_func", learn.loss_func)]
    seen: set[int] = set()
    while waiting:
        name, root = waiting.pop(0)
        for node in walk({name: root}, stop=[learn, learn.data], seen=seen):
            if isinstance(node.value, nn.Module):
                for inner, parameter in node.value.named_parameters():
                    names.setdefault(id(parameter), f"{node.path}.{inner}")
            elif isinstance(node.value, nn.Parameter):
                names.setdefault(id(node.value), node.path)
            elif isinstance(node.value, FunctionType):
                waiting += variables_of(node.value).items()
    return names
