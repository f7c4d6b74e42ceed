"""Does the model learn which target belongs to which sample, or do its losses fall for another reason?

In each batch the loss is compared with the loss of the same outputs against the targets of other samples. Without
learning both are equal in the mean, also while the loss falls because the outputs shrink or take the frequencies of
the classes. The share by which the right targets have the lower loss is what the model knows about the samples.

From the second pass over the training samples on, that can be memorized. So validation samples are compared too.
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
from minifast.utils.checks import module_name

WINDOW = 0.15  # of the steps, whose mean share is tested
MIN_STEPS = 8  # of the window
ERRORS = 3.75  # standard errors by which the training samples must exceed what can be memorized
UNSEEN_ERRORS = 2.5  # then the samples that were not trained on need fewer
UNSEEN_ERRORS_ALONE = 4.5  # enough whatever the training samples say
MEMORIZED = 0.03  # share that one earlier pass over the same samples can explain, at most, in a large network
MOST_MEMORIZED = 0.7
PLAIN = [  # settings of cross entropy, as a function and as a module
    {"weight": None, "label_smoothing": smoothing, "ignore_index": index}
    for smoothing, index in ((None, None), (0.0, -100))
]
UNSEEN_SHIFTS = 3  # of the targets of samples that were not trained on: fewer samples need less noise
NEAR = 9  # neighboring losses whose mean is compared, to find the lowest
LEAST_PASSES = 4  # over the training samples, before they can be memorized
LEAST_UNSEEN = 32  # validation samples; with fewer, the minimum is noise
HELD = 0.5  # share of the fall of the training loss that the validation loss follows if nothing is memorized
MOST_STORED = 2**22  # elements of outputs that wait for their losses


class Run(NamedTuple):
    """What one range test gives for the test; the arrays have one value per optimizer step.

    Attributes:
        losses: the loss against the right targets.
        shifted: the loss against the targets of other samples of the batch.
        passes: how often the samples were seen until then.
        capacity: the trained parameters as a share of parameters and targets.
        unseen: ``shifted - losses`` of samples that were not trained on: training samples in the first pass, then
            validation samples. None if they are not known.
        distinct: after how many steps the validation samples repeat.
        unseen_losses: the losses of those samples, against the right targets.
        n_unseen: the number of validation samples.
    """

    losses: NDArray[np.float64]
    shifted: NDArray[np.float64]
    passes: NDArray[np.float64]
    capacity: float
    unseen: NDArray[np.float64] | None = None
    distinct: float = math.inf
    unseen_losses: NDArray[np.float64] | None = None
    n_unseen: int = 0


class ShiftedTargets:
    """Collect the outputs and targets of batches, and return both losses of each.

    It works for torch's cross entropy and elementwise losses with one tensor of outputs and targets. For others
    ``losses`` returns None: a loss of your own may have effects when it is called.

    Args:
        loss_func: the loss function.
        shifts: how many other targets each output is compared with; the loss is their mean.
    """

    def __init__(self, loss_func: Any, shifts: int = 1) -> None:
        self.loss_func = loss_func
        self.shifts = shifts
        self.n_targets = 0
        kind = unwrap_loss(loss_func)
        known = is_cross_entropy(loss_func) or isinstance(kind, ELEMENTWISE) or kind in ELEMENTWISE_FUNCTIONS
        self._works = known and not isinstance(loss_func, MixUpLoss) and reduction_of(loss_func) == "mean"
        self._works &= module_name(kind).partition(".")[0] in ("torch", "minifast")
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

    @property
    def works(self) -> bool:
        """Whether the loss, and all outputs and targets so far, are of a kind that can be compared."""
        return self._works

    def losses(self) -> NDArray[np.float64] | None:
        """Return the losses against the right and the shifted targets, ``(batches, 2)``, or None."""
        if self._works:
            self._compute()
        return torch.cat(self._parts).cpu().double().numpy() if self._works and self._parts else None

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
        others = [targets.roll(shift, 1) for shift in range(1, max(2, min(self.shifts + 1, targets.shape[1])))]
        if self._plain and outputs.ndim == 3 and not targets.is_floating_point() and int(targets.min()) >= 0:
            # Once for both losses. Over a dimension that is not the last it is several times as fast for few classes.
            scores = outputs.float().movedim(2, 0).contiguous().log_softmax(0)
            losses = -scores.gather(0, torch.stack([targets, *others])).mean(2)
        else:
            flat = outputs.flatten(0, 1).float()
            each = [sample_losses(self.loss_func, flat, y.flatten(0, 1)) for y in (targets, *others)]
            losses = torch.stack([values.view(n, -1).mean(1) for values in each])
        return torch.stack([losses[0], losses[1:].mean(0)], 1)


def _shapes(batch: tuple[Tensor, Tensor]) -> tuple[torch.Size, torch.Size]:
    return batch[0].shape, batch[1].shape


class Evidence(NamedTuple):
    """What the losses of a range test show; the fields are those of ``FinderResult``."""

    learned: bool | None = None
    learned_from: float | None = None
    valid_minimum: float | None = None


def evidence_of(runs: Sequence[Run], lrs: Sequence[float]) -> Evidence:
    """Return what the losses of the runs show at the learning rates of the steps."""
    step = learned_step(runs)
    return Evidence(step is not None, None if step is None else lrs[step], lowest_unseen(runs, lrs))


def learned_step(runs: Sequence[Run]) -> int | None:
    """Return where the right targets have a clearly lower loss, by the mean of the runs: the middle of the first part.

    None if they have not, so that the model does not learn.

    The share must be ``ERRORS`` standard errors above what memorizing can explain: samples that were seen before have
    a low loss without any rule that holds for others. A network with fewer parameters than targets memorizes less. The
    share must also be higher than in the first quarter, where the learning rates are too low to change the loss.

    Where samples that were not trained on are known, they must agree in the same part of the curve. If they are clear
    by themselves, the training samples need not be.

    >>> steps = np.arange(100)
    >>> chance = np.random.default_rng(0).normal(1, 0.1, (2, 100))
    >>> learned_step([Run(chance[0], chance[1], steps / 100, 0.5)])
    >>> learned_step([Run(chance[0] - (steps > 60) * 0.3, chance[1], steps / 100, 0.5)])
    64
    """
    n = min(len(run.losses) for run in runs)
    losses, shifted = (np.mean([values[:n] for values in part], 0) for part in list(zip(*runs, strict=True))[:2])
    passes = runs[0].passes[:n]
    known = [run.unseen[:n] for run in runs if run.unseen is not None]
    unseen = np.mean(known, 0) if len(known) == len(runs) else None
    finite = np.isfinite(losses) & np.isfinite(shifted) & (True if unseen is None else np.isfinite(unseen))
    shifted, passes = shifted[finite], passes[finite]
    gains = shifted - losses[finite]
    quarter = len(gains) // 4
    width = min(max(MIN_STEPS, round(WINDOW * len(gains))), len(gains) - quarter)
    if quarter < 2 or width < 2:
        return None
    levels = np.maximum(_means(np.abs(shifted[quarter:]), width), 1e-30)
    earlier = np.maximum(passes[quarter + width - 1 :] - 1, 0)
    memorized = np.minimum(MEMORIZED * earlier, MOST_MEMORIZED) * runs[0].capacity
    learned = _errors_above(memorized * levels, gains, quarter, width) > ERRORS
    if unseen is not None:
        repeated = max(1.0, width / min(run.distinct for run in runs))  # how often each validation sample counts
        errors = _errors_above(0, unseen[finite], quarter, width, repeated)
        learned = (errors > UNSEEN_ERRORS) & learned | (errors > UNSEEN_ERRORS_ALONE)
    if not learned.any():
        return None
    return int(np.flatnonzero(finite)[quarter + int(learned.argmax()) + width // 2])


def lowest_unseen(runs: Sequence[Run], lrs: Sequence[float]) -> float | None:
    """Return the learning rate with the lowest loss of validation samples, if the model memorizes the training samples.

    It does if the validation loss has fallen by less than ``HELD`` of the fall of the training loss where that is
    lowest. Both falls begin after the first pass, from when on validation samples are compared. None if it does not,
    and before ``LEAST_PASSES`` passes, or with fewer than ``LEAST_UNSEEN`` validation samples. Of several runs, the
    mean counts.

    >>> lrs, steps = np.logspace(-4, 0, 100), np.arange(100)
    >>> seen = np.maximum(1.0, 2.0 - steps / 80)
    >>> unseen = seen + np.maximum(0, steps - 50) / 40
    >>> run = Run(seen, seen, steps / 10, 1.0, unseen_losses=unseen, n_unseen=200)
    >>> print(f"{lowest_unseen([run], lrs):.3f}")
    0.010
    """
    if not runs or any(run.unseen_losses is None or run.n_unseen < LEAST_UNSEEN for run in runs):
        return None
    n = min(len(run.losses) for run in runs)
    parts = [run.losses for run in runs], [run.unseen_losses for run in runs if run.unseen_losses is not None]
    seen, unseen = (np.mean([values[:n] for values in part], 0) for part in parts)
    passes = runs[0].passes[:n]
    known = np.isfinite(seen) & np.isfinite(unseen) & (passes > 1)
    if known.sum() < 2 * NEAR:
        return None
    curves = seen, unseen, np.log(lrs[:n]), passes
    seen, unseen, rates, passes = (_means(values[known], NEAR) for values in curves)
    end, quarter = seen.argmin(), max(3, len(seen) // 4)
    fall, held = (np.median(curve[:quarter]) - curve[end] for curve in (seen, unseen))
    return float(np.exp(rates[unseen.argmin()])) if passes[end] >= LEAST_PASSES and held < HELD * fall else None


def _means(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    return np.convolve(values, np.full(width, 1 / width), "valid")


def _errors_above(
    least: Any, gains: NDArray[np.float64], quarter: int, width: int, repeated: float = 1.0
) -> NDArray[np.float64]:
    """Return how many standard errors the mean of each window is above ``least`` and above the first quarter's mean."""
    means = _means(gains[quarter:], width)
    squares = np.diff(gains) ** 2 / 2  # from differences, so that a slope does not count as noise
    variances = np.maximum(_means(squares[quarter - 1 :], width), squares[:quarter].mean()) * repeated
    variances = np.maximum(variances, 1e-60)
    above_start = (means - gains[:quarter].mean()) / np.sqrt(variances * (1 / width + 1 / quarter))
    errors: NDArray[np.float64] = np.minimum((means - least) / np.sqrt(variances / width), above_start)
    return errors


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
    counts = np.bincount(steps, minlength=n_steps)[:n_steps]
    if len(pairs) != len(steps) or not counts.all():
        return None
    losses, shifted = (_of_steps(column, steps, n_steps) for column in pairs.T)
    in_epoch = n_targets / len(pairs) * n_batches
    capacity = n_params / (n_params + in_epoch) if math.isfinite(in_epoch) else 1.0
    return Run(losses, shifted, np.cumsum(counts) / n_batches, capacity)


def with_unseen(
    run: Run,
    pairs: NDArray[np.float64] | None,
    unseen: NDArray[np.float64] | None,
    steps: Sequence[int],
    n_slices: float,
    n_samples: int,
) -> Run:
    """Return a run with the gains and losses of samples that were not trained on.

    Args:
        run: the run.
        pairs: both losses of each training batch; those of the first pass are of samples that were not trained on.
        unseen: both losses of a slice of the validation samples for each batch after the first pass.
        steps: the step that each batch belongs to.
        n_slices: after how many slices the validation samples repeat.
        n_samples: the number of validation samples.
    """
    if pairs is None or unseen is None:
        return run
    losses, shifted = np.concatenate([pairs[: len(pairs) - len(unseen)], unseen]).T
    with np.errstate(invalid="ignore"):  # infinite losses, whose steps are left out
        gains = shifted - losses
    n = len(run.losses)
    return run._replace(
        unseen=_of_steps(gains, steps, n),
        distinct=n_slices * n / len(pairs),
        unseen_losses=_of_steps(losses, steps, n),
        n_unseen=n_samples,
    )


def _of_steps(values: NDArray[np.float64], steps: Sequence[int], n_steps: int) -> NDArray[np.float64]:
    """Return the mean of the values of each step's batches."""
    sums, counts = np.bincount(steps, values, n_steps), np.bincount(steps, minlength=n_steps)
    return sums[:n_steps] / counts[:n_steps]
