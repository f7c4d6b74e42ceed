"""Models and functions that are wrapped by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from minifast.utils.compat import compile_in_place


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Return a model without the wrappers of ``torch.compile``; each wrapped module is compiled in place instead.

    Backend and options stay. The names of parameters and layers are those of the model itself, without the prefix
    ``_orig_mod.`` of the wrappers, so that files fit both compiled and other models.

    >>> import torch
    >>> model = unwrap_compiled(nn.Sequential(torch.compile(nn.Linear(2, 1), backend="eager")))
    >>> list(model.state_dict())
    ['0.weight', '0.bias']
    """
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and _is_wrapper(child) and not _is_wrapper(module):
                module._modules[name] = _compiled(child)
    return _compiled(model) if _is_wrapper(model) else model


def plain_name(name: str) -> str:
    """Return the name of a parameter without the prefixes of ``torch.compile``.

    >>> plain_name("_orig_mod.0._orig_mod.weight")
    '0.weight'
    """
    return name.replace("_orig_mod.", "")


def uncompiled(function: Any) -> Any:
    """Return the module or function inside a wrapper of ``torch.compile``, and any other as it is.

    >>> import torch
    >>> uncompiled(torch.compile(nn.MSELoss(), backend="eager"))
    MSELoss()
    """
    if isinstance(function, nn.Module):
        return uncompiled(function._modules["_orig_mod"]) if _is_wrapper(function) else function
    if not isinstance(function, FunctionType):
        return function
    inner: Any = getattr(function, "_torchdynamo_orig_callable", function)
    if inner is not function and inner.__code__.co_filename.endswith("external_utils.py"):
        return inner.__wrapped__  # torch puts one more wrapper around its own functions
    return inner


@contextmanager
def without_compiled_code(model: nn.Module) -> Iterator[None]:
    """Run a model without its compiled code, so that hooks registered since then are called."""
    modules = [module for module in model.modules() if "_compiled_call_impl" in vars(module)]
    compiled_calls = [module._compiled_call_impl for module in modules]
    for module in modules:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, compiled_call in zip(modules, compiled_calls, strict=True):
            module._compiled_call_impl = compiled_call


def _is_wrapper(module: nn.Module) -> bool:
    # By name, because importing the class takes seconds.
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def _compiled(wrapper: nn.Module) -> nn.Module:
    module: Any = wrapper._modules["_orig_mod"]
    if _is_wrapper(module):  # compiled twice
        module = _compiled(module)
    if module._compiled_call_impl is None:
        context: Any = wrapper.dynamo_ctx  # the compiler with the wrapper's options
        compile_in_place(module, context)
    return module  # type: ignore[no-any-return]
