"""The parameter groups of a torch optimizer: those that minifast makes, and those that ``opt_func`` makes itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from minifast.training.groups import split_no_decay


class Layout(NamedTuple):
    """How parameter groups belong to layer groups.

    Attributes:
        groups: for each layer group the positions of its parameter groups.
        decays: for each parameter group whether weight decay applies to it.
        scales: for each parameter group its learning rate as a multiple of that of its layer group.
        shared: the layer groups that share a parameter group, so that they must have the same values.
    """

    groups: list[list[int]]
    decays: list[bool]
    scales: list[float]
    shared: list[list[int]]


def arrange(layer_groups: Sequence[nn.Module], bn_wd: bool) -> tuple[list[list[nn.Parameter]], Layout]:
    """Return the parameters of each parameter group that minifast makes, and their layout."""
    parameters: list[list[nn.Parameter]] = []
    groups: list[list[int]] = []
    decays: list[bool] = []
    for layer_group in layer_groups:
        parts = [list(layer_group.parameters())] if bn_wd else list(split_no_decay(layer_group))
        groups.append([])
        for part, decayed in zip(parts, (True, False), strict=False):
            if part:
                groups[-1].append(len(parameters))
                parameters.append(part)
                decays.append(decayed)
    return parameters, Layout(groups, decays, [1.0] * len(parameters), [])


def has_parameters(opt: torch.optim.Optimizer, parameters: Sequence[Sequence[nn.Parameter]]) -> bool:
    """Return whether the parameter groups of an optimizer are ``parameters``."""
    actual = [[id(p) for p in group["params"]] for group in opt.param_groups]
    return actual == [[id(p) for p in part] for part in parameters]


def layout_of(
    make: Callable[[float], torch.optim.Optimizer],
    opt: torch.optim.Optimizer,
    layer_groups: Sequence[nn.Module],
    lr: float,
) -> Layout:
    """Return the layout of an optimizer whose ``opt_func`` made other parameter groups than it was given.

    Args:
        make: make the optimizer with a learning rate.
        opt: what ``make`` returned for ``lr``.
        layer_groups: the layer groups.
        lr: the learning rate of the last layer group.

    Raises:
        ValueError: parameters are missing, or a parameter group ignores the learning rate, so that no schedule or
            learning rate finder could set it.
    """
    owner = {id(p): i for i, layer_group in enumerate(layer_groups) for p in layer_group.parameters()}
    present = {id(p) for group in opt.param_groups for p in group["params"]}
    missing = sum(p.requires_grad and id(p) not in present for group in layer_groups for p in group.parameters())
    if missing:
        raise ValueError(
            f"`opt_func` leaves out {missing} of the parameters to train; put them into one of its parameter groups, "
            f"or freeze them."
        )
    rates, doubled = ([float(group["lr"]) for group in each.param_groups] for each in (opt, make(2 * lr)))
    for i, (rate, other) in enumerate(zip(rates, doubled, strict=True)):
        if not math.isclose(other, 2 * rate):
            raise ValueError(
                f"`opt_func` gives parameter group {i} the learning rate {rate:g}, whatever `lr` it is called with; "
                f'make it a multiple, such as {{"params": ..., "lr": 0.1 * lr}}, so that schedules can scale it.'
            )
    # timm's layer-wise decay, which timm's own schedulers multiply the learning rate by.
    rates = [rate * float(group.get("lr_scale", 1.0)) for rate, group in zip(rates, opt.param_groups, strict=True)]
    groups: list[list[int]] = [[] for _ in layer_groups]
    shared = []
    for i, group in enumerate(opt.param_groups):
        owners = sorted({owner[id(p)] for p in group["params"] if id(p) in owner}) or [len(layer_groups) - 1]
        groups[owners[-1]].append(i)
        shared += [owners] if len(owners) > 1 else []
    for indices in groups:
        indices.sort(key=lambda i: rates[i] == 0)  # the layer group's values are read from the first
    return Layout(groups, [True] * len(rates), [rate / lr for rate in rates], shared)


def momentum_key(group: dict[str, Any]) -> str | None:
    """Return what holds the momentum of a parameter group: ``betas`` of Adam's family, or ``momentum``."""
    return "betas" if "betas" in group else "momentum" if "momentum" in group else None


def last_of(layout: Layout) -> int:
    """Return the parameter group from which the values of the last layer group with parameters are read."""
    return next(indices[0] for indices in reversed(layout.groups) if indices)
