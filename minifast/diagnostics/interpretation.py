"""Interpretation of a trained model: the samples with the highest losses, and the confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minifast import plotting
from minifast.data.bunch import DatasetType
from minifast.data.resume import load_loader_state, loader_state, preserve_loader
from minifast.errors import DataError
from minifast.metrics.confusion import count_pairs
from minifast.utils.checks import check_count
from minifast.utils.random import get_rng_states, set_rng_states
from minifast.utils.tensors import count_samples
from minifast.utils.text import text_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from typing_extensions import Self

    from minifast.learner.learner import Learner


class Interpretation:
    """Predictions, targets and the loss of each item of a part of the data, in the order in which they were predicted.

    Args:
        learn: the learner.
        preds: predictions, a row an item.
        y_true: targets, a row an item.
        losses: the loss of each item.
        ds_type: the part.

    >>> from minifast import DataBunch, Learner, simple_ann
    >>> batch = (torch.randn(8, 4), torch.randn(8, 1))
    >>> data = DataBunch([batch], [batch], device="cpu", loss_func=torch.nn.MSELoss())
    >>> found = Interpretation.from_learner(Learner(data, simple_ann(4, 1)))
    >>> losses, indices = found.top_losses(3)
    >>> len(indices)
    3
    """

    def __init__(
        self,
        learn: Learner,
        preds: Tensor,
        y_true: Tensor,
        losses: Tensor,
        ds_type: DatasetType = DatasetType.Valid,
    ) -> None:
        self.learn = learn
        self.preds = preds
        self.y_true = y_true
        self.losses = losses
        self.ds_type = ds_type
        self._begin = self._place()

    @classmethod
    def from_learner(
        cls,
        learn: Learner,
        ds_type: DatasetType = DatasetType.Valid,
        activ: Callable[[Tensor], Tensor] | None = None,
    ) -> Self:
        """Predict a part of the data and return what there is to know of it; the order of the data stays as it was.

        Args:
            learn: the learner.
            ds_type: the part.
            activ: what turns outputs into predictions, see ``Learner.get_preds``.
        """
        preds, y_true, losses = learn.get_preds(ds_type, activ, with_loss=True)
        return cls(learn, preds, y_true, losses.reshape(len(preds), -1).mean(dim=1), ds_type)

    def top_losses(self, k: int | None = None, largest: bool = True) -> tuple[Tensor, Tensor]:
        """Return the ``k`` largest losses (by default all), or the smallest, and the numbers of their items.

        An item's number is its row in ``preds``, ``y_true`` and ``losses``.
        """
        n = len(self.losses)
        values, indices = self.losses.topk(n if k is None else min(check_count("k", k), n), largest=largest)
        return values, indices

    def inputs(self, indices: Tensor) -> list[Any]:
        """Return the items of these numbers as the model takes them, by going over the data once more.

        None stands for one that is no tensor.
        """
        loader = self.learn.data.dl(self.ds_type)
        wanted, found, first = indices.tolist(), {}, 0
        with preserve_loader(loader):
            position, generators = self._begin
            load_loader_state(loader, position)
            set_rng_states(generators)
            for x, y in loader:
                for i in wanted:
                    if first <= i < first + count_samples(y):
                        found[i] = x[i - first].cpu() if isinstance(x, Tensor) else None
                first += count_samples(y)
                if len(found) == len(wanted):
                    break
        return [found[i] for i in wanted]

    def _place(self) -> tuple[Any, Any]:
        return loader_state(self.learn.data.dl(self.ds_type)), get_rng_states()


class ClassificationInterpretation(Interpretation):
    """What a classifier gets wrong; ``pred_class`` are the numbers of the classes that it predicts.

    Raises:
        DataError: the targets are no class numbers, or the predictions have no column for each class.

    >>> from minifast import DataBunch, Learner, simple_ann
    >>> batch = (torch.randn(8, 4), torch.tensor([0, 1] * 4))
    >>> data = DataBunch([batch], [batch], device="cpu", classes=["cat", "dog"])
    >>> found = ClassificationInterpretation.from_learner(Learner(data, simple_ann(4, 2)))
    >>> found.confusion_matrix().sum(axis=1)
    array([4, 4])
    """

    def __init__(
        self,
        learn: Learner,
        preds: Tensor,
        y_true: Tensor,
        losses: Tensor,
        ds_type: DatasetType = DatasetType.Valid,
    ) -> None:
        super().__init__(learn, preds, y_true, losses, ds_type)
        if preds.ndim != 2 or y_true.is_floating_point() or y_true.numel() != len(preds):
            raise DataError(
                f"The predictions have the shape {tuple(preds.shape)} and the targets {tuple(y_true.shape)}, "
                f"{y_true.dtype}; classes are told apart by predictions (n, classes) and whole numbers (n,). "
                f"Interpretation, without Classification, takes any."
            )
        self.y_true = y_true.flatten()
        self.pred_class = preds.argmax(dim=1)
        classes = range(preds.shape[1]) if learn.data.classes is None else learn.data.classes
        if len(classes) != preds.shape[1]:
            raise DataError(
                f"The data have {len(classes)} classes and the model {preds.shape[1]} outputs; give it one for each."
            )
        self.classes = [str(name) for name in classes]

    def confusion_matrix(self, slice_size: int = 1) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the counts ``[actual, predicted]``; ``slice_size``, as fastai v1 has it, does nothing."""
        return count_pairs(self.pred_class, self.y_true, len(self.classes)).numpy()

    def plot_confusion_matrix(
        self,
        normalize: bool = False,
        title: str = "Confusion matrix",
        cmap: Any = "Blues",
        slice_size: int = 1,
        norm_dec: int = 2,
        plot_txt: bool = True,
        return_fig: bool | None = None,
        figsize: tuple[float, float] | None = None,
        dpi: float | None = None,
        ax: Any = None,
    ) -> Figure | None:
        """Draw the counts, a row for each actual class and a column for each predicted one.

        Args:
            normalize: draw the share of each row instead; that of a class without items is 0.
            title: the title.
            cmap: matplotlib's colours.
            slice_size: nothing, as fastai v1 has it.
            norm_dec: decimals of the shares.
            plot_txt: write the numbers into the cells, where they are not too small to read.
            return_fig: return the figure.
            figsize: width and height in inches; by default they grow with the classes.
            dpi: dots an inch.
            ax: the axes to draw on.
        """
        counts = self.confusion_matrix()
        shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
        texts = [
            [f"{share:.{norm_dec}f}" if normalize and n else str(n) for n, share in zip(*row, strict=True)]
            for row in zip(counts, shares, strict=True)
        ]
        axes = plotting.axes_for(ax) if ax is not None else plotting.matrix_axes(self.classes, figsize, dpi)
        plotting.plot_matrix(
            axes[0], shares if normalize else counts, self.classes, texts if plot_txt else None, cmap, title
        )
        return plotting.finish(axes, return_fig)

    def most_confused(self, min_val: int = 1, slice_size: int = 1) -> list[tuple[str, str, int]]:
        """Return (actual, predicted, count) of wrong answers given ``min_val`` times or more, the most frequent first.

        ``slice_size``, as fastai v1 has it, does nothing.
        """
        counts = self.confusion_matrix()
        np.fill_diagonal(counts, 0)
        pairs = [(int(n), i, j) for (i, j), n in np.ndenumerate(counts) if n >= max(min_val, 1)]
        pairs.sort(key=lambda pair: -pair[0])
        return [(self.classes[i], self.classes[j], n) for n, i, j in pairs]

    def plot_top_losses(
        self,
        k: int,
        largest: bool = True,
        figsize: tuple[float, float] | None = None,
        show_text: bool = True,
        return_fig: bool | None = None,
    ) -> Figure | None:
        """Draw the ``k`` items with the largest losses, or the smallest; of items that are no pictures, print a table.

        Over each stand the predicted and the actual class, the loss, and the probability of the actual class.

        Args:
            k: how many.
            largest: the largest losses, not the smallest.
            figsize: width and height in inches; by default it grows with ``k``.
            show_text: write the heading.
            return_fig: return the figure; a table has none.
        """
        losses, indices = self.top_losses(k, largest)
        inputs = self.inputs(indices)
        rows = []
        for loss, i in zip(losses.tolist(), indices.tolist(), strict=True):
            actual = int(self.y_true[i])
            names = [self.classes[int(self.pred_class[i])], self.classes[actual]]
            rows.append([*names, f"{loss:.2f}", f"{self.preds[i, actual]:.2f}"])
        pictures = self.learn.data.to_images(torch.stack(inputs)) if isinstance(inputs[0], Tensor) else None
        if pictures is None:
            numbered = [[str(i), *row] for i, row in zip(indices.tolist(), rows, strict=True)]
            print(text_table([["sample", "prediction", "actual", "loss", "probability"], *numbered]))
            return None
        titles = [f"{predicted}\n{actual}\n{loss} / {share}" for predicted, actual, loss, share in rows]
        heading = "prediction\nactual\nloss / probability" if show_text else ""
        figure = plotting.plot_images(pictures, titles, figsize, heading=heading)
        return plotting.finish(figure.axes, return_fig)
