"""Data sets of Hugging Face's package ``datasets``: trained as they are, they give what the same tensors give."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from minifast import DataBunch, Learner, accuracy

datasets = pytest.importorskip("datasets", reason="needs datasets: pip install datasets")

N, BS = 90, 10


def columns() -> dict[str, list]:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(N, 4, generator=generator), torch.randn(N, 3, generator=generator)
    return {"left": left.tolist(), "right": right.tolist(), "label": (left[:, 0] > right[:, 0]).long().tolist()}


class Compare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 2)

    def forward(self, left, right):
        return self.layer(torch.cat([left, right], 1))


def trained(data: DataBunch) -> dict:
    torch.manual_seed(0)
    learn = Learner(data, Compare(), loss_func=nn.CrossEntropyLoss(), metrics=[accuracy], silent=True)
    learn.fit(2, 1e-2)
    predictions, targets = learn.get_preds()
    return {
        "losses": learn.recorder.raw_losses[:], "valid": learn.recorder.val_losses, "metrics": learn.recorder.metrics,
        "weight": learn.model.layer.weight.tolist(), "predictions": predictions.tolist(), "targets": targets.tolist(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> dict:
    rows = [dict(zip(columns(), row, strict=True)) for row in zip(*columns().values(), strict=True)]
    tensors = [{name: torch.tensor(value) for name, value in row.items()} for row in rows]
    return trained(DataBunch(DataLoader(tensors, BS), DataLoader(tensors, BS), device="cpu"))


def in_memory() -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns())


def test_a_data_set_in_a_data_loader(expected):
    loaders = [DataLoader(in_memory().with_format("torch"), BS) for _ in range(2)]
    assert trained(DataBunch(*loaders, device="cpu")) == expected


def test_a_mapped_data_set_with_a_collator_and_columns_that_the_model_does_not_take(expected):
    def collate(rows):
        return default_collate([{name: torch.tensor(row[name]) for name in ("left", "right", "label")} for row in rows])

    mapped = in_memory().map(lambda row: {"text": f"row {row['label']}"})
    loaders = [DataLoader(mapped, BS, collate_fn=collate) for _ in range(2)]
    assert trained(DataBunch(*loaders, device="cpu")) == expected


def test_class_labels_name_the_classes_and_all_samples_are_seen_in_another_order(expected):
    data_set = in_memory().cast_column("label", datasets.ClassLabel(names=["no", "yes"])).with_format("torch")
    data = DataBunch.create(data_set, data_set, bs=BS, device="cpu")
    assert data.classes == ["no", "yes"]
    found = trained(data)
    assert found["targets"] == expected["targets"]
    assert found["losses"] != expected["losses"]  # create shuffles
    assert sorted(row for batch in data.train_dl for row in batch[0]["left"].tolist()) == sorted(
        torch.tensor(columns()["left"]).tolist()
    )


@pytest.mark.parametrize("shards", [1, 3])
def test_a_streamed_data_set(shards, expected):
    stream = in_memory().with_format("torch").to_iterable_dataset(num_shards=shards)
    length = N // BS
    found = trained(DataBunch.create(stream, stream, bs=BS, epoch_length=length, val_length=length, device="cpu"))
    assert found == expected
