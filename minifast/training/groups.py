"""Layer groups: parts of a model with their own hyperparameters; which parameters weight decay applies to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from minifast.utils.checks import check_count, check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


BatchNorm = nn.modules.batchnorm._BatchNorm
NORMS = tuple(
    kind
    for kind in (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, getattr(nn, "RMSNorm", None))
    if kind is not None
)


def is_frozen(part: nn.Module) -> bool:
    """Return whether a module has parameters, and none of them requires a gradient."""
    flags = [parameter.requires_grad for parameter in part.parameters()]
    return bool(flags) and not any(flags)


def split_no_decay(group: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters of a layer group that weight decay applies to, and those that ``bn_wd=False`` exempts.

    Exempt are parameters with fewer than two dimensions, those of normalization layers, and biases.
    """
    exempt: set[int] = set()
    for module in group.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_bias = name == "bias" or name.startswith("bias_") or name.endswith("_bias")
            if is_bias or parameter.ndim < 2 or isinstance(module, NORMS):
                exempt.add(id(parameter))
    parameters = list(group.parameters())
    return [p for p in parameters if id(p) not in exempt], [p for p in parameters if id(p) in exempt]


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
            f"`{name}` must be a learning rate, got None; if it is the suggestion of lr_find, its .reason says why."
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


def group_indices(model: nn.Module, groups: Sequence[nn.Module]) -> dict[str, int | None]:
    """Return the layer group of each parameter by its name in the model; None if it is in no group."""
    owner = {id(parameter): i for i, group in enumerate(groups) for parameter in group.parameters()}
    return {name: owner.get(id(parameter)) for name, parameter in model.named_parameters()}


def regroup(model: nn.Module, groups: list[nn.Module], indices: dict[str, int | None]) -> list[nn.Module]:
    """Return the layer groups of a model that changed after they were made; ``groups`` itself if it did not change.

    A new parameter belongs to the group that had a parameter of its name, or else of the closest module around it. A
    parameter without such a module belongs to the last group.

    Args:
        model: the model as it is now.
        groups: the layer groups as they were.
        indices: what ``group_indices`` returned when they were made.

    Raises:
        ValueError: ``groups`` left parameters out, or no parameter of several groups can be found again.
    """
    owner = {id(parameter): i for i, group in enumerate(groups) for parameter in group.parameters()}
    parameters = dict(model.named_parameters())
    ids = {id(parameter) for parameter in parameters.values()}
    if ids >= owner.keys() and all(id(p) in owner for p in parameters.values() if p.requires_grad):
        return groups
    if any(index is None and name in parameters and parameters[name].requires_grad for name, index in indices.items()):
        return check_groups(model, groups)  # which raises: they never had all parameters
    if len(groups) == 1:
        return [model]
    last_of = _last_group_of_modules(indices)
    known = {id(p): owner.get(id(p), _group_of(name, last_of)) for name, p in parameters.items()}
    if all(index is None for index in known.values()):
        raise ValueError(
            f"The model was replaced by one whose parameters match none of the {len(groups)} layer groups; call "
            f"learn.split to split the new model."
        )
    new_indices = {key: len(groups) - 1 if index is None else index for key, index in known.items()}
    return check_groups(model, _modules_of_groups(model, new_indices, len(groups)))


def _last_group_of_modules(indices: dict[str, int | None]) -> dict[str, int]:
    """Return the last layer group in each module and parameter, by its name."""
    last_of: dict[str, int] = {}
    for name, index in indices.items():
        for prefix in _prefixes(name) if index is not None else ():
            last_of[prefix] = max(index or 0, last_of.get(prefix, 0))
    return last_of


def _group_of(name: str, last_of: dict[str, int]) -> int | None:
    """Return the layer group of a parameter by its name, or by that of the closest module around it."""
    return next((last_of[prefix] for prefix in _prefixes(name) if prefix in last_of), None)


def _prefixes(name: str) -> list[str]:
    """Return a parameter's name and those of the modules around it, the closest first."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(len(parts), 0, -1)]


def _modules_of_groups(model: nn.Module, indices: dict[int, int], n: int) -> list[nn.Module]:
    """Return a Sequential for each of ``n`` layer groups, of the largest modules that are entirely in it."""
    parts_of: list[list[nn.Module]] = [[] for _ in range(n)]
    seen: set[int] = set()

    def visit(module: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        inside = {indices[id(parameter)] for parameter in module.parameters()}
        if len(inside) <= 1:
            parts_of[inside.pop() if inside else 0].append(module)
            return
        for parameter in module.parameters(recurse=False):
            parts_of[indices[id(parameter)]].append(nn.ParameterList([parameter]))
        for child in module.children():
            visit(child)

    visit(model)
    return [nn.Sequential(*parts) for parts in parts_of]


def loss_module(loss_func: Any) -> nn.Module | None:
    """Return the module that a loss function is, or is a partial or a method of; None if there is none."""
    while isinstance(loss_func, partial):
        loss_func = loss_func.func
    loss = loss_func if isinstance(loss_func, nn.Module) else getattr(loss_func, "__self__", None)
    return loss if isinstance(loss, nn.Module) else None


def loss_parameters(model: nn.Module, loss_func: Any) -> list[nn.Parameter]:
    """Return the trainable parameters of a loss function that are not the model's."""
    loss = loss_module(loss_func)
    trainable = [] if loss is None else [parameter for parameter in loss.parameters() if parameter.requires_grad]
    if not trainable:
        return []
    own = {id(parameter) for parameter in model.parameters()}
    return [parameter for parameter in trainable if id(parameter) not in own]


def trained_parameters(learn: Learner) -> list[nn.Parameter]:
    """Return the parameters of the model, and the trainable ones of the loss function."""
    return [*learn.model.parameters(), *loss_parameters(learn.model, learn.loss_func)]


def add_loss_parameters(groups: Sequence[nn.Module], model: nn.Module, loss_func: Any) -> list[nn.Module]:
    """Return the layer groups to optimize: those of the model, with the loss function's parameters in the last."""
    if parameters := loss_parameters(model, loss_func):
        return [*groups[:-1], nn.ModuleList([groups[-1], nn.ParameterList(parameters)])]
    return list(groups)


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
            trains = i >= n % count or (train_bn and isinstance(module, BatchNorm))
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
