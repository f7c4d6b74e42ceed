"""Batches that a model cannot take as they are: the error names what to do, in ``fit`` and in ``check``."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from minifast import DataBunch, DataError, Learner

N = 8


class WithLoss(nn.Module):
    """A model that returns its own loss, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x, labels=None):
        logits = self.layer(x.view(x.size(0), 4).float())
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


class Plain(WithLoss):
    def forward(self, x):
        return super().forward(x)["logits"]


class Spans(nn.Module):
    def forward(self, x, start_positions=None, end_positions=None):
        raise NotImplementedError


class Detector(nn.Module):
    """A model of a list of images, and in training of their targets, as those of torchvision."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, images, targets=None):
        boxes = [target["boxes"] for target in targets]
        means = torch.stack([image.mean((1, 2)) for image in images])
        return {"loss": self.layer(means).square().mean() + 0 * sum(map(torch.sum, boxes))}


def data_of(samples, valid=True, **options):
    loader = DataLoader(samples, 4, **options)
    return DataBunch(loader, loader if valid else None, device="cpu")


def raises_in_fit_and_check(learn, message):
    with pytest.raises(DataError, match=message):
        learn.fit(1)
    text = str(learn.check())
    head = message.partition(";")[0].partition(".*")[0]
    assert head.replace("\\", "") in " ".join(text.split())


@pytest.mark.parametrize("model", [WithLoss, Plain])
def test_lists_of_python_numbers_are_named(model):
    learn = Learner(data_of([{"x": [1, 2, 3, 4], "labels": 0}] * N), model(), silent=True)
    raises_in_fit_and_check(learn, r"In the batch, 'x' is a list of 4 tensors.*with_format\('torch'\).*collate_fn")


def test_lists_as_targets_are_named():
    learn = Learner(data_of([{"x": torch.ones(4), "labels": [0, 1]}] * N), WithLoss(), silent=True)
    raises_in_fit_and_check(learn, "In the batch, the value of the targets is a list of 2 tensors")


@pytest.mark.parametrize("model", [WithLoss, Plain])
@pytest.mark.parametrize("label", [2, -1])
def test_a_class_number_out_of_range_is_named(model, label):
    loss = nn.CrossEntropyLoss() if model is Plain else None
    learn = Learner(data_of([{"x": torch.ones(4), "labels": label}] * N), model(), loss_func=loss, silent=True)
    raises_in_fit_and_check(
        learn, f"The targets go from {label} to {label}, but the model gives 2 outputs; targets are"
    )


def test_a_batch_without_targets_says_how_to_name_them():
    sample = {"x": torch.ones(4), "start_positions": 1, "end_positions": 2}
    with pytest.raises(DataError, match=r"with the keys 'x', 'start_positions', 'end_positions'; .*target=NAME"):
        Learner(data_of([sample] * N), Spans())


def test_a_dict_of_targets_for_each_sample_says_how_to_split_the_batch():
    samples = [(torch.rand(3, 5, 5 + i % 2), {"boxes": torch.ones(1 + i % 3, 4)}) for i in range(N)]

    def unzip(batch):
        return tuple(zip(*batch, strict=True))

    def loss(losses, *targets):
        return sum(losses.values())

    data = data_of(samples, valid=False, collate_fn=unzip)
    with pytest.raises(DataError, match="dicts, one for each sample; pass `loss_func`, and `batch_fn`"):
        Learner(data, Detector())
    raises_in_fit_and_check(
        Learner(data, Detector(), loss_func=loss, silent=True), "The inputs of a batch are 4 values"
    )
    learn = Learner(data, Detector(), loss_func=loss, silent=True, batch_fn=lambda b: ((list(b[0]), list(b[1])), b[1]))
    assert len(learn.fit(2).losses) == 4
