"""Layer groups: parts of a model that may have hyper-parameters of their own, and values spread over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from minifast.utils.checks import check_count, check_number


def check_rate(name: str, value: Any) -> float:
    """Return ``value`` if it is a number; a schedule, and what ``lr_find`` returned, are told from one."""
    if callable(value):
        raise TypeError(f"{name} is a function, and a rate is meant; fit_schedule(epochs, schedule) trains by one.")
    if hasattr(value, "suggestion"):
        raise TypeError(f"{name} is what lr_find returned; give a rate of it, such as its .suggestion.")
    if value is None:
        raise TypeError(f"{name} is None; give a rate (what lr_find suggests is None where it says why).")
    return check_number(name, value)


def spread(lr: Any, n: int, name: str = "lr") -> Any:
    """Spread a learning rate over ``n`` layer groups.

    A number stays as it is; ``slice(a, b)`` goes from ``a`` for the first group to ``b`` for the last by equal ratios;
    ``slice(b)`` is ``b / 10`` for all but the last; a sequence holds a rate each, of which some may be 0. All but a
    number become an array, or for a slice over one group the number ``b``.

    Raises:
        ValueError, TypeError: a rate is not a number above 0, or there are not as many as layer groups.

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
        rates = np.array([check_number(name, one, low=0) for one in lr])
        if not rates.any():
            raise ValueError(f"{name} is 0 for every layer group; give one of them a rate greater than 0.")
        return rates
    return check_number(name, check_rate(name, lr), above=0)


def check_groups(model: nn.Module, groups: list[nn.Module]) -> list[nn.Module]:
    """Return ``groups`` if they hold the model's trainable parameters, all of them, each once, and no others.

    Raises:
        ValueError: a parameter is not the model's, is in two groups, or is in none and would not be trained.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = {id(parameter) for group in groups for parameter in group.parameters()}
    if grouped - names.keys():
        raise ValueError("layer_groups holds parameters that the model does not have; give parts of this model.")
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in grouped:
            name = names[id(parameter)]
            raise ValueError(f"{name} is in none of layer_groups and would not be trained; put its layer into one.")
    owner: dict[int, int] = {}
    for i, group in enumerate(groups):
        for parameter in group.parameters():
            if owner.setdefault(id(parameter), i) != i:
                raise ValueError(
                    f"{names[id(parameter)]} is in two layer groups, {owner[id(parameter)]} and {i}, and can have one "
                    f"learning rate only; put all layers that share it into one group."
                )
    return groups


def split_model(model: nn.Module, split_on: Any) -> list[nn.Module]:
    """Cut a model into layer groups before each of some of its modules.

    Args:
        model: the model.
        split_on: the modules, or a function of the model that returns them. Their order is the model's.

    Returns:
        A Sequential for each group, of the largest parts of the model that lie in it whole. What a cut part itself
        holds beside its layers goes into the group that is open where it begins.

    Raises:
        TypeError, ValueError: something is no module, or none of the model's, or there is nothing to cut before.

    >>> model = nn.Sequential(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), nn.ReLU(), nn.Linear(3, 2))
    >>> [len(list(group.parameters())) for group in split_model(model, lambda model: (model[0][1], model[2]))]
    [2, 2, 2]
    """
    found = split_on if isinstance(split_on, nn.Module) or not callable(split_on) else split_on(model)
    before = list(found) if isinstance(found, (list, tuple)) else [found]
    own = {id(module) for module in model.modules()}
    for module in before:
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"split_on names {module!r}, which is no module; name the modules that a new layer group begins with, "
                f"or give a function of the model that returns them, such as lambda model: [model[-1]]."
            )
        if id(module) not in own:
            raise ValueError(f"split_on names a {type(module).__name__} that is no part of the model; name its own.")
    if not before:
        raise ValueError("split_on names no module; name those that a new layer group begins with.")
    cuts, seen = {id(module) for module in before}, set()
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
        if beside := list(module.parameters(recurse=False)):
            groups[-1].append(nn.ParameterList(beside))
        for child in module.children():
            visit(child)

    visit(model)
    return check_groups(model, [nn.Sequential(*parts) for parts in groups])


def freeze_to(groups: Sequence[nn.Module], n: int, train_bn: bool) -> None:
    """Freeze the layer groups before the ``n``-th, but with ``train_bn`` for their BatchNorms; let the others train.

    The gradients of what is frozen go.

    Raises:
        ValueError, TypeError: there is no ``n``-th group.

    >>> groups = [nn.Linear(2, 2), nn.Linear(2, 2)]
    >>> freeze_to(groups, -1, train_bn=True)
    >>> [group.weight.requires_grad for group in groups]
    [False, True]
    """
    count = len(groups)
    if check_count("n", n, least=-count) >= count:
        raise ValueError(f"n is {n}; there are {count} layer groups, the first of them 0, so it must be below {count}.")
    for i, group in enumerate(groups):
        for module in group.modules():
            trains = i >= n % count or (train_bn and isinstance(module, nn.modules.batchnorm._BatchNorm))
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(trains)
                if not trains:
                    parameter.grad = None


def per_group(value: Any, n: int, name: str) -> list[float]:
    """Spread ``value`` over ``n`` layer groups as Python floats; a sequence must hold one value each.

    >>> per_group(0.1, 2, "lr"), per_group([0.1, 1], 2, "lr")
    ([0.1, 0.1], [0.1, 1.0])
    """
    if isinstance(value, float) and math.isfinite(value):
        return [float(value)] * n  # a NumPy float is a float too, and would make saved files unreadable
    values = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(values, (list, tuple)):
        return [check_number(name, values)] * n
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values for {n} layer groups; give one value, or one per group.")
    return [check_number(name, one) for one in values]
