"""The encoder of tables: what it learns from training rows, and what it makes of any other rows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minifast import DataError
from minifast.data.tabular.encoder import Categorify, FillMissing, Normalize, TableEncoder

CATEGORY = st.one_of(st.none(), st.sampled_from(["a", "b", "c", "7"]), st.integers(0, 3))
NUMBER = st.one_of(st.none(), st.floats(-1e6, 1e6), st.integers(-5, 5))
ROWS = st.lists(st.tuples(CATEGORY, NUMBER), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS)
@example([("a", 0.0), ("a", 1e-111)], [("a", 1.0)])
def test_any_rows_are_encoded_by_what_the_training_rows_hold(train, other) -> None:
    tables = [pd.DataFrame(rows, columns=["cat", "num"], dtype=object) for rows in (train, other)]
    numbers = [number for _, number in train if number is not None]
    encoder = TableEncoder(["cat"], ["num"])
    if not numbers:
        with pytest.raises(DataError, match="has no number in the training rows"):
            encoder.fit(tables[0])
        return
    encoder.fit(tables[0])
    median = float(np.median(numbers))
    filled = [median if number is None else number for _, number in train]
    spread = np.std(filled, ddof=1) if len(set(filled)) > 1 else 1.0
    assert encoder.na_names == (["num"] if len(numbers) < len(train) else [])
    for rows, table in zip((train, other), tables, strict=True):
        scaled = [((median if x is None else x) - np.mean(filled)) / (spread or 1.0) for _, x in rows]
        if max(map(abs, scaled)) > np.finfo(np.float32).max:
            with pytest.raises(DataError, match=r"The column 'num' has .* in row \d+, which is too far"):
                encoder.encode(table)
            return
        x_cat, x_cont = encoder.encode(table)
        assert x_cat.shape == (len(rows), 1 + len(encoder.na_names))
        cells = zip(rows, x_cat.tolist(), x_cont.flatten().tolist(), scaled, strict=True)
        for (category, number), codes, value, expected in cells:
            seen = category is not None and category in [c for c, _ in train]
            assert encoder.classes["cat"][codes[0]] == (category if seen else "#na#")
            assert codes[1:] == [1 + (number is None)] * len(encoder.na_names)
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)
    one = encoder.encode({"num": other[0][1], "cat": other[0][0]})
    assert torch.equal(one[0], encoder.encode(tables[1])[0][:1])
    assert torch.equal(one[1], encoder.encode(tables[1])[1][:1])


@pytest.mark.parametrize(
    "gap", [None, math.nan, pd.NA, pd.NaT, np.float32("nan")], ids=["None", "nan", "NA", "NaT", "float32"]
)
def test_each_kind_of_gap_is_a_gap(gap) -> None:
    encoder = TableEncoder(["cat"], ["num"]).fit(pd.DataFrame({"cat": ["a", "b", gap], "num": [1.0, 3.0, gap]}))
    x_cat, x_cont = encoder.encode({"cat": gap, "num": gap})
    assert x_cat.tolist() == [[0, 2]]
    assert x_cont.tolist() == [[0.0]]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["b", "a", "b"]),
        pd.Series(["b", "a", "b"], dtype="category"),
        pd.Series([True, False, True]),
        pd.Series([2, 1, 2], dtype="Int64"),
        pd.Series([2.0, 1.0, None]),
        pd.Series(pd.to_datetime(["2020-01-02", "2020-01-01", "2020-01-02"])),
    ],
    ids=lambda column: str(column.dtype),
)
def test_categories_of_each_type_are_sorted_and_found_again(column) -> None:
    table = pd.DataFrame({"cat": column})
    encoder = TableEncoder(["cat"], []).fit(table)
    assert encoder.encode(table)[0].flatten().tolist()[:2] == [2, 1]
    again = TableEncoder.from_plain(encoder.plain())
    assert [again.encode(table.iloc[i])[0].item() for i in (0, 1)] == [2, 1]


def test_ordered_categories_keep_their_order() -> None:
    kind = pd.CategoricalDtype(["low", "mid", "high"], ordered=True)
    table = pd.DataFrame({"cat": pd.Series(["high", "low", "mid"], dtype=kind)})
    assert TableEncoder(["cat"], []).fit(table).classes["cat"] == ["#na#", "low", "mid", "high"]


def test_unseen_categories_are_said_where_that_is_wanted() -> None:
    encoder = TableEncoder(["cat"], []).fit(pd.DataFrame({"cat": ["a", "b"]}))
    encoder.encode({"cat": "z"})
    with pytest.warns(UserWarning, match=r"'cat' has values that are not in the training rows: 'z'\. They count as mi"):
        encoder.encode({"cat": "z"}, warn=True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"num": [1.0, 2.0]}, "has the columns num, but lacks cat"),
        ({"cat": ["a", "b"], "num": ["1", "2"]}, "The column 'num' must hold numbers, got '1'; give it in `cat_names`"),
        ({"cat": ["a", "b"], "num": [1.0, math.inf]}, "The column 'num' holds infinite numbers"),
    ],
)
def test_what_cannot_be_encoded_raises(table, message) -> None:
    encoder = TableEncoder(["cat"], ["num"]).fit(pd.DataFrame({"cat": ["a", "b"], "num": [1.0, 2.0]}))
    with pytest.raises(DataError, match=message):
        encoder.encode(pd.DataFrame(table))


def test_the_steps_can_be_chosen() -> None:
    table = pd.DataFrame({"cat": ["a", "b"], "num": [1.0, 3.0]})
    assert TableEncoder(["cat"], ["num"], [Categorify]).fit(table).encode(table)[1].flatten().tolist() == [1, 3]
    gaps = pd.DataFrame({"num": [1.0, None]})
    with pytest.raises(DataError, match="'num' has 1 missing values in the training rows; add FillMissing"):
        TableEncoder([], ["num"], [Normalize]).fit(gaps)
    with pytest.raises(DataError, match="Categorical columns need the step Categorify in `procs`: cat"):
        TableEncoder(["cat"], [], [FillMissing])
    with pytest.raises(TypeError, match="`procs` must be of FillMissing, Categorify and Normalize, got"):
        TableEncoder(["cat"], [], [Categorify, "Normalize"])
    with pytest.raises(DataError, match="name 'a' twice"):
        TableEncoder(["a"], ["a"])


def test_a_constant_column_is_only_centered() -> None:
    table = pd.DataFrame({"num": [5.0, 5.0]})
    assert TableEncoder([], ["num"]).fit(table).encode(table)[1].flatten().tolist() == [0, 0]
