"""TabularDataBunch: a table as the data of a Learner."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minifast.data.bunch import DataBunch
from minifast.data.labels import as_array, as_labels
from minifast.data.loaders import TensorLoader, to_device
from minifast.data.order import resolve_seed, split_rows
from minifast.data.parts import DatasetType, as_part
from minifast.data.tables import column_name
from minifast.data.tabular.encoder import TableEncoder
from minifast.data.tensors import check_unseen
from minifast.errors import DataError
from minifast.losses import loss_of_labels
from minifast.utils.checks import check_count, import_optional, shortlist
from minifast.utils.public import check_keywords, public_class
from minifast.utils.text import text_table, write_text


@public_class()
class TabularDataBunch(DataBunch):
    """Hold a table in memory as batches ``((x_cat, x_cont), y)``: category numbers, and standardized numbers.

    ``tabular_learner`` makes the model for it.
    """

    test_option = "from_df(..., test_df=df)"
    test_labelled = False
    encoder: TableEncoder  # fitted on the training rows

    @classmethod
    def from_df(
        cls,
        path: str | Path,
        df: Any,
        dep_var: str | Sequence[str],
        valid_idx: Sequence[int] | None = None,
        procs: Collection[type] | None = None,
        cat_names: Sequence[str] | None = None,
        cont_names: Sequence[str] | None = None,
        classes: Sequence[Any] | None = None,
        test_df: Any = None,
        bs: int = 64,
        val_bs: int | None = None,
        valid_pct: float = 0.2,
        seed: int | None = None,
        device: torch.device | str | None = None,
    ) -> TabularDataBunch:
        """Create a bunch from a data frame.

        Categories, medians, means and standard deviations come from the training rows alone. Categories that are
        missing, or not among the training rows, are the category ``#na#``. Missing continuous values become the
        median; if the training rows lack values, a category ``NAME_na`` tells where. ``learn.export`` keeps all of it.

        Args:
            path: folder for the learner's files.
            df: the table.
            dep_var: the column to predict. Texts, integers and bools are classes; floats are regression targets, also
                in several columns. ``print(data)`` shows it.
            valid_idx: positions of the rows for validation; by default ``valid_pct`` of the rows, at random.
            procs: steps of the encoder; by default ``[FillMissing, Categorify, Normalize]``.
            cat_names: the categorical columns; by default, without ``cont_names`` too, those that are not numeric.
            cont_names: the continuous columns; by default all other columns.
            classes: the classes in order; by default the values of ``dep_var``, sorted.
            test_df: rows to predict; they need no ``dep_var``.
            bs: samples per training batch. An incomplete last batch is dropped, unless it is the only one.
            val_bs: samples per validation batch; by default twice ``bs``.
            valid_pct: fraction of the rows for validation, chosen at random.
            seed: seed of the split and of the training order; by default sampled from torch's generator.
            device: device for training; by default the GPU if there is one.

        Raises:
            DataError: a column does not exist, holds other values than its kind, or a target cannot be used.

        >>> import pandas as pd
        >>> table = pd.DataFrame({"town": ["A", "B", "A", None] * 25, "area": range(100), "price": [1.5, 2.5] * 50})
        >>> data = TabularDataBunch.from_df(".", table, "price", seed=0, device="cpu")
        >>> data.encoder.cat_names, data.encoder.cont_names, data.get_emb_szs()
        (['town'], ['area'], [(3, 3)])
        """
        if not hasattr(df, "iloc") or not hasattr(df, "columns"):
            raise TypeError(f"`df` must be a pandas data frame, got {type(df).__name__}; from_csv reads a file.")
        check_count("bs", bs)
        val_bs = 2 * bs if val_bs is None else check_count("val_bs", val_bs)
        seed = resolve_seed(seed)
        targets = [dep_var] if isinstance(dep_var, str) else list(dep_var)
        targets = [column_name(df, name, "dep_var") for name in targets]
        cats, conts = choose_columns(df, targets, cat_names, cont_names)
        rows = split(len(df), valid_idx, valid_pct, seed)
        labels = as_labels(
            as_array(df[targets[0]] if len(targets) == 1 else df[targets]), classes, name="Row {}".format
        )
        if labels.kind == "class" and classes is None:
            check_unseen(labels, rows, "If the column holds numbers to predict, make them floats. ")
        encoder = TableEncoder(cats, conts, procs).fit(take(df, rows[0]))
        parts = [encoder.encode(take(df, part)) for part in rows]
        common: dict[str, Any] = {"seed": seed, "device": device, "classes": labels.classes}
        train_dl = TensorLoader(parts[0], labels.targets[rows[0]], bs, True, **common)
        valid_dl = TensorLoader(parts[1], labels.targets[rows[1]], val_bs, **common)
        test_dl = None
        if test_df is not None:
            placeholders = torch.zeros(len(test_df), *labels.targets.shape[1:], dtype=labels.targets.dtype)
            test_dl = TensorLoader(encoder.encode(test_df, warn=True), placeholders, val_bs, **common)
        loss = loss_of_labels(labels)
        data = cls(train_dl, valid_dl, test_dl, device, path=path, classes=labels.classes, loss_func=loss)
        data.labels = labels
        data.encoder = encoder
        return data

    @classmethod
    def from_csv(cls, path: str | Path, csv_name: str | Path, dep_var: str, **kwargs: Any) -> TabularDataBunch:
        """Create a bunch from a CSV file, which pandas reads.

        Args:
            path: folder of the file and for the learner's files.
            csv_name: name of the file in ``path``.
            dep_var: the column to predict.
            kwargs: further arguments of ``from_df``.

        Raises:
            DataError: the file does not exist, or a column cannot be used.
            ImportError: pandas is not installed.
        """
        check_keywords(f"{cls.__name__}.from_csv", kwargs, cls.from_csv, cls.from_df, but=("df",))
        file = Path(path) / csv_name
        if not file.is_file():
            raise DataError(f"There is no file {file}. Pass its folder as `path` and its name as `csv_name`.")
        table = import_optional("pandas", "TabularDataBunch.from_csv", "pandas").read_csv(file)
        return cls.from_df(path, table, dep_var, **kwargs)

    def get_emb_szs(self, sz_dict: Mapping[str, int] | None = None) -> list[tuple[int, int]]:
        """Return the number of categories and the width of the embedding for each column of ``x_cat``.

        Args:
            sz_dict: widths by column, in place of the rule ``min(600, round(1.6 * n ** 0.56))``.

        Raises:
            DataError: ``sz_dict`` names a column that has no categories.
        """
        widths = dict(sz_dict or {})
        for name in widths.keys() - self.encoder.classes.keys():
            raise DataError(f"`emb_szs` names {name!r}, but the categories are in {shortlist(self.encoder.classes)}.")
        counts = {name: len(classes) for name, classes in self.encoder.classes.items()}
        return [(n, check_count(name, widths.get(name, emb_sz_rule(n)))) for name, n in counts.items()]

    def encode(self, item: Any) -> Any:
        """Return a row, a dict, a pandas Series or a data frame of one row, as a batch of one for the model.

        Raises:
            DataError: a column is missing, or ``item`` is not one row.
        """
        if isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(x, torch.Tensor) for x in item):
            return super().encode(item)  # encoded, as the data set returns it
        x_cat, x_cont = self.encoder.encode(item, warn=True)
        if len(x_cat) != 1:
            raise DataError(f"A sample is one row, got {len(x_cat)} rows; give the table as `test` or `test_df`.")
        return to_device((x_cat, x_cont), self.device)

    def show_batch(
        self,
        rows: int = 5,
        ds_type: DatasetType | str = DatasetType.Train,
        return_fig: bool = False,
        figsize: Any = None,
    ) -> Any:
        """Print ``rows`` rows of one batch with their targets; in their own units, missing values filled.

        Args:
            rows: number of rows.
            ds_type: part of the data.
            return_fig: has no effect, there is no figure.
            figsize: has no effect.
        """
        n = check_count("rows", rows)
        (x_cat, x_cont), y = self.one_batch(ds_type)
        columns = self.encoder.decode(x_cat[:n], x_cont[:n])
        texts = [
            [f"{value:.4g}" if isinstance(value, float) else str(value) for value in column]
            for column in columns.values()
        ]
        if as_part(ds_type) is not DatasetType.Test or self.test_labelled:
            columns["target"] = []
            texts.append([self.label_of(target) for target in y[:n]])
        write_text(text_table([list(columns), *map(list, zip(*texts, strict=True))]))


def emb_sz_rule(n_cat: int) -> int:
    """Return the width of an embedding of ``n_cat`` categories, by the rule of fastai v1.

    >>> emb_sz_rule(3), emb_sz_rule(10), emb_sz_rule(10**6)
    (3, 6, 600)
    """
    width: int = min(600, round(1.6 * n_cat**0.56))
    return width


def choose_columns(
    df: Any, targets: Sequence[Any], cat_names: Sequence[str] | None, cont_names: Sequence[str] | None
) -> tuple[list[Any], list[Any]]:
    """Return the categorical and the continuous columns, without the targets."""
    others = [name for name in df.columns if name not in targets]
    cats = [column_name(df, name, "cat_names") for name in cat_names or []]
    conts = [column_name(df, name, "cont_names") for name in cont_names or []]
    for name in [*cats, *conts]:
        if name in targets:
            raise DataError(f"The column {name!r} is the target; leave it out of `cat_names` and `cont_names`.")
    if cat_names is None and cont_names is None:
        cats = [name for name in others if getattr(df[name].dtype, "kind", "O") not in "iuf"]
        conts = [name for name in others if name not in cats]
    elif cont_names is None:
        conts = [name for name in others if name not in cats]
    if not cats and not conts:
        raise DataError("The table has no column besides the target; give at least one to predict from.")
    return cats, conts


def split(n: int, valid_idx: Sequence[int] | None, valid_pct: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the positions of the training rows and of the validation rows."""
    if n < 2:
        raise DataError(f"`df` needs at least 2 rows, one for training and one for validation, got {n}.")
    if valid_idx is None:
        return split_rows(n, valid_pct, seed)
    chosen = np.asarray(list(valid_idx))
    if chosen.dtype.kind not in "iu" or not len(chosen) or chosen.min() < 0 or chosen.max() >= n:
        raise DataError(f"`valid_idx` must hold positions of rows from 0 to {n - 1}, at least one.")
    is_valid = np.zeros(n, bool)
    is_valid[chosen] = True
    if is_valid.all():
        raise DataError("`valid_idx` holds all rows, so none is left for training.")
    return torch.from_numpy(np.flatnonzero(~is_valid)), torch.from_numpy(np.flatnonzero(is_valid))


def take(df: Any, rows: torch.Tensor) -> Any:
    """Return rows of a data frame by their positions."""
    return df.iloc[rows.numpy()]
