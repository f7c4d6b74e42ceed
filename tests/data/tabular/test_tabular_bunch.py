"""TabularDataBunch: columns, split, targets, and errors in one sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from minifast import DataError, DatasetType, TabularDataBunch


def table(n: int = 100) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "town": rng.choice(["A", "B", None], n),
            "rooms": rng.integers(1, 5, n),
            "area": np.where(rng.random(n) < 0.2, np.nan, rng.uniform(10, 200, n)),
            "price": rng.normal(size=n),
        }
    )


def make(df=None, dep_var="price", **options) -> TabularDataBunch:
    return TabularDataBunch.from_df(".", table() if df is None else df, dep_var, seed=0, device="cpu", **options)


def test_columns_are_chosen_by_their_kind_or_as_told() -> None:
    assert (make().encoder.cat_names, make().encoder.cont_names) == (["town"], ["rooms", "area"])
    data = make(cat_names=["town", "rooms"])
    assert (data.encoder.cat_names, data.encoder.cont_names) == (["town", "rooms"], ["area"])
    data = make(cont_names=["area"])
    assert (data.encoder.cat_names, data.encoder.cont_names) == ([], ["area"])


def test_the_encoder_knows_the_training_rows_only() -> None:
    df = table()
    df.loc[:9, "town"] = "only here"
    df.loc[:9, "area"] = 1e6
    data = make(df, valid_idx=range(10))
    assert data.encoder.classes["town"] == ["#na#", "A", "B"]
    (x_cat, x_cont), y = data.one_batch(DatasetType.Valid)
    assert x_cat[:, 0].tolist() == [0] * 10
    assert y.tolist() == pytest.approx(df["price"][:10].tolist())
    train = data.train_dl.x[1]
    assert train.mean(0).abs().max() < 1e-5
    assert train.std(0).tolist() == pytest.approx([1, 1], rel=1e-5)
    assert (x_cont[:, 1] > 1000).all()


def test_each_row_keeps_its_target() -> None:
    df = table()
    df["price"] = df["rooms"].astype(float)
    data = make(df, bs=16)
    for _ in range(2):
        for (_, x_cont), y in data.train_dl:
            rooms = x_cont[:, 0] * data.encoder.stds["rooms"] + data.encoder.means["rooms"]
            assert rooms.tolist() == pytest.approx(y.tolist(), rel=1e-5)


def test_targets_decide_the_task() -> None:
    df = table()
    df["sold"] = df["price"] > 0
    assert (make(df, "sold").classes, make(df, "sold").c) == ([False, True], 2)
    both = make(df, ["price", "area2"]) if "area2" in df else make(df.assign(area2=1.5), ["price", "area2"])
    assert (both.c, both.train_dl.y.shape[1]) == (2, 2)
    df["many"] = range(100)
    with pytest.raises(DataError, match=r"in the validation targets only, .* If the column holds numbers to predict, "):
        make(df, "many")


def test_embedding_widths_follow_the_rule_or_the_caller() -> None:
    data = make()
    assert data.get_emb_szs() == [(3, 3), (3, 3)]
    assert data.get_emb_szs({"town": 7}) == [(3, 7), (3, 3)]
    with pytest.raises(DataError, match="`emb_szs` names 'twon', but the categories are in town, area_na"):
        data.get_emb_szs({"twon": 7})


def test_a_csv_file_gives_the_same_data(tmp_path) -> None:
    table().to_csv(tmp_path / "table.csv", index=False)
    data = TabularDataBunch.from_csv(tmp_path, "table.csv", "price", seed=0, device="cpu")
    for a, b in zip(data.train_dl.x, make().train_dl.x, strict=True):
        assert torch.allclose(a, b)
    with pytest.raises(DataError, match=r"There is no file .*nothing\.csv"):
        TabularDataBunch.from_csv(tmp_path, "nothing.csv", "price")


def test_rows_are_shown_in_their_own_units(capsys) -> None:
    data = make()
    data.show_batch(2)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["town", "area_na", "rooms", "area", "target"]
    assert len(rows) == 2
    assert {row.split()[2] for row in rows} <= {"1", "2", "3", "4"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dep_var": "prize"}, DataError, "`dep_var` must be the name .* Did you mean price"),
        ({"cat_names": ["price"]}, DataError, "The column 'price' is the target; leave it out"),
        ({"cat_names": ["twn"]}, DataError, "`cat_names` must be the name .* Did you mean town"),
        ({"cont_names": ["town"]}, DataError, "The column 'town' must hold numbers, got '[AB]'"),
        ({"valid_idx": [100]}, DataError, "`valid_idx` must hold positions of rows from 0 to 99"),
        ({"valid_idx": range(100)}, DataError, "`valid_idx` holds all rows"),
        ({"df": table()[:1]}, DataError, "`df` needs at least 2 rows"),
        ({"df": {"a": 1}}, TypeError, "`df` must be a pandas data frame, got dict; from_csv reads a file"),
        ({"df": table()[["price"]]}, DataError, "The table has no column besides the target"),
    ],
)
def test_invalid_arguments(options, error, message) -> None:
    with pytest.raises(error, match=message):
        make(**options)
