"""Layer groups: parts of a model with their own hyperparameters, and functions that spread values over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from minifast.utils.checks import check_count, check_number


def check_lr(name: str, value: Any) -> float:
    """Return ``value`` if it is a number; raise TypeError for a schedule, the result of ``lr_find`` and None."""
    if callable(value):
        raise TypeError(
            f"`{name}` must be a learning rate, got a function; fit_schedule(epochs, schedule) trains with a schedule."
        )
    if hasattr(value, "suggestion"):
        raise TypeError(f"`{name}` must be a learning rate, got the result of lr_find; give its .suggestion.")
    if value is None:
        raise TypeError(
            f"`{name}` must be a learning rate, got None; if it is the suggestion of lr_find, its .reason tells why."
        )
    return check_number(name, value)


def spread(lr: Any, n: int, name: str = "lr") -> Any:
    """Return one learning rate per layer group, as an array; a number is returned unchanged.

    Args:
        lr: a number; or ``slice(a, b)``, from ``a`` for the first group to ``b`` for the last with equal ratios; or
            ``slice(b)``, ``b`` for the last group and ``b / 10`` for the others; or a sequence with one learning rate
            per group, of which some may be 0. For one group a slice gives the number ``b``.
        n: the number of layer groups.
        name: what error messages call the value.

    Raises:
        ValueError, TypeError: a learning rate is not a positive number, or their number is not ``n``.

    >>> spread(0.1, 3), spread(slice(1e-4, 1e-2), 3).tolist(), spread(slice(1.0), 3).tolist()
    (0.1, [0.0001, 0.001, 0.01], [0.1, 0.1, 1.0])
    """
    if isinstance(lr, slice):
        stop = check_number(name, lr.stop, above=0)
        start = stop / 10 if lr.start is None else check_number(name, lr.start, above=0)
        if n == 1:
            return stop
        return np.array([start] * (n - 1) + [stop]) if lr.start is None else np.geomspace(start, stop, n)
    if isinstance(lr, (list, tuple, np.ndarray)) and np.ndim(lr):
        if len(lr) != n:
            raise ValueError(f"{name} has {len(lr)} values for {n} layer groups; give one value, or one per group.")
        lrs = np.array([check_number(name, value, low=0) for value in lr])
        if not lrs.any():
            raise ValueError(f"{name} is 0 for every layer group; at least one must be positive.")
        return lrs
    return check_number(name, check_lr(name, lr), above=0)


def check_groups(model: nn.Module, groups: list[nn.Module]) -> list[nn.Module]:
    """Return ``groups`` if each trainable parameter of the model is in exactly one group, and no others are.

    Raises:
        ValueError: a parameter is not the model's, is in two groups, or is in none and would not be trained.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = {id(parameter) for group in groups for parameter in group.parameters()}
    if grouped - names.keys():
        raise ValueError("`layer_groups` contains parameters that the model does not have; give parts of this model.")
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in grouped:
            name = names[id(parameter)]
            raise ValueError(f"{name} is in none of `layer_groups` and would not be trained; add its layer to a group.")
    owner: dict[int, int] = {}
    for i, group in enumerate(groups):
        for parameter in group.parameters():
            if owner.setdefault(id(parameter), i) != i:
                raise ValueError(
                    f"{names[id(parameter)]} is in two layer groups, {owner[id(parameter)]} and {i}, but can have only "
                    f"one learning rate; put all layers that share it into one group."
                )
    return groups


def split_model(model: nn.Module, split_on: Any) -> list[nn.Module]:
    """Split a model into layer groups; each given module starts a new group.

    Args:
        model: the model.
        split_on: the modules that start a group, or a function of the model that returns them. Their order in the model
            counts.

    Returns:
        A Sequential for each group, of the largest modules that are entirely in the group. The own parameters of a
        module that is split belong to the group in which the module starts.

    Raises:
        TypeError, ValueError: a value is not a module of the model, or there is none.

    >>> model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), nn.ReLU(), nn.Linear(3, 2))
    >>> [len(list(group.parameters())) for group in split_model(model, lambda model: (model[0][1], model[2]))]
    [2, 2, 2]
    """
    given = split_on if isinstance(split_on, nn.Module) or not callable(split_on) else split_on(model)
    starts = list(given) if isinstance(given, (list, tuple)) else [given]
    own = {id(module) for module in model.modules()}
    for module in starts:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"`split_on` must contain the modules that start a new layer group, or be a function of the model that "
                f"returns them, such as lambda model: [model[-1]]; got {module!r}."
            )
        if id(module) not in own:
            raise ValueError(
                f"`split_on` contains a {type(module).__name__} that is not part of the model; give its modules."
            )
    if not starts:
        raise ValueError("`split_on` contains no module; give the modules that start a new layer group.")
    cuts, seen = {id(module) for module in starts}, set()
    groups: list[list[nn.Module]] = [[]]

    def visit(module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        if id(module) in cuts and groups[-1]:
            groups.append([])
        if not any(id(inner) in cuts for inner in module.modules() if inner is not module):
            groups[-1].append(module)
            return
        if own_parameters := list(module.parameters(recurse=False)):
            groups[-1].append(nn.ParameterList(own_parameters))
        for child in module.children():
            visit(child)

    visit(model)
    return check_groups(model, [nn.Sequential(*parts) for parts in groups])


def freeze_to(groups: Sequence[nn.Module], n: int, train_bn: bool) -> None:
    """Freeze the layer groups before the ``n``-th and unfreeze the others; frozen parameters lose their gradients.

    Args:
        groups: the layer groups.
        n: the first group that trains, from 0; negative numbers count from the end.
        train_bn: whether the BatchNorms of frozen groups stay trainable.

    Raises:
        ValueError, TypeError: there is no ``n``-th group.

    >>> groups = [nn.Linear(2, 2), nn.Linear(2, 2)]
    >>> freeze_to(groups, -1, train_bn=True)
    >>> [group.weight.requires_grad for group in groups]
    [False, True]
    """
    count = len(groups)
    if check_count("n", n, least=-count) >= count:
        raise ValueError(f"`n` must be lower than the number of layer groups ({count}), got {n}; the first group is 0.")
    for i, group in enumerate(groups):
        for module in group.modules():
            trains = i >= n % count or (train_bn and isinstance(module, nn.modules.batchnorm._BatchNorm))
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(trains)
                if not trains:
                    parameter.grad = None


def per_group(value: Any, n: int, name: str) -> list[float]:
    """Return ``n`` Python floats, one per layer group: a number is repeated, a sequence must have ``n`` values.

    >>> per_group(0.1, 2, "lr"), per_group([0.1, 1], 2, "lr")
    ([0.1, 0.1], [0.1, 1.0])
    """
    if isinstance(value, float) and math.isfinite(value):
        return [float(value)] * n  # float(): a NumPy float in a saved file could not be read back safely
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, (list, tuple)):
        return [check_number(name, values)] * n
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values for {n} layer groups; give one value, or one per group.")
    return [check_number(name, number) for number in values]
