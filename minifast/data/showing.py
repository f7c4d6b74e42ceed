"""Show a batch of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from minifast import plotting
from minifast.data.parts import DatasetType, as_part
from minifast.data.transforms import is_map
from minifast.errors import DataError
from minifast.utils.checks import check_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minifast.data.bunch import DataBunch


def show_batch(
    data: DataBunch, rows: int, ds_type: DatasetType | str, return_fig: bool, figsize: tuple[float, float] | None
) -> Any:
    """Plot images of one batch, see ``DataBunch.show_batch``."""
    n = check_count("rows", rows) ** 2
    x, y = data.one_batch(ds_type, denorm=False, cpu=False)
    images = data.to_images(x[:n] if isinstance(x, Tensor) else x)
    if images is None:
        what = f"inputs {tuple(x.shape)}" if isinstance(x, Tensor) else f"inputs in a {type(x).__name__}"
        raise DataError(f"Only images (n, 1 or 3, height, width) can be shown, got {what}.")
    hidden = as_part(ds_type) is DatasetType.Test and not data.test_labelled
    titles = ["" if hidden else data.label_of(target) for target in y[:n]]
    masks = list(y[:n].cpu().numpy()) if not hidden and is_mask(y, x) else None
    figure: Figure = plotting.plot_images(images, titles, figsize, masks=masks)
    return plotting.finish(figure.axes, return_fig)


def is_mask(y: Any, x: Any) -> bool:
    """Return whether targets are class numbers ``(n, height, width)`` of the pixels of images."""
    return is_map(y, x) and y.ndim == 3 and not y.is_floating_point()
