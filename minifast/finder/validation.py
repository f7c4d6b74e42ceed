"""Outputs for validation samples while the learning rate finder trains: nothing in them can be memorized."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from minifast.data.batch_fn import adapt
from minifast.data.resume import preserve_loader
from minifast.training.snapshot import eval_mode, preserve_buffers
from minifast.utils.tensors import as_pair, concatenate, count_samples, map_tensors, take_rows

if TYPE_CHECKING:
    from minifast.data.bunch import DataBunch
    from minifast.learner.learner import Learner

LEAST_SAMPLES = 8  # fewer tell nothing
MOST_SAMPLES = 1024  # that are kept
MOST_ELEMENTS = 2**26  # of their tensors: 256 MiB of float32


class ValidationSlices:
    """Go through the validation samples again and again, in slices of ``n`` samples, as large as a training batch.

    The samples are read once and shuffled, since validation sets are often sorted by class. Of a large set, samples at
    equal distances are kept.

    Attributes:
        n_slices: the number of slices in one pass, with a fraction; 0 if the samples cannot be compared: there are too
            few, they have equal targets or no rows, or the model fails on them.
        n_samples: the number of samples.
    """

    def __init__(self, learn: Learner, n: int) -> None:
        self._inputs, self._targets, total = _read(learn.data)
        self.n_samples, self.n_slices = total, total / n
        self._n = min(n, total)
        self._order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        self._next = 0

    @torch.no_grad()
    def next_pair(self, learn: Learner) -> tuple[Any, Any] | None:
        """Return the model's output for the next slice, in evaluation mode, and its targets; None if it fails."""
        total = len(self._order)
        rows = self._order[(self._next + torch.arange(self._n)) % total]  # all of one size: the last one wraps around
        self._next = (self._next + self._n) % total
        inputs, targets = (take_rows(part, rows, total) for part in (self._inputs, self._targets))
        try:
            with eval_mode(learn.model), preserve_buffers(learn.model):
                return learn.output_of(inputs), targets
        except Exception:  # the validation of a fit raises it; the training samples decide alone
            self.n_slices = 0
            return None


def _read(data: DataBunch) -> tuple[Any, Any, int]:
    """Return inputs, targets and number of the validation samples that are kept."""
    kept: list[tuple[Any, Any]] = []
    counts: list[int] = []
    step, most = 1, MOST_SAMPLES
    with preserve_loader(data.valid_dl):
        for batch in _loader(data):
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
    total = sum(counts)
    if total < LEAST_SAMPLES:
        return None, None, 0
    inputs, targets = concatenate(kept, counts)
    sizes: set[Any] = set()
    map_tensors(
        lambda tensor: sizes.add(len(tensor) if tensor.ndim else 0), (inputs, targets), lambda other: sizes.add(0)
    )
    differ = isinstance(targets, Tensor) and bool((targets != targets[:1]).any())
    return (inputs, targets, total) if sizes == {total} and differ else (None, None, 0)


def _loader(data: DataBunch) -> Any:
    """Return the validation loader, or one that reads samples at equal distances where there are too many."""
    loader: Any = data.valid_dl or ()
    inner = getattr(loader, "dl", None)
    if not isinstance(inner, DataLoader) or inner.batch_sampler is None:
        return loader
    try:
        n = len(inner.dataset)  # type: ignore[arg-type]
    except TypeError:
        return loader
    if n <= MOST_SAMPLES or inner.batch_size is None:
        return loader
    rows = torch.linspace(0, n - 1, MOST_SAMPLES, dtype=torch.float64).long().tolist()
    part = DataLoader(
        Subset(inner.dataset, rows), inner.batch_size, num_workers=inner.num_workers, collate_fn=inner.collate_fn,
        worker_init_fn=inner.worker_init_fn, multiprocessing_context=inner.multiprocessing_context,
    )  # fmt: skip
    return adapt(data, part)


def _elements(pair: tuple[Any, Any]) -> int:
    tensors: list[Tensor] = []
    map_tensors(tensors.append, pair)
    return sum(tensor.numel() for tensor in tensors)
