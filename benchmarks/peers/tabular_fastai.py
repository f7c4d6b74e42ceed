"""fastai v2: its tabular learner on two tables, with regression targets standardized by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastai.tabular.all import (
    Categorify,
    CategoryBlock,
    FillMissing,
    Normalize,
    RegressionBlock,
    TabularDataLoaders,
    set_seed,
    tabular_learner,
)
from tabular_common import BATCH, LAYERS, LR, Table, main


def train(table: Table, valid: list[int], seed: int) -> Any:
    """Return the predictions for the rows of the validation set."""
    torch.set_num_threads(1)
    set_seed(seed)
    df = table.df.copy()
    numbers = df[table.dep_var].dtype.kind == "f"
    mean, std = 0.0, 1.0
    if numbers:
        trained_on = df[table.dep_var].drop(index=valid)
        mean, std = trained_on.mean(), trained_on.std()
        df[table.dep_var] = ((df[table.dep_var] - mean) / std).astype("float32")
    data = TabularDataLoaders.from_df(
        df,
        procs=[Categorify, FillMissing, Normalize],
        cat_names=list(table.cat_names),
        cont_names=list(table.cont_names),
        y_names=table.dep_var,
        y_block=RegressionBlock() if numbers else CategoryBlock(),
        valid_idx=valid,
        bs=BATCH,
        device="cpu",
    )
    learn = tabular_learner(data, layers=LAYERS)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(table.epochs, LR)
        predictions, _ = learn.get_preds()
    return predictions.numpy() * std + mean if numbers else np.array(list(data.vocab))[predictions.argmax(1)]


if __name__ == "__main__":
    main(train)
