"""``get_preds`` and ``validate`` take loaders of other data; what is neither a loader nor a part raises an error."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import toy_items, toy_learner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minifast import DataBunch, DataError, DatasetType, Learner, TabularDataBunch, load_learner
from minifast.diagnostics import Interpretation


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


def takers_of_a_part():
    for cls in (Learner, DataBunch, TabularDataBunch, Interpretation):
        for name in vars(cls):
            method = getattr(cls, name)
            if not name.startswith("_") and callable(method) and "ds_type" in inspect.signature(method).parameters:
                yield pytest.param(cls, name, id=f"{cls.__name__}.{name}")


def of_parts(cls: type) -> object:
    """What has the methods of a class, for data in three parts."""
    torch.manual_seed(0)
    if cls is TabularDataBunch:
        df = pd.DataFrame({"a": range(8), "y": list("abababab")})
        return TabularDataBunch.from_df(".", df, "y", valid_idx=[0, 1], test_df=df[:2], device="cpu")
    batches = [[(torch.randn(4, 3, 6, 6), torch.tensor([0, 1, 1, 0]))] for _ in range(3)]
    data = DataBunch(*batches, device="cpu", classes=["cat", "dog"])
    data.test_labelled = False
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    return data if cls is DataBunch else Learner(data, model, loss_func=nn.CrossEntropyLoss(), silent=True)


def as_text(value: object) -> str:
    if hasattr(value, "axes"):  # a figure
        return str([ax.get_title() for ax in value.axes])
    return str(list(value) if isinstance(value, Iterator) else value)


@pytest.mark.parametrize(("cls", "name"), list(takers_of_a_part()))
def test_each_method_takes_the_name_of_a_part(cls, name, capsys):
    owner = of_parts(cls)
    given = {"learn": owner} if cls is Interpretation else {}
    call = getattr(cls if given else owner, name)
    if "return_fig" in inspect.signature(call).parameters:
        given["return_fig"] = True
    if name == "dl":
        assert all(call(part.name.upper()) is call(part) for part in DatasetType)
        return
    for part, spelling in zip(DatasetType, ("TRAIN", "valid", "Test"), strict=True):
        if "tta" in name.lower() and part is DatasetType.Train:
            with pytest.raises(ValueError, match="TTA predicts the validation or the test set"):
                as_text(call(ds_type=spelling))
            continue
        expected = as_text(call(ds_type=part, **given)), capsys.readouterr().out
        assert (as_text(call(ds_type=spelling, **given)), capsys.readouterr().out) == expected
    with pytest.raises(ValueError, match=r"There is no part 'Validd' of the data; .* Did you mean valid\?"):
        as_text(call(ds_type="Validd", **given))


@pytest.mark.parametrize("value", [1, torch.zeros(3, 10), np.zeros((3, 10)), None])
@pytest.mark.parametrize("method", ["get_preds", "interpret", "TTA", "show_results", "dl", "pred_batch"])
def test_what_is_no_part_of_the_data_raises(method, value):
    learn = toy_learner()
    with pytest.raises(TypeError, match=r"`ds_type` must be DatasetType\.Train, .*get_preds and validate take"):
        getattr(learn, method)(ds_type=value)
    if method != "get_preds":
        with pytest.raises(TypeError, match="`ds_type` must be"):
            getattr(learn, method)(ds_type=learn.data.valid_dl)


@pytest.mark.parametrize("part", DatasetType)
def test_a_part_is_validated_by_its_name(part):
    learn = of_parts(Learner)
    assert learn.validate(part.name.lower()) == learn.validate(part) == learn.validate(learn.dl(part))
    with pytest.raises(ValueError, match=r"no part 'trian' of the data; .* Did you mean train\?"):
        learn.validate("trian")


def test_a_number_is_no_loader_to_validate():
    with pytest.raises(DataError, match=r"must be a loader of batches .*learn.dl\(DatasetType\.Valid\)"):
        toy_learner().validate(1)
