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

    Its value then changes when the targets get the shape of the outputs, and does not when outputs are exchanged
    between the samples. Random generators and the attributes of the
    loss stay as they were. A loss with parameters or buffers is not tried, and none in several processes.
    """
    if not (isinstance(output, Tensor) and isinstance(target, Tensor)) or learn.parallel is not None:
        return
    n, shapes = output.numel(), {tuple(output.shape), tuple(target.shape)}
    are_floats = output.is_floating_point() and target.is_floating_point()
    if n < 2 or shapes != {(n,), (n, 1)} or not are_floats or not _pairs_all(learn, output.detach(), target):
        return
    where = "the targets in the loss, such as target.squeeze(1)"
    if output.ndim == 2:
        where = "the outputs in the loss, such as output.squeeze(1), or the targets in the data set, such as y[:, None]"
    warn_caller(
        f"The outputs have the shape {tuple(output.shape)} and the targets {tuple(target.shape)}, and the loss "
        f"{loss_name(learn.loss_func)} broadcasts them to ({n}, {n}): it compares each output with the targets of all "
        f"samples, so the model learns their mean. Reshape {where}."
    )


def _pairs_all(learn: Learner, output: Tensor, target: Tensor) -> bool:
    """Return whether the loss of a batch changes with the shape of the targets, but not with the order of outputs."""
    loss_func = learn.loss_func
    if isinstance(loss := unwrap_loss(loss_func), nn.Module) and (*loss.parameters(), *loss.buffers()):
        return False
    # Outputs in the order of the targets: those of a new model may depend on the targets too little to show it.
    values, ranks = output.flatten().sort().values, target.flatten().argsort().argsort()
    rising, falling = (ordered[ranks].view_as(output) for ordered in (values, values.flip(0)))
    losses = []
    try:
        for pair in ((rising, target), (falling, target), (rising, target.view_as(output))):
            with torch.no_grad(), preserve_buffers(loss_func, stop=not_owned(learn, ())):
                losses.append(loss_func(*pair))
        return differ(losses[0], losses[2]) and not differ(losses[0], losses[1])
    except Exception:  # a loss of your own may raise anything
        return False
