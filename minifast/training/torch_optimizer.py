"""Create and copy torch optimizers."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minifast.distributed.sharding import like_optimizer
from minifast.training import fast_optimizer
from minifast.utils.checks import bound_arguments, check_callable, did_you_mean

IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")  # settings that depend on the device
CONTAINERS = (dict, list, set, bytearray, Tensor, torch.Generator)  # what a copy of an optimizer must not share


class OptimizerStateError(ValueError):
    """The state belongs to another optimizer."""


def can_fuse(layer_groups: Sequence[nn.Module]) -> bool:
    """Return whether the parameters may have a fused form; torch raises only at the step if they have not."""
    modules = [module for layer_group in layer_groups for module in layer_group.modules()]
    floats = all(p.is_floating_point() for module in modules for p in module.parameters(recurse=False))
    return floats and not any(getattr(module, "sparse", False) for module in modules)


def copy_optimizer(
    opt: torch.optim.Optimizer, known: dict[int, Any], shared_state: set[Any] | None = None
) -> torch.optim.Optimizer:
    """Return a copy of an optimizer and of optimizers inside it; groups and states that they share stay shared.

    Parameters are not copied. The state is copied, or with ``shared_state`` the state of these parameters is shared.
    """
    other = object.__new__(type(opt))
    known[id(opt)] = other
    if id(opt.param_groups) not in known:
        known[id(opt.param_groups)] = [dict(group) for group in opt.param_groups]
        known |= {id(p): p for group in opt.param_groups for p in group["params"]}
    if id(opt.state) not in known:
        state = (
            {p: copy.deepcopy(values) for p, values in opt.state.items()}
            if shared_state is None
            else {
                key: values for key, values in opt.state.items() if key in shared_state or not isinstance(key, Tensor)
            }
        )
        known[id(opt.state)] = defaultdict(dict, state)
    # A torch scheduler binds `step` to the original; hooks may belong to objects that must not be copied.
    for name, value in vars(opt).items():
        if isinstance(value, torch.optim.Optimizer):
            value = known.get(id(value)) or copy_optimizer(value, known, shared_state)
        elif name.endswith("_hooks"):
            value = copy.copy(value)
        elif isinstance(value, CONTAINERS) and id(value) not in known:
            with contextlib.suppress(Exception):  # what cannot be copied, such as a lock, is shared
                value = copy.deepcopy(value, known)
        if name != "step":
            other.__dict__[name] = known.get(id(value), value)
    return other


def construct(
    opt_func: Callable[..., torch.optim.Optimizer], parameters: list[list[nn.Parameter]], lr: float, fusable: bool
) -> torch.optim.Optimizer:
    """Call ``opt_func``, with ``fused=True`` if it takes that and the parameters and their device allow it."""
    # The fused form is the same arithmetic in one pass over all weights; torch raises on devices without it.
    arguments = inspect.signature(opt_func).parameters
    given = bound_arguments(opt_func)

    def make(**settings: bool) -> torch.optim.Optimizer:
        return check_rates(call_opt_func(opt_func, parameters, {"lr": lr, **settings}))

    if fusable and "fused" in arguments and not {*IMPLEMENTATION} & {*given}:
        try:
            opt = make(fused=True)
        except RuntimeError:
            pass
        else:
            # The fused SGD fails if only some parameters have a momentum yet, as after unfreezing.
            if not isinstance(opt, torch.optim.SGD) or not opt.defaults["momentum"]:
                return opt
            return make(foreach=True)
    return make()


def call_opt_func(
    opt_func: Callable[..., torch.optim.Optimizer], parameters: list[list[nn.Parameter]], settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """Call ``opt_func`` with the parameters, or where there are several parameter groups with a dict for each.

    A function that expects dicts for a single group too gets one.

    Raises:
        TypeError: ``opt_func`` takes the dicts of several parameter groups for parameters.
    """

    def as_groups() -> list[dict[str, Any]]:  # anew, because torch writes the settings into them
        return [{"params": part} for part in parameters]

    wrong_use = (TypeError, IndexError, KeyError, AttributeError)
    if len(parameters) == 1:
        try:
            return fast_optimizer.construct_optimizer(opt_func, list(parameters[0]), **settings)
        except (*wrong_use, ValueError, RuntimeError):  # what a tensor raises in place of a dict
            try:
                return fast_optimizer.construct_optimizer(opt_func, as_groups(), **settings)
            except Exception:  # the error for plain parameters is raised
                pass
            raise
    try:
        return fast_optimizer.construct_optimizer(opt_func, as_groups(), **settings)
    except wrong_use as error:
        if "dict" not in str(error):
            raise
        raise TypeError(
            f"`opt_func` takes parameter groups for parameters ({error}); with several layer groups, or bn_wd=False, "
            f"it gets a list of dicts such as {{'params': [...]}}, here {len(parameters)}, as torch's optimizers take "
            f"them. Take the parameters from them: [p for group in groups for p in group['params']]."
        ) from error


def check_rates(opt: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer whose parameter groups have learning rates.

    Raises:
        ValueError: a group has None.
    """
    if any(group.get("lr", 0.0) is None for group in getattr(opt, "param_groups", ())):
        raise ValueError(
            f"`opt_func` makes an optimizer {type(opt).__name__} with lr=None, which chooses its learning rate itself; "
            f"the fit sets it, so make one that takes it, such as transformers' Adafactor(parameters, lr=lr, "
            f"scale_parameter=False, relative_step=False)."
        )
    return opt


def initial_state(opt: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> dict[Any, Any]:
    """Return the state that an optimizer's class gives new parameters when it is made, such as Adagrad's sums."""
    arguments = inspect.signature(type(opt)).parameters
    settings = {name: value for name, value in opt.defaults.items() if name in arguments}
    try:
        return dict(fast_optimizer.construct_optimizer(type(opt), parameters, **settings).state)
    except Exception:  # a class with other arguments makes its state at the first step
        return {}


def load_state(opt: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what ``OptimWrapper.state_dict`` returned into a torch optimizer.

    Raises:
        OptimizerStateError: the state belongs to another optimizer; nothing has changed then.
    """
    if not isinstance(state, dict) or set(state) != {"kind", "opt", "wd"}:
        raise OptimizerStateError("it was not saved by minifast.")
    kind = type(opt).__name__
    if state["kind"] != kind:
        raise OptimizerStateError(f"it belongs to {state['kind']}, but this optimizer is {kind}.")
    saved, groups = state["opt"]["param_groups"], opt.param_groups
    sizes, expected = ([len(group["params"]) for group in some] for some in (saved, groups))
    if sizes != expected:
        raise OptimizerStateError(f"its layer groups have {sizes} parameters, but those of this one {expected}.")
    # Settings that only the file has are those of a torch scheduler or of another version of torch.
    merged = [
        {**now, **{k: v for k, v in then.items() if k in {*now} - {*IMPLEMENTATION}}, "params": then["params"]}
        for now, then in zip(groups, saved, strict=True)
    ]
    fast_optimizer.unwrapped_method(opt, "load_state_dict")(
        {"state": like_optimizer(state["opt"]["state"], groups), "param_groups": merged}
    )


def check_opt_func(value: Any) -> Any:
    """Return ``value`` if it can make an optimizer.

    Raises:
        TypeError: it is an optimizer itself, a name, a scheduler, or nothing that can be called.
    """
    if isinstance(value, torch.optim.Optimizer):
        name = type(value).__name__
        raise TypeError(
            f"`opt_func` is an optimizer of the class {name}; pass what makes one, such as opt_func=torch.optim.{name} "
            f"or partial(torch.optim.{name}, ...). The learning rate is an argument of fit."
        )
    if isinstance(value, str):
        names = [name for name in vars(torch.optim) if isinstance(getattr(torch.optim, name), type)]
        same = next((name for name in names if name.lower() == value.lower()), "")
        hint = f" Did you mean torch.optim.{same}?" if same else did_you_mean(value, names)
        raise TypeError(f"`opt_func` must be callable, got {value!r}; pass an optimizer class, such as torch's.{hint}")
    if is_scheduler(value):
        raise TypeError(f"`opt_func` must make an optimizer, got a scheduler; {scheduler_remedy(value)}")
    return check_callable("opt_func", value)


def is_scheduler(value: Any) -> bool:
    """Return whether a value is a torch learning rate scheduler or a class of them."""
    kind = value if isinstance(value, type) else type(value)
    return issubclass(kind, torch.optim.lr_scheduler.LRScheduler)


def scheduler_remedy(value: Any) -> str:
    """Return how to train with a scheduler of torch."""
    name = (value if isinstance(value, type) else type(value)).__name__
    return f"pass callbacks=[TorchScheduler(lambda opt: torch.optim.lr_scheduler.{name}(opt, ...))]."
