"""Where numbers stop being finite: the first input, weight, output and gradient that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minifast.hooks import Hooks
from minifast.utils.tensors import as_arguments, read_floats


def is_finite(value: Any) -> bool:
    """Whether all numbers in a tensor, or in a tuple, list or dict of them, are finite."""
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return is_finite(list(value.values()))
    return all(map(is_finite, value)) if isinstance(value, (list, tuple)) else True


def first_not_finite(named: Iterable[tuple[str, Any]]) -> str | None:
    """Return the name of the first value that is not finite, or None."""
    return next((name for name, value in named if not is_finite(value)), None)


def all_finite(values: Iterable[Any]) -> bool:
    """Whether all tensors among ``values`` are finite; a device is waited for once."""
    flags = [torch.isfinite(value).all() for value in values if isinstance(value, Tensor)]
    return not flags or all(read_floats(torch.stack(flags).float()))


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Let a model run as it was before it was compiled, with the hooks that were set since."""
    modules = [module for module in model.modules() if "_compiled_call_impl" in vars(module)]
    kept = [module._compiled_call_impl for module in modules]
    for module in modules:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, compiled in zip(modules, kept, strict=True):
            module._compiled_call_impl = compiled


@contextmanager
def first_output(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that will hold the first innermost module whose output is not finite, when ``model`` is called.

    >>> class Explode(nn.Module):
    ...     def forward(self, x):
    ...         return x / 0
    >>> model = nn.Sequential(nn.Linear(2, 2), Explode(), nn.Linear(2, 2))
    >>> with first_output(model) as found:
    ...     _ = model(torch.ones(1, 2))
    >>> found
    ['1 (Explode)']
    """
    found: list[str] = []

    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not found and not is_finite(output):
            found.append(f"{names[module] or 'the model'} ({type(module).__name__})")

    with Hooks(names, look):
        yield found


def diagnose(model: nn.Module, loss_func: Callable[..., Any], inputs: Any, targets: Any) -> Iterator[str]:
    """Train ``model`` on one batch as far as the gradients, and say in sentences where numbers stop being finite.

    The batch is run again, which changes running statistics, gradients and generators: keep those before.
    """
    if not is_finite(inputs):
        yield "The batch's inputs hold NaN or infinity."
    if not is_finite(targets):
        yield "The batch's targets hold NaN or infinity."
    weight = first_not_finite(model.named_parameters())
    if weight:
        yield f"The first weight that is not finite is {weight}; the step before, or an earlier fit, spoilt it."
    buffer = first_not_finite(model.named_buffers())
    if buffer:
        yield f"The buffer {buffer} is not finite any more, which spoils validation: load a saved model."
    model.zero_grad()
    with uncompiled(model), first_output(model) as found:
        output = model(*as_arguments(inputs))
    if found:
        yield f"The first output that is not finite is that of {found[0]}."
    loss = loss_func(output, *as_arguments(targets))
    if not found and not is_finite(loss):
        yield "All outputs are finite, so it is the loss function that makes the number."
    loss.backward()
    gradient = first_not_finite((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    if gradient:
        yield f"The first gradient that is not finite is that of {gradient}."
