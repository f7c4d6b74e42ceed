"""Apply transforms to batches, with a seed of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minifast.data.loaders import Transform
from minifast.errors import DataError
from minifast.utils.checks import check_callable


class Seeded:
    """Runs transforms of batches with random numbers of their own, so that they neither see nor move torch's generator.

    The generator is part of a run's place: a run that is taken up draws what it would have drawn.
    """

    def __init__(self, tfms: Sequence[Transform], seed: int) -> None:
        self.tfms = list(tfms)
        self.generator = torch.Generator().manual_seed(seed)

    def __repr__(self) -> str:
        return f"Seeded({self.tfms})"

    def __call__(self, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        """Return the batch after all transforms."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
            for tfm in self.tfms:
                found = tfm(batch)
                if not isinstance(found, (tuple, list)) or len(found) != 2:
                    raise DataError(
                        f"The transform {tfm!r} returned a {type(found).__name__}; it takes a batch (x, y) and must "
                        f"return both."
                    )
                batch = found[0], found[1]
        return batch


class PerImage:
    """Runs a transform of torchvision's on each picture of a batch by itself, which on a batch draws but once."""

    def __init__(self, tfm: Callable[[Tensor], Tensor]) -> None:
        self.tfm = tfm

    def __repr__(self) -> str:
        return f"EachPicture({self.tfm})"

    def __call__(self, batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """Return the batch with its pictures transformed."""
        x, y = batch
        return torch.stack([self.tfm(picture) for picture in x]), y


def check_tfms(ds_tfms: Any) -> tuple[list[Transform], list[Transform]]:
    """Return the transforms of batches for training and for validation; of None, none.

    Raises:
        TypeError: ``ds_tfms`` is no pair, or holds what cannot be called.
    """
    if ds_tfms is None:
        return [], []
    if not isinstance(ds_tfms, (tuple, list)) or len(ds_tfms) != 2:
        raise TypeError(
            f"ds_tfms is {ds_tfms!r}; it must be a pair, the transforms of training and those of validation, such as "
            f"get_transforms()."
        )
    parts = [[] if part is None else list(part) if isinstance(part, (list, tuple)) else [part] for part in ds_tfms]
    train, valid = ([_of_batches(check_callable("each of ds_tfms", tfm)) for tfm in part] for part in parts)
    return train, valid


def _of_batches(tfm: Any) -> Transform:
    if not type(tfm).__module__.startswith("torchvision.transforms"):
        return tfm  # type: ignore[no-any-return]
    from torchvision.transforms import v2

    return tfm if isinstance(tfm, (v2.MixUp, v2.CutMix)) else PerImage(tfm)  # these mix the pictures of a batch
