"""A table of the layers of a model, and the sizes of their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minifast.distributed.sharding import class_of
from minifast.errors import MinifastError
from minifast.hooks import Hooks, hook_outputs, leaves
from minifast.training.snapshot import eval_mode, preserve_buffers
from minifast.utils.compiled import without_compiled_code
from minifast.utils.tensors import call_model
from minifast.utils.text import html_table, shape_text, text_table


class Table(str):
    """A table as text with a note below: a prompt shows it line by line, a notebook as an HTML table."""

    rows: Sequence[Sequence[str]]
    note: str

    def __new__(cls, rows: Sequence[Sequence[str]], note: str) -> Table:
        """Make the text of the rows, the header first; columns from the third on end at the right."""
        text = super().__new__(cls, f"{text_table(rows, right=2)}\n{note}")
        text.rows, text.note = rows, note
        return text

    def __getnewargs__(self) -> tuple[Sequence[Sequence[str]], str]:  # type: ignore[override]
        return self.rows, self.note

    def _repr_html_(self) -> str:
        return html_table(self.rows, right=2, note=self.note)

    def __repr__(self) -> str:
        return str(self)


@torch.no_grad()
def summary(model: nn.Module, x: Any) -> str:
    """Return a table of the layers that a batch passes through, with output shapes and parameters.

    Args:
        model: the model; it runs once in evaluation mode, without gradients.
        x: a batch of inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.

    Raises:
        MinifastError: the model is a ``torch.jit.ScriptModule``.

    >>> summary(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.zeros(8, 4))
    layer   output  parameters  trainable
    Linear  8 x 2           10        yes
    ReLU    8 x 2            0
    10 parameters, 10 of them trainable
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise MinifastError(
            "A model of torch.jit.script or torch.jit.trace takes no hooks, so its layers cannot be listed; call "
            "summary with the nn.Module that it was made from."
        )
    rows = [("layer", "output", "parameters", "trainable")]

    def add_row(module: nn.Module, inputs: Any, output: Any) -> None:
        parameters = list(module.parameters())
        trainable = [p for p in parameters if p.requires_grad]
        trained = (
            "" if not parameters else "yes" if len(trainable) == len(parameters) else "partly" if trainable else "no"
        )
        shape = shape_text(output.shape) if isinstance(output, Tensor) else type(output).__name__
        rows.append((class_of(module).__name__, shape, f"{sum(p.numel() for p in parameters):,}", trained))

    with Hooks(leaves(model), add_row), preserve_buffers(model), eval_mode(model), without_compiled_code(model):
        call_model(model, x)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Table(rows, f"{total:,} parameters, {trainable:,} of them trainable")


def model_sizes(m: nn.Module, size: tuple[int, int] = (64, 64)) -> list[torch.Size]:
    """Return the output shape of each direct child of ``m`` for one image.

    fastai v1's annotation promises the input and the hooks too; like its code, this returns the shapes alone.

    Args:
        m: a model of images with at least one convolution, whose input channels are those of the image.
        size: height and width of the image in pixels.

    Returns:
        One ``torch.Size`` for each child; the batch size is 1.

    Raises:
        ValueError: if ``m`` has no convolution.

    >>> model_sizes(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten()))
    [torch.Size([1, 8, 32, 32]), torch.Size([1, 8192])]
    """
    convolutions = (module for module in m.modules() if isinstance(module, nn.modules.conv._ConvNd))
    first = next(convolutions, None)
    if first is None:
        raise ValueError(
            f"{type(m).__name__} has no convolution, so the number of image channels is unknown; give an image model."
        )
    image = torch.zeros(1, first.in_channels, *size, device=first.weight.device, dtype=first.weight.dtype)
    with hook_outputs(m.children()) as hooks, eval_mode(m), torch.no_grad():
        m(image)
    return [output.shape for output in hooks.stored]


def num_features_model(m: nn.Module) -> int:
    """Return the number of output features (channels) of the last child of ``m``.

    Args:
        m: a model of images with at least one convolution.

    >>> num_features_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    8
    """
    for side in (64, 128, 256):
        try:
            return int(model_sizes(m, (side, side))[-1][1])
        except RuntimeError:  # the image is too small for the model
            continue
    return int(model_sizes(m, (512, 512))[-1][1])


def model_summary(m: Any, n: int = 70) -> str:
    """Return ``m.summary()``.

    Args:
        m: a learner.
        n: ignored; in fastai v1 the width of the table.
    """
    table: str = m.summary()
    return table
