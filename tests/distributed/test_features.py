"""Kinds of batches, samplers, losses and training options: several processes train as one, and so does lr_find."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import features
import pytest
from test_processes import check, made_once, results, torchrun

pytestmark = pytest.mark.slow


def train_in(size: int, folder: Path) -> None:
    done = torchrun(size, "resumed.py", folder, "features")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=[2, 3])
def one_and_several(request, tmp_path_factory):
    one = made_once(tmp_path_factory, "features in one", features.main)
    size = request.param
    several = made_once(tmp_path_factory, f"features in {size}", partial(train_in, size))
    return results(one, 1, "features_")[0], results(several, size, "features_")


@pytest.mark.parametrize("name", features.CASES)
def test_features_do_not_depend_on_the_number_of_processes(name, one_and_several):
    check(name, *one_and_several)
