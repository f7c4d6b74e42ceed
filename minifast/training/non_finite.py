"""Find where numbers stop being finite: the first input, weight, output and gradient that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from minifast.distributed.sharding import class_of, local
from minifast.hooks import Hooks
from minifast.losses import is_summed, loss_weight
from minifast.model_loss import forward
from minifast.utils.compiled import without_compiled_code
from minifast.utils.tensors import as_arguments, count_samples, read_floats


def is_finite(value: Any) -> bool:
    """Return whether all numbers in a tensor, or in a tuple, list or dict of tensors, are finite."""
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(local(value)).all())
    if isinstance(value, dict):
        return is_finite(list(value.values()))
    return all(map(is_finite, value)) if isinstance(value, (list, tuple)) else True


def first_not_finite(named_values: Iterable[tuple[str, Any]]) -> str | None:
    """Return the name of the first value that is not finite, or None."""
    return next((name for name, value in named_values if not is_finite(value)), None)


def all_finite(values: Iterable[Any]) -> bool:
    """Return whether all tensors among ``values`` are finite; this waits for the device once."""
    flags = [torch.isfinite(local(value)).all() for value in values if isinstance(value, Tensor)]
    return not flags or all(read_floats(torch.stack(flags).float()))


@contextmanager
def first_output(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that gets the name of the first innermost module whose output is not finite.

    >>> class Explode(nn.Module):
    ...     def forward(self, x):
    ...         return x / 0
    >>> model = nn.Sequential(nn.Linear(2, 2), Explode(), nn.Linear(2, 2))
    >>> with first_output(model) as names:
    ...     _ = model(torch.ones(1, 2))
    >>> names
    ['1 (Explode)']
    """
    failing: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def check_output(module: nn.Module, _: Any, output: Any) -> None:
        if not failing and not is_finite(output):
            failing.append(f"{names[module] or 'the model'} ({class_of(module).__name__})")

    with Hooks(names, check_output):
        yield failing


def diagnose(model: nn.Module, loss_func: Callable[..., Any], inputs: Any, targets: Any) -> Iterator[str]:
    """Yield sentences that say where numbers stop being finite in one forward and backward pass.

    The pass changes running statistics, gradients and generators; save them before.

    Args:
        model: the model.
        loss_func: the loss of (output, *targets).
        inputs: the inputs of the batch.
        targets: the targets of the batch.
    """
    if not count_samples(targets, inputs):
        yield "The batch's inputs and targets have no samples."
    elif not is_summed(loss_func) and not loss_weight(loss_func, targets, inputs):
        yield (
            "The batch's targets do not count in the loss, which is 0 divided by 0: all are `ignore_index` or of "
            "classes with a weight of 0. AccumulateScheduler can add such a batch to others."
        )
    if not is_finite(inputs):
        yield "The batch's inputs hold NaN or infinity."
    if not is_finite(targets):
        yield "The batch's targets hold NaN or infinity."
    weight = first_not_finite(model.named_parameters())
    if weight:
        yield f"The first weight that is not finite is {weight}; the last step or an earlier fit made it so."
    buffer = first_not_finite(model.named_buffers())
    if buffer:
        yield f"The buffer {buffer} is not finite, which makes validation wrong: load a saved model."
    model.zero_grad()
    with without_compiled_code(model), first_output(model) as names:
        output = forward(model, loss_func, inputs, targets)
    if names:
        yield f"The first output that is not finite is that of {names[0]}."
    loss = loss_func(output, *as_arguments(targets))
    if not names and not is_finite(loss):
        yield "All outputs are finite, so the loss function produces the NaN or infinity."
    loss.backward()
    gradient = first_not_finite((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    if gradient:
        yield f"The first gradient that is not finite is that of {gradient}."
