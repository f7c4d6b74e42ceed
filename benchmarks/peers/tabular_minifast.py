"""minifast: a network with embeddings on two tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tabular_common import BATCH, LAYERS, LR, Table, main

from minifast import TabularDataBunch, set_seed, tabular_learner


def train(table: Table, valid: list[int], seed: int) -> Any:
    """Return the predictions for the rows of the validation set."""
    torch.set_num_threads(1)
    set_seed(seed)
    data = TabularDataBunch.from_df(
        ".", table.df, table.dep_var, valid, cat_names=table.cat_names, cont_names=table.cont_names, bs=BATCH, seed=seed
    )
    learn = tabular_learner(data, LAYERS, silent=True)
    learn.fit_one_cycle(table.epochs, LR)
    predictions, _ = learn.get_preds()
    return predictions.numpy() if data.classes is None else np.array(data.classes)[predictions.argmax(1)]


if __name__ == "__main__":
    main(train)
