"""Where numbers stop being finite: the first input, weight, output and gradient that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from minifast.state import as_inputs


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


def first_output(model: nn.Module, inputs: Any) -> str | None:
    """Run ``model`` on ``inputs`` and return its first innermost module whose output is not finite, or None.

    >>> class Explode(nn.Module):
    ...     def forward(self, x):
    ...         return x / 0
    >>> first_output(nn.Sequential(nn.Linear(2, 2), Explode(), nn.Linear(2, 2)), torch.ones(1, 2))
    '1 (Explode)'
    """
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not found and not is_finite(output):
                found.append(f"{name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        model(*as_inputs(inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def diagnose(model: nn.Module, loss_func: Callable[..., Any], inputs: Any, targets: Any) -> list[str]:
    """Train ``model`` on one batch as far as the gradients, and say in sentences where numbers stop being finite.

    The batch is run again, which changes running statistics, gradients and generators: keep those before.
    """
    said: list[str] = []
    if not is_finite(inputs):
        said.append("The batch's inputs hold NaN or infinity.")
    if not is_finite(targets):
        said.append("The batch's targets hold NaN or infinity.")
    weight = first_not_finite(model.named_parameters())
    if weight:
        said.append(f"The first weight that is not finite is {weight}.")
    output = first_output(model, inputs)
    if output:
        said.append(f"The first output that is not finite is that of {output}.")
    model.zero_grad()
    loss_func(model(*as_inputs(inputs)), *as_inputs(targets)).backward()
    gradient = first_not_finite((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    if gradient:
        said.append(f"The first gradient that is not finite is that of {gradient}.")
    return said
