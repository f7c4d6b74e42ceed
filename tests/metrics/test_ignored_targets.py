"""Every metric on targets that the loss ignores: its value is that of the data without them."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import minifast.metrics
from minifast import DataError, Learner, SegmentationDataBunch
from minifast.metrics import AverageMetric, ConfusionMatrix, accuracy, add_metrics, dice, fbeta, foreground_acc
from minifast.metrics.base import as_metric

NO_METRICS = (AverageMetric, add_metrics, ConfusionMatrix)  # a wrapper, a helper, and one without a value
LOWEST = {"top_k_accuracy": {"k": 1}}
METRICS = {
    name: partial(metric, **LOWEST[name]) if name in LOWEST else metric
    for name in minifast.metrics.__all__
    if (metric := getattr(minifast.metrics, name)) not in NO_METRICS
}
PER_SAMPLE = ("dice", "fbeta")  # means over the samples; all others are of all targets together
# The outputs of n samples, and the sizes of their targets.
LAYOUTS = {
    "two classes of pixels": ((2, 3, 2), (3, 2)),
    "three classes of pixels": ((3, 3, 2), (3, 2)),
    "one output per pixel": ((1, 3, 2), (3, 2)),
    "one output per pixel, without a channel": ((3, 2), (3, 2)),
    "labels": ((4,), (4,)),
    "two classes": ((2,), ()),
    "one output": ((1,), (1,)),
}


class Masked(nn.Module):
    """A loss of one output per target that ignores some."""

    def __init__(self, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, output, target):
        return output.sum()


def value_of(metric, loss_func, batches):
    """Return what a learner with this loss would show for a metric."""
    metric = as_metric(metric() if isinstance(metric, type) else metric, loss_func)
    metric.on_epoch_begin()
    for output, target in batches:
        metric.on_batch_end(last_output=output, last_target=target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of F scores of three classes
        return metric.on_epoch_end(last_metrics=[])["last_metrics"][0]


def without(output, target, ignored):
    """Return the pairs of outputs and targets that count, as samples of their own where they have classes."""
    counted = (target != ignored).flatten()
    if output.numel() == target.numel():
        return output.flatten()[counted][:, None], target.flatten()[counted][:, None]
    return output.movedim(1, -1).flatten(0, -2)[counted], target.flatten()[counted]


def as_one_sample(output, target, ignored):
    """Return the positions of one sample that count, and two where 0 is right, which change no overlap."""
    kept = (target != ignored).flatten()
    zeros = torch.zeros(1, 2, dtype=torch.int64)
    if output.numel() == target.numel():
        values, right = output.flatten()[None, kept], torch.tensor([[-9.0, -9.0]])
        return torch.cat([values, right], 1), torch.cat([target.flatten()[None, kept], zeros], 1)
    values, right = output.flatten(2)[:, :, kept], torch.tensor([[[9.0, 9.0], [-9.0, -9.0]]])
    return torch.cat([values, right], 2), torch.cat([target.flatten(1)[:, kept], zeros], 1)


def expected_of(name, loss_func, output, target, ignored):
    if name not in PER_SAMPLE:
        return value_of(METRICS[name], loss_func, [without(output, target, ignored)])
    scores = [
        float(METRICS[name](*as_one_sample(output[i : i + 1], target[i : i + 1], ignored)))
        for i in range(len(target))
        if (target[i] != ignored).any()
    ]
    return sum(scores) / len(scores) if scores else math.nan


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=10, deadline=None)
@given(
    n=st.integers(2, 6),
    ignored=st.sampled_from([-100, -1, 255]),
    share=st.sampled_from([0.0, 0.3, 0.8]),
    seed=st.integers(0, 99),
    bs=st.integers(1, 6),
)
def test_the_value_is_that_without_the_ignored_targets(layout, n, ignored, share, seed, bs) -> None:
    generator = torch.Generator().manual_seed(seed)
    out, sizes = LAYOUTS[layout]
    has_classes = math.prod(out) > math.prod(sizes)
    output = torch.rand(n, *out, generator=generator) * 2 - 0.7
    clean = torch.randint(out[0] if has_classes else 2, (n, *sizes), generator=generator)
    target = clean.masked_fill(torch.rand(n, *sizes, generator=generator) < share, ignored)
    target[0] = ignored  # one sample without any target
    loss_func = nn.CrossEntropyLoss(ignore_index=ignored) if has_classes else Masked(ignored)
    compared = []
    for name, metric in METRICS.items():
        try:
            value = value_of(metric, loss_func, zip(output.split(bs), target.split(bs), strict=True))
        except DataError:  # it is no metric for this layout, with or without ignored targets
            with pytest.raises(DataError):
                value_of(metric, loss_func, zip(output.split(bs), clean.split(bs), strict=True))
            continue
        expected = expected_of(name, loss_func, output, target, ignored)
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-5, nan_ok=True), name
        compared.append(name)
    assert compared


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_fits_one_of_these_layouts(name) -> None:
    refused = 0
    for out, sizes in LAYOUTS.values():
        target = torch.tensor([0, 1, 1]).view(3, *[1] * len(sizes)).expand(3, *sizes)
        try:
            value_of(METRICS[name], None, [(torch.rand(3, *out), target)])
        except DataError:
            refused += 1
    assert refused < len(LAYOUTS)


def test_an_argument_of_the_metric_comes_before_that_of_the_loss() -> None:
    output, target = torch.tensor([[[[2.0, 2.0]], [[0.0, 3.0]]]]), torch.tensor([[[1, 1]]])
    for metric in (accuracy, dice, foreground_acc):
        given_by_user = partial(metric, ignore_index=7)
        assert value_of(given_by_user, nn.CrossEntropyLoss(ignore_index=1), [(output, target)]) > 0


def test_probabilities_of_the_foreground_are_compared_with_a_half() -> None:
    output, target = torch.tensor([[[[0.2, 0.9]]]]), torch.ones(1, 1, 1, 2)
    assert value_of(foreground_acc, nn.BCELoss(), [(output, target)]) == 0.5


@pytest.mark.parametrize(
    ("metric", "output", "target", "said"),
    [
        (dice, torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 3]]]), "range from 0 to 3, but dice is for masks of two cl"),
        (fbeta, torch.zeros(1, 2), torch.tensor([[0, 3]]), "range from 0 to 3, but each label must be 0 or 1"),
    ],
)
def test_targets_that_do_not_fit_are_named_for_the_metric(metric, output, target, said) -> None:
    with pytest.raises(DataError, match=said):
        metric(output, target)


def test_masks_with_pixels_of_no_class_are_scored_without_them(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        unknown = torch.rand(6, 6, generator=generator) < 0.3
        mask = torch.randint(2, (6, 6), generator=generator).masked_fill(unknown, 255)
        for folder in ("images", "masks"):
            Image.fromarray(mask.to(torch.uint8).numpy()).save(tmp_path / folder / f"{i}.png")
    data = SegmentationDataBunch.from_folder(tmp_path, ["a", "b"], ignore=255, bs=3, seed=0, device="cpu")
    learn = Learner(data, nn.Conv2d(3, 2, 1), metrics=[dice], silent=True)
    learn.fit(1, 1e-2)
    output, target = learn.get_preds()
    assert learn.recorder.metrics[-1][0] == pytest.approx(expected_of("dice", None, output, target, -100), rel=1e-4)
