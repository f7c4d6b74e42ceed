"""Kinds of batches, samplers, losses and training options: several processes train as one, and so does lr_find."""

from __future__ import annotations

import features
import pytest
from test_processes import check, results, torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def every_feature(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    features.main(folder)
    return folder


@pytest.fixture(scope="module", params=[2, 3])
def one_and_several(request, every_feature):
    done = torchrun(request.param, "resumed.py", every_feature, "features")
    assert done.returncode == 0, done.stderr[-3000:]
    return results(every_feature, 1, "features_")[0], results(every_feature, request.param, "features_")


@pytest.mark.parametrize("name", features.CASES)
def test_features_do_not_depend_on_the_number_of_processes(name, one_and_several):
    check(name, *one_and_several)
