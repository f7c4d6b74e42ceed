"""Test-time augmentation: the mean prediction over zoomed and mirrored versions of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minifast.data.images.augment import Augment, resample
from minifast.data.parts import DatasetType, as_part
from minifast.errors import DataError
from minifast.learner import predicting
from minifast.losses import activation_name, sample_losses
from minifast.utils.checks import check_number

if TYPE_CHECKING:
    from minifast.learner.learner import Learner

EPS = 1e-7  # clamps probabilities before the logarithm


class CornerZoom:
    """Zoom into one corner of all images of a batch, and mirror them.

    Args:
        scale: the zoom factor.
        right: 1 for a corner on the right, -1 for one on the left.
        down: 1 for a corner at the bottom, -1 for one at the top.
        mirrored: flip the images horizontally.
    """

    def __init__(self, scale: float, right: int, down: int, mirrored: bool) -> None:
        visible = 1 / scale
        flip = -1 if mirrored else 1
        self.map = torch.tensor(
            [[visible * flip, 0, (1 - visible) * right], [0, visible, (1 - visible) * down], [0, 0, 1]]
        )

    def __call__(self, batch: tuple[Any, Any]) -> tuple[Any, Any]:
        """Return the batch with zoomed images.

        Raises:
            DataError: if the inputs are not images.
        """
        x, y = batch
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise DataError(f"TTA needs images, floats (n, channels, height, width), got {what}; use get_preds.")
        return resample(x, self.map.to(x.device).expand(len(x), 3, 3)), y


def versions(learn: Learner, scale: float) -> list[CornerZoom]:
    """Return the four corners, and their mirror images if the training images are mirrored too."""
    tfms = [part for tfm in learn.data.train_dl.tfms for part in getattr(tfm, "tfms", [tfm])]
    flips = (False, True) if any(isinstance(tfm, Augment) and tfm.do_flip for tfm in tfms) else (False,)
    return [CornerZoom(scale, right, down, flip) for flip in flips for down in (-1, 1) for right in (-1, 1)]


def tta_only(
    learn: Learner, ds_type: DatasetType | str, activ: Callable[[Tensor], Tensor] | None, scale: float
) -> Iterator[list[Any]]:
    """Yield the predictions and targets for each version of the images."""
    if as_part(ds_type) is DatasetType.Train:
        raise ValueError(
            "TTA predicts the validation or the test set, got DatasetType.Train, whose images are augmented at random."
        )
    check_number("scale", scale, low=1)
    loader = learn.dl(ds_type)
    for version in versions(learn, scale):
        loader.add_tfm(version)
        try:
            found = predicting.get_preds(learn, ds_type, activ)
        finally:
            loader.remove_tfm(version)
        if isinstance(found[0], Tensor) and found[0].ndim > 2:
            raise DataError(
                f"TTA takes the mean of predictions for whole images, got predictions of the shape "
                f"{tuple(found[0].shape)}, whose pixels move with the images; use get_preds."
            )
        yield found


def tta(
    learn: Learner,
    beta: float | None,
    scale: float,
    ds_type: DatasetType | str,
    activ: Callable[[Tensor], Tensor] | None,
    with_loss: bool,
) -> list[Any]:
    """Return the weighted mean of plain and augmented predictions, and the targets."""
    if beta is not None:
        check_number("beta", beta, low=0, high=1)
    if with_loss and (activ is not None or beta is None):
        raise ValueError("`with_loss=True` cannot be combined with `activ` or beta=None; leave them out.")
    total, n = None, 0
    for predictions, _ in tta_only(learn, ds_type, activ, scale):
        if not isinstance(predictions, Tensor):
            raise DataError("TTA needs a model with one tensor of outputs per batch; use get_preds.")
        total, n = predictions if total is None else total + predictions, n + 1
    plain, targets = predicting.get_preds(learn, ds_type, activ)
    assert total is not None
    mean = total / n
    if beta is None:
        return [plain, mean, targets]
    combined = torch.lerp(mean, plain, beta)
    if not with_loss:
        return [combined, targets]
    device = learn.data.device
    losses = sample_losses(learn.loss_func, undo_activation(learn.loss_func, combined).to(device), targets.to(device))
    return [combined, targets, losses.detach().cpu()]


def undo_activation(loss_func: Any, predictions: Tensor) -> Tensor:
    """Return outputs that the activation of a loss turns into these predictions.

    >>> undo_activation(torch.nn.CrossEntropyLoss(), torch.tensor([[0.25, 0.75]])).softmax(1)
    tensor([[0.2500, 0.7500]])
    """
    name = activation_name(loss_func)
    if name in ("softmax", "exp"):
        return predictions.clamp(min=EPS).log()
    return predictions.logit(EPS) if name == "sigmoid" else predictions
