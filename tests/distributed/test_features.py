"""Kinds of batches, samplers, losses and training options: several processes train as one, and so does lr_find."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import features
import pytest
from test_processes import check, folder_of_two, results, torchrun


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = folder_of_two(tmp_path_factory.getbasetemp())
    return results(folder, 1, "features_")[0], results(folder, 2, "features_")


@cache
def trained_by(size: int, base: Path) -> tuple[dict, list[dict]]:
    folder = base / f"all features of {size}"
    folder.mkdir()
    features.main(folder, *features.CASES)
    done = torchrun(size, "resumed.py", folder, "all features")
    assert done.returncode == 0, done.stderr[-3000:]
    return results(folder, 1, "features_")[0], results(folder, size, "features_")


@pytest.mark.parametrize("name", features.DEFAULT)
def test_two_processes_train_and_find_as_one(name, two):
    check(name, *two)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", features.CASES)
def test_features_do_not_depend_on_the_number_of_processes(name, size, tmp_path_factory):
    check(name, *trained_by(size, tmp_path_factory.getbasetemp()))
