"""Initialize torch's lazy modules, whose parameters have no shape before the first forward pass."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from minifast.data.parts import DatasetType
from minifast.training.groups import loss_module
from minifast.training.snapshot import eval_mode, preserve_randomness
from minifast.utils.tensors import as_arguments

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def has_lazy(module: Any) -> bool:
    """Return whether a module has parameters or buffers without a shape."""
    return isinstance(module, nn.Module) and any(map(is_lazy, chain(module.parameters(), module.buffers())))


def initialize_lazy(learn: Learner) -> None:
    """Run one batch through a model with lazy modules, so that all parameters exist.

    Nothing happens without lazy modules. Generators, the order of data and running statistics stay as they are.
    """
    loss = loss_module(learn.loss_func)
    if not has_lazy(learn.model) and not has_lazy(loss):
        return
    with preserve_randomness(learn), eval_mode(learn.model), torch.no_grad():
        x, y = learn.data.one_batch(DatasetType.Train, denorm=False, cpu=False)
        output = learn.output_of(x, y)
        if has_lazy(loss):
            learn.loss_func(output, *as_arguments(y))
