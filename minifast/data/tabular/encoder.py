"""TableEncoder: rows of a table as category numbers and standardized numbers, fitted on the training rows."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minifast.errors import DataError
from minifast.utils.checks import check_once, shortlist
from minifast.utils.public import warn_caller

FEW = 20  # so many categories of a small table are never too many
MISSING = "#na#"  # the name of category 0: missing, or not in the training rows


class FillMissing:
    """Name a step of ``procs``: missing continuous values become the median; a category ``NAME_na`` tells where."""


class Categorify:
    """Name a step of ``procs``: categories become numbers for embeddings; missing and unseen ones are 0."""


class Normalize:
    """Name a step of ``procs``: continuous columns get the mean 0 and the standard deviation 1."""


PROCS = (FillMissing, Categorify, Normalize)


def warn_about_categories(name: Any, column: Any, n: int) -> None:
    """Warn of a categorical column of dates, or one that has about as many categories as rows."""
    if n < FEW or n <= len(column) / 2:
        return
    if getattr(column.dtype, "kind", "O") in "mM":
        what, cure = (
            "dates or times",
            f"Make numbers of it, such as df[{name!r}].dt.year and .dt.month, and drop the column",
        )
    else:
        what, cure = f"{column.dtype} values", "Make numbers or a few categories of it, or drop the column"
    warn_caller(
        f"The categorical column {name!r} has {n} different values in {len(column)} training rows ({what}), so most "
        f"are seen once and the model cannot learn from them. {cure}."
    )


class TableEncoder:
    """Turn rows into the two inputs of a tabular model; what it needs was learned from the training rows.

    Args:
        cat_names: the categorical columns.
        cont_names: the continuous columns.
        procs: the steps, of ``FillMissing``, ``Categorify`` and ``Normalize``.

    Attributes:
        classes: the categories of each column of ``x_cat``; the first, ``#na#``, is for missing and unseen ones.
        na_names: the continuous columns with missing values in the training rows; each has a category ``NAME_na``.
        medians, means, stds: of each continuous column. Means and standard deviations are those of the filled column.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"town": ["A", "B", None], "area": [10.0, None, 30.0]})
    >>> encoder = TableEncoder(["town"], ["area"]).fit(table)
    >>> encoder.classes
    {'town': ['#na#', 'A', 'B'], 'area_na': ['#na#', False, True]}
    >>> x_cat, x_cont = encoder.encode(table)
    >>> x_cat.tolist(), x_cont.flatten().tolist()
    ([[1, 1], [2, 2], [0, 1]], [-1.0, 0.0, 1.0])
    """

    def __init__(
        self, cat_names: Sequence[Any], cont_names: Sequence[Any], procs: Collection[type] | None = None
    ) -> None:
        chosen = PROCS if procs is None else tuple(procs)
        unknown = [proc for proc in chosen if proc not in PROCS]
        if unknown:
            raise TypeError(f"`procs` must be of FillMissing, Categorify and Normalize, got {unknown[0]!r}.")
        self.cat_names, self.cont_names = list(map(key, cat_names)), list(map(key, cont_names))
        check_once("`cat_names` and `cont_names` name", self.cat_names + self.cont_names, "name each column once")
        if self.cat_names and Categorify not in chosen:
            raise DataError(f"Categorical columns need the step Categorify in `procs`: {shortlist(self.cat_names)}.")
        self.fills, self.normalizes = FillMissing in chosen, Normalize in chosen
        self.classes: dict[str, list[Any]] = {}
        self.na_names: list[str] = []
        self.medians: dict[str, float] = {}
        self.means: dict[str, float] = {}
        self.stds: dict[str, float] = {}

    def fit(self, table: Any) -> TableEncoder:
        """Learn categories, medians, means and standard deviations from the training rows, and return the encoder.

        Raises:
            DataError: a continuous column holds other values, no value at all, or lacks values without ``FillMissing``.
        """
        numbers = {name: numbers_of(table, name) for name in self.cont_names}
        self.classes = {name: [MISSING, *categories_of(table[name])] for name in self.cat_names}
        for name in self.cat_names:
            warn_about_categories(name, table[name], len(self.classes[name]) - 1)
        for name, values in numbers.items():
            gaps = np.isnan(values)
            if gaps.all():
                raise DataError(f"The column {name!r} has no number in the training rows; leave it out.")
            if gaps.any() and not self.fills:
                raise DataError(
                    f"The column {name!r} has {gaps.sum()} missing values in the training rows; add FillMissing to "
                    f"`procs`, or fill them."
                )
            self.medians[name] = float(np.median(values[~gaps]))
            filled = np.where(gaps, self.medians[name], values)
            self.means[name], self.stds[name] = (float(filled.mean()), deviation(filled)) if self.normalizes else (0, 1)
            if gaps.any():
                self.na_names.append(name)
                self.classes[f"{name}_na"] = [MISSING, False, True]
        check_once("The columns name", [*self.classes, *self.cont_names], "rename the column that ends in _na")
        return self

    def encode(self, table: Any, warn: bool = False) -> tuple[Tensor, Tensor]:
        """Return category numbers, int64 ``(n, categories)``, and continuous values, float32 ``(n, columns)``.

        Args:
            table: a data frame, or a dict or Series that is one row. Its further columns are ignored.
            warn: warn of categories that are not among the training rows.

        Raises:
            DataError: a column is missing, or a value of a continuous column is infinite, no number, or more standard
                deviations from the mean than float32 holds.
        """
        table = as_table(table)
        missing = [name for name in [*self.cat_names, *self.cont_names] if name not in table]
        if missing:
            raise DataError(
                f"The row or table has the columns {shortlist(table, 10)}, but lacks {shortlist(missing, 10)}. Give "
                f"each column that the model was trained on, and None for a missing value."
            )
        numbers = {name: numbers_of(table, name) for name in self.cont_names}
        known = {name: {key(value): i for i, value in enumerate(self.classes[name]) if i} for name in self.cat_names}
        codes = [[known[name].get(key(value), 0) for value in values_of(table[name])] for name in self.cat_names]
        for name in self.cat_names if warn else ():
            unseen = {key(value) for value in values_of(table[name])} - {MISSING, *known[name]}
            if unseen:
                warn_caller(
                    f"The column {name!r} has values that are not in the training rows: "
                    f"{shortlist(sorted(map(repr, unseen)))}. They count as missing.",
                )
        codes += [(np.isnan(numbers[name]) + 1).tolist() for name in self.na_names]
        scaled = []
        for name, values in numbers.items():
            gaps = np.isnan(values)
            if gaps.any() and not self.fills:
                raise DataError(f"The column {name!r} has missing values; add FillMissing to `procs`, or fill them.")
            with np.errstate(over="ignore"):
                scaled.append((np.where(gaps, self.medians[name], values) - self.means[name]) / self.stds[name])
            far = np.flatnonzero(~(np.abs(scaled[-1]) <= np.finfo(np.float32).max))
            if len(far):
                raise DataError(
                    f"The column {name!r} has {values[far[0]]:g} in row {far[0]}, which is too far from the training "
                    f"rows, of mean {self.means[name]:g} and standard deviation {self.stds[name]:g}, for float32. "
                    f"Correct the value, or scale the column before."
                )
        n = len(codes[0] if codes else scaled[0] if scaled else [])
        x_cat = torch.tensor(codes, dtype=torch.int64).reshape(len(codes), n).T.contiguous()
        x_cont = torch.from_numpy(np.array(scaled, np.float32).reshape(len(scaled), n).T.copy())
        return x_cat, x_cont

    def decode(self, x_cat: Tensor, x_cont: Tensor) -> dict[str, list[Any]]:
        """Return encoded rows as columns of values."""
        columns: dict[str, list[Any]] = {}
        for i, (name, classes) in enumerate(self.classes.items()):
            columns[name] = [classes[code] for code in x_cat[:, i].tolist()]
        for i, name in enumerate(self.cont_names):
            columns[name] = (x_cont[:, i].double() * self.stds[name] + self.means[name]).tolist()
        return columns

    def plain(self) -> dict[str, Any]:
        """Return the encoder as plain values, for a file."""
        return dict(vars(self))

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> TableEncoder:
        """Return the encoder that ``plain`` described."""
        encoder = cls([], [])
        vars(encoder).update({name: values[name] for name in vars(encoder)})
        return encoder


def as_table(row: Any) -> Any:
    """Return a data frame, or one row, a dict or Series, as a table with one row."""
    if hasattr(row, "columns"):
        return row
    if hasattr(row, "to_dict"):
        row = row.to_dict()
    if not isinstance(row, Mapping):
        raise DataError(
            f"A row of a table must be a dict, a Series or a data frame, got {type(row).__name__}. Give each value "
            f"with the name of its column, as df.iloc[0] does."
        )
    return {name: [value] for name, value in row.items()}


def values_of(column: Any) -> list[Any]:
    """Return the values of a column."""
    return list(column.tolist() if hasattr(column, "tolist") else column)


def is_missing(value: Any) -> bool:
    """Return whether a value is a gap: None, NaN, and pandas's NA and NaT."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, Real) and value != value)
    )


def key(value: Any) -> Any:
    """Return a category as a plain value: a text, a number or a bool; others as text."""
    if is_missing(value):
        return MISSING
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def categories_of(column: Any) -> list[Any]:
    """Return the distinct values of a column, sorted, or in the order of pandas's ordered categories."""
    present = {key(value) for value in values_of(column) if not is_missing(value)}
    kind: Any = getattr(column, "dtype", None)
    if getattr(kind, "ordered", False):
        return [key(value) for value in kind.categories.tolist() if key(value) in present]
    return sorted(present, key=lambda value: (isinstance(value, str), value))


def numbers_of(table: Any, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a column of numbers as float64, NaN for gaps.

    Raises:
        DataError: a value is infinite or no number.
    """
    column = table[name]
    kind = getattr(getattr(column, "dtype", None), "kind", "O")
    if kind in "biuf" and isinstance(getattr(column, "dtype", None), np.dtype):
        numbers = np.asarray(column, np.float64)
    else:
        values = values_of(column)
        wrong = [value for value in values if not is_missing(value) and not isinstance(value, (Real, np.number))]
        if wrong:
            raise DataError(
                f"The column {name!r} must hold numbers, got {wrong[0]!r}; give it in `cat_names`, or convert it."
            )
        numbers = np.array([math.nan if is_missing(value) else float(value) for value in values], np.float64)
    if np.isinf(numbers).any():
        raise DataError(f"The column {name!r} holds infinite numbers; replace them, such as by None.")
    return numbers


def deviation(values: np.ndarray[Any, Any]) -> float:
    """Return the standard deviation, 1 where all values are equal or there is one."""
    std = float(values.std(ddof=1)) if len(values) > 1 and values.min() < values.max() else 0.0
    return std or 1.0
