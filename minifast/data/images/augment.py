"""Data augmentation of image batches: random rotation, zoom, perspective and lighting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minifast.data.transforms import is_map
from minifast.errors import DataError
from minifast.utils.checks import check_number
from minifast.utils.public import public

EPS = 1e-7  # clamps pixels before the logit, in float32


class Augment:
    """Augment each image of a batch with its own random numbers; ``get_transforms`` describes the arguments.

    One resampling applies all geometric changes. Targets with the height and width of the images, such as masks, get
    the same ones. The random numbers come from torch's CPU generator, so that they are
    the same on a GPU.
    """

    def __init__(
        self,
        do_flip: bool,
        flip_vert: bool,
        max_rotate: float,
        max_zoom: float,
        max_lighting: float,
        max_warp: float,
        p_affine: float,
        p_lighting: float,
    ) -> None:
        self.do_flip = do_flip
        self.flip_vert = flip_vert
        self.max_rotate = check_number("max_rotate", max_rotate or 0, low=0, high=180)
        self.max_zoom = check_number("max_zoom", max_zoom or 1, low=1)
        self.max_lighting = check_number("max_lighting", max_lighting or 0, low=0, high=0.99)
        self.max_warp = check_number("max_warp", max_warp or 0, low=0, high=0.49)
        self.p_affine = check_number("p_affine", p_affine, low=0, high=1)
        self.p_lighting = check_number("p_lighting", p_lighting, low=0, high=1)

    def __repr__(self) -> str:
        return f"Augment({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    def __call__(self, batch: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """Return the batch with augmented images.

        Raises:
            DataError: if the inputs are not floats ``(n, channels, height, width)``.
        """
        x, y = batch
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise DataError(
                f"Augmentation needs images, floats (n, channels, height, width), got {what}. Leave `ds_tfms` out, or "
                f"give your own transforms."
            )
        height, width = x.shape[2:]
        if self.do_flip or self.max_rotate or self.max_zoom > 1 or self.max_warp:
            maps = self._maps(len(x), height, width).to(x.device, non_blocking=True)
            x = resample(x, maps)
            if is_map(y, x):
                y = resample_targets(y, maps)
        if self.max_lighting:
            x = self._change_lighting(x)
        return x, y

    def _maps(self, n: int, height: int, width: int) -> Tensor:
        """Sample a projective map from output to input points for each image: ``(n, 3, 3)``.

        Points are ``(x, y, 1)`` with x and y from -1 to 1.
        """
        flip = torch.eye(3).repeat(n, 1, 1)
        if self.do_flip:
            flip[:, 0, 0] = _sign(n)
            if self.flip_vert:
                flip[:, 1, 1] = _sign(n)
                if height == width:  # a square has eight symmetries, a rectangle four
                    flip = torch.where((torch.rand(n) < 0.5)[:, None, None], flip[:, [1, 0, 2]], flip)
        angle = self._spread(n, math.radians(self.max_rotate))
        rotate = torch.eye(3).repeat(n, 1, 1)
        rotate[:, 0, 0], rotate[:, 1, 1] = angle.cos(), angle.cos()
        rotate[:, 0, 1], rotate[:, 1, 0] = angle.sin() * height / width, -angle.sin() * width / height
        visible = 1 / (1 + torch.rand(n) * (self.max_zoom - 1) * self._apply(n, self.p_affine))
        zoom = torch.eye(3).repeat(n, 1, 1)
        zoom[:, 0, 0], zoom[:, 1, 1] = visible, visible
        zoom[:, :2, 2] = (1 - visible)[:, None] * (2 * torch.rand(n, 2) - 1)
        apply = self._apply(n, self.p_affine)[:, None]
        warp = (2 * torch.rand(n, 4) - 1) * self.max_warp * apply
        return flip @ (perspective(warp) if self.max_warp else torch.eye(3)) @ rotate @ zoom

    def _spread(self, n: int, limit: float) -> Tensor:
        return (2 * torch.rand(n) - 1) * limit * self._apply(n, self.p_affine)

    def _apply(self, n: int, p: float) -> Tensor:
        return (torch.rand(n) < p).float()

    def _change_lighting(self, x: Tensor) -> Tensor:
        # On logits, black and white stay as they are and no value leaves [0, 1].
        n, limit = len(x), self.max_lighting
        change = torch.logit(0.5 + (torch.rand(n) - 0.5) * limit * self._apply(n, self.p_lighting))
        contrast = torch.exp((1 - 2 * torch.rand(n)) * math.log(1 - limit) * self._apply(n, self.p_lighting))
        factors = torch.stack([contrast, change]).view(2, n, 1, 1, 1).to(x.device, x.dtype, non_blocking=True)
        return torch.sigmoid(torch.logit(x, EPS) * factors[0] + factors[1])


def _sign(n: int) -> Tensor:
    return 1 - 2 * (torch.rand(n) < 0.5).float()


def perspective(warp: Tensor) -> Tensor:
    """Return the projective maps ``(n, 3, 3)`` that lengthen or shorten the sides of a square.

    ``warp`` is ``(n, 4)``: the change of the upper, lower, left and right side, in halves of a side.
    """
    upper, lower, left, right = (1 + warp).unbind(1)
    corners = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]])
    across = torch.stack([-upper, upper, -lower, lower], 1)
    down = torch.stack([-left, -right, left, right], 1)
    # Each corner (x, y) gives two equations for the eight unknowns: u (gx + hy + 1) = ax + by + c, and one for v.
    n = len(warp)
    point = torch.cat([corners, torch.ones(4, 1)], 1).expand(n, 4, 3)
    zero = torch.zeros(n, 4, 3)
    rows = torch.cat(
        [
            torch.cat([point, zero, -across[..., None] * corners], 2),
            torch.cat([zero, point, -down[..., None] * corners], 2),
        ],
        1,
    )
    unknowns = torch.linalg.solve(rows, torch.cat([across, down], 1))
    return torch.cat([unknowns, torch.ones(n, 1)], 1).view(n, 3, 3)


def resample(x: Tensor, maps: Tensor, mode: str = "bilinear") -> Tensor:
    """Return images resampled by projective maps ``(n, 3, 3)``, reflected beyond their borders."""
    height, width = x.shape[2:]
    across = (torch.arange(width, device=x.device) * 2 + 1 - width) / width  # pixel centers
    down = (torch.arange(height, device=x.device)[:, None] * 2 + 1 - height) / height
    m = maps[..., None, None]
    u, v, scale = (m[:, i, 0] * across + m[:, i, 1] * down + m[:, i, 2] for i in range(3))  # matmul may use TF32
    grid = torch.stack([u / scale, v / scale], -1).to(x.dtype)
    return F.grid_sample(x, grid, mode=mode, padding_mode="reflection", align_corners=False)


def resample_targets(y: Tensor, maps: Tensor) -> Tensor:
    """Return targets for each pixel resampled as their images: integers by the nearest pixel, floats bilinearly."""
    maps_of_values = y if y.ndim == 4 else y[:, None]
    if y.is_floating_point():
        return resample(maps_of_values, maps).view_as(y)
    return resample(maps_of_values.float(), maps, "nearest").to(y.dtype).view_as(y)


@public
def get_transforms(
    do_flip: bool = True,
    flip_vert: bool = False,
    max_rotate: float = 10.0,
    max_zoom: float = 1.1,
    max_lighting: float = 0.2,
    max_warp: float = 0.2,
    p_affine: float = 0.75,
    p_lighting: float = 0.75,
    xtra_tfms: Sequence[Any] | None = None,
) -> tuple[list[Any], list[Any]]:
    """Return image augmentation for the argument ``ds_tfms``.

    Each image gets its own random numbers. The transforms are those of fastai v1, with two differences: images are
    resized before, and one resampling applies all geometric changes.

    Args:
        do_flip: flip half of the images horizontally.
        flip_vert: also flip vertically, and rotate square images by right angles.
        max_rotate: maximum rotation in degrees, up to 180.
        max_zoom: maximum zoom factor, at least 1.
        max_lighting: maximum change of brightness and contrast, from 0 to 0.99.
        max_warp: maximum perspective warp: the change of a side's length, in halves of it, up to 0.49.
        p_affine: probability of each of rotation, zoom and warp.
        p_lighting: probability of each of brightness and contrast.
        xtra_tfms: further training transforms: functions that take and return ``(x, y)``, or torchvision transforms.

    Returns:
        The training transforms, and an empty list for validation.

    >>> train, valid = get_transforms(max_rotate=20, flip_vert=True)
    >>> x, y = train[0]((torch.rand(8, 3, 32, 32), torch.zeros(8)))
    >>> x.shape, valid
    (torch.Size([8, 3, 32, 32]), [])
    """
    augment = Augment(do_flip, flip_vert, max_rotate, max_zoom, max_lighting, max_warp, p_affine, p_lighting)
    return [augment, *(xtra_tfms or ())], []
