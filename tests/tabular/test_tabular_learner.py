"""tabular_learner: training, prediction of rows, files, and what works on other data."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FailsAt, slow

from minifast import DataError, DatasetType, Learner, TabularDataBunch, accuracy, load_learner, rmse, tabular_learner
from minifast.tabular import TabularModel


def dated(n: int) -> pd.DataFrame:
    days = pd.date_range("2020-01-01", periods=n)
    return pd.DataFrame({"sold": days, "name": [f"n{i}" for i in range(n)], "a": np.arange(n) / n, "price": np.ones(n)})


@pytest.mark.parametrize(
    ("column", "words"),
    [("sold", r"'sold' has 80 .* \(dates or times\), .*df\['sold'\]\.dt\.year"), ("name", "'name' has 80 ")],
)
def test_a_column_with_almost_as_many_categories_as_rows_is_reported(column, words):
    table = dated(100)[[column, "a", "price"]]
    with pytest.warns(UserWarning, match=words) as caught:
        TabularDataBunch.from_df(".", table, "price", seed=0, device="cpu")
    assert [warning.filename for warning in caught] == [__file__]
    table[column] = np.arange(100) // 10
    TabularDataBunch.from_df(".", table, "price", cat_names=[column], seed=0, device="cpu")


@pytest.mark.parametrize("layers", [50, "50"])
def test_layers_that_are_no_list_are_named(layers):
    data = TabularDataBunch.from_df(".", dated(30)[["a", "price"]], "price", seed=0, device="cpu")
    with pytest.raises(TypeError, match="`layers` must be a list of widths"):
        tabular_learner(data, layers=layers)


def table(n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    df = pd.DataFrame({"town": rng.choice(["A", "B", None], n), "area": rng.uniform(10, 200, n)})
    df["price"] = 1e5 + 1000 * df["area"] + df["town"].map({"A": 5e4, "B": -5e4}).fillna(0)
    df.loc[rng.random(n) < 0.1, "area"] = None
    df["size"] = np.where(df["price"] > 2e5, "large", "small")
    return df


def learner(dep_var: str, columns: str = "both", **options) -> tuple[Learner, pd.DataFrame]:
    df = table()
    rows = df[{"both": ["town", "area"], "categories": ["town"], "numbers": ["area"]}[columns]]
    data = TabularDataBunch.from_df(
        ".", rows.assign(**{dep_var: df[dep_var]}), dep_var, bs=32, seed=0, device="cpu", test_df=rows
    )
    torch.manual_seed(0)
    return tabular_learner(data, [16, 8], metrics=[accuracy if data.classes else rmse], silent=True, **options), rows


@pytest.mark.parametrize(("dep_var", "best"), [("price", 3e4), ("size", 0.95)])
def test_it_learns_classes_and_numbers_in_their_units(dep_var, best) -> None:
    learn, _ = learner(dep_var)
    first = learn.validate()[1]
    learn.fit_one_cycle(15, 2e-2)
    last = learn.recorder.metrics[-1][0]
    if dep_var == "size":
        assert last > best > first
    else:
        assert last < best < first < 1e5  # it starts at the mean: the standard deviation is 7e4


@pytest.mark.parametrize("columns", ["both", *slow("categories", "numbers")])
@pytest.mark.parametrize("dep_var", ["size", *slow("price")])
def test_a_loaded_file_predicts_rows_in_each_form_like_the_learner(dep_var, columns) -> None:
    learn, rows = learner(dep_var, columns)
    learn.fit(1, 1e-2)
    file = io.BytesIO()
    learn.export(file)
    file.seek(0)
    loaded = load_learner(".", file, test=rows)
    expected, _ = learn.get_preds(DatasetType.Test)
    assert torch.allclose(loaded.get_preds(DatasetType.Test)[0], expected, rtol=1e-5)
    for i in (0, 7):
        for row in (rows.iloc[i], rows.iloc[i].to_dict(), rows.iloc[[i]]):
            for one in (learn, loaded):
                assert torch.allclose(one.predict(row)[2], expected[i], rtol=1e-4)
    assert torch.allclose(learn.predict(learn.data.valid_ds[0][0])[2], learn.get_preds()[0][0], rtol=1e-4)
    for values in ([100, 3], (100, 3, 2), [], 7):
        with pytest.raises(DataError, match=r"^A row of a table must be a dict, .* with the name of its column"):
            learn.predict(values)


def test_what_looks_at_a_learner_works(capsys) -> None:
    learn, _ = learner("size")
    assert not [finding for finding in learn.check(5).findings if "cannot" in finding.what]
    learn.lr_find(num_it=20)
    learn.fit(1, 1e-2)
    learn.show_results(rows=3)
    assert capsys.readouterr().out.splitlines()[-3].split()[1] in ("large", "small")
    assert "Embedding" in str(learn.summary())
    assert learn.interpret().confusion_matrix().sum() == len(learn.data.valid_ds)


def test_an_interrupted_run_resumes_bit_for_bit(tmp_path) -> None:
    weights = []
    for name in ("whole", "interrupted"):
        learn, _ = learner("size", path=tmp_path / name)
        if name == "interrupted":
            with pytest.raises(OSError, match="gone"):
                learn.fit(2, 1e-2, checkpoint="run", callbacks=[FailsAt(10)])
            learn, _ = learner("size", path=tmp_path / name)
        learn.fit(2, 1e-2, checkpoint="run", callbacks=[FailsAt(None)])
        weights.append(list(learn.model.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.slow
def test_onnx_takes_two_inputs(tmp_path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    learn, _ = learner("price", path=tmp_path)
    session = runtime.InferenceSession(str(learn.to_onnx("model.onnx")))
    assert [argument.name for argument in session.get_inputs()] == ["x_cat", "x_cont"]


def test_outputs_stay_in_their_range() -> None:
    learn, _ = learner("price", y_range=(1e5, 2e5))
    learn.fit(2, 1.0)
    predictions, _ = learn.get_preds(DatasetType.Test)
    assert predictions.min() >= 1e5
    assert predictions.max() <= 2e5


def test_invalid_arguments() -> None:
    learn, _ = learner("price")
    with pytest.raises(TypeError, match="`data` must be a TabularDataBunch, got Learner; make one"):
        tabular_learner(learn)
    with pytest.raises(ValueError, match="`ps` must be one number, or one for each of the 2 layers, got 1"):
        tabular_learner(learn.data, [4, 4], ps=[0.1])
    with pytest.raises(ValueError, match="each of layers must be at least 1, got 0"):
        TabularModel([], 2, 1, [0])
