"""Warn of a loss of the user's own that broadcasts outputs (n, 1) and targets (n,) to all pairs of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minifast.losses import differ, unwrap_loss
from minifast.training.batch_size_effect import loss_name
from minifast.training.snapshot import not_owned, preserve_buffers
from minifast.utils.public import warn_caller

if TYPE_CHECKING:
    from minifast.learner.learner import Learner


def warn_of_broadcast(learn: Learner, output: Any, target: Any) -> None:
    """Warn if a loss compares each output with the targets of all samples, because of a dimension of size 1.

    The loss is called again, see ``broadcast_pairs``; what it keeps elsewhere, as in a list, has the extra calls too.
    A loss with parameters or buffers is not tried, and none in several processes.
    """
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)) or learn.parallel is not None:
        return
    n, shapes = output.numel(), {tuple(output.shape), tuple(target.shape)}
    are_floats = output.is_floating_point() and target.is_floating_point()
    if n < 2 or shapes != {(n,), (n, 1)} or not are_floats:
        return
    if isinstance(loss := unwrap_loss(learn.loss_func), nn.Module) and (*loss.parameters(), *loss.buffers()):
        return
    if not broadcast_pairs(learn, output, target):
        return
    where = "the targets in the loss, such as target.squeeze(1)"
    if output.ndim == 2:
        where = "the outputs in the loss, such as output.squeeze(1), or the targets in the data set, such as y[:, None]"
    warn_caller(
        f"The outputs have the shape {tuple(output.shape)} and the targets {tuple(target.shape)}, and the loss "
        f"{loss_name(learn.loss_func)} broadcasts them to ({n}, {n}): it compares each output with the targets of all "
        f"samples, so the model learns their mean. Reshape {where}."
    )


def broadcast_pairs(learn: Learner, output: Tensor, target: Tensor) -> int:
    """Return the pairs that the loss compares, if it broadcasts each output to the targets of all samples, else 0.

    If all outputs are equal, such a loss has the same gradient for all samples: that takes one call. A loss that has
    this property by design, such as one of two means, does not change when the targets get the shape of the outputs:
    two more calls. Random generators and the attributes of the loss stay as they were.
    """
    if output.shape == target.shape or output.numel() != target.numel() or min(output.ndim, target.ndim) < 1:
        return 0
    loss_func, rows = learn.loss_func, target.detach().float()

    def loss_of(outputs: Tensor, targets: Tensor) -> Any:
        with preserve_buffers(loss_func, stop=not_owned(learn, ())):
            return loss_func(outputs, targets)

    try:
        n_pairs = int(torch.broadcast_shapes(output.shape, target.shape).numel())  # type: ignore[no-untyped-call]
        if n_pairs <= output.numel():
            return 0
        center = (rows.mean() + rows.max()) / 2  # between the targets, but not their mean: the gradient is not 0
        equal = torch.full_like(output, float(center)).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss_of(equal, target), equal)
        if not bool((gradient - gradient[:1]).abs().max() <= 1e-2 * gradient.abs().max()):
            return 0
        near = ((rows + center) / 2).reshape(output.shape).to(output.dtype)  # depends on the targets, as it will
        with torch.no_grad():
            return n_pairs * differ(loss_of(near, target), loss_of(near, target.reshape(output.shape)))
    except Exception:  # a loss of your own may raise anything, and some shapes do not broadcast
        return 0
