"""Layer groups: parts of a model that may have hyper-parameters of their own, and values spread over them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn

from minifast.errors import check_number


def spread(lr: Any, n: int, name: str = "lr") -> Any:
    """Spread a learning rate over ``n`` layer groups.

    A number stays as it is; ``slice(a, b)`` goes from ``a`` for the first group to ``b`` for the last by equal ratios;
    ``slice(b)`` is ``b / 10`` for all but the last; a sequence holds a rate each, of which some may be 0. All but a
    number become an array.

    Raises:
        ValueError, TypeError: a rate is not a number above 0, or there are not as many as layer groups.

    >>> spread(0.1, 3), spread(slice(1e-4, 1e-2), 3).tolist(), spread(slice(1.0), 3).tolist()
    (0.1, [0.0001, 0.001, 0.01], [0.1, 0.1, 1.0])
    """
    if callable(lr):
        raise TypeError(f"{name} is a function, and a rate is meant; fit_schedule(epochs, schedule) trains by one.")
    if hasattr(lr, "suggestion"):
        raise TypeError(f"{name} is what lr_find returned; give a rate of it, such as its .suggestion.")
    if isinstance(lr, slice):
        stop = check_number(name, lr.stop, above=0)
        start = stop / 10 if lr.start is None else check_number(name, lr.start, above=0)
        if n == 1 or lr.start is None:
            return np.array([start] * (n - 1) + [stop])
        return np.geomspace(start, stop, n)
    if isinstance(lr, (list, tuple, np.ndarray)) and np.ndim(lr):
        if len(lr) != n:
            raise ValueError(f"{name} has {len(lr)} values for {n} layer groups; give one value, or one per group.")
        rates = np.array([check_number(name, one, low=0) for one in lr])
        if not rates.any():
            raise ValueError(f"{name} is 0 for every layer group; give one of them a rate greater than 0.")
        return rates
    if lr is None:
        raise TypeError(f"{name} is None; give a rate (what lr_find suggests is None where it says why).")
    return check_number(name, lr, above=0)


def check_groups(model: nn.Module, groups: list[nn.Module]) -> list[nn.Module]:
    """Return ``groups`` if they hold the model's trainable parameters, all of them and no others.

    Raises:
        ValueError: a parameter is not the model's, or is in no group and would not be trained.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = {id(parameter) for group in groups for parameter in group.parameters()}
    if grouped - names.keys():
        raise ValueError("layer_groups holds parameters that the model does not have; give parts of this model.")
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in grouped:
            name = names[id(parameter)]
            raise ValueError(f"{name} is in none of layer_groups and would not be trained; put its layer into one.")
    return groups


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
