"""Outputs for validation samples while the learning rate finder trains: nothing in them can be memorized."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.training.snapshot import eval_mode
from minifast.utils.tensors import as_pair, concatenate, count_samples, map_tensors, take_rows

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

MOST_SAMPLES = 2048  # that are kept
MOST_ELEMENTS = 2**26  # of their tensors: 256 MiB of float32


class ValidationSlices:
    """Go through the validation samples again and again, in slices of ``n`` samples, as large as a training batch.

    The samples are read once and shuffled, since validation sets are often sorted by class. Of a large set every
    second, fourth ... sample is kept.

    Attributes:
        n_slices: the number of slices in one pass; 0 if there are no validation samples that can be shuffled.
    """

    def __init__(self, learn: Learner, n: int) -> None:
        self.learn = learn
        inputs, targets, total = _read(learn.data.valid_dl)
        self.n_slices = math.ceil(total / n)
        self._inputs, self._targets, self._total = inputs, targets, total
        self._order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        self._n, self._next = n, 0

    @torch.no_grad()
    def next_pair(self) -> tuple[Any, Any]:
        """Return the model's output for the next slice, in evaluation mode, and its targets."""
        first = self._n * (self._next % self.n_slices)
        rows = self._order[first : first + self._n]
        self._next += 1
        inputs, targets = (_take(part, rows, self._total) for part in (self._inputs, self._targets))
        with eval_mode(self.learn.model):
            return self.learn.output_of(inputs), targets


def _take(values: Any, rows: Tensor, n: int) -> Any:
    def take(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)] if tensor.ndim and len(tensor) == n else tensor

    return map_tensors(take, values)


def _read(loader: Any) -> tuple[Any, Any, int]:
    """Return inputs, targets and number of the validation samples that are kept."""
    kept: list[tuple[Any, Any]] = []
    counts: list[int] = []
    step, most = 1, MOST_SAMPLES
    for batch in loader or ():
        pair = as_pair(batch, "validation")
        n = count_samples(pair[1], pair[0])
        most = most if kept else max(1, min(most, MOST_ELEMENTS * n // max(1, _elements(pair))))
        kept.append(take_rows(pair, slice(0, None, step), n))
        counts.append(math.ceil(n / step))
        while sum(counts) > most:
            if max(counts) > 1:
                kept = [take_rows(rows, slice(0, None, 2), n) for rows, n in zip(kept, counts, strict=True)]
                counts = [math.ceil(n / 2) for n in counts]
                step *= 2
            else:
                kept, counts = kept[::2], counts[::2]
    if not kept:
        return None, None, 0
    total = sum(counts)
    inputs, targets = concatenate(kept, counts)
    sizes: set[Any] = set()
    map_tensors(lambda tensor: sizes.add(len(tensor) if tensor.ndim else None), (inputs, targets), sizes.add)
    return (inputs, targets, total) if sizes == {total} else (None, None, 0)  # others have no row per sample


def _elements(pair: tuple[Any, Any]) -> int:
    tensors: list[Tensor] = []
    map_tensors(tensors.append, pair)
    return sum(tensor.numel() for tensor in tensors)
