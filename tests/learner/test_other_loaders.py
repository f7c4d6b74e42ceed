"""``get_preds`` and ``validate`` take loaders of other data; what is neither a loader nor a part raises an error."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from conftest import toy_items, toy_learner
from torch.utils.data import DataLoader, TensorDataset

from minifast import DataError, DatasetType, load_learner


@pytest.mark.parametrize("with_targets", [True, False])
@pytest.mark.parametrize("exported", [True, False])
def test_predictions_of_a_loader_are_those_of_its_samples(with_targets, exported):
    learn = toy_learner()
    learn.data.normalize()
    x, y = toy_items(23, seed=5).tensors
    loader = DataLoader(TensorDataset(x, y) if with_targets else TensorDataset(x), 10)
    expected = torch.stack([learn.predict(item)[2] for item in x])
    if exported:
        file = io.BytesIO()
        learn.export(file)
        file.seek(0)
        learn = load_learner(".", file, device="cpu")
    for source in (loader, list(loader)):
        predictions, targets = learn.get_preds(source)
        assert torch.allclose(predictions, expected, atol=1e-6)
        assert torch.equal(targets, y if with_targets else torch.zeros(23, dtype=torch.int64))


@pytest.mark.parametrize("value", ["valid", 1, torch.zeros(3, 10), np.zeros((3, 10)), None])
@pytest.mark.parametrize("method", ["get_preds", "interpret", "TTA", "show_results", "dl", "pred_batch"])
def test_what_is_no_part_of_the_data_raises(method, value):
    learn = toy_learner()
    with pytest.raises(TypeError, match=r"`ds_type` must be DatasetType\.Train, .*get_preds and validate take"):
        getattr(learn, method)(ds_type=value)
    if method != "get_preds":
        with pytest.raises(TypeError, match="`ds_type` must be"):
            getattr(learn, method)(ds_type=learn.data.valid_dl)


@pytest.mark.parametrize("value", ["valid", DatasetType.Train])
def test_a_part_is_no_loader_to_validate(value):
    with pytest.raises(DataError, match=r"must be a loader of batches .*learn.dl\(DatasetType\.Valid\)"):
        toy_learner().validate(value)
