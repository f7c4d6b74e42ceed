"""A model's layers as a table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minifast.checkpoint import evaluating
from minifast.diagnosis import uncompiled
from minifast.state import as_inputs
from minifast.tables import text_table


class Table(str):
    """Text that a notebook and a prompt show as it is, line by line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@torch.no_grad()
def summary(model: nn.Module, x: Any) -> str:
    """Return a table of the layers that a batch ``x`` meets, with output shapes and parameters.

    >>> summary(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.zeros(8, 4))
    layer   output  parameters  trainable
    Linear  8 × 2           10        yes
    ReLU    8 × 2            0
    10 parameters, 10 of them trainable
    """
    rows = [("layer", "output", "parameters", "trainable")]

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        parameters = list(module.parameters())
        trainable = [p for p in parameters if p.requires_grad]
        trained = (
            "" if not parameters else "yes" if len(trainable) == len(parameters) else "partly" if trainable else "no"
        )
        shape = " × ".join(map(str, output.shape)) if isinstance(output, Tensor) else type(output).__name__
        rows.append((type(module).__name__, shape, f"{sum(p.numel() for p in parameters):,}", trained))

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with evaluating(model), uncompiled(model):
            model(*as_inputs(x))
    finally:
        for hook in hooks:
            hook.remove()
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Table(f"{text_table(rows, right=2)}\n{total:,} parameters, {trainable:,} of them trainable")
