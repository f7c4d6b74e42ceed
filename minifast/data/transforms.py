"""Batch transforms with their own random generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minifast.data.loaders import Transform
from minifast.distributed.group import current_group
from minifast.errors import DataError
from minifast.utils.checks import check_callable, module_name


class Seeded:
    """Run batch transforms with a random generator of their own, so that torch's generator does not move.

    A checkpoint saves the state of this generator, so a resumed run samples the same numbers.
    """

    def __init__(self, tfms: Sequence[Transform], seed: int) -> None:
        self.tfms = list(tfms)
        self.generator = torch.Generator().manual_seed(seed)

    def __repr__(self) -> str:
        return f"Seeded({self.tfms})"

    def __call__(self, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        """Return the batch after all transforms."""
        with torch.random.fork_rng(devices=[]):
            seed = int(torch.randint(2**62, (), generator=self.generator))
            group = current_group()  # each process of a group augments its share with a seed of its own
            torch.default_generator.manual_seed(seed if group is None else seed + group.rank)
            for tfm in self.tfms:
                result = tfm(batch)
                if not isinstance(result, (tuple, list)) or len(result) != 2:
                    raise DataError(
                        f"A batch transform must return the pair (x, y), but {tfm!r} returned a "
                        f"{type(result).__name__}."
                    )
                batch = result[0], result[1]
        return batch


def is_map(y: Any, x: Tensor) -> bool:
    """Return whether targets have a value for each pixel of images ``(n, channels, height, width)``.

    >>> is_map(torch.zeros(2, 4, 5), torch.zeros(2, 3, 4, 5)), is_map(torch.zeros(2, 5), torch.zeros(2, 3, 4, 5))
    (True, False)
    """
    pixels = isinstance(y, Tensor) and isinstance(x, Tensor) and x.ndim == 4 and y.ndim in (3, 4)
    return pixels and len(y) == len(x) and y.shape[-2:] == x.shape[-2:]


class PerImage:
    """Run a torchvision transform on each image separately; on a whole batch it would sample only once.

    Targets with the height and width of the images, such as masks, are transformed together with their image.
    """

    def __init__(self, tfm: Callable[[Tensor], Tensor]) -> None:
        self.tfm = tfm

    def __repr__(self) -> str:
        return f"EachPicture({self.tfm})"  # checkpoints of version 0.1 hold this name

    def __call__(self, batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """Return the batch with each image transformed."""
        x, y = batch
        if not is_map(y, x):
            return torch.stack([self.tfm(image) for image in x]), y
        from torchvision import tv_tensors

        if not module_name(type(self.tfm)).startswith("torchvision.transforms.v2"):
            raise DataError(
                f"{type(self.tfm).__name__} of torchvision.transforms changes the images and not their masks. Take it "
                f"from torchvision.transforms.v2, which changes both alike."
            )
        kind = tv_tensors.Image if y.is_floating_point() else tv_tensors.Mask
        joint: Callable[..., Any] = self.tfm
        pairs = [joint(tv_tensors.Image(image), kind(target)) for image, target in zip(x, y, strict=True)]
        images, targets = (
            torch.stack([part.as_subclass(Tensor) for part in parts]) for parts in zip(*pairs, strict=True)
        )
        return images, targets


def check_tfms(ds_tfms: Any) -> tuple[list[Transform], list[Transform]]:
    """Return the batch transforms for training and for validation; two empty lists for None.

    Raises:
        TypeError: if ``ds_tfms`` is not a pair, or an element cannot be called.
    """
    if ds_tfms is None:
        return [], []
    if not isinstance(ds_tfms, (tuple, list)) or len(ds_tfms) != 2:
        raise TypeError(
            f"`ds_tfms` must be a pair (training transforms, validation transforms) such as get_transforms(), "
            f"got {ds_tfms!r}."
        )
    parts = [[] if part is None else list(part) if isinstance(part, (list, tuple)) else [part] for part in ds_tfms]
    train, valid = ([_of_batches(check_callable("each of ds_tfms", tfm)) for tfm in part] for part in parts)
    return train, valid


def _of_batches(tfm: Any) -> Transform:
    if not module_name(type(tfm)).startswith("torchvision.transforms"):
        return tfm  # type: ignore[no-any-return]
    from torchvision.transforms import v2

    return tfm if isinstance(tfm, (v2.MixUp, v2.CutMix)) else PerImage(tfm)  # these two need the whole batch
