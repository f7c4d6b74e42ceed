"""The network for tables, and the learner that trains it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minifast.data.tabular.tabular_bunch import TabularDataBunch
from minifast.learner.learner import Learner
from minifast.utils.checks import check_count, check_number
from minifast.utils.public import check_keywords, public


class TabularModel(nn.Module):
    """Concatenate the embeddings of categories with numbers, and apply linear layers.

    Args:
        emb_szs: for each category column the number of categories and the width of its embedding.
        n_cont: number of continuous columns.
        out_sz: number of outputs.
        layers: widths of the hidden layers.
        ps: dropout probability after each hidden layer: one for all, or one per layer. Default: 0.
        emb_drop: dropout probability of the embeddings.
        y_range: low and high limit of the outputs, by a sigmoid.
        use_bn: apply BatchNorm to the numbers, and before each linear layer but the first.
        y_stats: mean and standard deviation of each target. The outputs are in the targets' units, while the last layer
            works on standardized ones.

    >>> model = TabularModel([(3, 2), (5, 4)], n_cont=2, out_sz=1, layers=[8])
    >>> model(torch.zeros(7, 2, dtype=torch.int64), torch.zeros(7, 2)).shape
    torch.Size([7, 1])
    """

    y_mean: Tensor
    y_std: Tensor

    def __init__(
        self,
        emb_szs: Sequence[tuple[int, int]],
        n_cont: int,
        out_sz: int,
        layers: Sequence[int],
        ps: float | Sequence[float] | None = None,
        emb_drop: float = 0.0,
        y_range: tuple[float, float] | None = None,
        use_bn: bool = True,
        y_stats: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(layers, (int, str)) or not hasattr(layers, "__len__"):
            raise TypeError(f"`layers` must be a list of widths, such as [200, 100], got {layers!r}.")
        widths = [check_count("each of layers", width) for width in layers]
        probabilities = check_dropout(ps, len(widths))
        self.embeds = nn.ModuleList(nn.Embedding(n, width) for n, width in emb_szs)
        for weight in self.embeds.parameters():
            nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02)
        self.emb_drop = nn.Dropout(check_number("emb_drop", emb_drop, low=0, high=1))
        self.bn_cont = nn.BatchNorm1d(n_cont) if use_bn and n_cont else nn.Identity()
        sizes = [sum(width for _, width in emb_szs) + n_cont, *widths, check_count("out_sz", out_sz)]
        parts: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            last = i == len(widths)
            if i and use_bn:
                parts.append(nn.BatchNorm1d(n_in))
            if i and probabilities[i - 1]:
                parts.append(nn.Dropout(probabilities[i - 1]))
            parts += [nn.Linear(n_in, n_out)] if last else [nn.Linear(n_in, n_out), nn.ReLU()]
        self.layers = nn.Sequential(*parts)
        self.y_range = y_range
        mean, std = (torch.zeros(out_sz), torch.ones(out_sz)) if y_stats is None else y_stats
        self.register_buffer("y_mean", mean)
        self.register_buffer("y_std", std)

    def forward(self, x_cat: Tensor, x_cont: Tensor) -> Tensor:
        """Return the outputs ``(n, out_sz)`` for category numbers and numbers."""
        parts = (
            [self.emb_drop(torch.cat([embed(x_cat[:, i]) for i, embed in enumerate(self.embeds)], 1))]
            if len(self.embeds)
            else []
        )
        if x_cont.shape[1]:
            parts.append(self.bn_cont(x_cont))
        output: Tensor = self.layers(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        if self.y_range is not None:
            low, high = self.y_range
            return torch.sigmoid(output) * (high - low) + low
        return output * self.y_std + self.y_mean


def check_dropout(ps: float | Sequence[float] | None, n_layers: int) -> list[float]:
    """Return a dropout probability for each hidden layer."""
    values = [0.0 if ps is None else ps] * n_layers if ps is None or isinstance(ps, (int, float)) else list(ps)
    if len(values) != n_layers:
        raise ValueError(f"`ps` must be one number, or one for each of the {n_layers} layers, got {len(values)}.")
    return [check_number("each of ps", value, low=0, high=1) for value in values]


@public
def tabular_learner(
    data: TabularDataBunch,
    layers: Sequence[int] = (200, 100),
    emb_szs: Mapping[str, int] | None = None,
    metrics: Any = None,
    ps: float | Sequence[float] | None = None,
    emb_drop: float = 0.0,
    y_range: tuple[float, float] | None = None,
    use_bn: bool = True,
    **kwargs: Any,
) -> Learner:
    """Create a Learner with a ``TabularModel`` for a table.

    Regression targets are standardized inside the model: it starts at the mean of the training targets. Outputs, losses
    and metrics are in the targets' units.

    Args:
        data: the table.
        layers: widths of the hidden layers.
        emb_szs: widths of embeddings by column, in place of the rule of ``data.get_emb_szs``.
        metrics: metrics of the Learner.
        ps: dropout probability after each hidden layer: one for all, or one per layer. Default: 0.
        emb_drop: dropout probability of the embeddings.
        y_range: low and high limit of the outputs, for regression.
        use_bn: use BatchNorm, see ``TabularModel``.
        kwargs: further arguments of ``Learner``.

    Raises:
        TypeError: ``data`` is not a TabularDataBunch.

    >>> import pandas as pd
    >>> from minifast import accuracy
    >>> table = pd.DataFrame({"town": ["A", "B", "A", None] * 25, "area": range(100), "sold": [True, False] * 50})
    >>> data = TabularDataBunch.from_df(".", table, "sold", seed=0, device="cpu")
    >>> learn = tabular_learner(data, layers=[20], metrics=[accuracy], silent=True)
    >>> category, index, probabilities = learn.predict({"town": "B", "area": 3})
    >>> probabilities.shape
    torch.Size([2])
    """
    check_keywords("tabular_learner", kwargs, tabular_learner, Learner)
    if not isinstance(data, TabularDataBunch):
        raise TypeError(
            f"`data` must be a TabularDataBunch, got {type(data).__name__}; make one with TabularDataBunch.from_df."
        )
    targets = data.train_dl.y
    y_stats = None
    if data.classes is None and y_range is None:
        columns = targets.reshape(len(targets), -1)
        std = columns.std(0, correction=int(len(columns) > 1))
        y_stats = (columns.mean(0), torch.where(std > 0, std, 1.0))
    model = TabularModel(
        data.get_emb_szs(emb_szs), len(data.encoder.cont_names), data.c or 1, layers, ps, emb_drop, y_range, use_bn,
        y_stats=y_stats,
    )  # fmt: skip
    return Learner(data, model, metrics=metrics, **kwargs)
