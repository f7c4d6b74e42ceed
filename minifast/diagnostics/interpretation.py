"""Interpretation of a trained model: the samples with the highest losses, and the confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from minifast import plotting
from minifast.data.parts import DatasetType, as_part
from minifast.data.resume import load_loader_state, loader_state, preserve_loader
from minifast.errors import DataError
from minifast.losses import activation_name, is_cross_entropy, is_loss, loss_weight
from minifast.metrics.confusion import PairCounts
from minifast.metrics.loss_options import loss_options, threshold_of
from minifast.model_loss import ModelLoss
from minifast.utils.checks import check_count, counted, shortlist
from minifast.utils.public import public_class
from minifast.utils.random import get_rng_states, set_rng_states
from minifast.utils.shapes import binary_targets, is_counted, match_classes, predict_classes
from minifast.utils.tensors import count_samples
from minifast.utils.text import Described, text_table, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from typing_extensions import Self

    from minifast.learner.learner import Learner

PART_NAMES = {DatasetType.Train: "training", DatasetType.Valid: "validation", DatasetType.Test: "test"}
MOST_CLASSES, MOST_PAIRS = 10, 3  # that the description names


@public_class()
class Interpretation(Described):
    """Hold the predictions, targets and losses of a part of the data, in the order of prediction.

    Args:
        learn: the learner.
        preds: predictions, one row per sample.
        y_true: targets, one row per sample.
        losses: the loss of each sample, ``(n,)``.
        ds_type: the part of the data. Default: the validation set.

    >>> from minifast import DataBunch, Learner, simple_ann
    >>> batch = (torch.randn(8, 4), torch.randn(8, 1))
    >>> data = DataBunch([batch], [batch], device="cpu", loss_func=torch.nn.MSELoss())
    >>> interpretation = Interpretation.from_learner(Learner(data, simple_ann(4, 1)))
    >>> losses, indices = interpretation.top_losses(3)
    >>> len(indices)
    3
    """

    _methods: tuple[str, ...] = ("top_losses(9)",)  # where to go on

    def __init__(
        self,
        learn: Learner,
        preds: Tensor,
        y_true: Tensor,
        losses: Tensor,
        ds_type: DatasetType | str = DatasetType.Valid,
    ) -> None:
        self.learn = learn
        self.preds = preds
        self.y_true = y_true
        self.losses = losses
        self.ds_type = as_part(ds_type)
        self._start = self._data_order()

    @classmethod
    def from_learner(
        cls,
        learn: Learner,
        ds_type: DatasetType | str = DatasetType.Valid,
        activ: Callable[[Tensor], Tensor] | None = None,
        tta: bool = False,
    ) -> Self:
        """Predict a part of the data and return its interpretation; the data order does not change.

        Args:
            learn: the learner.
            ds_type: the part of the data. Default: the validation set.
            activ: the function that turns outputs into predictions, see ``Learner.get_preds``.
            tta: predict by test-time augmentation, see ``Learner.TTA``; it takes no ``activ``.

        Raises:
            DataError: if the samples have several outputs or targets, or outputs of different shapes.
        """
        predict = learn.TTA if tta else learn.get_preds
        preds, y_true, losses = predict(ds_type=as_part(ds_type), activ=activ, with_loss=True)
        if not isinstance(preds, Tensor) or not isinstance(y_true, Tensor) or not isinstance(losses, Tensor):
            raise DataError(
                "The batches have outputs of different shapes, which have no common loss per sample; use get_preds, "
                "which returns a list with one tensor per batch."
            )
        losses = per_sample(learn.loss_func, losses, y_true)
        return cls(learn, preds, y_true, losses, ds_type, **cls._options(learn, activ))

    @classmethod
    def _options(cls, learn: Learner, activ: Callable[[Tensor], Tensor] | None) -> dict[str, Any]:
        return {}

    def __repr__(self) -> str:
        return str(self)

    def _description(self) -> list[tuple[str, str]]:
        data = f"{counted(len(self.losses), 'sample')} of the {PART_NAMES[self.ds_type]} data"
        losses = f"mean {self.losses.mean():.4g}, largest {self.losses.max():.4g}"
        return [("data", data), ("loss", losses), ("methods", ", ".join(self._methods))]

    def top_losses(self, k: int | None = None, largest: bool = True) -> tuple[Tensor, Tensor]:
        """Return the largest losses, or the smallest, and the indices of their samples.

        Args:
            k: how many to return. Default: all.
            largest: return the largest losses; otherwise the smallest.

        Returns:
            The losses ``(k,)``, sorted, and the rows ``(k,)`` in ``preds``, ``y_true`` and ``losses``.
        """
        n = len(self.losses)
        values, indices = self.losses.topk(n if k is None else min(check_count("k", k), n), largest=largest)
        return values, indices

    def inputs(self, indices: Tensor) -> list[Any]:
        """Return the inputs of the samples of these indices, by reading the data once more.

        Args:
            indices: rows in ``preds``.

        Returns:
            One tensor per index, as the model takes it, on the CPU; None for inputs that are not a single tensor.
        """
        loader = self.learn.data.dl(self.ds_type)
        numbers, samples, first = indices.tolist(), {}, 0
        with preserve_loader(loader):
            position, generators = self._start
            load_loader_state(loader, position)
            set_rng_states(generators)
            for x, y in loader:
                for i in numbers:
                    if first <= i < first + count_samples(y, x):
                        samples[i] = x[i - first].cpu() if isinstance(x, Tensor) else None
                first += count_samples(y, x)
                if len(samples) == len(numbers):
                    break
        return [samples[i] for i in numbers]

    def _data_order(self) -> tuple[Any, Any]:
        return loader_state(self.learn.data.dl(self.ds_type)), get_rng_states()


def per_sample(loss_func: Any, losses: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample ``(n,)``; of several targets the mean, for cross entropy as it takes it.

    >>> targets = torch.tensor([[1, -100], [0, 1]])
    >>> per_sample(torch.nn.CrossEntropyLoss(), torch.tensor([[4.0, 0.0], [1.0, 2.0]]), targets)
    tensor([4.0000, 1.5000])
    """
    n = len(targets)
    losses = losses.reshape(n, -1)
    is_of_classes = is_cross_entropy(loss_func) or is_loss(loss_func, nn.NLLLoss, functional.nll_loss)
    is_single = losses.shape[1] == 1 and targets.ndim <= 2  # one target per sample, not one pixel
    if is_single or not (is_of_classes or isinstance(loss_func, ModelLoss)):
        return losses.mean(dim=1)
    weights = torch.tensor([float(loss_weight(loss_func, targets[i : i + 1])) for i in range(n)])
    return losses.sum(dim=1) / weights.masked_fill(weights == 0, 1.0)


@public_class()
class ClassificationInterpretation(Interpretation):
    """Interpret a classifier: its top losses, its confusion matrix, and the classes it confuses most.

    A single output per sample is that of two classes; ``preds`` then becomes the probabilities of both, ``(n, 2)``. The
    classes of pixels or of the positions of a sequence are counted one by one in the confusion matrix; those that the
    loss ignores are left out.

    Args:
        learn: the learner.
        preds: predictions ``(n, classes)``, or ``(n,)`` or ``(n, 1)`` for two classes; for several targets per sample
            ``(n, classes, ...)`` or ``(n, ..., classes)``.
        y_true: class numbers ``(n,)`` or ``(n, 1)``, or ``(n, ...)``; floats 0 and 1 are allowed for a single output.
        losses: the loss of each sample, ``(n,)``.
        ds_type: the part of the data. Default: the validation set.
        threshold: the single prediction above which class 1 is predicted. Default: what follows from the loss.

    Attributes:
        pred_class: the predicted class numbers ``(n,)`` or ``(n, ...)``.
        counted: True for the targets that the loss does not ignore.
        classes: the names of the classes.

    Raises:
        DataError: if the targets are not class numbers, or the predictions do not have one column per class.

    >>> from minifast import DataBunch, Learner, simple_ann
    >>> batch = (torch.randn(8, 4), torch.tensor([0, 1] * 4))
    >>> data = DataBunch([batch], [batch], device="cpu", classes=["cat", "dog"])
    >>> interpretation = ClassificationInterpretation.from_learner(Learner(data, simple_ann(4, 2)))
    >>> interpretation.confusion_matrix().sum(axis=1)
    array([4, 4])
    """

    _methods = ("plot_top_losses(9)", "plot_confusion_matrix()", "most_confused()")

    def __init__(
        self,
        learn: Learner,
        preds: Tensor,
        y_true: Tensor,
        losses: Tensor,
        ds_type: DatasetType | str = DatasetType.Valid,
        threshold: float | None = None,
    ) -> None:
        super().__init__(learn, preds, y_true, losses, ds_type)
        self._several = preds.ndim > 2 and preds.numel() > len(preds)
        if self._several:
            self._set_positions(threshold)
            return
        if preds.numel() == len(preds) == y_true.numel():
            threshold = threshold_of(learn.loss_func) if threshold is None else threshold
            chosen = (preds.flatten() > threshold).long()
            positive = preds.flatten() if threshold > 0 else preds.flatten().sigmoid()
            self.preds = preds = torch.stack([1 - positive, positive], dim=1)
            self.y_true = y_true = binary_targets(y_true.flatten())
        else:
            chosen = preds.argmax(dim=-1)
        if preds.ndim != 2 or y_true.is_floating_point() or y_true.numel() != len(preds):
            raise DataError(
                f"The predictions have the shape {tuple(preds.shape)} and the targets {tuple(y_true.shape)}, "
                f"{y_true.dtype}; a classifier needs predictions (n, classes) and class numbers (n,). Use "
                f"Interpretation, which accepts any shapes."
            )
        self.y_true = y_true.flatten()
        self.pred_class = chosen
        self.counted = is_counted(self.y_true, loss_options(learn.loss_func).get("ignore_index", -100))
        self._set_classes(preds.shape[1])

    def _description(self) -> list[tuple[str, str]]:
        counts, confused = self.confusion_matrix(), self.most_confused()[:MOST_PAIRS]
        right, n = int(counts.trace()), int(counts.sum())
        rows = [("classes", f"{len(self.classes)}: {shortlist(self.classes, MOST_CLASSES)}")]
        rows.append(("correct", f"{right} of {n}" + (f" ({right / n:.1%})" if n else "")))
        if confused:
            pairs = [f"{actual} as {predicted} ({times})" for actual, predicted, times in confused]
            rows.append(("most confused", ", ".join(pairs)))
        data, loss, methods = super()._description()
        return [data, *rows, loss, methods]

    def _set_classes(self, n: int) -> None:
        classes = range(n) if self.learn.data.classes is None else self.learn.data.classes
        if len(classes) != n:
            raise DataError(
                f"The data have {len(classes)} classes and the model {n} outputs; give the last layer "
                f"{len(classes)} outputs."
            )
        self.classes = [str(name) for name in classes]

    def _set_positions(self, threshold: float | None) -> None:
        """Set the classes of samples with several targets each."""
        options = loss_options(self.learn.loss_func)
        axis, ignored = options.get("axis"), options.get("ignore_index", -100)
        single = match_classes(self.preds, self.y_true, axis)[0].shape[-1] == 1
        if self.y_true.is_floating_point() and not single:
            raise DataError(
                f"The targets are {self.y_true.dtype} of the shape {tuple(self.y_true.shape)}; a classifier needs "
                f"class numbers. Use minifast.Interpretation, which accepts any targets."
            )
        if threshold is None:
            threshold = threshold_of(self.learn.loss_func) if single else 0.0
        found = predict_classes(self.preds, self.y_true, threshold, ignored, axis)
        self.pred_class, self.y_true, self.counted, n_classes = found
        self._set_classes(n_classes)

    def confusion_matrix(self, slice_size: int = 1) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the counts ``[actual, predicted]``, ``(classes, classes)``.

        Args:
            slice_size: ignored; an argument of fastai v1.
        """
        return self._counts().table().numpy()

    @classmethod
    def _options(cls, learn: Learner, activ: Callable[[Tensor], Tensor] | None) -> dict[str, Any]:
        named = activ is not None and activation_name(learn.loss_func) not in ("softmax", "exp")
        return {"threshold": threshold_of(learn.loss_func, activ)} if named else {}

    def _counts(self) -> PairCounts:
        counts = PairCounts(len(self.classes))
        counts.add(self.pred_class[self.counted], self.y_true[self.counted])
        return counts

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
        """Plot the confusion matrix, a row for each actual class and a column for each predicted class.

        Args:
            normalize: plot fractions of each row; a class without samples has the fraction 0.
            title: the title.
            cmap: the colormap of matplotlib.
            slice_size: ignored; an argument of fastai v1.
            norm_dec: the number of decimals of the shares.
            plot_txt: write the numbers into the cells, for up to 50 classes and where they are large enough to read.
            return_fig: return the figure.
            figsize: width and height in inches; by default they grow with the number of classes.
            dpi: dots per inch.
            ax: the axes to plot on; by default new ones.

        Returns:
            The figure with ``return_fig``, otherwise None.
        """
        counts = self.confusion_matrix()
        shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
        plot_txt = plot_txt and len(counts) <= plotting.MOST_TEXTS
        texts = [
            [f"{share:.{norm_dec}f}" if normalize and n else str(n) for n, share in zip(*row, strict=True)]
            for row in zip(counts if plot_txt else (), shares if plot_txt else (), strict=True)
        ]
        axes = plotting.axes_for(ax) if ax is not None else plotting.matrix_axes(self.classes, figsize, dpi)
        plotting.plot_matrix(
            axes[0], shares if normalize else counts, self.classes, texts if plot_txt else None, cmap, title
        )
        return plotting.finish(axes, return_fig)

    def most_confused(self, min_val: int = 1, slice_size: int = 1) -> list[tuple[str, str, int]]:
        """Return the most frequent errors.

        Args:
            min_val: the smallest number of errors to list. Default: 1.
            slice_size: ignored; an argument of fastai v1.

        Returns:
            (actual class, predicted class, count) of each pair of classes, the most frequent first.
        """
        actual, predicted, counts = self._counts().pairs()
        errors = ((actual != predicted) & (counts >= max(min_val, 1))).nonzero()[:, 0]
        order = errors[counts[errors].argsort(descending=True, stable=True)]
        rows = zip(actual[order].tolist(), predicted[order].tolist(), counts[order].tolist(), strict=True)
        return [(self.classes[i], self.classes[j], n) for i, j, n in rows]

    def plot_top_losses(
        self,
        k: int,
        largest: bool = True,
        figsize: tuple[float, float] | None = None,
        show_text: bool = True,
        return_fig: bool | None = None,
    ) -> Figure | None:
        """Show the samples with the largest losses, or the smallest: images in a figure, others in a printed table.

        The title of each image is the predicted class, the actual class, the loss and the probability of the actual
        class; for several targets per sample, the loss and the fraction of them that is predicted correctly.

        Args:
            k: the number of samples.
            largest: show the largest losses; otherwise the smallest.
            figsize: width and height in inches; by default they grow with ``k``.
            show_text: write a heading that explains the titles.
            return_fig: return the figure.

        Returns:
            The figure with ``return_fig``; None for a table.
        """
        losses, indices = self.top_losses(k, largest)
        inputs = self.inputs(indices)
        rows = []
        parts = ["loss", "accuracy"] if self._several else ["prediction", "actual", "loss", "probability"]
        for loss, i in zip(losses.tolist(), indices.tolist(), strict=True):
            if self._several:
                right = (self.pred_class[i] == self.y_true[i])[self.counted[i]]
                rows.append([f"{loss:.2f}", f"{right.float().mean():.2f}"])
                continue
            actual = int(self.y_true[i])
            names = [self.classes[int(self.pred_class[i])], self.classes[actual]]
            rows.append([*names, f"{loss:.2f}", f"{self.preds[i, actual]:.2f}"])
        images = self.learn.data.to_images(torch.stack(inputs)) if isinstance(inputs[0], Tensor) else None
        if images is None:
            numbered = [[str(i), *row] for i, row in zip(indices.tolist(), rows, strict=True)]
            write_text(text_table([["sample", *parts], *numbered]))
            return None
        heading, *titles = ["\n".join([*words[:-2], " / ".join(words[-2:])]) for words in (parts, *rows)]
        heading = heading if show_text else ""
        figure = plotting.plot_images(images, titles, figsize, heading=heading)
        return plotting.finish(figure.axes, return_fig)
