"""Call torch optimizers without importing torch's compiler, which takes more than a second.

torch wraps some methods of its optimizers to keep them away from its compiler, and the wrappers import the compiler
even if nothing is compiled. This module calls the methods inside the wrappers, which do all the work. Optimizers
with hooks, under a profiler or with other wrappers are called through their own ``step``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch.autograd import profiler
from torch.optim import Optimizer, optimizer


def unwrapped_method(opt: Optimizer, name: str) -> Callable[..., Any]:
    """Return a method of an optimizer without torch's wrapper; a method that a subclass overrides as it is."""
    method = getattr(type(opt), name)
    if name not in vars(opt) and method is getattr(Optimizer, name) and "torch._dynamo" not in sys.modules:
        return MethodType(inspect.unwrap(method), opt)
    return getattr(opt, name)  # type: ignore[no-any-return]


def construct_optimizer(opt_func: Callable[..., Optimizer], *args: Any, **kwargs: Any) -> Optimizer:
    """Call ``opt_func``: an optimizer class, a partial of one, or a function that returns an optimizer."""
    maker = opt_func if isinstance(opt_func, partial) else partial(opt_func)
    cls: Any = maker.func
    metaclass: Any = type(cls)
    if metaclass is not type or cls.__new__ is not object.__new__:
        return opt_func(*args, **kwargs)
    opt: Optimizer = object.__new__(cls)
    vars(opt)["add_param_group"] = unwrapped_method(opt, "add_param_group")
    try:
        cls.__init__(opt, *maker.args, *args, **{**maker.keywords, **kwargs})
    finally:
        vars(opt).pop("add_param_group", None)
    return opt


def unwrapped_step(opt: Optimizer) -> Callable[[], Any] | None:
    """Return ``opt.step`` without torch's wrappers, to be called under ``no_grad``; None if the wrappers are unknown.

    Do not use it at a step for which ``is_observed`` is true.
    """
    step: Any = getattr(type(opt).step, "__wrapped__", None)
    known = getattr(type(opt).step, "hooked", False) and getattr(step, "__globals__", None) is vars(optimizer)
    if not known or step.__code__.co_name != "_use_grad" or opt.defaults.get("differentiable"):
        return None
    return MethodType(step.__wrapped__, opt)


def is_observed(opt: Any) -> bool:
    """Return whether a hook, a profiler or a replaced ``step`` must see the steps of an optimizer."""
    return bool(
        "step" in vars(opt)
        or opt._optimizer_step_pre_hooks
        or opt._optimizer_step_post_hooks
        or optimizer._global_optimizer_pre_hooks
        or optimizer._global_optimizer_post_hooks
        or profiler._is_profiler_enabled
    )
