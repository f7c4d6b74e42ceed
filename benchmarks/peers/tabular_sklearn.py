"""scikit-learn: HistGradientBoosting with its defaults on two tables; it takes gaps and categories as they are."""

from __future__ import annotations

from typing import Any

from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from tabular_common import Table, main


def train(table: Table, valid: list[int], seed: int) -> Any:
    """Return the predictions for the rows of the validation set."""
    x = table.df[[*table.cat_names, *table.cont_names]].astype(dict.fromkeys(table.cat_names, "category"))
    y = table.df[table.dep_var]
    kind = HistGradientBoostingRegressor if y.dtype.kind == "f" else HistGradientBoostingClassifier
    model = kind(random_state=seed).fit(x.drop(index=valid), y.drop(index=valid))
    return model.predict(x.iloc[valid])


if __name__ == "__main__":
    main(train)
