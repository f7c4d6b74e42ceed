"""Does the model learn which target belongs to which sample, or do its losses fall for another reason?

In each batch the loss is compared with the loss of the same outputs against the targets of other samples. Without
learning both are equal in the mean, also while the loss falls because the outputs shrink or take the frequencies of
the classes. The share by which the right targets have the lower loss is what the model knows about the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minifast.losses import (
    ELEMENTWISE,
    ELEMENTWISE_FUNCTIONS,
    MixUpLoss,
    is_cross_entropy,
    reduction_of,
    sample_losses,
    setting_of,
    unwrap_loss,
)

WINDOW = 0.15  # of the steps, whose mean share is tested
MIN_STEPS = 8  # of the window
ERRORS = 3.75  # standard errors
MEMORIZED = 0.03  # share that one earlier pass over the same samples can explain, at most, in a large network
MOST_MEMORIZED = 0.7
PLAIN = [  # settings of cross entropy, as a function and as a module
    {"weight": None, "label_smoothing": smoothing, "ignore_index": index}
    for smoothing, index in ((None, None), (0.0, -100))
]
MOST_STORED = 2**22  # elements of outputs that wait for their losses


class Run(NamedTuple):
    """What one range test gives for the test; the arrays have one value per optimizer step.

    Attributes:
        losses: the loss against the right targets.
        shifted: the loss against the targets of other samples of the batch.
        passes: how often the samples were seen until then.
        capacity: the trained parameters as a share of parameters and targets.
    """

    losses: NDArray[np.float64]
    shifted: NDArray[np.float64]
    passes: NDArray[np.float64]
    capacity: float


class ShiftedTargets:
    """Collect the outputs and targets of batches, and return both losses of each.

    It works for torch's cross entropy and elementwise losses with one tensor of outputs and targets. For others
    ``losses`` returns None: a loss of your own may have effects when it is called.
    """

    def __init__(self, loss_func: Any) -> None:
        self.loss_func = loss_func
        self.n_targets = 0
        kind = unwrap_loss(loss_func)
        known = is_cross_entropy(loss_func) or isinstance(kind, ELEMENTWISE) or kind in ELEMENTWISE_FUNCTIONS
        package = getattr(kind, "__module__", None) or ""
        self._works = known and not isinstance(loss_func, MixUpLoss) and reduction_of(loss_func) == "mean"
        self._works &= package.partition(".")[0] in ("torch", "minifast")
        settings = {name: setting_of(loss_func, name, None) for name in ("weight", "label_smoothing", "ignore_index")}
        self._plain = is_cross_entropy(loss_func) and settings in PLAIN
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._stored = 0
        self._parts: list[Tensor] = []  # (batches, 2)

    def add(self, output: Any, target: Any) -> None:
        """Add a batch; its tensors are kept, not copied."""
        if not self._works:
            return
        if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
            self._works = False
            return
        self._waiting.append((output.detach(), target))
        self._stored += output.numel()
        if self._stored > MOST_STORED:
            self._compute()

    def losses(self) -> NDArray[np.float64] | None:
        """Return the losses against the right and the shifted targets, ``(batches, 2)``, or None."""
        if self._works:
            self._compute()
        return torch.cat(self._parts).double().cpu().numpy() if self._works and self._parts else None

    def _compute(self) -> None:
        waiting, self._waiting, self._stored = self._waiting, [], 0
        self.n_targets += sum(target.numel() for _, target in waiting)
        try:
            for (_, shape), batches in groupby(waiting, key=_shapes):  # batches of one shape are computed together
                if not shape or not shape[0]:
                    self._works = False  # no targets to exchange
                    return
                outputs, targets = zip(*batches, strict=True)
                self._parts.append(self._both(torch.stack(outputs), torch.stack(targets)))
        except Exception:  # shapes that the loss combines in its own way
            self._works = False

    @torch.no_grad()
    def _both(self, outputs: Tensor, targets: Tensor) -> Tensor:
        n = len(outputs)
        if self._plain and outputs.ndim == 3 and not targets.is_floating_point() and int(targets.min()) >= 0:
            # Once for both losses. Over a dimension that is not the last it is several times as fast for few classes.
            scores = outputs.float().movedim(2, 0).contiguous().log_softmax(0)
            indices = torch.stack([targets, targets.roll(1, 1)])
            return -scores.gather(0, indices).mean(2).t()
        flat = outputs.flatten(0, 1).float()
        pairs = [sample_losses(self.loss_func, flat, y.flatten(0, 1)) for y in (targets, targets.roll(1, 1))]
        return torch.stack([losses.view(n, -1).mean(1) for losses in pairs], 1)


def _shapes(batch: tuple[Tensor, Tensor]) -> tuple[torch.Size, torch.Size]:
    return batch[0].shape, batch[1].shape


def learns(runs: Sequence[Run]) -> bool:
    """Return whether the right targets have a clearly lower loss in some part of the curve, by the mean of the runs.

    The share must be ``ERRORS`` standard errors above what memorizing can explain: samples that were seen before have
    a low loss without any rule that holds for others. A network with fewer parameters than targets memorizes less. The
    share must also be higher than in the first quarter, where the learning rates are too low to change the loss.

    >>> steps = np.arange(100)
    >>> chance = np.random.default_rng(0).normal(1, 0.1, (2, 100))
    >>> learns([Run(chance[0], chance[1], steps / 100, 0.5)])
    False
    >>> learns([Run(chance[0] - (steps > 60) * 0.3, chance[1], steps / 100, 0.5)])
    True
    """
    n = min(len(run.losses) for run in runs)
    losses, shifted = (np.mean([values[:n] for values in part], 0) for part in list(zip(*runs, strict=True))[:2])
    passes = runs[0].passes[:n]
    finite = np.isfinite(losses) & np.isfinite(shifted)
    losses, shifted, passes = losses[finite], shifted[finite], passes[finite]
    quarter = len(losses) // 4
    width = min(max(MIN_STEPS, round(WINDOW * len(losses))), len(losses) - quarter)
    if quarter < 2 or width < 2:
        return False
    gains, mean = shifted - losses, np.full(width, 1 / width)
    levels = np.maximum(np.convolve(np.abs(shifted[quarter:]), mean, "valid"), 1e-30)
    means = np.convolve(gains[quarter:], mean, "valid")
    squares = np.diff(gains) ** 2 / 2  # from differences, so that a slope does not count as noise
    variances = np.maximum(np.convolve(squares[quarter - 1 :], mean, "valid"), squares[:quarter].mean())
    above_chance = means - ERRORS * np.sqrt(variances / width)
    above_start = means - gains[:quarter].mean() - ERRORS * np.sqrt(variances * (1 / width + 1 / quarter))
    earlier = np.maximum(passes[quarter + width - 1 :] - 1, 0)
    memorized = np.minimum(MEMORIZED * earlier, MOST_MEMORIZED) * runs[0].capacity
    return bool(((above_chance > memorized * levels) & (above_start > 0)).any())


def run_of(
    pairs: NDArray[np.float64] | None, steps: Sequence[int], n_steps: int, n_batches: int, n_targets: int, n_params: int
) -> Run | None:
    """Return the run of a range test, or None if its losses are not known.

    Args:
        pairs: both losses of each batch.
        steps: the step that each batch belongs to.
        n_steps: the number of steps.
        n_batches: batches in an epoch.
        n_targets: targets in all batches of the run.
        n_params: trained parameters.
    """
    if pairs is None or not n_steps or not len(pairs):
        return None
    indices = np.asarray(steps)
    counts = np.bincount(indices, minlength=n_steps)[:n_steps]
    if len(pairs) != len(steps) or not counts.all():
        return None
    losses, shifted = (np.bincount(indices, column, n_steps)[:n_steps] / counts for column in pairs.T)
    in_epoch = n_targets / len(pairs) * n_batches
    capacity = n_params / (n_params + in_epoch) if math.isfinite(in_epoch) else 1.0
    return Run(losses, shifted, np.cumsum(counts) / n_batches, capacity)
